"""Use again what we left in a process the last time: its agent, hooks and moved instructions stay there for ever.

To bring an agent in is the risky part of attaching, and costs the process some threads and megabytes each time.  So it
happens once.  When we leave, the code is as it was, and the hooks lie idle.  A note in the ring's first page says
which they are; whoever comes next finds it by the mapping's name, puts a fresh ring where the old one was, and writes
the patches again.  That takes some milliseconds, during which all threads stand still, and not a line of JavaScript.

The fresh ring must be the process's own doing: nobody can map memory into another.  So one of its threads is made
to call memfd_create and mmap, as a debugger calls functions.  Not where seccomp might punish that.

The note is the target's to write over: it is checked, and all that it can lead to is a write to the target's own code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqltrace.backends.frida.freeze import Freeze, Patch, in_place, untouched, write_code
from sqltrace.backends.frida.sources import agent_script, hooks_source
from sqltrace.backends.launch import ptrace
from sqltrace.backends.ring import HEADER_BYTES, MAGIC, Geometry
from sqltrace.errors import BackendError

_MAPPING: Final = b"/memfd:sqltrace"
_NOTE_AT: Final = 512
_NOTE: Final = struct.Struct("<8sI")
_NOTE_MAGIC: Final = b"SQTNOTE1"
_RING_AT_REST: Final = struct.Struct("<QII")
_HEAD, _TAIL = 64, 128
_GENERATION: Final = 1 << 32
"""Slots by which a ring's numbers are ahead of those of its predecessor: a late writer to that one confuses nobody."""

_SYS_MMAP, _SYS_CLOSE, _SYS_MEMFD_CREATE = 9, 3, 319  # x86-64
_MFD_CLOEXEC_ALLOW_SEALING: Final = 3
_MAP_SHARED_FIXED: Final = 0x11
_SYSCALL: Final = b"\x0f\x05"


@dataclass(frozen=True, slots=True)
class Hooked:
    """The hooks of a module: where SQLite's functions are, their structs' layout, what to write."""

    base: str
    addresses: tuple[str, ...]
    layout: str
    patches: tuple[Patch, ...]


@dataclass(frozen=True, slots=True)
class Resident:
    """What is left of an earlier visit."""

    address: int
    size: int
    head: int
    hooked: tuple[Hooked, ...]

    def serves(self, wanted: Sequence[Mapping[str, Any]]) -> bool:
        """Whether all of these modules have hooks."""
        there = {(h.base, h.addresses, h.layout) for h in self.hooked}
        return all((w["base"], tuple(w["addresses"]), w["layout"]) in there for w in wanted)


def _version() -> str:
    return hashlib.sha256((agent_script() + hooks_source()).encode()).hexdigest()[:16]


def write_note(pid: int, ring: int, hooked: Iterable[Hooked]) -> None:
    """Note in a process what its hooks are; nothing where they are too many.  Raises OSError."""
    modules = [
        {
            "base": h.base,
            "addresses": h.addresses,
            "layout": h.layout,
            "patches": [
                {"address": hex(p.address), "bytes": p.original.hex(), "patched": p.patched.hex()} for p in h.patches
            ],
        }
        for h in hooked
    ]
    text = json.dumps({"version": _version(), "modules": modules}).encode()
    if len(text) > HEADER_BYTES - _NOTE_AT - _NOTE.size:
        text = b""
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(ring + _NOTE_AT)
        memory.write(_NOTE.pack(_NOTE_MAGIC, len(text)) + text)


def find(pid: int) -> Resident | None:
    """Return what can be used again in a process."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, struct.error):
        with open(f"/proc/{pid}/maps", "rb") as maps:
            lines = [line for line in maps if _MAPPING in line]
        for line in reversed(lines):
            addresses = line.split()[0].split(b"-")
            start, end = (int(address, 16) for address in addresses)
            found = _read(pid, start, end - start)
            if found is not None:
                return found
    return None


def _read(pid: int, address: int, size: int) -> Resident | None:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        header = memory.read(HEADER_BYTES) or b""
    (head,) = struct.unpack_from("<Q", header, _HEAD)
    magic, length = _NOTE.unpack_from(header, _NOTE_AT)
    if _RING_AT_REST.unpack_from(header)[0] != MAGIC or magic != _NOTE_MAGIC:
        return None
    note = json.loads(header[_NOTE_AT + _NOTE.size :][:length])
    if note["version"] != _version():
        return None
    hooked = tuple(
        Hooked(m["base"], tuple(m["addresses"]), m["layout"], tuple(Patch.of(p) for p in m["patches"]))
        for m in note["modules"]
    )
    return Resident(address, size, head, hooked)


def revive(pid: int, found: Resident, patches: Sequence[Patch], slots: int, executions: int) -> int | None:
    """Give a process a fresh ring where it had one, and put the hooks in place.

    Returns the ring's descriptor, ours; None when the process is not as we left it.  Raises OSError, BackendError.
    """
    geometry = Geometry(slots, executions)
    if in_place(pid, patches):
        raise BackendError("another sqltrace observes it already. End that first.")
    if geometry.size > found.size or _has_seccomp(pid) or not untouched(pid, patches):
        return None
    gate = _syscall_instruction(pid)
    if gate is None:
        return None
    with Freeze(pid, patches) as frozen:
        if pid not in frozen.stopped:
            return None  # its first thread has ended, or it is in the kernel's hands
        ring = _fresh_ring(pid, frozen, gate, found, geometry)
        if ring is not None:
            try:
                write_code(pid, patches)
            except BaseException:
                os.close(ring)
                raise
        return ring


def _fresh_ring(pid: int, frozen: Freeze, gate: int, found: Resident, geometry: Geometry) -> int | None:
    with ptrace.Caller(pid, gate) as call:
        # The name, and later the ring itself, is at the old ring's address: nothing is on the process's stack.
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(found.address + HEADER_BYTES - 16)
            memory.write(b"sqltrace\0")
        number = call(_SYS_MEMFD_CREATE, found.address + HEADER_BYTES - 16, _MFD_CLOEXEC_ALLOW_SEALING)
        ring = None
        if number >= 0:
            ring = _map_there(pid, call, number, found, geometry)
            call(_SYS_CLOSE, number)
    frozen.owe(pid, call.signals)
    return ring


def _map_there(pid: int, call: ptrace.Caller, number: int, found: Resident, geometry: Geometry) -> int | None:
    fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(fd, geometry.size)
        head = (found.head // _GENERATION + 1) * _GENERATION
        os.pwrite(fd, _RING_AT_REST.pack(MAGIC, geometry.slots, geometry.executions), 0)
        for at in (_HEAD, _TAIL):
            os.pwrite(fd, struct.pack("<Q", head), at)
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        if call(_SYS_MMAP, found.address, geometry.size, protection, _MAP_SHARED_FIXED, number, 0) == found.address:
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _has_seccomp(pid: int) -> bool:
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as stream:
        return any(line.startswith("Seccomp:") and line.split()[1] != "0" for line in stream)


def _syscall_instruction(pid: int) -> int | None:
    """Return where in the process's C library or loader a system call is made."""
    with open(f"/proc/{pid}/maps", "rb") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            parts = line.split(maxsplit=5)
            if len(parts) == 6 and b"x" in parts[1] and b"/ld-" in parts[5]:
                start, end = (int(address, 16) for address in parts[0].split(b"-"))
                memory.seek(start)
                at = (memory.read(end - start) or b"").find(_SYSCALL)
                if at >= 0:
                    return start + at
    return None
