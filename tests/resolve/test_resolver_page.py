"""docs/resolver.md shows what `inspect -v` prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sqltrace.resolve import describe, explain

PAGE = Path(__file__).parents[2] / "docs" / "resolver.md"
FILES = ("/usr/bin/fossil", "/lib/x86_64-linux-gnu/libsqlite3.so.0")


def test_every_line_of_the_page_is_what_inspect_prints() -> None:
    page = PAGE.read_text()
    printed: set[str] = set()
    for file in FILES:
        if not Path(file).exists():
            pytest.skip(f"needs {file}")
        explained = explain(file)
        if explained.resolution.build_id not in page:
            pytest.skip(f"the page is about another build of {file}")
        printed.update(describe(explained.resolution, explained.details).splitlines())
    blocks = re.findall(r"^```\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    shown = {line for block in blocks[1:] for line in block.splitlines()}
    assert len(shown) > 10
    assert shown <= printed
