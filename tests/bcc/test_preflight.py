"""What is missing is named, and nothing is asked for that is not needed."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from sqltrace.backends.bcc import preflight
from tests.conftest import read_log, sqltrace_command

pytestmark = pytest.mark.bcc


def with_capabilities(change: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = ["setpriv", "--bounding-set", change, *sqltrace_command(*arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_the_missing_capability_is_named_at_the_start_and_by_doctor() -> None:
    done = with_capabilities("-sys_admin", "run", "--backend", "bcc", "--", "true")
    assert done.returncode == 125
    assert "root here lacks the capability CAP_SYS_ADMIN" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "CAP_SYS_ADMIN" in with_capabilities("-sys_admin", "doctor").stdout


def test_doctor_says_what_works_less_well() -> None:
    shown = with_capabilities("-sys_nice,-sys_ptrace", "doctor").stdout
    assert "bcc     works\n" in shown
    assert "without CAP_SYS_NICE" in shown
    assert "without CAP_SYS_PTRACE" in shown
    assert (
        "without" not in subprocess.run(sqltrace_command("doctor"), capture_output=True, text=True, check=True).stdout
    )


def test_cap_sys_admin_alone_is_enough(tmp_path: Path) -> None:
    done = with_capabilities(
        "-all,+sys_admin", "run", "--backend", "bcc", "-o", "log", "--", "sqlite3", ":memory:", "SELECT 1", cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert [e["sql"] for e in read_log(tmp_path / "log") if e["event"] == "statement"] == ["SELECT 1"]


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({4096: errno.EPERM}, "refuses bpf(2)"),
        ({4096: errno.EINVAL}, "no BPF ring buffers"),
        ({16 << 20: errno.EPERM}, "locked memory is too small"),
    ],
)
def test_what_the_kernel_refuses_is_tried_out(
    monkeypatch: pytest.MonkeyPatch, answers: dict[int, int], words: str
) -> None:
    monkeypatch.setattr(preflight, "_ring", lambda size: answers.get(size, 0))
    availability = preflight.check()
    assert not availability.ok
    assert words in availability.reason
    assert availability.remedy


def test_lockdown_and_missing_type_information_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = preflight._read
    monkeypatch.setattr(
        preflight, "_read", lambda path: "none integrity [confidentiality]" if "lockdown" in path else real(path)
    )
    assert "locked down" in preflight.check().reason
    monkeypatch.undo()
    exists = os.path.exists
    monkeypatch.setattr(preflight.os.path, "exists", lambda path: "btf" not in str(path) and exists(path))
    assert "no type information" in preflight.check().reason
