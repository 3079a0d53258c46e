"""A small symbolic executor, which tells what a function loads, stores, compares, calls and returns.

SQLite's accessors do little but read one field: `sqlite3_sql(p)` is `return p ? p->zSql : 0`.  Run with symbols
instead of values for its arguments, such a function *tells* the offset, whatever compiler made it: the
value returned is "8 bytes loaded from argument 0 plus 248".
The idea is that of OpenTelemetry's eBPF profiler, which reads the offsets of language runtimes from accessors.

Values are linear: a constant plus multiples of terms (an argument, a load, the result of a call); what is not
linear becomes an unknown.  Each conditional jump forks, both ways are followed, and budgets end what would not.
Memory is what the function itself stored, by symbolic address; nothing else aliases.

The instructions live in their own module (x86_64.py): it turns one instruction into changes of a `State` and an
`Outcome`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias

from sqltrace.resolve.image import Image


class Argument(NamedTuple):
    """The function's argument of this number, from 0."""

    number: int

    def __str__(self) -> str:
        return f"arg{self.number}"


class Load(NamedTuple):
    """What `size` bytes at `address` hold."""

    address: Linear
    size: int

    def __str__(self) -> str:
        return f"u{8 * self.size}[{self.address}]"


class Result(NamedTuple):
    """What a call returned; `target` is None for an indirect one."""

    target: int | None
    site: int

    def __str__(self) -> str:
        return f"call@{self.site:#x}()"


class Unknown(NamedTuple):
    """Something that is not modelled; each is different."""

    serial: int
    kind: str

    def __str__(self) -> str:
        return f"<{self.kind}>"


Term: TypeAlias = Argument | Load | Result | Unknown


class Linear(NamedTuple):
    """`constant` plus the sum of coefficient times term; `terms` is sorted."""

    constant: int
    terms: tuple[tuple[Term, int], ...] = ()

    def __str__(self) -> str:
        parts = [str(term) if factor == 1 else f"{factor}*{term}" for term, factor in self.terms]
        if self.constant or not parts:
            parts.append(str(self.constant))
        return " + ".join(parts).replace("+ -", "- ")

    @property
    def is_constant(self) -> bool:
        """Whether no term is left."""
        return not self.terms

    def plus(self, other: Linear, factor: int = 1) -> Linear:
        """Return self + factor * other."""
        constant = self.constant + factor * other.constant
        if not other.terms:
            return Linear(constant, self.terms)
        terms = dict(self.terms)
        for term, coefficient in other.terms:
            total = terms.get(term, 0) + factor * coefficient
            if total:
                terms[term] = total
            else:
                del terms[term]
        return Linear(constant, tuple(sorted(terms.items(), key=repr)) if len(terms) > 1 else tuple(terms.items()))

    def times(self, factor: int) -> Linear:
        """Return factor * self."""
        if factor == 0:
            return Linear(0)
        return Linear(self.constant * factor, tuple((t, c * factor) for t, c in self.terms))

    @property
    def single(self) -> Term | None:
        """The term when the value is exactly that term, else None."""
        return self.terms[0][0] if self.constant == 0 and len(self.terms) == 1 and self.terms[0][1] == 1 else None

    def offset_from(self, base: Term) -> int | None:
        """Return the constant when the value is `base` plus a constant, else None."""
        return self.constant if self.terms == ((base, 1),) else None


@functools.lru_cache(maxsize=1 << 16)
def _nesting(value: Linear) -> int:
    return max((1 + _nesting(t.address) for t, _ in value.terms if isinstance(t, Load)), default=0)


def field_load(value: Linear, base: Term, sizes: Sequence[int]) -> int | None:
    """Return o when `value` is what one of `sizes` bytes at base + o hold: a field of the struct at base."""
    term = value.single
    if not isinstance(term, Load) or term.size not in sizes:
        return None
    offset = term.address.offset_from(base)
    return offset if offset is not None and offset >= 0 else None


@dataclass(frozen=True, slots=True)
class Access:
    """A load, or a store of `stored`, outside the stack frame."""

    address: Linear
    size: int
    stored: Linear | None
    site: int


