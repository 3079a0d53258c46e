"""ptrace(2) as far as a tracer needs it to enter a process: stop threads, read and set registers, step, let go.

Every request for a thread must come from the thread of ours that attached to it (the kernel checks), and what
a stopped thread waits to be told is read with waitpid(__WALL), which also works for threads that are not our children.
x86-64 Linux.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from types import TracebackType
from typing import Final, Self

POKETEXT: Final = 4
PEEKTEXT: Final = 1
CONT: Final = 7
SINGLESTEP: Final = 9
GETREGS: Final = 12
SETREGS: Final = 13
DETACH: Final = 17
SETOPTIONS: Final = 0x4200
SEIZE: Final = 0x4206
INTERRUPT: Final = 0x4207

OPTION_TRACEEXEC: Final = 0x10
OPTION_EXITKILL: Final = 0x100000
EVENT_EXEC: Final = 4
EVENT_STOP: Final = 128

WALL: Final = 0x40000000
AT_ENTRY: Final = 9

_REGISTERS: Final = 27
_ARGUMENTS: Final = (14, 13, 12, 7, 9, 8)  # rdi, rsi, rdx, r10, r8, r9
_RAX: Final = 10
_ORIG_RAX: Final = 15
_RIP: Final = 16  # indexes in struct user_regs_struct
_RSP: Final = 19
_WORD: Final = (1 << 64) - 1

_MOST_SIGNALS: Final = 64

Registers = ctypes.Array[ctypes.c_ulong]


def _library() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    return libc


def request(what: int, tid: int, address: int = 0, data: int = 0) -> int:
    """Make one request; raises OSError (ProcessLookupError: the thread is gone or not stopped)."""
    libc = _library()
    ctypes.set_errno(0)
    result = int(libc.ptrace(what, tid, address, data))
    code = ctypes.get_errno()
    if result == -1 and code:
        raise OSError(code, f"ptrace request {what:#x}: {os.strerror(code)}")
    return result & _WORD


def registers(tid: int) -> Registers:
    """Return the registers of a stopped thread."""
    values = (ctypes.c_ulong * _REGISTERS)()
    request(GETREGS, tid, 0, ctypes.addressof(values))
    return values


def instruction_pointer(tid: int) -> int:
    """Where a stopped thread goes on."""
    return int(registers(tid)[_RIP])


def stack_pointer(tid: int) -> int:
    """Where the stack of a stopped thread ends."""
    return int(registers(tid)[_RSP])


def set_instruction_pointer(tid: int, address: int) -> None:
    """Let a stopped thread go on elsewhere."""
    values = registers(tid)
    values[_RIP] = address
    request(SETREGS, tid, 0, ctypes.addressof(values))


def event(status: int) -> int:
    """Return the PTRACE_EVENT_* number in a wait status, 0 when it is another stop."""
    return status >> 16


def signal_of(status: int) -> int:
    """Return the signal that a stopped thread was about to get and must be given when it is let go, else 0."""
    return 0 if event(status) else os.WSTOPSIG(status)


def detach(tid: int, signal_number: int = 0) -> None:
    """Let go of a stopped thread; one that is gone needs no letting go."""
    with contextlib.suppress(ProcessLookupError):
        request(DETACH, tid, 0, signal_number)


def interrupt(tid: int) -> int | None:
    """Attach to a thread and stop it without a signal.

    Returns the signal it was about to get (0: none), which `detach` must be given; None when the thread is gone.
    Raises PermissionError.
    """
    try:
        request(SEIZE, tid)
        request(INTERRUPT, tid)
        _, status = os.waitpid(tid, WALL)
    except (ProcessLookupError, ChildProcessError):
        return None
    return signal_of(status) if os.WIFSTOPPED(status) else None


def single_step(tid: int) -> int | None:
    """Let a stopped thread execute one instruction.

    Returns the signal that came instead of the step's own trap (0: none); None when the thread is gone.
    """
    try:
        request(SINGLESTEP, tid)
        _, status = os.waitpid(tid, WALL)
    except (ProcessLookupError, ChildProcessError):
        return None
    if not os.WIFSTOPPED(status):
        return None
    number = signal_of(status)
    return 0 if number == signal.SIGTRAP else number


def possible() -> str | None:
    """Try ptrace on a child of ours; return None when it works, else why not."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    try:
        stopped = interrupt(pid)
        if stopped is not None:
            detach(pid, stopped)
    except OSError as error:
        return error.strerror
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return None if stopped is not None else "the child died"


class Caller:
    """Context in which a stopped thread makes system calls for us; afterwards it is where it was.

    `gate` is the address of a syscall instruction in its memory.
    """

    def __init__(self, tid: int, gate: int) -> None:
        self._tid = tid
        self._gate = gate
        self._saved = registers(tid)
        self.signals: list[int] = []
        """What came meanwhile, and the thread must still be given."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Also the system call that the thread was interrupted in: the kernel restarts it by these registers.
        with contextlib.suppress(ProcessLookupError):
            request(SETREGS, self._tid, 0, ctypes.addressof(self._saved))

    def __call__(self, number: int, *arguments: int) -> int:
        """Make a system call and return its result; raises OSError when the thread is gone."""
        values = registers(self._tid)
        for register, value in zip(_ARGUMENTS, (*arguments, 0, 0, 0, 0, 0, 0), strict=False):
            values[register] = value & _WORD
        values[_RAX] = number
        values[_ORIG_RAX] = _WORD  # or it would be taken for the restart of an interrupted call
        values[_RIP] = self._gate
        request(SETREGS, self._tid, 0, ctypes.addressof(values))
        for _ in range(_MOST_SIGNALS):
            came = single_step(self._tid)
            if came is None:
                raise ProcessLookupError(f"thread {self._tid} ended")
            if came:
                self.signals.append(came)
            values = registers(self._tid)
            if values[_RIP] != self._gate:
                return ctypes.c_long(values[_RAX]).value
        raise OSError(f"thread {self._tid} gets one signal after another")
