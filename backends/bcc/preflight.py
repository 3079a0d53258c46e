"""Why the bcc backend cannot work here, or only with less: tried out, not derived from the kernel's version.

Needed: CAP_SYS_ADMIN (the kernel wants it for uprobes in processes of others; CAP_BPF with CAP_PERFMON does not
do), BPF ring buffers, BTF of the kernel, the uprobe PMU.  tracefs is not needed.  Wished for: CAP_SYS_NICE and
CAP_SYS_PTRACE, to hold processes unseen (holder.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib.util
import os
import struct
import sys

from sqltrace.backends.base import Availability

_CAP_SYS_PTRACE, _CAP_SYS_ADMIN, _CAP_SYS_NICE = 19, 21, 23
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""PROC_PID_INIT_INO in include/linux/proc_ns.h."""
_MAP_CREATE, _RINGBUF = 0, 27
_SYSCALL = {"x86_64": 321, "aarch64": 280}
_PAGE = 4096
_LARGE = 16 << 20
_FRIDA = "use --backend frida"


def check() -> Availability:
    """Look whether everything is there; the first thing that is missing is named."""
    if not sys.platform.startswith("linux"):
        return Availability(False, "BPF is a part of Linux", _FRIDA)
    if importlib.util.find_spec("bcc") is None:
        return Availability(
            False,
            "Python cannot import bcc",
            "install Debian's python3-bpfcc, and let the virtual environment see it (--system-site-packages)",
        )
    capabilities = _effective_capabilities()
    if not capabilities >> _CAP_SYS_ADMIN & 1:
        if capabilities and os.geteuid() == 0:
            what = "root here lacks the capability CAP_SYS_ADMIN"
        else:
            what = "placing uprobes needs root (CAP_SYS_ADMIN)"
        return Availability(False, what, f"run it with sudo, or {_FRIDA}")
    missing = _missing_in_kernel()
    if missing is not None:
        return missing
    notes = [
        f"without {name} a process that is looked at is stopped by SIGSTOP, which its shell reports"
        for name, bit in (("CAP_SYS_NICE", _CAP_SYS_NICE), ("CAP_SYS_PTRACE", _CAP_SYS_PTRACE))
        if not capabilities >> bit & 1
    ]
    return Availability(True, notes=tuple(notes))


def _missing_in_kernel() -> Availability | None:
    if _namespace() != _INITIAL_PID_NAMESPACE:
        return Availability(
            False,
            "sqltrace runs in a pid namespace of its own, as containers have, and the kernel reports other pids",
            f"run it on the host, or start the container with --pid=host, or {_FRIDA}",
        )
    if "[confidentiality]" in _read("/sys/kernel/security/lockdown"):
        return Availability(False, "the kernel is locked down (confidentiality), so BPF may not read memory", _FRIDA)
    for path, what in (
        ("/sys/kernel/btf/vmlinux", "the kernel carries no type information (CONFIG_DEBUG_INFO_BTF)"),
        ("/sys/bus/event_source/devices/uprobe/type", "the kernel has no uprobes (CONFIG_UPROBE_EVENTS)"),
    ):
        if not os.path.exists(path):
            return Availability(False, what, f"mount /sys, or {_FRIDA}" if not os.path.ismount("/sys") else _FRIDA)
    problem = _ring(_PAGE)
    if problem in (errno.EPERM, errno.EACCES):
        return Availability(False, "the kernel refuses bpf(2) (seccomp, or a security module)", _FRIDA)
    if problem in (errno.EINVAL, errno.ENOSYS):
        return Availability(False, "the kernel has no BPF ring buffers (they came with 5.8)", _FRIDA)
    if not problem and _ring(_LARGE) == errno.EPERM:
        return Availability(
            False,
            "the limit for locked memory is too small for BPF maps, which older kernels count",
            "run ulimit -l unlimited before, or take a smaller --ring-size",
        )
    return None


def _ring(size: int) -> int:
    """Try to create a BPF ring buffer; return the errno, or 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = ctypes.create_string_buffer(struct.pack("=IIII", _RINGBUF, 0, 0, size), 72)
    number = _SYSCALL.get(os.uname().machine, -1)
    fd = int(libc.syscall(number, _MAP_CREATE, attributes, len(attributes)))
    if fd < 0:
        return ctypes.get_errno()
    os.close(fd)
    return 0


def _namespace() -> int:
    with contextlib.suppress(OSError):
        return os.stat("/proc/self/ns/pid").st_ino
    return _INITIAL_PID_NAMESPACE


def _read(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as stream:
        return stream.read()
    return ""


def _effective_capabilities() -> int:
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0