@dataclass(frozen=True, slots=True)
class Compare:
    """A cmp or test; which of the two does not matter so far."""

    left: Linear
    right: Linear
    size: int
    site: int


@dataclass(frozen=True, slots=True)
class Call:
    """A call with what the argument registers held; an argument may be left over from before.

    `stacked` is what lies at the stack pointer: on arm64 Macs the first variadic argument.
    """

    target: int | None
    arguments: tuple[Linear | None, ...]
    site: int
    stacked: Linear | None = None


@dataclass(slots=True)
class Trace:
    """All that was seen on all paths.  `complete` is False when a budget ended it."""

    returns: list[Linear] = field(default_factory=list)
    accesses: list[Access] = field(default_factory=list)
    compares: list[Compare] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    complete: bool = True

    def loads(self) -> list[Access]:
        """Return the accesses that read."""
        return [a for a in self.accesses if a.stored is None]


@dataclass(slots=True)
class State:
    """One path: registers, memory written so far, where inlined calls return to, how often each place was met."""

    pc: int
    registers: dict[str, Linear]
    memory: dict[Linear, tuple[Linear, int]]
    returns: tuple[int, ...] = ()
    visits: dict[int, int] = field(default_factory=dict)

    def fork(self, pc: int) -> State:
        """Return a copy of this path that goes on at `pc`."""
        return State(pc, dict(self.registers), dict(self.memory), self.returns, dict(self.visits))


class Outcome(NamedTuple):
    """How control leaves an instruction."""

    kind: Literal["next", "jump", "branch", "select", "call", "return", "end"]
    target: int | None = None
    register: str = ""
    alternative: Linear | None = None


NEXT: Final = Outcome("next")
"""On to the following instruction."""

_MAX_NESTING: Final = 7
_MAX_TERMS: Final = 4
"""Deeper expressions are no field accesses, and make execution explode (measured: 15 s for one B-tree function)."""


class Machine(Protocol):
    """What an instruction set provides."""

    arguments: tuple[str, ...]
    stack_pointer: str
    result: str
    volatile: tuple[str, ...]

    def step(self, pc: int, state: State, context: Context) -> tuple[Outcome, int] | None:
        """Execute the instruction at `pc`; return how it ends and its length, None when there is none."""

    def size_at(self, pc: int) -> int:
        """Return how many bytes the instruction at `pc` has, 0 where there is none."""

    def text(self, pc: int) -> str:
        """Return the instruction at `pc` in assembly language."""


class Context:
    """What instructions need: memory access that records itself, and fresh unknowns."""

    def __init__(self, image: Image, trace: Trace, stack: Term) -> None:
        self.image = image
        self.trace = trace
        self._stack = stack
        self._serial = 1

    def unknown(self, kind: str) -> Linear:
        """Return a value that equals no other."""
        self._serial += 1
        return Linear(0, ((Unknown(self._serial, kind), 1),))

    def _on_stack(self, address: Linear) -> bool:
        return any(term == self._stack for term, _ in address.terms)

    def load(self, state: State, address: Linear, size: int, site: int) -> Linear:
        """Return what `size` bytes at `address` hold."""
        if _nesting(address) > _MAX_NESTING or len(address.terms) > _MAX_TERMS:
            address = self.unknown("deep")
        stored = state.memory.get(address)
        if stored is not None and stored[1] >= size:
            return stored[0]
        if address.is_constant and size == 8:
            # A global offset table entry or another pointer that the loader fills in.
            pointer = self.image.relocated(address.constant)
            if pointer is not None:
                return Linear(pointer)
        if not self._on_stack(address):
            self.trace.accesses.append(Access(address, size, None, site))
        return Linear(0, ((Load(address, size), 1),))

    def store(self, state: State, address: Linear, value: Linear, size: int, site: int) -> None:
        """Remember that `size` bytes at `address` hold `value` on this path."""
        state.memory[address] = (value, size)
        if not self._on_stack(address):
            self.trace.accesses.append(Access(address, size, value, site))

    def compare(self, left: Linear, right: Linear, size: int, site: int) -> None:
        """Note a comparison."""
        self.trace.compares.append(Compare(left, right, size, site))


