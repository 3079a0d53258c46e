"""Find the command as execvp(3) does, before anything is forked.

The search is done here and not left to exec, because a backend must look at the file first: whether it can be
observed at all has to be known before it runs.  A name with a slash is taken as it is, another is sought in PATH;
a file that may not be executed is remembered while the search goes on, as in execvp.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from sqltrace.errors import CommandNotExecutableError, CommandNotFoundError, SqltraceError

_DEFAULT_PATH = "/bin:/usr/bin"  # execvp's, when PATH is not set
_INTERPRETER_BYTES = 256  # BINPRM_BUF_SIZE: the kernel looks no further for the end of a #! line
_INTERPRETER_DEPTH = 5  # nor deeper than this (fs/exec.c)


def find_command(name: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return the path that exec shall be given for the command `name`.

    Raises CommandNotFoundError, or CommandNotExecutableError when only files of that name exist that we may
    not execute.
    """
    if not name:
        raise CommandNotFoundError("cannot run a command with an empty name")
    if "/" in name:
        problem = _problem(name)
        if problem:
            raise exec_error(name, problem)
        return name
    denied = False
    for directory in environ.get("PATH", _DEFAULT_PATH).split(":"):
        path = os.path.join(directory or ".", name)
        problem = _problem(path)
        if problem == 0:
            return path
        denied = denied or problem == errno.EACCES
    raise exec_error(name, errno.EACCES if denied else errno.ENOENT)


def interpreted_by(path: str) -> str:
    """Return the file that the kernel really runs for `path`: itself, or what its #! line names."""
    for _ in range(_INTERPRETER_DEPTH):
        try:
            with open(path, "rb") as file:
                line = file.read(_INTERPRETER_BYTES).split(b"\n", 1)[0]
        except OSError:
            return path
        words = line[2:].split()
        if not line.startswith(b"#!") or not words:
            return path
        path = os.fsdecode(words[0])
    return path


def exec_error(name: str, code: int) -> SqltraceError:
    """Return the error that says why exec of the command `name` failed with errno `code`."""
    if code in (errno.ENOENT, errno.ENOTDIR):
        if "/" not in name:
            return CommandNotFoundError(f"cannot run {name}: there is no such command in PATH")
        if os.path.isfile(name):
            return CommandNotFoundError(
                f"cannot run {name}: the interpreter that it asks for ({interpreted_by(name)}) does not exist"
                if interpreted_by(name) != name
                else f"cannot run {name}: the dynamic loader that it asks for does not exist"
            )
        return CommandNotFoundError(f"cannot run {name}: there is no such file")
    if code == errno.EACCES:
        if os.path.isdir(name):
            return CommandNotExecutableError(f"cannot run {name}: it is a directory")
        return CommandNotExecutableError(f"cannot run {name}: permission denied; is it executable (chmod +x)?")
    return CommandNotExecutableError(f"cannot run {name}: {os.strerror(code)}")


def _problem(path: str) -> int:
    """Return the errno that executing `path` would give by its name and mode alone, or 0."""
    if not os.path.lexists(path) or not os.path.exists(path):
        return errno.ENOENT
    if not os.path.isfile(path) or not os.access(path, os.X_OK):
        return errno.EACCES
    return 0
