"""What /proc knows about a process: names, owner, cgroup, and the service that it belongs to.

Looked up once per process and again after exec; a process that is gone before we look keeps what the hooks saw.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections import OrderedDict

from sqltrace.events.model import Process, fragment
from sqltrace.events.wire import ProcessChange

_MAX_PROCESSES = 8192
_CONTAINER = re.compile(r"(?:docker|libpod|cri-containerd|crio|containerd)[-/]([0-9a-f]{12,64})")
_POD = re.compile(r"kubepods[^/]*/(?:[^/]*/)*?(?:kubepods-[^/]*-)?(pod[0-9a-f_-]{8,})")
_UNIT = re.compile(r"([^/]+\.service)(?:/|$)")


def service_of(cgroup: str | None, exe: str | None, comm: str) -> str:
    """Name the service: pod or container or systemd unit from the cgroup's path, else the executable."""
    if cgroup:
        if pod := _POD.search(cgroup):
            return pod[1].removesuffix(".slice").replace("_", "-")
        if container := _CONTAINER.search(cgroup):
            return container[1][:12]
        units = _UNIT.findall(cgroup)
        if units and not units[-1].startswith("user@"):
            return str(units[-1].removesuffix(".service"))
    return os.path.basename(exe) if exe else comm


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as stream:
            return stream.read(1 << 16)
    except OSError:
        return None


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def _cgroup(pid: int) -> tuple[str | None, int | None]:
    data = _read(f"/proc/{pid}/cgroup")
    if data is None:
        return None, None
    for line in _text(data).splitlines():
        if line.startswith("0::"):
            path = line[3:]
            with contextlib.suppress(OSError):
                return path, os.stat(f"/sys/fs/cgroup{path}").st_ino
            return path, None
    return None, None


def read_process(pid: int, seen: ProcessChange | None = None) -> Process:
    """Look at /proc/PID; what is not there any more comes from the hooks' record, or is None."""
    status = _read(f"/proc/{pid}/status") or b""
    fields = dict(line.split(b":", 1) for line in status.splitlines() if b":" in line)
    ns_pids = fields.get(b"NSpid", b"").split()
    uids, gids = fields.get(b"Uid", b"").split(), fields.get(b"Gid", b"").split()
    comm = _text(fields.get(b"Name", seen.comm if seen else b"?").strip())
    exe = None
    with contextlib.suppress(OSError):
        exe = _text(os.fsencode(os.readlink(f"/proc/{pid}/exe"))).removesuffix(" (deleted)")
    cmdline = _read(f"/proc/{pid}/cmdline") or b""
    cgroup, cgroup_id = _cgroup(pid)
    process = Process(
        pid=pid,
        ns_pid=int(ns_pids[-1]) if ns_pids else pid,
        uid=int(uids[1]) if len(uids) > 1 else seen.uid if seen else None,
        gid=int(gids[1]) if len(gids) > 1 else seen.gid if seen else None,
        comm=comm,
        exe=exe,
        cmdline=tuple(_text(word) for word in cmdline.split(b"\0")[:-1]),
        cgroup=cgroup,
        cgroup_id=cgroup_id if cgroup_id is not None else seen.cgroup_id if seen else None,
        service=service_of(cgroup, exe, comm),
    )
    return dataclasses.replace(process, json=fragment(process.fields()))


class Processes:
    """The processes met so far, bounded."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, Process] = OrderedDict()

    def get(self, pid: int) -> Process:
        """Return what is known of a process, looking at it now if it is new."""
        process = self._known.get(pid)
        return self.refresh(pid) if process is None else process

    def remember(self, process: Process) -> None:
        """Take what somebody else read while the process was held."""
        self._known[process.pid] = process

    def refresh(self, pid: int, seen: ProcessChange | None = None) -> Process:
        """Look again (after fork and exec); a process that is gone keeps what was known."""
        process = read_process(pid, seen)
        old = self._known.get(pid)
        if process.exe is None and old is not None:
            process = old
        self._known[pid] = process
        self._known.move_to_end(pid)
        while len(self._known) > _MAX_PROCESSES:
            self._known.popitem(last=False)
        return process
