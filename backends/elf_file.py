"""The little that a backend has to know of an ELF file.

Where in the file a virtual address lies, the interpreter, one symbol of the dynamic loader: all else about ELF is
the resolver's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from elftools.elf.segments import InterpSegment

from sqltrace.errors import NotAnImageError


@dataclass(frozen=True, slots=True)
class LoadSegment:
    """A PT_LOAD: where `size` bytes of the file at `offset` are mapped."""

    address: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class ElfFile:
    """Load segments in file order, and PT_INTERP (None: a static program)."""

    path: str
    segments: tuple[LoadSegment, ...]
    interpreter: str | None

    @classmethod
    def read(cls, path: str) -> ElfFile:
        """Read the program headers of the file; raises NotAnImageError."""
        try:
            with open(path, "rb") as stream:
                elf = ELFFile(stream)
                segments = []
                interpreter = None
                for segment in elf.iter_segments():
                    if segment["p_type"] == "PT_LOAD":
                        segments.append(LoadSegment(segment["p_vaddr"], segment["p_offset"], segment["p_filesz"]))
                    elif segment["p_type"] == "PT_INTERP":
                        assert isinstance(segment, InterpSegment)  # noqa: S101 - what pyelftools makes of it
                        interpreter = str(segment.get_interp_name())
                return cls(path, tuple(segments), interpreter)
        except (OSError, ELFError, UnicodeDecodeError, ValueError, AttributeError) as error:
            raise NotAnImageError(f"cannot read {path} as an ELF file: {error}.") from error

    def file_offset(self, address: int) -> int:
        """Translate a virtual address; raises NotAnImageError when no part of the file is mapped there."""
        for segment in self.segments:
            if segment.address <= address < segment.address + segment.size:
                return address - segment.address + segment.offset
        raise NotAnImageError(f"{self.path} has no code at address {address:#x}.")

    def code(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes of the file at an offset; raises NotAnImageError."""
        try:
            with open(self.path, "rb") as stream:
                stream.seek(offset)
                return stream.read(size)
        except OSError as error:
            raise NotAnImageError(f"cannot read {self.path}: {error.strerror}.") from error


def dynamic_symbol(path: str, name: str) -> int | None:
    """Virtual address of a defined symbol in .dynsym, or None.  Used on the dynamic loader only."""
    try:
        with open(path, "rb") as stream:
            section = ELFFile(stream).get_section_by_name(".dynsym")
            if not isinstance(section, SymbolTableSection):
                return None
            for symbol in section.get_symbol_by_name(name) or []:
                if symbol["st_shndx"] != "SHN_UNDEF":
                    return int(symbol["st_value"])
    except (OSError, ELFError, ValueError):
        return None
    return None


def same_file(a: str, b: str) -> bool:
    """Whether two paths lead to one inode; False when either cannot be looked at."""
    try:
        return os.path.samestat(os.stat(a), os.stat(b))
    except OSError:
        return False
