"""A helper process that lets stopped processes run again when the tracer has died.

While a followed process maps a new library it is stopped until the tracer has looked at the file.
If the tracer is killed just then, nobody would continue it.  This process holds the map of stopped processes and
the read end of a pipe; when the pipe closes without a word, it continues whatever is still stopped.
Started as `python -m sqltrace.backends.bcc.guard MAP_FD PIPE_FD`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
import subprocess
import sys
import time

_BPF_MAP_GET_NEXT_KEY = 4
_SYSCALL = {"x86_64": 321, "aarch64": 280}
_PATIENCE = 2.0
"""Seconds; the dead tracer's probes, which stop processes, are gone after about half a second."""


class Guard:
    """The tracer's handle of the helper process."""

    def __init__(self, map_fd: int) -> None:
        read_end, self._pipe = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sqltrace.backends.bcc.guard", str(map_fd), str(read_end)],
            pass_fds=(map_fd, read_end),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(read_end)

    def dismiss(self) -> None:
        """End the helper: all is well."""
        with contextlib.suppress(OSError):
            os.write(self._pipe, b".")
        os.close(self._pipe)
        self._process.wait()


def stopped_pids(map_fd: int) -> list[int]:
    """Return the keys of the BPF map of stopped processes."""
    libc = ctypes.CDLL(None, use_errno=True)
    pids: list[int] = []
    key = ctypes.create_string_buffer(4)
    following = ctypes.create_string_buffer(4)
    current = 0
    while len(pids) < 1 << 16:
        attributes = struct.pack("<I4xQQ", map_fd, current, ctypes.addressof(following))
        buffer = ctypes.create_string_buffer(attributes, len(attributes))
        number = _SYSCALL[os.uname().machine]
        if libc.syscall(number, _BPF_MAP_GET_NEXT_KEY, buffer, len(attributes)) < 0:
            break
        pids.append(struct.unpack("<I", following.raw)[0])
        key.raw = following.raw
        current = ctypes.addressof(key)
    return pids


def main() -> None:
    """Wait for the tracer to dismiss us or to die."""
    map_fd, pipe = int(sys.argv[1]), int(sys.argv[2])
    if os.read(pipe, 1):
        return
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        for pid in stopped_pids(map_fd):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)
        time.sleep(0.02)


if __name__ == "__main__":
    main()
