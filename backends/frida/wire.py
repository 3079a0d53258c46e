"""What the tracer and Frida's worker process say to each other: a JSON object on each line of a socket.

The tracer sends requests, `{"request": n, "do": name, ...}`, and the worker answers each with `{"answer": n, ...}`,
holding `result`, or `error` (a sentence) and `kind` (the exception's class).  A `post` request has no answer: it is
what an agent waits for that has asked about a library, and is passed on at once.  On its own the worker sends events,
`{"event": name, "pid": pid, ...}`: what agents say, and that one is gone.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

Message = dict[str, Any]


class Channel:
    """One end of the socket.  Any thread may send; one thread receives."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Send a message; raises OSError when the other side is gone."""
        data = json.dumps(message).encode() + b"\n"
        with self._lock:
            self._socket.sendall(data)

    def receive(self) -> Iterator[Message]:
        """Yield messages until the other side is gone."""
        with self._socket.makefile("rb") as stream:
            try:
                for line in stream:
                    yield json.loads(line)
            except OSError:
                return

    def shut(self) -> None:
        """End both directions: `receive` ends here and there."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def close(self) -> None:
        """Close the socket; no thread may be using it."""
        self._socket.close()
