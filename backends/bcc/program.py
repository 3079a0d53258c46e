"""The BPF object: compiled once, serving every binary; its maps and its links.

bcc compiles bpf/*.c with the nine-file shim in bpf/shim instead of kernel headers, which are rarely installed
and not needed: no program reads a kernel struct but `task_struct`, and that one through BTF.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import sqltrace.bpf
from sqltrace.backends.base import Options
from sqltrace.backends.bcc import links
from sqltrace.backends.bcc.kernel_btf import kernel_offsets
from sqltrace.errors import BackendError, BackendUnavailableError
from sqltrace.events.wire import INCOMPLETE, NO_COUNTERS, STATEMENT, End, RecordType, StatementBatch

_SOURCES = Path(sqltrace.bpf.__file__).parent
_PAGE = 4096
_MAX_LAYOUTS = 256

COUNTS: tuple[str | tuple[str, str], ...] = (
    "hits",
    "ends",
    "filtered",
    "inserted",
    "deleted",
    ("statement", "ring_full"),
    ("text", "ring_full"),
    ("database", "ring_full"),
    ("process", "ring_full"),
    ("mapping", "ring_full"),
    ("step", "too_many_threads"),
    ("step", "too_many_statements"),
    ("step", "too_deep"),
)
"""The members of `counts` in state.c: a name, or (record type, reason) of what was lost."""

_PARTS = ("state.c", "text.c", "finish.c", "follow.c", "probes.c")
"""One program in several files; bcc understands map methods only in the file that it is given, not in its includes."""

_TAILS = (("tails", "bound_walk"), ("tails", "long_text"), ("loader_tails", "loader_waits"))
"""(map, program): reached by tail calls."""
_HOLD_PATIENCE_NS = 30_000_000
"""How long a hook waits for the holder before it stops the process by a signal."""
_RAW_TRACEPOINTS = ("sched_process_fork", "sched_process_exec", "sched_process_exit")


def _source() -> str:
    return "".join(f'#line 1 "{name}"\n{(_SOURCES / name).read_text(encoding="utf-8")}' for name in _PARTS)


@dataclass(frozen=True, slots=True)
class ProbeOffsets:
    """File offsets of the three functions in one file."""

    step: int
    reset: int
    finalize: int


class ProbeObject:
    """The loaded BPF object."""

    def __init__(self, options: Options, *, everyone: bool = False, files: bool = False) -> None:
        """Compile and load.  everyone: processes are met by their first hit; files: `choose` is going to be used."""
        os.environ["BCC_KERNEL_SOURCE"] = str(_SOURCES / "shim")
        try:
            from bcc import BPF  # noqa: PLC0415 - takes 0.1 s and may be missing
        except ImportError as error:
            raise BackendUnavailableError(
                f"Python cannot import bcc ({error}). Install Debian's python3-bpfcc, or use --backend frida."
            ) from error
        kernel = kernel_offsets()
        flags = [
            f"-I{_SOURCES}",
            f"-DRING_PAGES={options.ring_bytes // _PAGE}",
            f"-DMAX_STATEMENTS={options.statements}",
            f"-DMAX_THREADS={options.threads}",
            f"-DMIN_DURATION_NS={options.min_duration_ns}ULL",
            f"-DERRORS_ONLY={int(options.errors_only)}",
            f"-DMUTING={int(options.muting)}",
            f"-DTASK_PID={kernel['task_struct', 'pid']}",
            f"-DTASK_TGID={kernel['task_struct', 'tgid']}",
            f"-DTASK_EXIT_CODE={kernel['task_struct', 'exit_code']}",
            f"-DBPRM_FILE={kernel['linux_binprm', 'file']}",
            f"-DFILE_INODE={kernel['file', 'f_inode']}",
            f"-DINODE_NUMBER={kernel['inode', 'i_ino']}",
            f"-DFOLLOW_CHILDREN={int(options.follow)}",
            f"-DFOLLOW_EVERYONE={int(everyone)}",
            f"-DFOLLOW_FILES={int(files)}",
            f"-DOWN_PID={os.getpid()}",
            "-Wno-everything",  # bcc's own headers warn on every compile
        ]
        try:
            # bcc attaches functions named raw_tracepoint__* by itself.
            self._bpf = BPF(text=_source(), cflags=flags)
            self._kind = BPF.KPROBE
            self._multi = self._load("step_entry", multi=True)
            if not self._multi and not self._load("step_entry", multi=False):
                raise BackendError("the kernel refuses the BPF programs. Use --backend frida.")
            tails = [name for _, name in _TAILS]
            for name in (*tails, "step_return", "reset_entry", "finalize_entry", "loader_entry"):
                if not self._load(name, multi=self._multi):
                    raise BackendError(f"the kernel refuses the BPF program {name}. Use --backend frida.")
            for index, (table, name) in enumerate(_TAILS):
                at = index if table == "tails" else 0
                self._bpf[table][ctypes.c_int(at)] = ctypes.c_int(self._bpf.funcs[name.encode()].fd)
            waits = self._bpf.load_func("exec_waits", BPF.RAW_TRACEPOINT)
            self._bpf["exec_tails"][ctypes.c_int(0)] = ctypes.c_int(waits.fd)
        except BackendError:
            raise
        except Exception as error:  # bcc raises bare Exception, with what the compiler said on stderr
            raise BackendError(f"bcc cannot load sqltrace's BPF programs: {error}. Use --backend frida.") from error
        self._layouts: dict[bytes, int] = {}
        self._links: list[int] = []
        self._deleted = 0

    def _load(self, name: str, *, multi: bool) -> bool:
        try:
            self._bpf.load_func(name, self._kind, None, links.BPF_TRACE_UPROBE_MULTI if multi else -1)
        except Exception:  # bcc raises bare Exception
            return False
        return True

    @property
    def ring_fd(self) -> int:
        """Descriptor of the ring's map."""
        return int(self._bpf["records"].map_fd)

    @property
    def held_fd(self) -> int:
        """Descriptor of the map of threads that wait for us."""
        return int(self._bpf["held"].map_fd)

    @property
    def stopped_fd(self) -> int:
        """Descriptor of the map of threads whose process a hook stopped by a signal."""
        return int(self._bpf["stopped"].map_fd)

    @property
    def holds_fd(self) -> int:
        """Descriptor of the ring that says when a thread begins to wait."""
        return int(self._bpf["holds"].map_fd)

    def hold_by(self, cpu: int | None) -> None:
        """Let threads be held by the holder on this CPU; None: by SIGSTOP, as it is before the first call."""
        table = self._bpf["hold_options"]
        table[ctypes.c_int(0)] = table.Leaf(0 if cpu is None else _HOLD_PATIENCE_NS, cpu or 0, 0)

    def layout_index(self, words: bytes) -> int:
        """Put a `struct layout` into the map, once; return the cookie for probes of binaries that have it."""
        index = self._layouts.get(words)
        if index is None:
            index = len(self._layouts)
            if index >= _MAX_LAYOUTS:
                raise BackendError(f"more than {_MAX_LAYOUTS} different layouts of SQLite's structs in one session.")
            table = self._bpf["layouts"]
            table[ctypes.c_int(index)] = table.Leaf.from_buffer_copy(words)
            self._layouts[words] = index
        return index

    def _attach(self, name: str, path: str, offsets: list[int], cookie: int, *, at_return: bool = False) -> None:
        program = links.Program(self._bpf.funcs[name.encode()].fd, at_return)
        if self._multi:
            self._links.append(links.attach_multi(program, path, offsets, cookie))
        else:
            for offset in offsets:
                self._links.extend(links.attach_single(program, path, offset, cookie))

    def attach(self, path: str, offsets: ProbeOffsets, layout: int) -> None:
        """Probe one file, in every process that maps it now or later; `followed` decides who is reported."""
        # The return before the entry: a step that only returns under our eyes is known to be none of ours.
        self._attach("step_return", path, [offsets.step], layout, at_return=True)
        self._attach("finalize_entry", path, [offsets.finalize], layout)
        self._attach("reset_entry", path, [offsets.reset], layout)
        self._attach("step_entry", path, [offsets.step], layout)

    def attach_loader(self, path: str, offset: int) -> None:
        """Probe a dynamic loader's debug hook: it is called after each change of the list of libraries."""
        self._attach("loader_entry", path, [offset], 0)

    def follow(self, pid: int) -> None:
        """Report what this process does."""
        table = self._bpf["followed"]
        table[ctypes.c_uint32(pid)] = table.Leaf(0, 0)

    def choose(self, inode: int) -> None:
        """Hold every process that executes a file with this inode number, and report a mapping."""
        self._bpf["chosen"][ctypes.c_uint64(inode)] = ctypes.c_uint8(1)

    def unfollow(self, pid: int) -> None:
        """Stop reporting it."""
        self._drop("followed", pid)

    def _drop(self, table: str, pid: int) -> None:
        with contextlib.suppress(KeyError):
            del self._bpf[table][ctypes.c_uint32(pid)]

    def mute(self, text_id: int) -> None:
        """Leave out the executions of this statement."""
        self._bpf["muted"][ctypes.c_uint64(text_id)] = ctypes.c_uint8(1)

    def counts(self) -> dict[str | tuple[str, str], int]:
        """Return the totals over all CPUs by the names in COUNTS; `deleted` includes what we deleted."""
        table = self._bpf["counts"]
        totals = {name: sum(table[ctypes.c_int(index)]) for index, name in enumerate(COUNTS)}
        totals["deleted"] += self._deleted
        return totals

    def take_statements(self, pid: int | None, end: End) -> StatementBatch:
        """Forget the statements of a process (None: of all); return those still running as records."""
        table = self._bpf["statements"]
        rows = []
        for key, leaf in _entries(table):
            if pid is None or key.tgid == pid:
                with contextlib.suppress(KeyError):
                    del table[key]
                    self._deleted += 1
                if leaf.running:
                    rows.append(_unfinished(key, leaf, end))
        return np.concatenate(rows) if rows else np.zeros(0, dtype=STATEMENT)

    def detach(self) -> None:
        """Remove every probe and tracepoint; the maps stay readable."""
        while self._links:
            os.close(self._links.pop())
        for name in _RAW_TRACEPOINTS:
            if name.encode() in self._bpf.raw_tracepoint_fds:
                self._bpf.detach_raw_tracepoint(name)

    def close(self) -> None:
        """Free the object."""
        self._bpf.cleanup()


def _entries(table: Any) -> Iterator[tuple[Any, Any]]:
    # A copy of the keys first: deleting while iterating restarts the kernel's walk.
    for key in list(table.keys()):
        try:
            yield key, table[key]
        except KeyError:
            continue


def _unfinished(key: Any, leaf: Any, end: End) -> StatementBatch:
    row = np.zeros(1, dtype=STATEMENT)
    for name in ("begin_ns", "end_ns", "step_ns", "rows", "conn", "text_id", "tid"):
        row[name] = getattr(leaf, name)
    row["type"] = RecordType.STATEMENT
    row["size"] = STATEMENT.itemsize
    row["flags"] = leaf.flags | end | INCOMPLETE | NO_COUNTERS
    row["pid"] = key.tgid
    row["stmt"] = key.stmt
    row["rc"] = 100
    return row
