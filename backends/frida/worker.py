"""The process that Frida lives in: `python -m sqltrace.backends.frida.worker FD TMPDIR`.

Apart from the tracer, because Frida can take its process down with it (seccomp), reaps children that are not its own,
and must outlive a tracer that is killed: then the socket ends, and the worker itself takes the hooks out, with the
application's threads stopped.  It belongs to no terminal, so that Ctrl-C does not reach it.

Its first thread does everything that Frida or ptrace must be asked for in order; a second one reads the socket and
passes on at once what an agent is waiting for, because the first may itself be waiting for that agent.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import queue
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from sqltrace.backends.frida import leftovers, resident
from sqltrace.backends.frida.freeze import Freeze, Patch, restore_code, write_code
from sqltrace.backends.frida.sources import agent_script
from sqltrace.backends.frida.wire import Channel, Message
from sqltrace.backends.launch import ptrace
from sqltrace.errors import BackendError

_PATIENCE = 2.0
"""Seconds that Frida may need to take leave."""

_LINGER = 0.1
"""Seconds between looks at a stopped process."""
_LAST_SIGNAL = 31
"""Real-time signals are left alone: the C library has its own among them."""


@dataclass(frozen=True, slots=True)
class Signals:
    """Which signals a process catches and which it ignores, as bit masks: bit 0 is signal 1."""

    caught: int
    ignored: int

    @classmethod
    def of(cls, pid: int) -> Signals:
        """Ask the kernel."""
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as stream:
            masks = dict(line.split()[:2] for line in stream if line.startswith("Sig"))
        return cls(int(masks["SigCgt:"], 16), int(masks["SigIgn:"], 16))


@dataclass(slots=True)
class Inhabited:
    """A process that our agent is in."""

    pid: int
    session: Any
    script: Any
    """None where nothing was brought in, because an earlier agent is still there."""
    held: bool
    """It has not run since exec; no other thread exists, and `resume` starts it."""
    before: Signals
    """What it did about signals before the agent came."""
    hooked: dict[str, resident.Hooked] = field(default_factory=dict)
    """What was written, or is about to be, by the base address of the module."""
    note: int = 0
    """Where in the process it is noted for those who come after us."""
    gone: bool = False
    farewell: Farewell | None = None

    def remember(self, base: str, addresses: list[str], layout: str, patches: list[dict[str, str]]) -> None:
        """Take note of a module's hooks."""
        self.hooked[base] = resident.Hooked(
            base, tuple(addresses), layout, tuple(Patch.of(fields) for fields in patches)
        )

    @property
    def patches(self) -> list[Patch]:
        """What was written, wherever."""
        return [patch for hooked in self.hooked.values() for patch in hooked.patches]


