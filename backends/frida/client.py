"""The tracer's side of Frida's worker process: start it, ask it, hear from it, end it.

The worker gets its own TMPDIR, because Frida leaves its helper programs there, and its own session.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqltrace.backends.frida import leftovers
from sqltrace.backends.frida.wire import Channel, Message
from sqltrace.errors import BackendError

_PATIENCE = 30.0
"""Seconds for a request; Frida's own timeouts are shorter."""
_FAREWELL = 10.0
"""Seconds for the worker to end: it may have to take hooks out first."""
_MODULE = "sqltrace.backends.frida.worker"


class RequestError(BackendError):
    """Frida refused; `kind` is the name of its exception."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class WorkerClient:
    """A running worker.

    A thread of ours calls `heard` with every event, and `died` when the worker is gone before it was closed.
    """

    def __init__(self, heard: Callable[[Message], None], died: Callable[[], None]) -> None:
        self._heard = heard
        self._died = died
        self._answers: dict[int, Message] = {}
        self._answered = threading.Condition()
        self._numbers = itertools.count()
        self._over = False
        self._closing = False
        self._directory = tempfile.mkdtemp(prefix="sqltrace-frida-")
        ours, theirs = socket.socketpair()
        try:
            with theirs, (Path(self._directory) / "log").open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", _MODULE, str(theirs.fileno()), self._directory],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[theirs.fileno()],
                    env=os.environ | {"TMPDIR": self._directory},
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        self._channel = Channel(ours)
        self._reader = threading.Thread(target=self._listen, name="frida-worker", daemon=True)
        self._reader.start()

    def request(self, what: str, /, **arguments: Any) -> Any:
        """Let the worker do something and return its result; raises RequestError, BackendError when it is gone."""
        number = next(self._numbers)
        self._send({"request": number, "do": what, **arguments})
        with self._answered:
            if not self._answered.wait_for(lambda: number in self._answers or self._over, _PATIENCE):
                raise BackendError(f"Frida did not answer within {_PATIENCE:.0f} s ({what}).")
            answer = self._answers.pop(number, None)
        if answer is None:
            raise BackendError(self._obituary())
        if "error" in answer:
            raise RequestError(answer["error"], answer["kind"])
        return answer.get("result")

    def post(self, pid: int, message: Message) -> None:
        """Answer what the agent in `pid` waits for."""
        self._send({"do": "post", "pid": pid, "message": message})

    def kill(self) -> None:
        """End the worker and Frida's helper at once."""
        self._closing = True
        self._process.kill()
        self._process.wait()
        self._clean_up()

    def close(self, *, linger: bool = False) -> None:
        """End the worker; it takes out hooks that are still in.

        linger: it has something left to wait for; it is let go, and ends and cleans up by itself.
        """
        if self._closing:
            return
        self._closing = True
        self._channel.shut()
        if linger:
            self._reader.join(_FAREWELL)
            self._channel.close()
            self._process.returncode = 0  # nobody will wait for it, and subprocess shall not complain
            return
        try:
            self._process.wait(_FAREWELL)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._clean_up()

    def _clean_up(self) -> None:
        if threading.current_thread() is not self._reader:
            self._reader.join(_FAREWELL)
        self._channel.close()
        leftovers.remove(self._directory)

    def _send(self, message: Message) -> None:
        try:
            self._channel.send(message)
        except OSError:
            raise BackendError(self._obituary()) from None

    def _listen(self) -> None:
        for message in self._channel.receive():
            if "answer" in message:
                with self._answered:
                    self._answers[message["answer"]] = message
                    self._answered.notify_all()
            else:
                self._heard(message)
        with self._answered:
            self._over = True
            self._answered.notify_all()
        if not self._closing:
            self._died()

    def _obituary(self) -> str:
        last = ""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._process.wait(1)
            last = (Path(self._directory) / "log").read_text(errors="replace").strip().rpartition("\n")[2]
        return "the process that Frida runs in died" + (f": {last}" if last else f" ({self._process.returncode}).")


def check() -> str | None:
    """Try Frida in a process of its own; return None when it can work, else why not."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", _MODULE, "--check"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    return done.stdout or f"importing frida ended Python ({done.returncode})"
