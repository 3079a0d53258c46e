"""Opening the log file: never over an existing one, never through a link, readable by its owner only.

A tracer often runs as root with a name that somebody else could have planted in advance (CVE-2023-32422 was
that).  Under sudo the file belongs to the user who called sudo.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import BinaryIO

from sqltrace.errors import OutputError


def open_output(path: str, *, force: bool) -> BinaryIO:
    """Open a new file for writing, or stdout for `-`.  Raises OutputError."""
    if path == "-":
        return os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    flags |= os.O_NONBLOCK if force else os.O_EXCL  # a pipe without a reader is an error
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileExistsError:
        raise OutputError(f"{path} exists. Choose another name, or overwrite it with --force.") from None
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}.") from error
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):  # --force may also name /dev/null or a pipe
            os.ftruncate(descriptor, 0)
            _give_to_caller(descriptor)
        os.set_blocking(descriptor, True)
    except OSError as error:
        os.close(descriptor)
        raise OutputError(f"cannot write {path}: {error.strerror}.") from error
    return os.fdopen(descriptor, "wb", buffering=0)


def _give_to_caller(descriptor: int) -> None:
    if os.geteuid() == 0 and os.environ.get("SUDO_UID", "").isdigit():
        with contextlib.suppress(OSError):
            os.fchown(descriptor, int(os.environ["SUDO_UID"]), int(os.environ.get("SUDO_GID", "-1")))


def write_all(stream: BinaryIO, data: bytes) -> None:
    """Write everything; raises OutputError (a full disk, a closed pipe)."""
    view = memoryview(data)
    try:
        while view:
            written = stream.write(view)
            view = view[written or 0 :]
    except BrokenPipeError as error:
        raise OutputError("whoever read the events has closed the pipe.") from error
    except OSError as error:
        raise OutputError(f"cannot write the events: {error.strerror}.") from error
