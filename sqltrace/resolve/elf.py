"""An ELF file as the loader sees it: segments, pointers after relocation, function starts.

A stripped binary keeps what the dynamic loader and the unwinder need, and that is enough for us: program
headers, the dynamic section with its relocations, and .eh_frame_hdr, a sorted table of function starts
(LSB core specification, "The .eh_frame_hdr section").  Section headers are only a bonus: .symtab and
.gnu_debugdata cannot be found without them, everything else can.

Own parsing with numpy, because pyelftools makes one object per entry: 9 s for the first 400 kB of a section of
unwind data, where the table of all function starts takes 0.01 to 0.1 s here.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from sqltrace.errors import NotAnImageError

Buffer: TypeAlias = "bytes | mmap.mmap"
Bytes: TypeAlias = npt.NDArray[np.uint8]
Addresses: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Words: TypeAlias = npt.NDArray[np.uint64]

_MAPPED_SIZE: Final = 48 << 20
"""Files from this size on are mapped instead of read: reading 280 MiB takes 1.1 s from a cold cache.
A mapped file that is cut short meanwhile kills us (SIGBUS), so that smaller files are read."""

_COPY: Final = 4 << 20
_PAGE: Final = 4096
_LARGEST: Final = 4 << 30
"""More than this is not searched; the largest programs that were met have a tenth of it."""
_EM_X86_64: Final = 62
_MACHINES: Final = {3: "i386", 40: "arm", 183: "arm64", 243: "riscv64"}
_MACHO_MAGIC: Final = (b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xca\xfe\xba\xbe")

_PT_LOAD, _PT_DYNAMIC, _PT_NOTE, _PT_GNU_EH_FRAME = 1, 2, 4, 0x6474E550
_DT_NEEDED_TABLES: Final = ((7, 8), (23, 2))
"""(DT_RELA, DT_RELASZ) and (DT_JMPREL, DT_PLTRELSZ)."""
_DT_SYMTAB: Final = 6
_R_X86_64_RELATIVE: Final = 8
_R_X86_64_SYMBOLIC: Final = (1, 6, 7)
"""R_X86_64_64, GLOB_DAT and JUMP_SLOT: the slot holds the address of a symbol."""

SYMBOL: Final = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
_RELOCATION: Final = np.dtype([("offset", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])


@dataclass(frozen=True, slots=True)
class Segment:
    """A PT_LOAD: `size` bytes of the file at `offset`, mapped at `address`."""

    address: int
    offset: int
    size: int
    writable: bool
    executable: bool

    @property
    def end(self) -> int:
        """The first address behind the segment."""
        return self.address + self.size


@dataclass(frozen=True, slots=True)
class Section:
    """A section header's view of a stretch of the file."""

    kind: int
    address: int
    offset: int
    size: int
    link: int


@dataclass(frozen=True, slots=True)
class PointerTable:
    """Aligned 8-byte words, as they are after relocation, from `address` on."""

    address: int
    words: Words


def open_image(path: str | os.PathLike[str]) -> Buffer:
    """Return the content of a regular file, opened once: a file that is replaced meanwhile stays the same.

    Raises NotAnImageError when it cannot be read.
    """
    try:
        # A FIFO would block, a terminal would become ours.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise NotAnImageError(f"cannot read {os.fspath(path)}: {reason}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise NotAnImageError(f"{os.fspath(path)} is not a regular file")
        if status.st_size >= _MAPPED_SIZE:
            return mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
        with os.fdopen(os.dup(fd), "rb") as file:
            return file.read(_MAPPED_SIZE)
    except OSError as error:
        raise NotAnImageError(f"cannot read {os.fspath(path)}: {error.strerror}") from None
    finally:
        os.close(fd)


