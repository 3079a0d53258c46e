"""x86-64 for the symbolic executor: what each instruction does to registers, memory and control.

Only what compilers emit in accessors is modelled; any other instruction makes its destination unknown.
Registers are whole: eax, ax and al stand for rax.  That loses truncation and sign, which offsets do not need;
the width of a field is that of its load.
"""

from __future__ import annotations

from typing import Any, Final

import capstone
from capstone import x86

from sqltrace.resolve.image import Image
from sqltrace.resolve.symbolic import NEXT, Context, Linear, Outcome, State


def _register_names() -> dict[str, str]:
    names = {}
    for letter in "abcd":
        for form in (f"r{letter}x", f"e{letter}x", f"{letter}x", f"{letter}l", f"{letter}h"):
            names[form] = f"r{letter}x"
    for pair in ("si", "di", "bp", "sp"):
        for form in (f"r{pair}", f"e{pair}", pair, f"{pair}l"):
            names[form] = f"r{pair}"
    for number in range(8, 16):
        for suffix in ("", "d", "w", "b"):
            names[f"r{number}{suffix}"] = f"r{number}"
    return names


_WHOLE: Final = _register_names()

_MOVES: Final = frozenset(
    (
        "mov",
        "movabs",
        "movzx",
        "movsx",
        "movsxd",
        "movsd",
        "movss",
        "movaps",
        "movups",
        "movdqa",
        "movdqu",
        "movq",
        "movd",
        "vmovdqu",
        "vmovdqa",
        "vmovups",
        "vmovaps",
        "vmovq",
        "vmovd",
    )
)
_NOTHING: Final = frozenset(("endbr64", "nop", "cdqe", "cwde"))
_TRAPS: Final = frozenset(("ud2", "hlt", "int3"))
_KEEPING_MASKS: Final = frozenset((-1, 0x3F, 0xFF, 0xFFFF, 0xFFFFFFFF))
"""`and` with these keeps the field that is looked for, at least its low bits."""

_WINDOW: Final = 96


def plt_target(image: Image, address: int) -> int | None:
    """Return where the procedure linkage stub at `address` leads within this file; None if it is no such stub.

    A stub is `[endbr64] [bnd] jmp [rip + x]` through a slot that the loader fills in.
    """
    stub = image.read(address, 16)
    body = stub.removeprefix(b"\xf3\x0f\x1e\xfa").removeprefix(b"\xf2")
    if body[:2] != b"\xff\x25" or len(body) < 6:
        return None
    end = address + len(stub) - len(body) + 6
    return image.relocated(end + int.from_bytes(body[2:6], "little", signed=True))


def plain_decoder() -> Any:
    """Return capstone without details for `reachable`: setting it up takes as long as decoding a function."""
    return capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)


def reachable(image: Image, decoder: Any, start: int, end: int) -> frozenset[int]:
    """Return the addresses of the instructions between `start` and `end` that direct jumps from `start` reach."""
    code = image.read(start, end - start)
    found: set[int] = set()
    decoded: dict[int, tuple[int, str, str]] = {}
    pending = [start]
    while pending:
        pc = pending.pop()
        while pc not in found and pc < end:
            if pc not in decoded:
                # capstone decodes all that it is given at once; another path may want the rest.
                window = code[pc - start : pc - start + _WINDOW]
                for address, size, mnemonic, operands in decoder.disasm_lite(window, pc):
                    if address in decoded:
                        break
                    decoded[address] = (size, mnemonic, operands)
                if pc not in decoded:
                    break
            found.add(pc)
            size, mnemonic, operands = decoded[pc]
            name = mnemonic.split()[-1]
            if name[0] == "j" and operands.startswith("0x") and start <= int(operands, 16) < end:
                pending.append(int(operands, 16))
            if name in ("jmp", "ret", "ud2", "hlt", "int3"):
                break
            pc += size
    return frozenset(found)


