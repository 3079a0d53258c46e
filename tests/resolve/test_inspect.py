"""`sqltrace inspect`: one file in full, many in a line each, and why it believes what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sqltrace.cli import main
from sqltrace.resolve import explain
from sqltrace.resolve.overrides import Overrides
from sqltrace.resolve.query import sqlite_in
from tests.support.sqlite_builds import Build, build_twin

NO_TABLE = ("-O2", "-fno-pie", "-DSQLITE_OMIT_LOAD_EXTENSION", "-DSQLITE_OMIT_TRACE")


def inspect(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    status = main(["inspect", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_each_fact_has_a_detail_for_each_of_its_evidences() -> None:
    explained = explain(build_twin().stripped)
    facts = {**explained.resolution.functions, **explained.resolution.layout}
    assert {n: {d.evidence for d in explained.details[n]} for n in facts} == {
        n: set(f.evidence) for n, f in facts.items()
    }


def test_details_name_addresses_that_hold_what_they_say() -> None:
    twin = Build(kind="no-pie", options="OMIT_LOAD_EXTENSION OMIT_TRACE").twin()
    explained = explain(twin.stripped)
    (detail,) = explained.details["sqlite3_step"]
    match = re.search(r'refers to "([^"]+)" at (0x[0-9a-f]+) \((0x[0-9a-f]+)\)$', detail.text)
    assert match is not None
    done = subprocess.run(
        ["objdump", "-d", f"--start-address={match[3]}", f"--stop-address={int(match[3], 16) + 8}", twin.stripped],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert f"${match[2]}" in done.stdout
    assert match[1] == "API called with NULL prepared statement"
    accessor = explained.details["Vdbe.zSql"][0].text
    assert re.search(r"reads u64\[arg0 \+ 240\], 0x[0-9a-f]+: mov \w+, qword ptr \[\w+ \+ 0xf0\]", accessor)
    assert explained.details["Vdbe.zSql"][1].text == "source of 3.50.4, its options listed in the file, with OMIT_TRACE"


def test_the_slot_of_the_api_table_holds_the_function() -> None:
    twin = build_twin()
    explained = explain(twin.stripped)
    text = explained.details["sqlite3_step"][0].text
    assert re.fullmatch(r"slot 94 of sqlite3_api_routines at 0x[0-9a-f]+ \(at 0x[0-9a-f]+\)", text)


def test_verbose_shows_a_line_below_each_fact(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = inspect(capsys, "-v", build_twin().stripped)
    assert status == 0
    lines = out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("sqlite3_step "))
    assert lines[at + 1].startswith("    api-table: slot 94 of")
    assert lines[at + 2].startswith("    strings: calls at 0x")


def test_json_holds_the_details_only_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = inspect(capsys, "--json", build_twin().stripped)
    assert "details" not in json.loads(out)
    _, out, _ = inspect(capsys, "--json", "-v", build_twin().stripped)
    assert json.loads(out)["details"]["sqlite3_step"][0]["evidence"] == "api-table"


def test_overrides_win_and_are_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "layout").write_text('{"Vdbe.zSql": 232}')
    reset = explain(build_twin().stripped).resolution.functions["sqlite3_reset"].address
    offset = f"sqlite3_step={reset:#x}"
    status, out, _ = inspect(
        capsys, "--json", "--offset", offset, "--layout", tmp_path / "layout", build_twin().stripped
    )
    content = json.loads(out)
    assert status == 0
    assert content["functions"]["sqlite3_step"] == {"address": reset, "evidence": ["override"]}
    assert content["layout"]["Vdbe.zSql"] == {"offset": 232, "size": 8, "evidence": ["override"]}


def test_malformed_overrides_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = inspect(capsys, "--offset", "step", build_twin().stripped)
    assert status == 2
    assert "--offset wants" in err


def test_a_tracer_applies_overrides_only_to_files_with_sqlite() -> None:
    overrides = Overrides(
        {"sqlite3_step": explain(build_twin().stripped).resolution.functions["sqlite3_reset"].address}
    )
    assert sqlite_in("/lib/x86_64-linux-gnu/libc.so.6", overrides) is None
    found = sqlite_in(str(build_twin().stripped), overrides)
    assert found is not None
    assert found.functions["sqlite3_step"].evidence == ("override",)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a directory with two programs, one of them under two names, and much that is none."""
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    shutil.copy(build_twin().stripped, folder / "a")
    os.link(folder / "a", folder / "below" / "b")
    shutil.copy(build_twin().unstripped, folder / "below" / "c")
    (folder / "link").symlink_to("/usr")
    (folder / "link2").symlink_to(folder / "a")
    (folder / "text").write_text("no program")
    (folder / "cut").write_bytes(build_twin().stripped.read_bytes()[:9000])
    os.mkfifo(folder / "fifo")
    return folder


def test_a_directory_gives_one_line_for_each_file_with_sqlite(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    status, out, err = inspect(capsys, folder)
    assert status == 0
    assert out.splitlines() == [
        f"3.50.4   elf x86_64  {folder / 'a'}",
        f"3.50.4   elf x86_64  {folder / 'below' / 'c'}",
    ]
    assert err == ""


def test_several_files_go_on_after_one_that_cannot_be_read(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    status, out, err = inspect(capsys, "--json", folder / "cut", folder / "missing", folder / "a")
    assert status == 0
    assert [json.loads(line)["path"] for line in out.splitlines()] == [str(folder / "a")]
    assert "cut off or damaged" in err
    assert "No such file" in err


def test_nothing_found_is_a_failure(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, _, err = inspect(capsys, tmp_path, "/bin/true")
    assert status == 125
    assert "/bin/true holds no SQLite" in err
    assert "no SQLite that can be resolved was found in" in err


def test_no_argument_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = inspect(capsys)
    assert status == 2
    assert "-p PID" in err


def test_a_process_is_looked_into_even_when_its_program_was_deleted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    program = tmp_path / "program"
    shutil.copy(build_twin().stripped, program)
    endless = "WITH RECURSIVE t(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM t) SELECT i FROM t"
    # Nobody reads what it writes, so that it waits.
    process = subprocess.Popen([program, ":memory:", endless], stdout=subprocess.PIPE)
    try:
        status, out, _ = inspect(capsys, "-p", str(process.pid))
        assert (status, out) == (0, f"3.50.4   elf x86_64  {program}\n")
        if os.geteuid() == 0:  # /proc/PID/map_files is for root
            program.unlink()
            status, out, _ = inspect(capsys, "-p", str(process.pid))
            assert (status, out) == (0, f"3.50.4   elf x86_64  {program}\n")
    finally:
        process.kill()
        process.communicate()


def test_verbose_names_the_probe_site_of_each_function_and_its_class(capsys: pytest.CaptureFixture[str]) -> None:
    path = build_twin().stripped
    _, text, _ = inspect(capsys, "-v", path)
    sites = dict(re.findall(r"^(sqlite3_\w+) +(\+\d+ (?:nop|push|branch|single-step))$", text, re.MULTILINE))
    assert set(sites) == {"sqlite3_step", "sqlite3_reset", "sqlite3_finalize"}
    resolution = explain(path).resolution
    disassembly = subprocess.run(["objdump", "-d", path], capture_output=True, text=True, check=True).stdout
    for name, site in sites.items():
        offset, kind = site.split()
        address = resolution.functions[name].address + int(offset)
        (instruction,) = re.findall(rf"^ +{address:x}:\t[^\t]*\t(\S+)", disassembly, re.MULTILINE)
        assert kind == "single-step" or instruction.startswith({"branch": "j"}.get(kind, kind)), (name, instruction)
