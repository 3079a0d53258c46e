"""A session of the Frida backend: the worker, the processes it is in, and the questions their agents ask.

Questions about libraries are answered on a thread of their own, because a thread of the target stands in dlopen until
the answer is there, and resolving a file can take long; everything else happens where `drain` is called.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from sqltrace.backends.base import Counts, Ended, Item, Options, Probed, Refused, Resolve
from sqltrace.backends.frida.client import WorkerClient
from sqltrace.backends.frida.hooks import Finder, Module
from sqltrace.backends.frida.preflight import refuse_process, refuse_program
from sqltrace.backends.frida.process import EXEC_NOT_FOLLOWED, Observed
from sqltrace.backends.frida.wire import Message
from sqltrace.backends.launch.command import find_command, interpreted_by
from sqltrace.backends.launch.entry import stop_at_entry
from sqltrace.backends.launch.held import HeldChild
from sqltrace.backends.proc_maps import no_sqlite
from sqltrace.errors import BackendError, NoSQLiteError, SqltraceError, TargetError
from sqltrace.events.enrich import read_process

_SHORTEST_NAP: Final = 0.0005
_LONGEST_NAP: Final = 0.005
"""Seconds between looks at an idle ring; a full one of the usual size lasts longer than that."""
_BEAT: Final = 0.05
"""Seconds between signs of life; hooks wait for one, but for a second at most."""
_LOOK_AGAIN: Final = 0.5
"""Seconds between looks for libraries that were loaded without our hearing of it."""


class FridaTrace:
    """Implements sqltrace.backends.base.Trace."""

    def __init__(self, resolve: Resolve, options: Options) -> None:
        self._options = options
        self._finder = Finder(resolve)
        self._processes: dict[int, Observed] = {}
        self._child: HeldChild | None = None
        self._pending: list[Item] = []
        self._lock = threading.Lock()  # of _pending and _replaced
        self._replaced: set[int] = set()
        self._asked: dict[tuple[int, str], tuple[Probed, float]] = {}
        self._answering = ThreadPoolExecutor(1, "frida-answers")
        self._detached = False
        self._held: Observed | None = None
        self._looked = time.monotonic()
        self._worker: WorkerClient | None = None
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="frida-heart", daemon=True)

    # -- starting

    def launch(self, argv: Sequence[str]) -> None:
        """Start the command, hooked before its first instruction."""
        path = find_command(argv[0])
        refuse_program(interpreted_by(path), argv[0])
        # Before there are other threads: a fork copies only one.  Frida's helper is no ancestor of the command.
        if self._options.user is not None:
            raise TargetError(
                "the frida backend does not run commands as another user. "
                "Run sqltrace as that user, or use bcc as root."
            )
        child = self._child = HeldChild(argv, any_tracer=True)
        try:
            worker = self._start_worker()
            if stop_at_entry(child):
                self._add([read_process(child.pid)])
                observed = self._processes[child.pid] = self._observed(child.pid, worker)
                self._add(
                    observed.enter(held=True, ring_bytes=self._options.ring_bytes, parent=os.getpid()),
                )
                self._held = observed  # until `drain` has told of it: who it is can be asked only while it lives
        except BackendError as error:
            self._give_up(child)
            raise BackendError(f"cannot trace {argv[0]} with frida: {error}") from error
        except BaseException:
            self._give_up(child)
            raise

    def _give_up(self, child: HeldChild) -> None:
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)  # first, or it would run when Frida's helper lets it go
        if self._worker is not None:
            self._worker.kill()  # before reaping: a child that another process traces cannot be reaped
        self._processes.clear()
        child.abandon()

    def join(self, pids: Sequence[int]) -> None:
        """Enter running processes.  Raises TargetError, NoSQLiteError, BackendError; none is entered then."""
        for pid in pids:
            refuse_process(pid)
        if not any(self._holds_sqlite(pid) for pid in pids):
            raise no_sqlite(pids)
        worker = self._start_worker()
        for pid in dict.fromkeys(pids):
            self._add([read_process(pid)])
            observed = self._processes[pid] = self._observed(pid, worker)
            try:
                self._add(observed.enter(held=False, ring_bytes=self._options.ring_bytes, parent=0))
            except BackendError as error:
                raise TargetError(f"cannot attach to pid {pid}: {error}") from error

    def _observed(self, pid: int, worker: WorkerClient) -> Observed:
        return Observed(pid, worker, self._finder, block=self._options.block)

    def _holds_sqlite(self, pid: int) -> bool:
        try:
            return self._finder.anything_in(pid)
        except TargetError:
            raise
        except SqltraceError as error:
            raise NoSQLiteError(f"no usable SQLite in process {pid}: {error}") from error

    def _beat(self) -> None:
        """Tell the hooks that somebody reads, however long a sink takes."""
        while True:
            for observed in list(self._processes.values()):
                observed.beat()
            if self._over.wait(_BEAT):
                return

    def _start_worker(self) -> WorkerClient:
        if self._options.block:
            self._heart.start()
        self._worker = WorkerClient(self._heard, self._worker_died)
        return self._worker

    # -- what the worker says, on the client's thread

    def _heard(self, message: Message) -> None:
        observed = self._processes.get(message["pid"])
        if observed is None:
            return
        event = message["event"]
        if event == "loaded":
            self._answering.submit(self._answer, observed, message)
        elif event == "hooked":
            self._probed((observed.pid, message["base"]))
        elif event == "refused":
            self._add([Refused(observed.pid, message["path"], f"{message['path']}: {message['reason']}")])
        elif event == "failed":
            self._add([Refused(observed.pid, "", f"the agent in process {observed.pid} failed: {message['reason']}")])
        elif event == "left":
            self._left(observed, message["reason"])

    def _answer(self, observed: Observed, message: Message) -> None:
        begun = time.perf_counter()
        module = Module(message["path"], message["base"])
        hooks = None
        try:
            hooks = observed.loaded(module)
            if hooks is not None:
                probed = Probed(observed.pid, module.path, hooks.resolution, 0.0)
                self._asked[observed.pid, module.base] = (probed, begun)
        except SqltraceError as error:
            self._add([Refused(observed.pid, module.path, str(error))])
        except Exception as error:  # nobody would hear of it on this thread
            self._add([Refused(observed.pid, module.path, f"{module.path}: {type(error).__name__}: {error}")])
        finally:  # whatever happens, the program waits in dlopen
            if self._worker is not None:
                answer = None if hooks is None else hooks.to_agent()
                with contextlib.suppress(BackendError):
                    self._worker.post(observed.pid, {"type": message["id"], "hooks": answer})

    def _probed(self, key: tuple[int, str]) -> None:
        asked = self._asked.pop(key, None)
        if asked is not None:
            item, begun = asked
            taken = round((time.perf_counter() - begun) * 1e3, 3)
            self._add([Probed(item.pid, item.path, item.resolution, taken)])

    def _left(self, observed: Observed, reason: str) -> None:
        if reason == "process-replaced":
            with self._lock:
                self._replaced.add(observed.pid)
            self._add([Refused(observed.pid, "", EXEC_NOT_FOLLOWED.format(pid=observed.pid))])
        elif reason not in {"process-terminated", "application-requested"}:
            self._add([Refused(observed.pid, "", f"Frida has left process {observed.pid}: {reason}.")])

    def _worker_died(self) -> None:
        self._add(
            [
                Refused(observed.pid, "", f"process {observed.pid} is not observed any more: Frida's process died.")
                for observed in self._processes.values()
            ]
        )

    def _add(self, items: Sequence[Item]) -> None:
        with self._lock:
            self._pending += items

    # -- base.Trace

    @property
    def child(self) -> int | None:
        """Pid of the command."""
        return self._child.pid if self._child else None

    @property
    def alive(self) -> bool:
        """Whether any observed process still runs, or has left something to be told."""
        return bool(self._pending) or any(observed.alive for observed in self._processes.values())

    @property
    def status(self) -> int | None:
        """Wait status of the command."""
        return self._child.poll() if self._child else None

    def wait(self) -> int | None:
        """Wait for the command, which may outlive the observation."""
        self._resume()
        return self._child.wait() if self._child else None

    def drain(self, timeout: float) -> Sequence[Item]:
        """Return what came in.  A command that was launched waits for its second call."""
        if self._held is not None:
            if self._pending:
                with self._lock:
                    items, self._pending = self._pending, []
                return items
            self._resume()
        end = time.monotonic() + timeout
        nap = _SHORTEST_NAP
        while True:
            self._collect()
            with self._lock:
                items, self._pending = self._pending, []
            left = end - time.monotonic()
            if items or left <= 0:
                return items
            poller = select.poll()
            for observed in self._processes.values():
                for descriptor in observed.pidfds():
                    poller.register(descriptor, select.POLLIN)
            poller.poll(min(nap, left) * 1e3)
            nap = min(nap * 2, _LONGEST_NAP)

    def _resume(self) -> None:
        if self._held is not None:
            observed, self._held = self._held, None
            with contextlib.suppress(BackendError):  # the worker died: that is told, and ended the process's wait
                observed.resume()

    def _collect(self) -> None:
        with self._lock:
            replaced, self._replaced = self._replaced, set()
        for pid in replaced:
            self._add(self._processes[pid].replaced())
        now = time.monotonic()
        again = now - self._looked > _LOOK_AGAIN
        if again:
            self._looked = now
        for observed in self._processes.values():
            if again:
                self._add(observed.look_again())
            items = [self._with_status(item) for item in observed.collect()]
            if items and not observed.alive and observed.hits():
                # It died before its agent could say that the library was hooked, but the hooks did speak.
                for key in [key for key in list(self._asked) if key[0] == observed.pid]:
                    self._probed(key)
            self._add(items)

    def _with_status(self, item: Item) -> Item:
        if isinstance(item, Ended) and self._child is not None and item.pid == self._child.pid:
            return Ended(item.pid, self._child.wait())
        return item

    def counts(self) -> Counts:
        """Return hits and losses."""
        lost: dict[tuple[str, str], int] = {}
        for observed in self._processes.values():
            for key, count in observed.lost().items():
                lost[key] = lost.get(key, 0) + count
        return Counts(sum(observed.hits() for observed in self._processes.values()), lost)

    def mute(self, text_id: int) -> None:
        """Ignore it: the session leaves them out."""

    def detach(self) -> Sequence[Item]:
        """Take the hooks out, return what was left."""
        if self._detached:
            return []
        self._detached = True
        self._resume()
        for observed in self._processes.values():
            self._add(observed.leave())
        if self._worker is not None:
            self._worker.close(linger=any(observed.lingers for observed in self._processes.values()))
        self._answering.shutdown()
        self._over.set()
        with self._lock:
            items, self._pending = self._pending, []
        return items