class X86_64:  # noqa: N801 (the architecture's name)
    """The machine for System V x86-64."""

    arguments: tuple[str, ...] = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
    stack_pointer = "rsp"
    result = "rax"
    volatile: tuple[str, ...] = ("rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11")

    def __init__(self, image: Image) -> None:
        self._image = image
        self._decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self._decoder.detail = True
        self._decoded: dict[int, Any] = {}

    def instruction(self, pc: int) -> Any:
        """Return capstone's instruction at `pc`, None where there is none."""
        found = self._decoded.get(pc)
        if found is None and self._image.is_code(pc):
            for instruction in self._decoder.disasm(self._image.read(pc, _WINDOW), pc):
                self._decoded.setdefault(instruction.address, instruction)
            found = self._decoded.get(pc)
        return found

    def size_at(self, pc: int) -> int:
        """Return how many bytes the instruction at `pc` has, 0 where there is none."""
        instruction = self.instruction(pc)
        return 0 if instruction is None else int(instruction.size)

    def text(self, pc: int) -> str:
        """Return the instruction at `pc` in assembly language."""
        instruction = self.instruction(pc)
        return f"{instruction.mnemonic} {instruction.op_str}".strip() if instruction is not None else "?"

    def step(self, pc: int, state: State, context: Context) -> tuple[Outcome, int] | None:
        """Execute the instruction at `pc`."""
        instruction = self.instruction(pc)
        if instruction is None:
            return None
        return _Step(instruction, state, context).execute(), instruction.size


