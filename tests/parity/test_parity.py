"""Every backend reports what the program knows that it did, and all backends report the same."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.parity.compare import (
    Difference,
    Line,
    check_oracle,
    check_stream,
    compare,
    compare_backends,
    read_lines,
    report,
    statements,
    with_thread_numbers,
)
from tests.support.programs import workload

BACKENDS = [pytest.param("bcc", marks=pytest.mark.bcc), pytest.param("frida", marks=pytest.mark.frida)]
KINDS = ["dynamic", "static", "amalgamation", "old"]


@dataclass(frozen=True)
class Run:
    """What one workload did, by its own account and by the tracer's."""

    status: int
    stdout: str
    oracle: list[Line]
    events: list[Line]


Traces = Callable[[str, str], Run]


def trace(backend: str, kind: str, directory: Path, *arguments: str) -> Run:
    """Run the workload under `sqltrace run`."""
    (directory / "db").mkdir()
    oracle, log = directory / "oracle.jsonl", directory / "trace.jsonl"
    command = [sys.executable, "-m", "sqltrace", "run", "--backend", backend, "-o", str(log), "--"]
    command += [str(workload(kind)), str(directory / "db"), str(oracle), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)
    assert log.exists(), done.stderr
    assert oracle.exists(), f"the workload did not get to its end, status {done.returncode}: {done.stderr}"
    return Run(done.returncode, done.stdout, read_lines(oracle), read_lines(log))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traces]:
    """Return a function that traces the whole workload, once for each backend and kind."""
    # Always the same name, as paths of databases are part of some SQL.
    place = tmp_path_factory.mktemp("parity") / "run"

    @functools.cache
    def run(backend: str, kind: str) -> Run:
        place.mkdir()
        try:
            return trace(backend, kind, place)
        finally:
            kept = place.with_name(f"{backend}-{kind}")
            shutil.rmtree(kept, ignore_errors=True)  # of a run that failed, and is tried again by the next test
            place.rename(kept)

    yield run
    run.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
def test_the_oracle_agrees_with_sqlite_and_with_itself(kind: str, tmp_path: Path) -> None:
    def run(number: int) -> list[Line]:
        databases = tmp_path / "db"  # the path is part of some SQL
        databases.mkdir()
        oracle = tmp_path / f"{number}.jsonl"
        subprocess.run([workload(kind), databases, oracle], check=True, stdout=subprocess.DEVNULL, timeout=100)
        databases.rename(tmp_path / f"db{number}")
        return read_lines(oracle)

    one, other = run(1), run(2)
    assert check_oracle(one) == []
    ids = {"tid": 0, "conn": 0, "stmt": 0}
    by_thread = [
        sorted((line | ids for line in lines if line["record"] == "execution"), key=lambda line: line["thread"])
        for lines in (one, other)
    ]
    assert by_thread[0] == by_thread[1]
    seen = {line["case"] for line in by_thread[0]}
    assert {"fts5", "threads share a statement", "busy with a timeout", "sqlite3_exec aborted by its callback"} <= seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_trace_is_what_the_program_knows(backend: str, kind: str, runs: Traces) -> None:
    run = runs(backend, kind)
    assert run.status == 0
    assert run.stdout == f'{{"executions": {run.oracle[-1]["executions"]}}}\n'
    assert check_oracle(run.oracle) == []
    assert check_stream(run.events) == []
    differences = compare(run.oracle, run.events)
    assert not differences, report(differences)


@pytest.mark.bcc
def test_a_static_program_without_a_loader_is_traced_by_bcc(tmp_path: Path) -> None:
    run = trace("bcc", "static-nopie", tmp_path)
    assert run.status == 0
    assert check_stream(run.events) == []
    differences = compare(run.oracle, run.events)
    assert not differences, report(differences)


@pytest.mark.bcc
@pytest.mark.frida
@pytest.mark.parametrize("kind", KINDS)
def test_all_backends_report_the_same(kind: str, runs: Traces) -> None:
    one, other = (runs(backend, kind) for backend in ("bcc", "frida"))
    differences = compare_backends(
        with_thread_numbers(one.oracle, one.events), with_thread_numbers(other.oracle, other.events)
    )
    assert not differences, report(differences)


def _only_callbacks_tell(difference: Difference) -> bool:
    """Whether this is an execution which the program knows only through sqlite3_trace_v2."""
    event = difference.tracer
    if difference.field is not None or event is None:
        return False
    in_other_functions = ("SELECT id FROM person", "SELECT 1", "SELECT id, 'abort'", "INSERT INTO item", "PRAGMA")
    return event["internal"] or event["sql"].strip().startswith(in_other_functions)


@pytest.mark.parametrize("seed", ["7", "8"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_trace_fits_without_the_programs_own_trace_callback(backend: str, seed: str, tmp_path: Path) -> None:
    run = trace(backend, "dynamic", tmp_path, "--no-trace", "--seed", seed, "--threads", "4")
    assert check_stream(run.events) == []
    extra = [difference for difference in compare(run.oracle, run.events) if not _only_callbacks_tell(difference)]
    assert not extra, report(extra)


@pytest.mark.parametrize(("how", "status"), [("normal", 0), ("_exit", 7), ("abort", -6), ("kill", -9), ("segv", -11)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_executions_before_the_end_are_there_however_it_ends(
    backend: str, how: str, status: int, tmp_path: Path
) -> None:
    run = trace(backend, "dynamic", tmp_path, "--count", "50", "--leave-running", "--exit", how)
    assert run.status == status
    assert check_stream(run.events) == []
    differences = compare(run.oracle, run.events)
    assert not differences, report(differences)
    process = [event for event in run.events if event["event"] == "process" and event["action"] == "exit"]
    assert len(process) == 1
    # Even of a process that is gone before its records are read, it is known what it was.
    assert {event["exe"] for event in (*process, *statements(run.events))} == {str(workload("dynamic").resolve())}
