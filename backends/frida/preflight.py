"""Look at a program before Frida does, because Frida kills some that it cannot enter.

Frida's agent is a glibc library that it brings in through the program's dynamic loader.  A static program has none:
attaching to it ends in the *target's* abort.  One that runs on musl cannot load a glibc library.  And a process that
is traced already, or belongs to somebody else, gives errors that do not say so.
"""

from __future__ import annotations

import os
import pwd

from sqltrace.backends.elf_file import ElfFile
from sqltrace.backends.launch.held import yama_scope
from sqltrace.backends.proc_maps import comm
from sqltrace.errors import NotAnImageError, TargetError

_CAP_SYS_PTRACE = 19
_CLASS_BYTE, _CLASS_64 = 4, 2
_DELETED = " (deleted)"


def refuse_program(path: str, name: str) -> None:
    """Raise TargetError when Frida cannot enter the program in the file `path`; `name` is what the user calls it."""
    try:
        elf = ElfFile.read(path)
        with open(path, "rb") as stream:
            ident = stream.read(16)
    except (NotAnImageError, OSError):
        return  # a script, or not ours to read: exec or Frida will say what is wrong
    if ident[_CLASS_BYTE] != _CLASS_64:
        raise TargetError(f"cannot trace {name} with frida: it is a 32-bit program. Use --backend bcc (as root).")
    if elf.interpreter is None:
        raise TargetError(
            f"cannot trace {name} with frida: it is statically linked, and Frida would kill it. "
            "Use --backend bcc (as root)."
        )
    if os.path.basename(elf.interpreter).startswith("ld-musl"):
        raise TargetError(
            f"cannot trace {name} with frida: it runs on musl, where Frida's agent does not. "
            "Use --backend bcc (as root)."
        )


def refuse_process(pid: int) -> None:
    """Raise TargetError when Frida cannot or must not enter a running process."""
    try:
        status = _status(f"/proc/{pid}/status")
    except (FileNotFoundError, ProcessLookupError):
        raise TargetError(f"there is no process {pid}.") from None
    if status.get("Tgid", [str(pid)])[0] != str(pid):
        raise TargetError(f"{pid} is a thread of process {status['Tgid'][0]}: attach to that.")
    if status["State"][0] in "ZX":
        raise TargetError(f"cannot attach to pid {pid}: it has ended already.")
    if pid == os.getpid():
        raise TargetError("cannot attach to sqltrace itself.")
    own = _status("/proc/self/status")
    owner, tracer = int(status["Uid"][1]), int(status["TracerPid"][0])
    if tracer:
        raise TargetError(f"cannot attach to pid {pid}: process {tracer} ({comm(tracer)}) traces it already.")
    if yama_scope() and not int(own["CapEff"][0], 16) >> _CAP_SYS_PTRACE & 1:
        raise TargetError(
            f"cannot attach to pid {pid}: this system lets only root attach (kernel.yama.ptrace_scope is "
            f"{yama_scope()}). Run with sudo, or start the program with sqltrace run."
        )
    if status["State"][0] in "Tt":
        raise TargetError(
            f"cannot attach to pid {pid} with frida: it is stopped, and Frida would let it run. "
            f"Continue it first (kill -CONT {pid}), or use --backend bcc (as root)."
        )
    try:
        exe = os.readlink(f"/proc/{pid}/exe")
    except PermissionError:
        if owner == os.geteuid():
            reason = "it does not let itself be looked at (setuid, or PR_SET_DUMPABLE). Run with sudo"
        else:
            reason = f"it belongs to user {_user(owner)}. Run as that user, or with sudo"
        raise TargetError(f"cannot attach to pid {pid}: {reason}.") from None
    except FileNotFoundError:
        raise TargetError(f"cannot attach to pid {pid}: it is a part of the kernel.") from None
    refuse_program(f"/proc/{pid}/exe", f"pid {pid} ({os.path.basename(exe.removesuffix(_DELETED))})")


def _status(path: str) -> dict[str, list[str]]:
    with open(path, encoding="utf-8", errors="replace") as stream:
        lines = (line.partition(":") for line in stream)
        return {name: value.split() or [""] for name, _, value in lines}


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