class Executor:
    """Runs functions of one image.  Keeps decoded instructions between runs."""

    def __init__(self, image: Image, machine: Machine) -> None:
        self._image = image
        self._machine = machine

    def instruction(self, pc: int) -> str:
        """Return `0x1234: mov rax, qword ptr [rdi + 8]`."""
        return f"{pc:#x}: {self._machine.text(pc)}"

    def size_at(self, pc: int) -> int:
        """Return how many bytes the instruction at `pc` has, 0 where there is none."""
        return self._machine.size_at(pc)

    def run(
        self,
        function: int,
        *,
        depth: int = 0,
        budget: int = 4000,
        max_paths: int = 200,
        stop_at: int | None = None,
        once: bool = False,
        enter: Callable[[int], bool] | None = None,
        until: Callable[[Call], bool] | None = None,
    ) -> Trace:
        """Follow every path from `function`, into direct calls up to `depth` deep where `enter` agrees.

        `budget` counts instructions, `max_paths` ends.  A jump or call to `stop_at` is noted as a call and not
        followed (a tail call looks like a jump).  With `once` each instruction is executed on one path only: what
        depends on the path is then partly missed, but a large function takes time in proportion to its size.
        The first call that `until` accepts ends everything.
        """
        machine = self._machine
        stack = Unknown(0, "stack")
        trace = Trace()
        context = Context(self._image, trace, stack)
        registers = {name: Linear(0, ((Argument(i), 1),)) for i, name in enumerate(machine.arguments)}
        registers[machine.stack_pointer] = Linear(0, ((stack, 1),))
        pending = [State(function, registers, {})]
        covered: set[int] = set()
        while pending and budget > 0 and max_paths > 0:
            state = pending.pop()
            while budget > 0:
                budget -= 1
                state.visits[state.pc] = state.visits.get(state.pc, 0) + 1
                if state.visits[state.pc] > 2 or state.pc in covered:
                    break
                if once:
                    covered.add(state.pc)
                done = machine.step(state.pc, state, context)
                if done is None:
                    break
                outcome, length = done
                following = state.pc + length
                match outcome.kind:
                    case "next":
                        state.pc = following
                    case "branch" if outcome.target is not None:
                        pending.append(state.fork(outcome.target))
                        state.pc = following
                    case "select" if outcome.alternative is not None:
                        other = state.fork(following)
                        other.registers[outcome.register] = outcome.alternative
                        pending.append(other)
                        state.pc = following
                    case "jump" if outcome.target is not None and outcome.target != stop_at:
                        state.pc = outcome.target
                    case "jump" | "call":
                        self._note_call(state, trace, outcome.target)
                        if until is not None and until(trace.calls[-1]):
                            trace.complete = False
                            return trace
                        if outcome.kind == "jump":
                            max_paths -= 1
                            break
                        inside = outcome.target
                        if (
                            inside is not None
                            and inside != stop_at
                            and len(state.returns) < depth
                            and self._image.is_code(inside)
                            and (enter is None or enter(inside))
                        ):
                            state.returns += (following,)
                            state.pc = inside
                            continue
                        for name in machine.volatile:
                            state.registers.pop(name, None)
                        state.registers[machine.result] = Linear(0, ((Result(inside, state.pc), 1),))
                        state.pc = following
                    case "return" if state.returns:
                        state.pc = state.returns[-1]
                        state.returns = state.returns[:-1]
                    case "return":
                        trace.returns.append(state.registers.get(machine.result, Linear(0)))
                        max_paths -= 1
                        break
                    case _:
                        break
        trace.complete = not pending and budget > 0
        return trace

    def _note_call(self, state: State, trace: Trace, target: int | None) -> None:
        arguments = tuple(state.registers.get(name) for name in self._machine.arguments)
        stacked = state.memory.get(state.registers.get(self._machine.stack_pointer, Linear(0)))
        trace.calls.append(Call(target, arguments, state.pc, stacked[0] if stacked is not None else None))
