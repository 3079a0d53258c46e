"""`sqltrace catalogue`."""

from __future__ import annotations

from pathlib import Path

import pytest

from sqltrace.btf.reader import Btf
from sqltrace.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["catalogue", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_it_lists_the_releases_with_their_origin(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys)
    assert status == 0
    assert len(out.splitlines()) == 87
    assert "npm better-sqlite3@13.2.0" in out.splitlines()[-1]


def test_it_prints_a_struct(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "3.50.4", "Vdbe", "Mem")
    assert status == 0
    assert "    char *zSql;                                /*   248     8 */" in out
    assert "struct sqlite3_value {" in out


def test_it_prints_the_struct_that_the_options_make(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "3.50.4", "Vdbe", "--option", "MAX_ATTACHED=125", "--option", "SQLITE_OMIT_WAL")
    assert "    char *zSql;                                /*   272     8 */" in out
    assert "not accounted for: OMIT_WAL" in out


def test_it_says_from_which_release_an_answer_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "3.50.1")
    assert out.startswith("SQLite 3.50.1, taken to be like 3.50.2; variant: default")
    assert "MEM_Zero=0x400" in out


def test_it_writes_btf_and_overwrites_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "wide.btf"
    assert run(capsys, "3.53.4", "--option", "MAX_ATTACHED=125", "--btf", str(file))[0] == 0
    place = Btf.parse(file.read_bytes()).place("Vdbe.zSql")
    assert place is not None
    assert place.offset == 272
    status, _, err = run(capsys, "3.53.4", "--btf", str(file))
    assert (status, "not overwritten" in err) == (125, True)


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["3.60.0"], 125, "does not cover 3.60.0"),
        (["x"], 2, "'x' is not a release"),
        (["3.50.4", "Foo"], 125, "no struct Foo"),
        (["3.50.4", "--option", "OMIT_DISKIO"], 125, "no pager"),
        (["--btf", "x"], 2, "need a VERSION"),
    ],
)
def test_what_it_cannot_do_it_says_in_one_sentence(
    arguments: list[str], status: int, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    got, _, err = run(capsys, *arguments)
    assert got == status
    assert complaint in err
    assert len(err.splitlines()) == 1
