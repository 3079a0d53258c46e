"""arm64 for the symbolic executor: what each instruction does to registers, memory and control.

As in x86_64.py only what compilers emit in accessors is modelled, and registers are whole: w0 stands for x0, d0 for
q0.  The hints of branch target identification and pointer authentication (bti, paciasp, retaa) do nothing here.
"""

from __future__ import annotations

from typing import Any, Final

import capstone
from capstone import arm64

from sqltrace.resolve.image import Image
from sqltrace.resolve.symbolic import NEXT, Context, Linear, Outcome, State


def _register_names() -> dict[str, str]:
    names = {f"w{i}": f"x{i}" for i in range(31)} | {f"x{i}": f"x{i}" for i in range(31)}
    names |= {f"{kind}{i}": f"q{i}" for kind in "bhsdqv" for i in range(32)}
    return names | {"fp": "x29", "lr": "x30", "wsp": "sp", "sp": "sp"}


_WHOLE: Final = _register_names()
_ZERO: Final = ("xzr", "wzr")
_NOTHING: Final = frozenset(
    ("nop", "bti", "hint", "paciasp", "pacibsp", "autiasp", "autibsp", "xpaclri", "prfm", "prfum", "dmb", "dsb", "isb")
)
_MOVES: Final = frozenset(("mov", "movz", "fmov", "sxtw", "sxth", "sxtb", "uxtw", "uxth", "uxtb"))
_RETURNS: Final = frozenset(("ret", "retaa", "retab"))
_COMPARES: Final = frozenset(("cmp", "cmn", "tst", "ccmp", "ccmn", "fcmp", "fcmpe"))
_LOADS: Final = frozenset(
    f"{kind}{width}" for kind in ("ldr", "ldur") for width in ("", "b", "h", "sb", "sh", "sw")
) | {"ldar", "ldarb", "ldarh", "ldapr", "ldaprb", "ldaprh"}
_STORES: Final = frozenset(f"{kind}{width}" for kind in ("str", "stur", "stlr") for width in ("", "b", "h"))
_SIZES: Final = {"b": 1, "h": 2, "w": 4, "s": 4, "x": 8, "d": 8, "q": 16}
_KEEPING_MASKS: Final = frozenset((-1, 0x3F, 0xFF, 0xFFFF, 0xFFFFFFFF))
_WINDOW: Final = 64


def _width(register: str) -> int:
    """Return how many bytes the register has; x29, x30 and x31 go by other names."""
    return 8 if register in ("fp", "lr", "sp") else _SIZES.get(register[0], 8)


def stub_target(image: Image, address: int) -> int | None:
    """Return where the linkage stub at `address` leads within this file; None if it is no such stub.

    ELF: `[bti c] adrp x16, page; ldr x17, [x16, n]; add x16, x16, n; br x17` (without the add in Mach-O, where
    the register is x16 both times) through a slot that the loader fills in.
    """
    data = image.read(address, 20)
    words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data) - 3, 4)]
    if words and words[0] == 0xD503245F:  # bti c
        words, address = words[1:], address + 4
    if len(words) < 3 or words[0] & 0x9F00001F != 0x90000010 or words[1] & 0xFFC003FE != 0xF9400210:
        return None
    if not any(word & 0xFFFFFFDF == 0xD61F0200 for word in words[2:4]):  # br x16, br x17
        return None
    pages = (words[0] >> 29 & 3) | (words[0] >> 5 & 0x7FFFF) << 2
    pages -= (pages >> 20) << 21
    return image.relocated((address & ~0xFFF) + (pages << 12) + 8 * (words[1] >> 10 & 0xFFF))


class Arm64:
    """The machine for AAPCS64."""

    arguments: tuple[str, ...] = tuple(f"x{i}" for i in range(8))
    stack_pointer = "sp"
    result = "x0"
    volatile: tuple[str, ...] = tuple(f"x{i}" for i in range(19))

    def __init__(self, image: Image) -> None:
        self._image = image
        self._decoder = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
        self._decoder.detail = True
        self._decoded: dict[int, Any] = {}

    def instruction(self, pc: int) -> Any:
        """Return capstone's instruction at `pc`, None where there is none."""
        found = self._decoded.get(pc)
        if found is None and pc % 4 == 0 and self._image.is_code(pc):
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
        return _Step(instruction, state, context).execute(), 4


