"""Rung 3: SQLite's messages, the code that refers to them, and the calls around that code.

For builds without symbols and without the API table (Debian's fossil, Chromium).  The messages are the same
in every release that matters; each leads to one function of SQLite's source:

* sqlite3VdbeExec (vdbe.c) alone says "cannot commit transaction - SQL statements in progress" and its kin;
* sqlite3_step is the caller of it (or of sqlite3Step, where that is not inlined) that also complains about a NULL
  or finalized statement; blobSeekToRow, the other caller, says "no such rowid";
* sqlite3VdbeHalt (vdbeaux.c) is what VdbeExec calls to end a statement, and vdbeCommit below it names master
  journals "-mj%06X9%02X";
* sqlite3_finalize hands its own argument to VdbeReset (or to VdbeHalt) and complains about a finalized statement;
  sqlite3_reset does the first after a test for NULL, and never the second;
* sqlite3VdbeReset, where link-time optimisation left no sqlite3_reset, is what sqlite3_step and sqlite3_finalize both
  hand their own statement to on its way to VdbeHalt;
* the sqlite3_prepare family hands its arguments to sqlite3LockAndPrepare with different constants (copies of it, into
  which the compiler has put these constants, are a matter of prepare_copies.py);
* sqlite3LockAndPrepare itself, where link-time optimisation left no sqlite3_prepare_v2, is what sqlite3Reprepare(p)
  hands p's connection and text, and p to be replaced;
* sqlite3Close, behind sqlite3_close and sqlite3_close_v2, is "unable to close due to unfinalized statements";
* vdbeUnbind says "bind on a busy prepared statement: [%s]" with p->zSql.

Every step wants exactly one answer: none and several both mean that the function is not found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from sqltrace.resolve.accessors import (
    INDEX,
    OBJECT,
    VDBE_MAGIC_RUN,
    counters_claims,
    explained,
    member,
    unbind_claims,
)
from sqltrace.resolve.callgraph import CallGraph, find_references
from sqltrace.resolve.claims import FieldClaim
from sqltrace.resolve.code import Reference
from sqltrace.resolve.image import Image
from sqltrace.resolve.internals import btree_writers, is_whole, vdbe_reset, vdbe_reset_shared
from sqltrace.resolve.prepare_copies import prepare_wrappers
from sqltrace.resolve.symbolic import Argument, Call, Executor, Linear, Trace, field_load

_ANCHORS: Final[Mapping[str, tuple[bytes, ...]]] = {
    "exec-commit": (b"cannot commit transaction - SQL statements in progress",),
    "exec-savepoint": (b"cannot open savepoint - SQL statements in progress",),
    "exec-release": (b"cannot release savepoint - SQL statements in progress",),
    "exec-begin": (b"cannot start a transaction within a transaction",),
    "finalized": (b"API called with finalized prepared statement",),
    "null": (b"API called with NULL prepared statement",),
    "blob": (b"cannot open value of type %s", b"no such rowid: %lld"),
    "commit": (b"%s-mj%06X9%02X", b"-mj%06X9%02X", b"MJ delete: %s", b"%s-mjXXXXXX9XXz"),
    "prepare": (b"database schema is locked: %s", b"statement too long"),
    "close": (b"unable to close due to unfinalized statements or unfinished backups",),
    "unbind": (b"bind on a busy prepared statement: [%s]",),
}
_IN_EXEC: Final = ("exec-commit", "exec-savepoint", "exec-release", "exec-begin")
_MARGIN: Final = 4 << 20
_WIDEST: Final = 64 << 20
_HELPER_SIZE: Final = 260
"""vdbeSafety and vdbeSafetyNotNull, where they are not inlined, are smaller."""
_PREPARE_SAVESQL: Final = 0x80
_STMTSTATUS_MEMUSED: Final = 99
_SMALL: Final = 400
_MOST_BINDS: Final = 8
_INDEX: Final = Linear(0, ((INDEX, 1),))
_OWN: Final = Linear(0, ((OBJECT, 1),))
_CLOSES: Final = {Linear(0): "sqlite3_close", Linear(1): "sqlite3_close_v2"}


@dataclass(frozen=True, slots=True)
class StringEvidence:
    """What this rung found: functions by name and why, and what internal functions tell about fields."""

    anchors: int
    functions: Mapping[str, int]
    fields: tuple[FieldClaim, ...] = field(default=())
    details: Mapping[str, str] = field(default_factory=dict)


def _anchor_addresses(image: Image) -> dict[int, str]:
    """Return where the messages lie, and which anchor each belongs to."""
    # The end of a string counts, not its start: linkers let one string be the tail of another.
    names = {text: name for name, texts in _ANCHORS.items() for text in texts}
    return {address: names[text] for address, text in image.find_ends(names, image.constants)}


def string_evidence(image: Image, executor: Executor) -> StringEvidence:
    """Return the functions that messages and calls lead to."""
    addresses = _anchor_addresses(image)
    if not addresses:
        return StringEvidence(0, {})
    references = find_references(image, addresses)
    core = [r.site for r in references if addresses[r.target] != "blob"]
    if not core or max(core) - min(core) > _WIDEST:
        return StringEvidence(len(addresses), {})
    graph = CallGraph(image, min(core) - _MARGIN, max(core) + _MARGIN)
    search = _Search(image, executor, graph, addresses, references)
    functions = search.functions()
    return StringEvidence(len(addresses), functions, tuple(search.fields()), search.details)


def _only(found: Collection[int]) -> int | None:
    return next(iter(found)) if len(found) == 1 else None


def _reprepared_text(call: Call) -> int | None:
    """Return the offset of Vdbe.zSql where this is sqlite3Reprepare's call of sqlite3LockAndPrepare."""
    db, text, size, _, replaced = call.arguments[:5]
    # Where nobody passes anything but -1 for nBytes, link-time optimisation removes it.
    own = (replaced == _OWN and size == Linear(-1)) or call.arguments[3] == _OWN
    if db is None or text is None or not own or field_load(db, OBJECT, (8,)) is None:
        return None
    return field_load(text, OBJECT, (8,))