class Worker:
    """Carries out the tracer's requests."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._requests: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._processes: dict[int, Inhabited] = {}
        self._lingering: list[Inhabited] = []
        self._revived: list[int] = []

    def serve(self) -> None:
        """Work until the tracer has gone; then leave every process as it was."""
        threading.Thread(target=self._listen, daemon=True).start()
        while (message := self._requests.get()) is not None:
            self._answer(message)
        for process in list(self._processes.values()):
            with contextlib.suppress(Exception):  # one that cannot be left must not keep us from the others
                self._leave(process)
        for process in self._lingering:
            with contextlib.suppress(Exception):
                while _stopped(process.pid) or not self._part(process):
                    time.sleep(_LINGER)
                _wait_untraced(process.pid)

    @functools.cached_property
    def _device(self) -> Any:
        return importlib.import_module("frida").get_local_device()

    def _listen(self) -> None:
        for message in self._channel.receive():
            if message["do"] == "post":
                process = self._processes.get(message["pid"])
                if process is not None and process.script is not None:
                    with contextlib.suppress(Exception):  # the process died while it waited
                        process.script.post(message["message"])
            else:
                self._requests.put(message)
        self._requests.put(None)

    def _answer(self, message: Message) -> None:
        arguments = {key: value for key, value in message.items() if key not in {"do", "request"}}
        try:
            result = getattr(self, f"do_{message['do']}")(**arguments)
            answer = {"answer": message["request"], "result": result}
        except Exception as error:  # whatever Frida raises is the tracer's to explain
            reason = str(error).partition("\n")[0].removeprefix("Error: ")  # without JavaScript's stack
            answer = {"answer": message["request"], "error": reason, "kind": type(error).__name__}
        with contextlib.suppress(OSError):
            self._channel.send(answer)

    def _tell(self, event: str, pid: int, **fields: Any) -> None:
        with contextlib.suppress(OSError):
            self._channel.send({"event": event, "pid": pid, **fields})

    # -- requests; each method's name after do_ is the request's

    def do_attach(self, pid: int, held: bool) -> None:
        """Bring the agent into a process."""
        before = Signals.of(pid)
        session = self._device.attach(pid)
        script = session.create_script(agent_script())
        process = Inhabited(pid, session, script, held, before)

        def message(content: Message, _data: bytes | None) -> None:
            if content["type"] == "send":
                payload = content["payload"]
                if payload["kind"] == "hooked":
                    process.remember(
                        payload["base"], payload.pop("addresses"), payload.pop("layout"), payload.pop("patches")
                    )
                    with contextlib.suppress(OSError):
                        resident.write_note(pid, process.note, process.hooked.values())
                self._tell(payload.pop("kind"), pid, **payload)
            else:
                self._tell("failed", pid, reason=str(content.get("description", content)))

        def detached(reason: str, _crash: object) -> None:
            process.gone = True
            self._tell("left", pid, reason=reason)

        script.on("message", message)
        session.on("detached", detached)
        script.load()
        self._processes[pid] = process

    def do_open_ring(self, pid: int, slots: int, executions: int, tsc: bool, source: str) -> Any:
        """Create the ring; the descriptor stays open until `close_descriptor`."""
        process = self._processes[pid]
        opened = process.script.exports_sync.open_ring(slots, executions, tsc, source)
        process.note = int(opened["base"], 16)
        return {"fd": opened["fd"], "owner": pid}

    def do_close_descriptor(self, pid: int) -> None:
        """Close the ring's descriptor in the target: the tracer has mapped it."""
        if self._revived:
            os.close(self._revived.pop())
        else:
            self._processes[pid].script.exports_sync.close_descriptor()

    def do_observe(self, pid: int) -> Any:
        """Return what is loaded; what comes later is asked about."""
        return self._processes[pid].script.exports_sync.observe()

    def do_revive(self, pid: int, slots: int, executions: int, wanted: list[dict[str, Any]]) -> Any:
        """Put the hooks of an agent that is still there in place again; None when they are not what is wanted.

        The descriptor of the ring, which is ours, stays open until `close_descriptor`.
        """
        found = resident.find(pid)
        if found is None or not found.serves(wanted):
            return None
        hooked = {hooked.base: hooked for hooked in found.hooked if hooked.base in {w["base"] for w in wanted}}
        process = Inhabited(pid, None, None, False, Signals.of(pid), hooked, found.address)
        fd = resident.revive(pid, found, process.patches, slots, executions)
        if fd is None:
            return None
        self._processes[pid] = process
        self._revived.append(fd)
        resident.write_note(pid, process.note, found.hooked)
        return {"fd": fd, "owner": os.getpid()}

    def do_prepare(self, pid: int, base: str, path: str, addresses: list[str], layout: str) -> None:
        """Compile the hooks of a module."""
        process = self._processes[pid]
        if process.script is None:
            raise BackendError("Frida is not there to hook a library; attach again")
        patches = process.script.exports_sync.prepare(base, path, addresses, layout)
        process.remember(base, addresses, layout, patches)

    def do_patch(self, pid: int, bases: list[str]) -> None:
        """Write the hooks of prepared modules."""
        process = self._processes[pid]
        patches = [patch for base in bases for patch in process.hooked[base].patches]
        if process.held:
            write_code(pid, patches)
        else:
            _wait_untraced(pid)
            with Freeze(pid, patches):
                write_code(pid, patches)
        resident.write_note(pid, process.note, process.hooked.values())

    def do_give_back_signals(self, pid: int) -> None:
        """Undo what Frida's arrival did to the process's signals."""
        process = self._processes[pid]
        new = Signals.of(pid).caught & ~process.before.caught
        numbers = [number for number in range(1, _LAST_SIGNAL + 1) if new >> (number - 1) & 1]
        ignored = [number for number in numbers if process.before.ignored >> (number - 1) & 1]
        process.script.exports_sync.give_back_signals(numbers, ignored)

    def do_resume(self, pid: int) -> None:
        """Let a process that waits at its entry point run."""
        process = self._processes[pid]
        process.held = False
        self._device.resume(pid)

    def do_leave(self, pid: int) -> bool:
        """Take the hooks out; True when we have to stay for that after the tracer has gone."""
        process = self._processes.pop(pid, None)
        if process is not None:
            self._leave(process)
        return bool(self._lingering)

    def do_restore(self, pid: int, parent: int) -> None:
        """Write the original code back into a forked child of `parent`, in which no agent lives."""
        process = self._processes.get(parent)
        if process is not None:
            restore_code(pid, process.patches)

    # -- leaving

    def _leave(self, process: Inhabited) -> None:
        if process.gone:
            return
        if process.held:
            self._device.resume(process.pid)
            process.held = False
        _wait_untraced(process.pid)
        try:
            restore_code(process.pid, process.patches)
        except OSError:
            if _state(process.pid) in "ZX":
                return
            raise
        if process.session is None:
            return
        if not self._part(process):
            self._lingering.append(process)  # its agent is stopped as well, and does not answer: we stay until it does
            return
        _wait_untraced(process.pid)

    def _part(self, process: Inhabited) -> bool:
        """Take leave of the agent; False when that is not done because the process is stopped.

        On a thread of its own: the agent of a process that somebody stops meanwhile answers when it goes on.
        """
        if process.farewell is None:
            if _stopped(process.pid):
                return False
            process.farewell = Farewell(process.script, process.session)
            process.farewell.start()
        end = time.monotonic() + _PATIENCE
        while process.farewell.is_alive() and time.monotonic() < end and _state(process.pid) not in "ZX":
            process.farewell.join(_LINGER)
            if process.farewell.is_alive() and _stopped(process.pid):
                return False
        if process.farewell.is_alive() and _state(process.pid) not in "ZX":
            raise BackendError("Frida does not take leave")
        if process.farewell.error is not None:
            raise process.farewell.error
        return True


