"""What Frida leaves behind: its helper program, running detached from us, and the directory that it was unpacked to.

The helper notices by itself that its client has gone, but only after a while, and not always (one was met hours later).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal


def remove(directory: str) -> None:
    """End the helper programs that run from `directory`, which was Frida's TMPDIR, and delete it."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            # Ours by where it runs from; looked at first, so that no other process can get the signal.
            with contextlib.suppress(OSError):
                descriptor = os.pidfd_open(int(name))
                try:
                    if os.readlink(f"/proc/{name}/exe").startswith(directory + os.sep):
                        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                finally:
                    os.close(descriptor)
    shutil.rmtree(directory, ignore_errors=True)
