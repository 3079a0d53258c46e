"""An ELF file as the loader sees it: segments, pointers after relocation, function starts.

A stripped binary keeps what the dynamic loader and the unwinder need, and that is enough for us: program
headers, the dynamic section with its relocations, and .eh_frame_hdr, a sorted table of function starts
(LSB core specification, "The .eh_frame_hdr section").  Section headers are only a bonus: .symtab, .gnu_debugdata
and the .eh_frame of static programs cannot be found without them, everything else can.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

import numpy as np

from sqltrace.errors import NotAnImageError
from sqltrace.resolve.eh_frame import frames
from sqltrace.resolve.image import Addresses, Buffer, Image, Segment, SymbolTable, Words, open_image

_PT_LOAD, _PT_DYNAMIC, _PT_NOTE, _PT_GNU_EH_FRAME = 1, 2, 4, 0x6474E550
_DT_NEEDED_TABLES: Final = ((7, 8), (23, 2))
"""(DT_RELA, DT_RELASZ) and (DT_JMPREL, DT_PLTRELSZ)."""
_DT_STRTAB, _DT_SYMTAB, _DT_STRSZ = 5, 6, 10
_STT_FUNC: Final = 2
_SHT_NOBITS: Final = 8
_DEBUG_FILES: Final = Path("/usr/lib/debug/.build-id")
_MINI_DEBUG_LIMIT: Final = 64 << 20
_MINI_DEBUG_MEMORY: Final = 96 << 20
"""What .gnu_debugdata may unpack to, and what the decompressor may take (`xz -9` needs 65 MiB)."""


class _Machine(NamedTuple):
    """What the ELF supplement of a machine calls things."""

    arch: str
    relative: int
    """The relocation that writes base plus addend."""
    symbolic: tuple[int, ...]
    """ABS64, GLOB_DAT and JUMP_SLOT: the slot holds the address of a symbol."""


_MACHINES: Final[Mapping[int, _Machine]] = {
    62: _Machine("x86_64", 8, (1, 6, 7)),
    183: _Machine("arm64", 1027, (257, 1025, 1026)),
}
_OTHER_MACHINES: Final = {3: "i386", 40: "arm", 243: "riscv64"}

_SYMBOL: Final = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
_RELOCATION: Final = np.dtype([("offset", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])


@dataclass(frozen=True, slots=True)
class Section:
    """A section header's view of a stretch of the file."""

    kind: int
    address: int
    offset: int
    size: int
    link: int