class Farewell(threading.Thread):
    """Takes leave of an agent, which stays: a thread may still be in a hook, and must find it when SQLite returns."""

    def __init__(self, script: Any, session: Any) -> None:
        super().__init__(name="farewell", daemon=True)
        self._script = script
        self._session = session
        self.error: Exception | None = None

    def run(self) -> None:
        """Ask the agent for no more questions, and go."""
        try:
            self._script.exports_sync.fall_silent()
            self._script.eternalize()
            self._session.detach()
        except Exception as error:  # told by who waits for us
            self.error = error


def _state(pid: int) -> str:
    """Return the letter that ps shows; X for a process that is no more."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stream:
            return stream.read().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def _stopped(pid: int) -> bool:
    return _state(pid) in {"T", "t"}


def _wait_untraced(pid: int) -> None:
    """Wait until Frida's helper has let go of a process: to end the helper before would end what it was doing there."""
    end = time.monotonic() + _PATIENCE
    with contextlib.suppress(OSError):
        while time.monotonic() < end:
            with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as stream:
                if "TracerPid:\t0\n" in stream.read():
                    return
            time.sleep(0.001)


def check() -> int:
    """Say on stdout why Frida would not work here; nothing when it would."""
    try:
        importlib.import_module("frida")
    except ImportError as error:
        sys.stdout.write(f"Python cannot import frida ({error})")
        return 1
    problem = ptrace.possible()
    if problem is not None:
        sys.stdout.write(f"ptrace does not work here: {problem}")
        return 1
    return 0


def main(arguments: list[str]) -> int:
    """Run as the worker."""
    if arguments == ["--check"]:
        return check()
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(arguments[0])))
    directory = arguments[1]
    try:
        Worker(channel).serve()
    finally:
        leftovers.remove(directory)
    os._exit(0)  # Frida's threads do not always let the interpreter end


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
