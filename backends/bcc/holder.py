"""A helper process that holds threads of the target still, unseen by their parents, while the tracer looks at them.

BPF can stop a process by SIGSTOP only, which its parent sees: a shell reports a stopped job and takes the terminal
back.  A ptrace stop is seen by nobody but the tracer, but ptrace is for user space, which comes too late.  Unless
it is this process: it has real-time priority and is bound to one CPU.  When a followed thread calls exec, or its
loader brings in libraries, the hook (bpf/follow.c) rings a bell.  On this CPU the scheduler then lets us run before the
thread returns to user mode; on others the hook waits until we have asked for a ptrace stop, which takes effect when the
thread leaves the kernel.  (docs/decisions/0006)

Where ptrace is not possible, because a debugger is there already, we stop the process by SIGSTOP and continue it.
All holds end when this process dies, and when the tracer dies this process ends them.
Started as `python -m sqltrace.backends.bcc.holder HELD_FD STOPPED_FD RING_FD SOCKET_FD`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time

from sqltrace.backends.launch import ptrace

_LOOKUP, _UPDATE, _DELETE, _NEXT_KEY = 1, 2, 3, 4
_EXIST = 2
_SYSCALL = {"x86_64": 321, "aarch64": 280}
_HOLD = struct.Struct("=QII")
"""struct hold in bpf/follow.c: since, state, tgid."""
_WAITING, _TAKEN = 0, 1
_PID = struct.Struct("=I")

_PATIENCE = 2.0
"""Seconds; the dead tracer's probes, which ask for holds, are gone after about half a second."""
_MESSAGE = struct.Struct("=I")
_TURN = 0.02
_ON_ITS_WAY = 0.2
"""Seconds that a hook may need between its decision to stop a process and the signal."""
_NO_CPU = 2**32 - 1
_MCL_CURRENT, _MCL_FUTURE = 1, 2