class _Step:
    """One instruction on one path."""

    def __init__(self, instruction: Any, state: State, context: Context) -> None:
        self._instruction = instruction
        self._operands = instruction.operands
        self._state = state
        self._context = context
        self._pc: int = instruction.address

    # Operands

    def _name(self, operand: Any) -> str:
        return str(self._instruction.reg_name(operand.reg))

    def _register(self, name: str) -> Linear:
        if name in _ZERO:
            return Linear(0)
        name = _WHOLE.get(name, name)
        if name not in self._state.registers:
            self._state.registers[name] = self._context.unknown("register")
        return self._state.registers[name]

    def _set(self, name: str, value: Linear) -> None:
        if name not in _ZERO:
            self._state.registers[_WHOLE.get(name, name)] = value

    def _put(self, operand: Any, value: Linear) -> None:
        name = self._name(operand)
        if name[0] == "w" and value.is_constant and 1 << 31 <= value.constant < 1 << 32:
            value = Linear(value.constant - (1 << 32))
        self._set(name, value)

    def _shifted(self, value: Linear, operand: Any) -> Linear:
        if operand.shift.type == arm64.ARM64_SFT_INVALID or not operand.shift.value:
            return value
        if operand.shift.type == arm64.ARM64_SFT_LSL:
            return value.times(1 << operand.shift.value)
        return self._context.unknown("shift")

    def _get(self, operand: Any) -> Linear:
        if operand.type == arm64.ARM64_OP_IMM:
            return self._shifted(Linear(operand.imm), operand)
        if operand.type == arm64.ARM64_OP_REG:
            return self._shifted(self._register(self._name(operand)), operand)
        return self._context.unknown("operand")

    def _memory(self, at: int) -> Linear:
        """Return the address of the memory operand number `at`, and let it change its base register."""
        operand = self._operands[at]
        base = self._instruction.reg_name(operand.mem.base)
        address = self._register(base)
        if len(self._operands) > at + 1:  # post-index: the change comes after
            self._set(base, address.plus(self._get(self._operands[at + 1])))
            return address
        address = address.plus(Linear(operand.mem.disp))
        if operand.mem.index:
            index = self._register(self._instruction.reg_name(operand.mem.index))
            address = address.plus(index, 1 << operand.shift.value)
        if self._instruction.writeback:
            self._set(base, address)
        return address

    def _size(self, name: str) -> int:
        """Return how many bytes a load or store of this name moves to or from each register."""
        if name.endswith("sw"):
            return 4
        if name not in ("ldr", "ldur", "ldar", "ldapr", "str", "stur", "stlr") and name[-1] in "bh":
            return _SIZES[name[-1]]
        return _width(self._name(self._operands[0]))

    # Execution

    def execute(self) -> Outcome:
        """Change the state and return how control goes on."""
        name = self._instruction.mnemonic
        operands = self._operands
        match name:
            case _ if name in _NOTHING:
                return NEXT
            case _ if name in _RETURNS:
                return Outcome("return")
            case "b":
                return Outcome("jump", self._direct(operands[0].imm))
            case "bl":
                return Outcome("call", self._direct(operands[0].imm))
            case _ if name.startswith("b."):
                return Outcome("branch", int(operands[0].imm))
            case "cbz" | "cbnz":
                self._context.compare(self._get(operands[0]), Linear(0), _width(self._name(operands[0])), self._pc)
                return Outcome("branch", int(operands[1].imm))
            case "tbz" | "tbnz":
                return Outcome("branch", int(operands[2].imm))
            case "br" | "braa" | "brab" | "braaz" | "brabz":
                return Outcome("jump", self._indirect())
            case "blr" | "blraa" | "blrab" | "blraaz" | "blrabz":
                return Outcome("call", self._indirect())
            case "csel" | "fcsel":
                first, second = self._get(operands[1]), self._get(operands[2])
                target = _WHOLE.get(self._name(operands[0]), self._name(operands[0]))
                self._set(target, first)
                return Outcome("select", register=target, alternative=second)
            case "csinc" | "csinv" | "csneg":
                target = _WHOLE.get(self._name(operands[0]), self._name(operands[0]))
                self._set(target, self._get(operands[1]))
                return Outcome("select", register=target, alternative=self._context.unknown(name))
            case "brk" | "udf" | "hlt":
                return Outcome("end")
        self._compute(name)
        return NEXT

    def _direct(self, target: int) -> int:
        stub = stub_target(self._context.image, target)
        return target if stub is None else stub

    def _indirect(self) -> int | None:
        value = self._get(self._operands[0])
        return value.constant if value.is_constant else None

    def _compute(self, name: str) -> None:
        operands = self._operands
        match name:
            case _ if name in _MOVES and len(operands) == 2:
                self._put(operands[0], self._get(operands[1]))
            case "movk":
                self._insert(operands[1].imm, operands[1].shift.value)
            case "movn":
                self._put(operands[0], Linear(~(operands[1].imm << operands[1].shift.value)))
            case "adrp" | "adr":
                self._put(operands[0], Linear(operands[1].imm))
            case "add" | "adds" if len(operands) == 3:
                self._put(operands[0], self._get(operands[1]).plus(self._get(operands[2])))
            case "sub" | "subs" if len(operands) == 3:
                self._put(operands[0], self._get(operands[1]).plus(self._get(operands[2]), -1))
            case _ if name in _COMPARES:
                self._compare(name)
            case "ldp" | "ldnp" | "ldpsw":
                size = self._size(name)
                address = self._memory(2)
                for i in (0, 1):
                    at = address.plus(Linear(i * size))
                    self._put(operands[i], self._context.load(self._state, at, size, self._pc))
            case "stp" | "stnp":
                size = self._size(name)
                values = [self._get(operands[0]), self._get(operands[1])]
                address = self._memory(2)
                for i, value in enumerate(values):
                    self._context.store(self._state, address.plus(Linear(i * size)), value, size, self._pc)
            case _ if name in _LOADS and operands[1].type in (arm64.ARM64_OP_MEM, arm64.ARM64_OP_IMM):
                memory = operands[1].type == arm64.ARM64_OP_MEM
                address = self._memory(1) if memory else Linear(operands[1].imm)
                self._put(operands[0], self._context.load(self._state, address, self._size(name), self._pc))
            case _ if name in _STORES and operands[1].type == arm64.ARM64_OP_MEM:
                value = self._get(operands[0])
                self._context.store(self._state, self._memory(1), value, self._size(name), self._pc)
            case "lsl" if operands[2].type == arm64.ARM64_OP_IMM:
                self._put(operands[0], self._get(operands[1]).times(1 << operands[2].imm))
            case "ubfiz" | "sbfiz":
                self._put(operands[0], self._get(operands[1]).times(1 << operands[2].imm))
            case "mul" | "smull" | "umull" | "madd" | "smaddl" | "umaddl":
                self._multiply()
            case "and" if operands[2].type == arm64.ARM64_OP_IMM and operands[2].imm in _KEEPING_MASKS:
                self._put(operands[0], self._get(operands[1]))
            case _:
                self._other()

    def _insert(self, bits: int, shift: int) -> None:
        value = self._get(self._operands[0])
        if value.is_constant:
            self._put(self._operands[0], Linear(value.constant & ~(0xFFFF << shift) | bits << shift))
        else:
            self._put(self._operands[0], self._context.unknown("movk"))

    def _compare(self, name: str) -> None:
        left, right = self._get(self._operands[0]), self._get(self._operands[1])
        if name in ("cmn", "ccmn"):
            right = right.times(-1)
        self._context.compare(left, right, _width(self._name(self._operands[0])), self._pc)

    def _multiply(self) -> None:
        left, right = self._get(self._operands[1]), self._get(self._operands[2])
        addend = self._get(self._operands[3]) if len(self._operands) > 3 else Linear(0)
        if right.is_constant:
            self._put(self._operands[0], addend.plus(left.times(right.constant)))
        elif left.is_constant:
            self._put(self._operands[0], addend.plus(right.times(left.constant)))
        else:
            self._put(self._operands[0], self._context.unknown("mul"))

    def _other(self) -> None:
        """Anything else: what it writes is unknown."""
        kind = self._instruction.mnemonic
        for operand in self._operands:
            if operand.type == arm64.ARM64_OP_REG and operand.access & capstone.CS_AC_WRITE:
                self._set(self._name(operand), self._context.unknown(kind))
        for register in self._instruction.regs_write:
            name = self._instruction.reg_name(register)
            if name in _WHOLE:
                self._set(name, self._context.unknown(kind))