class _Search:
    """The chain of conclusions for one file."""

    def __init__(
        self,
        image: Image,
        executor: Executor,
        graph: CallGraph,
        addresses: Mapping[int, str],
        references: Collection[Reference],
    ) -> None:
        self._image = image
        self._executor = executor
        self._graph = graph
        self._texts = addresses
        self._variadic_on_stack = image.format == "macho" and image.arch == "arm64"
        self.details: dict[str, str] = {}
        self._reprepared: list[FieldClaim] = []
        self._users: dict[str, set[int]] = {name: set() for name in _ANCHORS}
        self._references: dict[int, list[Reference]] = {}
        for reference in references:
            owner = graph.owner_at(reference.site)
            if owner is not None:
                self._users[addresses[reference.target]].add(owner)
                self._references.setdefault(owner, []).append(reference)

    def functions(self) -> dict[str, int]:
        """Return what was found of step, reset, finalize, the prepare family, close, and internal functions."""
        found: dict[str, int] = {}
        exec_ = self._vdbe_exec()
        if exec_ is not None and is_whole(self._graph, exec_, measured=self._image.unwind_covers(exec_)):
            self._add(found, "sqlite3VdbeExec", exec_, self._says(exec_, _IN_EXEC))
            if (writers := btree_writers(self._graph, self._executor, exec_)) is not None:
                both = f"calls balance at {writers.balance:#x}, as only one other does that sqlite3VdbeExec calls"
                self._add(found, "sqlite3BtreeInsert", writers.insert, f"{both}; reads a BtreePayload (arg1)")
                self._add(found, "sqlite3BtreeDelete", writers.delete, f"{both}; reads nothing through arg1")
        if exec_ is not None:
            step, inner = self._step(exec_)
            exec_text = f"sqlite3VdbeExec at {exec_:#x}, which {self._says(exec_, _IN_EXEC)}"
            if step is not None:
                called = f"sqlite3Step at {inner:#x}, which calls {exec_text}" if inner else exec_text
                reason = f"{self._calls(step, inner or exec_)} {called}; and {self._says(step, ('null', 'finalized'))}"
                self._add(found, "sqlite3_step", step, reason)
            halt = self._vdbe_halt(exec_)
            if halt is not None:
                self._add(
                    found, "sqlite3VdbeHalt", halt, f"is called by {exec_text}, and {self._says(halt, ('commit',))}"
                )
                not_these = {f for f in (exec_, step, inner) if f is not None}
                finalize, reset = self._passing_own_statement(halt, not_these)
                halt_text = (
                    f"hands its argument on to sqlite3VdbeHalt at {halt:#x}, perhaps by way of sqlite3VdbeReset; "
                    f"VdbeHalt is called by {exec_text}, and {self._says(halt, ('commit',))}"
                )
                if (function := _only(finalize)) is not None:
                    complaint = self._says(function, ("finalized",))
                    self._add(found, "sqlite3_finalize", function, f"{halt_text}; and {complaint}")
                if (function := _only(reset)) is not None:
                    self._add(found, "sqlite3_reset", function, f"tests its argument for NULL, {halt_text}")
                    inner = vdbe_reset(self._graph, self._executor, function, halt, {*not_these, *finalize})
                    if inner is not None:
                        reason = f"hands its argument from sqlite3_reset at {function:#x} on to {halt:#x}"
                        self._add(found, "sqlite3VdbeReset", inner, reason)
                elif (ending := _only(finalize)) is not None and not reset and step is not None:
                    shared = vdbe_reset_shared(
                        self._graph, self._executor, tuple(f for f in (step, inner) if f is not None), ending, halt
                    )
                    if shared is not None:
                        reason = (
                            f"is handed their own statement by sqlite3_step at {step:#x} and sqlite3_finalize at "
                            f"{ending:#x}, and hands it on to {halt:#x}"
                        )
                        self._add(found, "sqlite3VdbeReset", shared, reason)
        found.update(self._prepare_family())
        if "sqlite3_prepare_v2" not in found and "sqlite3_step" in found:
            found.update(self._lock_and_prepare(found["sqlite3_step"]))
        found.update(self._close_family())
        return found

    def _add(self, found: dict[str, int], name: str, address: int, detail: str) -> None:
        found[name] = address
        self.details[name] = detail

    def _says(self, function: int, anchors: Collection[str]) -> str:
        """Return which of the anchors' messages the function, or what it calls, refers to, and where."""
        for owner in (function, *sorted(self._graph.callees(function))):
            for reference in self._references.get(owner, ()):
                if self._texts[reference.target] in anchors:
                    text = (self._image.cstring(reference.target) or b"").decode("latin-1")
                    via = "" if owner == function else f" through {owner:#x}"
                    return f'refers{via} to "{text}" at {reference.target:#x} ({reference.site:#x})'
        return "is called by one that complains"

    def _calls(self, caller: int, callee: int) -> str:
        sites = self._graph.call_sites(caller, callee)
        return f"calls at {sites[0]:#x}" if sites else "calls"

    def _vdbe_exec(self) -> int | None:
        users = [self._users[name] for name in _IN_EXEC]
        return _only({f for some in users for f in some if sum(f in other for other in users) >= 2})

    def _complaining(self, name: str) -> set[int]:
        """Return the functions that refer to an anchor, themselves or through a small helper."""
        found = set(self._users[name])
        level = found
        for _ in range(2):
            level = {c for f in level if self._is_helper(f) for c in self._graph.callers(f)}
            found |= level
        return found

    def _is_helper(self, function: int) -> bool:
        """Whether this may be vdbeSafety or vdbeSafetyNotNull, which do nothing but log."""
        return self._graph.size(function) < _HELPER_SIZE and len(self._graph.callees(function)) <= 2

    def _step(self, exec_: int) -> tuple[int | None, int | None]:
        """Return sqlite3_step, and sqlite3Step where that is a function of its own."""
        callers = self._graph.callers(exec_) - self._complaining("blob")
        complaining = self._complaining("null")
        direct = callers & complaining
        if direct:
            return _only(direct), None
        inner = _only(callers)
        if inner is None:
            return None, None
        return _only(self._graph.callers(inner) & complaining), inner

    def _vdbe_halt(self, exec_: int) -> int | None:
        called = self._graph.callees(exec_)
        commit = self._users["commit"]
        return _only(commit & called) or _only({c for f in commit for c in self._graph.callers(f)} & called)

    def _passes_own(self, function: int, targets: Collection[int]) -> bool:
        """Whether the function hands its own first argument to one of `targets` as their first."""

        def passes(call: Call) -> bool:
            return call.target in targets and call.arguments[0] == _OWN

        return any(map(passes, self._executor.run(function, budget=8000, once=True, until=passes).calls))

    def _passing_own_statement(self, halt: int, not_these: Collection[int]) -> tuple[set[int], set[int]]:
        """Return finalize and reset among those that call VdbeHalt, perhaps by way of VdbeReset or VdbeFinalize.

        Both hand on their own statement; other callers, FTS for instance, hand on one that they keep somewhere.
        """
        complaining = self._complaining("finalized")
        silent_ones = complaining | self._complaining("null") | {halt}

        def worth_a_look(function: int) -> bool:
            return function not in not_these and (function in complaining or self._tests_argument_first(function))

        def passing_to(targets: set[int]) -> set[int]:
            callers = {c for f in targets for c in self._graph.callers(f)} - set(not_these)
            return {c for c in callers if self._passes_own(c, targets)}

        passing: set[int] = set()
        plain = {halt}
        # VdbeReset calls VdbeHalt, VdbeFinalize calls VdbeReset; each may be inlined into the next.
        for _ in range(3):
            callers = passing_to(plain)
            passing |= {f for f in callers if worth_a_look(f)}
            plain = callers - passing
        # With sanitizers VdbeReset and VdbeFinalize, too, test their argument first.
        level = set() if passing & complaining else set(passing)
        for _ in range(2):
            level = passing_to(level) - passing
            passing |= {f for f in level if worth_a_look(f)}
        finalize = passing & complaining
        reset = {f for f in passing - silent_ones if self._tests_argument_first(f)}
        # What finalize hands its statement to is not reset, but VdbeFinalize or VdbeReset.
        way = set(finalize)
        for _ in range(2):
            way |= {f for f in reset if any(self._passes_own(c, {f}) for c in self._graph.callers(f) & way)}
        reset -= way
        if len(reset) > 1 and (ending := _only(finalize)) is not None:
            # VdbeFinalize hands its statement to VdbeDelete as well, as finalize does where that one is inlined.
            deletes = {f for f in self._graph.callees(ending) - passing - {halt} if self._passes_own(ending, {f})}
            reset = {f for f in reset if not self._passes_own(f, deletes)}
        return finalize, reset

    def _tests_argument_first(self, function: int) -> bool:
        trace = self._executor.run(function, budget=60, max_paths=4)
        return bool(trace.compares) and trace.compares[0].left == _OWN and trace.compares[0].right in (_OWN, Linear(0))

    # Prepare

    def _prepare_family(self) -> dict[str, int]:
        inner = self._users["prepare"]
        candidates = inner | {c for f in inner for c in self._graph.callers(f)}
        found: dict[str, dict[int, int]] = {}
        for lock_and_prepare in candidates:
            for wrapper in self._graph.callers(lock_and_prepare):
                if self._may_be_small(wrapper):
                    name = self._prepare_name(wrapper, lock_and_prepare)
                    if name is not None:
                        found.setdefault(name, {})[wrapper] = lock_and_prepare
        for name, functions in prepare_wrappers(self._graph, self._executor, inner).items():
            found.setdefault(name, {}).update(functions)
        family: dict[str, int] = {}
        for name, functions in found.items():
            if len(functions) == 1:
                wrapper, called = functions.popitem()
                reason = (
                    f"{self._calls(wrapper, called)} sqlite3LockAndPrepare at {called:#x} with the arguments of {name}"
                )
                self._add(family, name, wrapper, f"{reason}; that one {self._says(called, ('prepare',))}")
        return family

    def _may_be_small(self, function: int) -> bool:
        """Whether this can be a mere wrapper; without unwind data a function seems to go on to the next known one."""
        return self._graph.size(function) < _SMALL or not self._image.unwind_covers(function)

    def _prepare_name(self, wrapper: int, inner: int) -> str | None:
        """Tell by what sqlite3LockAndPrepare(db, zSql, nBytes, prepFlags, pReprepare, ppStmt, ...) is given."""
        trace = self._executor.run(wrapper, budget=600, stop_at=inner)
        calls = [c for c in trace.calls if c.target == inner]
        names = {self._prepare_name_of_call(c) for c in calls}
        return names.pop() if len(names) == 1 else None

    @staticmethod
    def _prepare_name_of_call(call: Call) -> str | None:
        a = call.arguments
        through = [Linear(0, ((Argument(i), 1),)) for i in range(6)]
        flags = a[3]
        if tuple(a[:3]) != tuple(through[:3]) or a[4] != Linear(0) or flags is None:
            return None
        if a[5] == through[3]:
            return {Linear(0): "sqlite3_prepare", Linear(_PREPARE_SAVESQL): "sqlite3_prepare_v2"}.get(flags)
        return "sqlite3_prepare_v3" if a[5] == through[4] and not flags.is_constant else None

    def _lock_and_prepare(self, step: int) -> dict[str, int]:
        """Return sqlite3LockAndPrepare, and note what the call of it in sqlite3Reprepare tells.

        sqlite3Reprepare (prepare.c), which is called by sqlite3_step or inlined there, does
        `zSql = sqlite3_sql(p); db = sqlite3VdbeDb(p); sqlite3LockAndPrepare(db, zSql, -1, flags, p, &pNew, 0)`.
        """
        prepares = self._users["prepare"]
        if len(prepares) != 1:
            return {}  # there are copies of sqlite3Prepare, and then of sqlite3LockAndPrepare
        (prepare,) = prepares
        called = self._graph.callees(step)
        called |= {f for c in called for f in self._graph.callees(c) & self._graph.callers(step)}
        found: dict[int, FieldClaim] = {}
        for target in prepares | {c for f in prepares for c in self._graph.callers(f)}:
            for caller in self._graph.callers(target) & {step, *called}:

                def reprepares(call: Call, target: int = target) -> bool:
                    return call.target == target and _reprepared_text(call) is not None

                calls = self._executor.run(caller, budget=8000, stop_at=target, once=True, until=reprepares).calls
                text = _reprepared_text(calls[-1]) if calls and reprepares(calls[-1]) else None
                if text is not None:
                    detail = (
                        f"sqlite3Reprepare in {caller:#x} hands u64[arg0 + {text}] to sqlite3LockAndPrepare, "
                        f"{self._executor.instruction(calls[-1].site)}"
                    )
                    found[target] = FieldClaim("Vdbe.zSql", text, 8, detail)
        if len(found) != 1:
            return {}
        target, claim = found.popitem()
        if target != prepare and any(map(self._hands_text_on, self._graph.callers(prepare) - {target})):
            return {}
        self._reprepared.append(claim)
        self.details["sqlite3LockAndPrepare"] = (
            f"sqlite3_step at {step:#x} hands it a statement's own text, and the statement to be replaced; "
            f"{self._says(target, ('prepare',))}"
        )
        return {"sqlite3LockAndPrepare": target}

    def _hands_text_on(self, caller: int) -> bool:
        """Whether the function hands its first two arguments on to sqlite3Prepare, as sqlite3LockAndPrepare does.

        sqlite3InitCallback does not, but each copy of sqlite3LockAndPrepare that the compiler made.
        """
        prepares = self._users["prepare"]

        def hands_on(call: Call) -> bool:
            return call.target in prepares and call.arguments[:2] == (_OWN, _INDEX)

        return any(map(hands_on, self._executor.run(caller, budget=8000, once=True, until=hands_on).calls))

    def _close_family(self) -> dict[str, int]:
        """Return sqlite3_close and sqlite3_close_v2: they call sqlite3Close(db, 0) and sqlite3Close(db, 1)."""
        found: dict[str, set[int]] = {}
        for close in self._users["close"]:
            for wrapper in self._graph.callers(close):
                if self._may_be_small(wrapper):
                    trace = self._executor.run(wrapper, budget=200, stop_at=close)
                    for call in trace.calls:
                        name = _CLOSES.get(call.arguments[1]) if call.arguments[1] is not None else None
                        if call.target == close and call.arguments[0] == _OWN and name is not None:
                            found.setdefault(name, set()).add(wrapper)
        family: dict[str, int] = {}
        for name, functions in found.items():
            if (function := _only(functions)) is not None and len(self._users["close"]) == 1:
                close = next(iter(self._users["close"]))
                reason = (
                    f"{self._calls(function, close)} sqlite3Close at {close:#x}, which {self._says(close, ('close',))}"
                )
                self._add(family, name, function, reason)
        return family

    # Fields

    def fields(self) -> Iterator[FieldClaim]:
        """Yield what vdbeUnbind and sqlite3_stmt_status tell."""
        told: dict[str, set[FieldClaim]] = {}
        # Where vdbeUnbind(p, i) is inlined, the sqlite3_bind functions say it, whose first arguments are the same.
        for function in sorted(self._users["unbind"])[:_MOST_BINDS]:
            trace = self._executor.run(function, budget=3000)
            who = f"vdbeUnbind at {function:#x}, which {self._says(function, ('unbind',))},"
            for claim in (*unbind_claims(trace), *self._unbind_more(trace)):
                told.setdefault(claim.name, set()).add(explained(claim, self._executor, who, trace))
        yield from (claims.pop() for claims in told.values() if len(claims) == 1)
        yield from self._reprepared
        found: set[FieldClaim] = set()
        for function in self._graph.comparing_with(_STMTSTATUS_MEMUSED):
            if self._graph.size(function) >= _SMALL:
                continue
            trace = self._executor.run(function)
            if any(c.left == _INDEX and c.right == Linear(_STMTSTATUS_MEMUSED) for c in trace.compares):
                who = f"sqlite3_stmt_status at {function:#x}, which compares its argument with MEMUSED,"
                found.update(explained(c, self._executor, who, trace) for c in counters_claims(trace))
        if len(found) == 1:
            yield found.pop()

    def _unbind_more(self, trace: Trace) -> Iterator[FieldClaim]:
        """vdbeUnbind(p, i): `p->eVdbeState!=VDBE_READY_STATE`, sqlite3_log(.., "..[%s]", p->zSql), `i>=p->nVar`."""
        texts = set()
        for call in trace.calls:
            message, text = call.arguments[1:3]
            if self._variadic_on_stack:
                text = call.stacked
            if message is not None and self._texts.get(message.constant) == "unbind" and message.is_constant:
                texts.add(None if text is None else field_load(text, OBJECT, (8,)))
        if len(texts) == 1 and (offset := texts.pop()) is not None:
            yield FieldClaim("Vdbe.zSql", offset, 8, place=member(offset))
        counts, states, old = set(), set(), False
        for compare in trace.compares:
            for value, other in ((compare.left, compare.right), (compare.right, compare.left)):
                if other.terms == _INDEX.terms and other.constant in (0, -1):
                    for size in (2, 4):
                        if (offset := field_load(value, OBJECT, (size,))) is not None:
                            counts.add((offset, size))
                if other == Linear(1) and (offset := field_load(value, OBJECT, (1,))) is not None:
                    states.add(offset)
                old |= other == Linear(VDBE_MAGIC_RUN)
        if len(counts) == 1:
            offset, size = counts.pop()
            yield FieldClaim("Vdbe.nVar", offset, size, place=member(offset))
        if len(states) == 1 and not old:
            offset = states.pop()
            yield FieldClaim("Vdbe.eVdbeState", offset, 1, place=member(offset))