class Elf:
    """One ELF64 x86-64 file.  Raises NotAnImageError from the constructor, and nothing afterwards."""

    arch: Final = "x86_64"
    format: Final = "elf"

    def __init__(self, data: Buffer, path: str) -> None:
        self.data = data
        self.path = path
        self.size = len(data)
        self.array: Bytes = np.frombuffer(data, dtype=np.uint8)
        self._check_magic()
        kind, _ = self._unpack("<HH", 16)
        if kind not in (2, 3):
            raise NotAnImageError(f"{path} is an ELF file, but neither a program nor a shared library")
        self.position_independent = kind == 3
        self._section_header = self._unpack("<Q", 40)[0]
        self._section_count, self._section_names = self._unpack("<HH", 60)
        self.segments: list[Segment] = []
        self._dynamic: tuple[int, int] | None = None
        self._eh_frame_hdr: tuple[int, int] | None = None
        self._notes: list[tuple[int, int]] = []
        self._read_program_headers()
        # Segments that overlap again and again would make every search endless.
        if sum(s.size for s in self.segments) > min(2 * self.size + _PAGE, _LARGEST):
            raise NotAnImageError(f"{path} is damaged or too large: its segments add up to more than it holds")
        if not self.segments:
            raise NotAnImageError(f"{path} is an ELF file without anything to load")
        self.code = [s for s in self.segments if s.executable]

    # Headers

    def _check_magic(self) -> None:
        magic = bytes(self.data[:6])
        if magic[:4] in _MACHO_MAGIC:
            raise NotAnImageError(f"{self.path} is a Mach-O file, and only ELF files can be resolved so far")
        if magic[:4] != b"\x7fELF":
            raise NotAnImageError(f"{self.path} is not an ELF file")
        if self.size < 64:
            raise NotAnImageError(f"{self.path} is cut off within the ELF header")
        machine = self._unpack("<H" if magic[5] == 1 else ">H", 18)[0]
        if magic[4:6] != b"\x02\x01" or machine != _EM_X86_64:
            name = _MACHINES.get(machine, f"machine {machine}")
            raise NotAnImageError(f"{self.path} is an ELF file for {name}, and only x86-64 can be resolved so far")

    def _unpack(self, layout: str, offset: int) -> tuple[int, ...]:
        try:
            return struct.unpack_from(layout, self.data, offset)
        except (struct.error, OverflowError):
            raise NotAnImageError(f"{self.path} is damaged: it ends before byte {offset}") from None

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

    # Reading

    def offset_of(self, address: int) -> int | None:
        """Return where in the file the byte at `address` lies."""
        for segment in self.segments:
            if segment.address <= address < segment.end:
                return segment.offset + address - segment.address
        return None

    def address_of(self, offset: int) -> int | None:
        """Return the address that the byte at `offset` of the file has once loaded."""
        for segment in self.segments:
            if segment.offset <= offset < segment.offset + segment.size:
                return segment.address + offset - segment.offset
        return None

    def read(self, address: int, size: int) -> bytes:
        """Return up to `size` bytes from `address` on, empty when it is not in the file."""
        for segment in self.segments:
            if segment.address <= address < segment.end:
                start = segment.offset + address - segment.address
                return bytes(self.data[start : start + min(size, segment.end - address)])
        return b""

    def cstring(self, address: int, limit: int = 256) -> bytes | None:
        """Return the zero-terminated string at `address` if it ends within `limit` bytes."""
        data = self.read(address, limit)
        end = data.find(b"\0")
        return None if end < 0 else data[:end]

    def find_all(self, patterns: Collection[bytes], segments: Iterable[Segment]) -> Iterator[tuple[int, bytes]]:
        """Yield (address, pattern) wherever one of the patterns occurs in these segments.

        In copies of 4 MiB: mmap.find compares byte by byte, bytes.find is ten times as fast.
        """
        overlap = max(map(len, patterns), default=1) - 1
        for segment in segments:
            for start in range(0, segment.size, _COPY):
                at = segment.offset + start
                chunk = bytes(self.data[at : min(at + _COPY + overlap, segment.offset + segment.size)])
                for pattern in patterns:
                    found = chunk.find(pattern)
                    while 0 <= found < _COPY:
                        yield segment.address + start + found, pattern
                        found = chunk.find(pattern, found + 1)

    def search(self, pattern: re.Pattern[bytes]) -> Iterator[re.Match[bytes]]:
        """Yield the matches of a regular expression in what is loaded (not in what is merely appended)."""
        for segment in self.segments:
            yield from pattern.finditer(self.data, segment.offset, segment.offset + segment.size)

    def is_code(self, address: int) -> bool:
        """Whether `address` lies in an executable segment."""
        return any(s.address <= address < s.end for s in self.code)

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

    def table_at(self, address: int, dtype: np.dtype[np.void], size: int) -> npt.NDArray[np.void]:
        """Return `size` bytes at `address` as records, fewer where the segment ends."""
        for segment in self.segments:
            if segment.address <= address < segment.end:
                count = max(0, min(size, segment.end - address)) // dtype.itemsize
                return np.frombuffer(self.data, dtype, count, segment.offset + address - segment.address)
        return np.zeros(0, dtype)

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
            relative = table[table["type"] == _R_X86_64_RELATIVE]
            slots.append(relative["offset"])
            values.append(relative["addend"].view(np.uint64))
            symbolic = table[np.isin(table["type"], _R_X86_64_SYMBOLIC)]
            if len(symbolic) and _DT_SYMTAB in self.dynamic:
                symbols = self.table_at(self.dynamic[_DT_SYMTAB], SYMBOL, self.size)
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

    def relocated(self, slot: int) -> int | None:
        """Return the address that the loader writes to `slot`, None where it writes none."""
        slots, values = self._relocations
        i = int(np.searchsorted(slots, slot))
        return int(values[i]) if i < len(slots) and slots[i] == slot else None

    @cached_property
    def pointers(self) -> list[PointerTable]:
        """Every aligned word that may be part of a table of pointers, relocations applied."""
        slots, values = self._relocations
        tables = []
        for address, offset, size in self._pointer_ranges():
            pad = -address % 8
            count = (size - pad) // 8
            if count < 1:
                continue
            words = np.frombuffer(self.data, "<u8", count, offset + pad)
            start, end = np.searchsorted(slots, (address + pad, address + pad + 8 * count))
            if end > start:
                words = words.copy()
                index = slots[start:end] - (address + pad)
                aligned = index % 8 == 0
                words[index[aligned] // 8] = values[start:end][aligned]
            tables.append(PointerTable(address + pad, words))
        return tables

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

    # Functions

    @cached_property
    def functions(self) -> tuple[Addresses, Addresses]:
        """Sorted starts and ends of functions and of their cold parts; may cover only some of the code."""
        none = (np.zeros(0, np.int64), np.zeros(0, np.int64))
        if self._eh_frame_hdr is None:
            return none
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

    def unwind_covers(self, address: int) -> bool:
        """Whether unwind data says which function `address` belongs to."""
        starts, ends = self.functions
        i = int(np.searchsorted(starts, address, "right")) - 1
        return i >= 0 and address < int(ends[i])

    def contradicts_start(self, address: int) -> bool:
        """Whether unwind data says that `address` lies within a function but is not its start."""
        starts, ends = self.functions
        i = int(np.searchsorted(starts, address, "right")) - 1
        return i >= 0 and int(starts[i]) != address and address < int(ends[i])
