"""A child that waits before exec, so that probes can be in place before the command's first instruction.

The child is forked, gets the signal dispositions that the command shall have, and waits on a pipe; `release`
lets it call exec.  Until then its pid can be put into filters, or ptrace can be told to stop it at exec.
Nothing of ours shows in the command: it keeps our terminal, process group, stdio, working directory, environment
and inherited descriptors (our own are all close-on-exec, PEP 446).  Python ignores SIGPIPE and SIGXFSZ, which the
command must not inherit; a signal for which we have a handler falls back to its default at exec by itself.

What exec says comes back through a second pipe, close-on-exec: its end without a byte is success (the idea is
CPython's, Modules/_posixsubprocess.c).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pwd
import select
import signal
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn

from sqltrace.backends.launch.command import exec_error, find_command
from sqltrace.errors import TargetError

_GO = b"x"
_ERRNO = struct.Struct("<i")
_YAMA_ANCESTORS = 1
_PR_SET_PTRACER, _PR_SET_PTRACER_ANY = 0x59616D61, 2**64 - 1
_ABANDONED = 125  # nobody sees this exit status but ourselves


class HeldChild:
    """The command between fork and exec.

    Raises CommandNotFoundError or CommandNotExecutableError before anything is forked, where that is known.
    """

    def __init__(self, argv: Sequence[str], *, any_tracer: bool = False, user: str | None = None) -> None:
        """Fork.

        any_tracer: where Yama lets only ancestors trace, the command lets everybody of its user do so.
        user: the command runs as this user.  Raises TargetError when that is not possible.
        """
        self.argv = tuple(argv)
        become = become_user(user) if user is not None else None
        self.path = find_command(argv[0])
        """What is given to exec."""
        self._status: int | None = None
        go, self._go = os.pipe()
        self._failure, failure = os.pipe()
        allow = yama_exception() if any_tracer else None
        # A signal between fork and exec would run our Python handlers in the child.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self.pid = os.fork()
            if self.pid == 0:
                os.close(self._go)
                os.close(self._failure)
                signal_defaults(mask)
                _exec_when_told(self.path, self.argv, go, failure, [f for f in (become, allow) if f is not None])
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(go)
        os.close(failure)
        self.pidfd = os.pidfd_open(self.pid)
        """Becomes readable when the command has ended."""

    def release(self) -> None:
        """Let the child call exec, and return when it has.

        Raises CommandNotFoundError or CommandNotExecutableError when exec failed; the child is gone then.
        """
        self.let_go()
        self.confirm()

    def let_go(self) -> None:
        """Let the child call exec without waiting for it; `confirm` must follow.

        For a tracer that has to see the child stop inside exec, before exec reports back.
        """
        fd, self._go = self._go, -1
        if fd >= 0:
            with contextlib.suppress(BrokenPipeError):  # killed while it waited: its wait status says so
                os.write(fd, _GO)
            os.close(fd)

    def confirm(self) -> None:
        """Wait until exec has succeeded; raises as `release` does."""
        fd, self._failure = self._failure, -1
        if fd < 0:
            return
        report = os.read(fd, _ERRNO.size)  # closed by exec itself, so that the end of the file is good news
        os.close(fd)
        if report:
            self.wait()
            raise exec_error(self.argv[0], _ERRNO.unpack(report)[0])

    def abandon(self) -> None:
        """Kill the child, whether or not it has called exec, and reap it."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        self.close()

    def poll(self) -> int | None:
        """Return the wait status once the child has ended, else None."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = status
        return self._status

    def ended(self, status: int) -> None:
        """Take note of the wait status that a tracer of the child has met."""
        self._status = status

    def wait(self) -> int:
        """Wait for the child's end and return its wait status."""
        while self.poll() is None:
            select.select([self.pidfd], [], [])
        status = self.poll()
        assert status is not None  # noqa: S101  the loop ended
        return status

    def close(self) -> None:
        """Give back the descriptors; the child goes on.  A child that was never released ends."""
        for name in ("_go", "_failure", "pidfd"):
            fd = getattr(self, name)
            if fd >= 0:
                os.close(fd)
            setattr(self, name, -1)


def become_user(name: str) -> Callable[[], object]:
    """Return what a child must call to be this user, in groups and environment too.  Raises TargetError."""
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        raise TargetError(f"cannot run the command as {name}: there is no such user.") from None
    if os.geteuid() != 0 and user.pw_uid != os.geteuid():
        raise TargetError(f"cannot run the command as {name}: only root can become another user. Use sudo.")

    def become() -> None:
        if os.geteuid() == 0:
            os.initgroups(name, user.pw_gid)
            os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
            os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
        os.environ.update(HOME=user.pw_dir, USER=name, LOGNAME=name, SHELL=user.pw_shell or "/bin/sh")

    return become


def yama_scope() -> int:
    """Return kernel.yama.ptrace_scope, 0 where there is no Yama (Documentation/admin-guide/LSM/Yama.rst)."""
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope", encoding="ascii") as stream:
            return int(stream.read())
    except (OSError, ValueError):
        return 0


def yama_exception() -> Callable[[], object] | None:
    """Return what a child must call so that a process other than its parent may trace it; None: nothing."""
    if yama_scope() != _YAMA_ANCESTORS:
        return None
    libc = ctypes.CDLL(None)
    return partial(libc.prctl, _PR_SET_PTRACER, ctypes.c_ulong(_PR_SET_PTRACER_ANY), 0, 0, 0)


def signal_defaults(mask: set[signal.Signals] | set[int | signal.Signals]) -> None:
    """Give this process, a fresh fork with all signals blocked, the dispositions and the mask of a new program."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _exec_when_told(
    path: str, argv: tuple[str, ...], go: int, failure: int, prepare: Sequence[Callable[[], object]]
) -> NoReturn:
    """Be the child: never returns into the caller's stack, whatever happens."""
    try:
        if os.read(go, 1) != _GO:
            os._exit(_ABANDONED)
        for step in prepare:
            step()
        try:
            os.execv(path, argv)  # noqa: S606  a tracer starts what it is told to
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            # A script without a #! line: execvp hands it to the shell, and so do we.
            os.execv("/bin/sh", ("sh", path, *argv[1:]))  # noqa: S606  as above
    except OSError as error:
        os.write(failure, _ERRNO.pack(error.errno or errno.EINVAL))
    finally:
        os._exit(_ABANDONED)
