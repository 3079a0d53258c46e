"""What a user meets who mistypes, lacks a privilege or a package: one sentence, the right status, no traceback."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from sqltrace.cli import main
from tests.conftest import sqltrace_command


def run(*arguments: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        sqltrace_command(*arguments),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **kwargs,  # type: ignore[call-overload]
    )
    assert "Traceback" not in done.stderr
    return done


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if not line.startswith("sqltrace: using the ")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("sqltrace: ")
    assert lines[0].endswith(".")
    return lines[0]


def test_a_command_that_does_not_exist_is_127() -> None:
    done = run("run", "--", "no-such-command")
    assert (done.returncode, sentence(done)) == (
        127,
        "sqltrace: cannot run no-such-command: there is no such command in PATH.",
    )


def test_a_file_that_is_not_executable_is_126(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")
    done = run("run", "--", str(tmp_path / "data"))
    assert done.returncode == 126
    assert "permission denied" in sentence(done)


def test_a_folder_is_126(tmp_path: Path) -> None:
    done = run("run", "--", str(tmp_path))
    assert done.returncode == 126
    assert "is a directory" in sentence(done)


def test_an_existing_log_is_not_overwritten(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("mine")
    done = run("run", "-o", str(log), "--", "true")
    assert done.returncode == 125
    assert "--force" in sentence(done)
    assert log.read_text() == "mine"


def test_a_link_is_not_followed_even_with_force(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "log").symlink_to(tmp_path / "precious")
    done = run("run", "--force", "-o", str(tmp_path / "log"), "--", "true")
    assert done.returncode == 125
    assert (tmp_path / "precious").read_text() == "mine"
    sentence(done)


def test_an_unwritable_log_is_125(tmp_path: Path) -> None:
    done = run("run", "-o", str(tmp_path / "no" / "log"), "--", "true")
    assert done.returncode == 125
    assert "cannot write" in sentence(done)


def test_a_log_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    log = tmp_path / "log"
    run("run", "-o", str(log), "--", "true")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


@pytest.mark.bcc
def test_under_sudo_the_log_belongs_to_the_caller(tmp_path: Path) -> None:
    log = tmp_path / "log"
    run("run", "-o", str(log), "--", "true", env=os.environ | {"SUDO_UID": "1234", "SUDO_GID": "4321"})
    assert (log.stat().st_uid, log.stat().st_gid) == (1234, 4321)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--no-such-option", "--", "true"],
        ["run"],
        ["run", "--duration", "soon", "--", "true"],
        ["run", "--limit", "0", "--", "true"],
        ["run", "--ring-size", "1k", "--", "true"],
        ["run", "--backend", "magic", "--", "true"],
        ["attach"],
        ["attach", "-p", "me"],
        ["frobnicate"],
        [],
    ],
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    assert run(*arguments).returncode == 2


@pytest.mark.bcc
def test_the_kernel_cannot_wait_for_us() -> None:
    done = run("run", "--backend", "bcc", "--on-overflow", "block", "--", "sh", "-c", "exit 3")
    assert done.returncode == 125
    assert "its hooks run in the kernel. Remedy: --backend frida" in sentence(done)


def test_a_full_disk_ends_the_log_and_not_the_command() -> None:
    done = run("run", "--force", "-o", "/dev/full", "--", "sh", "-c", "exit 3")
    assert done.returncode == 125, "nothing was started: the first event could not be written"
    assert "No space left" in sentence(done)


def test_without_bcc_the_sentence_names_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "bcc" else real(name, *a))
    assert main(["run", "--backend", "bcc", "--", "true"]) == 125
    error = capsys.readouterr().err
    assert "python3-bpfcc" in error
    assert error.count("\n") == 1


def test_without_root_the_sentence_says_sudo_or_frida(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sqltrace.backends.bcc.preflight._effective_capabilities", lambda: 0)
    assert main(["run", "--backend", "bcc", "--", "true"]) == 125
    error = capsys.readouterr().err
    assert "sudo" in error
    assert "--backend frida" in error


@pytest.mark.bcc
@pytest.mark.frida
def test_doctor_says_that_both_backends_work_here() -> None:
    done = run("doctor")
    assert done.returncode == 0
    assert "bcc     works" in done.stdout
    assert "frida   works" in done.stdout


def test_doctor_names_reason_and_remedy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sqltrace.backends.bcc.preflight._effective_capabilities", lambda: 0)
    main(["doctor"])
    assert (
        "bcc     does not work: placing uprobes needs root (CAP_SYS_ADMIN)\n        remedy: run it with sudo"
        in capsys.readouterr().out
    )


def test_show_refuses_what_is_no_log(tmp_path: Path) -> None:
    for text in ("not json\n", "[1]\n", '{"a": 1}\n', '{"event": "statement"}\n'):
        (tmp_path / "log").write_text(text)
        done = run("show", str(tmp_path / "log"))
        assert done.returncode == 125, text
        sentence(done)
    done = run("show", str(tmp_path / "none"))
    assert done.returncode == 125


def test_show_leaves_out_a_line_that_was_cut_off(tmp_path: Path) -> None:
    (tmp_path / "log").write_text('{"event": "session_start"}\n{"event": "sta')
    done = run("show", str(tmp_path / "log"))
    assert (done.returncode, done.stdout) == (0, "0 statements, 0 lost; 0 shown\n")


def test_inspect_of_a_file_without_sqlite_is_one_sentence_and_125() -> None:
    done = run("inspect", "/bin/ls")
    assert (done.returncode, sentence(done)) == (125, "sqltrace: /bin/ls holds no SQLite.")


def test_inspect_json_has_the_documented_shape() -> None:
    found = json.loads(run("inspect", "--json", "/usr/lib/x86_64-linux-gnu/libsqlite3.so.0").stdout)
    assert set(found) == {
        "path",
        "format",
        "arch",
        "build_id",
        "sqlite_version",
        "source_id",
        "functions",
        "layout",
        "features_off",
    }
    assert isinstance(found["functions"]["sqlite3_step"]["address"], int)
    assert "symbol" in found["functions"]["sqlite3_step"]["evidence"]
    assert isinstance(found["layout"]["Vdbe.zSql"]["offset"], int)
    assert "accessor" in found["layout"]["Vdbe.zSql"]["evidence"]


@pytest.mark.bcc
def test_a_log_comes_back_as_it_was_shown(tmp_path: Path) -> None:
    command = ["sqlite3", ":memory:", "CREATE TABLE t(a); INSERT INTO t VALUES('\x1b[31mred'); SELECT * FROM nope"]
    log = tmp_path / "log"
    run("run", "--backend", "bcc", "-o", str(log), "--", *command)
    shown = run("show", str(log)).stdout
    live = run("run", "--backend", "bcc", "-q", "--", *command).stderr

    def steady(text: str) -> list[str]:
        lines = [line for line in text.splitlines() if "no such table" not in line]
        return [re.sub(r"pid=\d+|t=\S+", "_", line) for line in lines if not line.endswith("shown")]

    assert "\x1b" not in shown
    assert [x for x in steady(live) if x in steady(shown)] == steady(shown)
    assert len(steady(shown)) == 8
