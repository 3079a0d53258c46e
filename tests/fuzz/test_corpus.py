"""What fuzzing collected and what it found, once more: `make fuzz` looks for new ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS

HERE = Path(__file__).parent
STORED = sorted(f for folder in ("corpus", "findings") for f in (HERE / folder).glob("*/*"))


@pytest.mark.parametrize("target", TARGETS)
def test_what_fuzzing_starts_from_is_dealt_with(target: str) -> None:
    for content in seeds(target):
        TARGETS[target](content)


@pytest.mark.parametrize("target", TARGETS)
def test_what_fuzzing_collected_is_dealt_with(target: str) -> None:
    files = [f for f in STORED if f.parent.name == target]
    assert files
    for file in files:
        try:
            TARGETS[target](file.read_bytes())
        except Exception as error:
            raise AssertionError(f"{file} is a finding again") from error


def test_the_corpus_stays_small() -> None:
    assert sum(f.stat().st_size for f in STORED) < 200_000
