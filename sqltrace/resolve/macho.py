"""A Mach-O file as dyld sees it: segments, pointers after rebasing, function starts.

From Apple's headers mach-o/loader.h, nlist.h, fat.h and fixup-chains.h.  What a stripped file keeps: load commands,
LC_FUNCTION_STARTS, the exports, and where pointers are that move with the image, as rebase opcodes (LC_DYLD_INFO)
or as chains through the pointers themselves (LC_DYLD_CHAINED_FIXUPS).

Own parsing with numpy: LIEF 1.0 makes an object per symbol, pointer and function, which took 0.55 s and 190 to
310 MB for Bun (85 MiB, 110000 pointers, 92000 functions) where this takes 0.3 s and 5 MB; macholib reads the load
commands only, which are the small part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Final

import numpy as np

from sqltrace.errors import NotAnImageError
from sqltrace.resolve.image import Addresses, Buffer, Image, Segment, SymbolTable, Words

THIN_MAGIC: Final = b"\xcf\xfa\xed\xfe"
OTHER_MAGIC: Final = (b"\xce\xfa\xed\xfe", b"\xfe\xed\xfa\xce", b"\xfe\xed\xfa\xcf")
"""32-bit and big-endian files."""
UNIVERSAL_MAGIC: Final = (b"\xca\xfe\xba\xbe", b"\xca\xfe\xba\xbf")
_MOST_SLICES: Final = 16
"""A Java class file begins as a universal file does; its version, 45 or more, stands where the count is here."""

_ARCHITECTURES: Final = {0x01000007: "x86_64", 0x0100000C: "arm64"}
_MH_EXECUTE, _MH_DYLIB, _MH_BUNDLE = 2, 6, 8
_MH_PIE: Final = 0x200000
_LC_SYMTAB, _LC_SEGMENT_64, _LC_UUID, _LC_FUNCTION_STARTS, _LC_ENCRYPTION_INFO_64 = 0x2, 0x19, 0x1B, 0x26, 0x2C
_LC_DYLD_INFO, _LC_DYLD_INFO_ONLY = 0x22, 0x80000022
_LC_DYLD_EXPORTS_TRIE, _LC_DYLD_CHAINED_FIXUPS = 0x80000033, 0x80000034
_LINKEDIT_DATA: Final = (_LC_FUNCTION_STARTS, _LC_DYLD_EXPORTS_TRIE, _LC_DYLD_CHAINED_FIXUPS)
_MOST_COMMANDS: Final = 4096

_S_CSTRING_LITERALS: Final = 2
_S_INSTRUCTIONS: Final = 0x80000400
"""S_ATTR_PURE_INSTRUCTIONS or S_ATTR_SOME_INSTRUCTIONS."""
_S_ZEROFILL: Final = (1, 12, 18)
"""S_ZEROFILL, S_GB_ZEROFILL and S_THREAD_LOCAL_ZEROFILL: nothing of these is in the file."""

_NLIST: Final = np.dtype([("name", "<u4"), ("type", "u1"), ("section", "u1"), ("description", "<u2"), ("value", "<u8")])
_EXPORT_REEXPORT: Final = 8
_LONGEST_NAME: Final = 512
_MOST_NODES: Final = 1 << 18
"""Of the exports; the names are in LC_SYMTAB, too."""
_MOST_OPCODES: Final = 4 << 20
"""Bytes of rebase opcodes; real files have a tenth of it."""

_PTR_64, _PTR_64_OFFSET = 2, 6
_PTR_ARM64E: Final = (1, 9, 12)
"""DYLD_CHAINED_PTR_ARM64E and its USERLAND forms, whose targets are offsets."""
_CHAIN_START_NONE, _CHAIN_START_MULTI = 0xFFFF, 0x8000


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    address: int
    offset: int
    size: int
    flags: int


def slices(data: Buffer, path: str) -> list[tuple[int, int]]:
    """Return (offset, size) of each file within a universal one.  Raises NotAnImageError."""
    count = int.from_bytes(data[4:8], "big")
    if not 0 < count <= _MOST_SLICES:
        raise NotAnImageError(f"{path} is neither an ELF nor a Mach-O file")
    wide = data[:4] == UNIVERSAL_MAGIC[1]
    found = []
    for i in range(count):
        if wide:
            entry = data[8 + 32 * i : 40 + 32 * i]
            offset, size = int.from_bytes(entry[8:16], "big"), int.from_bytes(entry[16:24], "big")
        else:
            entry = data[8 + 20 * i : 28 + 20 * i]
            offset, size = int.from_bytes(entry[8:12], "big"), int.from_bytes(entry[12:16], "big")
        if not size or offset + size > len(data):
            raise NotAnImageError(f"{path} is cut off or damaged: a part for one architecture lies outside of it")
        found.append((offset, size))
    return found


class MachO(Image):
    """One 64-bit Mach-O file, perhaps a slice of a universal one: `size` bytes from `start`."""

    format: ClassVar[str] = "macho"

    def __init__(self, data: Buffer, path: str, start: int = 0, size: int | None = None) -> None:
        super().__init__(data, path)
        self._start = start
        self._end = len(data) if size is None else start + size
        self._base = 0
        self._sections: list[_Section] = []
        self._all_segments: list[tuple[int, int]] = []
        self._tables: dict[int, tuple[int, int]] = {}
        self._info: tuple[int, ...] | None = None
        self._symbols: tuple[int, ...] | None = None
        self._uuid: bytes | None = None
        self._read_header()
        self._check_segments()
        if not self.segments:
            raise NotAnImageError(f"{path} is a Mach-O file without anything to load")
        # Strings lie in the same segment as the code.
        inside = [s for s in self._sections if s.flags & _S_INSTRUCTIONS]
        if inside:
            self.code = [Segment(s.address, s.offset, s.size, writable=False, executable=True) for s in inside]

    # Headers

    def _read_header(self) -> None:
        if bytes(self.data[self._start : self._start + 4]) != THIN_MAGIC:
            raise NotAnImageError(f"{self.path} is not a 64-bit little-endian Mach-O file")
        if self._end - self._start < 32:
            raise NotAnImageError(f"{self.path} is cut off within the Mach-O header")
        cpu, _, kind, count, size, flags = self._unpack("<IIIIII", self._start + 4)
        if cpu not in _ARCHITECTURES:
            raise NotAnImageError(
                f"{self.path} is a Mach-O file for machine {cpu:#x}, and only x86-64 and arm64 can be resolved so far"
            )
        self.arch = _ARCHITECTURES[cpu]
        if kind not in (_MH_EXECUTE, _MH_DYLIB, _MH_BUNDLE):
            raise NotAnImageError(f"{self.path} is a Mach-O file, but neither a program nor a library")
        self.position_independent = kind != _MH_EXECUTE or bool(flags & _MH_PIE)
        at, end = self._start + 32, min(self._start + 32 + size, self._end)
        for _ in range(min(count, _MOST_COMMANDS)):
            if at + 8 > end:
                raise NotAnImageError(f"{self.path} is cut off or damaged: its load commands end too early")
            command, length = self._unpack("<II", at)
            if length < 8 or at + length > end:
                raise NotAnImageError(f"{self.path} is damaged: a load command of {length} bytes")
            self._read_command(command, at, length)
            at += length

    def _read_command(self, command: int, at: int, length: int) -> None:
        if command == _LC_SEGMENT_64 and length >= 72:
            self._read_segment(at, length)
        elif command == _LC_UUID and length >= 24:
            self._uuid = bytes(self.data[at + 8 : at + 24])
        elif command == _LC_SYMTAB and length >= 24:
            self._symbols = self._unpack("<IIII", at + 8)
        elif command in (_LC_DYLD_INFO, _LC_DYLD_INFO_ONLY) and length >= 48:
            self._info = self._unpack("<10I", at + 8)
        elif command in _LINKEDIT_DATA and length >= 16:
            offset, size = self._unpack("<II", at + 8)
            self._tables[command] = (offset, size)
        elif command == _LC_ENCRYPTION_INFO_64 and length >= 20 and self._unpack("<I", at + 16)[0]:
            raise NotAnImageError(f"{self.path} is encrypted")

    def _read_segment(self, at: int, length: int) -> None:
        name = bytes(self.data[at + 8 : at + 24]).rstrip(b"\0").decode("latin-1")
        address, memory, offset, size, _, protection, count, _ = self._unpack("<QQQQIIII", at + 24)
        if offset + size > self._end - self._start or address + max(size, memory) >= 1 << 63:
            raise NotAnImageError(f"{self.path} is cut off or damaged: a segment lies outside of it")
        self._all_segments.append((address, min(size, memory)))
        if name == "__TEXT":
            self._base = address
        if not min(size, memory) or name in ("__LINKEDIT", "__PAGEZERO"):
            return
        segment = Segment(address, self._start + offset, min(size, memory), bool(protection & 2), bool(protection & 4))
        self.segments.append(segment)
        for i in range(min(count, (length - 72) // 80)):
            self._read_section(at + 72 + 80 * i, segment)

    def _read_section(self, at: int, segment: Segment) -> None:
        name = bytes(self.data[at : at + 16]).rstrip(b"\0").decode("latin-1")
        address, size = self._unpack("<QQ", at + 32)
        flags = self._unpack("<I", at + 64)[0]
        # The segment says where in the file it is, so that the two cannot disagree.
        inside = segment.address <= address and address + size <= segment.end
        if inside and size and flags & 0xFF not in _S_ZEROFILL:
            offset = segment.offset + address - segment.address
            self._sections.append(_Section(name, address, offset, size, flags))

    def _part(self, offset: int, size: int) -> bytes:
        """Return a stretch of this file that a load command names, as much of it as there is."""
        start = min(self._start + offset, self._end)
        return bytes(self.data[start : min(start + size, self._end)])

    @property
    def build_id(self) -> str | None:
        """The linker's UUID in hex."""
        return self._uuid.hex() if self._uuid is not None and any(self._uuid) else None

    @cached_property
    def constants(self) -> list[Segment]:
        """Where string literals lie."""
        return [
            Segment(s.address, s.offset, s.size, writable=False, executable=False)
            for s in self._sections
            if s.flags & 0xFF == _S_CSTRING_LITERALS or s.name in ("__const", "__cstring")
        ] or self.segments

    # Pointers

    def _pointer_ranges(self) -> Iterator[tuple[int, int, int]]:
        for segment in self.segments:
            if segment.writable and not segment.executable:
                yield segment.address, segment.offset, segment.size

    @cached_property
    def _relocations(self) -> tuple[Addresses, Words]:
        if _LC_DYLD_CHAINED_FIXUPS in self._tables:
            slots, values = self._chained(self._part(*self._tables[_LC_DYLD_CHAINED_FIXUPS]))
        elif self._info is not None:
            slots = self._rebased(self._part(self._info[0], min(self._info[1], _MOST_OPCODES)))
            values = self._words_at(slots)
        else:
            slots, values = np.zeros(0, np.int64), np.zeros(0, np.uint64)
        fits = values < 1 << 63
        order = np.argsort(slots[fits], kind="stable")
        return slots[fits][order], values[fits][order]

    def _words_at(self, addresses: Addresses) -> Words:
        """Return the 8 bytes at each address, which is a multiple of 4; zero where there are none."""
        words = np.zeros(len(addresses), np.uint64)
        for segment in self.segments:
            here = np.flatnonzero((addresses >= segment.address) & (addresses + 8 <= segment.end))
            halves = np.frombuffer(self.data, "<u4", segment.size // 4, segment.offset)
            index = (addresses[here] - segment.address) >> 2
            words[here] = halves[index] | halves[index + 1].astype(np.uint64) << np.uint64(32)
        return words

    def _rebased(self, opcodes: bytes) -> Addresses:
        """Return where the rebase opcodes say that pointers are."""
        found: list[Addresses] = []
        limit = self.size // 8
        segment, offset, at = (0, 0), 0, 0

        def add(count: int, step: int) -> int:
            """Note so many pointers, `step` bytes from one to the next; return the offset behind."""
            nonlocal limit
            fitting = max(0, min(count, (segment[1] - offset + step - 8) // step if step > 0 else 0, limit))
            limit -= fitting
            if fitting:
                found.append(segment[0] + offset + step * np.arange(fitting, dtype=np.int64))
            return min(offset + count * step, 1 << 62)

        while at < len(opcodes):
            opcode, immediate = opcodes[at] & 0xF0, opcodes[at] & 0x0F
            at += 1
            numbers = []
            # SET_SEGMENT_AND_OFFSET, ADD_ADDR and the DO_REBASE forms but the first have one or two numbers.
            for _ in range({0x20: 1, 0x30: 1, 0x60: 1, 0x70: 1, 0x80: 2}.get(opcode, 0)):
                number, at = _uleb(opcodes, at)
                numbers.append(number)
            match opcode:
                case 0x00:  # DONE
                    break
                case 0x20:
                    if immediate >= len(self._all_segments):
                        break
                    segment, offset = self._all_segments[immediate], numbers[0]
                case 0x30:
                    offset = (offset + numbers[0]) & ((1 << 64) - 1)
                case 0x40:
                    offset += 8 * immediate
                case 0x50:
                    offset = add(immediate, 8)
                case 0x60:
                    offset = add(numbers[0], 8)
                case 0x70:
                    offset = (add(1, 8) + numbers[0]) & ((1 << 64) - 1)
                case 0x80:
                    offset = add(numbers[0], 8 + numbers[1]) if numbers[1] < 1 << 40 else offset
        return np.concatenate([np.zeros(0, np.int64), *found])

    def _chained(self, fixups: bytes) -> tuple[Addresses, Words]:
        """Return the pointers on all chains, and what they lead to; imports are left out."""
        slots, values = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
        starts = _u32(fixups, 4)
        count = min(_u32(fixups, starts), len(self._all_segments))
        for i in range(count):
            info = _u32(fixups, starts + 4 + 4 * i)
            if not info:
                continue
            at = starts + info
            page_size, pointer_format = _u16(fixups, at + 4), _u16(fixups, at + 6)
            count_of_pages = min(_u16(fixups, at + 20), (len(fixups) - at - 22) // 2)
            if not page_size or count_of_pages < 1:
                continue
            first = np.frombuffer(fixups, "<u2", count_of_pages, at + 22)
            pages = np.flatnonzero((first != _CHAIN_START_NONE) & (first < _CHAIN_START_MULTI))
            address = self._all_segments[i][0] + pages * page_size + first[pages]
            found, targets = self._walk(address.astype(np.int64), page_size, pointer_format)
            slots.append(found)
            values.append(targets)
        return np.concatenate(slots), np.concatenate(values)

    def _walk(self, address: Addresses, page_size: int, pointer_format: int) -> tuple[Addresses, Words]:
        """Follow the chain of each page, all at once, to its end."""
        slots, values = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
        base = np.uint64(self._base)
        if pointer_format not in (_PTR_64, _PTR_64_OFFSET, *_PTR_ARM64E):
            return slots[0], values[0]
        for _ in range(page_size // 4):
            if not len(address):
                break
            word = self._words_at(address)
            if pointer_format in _PTR_ARM64E:
                bind, signed = (word >> np.uint64(62)) & np.uint64(1), word >> np.uint64(63)
                target = np.where(signed == 1, word & np.uint64(0xFFFFFFFF), word & np.uint64((1 << 43) - 1))
                target = np.where((signed == 1) | (pointer_format != _PTR_ARM64E[0]), target + base, target)
                step = ((word >> np.uint64(51)) & np.uint64(0x7FF)).astype(np.int64) * 8
            else:
                bind = word >> np.uint64(63)
                target = word & np.uint64((1 << 36) - 1)
                target = target + base if pointer_format == _PTR_64_OFFSET else target
                step = ((word >> np.uint64(51)) & np.uint64(0xFFF)).astype(np.int64) * 4
            slots.append(address[bind == 0])
            values.append(target[bind == 0])
            address = (address + step)[step > 0]
        return np.concatenate(slots), np.concatenate(values)

    # Functions and symbols

    @cached_property
    def functions(self) -> tuple[Addresses, Addresses]:
        """Sorted starts and ends of functions, from LC_FUNCTION_STARTS: each ends where the next begins."""
        deltas = _ulebs(np.frombuffer(self._part(*self._tables.get(_LC_FUNCTION_STARTS, (0, 0))), np.uint8))
        starts = np.unique(self._base + np.cumsum(deltas))
        starts = starts[self._in_code(starts)]
        ends = np.append(starts[1:], np.iinfo(np.int64).max)[: len(starts)]
        for section in self.code:
            here = (starts >= section.address) & (starts < section.end)
            ends[here] = np.minimum(ends[here], section.end)
        return starts, ends

    def _in_code(self, addresses: Addresses) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        inside = np.zeros(len(addresses), bool)
        for section in self.code:
            inside |= (addresses >= section.address) & (addresses < section.end)
        return inside

    def symbol_tables(self) -> Iterator[SymbolTable]:
        """Yield LC_SYMTAB and the exports."""
        if self._symbols is not None:
            offset, count, strings, strings_size = self._symbols
            data = self._part(offset, count * _NLIST.itemsize)
            entries = np.frombuffer(data, _NLIST, len(data) // _NLIST.itemsize)
            # Defined in a section, and no debugging entry.
            entries = entries[((entries["type"] & 0xEE) == 0x0E) & (entries["value"] < 1 << 63)]
            entries = entries[self._in_code(entries["value"].astype(np.int64))]
            names = b"\0" + self._part(strings, strings_size)
            yield SymbolTable("LC_SYMTAB", entries["name"].astype(np.int64), entries["value"].astype(np.int64), names)
        trie = self._tables.get(_LC_DYLD_EXPORTS_TRIE) or (self._info[8:10] if self._info is not None else (0, 0))
        found = list(self._exports(self._part(*trie)))
        names = b"\0" + b"".join(name + b"\0" for name, _ in found)
        lengths = [0, *(len(name) + 1 for name, _ in found)]
        offsets: Addresses = np.cumsum(lengths, dtype=np.int64)[:-1]
        yield SymbolTable("exports", offsets, np.array([a for _, a in found], np.int64), names)

    def _exports(self, trie: bytes) -> Iterator[tuple[bytes, int]]:
        """Yield name and address of SQLite's exported functions; each node of the trie is visited once."""
        pending, seen = [(0, b"")], {0}
        while pending:
            at, name = pending.pop()
            size, at = _uleb(trie, at)
            children = at + size
            if size:
                flags, at = _uleb(trie, at)
                offset, _ = _uleb(trie, at)
                address = self._base + offset
                if b"sqlite3" in name and not flags & _EXPORT_REEXPORT and self.is_code(address):
                    yield name, address
            if children >= len(trie):
                continue
            at = children + 1
            for _ in range(trie[children]):
                end = trie.find(b"\0", at, at + _LONGEST_NAME)
                if end < 0:
                    break
                node, following = _uleb(trie, end + 1)
                longer = name + trie[at:end]
                fits = node < len(trie) and len(longer) <= _LONGEST_NAME and len(seen) < _MOST_NODES
                if fits and node not in seen:
                    seen.add(node)
                    pending.append((node, longer))
                at = following

    def companions(self) -> Iterator[tuple[str, Image]]:
        """Yield nothing: a dSYM bundle is nowhere in particular."""
        return iter(())


def _u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "little")


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _uleb(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins at `at`, at most 64 bits of it, and where the next byte is."""
    value, shift = 0, 0
    while at < len(data):
        byte = data[at]
        at += 1
        if shift < 64:
            value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return value & ((1 << 64) - 1), at


def _ulebs(data: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> Addresses:
    """Return all numbers up to the first zero; those of more than five bytes end the list, too."""
    ends = np.flatnonzero(data < 0x80)
    starts = np.append(0, ends[:-1] + 1)[: len(ends)]
    lengths = ends - starts + 1
    values = np.zeros(len(ends), np.int64)
    for i in range(5):
        longer = lengths > i
        values[longer] |= (data[starts[longer] + i] & 0x7F).astype(np.int64) << (7 * i)
    bad: Sequence[int] = np.flatnonzero((values == 0) | (lengths > 5)).tolist()
    return values[: bad[0]] if bad else values