class Holder:
    """The tracer's handle of the helper process."""

    def __init__(self, held_fd: int, stopped_fd: int, ring_fd: int) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            fds = (held_fd, stopped_fd, ring_fd, theirs.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sqltrace.backends.bcc.holder", *map(str, fds)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        cpu = _MESSAGE.unpack(self._socket.recv(_MESSAGE.size) or _MESSAGE.pack(_NO_CPU))[0]
        self.cpu: int | None = None if cpu == _NO_CPU else cpu
        """Where it runs; None when it may not have real-time priority, and is of no use to hooks."""

    def release(self, tid: int) -> None:
        """Let a thread go on that was held."""
        with contextlib.suppress(OSError):
            self._socket.send(_MESSAGE.pack(tid))

    def dismiss(self) -> None:
        """Let everything go on and end the helper.  The hooks must be gone by now."""
        with contextlib.suppress(OSError):
            self._socket.send(_MESSAGE.pack(0))
        self._process.wait()
        self._socket.close()


class _Map:
    """A BPF map whose keys are threads."""

    def __init__(self, fd: int, value: struct.Struct) -> None:
        self._fd = fd
        self._format = value
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._number = _SYSCALL[os.uname().machine]
        self._key = ctypes.create_string_buffer(4)
        self._value = ctypes.create_string_buffer(value.size)

    def _call(self, command: int, key: int, value: int, flags: int = 0) -> bool:
        attributes = ctypes.create_string_buffer(struct.pack("=I4xQQQ", self._fd, key, value, flags), 32)
        return int(self._libc.syscall(self._number, command, attributes, 32)) == 0

    def get(self, tid: int) -> tuple[int, ...] | None:
        self._key.raw = _MESSAGE.pack(tid)
        if not self._call(_LOOKUP, ctypes.addressof(self._key), ctypes.addressof(self._value)):
            return None
        return self._format.unpack(self._value.raw)

    def set(self, tid: int, *value: int) -> None:
        """Change a value that is there."""
        self._key.raw = _MESSAGE.pack(tid)
        self._value.raw = self._format.pack(*value)
        self._call(_UPDATE, ctypes.addressof(self._key), ctypes.addressof(self._value), _EXIST)

    def add(self, tid: int, *value: int) -> None:
        """Set a value, there or not."""
        self._key.raw = _MESSAGE.pack(tid)
        self._value.raw = self._format.pack(*value)
        self._call(_UPDATE, ctypes.addressof(self._key), ctypes.addressof(self._value))

    def delete(self, tid: int) -> None:
        self._key.raw = _MESSAGE.pack(tid)
        self._call(_DELETE, ctypes.addressof(self._key), 0)

    def tids(self) -> list[int]:
        found: list[int] = []
        following = ctypes.create_string_buffer(4)
        current = 0
        while len(found) < 1 << 16 and self._call(_NEXT_KEY, current, ctypes.addressof(following)):
            found.append(_MESSAGE.unpack(following.raw)[0])
            self._key.raw = following.raw
            current = ctypes.addressof(self._key)
        return found


class _Holding:
    """The helper's work: who is held, and how.  Nothing here may block: hooks wait for us."""

    def __init__(self, held: _Map, stopped: _Map) -> None:
        self._held = held
        self._signalled = stopped
        self._continue: dict[int, float] = {}
        """Processes that were stopped by a signal, which may still be on its way -> until when to continue them."""
        self._running: set[int] = set()
        """Threads that were asked to stop and have not yet."""
        self._stopped: dict[int, int] = {}
        """Threads that have: the signal that each must be given when it goes on."""
        self._released: set[int] = set()
        """Threads that shall go on as soon as they have stopped."""

    def take(self) -> None:
        """Take the threads that wait."""
        for tid in self._held.tids():
            value = self._held.get(tid)
            if value is None or value[1] != _WAITING:
                continue
            if not self._seize(tid):
                self._signalled.add(tid, value[2])
                with contextlib.suppress(OSError):
                    os.kill(value[2], signal.SIGSTOP)
            self._held.set(tid, value[0], _TAKEN, value[2])

    def _seize(self, tid: int) -> bool:
        try:
            ptrace.request(ptrace.SEIZE, tid)
        except OSError:
            return False
        self._running.add(tid)
        with contextlib.suppress(OSError):
            ptrace.request(ptrace.INTERRUPT, tid)
        return True

    def arrived(self) -> None:
        """Take note of threads that stopped (or died)."""
        for tid in list(self._running):
            try:
                found, status = os.waitpid(tid, ptrace.WALL | os.WNOHANG)
            except ChildProcessError:
                found, status = tid, 0
            if found == 0:
                continue
            self._running.discard(tid)
            if os.WIFSTOPPED(status):
                self._stopped[tid] = ptrace.signal_of(status)
            if tid in self._released:
                self.release(tid)

    def release(self, tid: int) -> None:
        """Let a thread go on."""
        if tid in self._running:
            self._released.add(tid)
            return
        self._released.discard(tid)
        if tid in self._stopped:
            try:
                ptrace.request(ptrace.DETACH, tid, 0, self._stopped.pop(tid))
            except ProcessLookupError:  # killed meanwhile: its parent hears of it when we have
                self._running.add(tid)
                self._released.add(tid)
                self.arrived()
                return
        self._held.delete(tid)  # before the look at the other map: bpf/follow.c, stop_by_signal
        value = self._signalled.get(tid)
        if value is not None:
            self._signalled.delete(tid)
            self._continue[value[0]] = time.monotonic() + _ON_ITS_WAY
            self.go_on()

    def go_on(self) -> float | None:
        """Continue the processes that were stopped by a signal; return when to do so again, in seconds."""
        for pid, end in list(self._continue.items()):
            with contextlib.suppress(OSError):
                if _is_stopped(pid):
                    os.kill(pid, signal.SIGCONT)
                    self._continue.pop(pid)
            if time.monotonic() > end:
                self._continue.pop(pid, None)
        return _TURN if self._continue else None

    def release_all(self) -> None:
        """Let everything go on."""
        self.arrived()
        for tid in {*self._running, *self._stopped, *self._held.tids(), *self._signalled.tids()}:
            self.release(tid)

    @property
    def idle(self) -> bool:
        """Whether nobody is held."""
        return not (self._running or self._stopped or self._continue)


def _is_stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat", "rb") as stream:
        return stream.read().rpartition(b") ")[2][:1] in (b"T", b"t")


class _Bell:
    """The ring buffer that wakes us; what is in it does not matter (its layout: ringbuf.py)."""

    def __init__(self, fd: int) -> None:
        page = mmap.PAGESIZE
        self._consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)

    def hush(self) -> None:
        """Take everything out."""
        self._consumer[:8] = self._producer[:8]


def _hurry() -> int:
    """Bind us to a CPU, come before everybody else there, never wait for the disk; return the CPU, or _NO_CPU."""
    cpu = max(os.sched_getaffinity(0))
    try:
        os.sched_setaffinity(0, {cpu})
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(os.sched_get_priority_max(os.SCHED_FIFO)))
    except OSError:
        return _NO_CPU
    ctypes.CDLL(None).mlockall(_MCL_CURRENT | _MCL_FUTURE)
    gc.disable()
    return cpu


def main() -> None:
    """Hold and release, until the tracer dismisses us or dies."""
    held_fd, stopped_fd, ring_fd, socket_fd = map(int, sys.argv[1:5])
    holding = _Holding(_Map(held_fd, _HOLD), _Map(stopped_fd, _PID))
    bell = _Bell(ring_fd)
    tracer = socket.socket(fileno=socket_fd)
    child_fd, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # a thread that we trace has stopped
    poll = select.epoll()
    for fd in (ring_fd, socket_fd, child_fd):
        poll.register(fd, select.EPOLLIN)
    tracer.send(_MESSAGE.pack(_hurry()))
    while True:
        ready = {fd for fd, _ in poll.poll(holding.go_on())}
        if ring_fd in ready:
            bell.hush()
            holding.take()
        if child_fd in ready:
            os.read(child_fd, 4096)
            holding.arrived()
        if socket_fd in ready:
            message = tracer.recv(_MESSAGE.size)
            tid = _MESSAGE.unpack(message)[0] if message else 0
            if tid == 0:
                break
            holding.release(tid)
    holding.release_all()
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end and not (message and holding.idle):
        poll.poll(_TURN)
        bell.hush()
        holding.release_all()
        holding.go_on()


if __name__ == "__main__":
    main()