class Elf(Image):
    """One little-endian ELF64 file for a machine of _MACHINES."""

    format: ClassVar[str] = "elf"

    def __init__(self, data: Buffer, path: str) -> None:
        super().__init__(data, path)
        self._machine = self._check_magic()
        self.arch = self._machine.arch
        kind, _ = self._unpack("<HH", 16)
        if kind not in (2, 3):
            raise NotAnImageError(f"{path} is an ELF file, but neither a program nor a shared library")
        self.position_independent = kind == 3
        self._section_header = self._unpack("<Q", 40)[0]
        self._section_count, self._section_names = self._unpack("<HH", 60)
        self._dynamic: tuple[int, int] | None = None
        self._eh_frame_hdr: tuple[int, int] | None = None
        self._notes: list[tuple[int, int]] = []
        self._read_program_headers()
        self._check_segments()
        if not self.segments:
            raise NotAnImageError(f"{path} is an ELF file without anything to load")

    # Headers

    def _check_magic(self) -> _Machine:
        magic = bytes(self.data[:6])
        if magic[:4] != b"\x7fELF":
            raise NotAnImageError(f"{self.path} is not an ELF file")
        if self.size < 64:
            raise NotAnImageError(f"{self.path} is cut off within the ELF header")
        machine = self._unpack("<H" if magic[5] == 1 else ">H", 18)[0]
        if magic[4:6] != b"\x02\x01" or machine not in _MACHINES:
            name = _OTHER_MACHINES.get(machine, f"machine {machine}")
            raise NotAnImageError(
                f"{self.path} is an ELF file for {name}, and only x86-64 and arm64 can be resolved so far"
            )
        return _MACHINES[machine]

    def _read_program_headers(self) -> None:
        table = self._unpack("<Q", 32)[0]
        entry_size, count = self._unpack("<HH", 54)
        if count and entry_size < 56:
            raise NotAnImageError(f"{self.path} is damaged: program headers of {entry_size} bytes")
        for i in range(count):
            if table > self.size:
                raise NotAnImageError(f"{self.path} is damaged: its program headers lie outside of it")
            kind, flags, offset, address, _, size, _, _ = self._unpack("<IIQQQQQQ", table + i * entry_size)
            if kind not in (_PT_LOAD, _PT_DYNAMIC, _PT_NOTE, _PT_GNU_EH_FRAME) or not size:
                continue
            if offset + size > self.size or address + size >= 1 << 63:
                raise NotAnImageError(f"{self.path} is cut off or damaged: a segment lies outside of it")
            if kind == _PT_LOAD:
                self.segments.append(Segment(address, offset, size, bool(flags & 2), bool(flags & 1)))
            elif kind == _PT_DYNAMIC:
                self._dynamic = (offset, size)
            elif kind == _PT_NOTE:
                self._notes.append((offset, size))
            else:
                self._eh_frame_hdr = (address, size)

    @cached_property
    def build_id(self) -> str | None:
        """The linker's build-id in hex (note NT_GNU_BUILD_ID), if there is one."""
        for start, size in self._notes:
            offset, end = start, start + size
            while offset + 12 <= end:
                name_size, size_, kind = self._unpack("<III", offset)
                name_end = offset + 12 + (name_size + 3) // 4 * 4
                note_end = name_end + (size_ + 3) // 4 * 4
                if note_end > end:
                    break
                if kind == 3 and self.data[offset + 12 : offset + 16] == b"GNU\0" and 8 <= size_ <= 64:
                    return bytes(self.data[name_end : name_end + size_]).hex()
                offset = note_end
        return None

    @cached_property
    def sections(self) -> dict[str, Section]:
        """Section headers by name; empty when there are none or they are damaged."""
        try:
            headers = [self._unpack("<IIQQQQIIQQ", self._section_header + 64 * i) for i in range(self._section_count)]
            names = headers[self._section_names]
        except (NotAnImageError, IndexError):
            return {}
        found = {}
        for name, kind, _, address, offset, size, link, _, _, _ in headers:
            if kind != 8 and offset + size > self.size:
                continue
            start = names[4] + name
            end = self.data.find(b"\0", start, start + 256)
            if 0 <= start < end:
                title = bytes(self.data[start:end]).decode("latin-1")
                found[title] = Section(kind, address, offset, size, link)
        return found

    # Pointers

    @cached_property
    def dynamic(self) -> dict[int, int]:
        """The dynamic section, tag to value (the first of each)."""
        entries: dict[int, int] = {}
        if self._dynamic is not None:
            offset, size = self._dynamic
            for tag, value in np.frombuffer(self.data, "<i8", size // 16 * 2, offset).reshape(-1, 2).tolist():
                if tag == 0:
                    break
                entries.setdefault(tag, value)
        return entries

    @cached_property
    def _relocations(self) -> tuple[Addresses, Words]:
        """Slots that the loader fills, sorted, and the virtual addresses it puts there.

        RELR needs no decoding: its words hold the address in place already.
        """
        slots, values = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
        for table_tag, size_tag in _DT_NEEDED_TABLES:
            if table_tag not in self.dynamic or size_tag not in self.dynamic:
                continue
            table = self.table_at(self.dynamic[table_tag], _RELOCATION, self.dynamic[size_tag])
            relative = table[table["type"] == self._machine.relative]
            slots.append(relative["offset"])
            values.append(relative["addend"].view(np.uint64))
            symbolic = table[np.isin(table["type"], self._machine.symbolic)]
            if len(symbolic) and _DT_SYMTAB in self.dynamic:
                symbols = self.table_at(self.dynamic[_DT_SYMTAB], _SYMBOL, self.size)
                symbolic = symbolic[symbolic["symbol"] < len(symbols)]
                symbols = symbols[symbolic["symbol"]]
                # Neither what another library defines nor an IFUNC, whose value is its resolver.
                defined = (symbols["section"] != 0) & (symbols["info"] & 15 != 10)
                slots.append(symbolic["offset"][defined])
                values.append(symbols["value"][defined] + symbolic["addend"][defined].view(np.uint64))
        slot, value = np.concatenate(slots), np.concatenate(values)
        inside = (slot < np.uint64(1 << 63)) & (value < np.uint64(1 << 63))
        addresses: Addresses = slot[inside].astype(np.int64)
        order = np.argsort(addresses, kind="stable")
        return addresses[order], value[inside][order]

    @cached_property
    def constants(self) -> list[Segment]:
        """Where string literals lie: in segments of their own, or, as old linkers did it, anywhere."""
        return [s for s in self.segments if not s.executable and not s.writable] or self.segments

    def _pointer_ranges(self) -> Iterator[tuple[int, int, int]]:
        """Yield (address, offset, size) of what may hold tables of pointers."""
        for segment in self.segments:
            if not segment.executable:
                # In a position-independent file each pointer is relocated, thus writable at first.
                if segment.writable or not self.position_independent:
                    yield segment.address, segment.offset, segment.size
            elif not self.position_independent or segment.writable:
                # An old layout: constants lie in the code segment.
                inside = [
                    s
                    for name, s in self.sections.items()
                    if name.startswith(".rodata") and segment.address <= s.address and s.address + s.size <= segment.end
                ]
                for section in inside:
                    yield section.address, section.offset, section.size
                if not self.sections:
                    yield segment.address, segment.offset, segment.size

    # Symbols

    def symbol_tables(self) -> Iterator[SymbolTable]:
        """Yield .dynsym and .symtab."""
        for title, strings_name in ((".dynsym", ".dynstr"), (".symtab", ".strtab")):
            table, strings = self.sections.get(title), self.sections.get(strings_name)
            if table is None or strings is None or _SHT_NOBITS in (table.kind, strings.kind):
                continue
            entries = np.frombuffer(self.data, _SYMBOL, table.size // _SYMBOL.itemsize, table.offset)
            yield _defined(title, entries, bytes(self.data[strings.offset : strings.offset + strings.size]))
        if not self.sections and _DT_STRTAB in self.dynamic and _DT_SYMTAB in self.dynamic:
            # sstrip removes the section headers; linkers put .dynstr right behind .dynsym.
            size = self.dynamic[_DT_STRTAB] - self.dynamic[_DT_SYMTAB]
            if 0 < size < self.size:
                strings_size = min(max(self.dynamic.get(_DT_STRSZ, 0), 0), self.size)
                names = self.read(self.dynamic[_DT_STRTAB], strings_size)
                yield _defined(".dynsym", self.table_at(self.dynamic[_DT_SYMTAB], _SYMBOL, size), names)

    def companions(self) -> Iterator[tuple[str, Image]]:
        """Yield MiniDebugInfo and the debug file with the same build-id."""
        section = self.sections.get(".gnu_debugdata")
        if section is not None and section.kind != _SHT_NOBITS:
            decompressor = lzma.LZMADecompressor(memlimit=_MINI_DEBUG_MEMORY)
            try:
                data = decompressor.decompress(
                    bytes(self.data[section.offset : section.offset + section.size]), _MINI_DEBUG_LIMIT
                )
                yield ".gnu_debugdata", Elf(data, self.path)
            except (lzma.LZMAError, NotAnImageError, EOFError):
                pass
        if self.build_id is not None:
            path = _DEBUG_FILES / self.build_id[:2] / f"{self.build_id[2:]}.debug"
            try:
                companion = Elf(open_image(path), str(path))
            except NotAnImageError:
                return
            if companion.build_id == self.build_id:
                yield str(path), companion

    # Functions

    @cached_property
    def functions(self) -> tuple[Addresses, Addresses]:
        """Sorted starts and ends of functions and of their cold parts; may cover only some of the code."""
        none = (np.zeros(0, np.int64), np.zeros(0, np.int64))
        if self._eh_frame_hdr is None:
            section = self.sections.get(".eh_frame")
            if section is None or section.kind == _SHT_NOBITS or section.address >= 1 << 62:
                return none
            starts, sizes = frames(self.data, section.address, section.offset, section.size)
            return starts, np.minimum(starts + sizes, np.append(starts[1:], np.iinfo(np.int64).max))
        address, size = self._eh_frame_hdr
        header = self.read(address, 12)
        # Version 1, the count as udata4, the table as datarel|sdata4: what every linker writes.
        if len(header) < 12 or header[0] != 1 or header[2:4] != b"\x03\x3b":
            return none
        pair = np.dtype([("start", "<i4"), ("fde", "<i4")])
        count = int.from_bytes(header[8:12], "little")
        table = self.table_at(address + 12, pair, min(count * 8, max(size - 12, 0)))
        starts = table["start"].astype(np.int64) + address
        entries = table["fde"].astype(np.int64) + address
        order = np.argsort(starts, kind="stable")
        starts, entries = starts[order], entries[order]
        if not len(starts):
            return none
        following = np.append(starts[1:], np.iinfo(np.int64).max)
        return starts, np.minimum(starts + self._fde_sizes(starts, entries, following), following)

    def _fde_sizes(self, starts: Addresses, entries: Addresses, following: Addresses) -> Addresses:
        """Return the size that each frame description gives, up to the next start where it cannot be read."""
        sizes = following - starts
        sizes[-1] = 1
        for segment in self.segments:
            here = np.flatnonzero((entries >= segment.address) & (entries + 16 <= segment.end))
            if not len(here):
                continue
            offsets = entries[here] - segment.address + segment.offset
            begin = self._int32_at(offsets + 8) + entries[here] + 8
            # pcrel|sdata4 is the rule; with any other encoding the start would not come out right.
            good = begin == starts[here]
            sizes[here[good]] = self._int32_at(offsets[good] + 12).clip(1)
        return sizes

    def _int32_at(self, offsets: Addresses) -> Addresses:
        value = np.zeros(len(offsets), np.uint32)
        for i in range(4):
            value |= self.array[offsets + i].astype(np.uint32) << np.uint32(8 * i)
        return value.view(np.int32).astype(np.int64)


def _defined(title: str, entries: np.ndarray[tuple[int], np.dtype[np.void]], names: bytes) -> SymbolTable:
    """Return the functions that are defined in this file: neither called elsewhere nor data."""
    wanted = (entries["section"] != 0) & (entries["info"] & 15 == _STT_FUNC) & (entries["value"] != 0)
    found = entries[wanted & (entries["value"] < 1 << 63)]
    return SymbolTable(title, found["name"].astype(np.int64), found["value"].astype(np.int64), b"\0" + names)
