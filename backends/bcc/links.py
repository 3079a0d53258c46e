"""Attaching a loaded program to addresses of a file, with a cookie that tells the program which file it is in.

bcc's own attach_uprobe cannot set a cookie and closes each probe by itself, 110 ms apiece.
A uprobe_multi link (kernel 6.6) holds any number of addresses and goes away at once; older kernels get one perf
event each (a cookie needs 5.15).  Both are plain bpf(2) and perf_event_open(2) calls, described there.
A link lives as long as its file descriptor: when the tracer dies, however it dies, the probes go.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from sqltrace.errors import BackendError

_BPF_LINK_CREATE = 28
_BPF_PERF_EVENT = 41
BPF_TRACE_UPROBE_MULTI = 48
_UPROBE_MULTI_RETURN = 1
_PERF_FLAG_FD_CLOEXEC = 8
_PERF_ATTR_SIZE = 112
_SYSCALLS = {"x86_64": (321, 298), "aarch64": (280, 241)}
_PMU = "/sys/bus/event_source/devices/uprobe"

_libc = ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char]) -> int:
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *converted))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return _syscall(_SYSCALLS[os.uname().machine][0], command, buffer, len(attributes))


@dataclass(frozen=True, slots=True)
class Program:
    """A loaded BPF program: its descriptor, and whether it runs at the function's return."""

    fd: int
    at_return: bool


def attach_multi(program: Program, path: str, offsets: Sequence[int], cookie: int) -> int:
    """Attach to all file offsets of `path` at once; return the link's descriptor.  Needs kernel 6.6."""
    count = len(offsets)
    name = ctypes.create_string_buffer(os.fsencode(path))
    places = (ctypes.c_uint64 * count)(*offsets)
    cookies = (ctypes.c_uint64 * count)(*([cookie] * count))
    attributes = struct.pack(
        "<IIIIQQQQIII4x",
        program.fd,
        0,
        BPF_TRACE_UPROBE_MULTI,
        0,
        ctypes.addressof(name),
        ctypes.addressof(places),
        0,
        ctypes.addressof(cookies),
        count,
        _UPROBE_MULTI_RETURN if program.at_return else 0,
        0,
    )
    try:
        return _bpf(_BPF_LINK_CREATE, attributes)
    except OSError as error:
        raise BackendError(f"cannot place probes in {path}: {error.strerror}.") from error


def attach_single(program: Program, path: str, offset: int, cookie: int) -> tuple[int, int]:
    """Attach to one file offset through a perf event; return the link's and the event's descriptors."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    try:
        with open(f"{_PMU}/type", encoding="ascii") as stream:
            kind = int(stream.read())
        # perf_event_attr: type, size, config (bit 0: at return), ..., config1 = path, config2 = offset
        attributes = struct.pack("<IIQ", kind, _PERF_ATTR_SIZE, int(program.at_return)).ljust(56, b"\0")
        attributes += struct.pack("<QQ", ctypes.addressof(name), offset)
        event = _syscall(
            _SYSCALLS[os.uname().machine][1],
            ctypes.create_string_buffer(attributes.ljust(_PERF_ATTR_SIZE, b"\0"), _PERF_ATTR_SIZE),
            -1,
            0,
            -1,
            _PERF_FLAG_FD_CLOEXEC,
        )
        try:
            link = _bpf(
                _BPF_LINK_CREATE,
                struct.pack("<IIIIQ", program.fd, event, _BPF_PERF_EVENT, 0, cookie).ljust(64, b"\0"),
            )
        except OSError:
            os.close(event)
            raise
    except OSError as error:
        raise BackendError(f"cannot place a probe in {path}: {error.strerror}.") from error
    return link, event