class _Step:
    """One instruction on one path."""

    def __init__(self, instruction: Any, state: State, context: Context) -> None:
        self._instruction = instruction
        self._operands = instruction.operands
        self._state = state
        self._context = context
        self._pc: int = instruction.address

    # Operands

    def _register(self, name: str) -> Linear:
        name = _WHOLE.get(name, name)
        if name not in self._state.registers:
            self._state.registers[name] = self._context.unknown("register")
        return self._state.registers[name]

    def _address(self, operand: Any) -> Linear:
        memory = operand.mem
        address = Linear(memory.disp)
        if memory.base:
            base = self._instruction.reg_name(memory.base)
            here = Linear(self._pc + self._instruction.size)
            address = address.plus(here if base == "rip" else self._register(base))
        if memory.index:
            index = self._register(self._instruction.reg_name(memory.index))
            address = address.plus(index, memory.scale)
        if memory.segment:
            address = address.plus(self._context.unknown("segment"))
        return address

    def _get(self, operand: Any) -> Linear:
        if operand.type == x86.X86_OP_IMM:
            value = operand.imm
            if operand.size == 4 and 1 << 31 <= value < 1 << 32:
                value -= 1 << 32
            return Linear(value)
        if operand.type == x86.X86_OP_REG:
            return self._register(self._instruction.reg_name(operand.reg))
        return self._context.load(self._state, self._address(operand), operand.size, self._pc)

    def _put(self, operand: Any, value: Linear) -> None:
        if operand.type == x86.X86_OP_REG:
            name = self._instruction.reg_name(operand.reg)
            self._state.registers[_WHOLE.get(name, name)] = value
        elif operand.type == x86.X86_OP_MEM:
            self._context.store(self._state, self._address(operand), value, operand.size, self._pc)

    def _push(self, value: Linear) -> None:
        top = self._register("rsp").plus(Linear(-8))
        self._state.registers["rsp"] = top
        self._state.memory[top] = (value, 8)

    def _pop(self) -> Linear:
        top = self._register("rsp")
        self._state.registers["rsp"] = top.plus(Linear(8))
        stored = self._state.memory.get(top)
        return stored[0] if stored is not None else self._context.unknown("stack")

    def _target(self) -> int | None:
        """Where a jump or call leads; a pointer that the loader fills in (PLT, GOT) is followed."""
        operand = self._operands[0]
        if operand.type == x86.X86_OP_IMM:
            stub = plt_target(self._context.image, operand.imm)
            return int(operand.imm) if stub is None else stub
        value = self._get(operand)
        return value.constant if value.is_constant else None

    # Execution

    def execute(self) -> Outcome:
        """Change the state and return how control goes on."""
        name = self._instruction.mnemonic.split()[-1]  # without bnd, notrack, rep
        operands = self._operands
        if name in _NOTHING:
            return NEXT
        if name in ("ret", "retq"):
            return Outcome("return")
        if name == "jmp":
            return Outcome("jump", self._target())
        if name == "call":
            return Outcome("call", self._target())
        if name[0] == "j":
            return Outcome("branch", int(operands[0].imm))
        if name.startswith("cmov"):
            register = self._instruction.reg_name(operands[0].reg)
            return Outcome("select", register=_WHOLE.get(register, register), alternative=self._get(operands[1]))
        if name in _TRAPS:
            return Outcome("end")
        self._compute(name)
        return NEXT

    def _compute(self, name: str) -> None:
        operands = self._operands
        match name:
            case _ if name in _MOVES and len(operands) == 2:
                self._put(operands[0], self._get(operands[1]))
            case "lea":
                self._put(operands[0], self._address(operands[1]))
            case "cmp" | "test" | "ucomisd" | "comisd":
                left, right = self._get(operands[0]), self._get(operands[1])
                self._context.compare(left, right, operands[0].size, self._pc)
            case "push":
                self._push(self._get(operands[0]))
            case "pop":
                self._put(operands[0], self._pop())
            case "leave":
                self._state.registers["rsp"] = self._register("rbp")
                self._state.registers["rbp"] = self._pop()
            case "add":
                self._put(operands[0], self._get(operands[0]).plus(self._get(operands[1])))
            case "sub":
                self._put(operands[0], self._get(operands[0]).plus(self._get(operands[1]), -1))
            case "inc":
                self._put(operands[0], self._get(operands[0]).plus(Linear(1)))
            case "dec":
                self._put(operands[0], self._get(operands[0]).plus(Linear(-1)))
            case "xor" | "pxor" | "xorps" if _same_register(operands):
                self._put(operands[0], Linear(0))
            case "shl" | "sal" if len(operands) == 2 and operands[1].type == x86.X86_OP_IMM:
                self._put(operands[0], self._get(operands[0]).times(1 << (operands[1].imm & 63)))
            case "imul" if len(operands) in (2, 3):
                self._multiply()
            case "and" if len(operands) == 2:
                self._mask()
            case _:
                self._other()

    def _multiply(self) -> None:
        left, right = self._get(self._operands[-2]), self._get(self._operands[-1])
        if right.is_constant:
            self._put(self._operands[0], left.times(right.constant))
        elif left.is_constant:
            self._put(self._operands[0], right.times(left.constant))
        else:
            self._put(self._operands[0], self._context.unknown("imul"))

    def _mask(self) -> None:
        left, right = self._get(self._operands[0]), self._get(self._operands[1])
        keeps = right.is_constant and right.constant in _KEEPING_MASKS
        self._put(self._operands[0], left if keeps else self._context.unknown("and"))

    def _other(self) -> None:
        """Anything else: its memory operands are read, what it writes is unknown."""
        for operand in self._operands:
            if operand.access & capstone.CS_AC_READ and operand.type == x86.X86_OP_MEM:
                self._get(operand)
        for operand in self._operands:
            if operand.access & capstone.CS_AC_WRITE:
                self._put(operand, self._context.unknown(self._instruction.mnemonic))
        for register in self._instruction.regs_write:
            name = self._instruction.reg_name(register)
            if name in _WHOLE:
                self._state.registers[_WHOLE[name]] = self._context.unknown(self._instruction.mnemonic)


def _same_register(operands: Any) -> bool:
    first, second = operands[0], operands[1]
    return bool(first.type == x86.X86_OP_REG and second.type == x86.X86_OP_REG and first.reg == second.reg)
