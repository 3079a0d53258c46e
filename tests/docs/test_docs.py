"""The documents say what is so."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from sqltrace.backends.choice import BACKENDS
from sqltrace.cli import COMMANDS, build_parser
from sqltrace.events.model import Prepared, Process, Statement
from sqltrace.events.wire import End

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CLI = (ROOT / "docs/cli.md").read_text()
EVENTS = (ROOT / "docs/events.md").read_text()


def subparsers() -> dict[str, argparse.ArgumentParser]:
    (action,) = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(action.choices)


@pytest.mark.parametrize("name", [c.name for c in COMMANDS])
def test_every_command_is_in_the_readme_and_in_cli_md(name: str) -> None:
    assert f"sqltrace {name}" in README
    assert f"`{name}" in CLI


@pytest.mark.parametrize("name", [c.name for c in COMMANDS])
def test_every_option_is_in_cli_md(name: str) -> None:
    for action in subparsers()[name]._actions:
        for option in action.option_strings:
            if option.startswith("--") and option not in ("--help", "--pid"):
                assert option in CLI, f"{name} {option}"


def test_every_command_of_the_readme_parses() -> None:
    for line in re.findall(r"^sqltrace (\w.*?)\s*(?:#.*)?$", README, re.MULTILINE):
        words = line.replace('"$(pgrep -d, firefox)"', "1,2").split()
        build_parser().parse_args(words)


def test_every_field_of_a_statement_is_documented_and_no_other() -> None:
    fields = Statement(
        Process(1, 1, 0, 0, "c", None, (), None, None, "c"), Prepared(b"", 1, 2, b"", 0, False, False), *([0] * 17)
    ).fields()
    for name in fields:
        assert f"`{name}`" in EVENTS, name
    table = EVENTS.split("## statement")[1].split("| --- | --- |")[1].split("\n\n")[0]
    documented = {n for row in table.strip().splitlines() for n in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert documented <= set(fields)


def test_every_end_is_documented() -> None:
    for end in End:
        assert f"`{end.name.lower()}`" in EVENTS or end.name.lower() in EVENTS


def test_every_backend_is_in_the_readme() -> None:
    for name in BACKENDS:
        assert f"| {name} |" in README


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_no_folder_of_a_machine_is_named() -> None:
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        assert not re.search(r"/(work|root)/", page.read_text()), page
