"""Stop the command at its entry point: everything is mapped and relocated, nothing of the program's own has run.

The kernel starts a dynamic program in its loader, which maps the libraries and then jumps to the program's entry
point, AT_ENTRY of the auxiliary vector.  A breakpoint there is the first moment at which an agent can be brought in,
and the last before the program can execute SQL.  (Constructors of libraries run earlier; they are not observed.)

The child is released while it is seized, stops at exec, runs to the breakpoint, and is then handed over stopped by
SIGSTOP: Frida attaches to it in that state and lets it go.
"""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable

from sqltrace.backends.launch import ptrace
from sqltrace.backends.launch.held import HeldChild
from sqltrace.errors import BackendError

_INT3 = 0xCC
Stop = Callable[[int], bool]
"""Whether a wait status is the stop that is waited for."""


def stop_at_entry(child: HeldChild) -> bool:
    """Let the held child call exec and stop it (by SIGSTOP, untraced) at the program's entry point.

    False when the command ended before it got there.  Raises the command errors when exec fails, BackendError when
    the child cannot be traced; the child is gone then.
    """
    try:
        ptrace.request(ptrace.SEIZE, child.pid, 0, ptrace.OPTION_TRACEEXEC | ptrace.OPTION_EXITKILL)
    except OSError as error:
        child.abandon()
        raise BackendError(f"cannot trace the command: {error.strerror}") from error
    child.let_go()
    if not _run_until(child, lambda status: ptrace.event(status) == ptrace.EVENT_EXEC):
        child.confirm()  # raises when exec failed
        return False
    child.confirm()
    entry = _entry_point(child.pid)
    word = ptrace.request(ptrace.PEEKTEXT, child.pid, entry)
    ptrace.request(ptrace.POKETEXT, child.pid, entry, word & ~0xFF | _INT3)
    ptrace.request(ptrace.CONT, child.pid)
    if not _run_until(child, lambda status: ptrace.signal_of(status) == signal.SIGTRAP):
        return False
    ptrace.request(ptrace.POKETEXT, child.pid, entry, word)
    ptrace.set_instruction_pointer(child.pid, entry)
    # In place of the breakpoint's SIGTRAP the child gets SIGSTOP, and stays stopped without us.
    ptrace.request(ptrace.DETACH, child.pid, 0, signal.SIGSTOP)
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        child.ended(status)
        return False
    return True


def _run_until(child: HeldChild, arrived: Stop) -> bool:
    """Let the child run, with the signals it gets, to the stop that is wanted; False when it ended instead."""
    while True:
        _, status = os.waitpid(child.pid, ptrace.WALL)
        if not os.WIFSTOPPED(status):
            child.ended(status)
            return False
        if arrived(status):
            return True
        ptrace.request(ptrace.CONT, child.pid, 0, ptrace.signal_of(status))


def _entry_point(pid: int) -> int:
    with open(f"/proc/{pid}/auxv", "rb") as stream:
        words = dict(struct.iter_unpack("=QQ", stream.read()))
    return int(words[ptrace.AT_ENTRY])
