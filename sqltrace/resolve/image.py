"""A binary as the loader sees it, whatever its format: segments, pointers after relocation, function starts.

Elf and MachO read their headers into an `Image`; everything else in the resolver sees only that.
Own parsing with numpy, because pyelftools makes one object per entry: 9 s for the first 400 kB of a section of
unwind data, where the table of all function starts takes 0.01 to 0.1 s here.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
import struct
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Final, TypeAlias

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

_COPY: Final = 1 << 18
_PAGE: Final = 4096
_LARGEST: Final = 4 << 30
"""More than this is not searched; the largest programs that were met have a tenth of it."""


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
class PointerTable:
    """Aligned 8-byte words, as they are after relocation, from `address` on."""

    address: int
    words: Words


@dataclass(frozen=True, slots=True)
class SymbolTable:
    """The defined functions of one symbol table: where each name starts in `names`, and the function's address.

    `names` begins with a zero, which stands before the first name as it does before each other.
    """

    title: str
    name_offsets: Addresses
    addresses: Addresses
    names: bytes


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


class Image(ABC):
    """One binary for one architecture.  The constructor raises NotAnImageError; nothing afterwards raises."""

    format: ClassVar[str]

    arch: str
    """x86_64 or arm64."""
    position_independent: bool
    segments: list[Segment]
    code: list[Segment]
    """The executable ones."""

    def __init__(self, data: Buffer, path: str) -> None:
        self.data = data
        self.path = path
        self.size = len(data)
        self.array: Bytes = np.frombuffer(data, dtype=np.uint8)
        self.segments = []
        self.code = []

    def _unpack(self, layout: str, offset: int) -> tuple[int, ...]:
        try:
            return struct.unpack_from(layout, self.data, offset)
        except (struct.error, OverflowError):
            raise NotAnImageError(f"{self.path} is damaged: it ends before byte {offset}") from None

    def _check_segments(self) -> None:
        """Raise NotAnImageError where segments that overlap again and again would make every search endless."""
        if sum(s.size for s in self.segments) > min(2 * self.size + _PAGE, _LARGEST):
            raise NotAnImageError(f"{self.path} is damaged or too large: its segments add up to more than it holds")
        self.code = [s for s in self.segments if s.executable]

    # What the format tells

    @property
    @abstractmethod
    def build_id(self) -> str | None:
        """The linker's identifier of this very build in hex, if there is one."""

    @property
    @abstractmethod
    def _relocations(self) -> tuple[Addresses, Words]:
        """Slots that the loader fills, sorted, and the virtual addresses it puts there."""

    @abstractmethod
    def _pointer_ranges(self) -> Iterator[tuple[int, int, int]]:
        """Yield (address, offset, size) of what may hold tables of pointers."""

    @property
    @abstractmethod
    def functions(self) -> tuple[Addresses, Addresses]:
        """Sorted starts and ends of functions and of their cold parts; may cover only some of the code."""

    @property
    @abstractmethod
    def constants(self) -> list[Segment]:
        """Where string literals lie."""

    @abstractmethod
    def symbol_tables(self) -> Iterator[SymbolTable]:
        """Yield the symbol tables of this file."""

    @abstractmethod
    def companions(self) -> Iterator[tuple[str, Image]]:
        """Yield where symbols-only copies of this very file are, and the copies."""

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

    def find_ends(self, texts: Collection[bytes], segments: Iterable[Segment]) -> Iterator[tuple[int, bytes]]:
        """Yield (address, text) wherever a zero-terminated string in these segments ends with one of the texts.

        numpy looks for zeros behind the last two letters of a text.  One bytes.find for each of twenty texts takes
        three times as long, a regular expression of all of them ten times.
        """
        tails = np.zeros(1 << 16, bool)
        for text in texts:
            tails[text[-2] | text[-1] << 8] = True
        longest = max(map(len, texts), default=0)
        for segment in segments:
            for start in range(0, segment.size, _COPY):
                at = segment.offset + start
                # Text in front of the chunk may belong to a string that ends in it.
                chunk = self.array[max(at - 2, segment.offset) : min(at + _COPY, segment.offset + segment.size)]
                last = np.flatnonzero((chunk[2:] == 0) & (chunk[1:-1] != 0))
                letters = chunk[last] | chunk[last + 1].astype(np.uint16) << np.uint16(8)
                for end in (last[tails[letters]] + 2 + max(at - 2, segment.offset)).tolist():
                    string = self.data[max(segment.offset, end - longest) : end]
                    for text in texts:
                        if string.endswith(text):
                            yield segment.address + end - len(text) - segment.offset, text

    def search(self, pattern: re.Pattern[bytes]) -> Iterator[re.Match[bytes]]:
        """Yield the matches of a regular expression in what is loaded (not in what is merely appended)."""
        for segment in self.segments:
            yield from pattern.finditer(self.data, segment.offset, segment.offset + segment.size)

    def is_code(self, address: int) -> bool:
        """Whether `address` lies in an executable segment."""
        return any(s.address <= address < s.end for s in self.code)

    # Pointers

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

    # Functions

    def table_at(self, address: int, dtype: np.dtype[np.void], size: int) -> npt.NDArray[np.void]:
        """Return `size` bytes at `address` as records, fewer where the segment ends."""
        for segment in self.segments:
            if segment.address <= address < segment.end:
                count = max(0, min(size, segment.end - address)) // dtype.itemsize
                return np.frombuffer(self.data, dtype, count, segment.offset + address - segment.address)
        return np.zeros(0, dtype)

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
