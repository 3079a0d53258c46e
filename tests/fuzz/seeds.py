"""What fuzzing starts from: small valid files of every kind, made when they are needed instead of stored."""

from __future__ import annotations

import json
import lzma
import struct
from collections.abc import Iterator

from sqltrace.btf import store
from sqltrace.btf.format import HEADER, MAGIC, MEMBER, RECORD, Kind
from sqltrace.resolve import resolve
from tests.fuzz.targets import SOURCE_ID
from tests.support.elf_builder import Part, R, W, X, build_elf, build_id_note, eh_frame
from tests.support.lookalike import FLAGS, lookalike
from tests.support.macho_builder import DATA, TEXT, build_macho, chained_fixups, universal

_BASE = 0x100000000
_X86_64, _ARM64 = 0x01000007, 0x0100000C
_REBASE = bytes([0x21, 0, 0x51, 0x70, 8, 0x60, 2, 0x80, 2, 8, 0x41, 0x51, 0])


def seeds(target: str) -> Iterator[bytes]:
    """Yield the files that a target of tests.fuzz.targets starts from."""
    yield from _SEEDS[target]()


def _elf() -> Iterator[bytes]:
    unwind, size = eh_frame(0x2000, [(0x1000, 16), (0x1010, 32), (0x1080, 8)])
    for machine in (62, 183):
        yield build_elf(
            [
                Part(0x1000, R | X, b"\x90" * 256),
                Part(0x2000, R, unwind + SOURCE_ID),
                Part(0x3000, R | W, struct.pack("<4Q", 0, 0x1010, 0, 0x1020)),
            ],
            machine=machine,
            relocations={0x3000: 0x1030, 0x3010: 0x1040},
            note=build_id_note(bytes(range(20))),
            unwind=(0x2000, size),
        )
    # Real linkers' work, as small as it gets: page size 16 instead of 4096.
    small = (*FLAGS, "-Wl,-z,max-page-size=16", "-Wl,-z,noseparate-code")
    yield lookalike(flags=small).stripped.read_bytes()
    yield lookalike("SKEW_NO_TABLE", flags=small).unstripped.read_bytes()
    fixed = tuple(flag for flag in small if flag not in ("-fPIC", "-shared"))
    yield lookalike(flags=(*fixed, "-fno-pie", "-no-pie", "-static", "-Wl,-e,0")).stripped.read_bytes()


def _macho() -> Iterator[bytes]:
    words = struct.pack("<12Q", *(_BASE + TEXT + 4 * i for i in range(12)))
    for cpu in (_X86_64, _ARM64):
        first = build_macho(
            b"\x1f\x20\x03\xd5" * 64, SOURCE_ID, words, cpu=cpu, uuid=bytes(range(16)), starts=(TEXT, TEXT + 8),
            rebase=_REBASE, exports={"_sqlite3_step": TEXT}, symbols={"_sqlite3_step": _BASE + TEXT},
        )  # fmt: skip
        yield first
        for pointer_format in (2, 6, 12):
            second = build_macho(
                b"\x1f\x20\x03\xd5" * 64, SOURCE_ID, words, cpu=cpu, exports={"_a": TEXT},
                symbols={"_sqlite3_step": _BASE + TEXT}, fixups=chained_fixups(pointer_format, DATA & 8),
            )  # fmt: skip
            yield second
        yield universal((cpu, first), (7, first), (_ARM64, second))


def _resolver() -> Iterator[bytes]:
    yield from _elf()
    yield from list(_macho())[:2]


def _debugdata() -> Iterator[bytes]:
    library = lookalike("SKEW_NO_TABLE").unstripped.read_bytes()
    yield b"\0" + build_elf([Part(0x1000, R | X, b"\xc3" * 64)])
    yield b"\0" + library
    yield b"\1" + lzma.compress(library)
    yield b"\1" + lzma.compress(bytes(1 << 20))


def _code() -> Iterator[bytes]:
    for version in ("3.50.4", "3.37.2"):
        yield b"\0" + version.encode() * 8
    file = lookalike().unstripped.read_bytes()
    offset, size = _text(file)
    for start in range(offset, offset + size, 512):
        yield b"\0" + file[start : start + 512]
    # ldr x0, [x0, #248]; ret; cbz, adrp, add, bl, ldp, csel ...
    arm64 = "007c40f9c0035fd6a00000b400000090000040910000009460824ca900109f9a01c4226a207c0153e0030291fd7bbea9"
    yield b"\1" + bytes.fromhex(arm64)


def _text(file: bytes) -> tuple[int, int]:
    """Return offset and size of the executable segment."""
    for i in range(struct.unpack_from("<H", file, 56)[0]):
        kind, flags, offset, _, _, size = struct.unpack_from("<IIQQQQ", file, 64 + 56 * i)
        if kind == 1 and flags & X:
            return offset, size
    raise AssertionError("there is code in it")


def _btf() -> Iterator[bytes]:
    strings = b"\0A\0yDbMask\0ynVar\0"
    member = MEMBER.pack(1, 1, 0)
    for kind in list(Kind)[1:]:
        trailer = {
            Kind.INT: struct.pack("<I", 32),
            Kind.ARRAY: struct.pack("<III", 1, 1, 3),
            Kind.STRUCT: member,
            Kind.UNION: member,
            Kind.ENUM: bytes(8),
            Kind.FUNC_PROTO: bytes(8),
            Kind.VAR: bytes(4),
            Kind.DATASEC: bytes(12),
            Kind.DECL_TAG: bytes(4),
            Kind.ENUM64: bytes(12),
        }.get(kind, b"")
        count = 1 if kind in (Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.FUNC_PROTO, Kind.DATASEC, Kind.ENUM64) else 0
        types = RECORD.pack(3, Kind.INT << 24, 4) + struct.pack("<I", 32) + RECORD.pack(1, kind << 24 | count, 1)
        types += trailer
        header = HEADER.pack(MAGIC, 1, 0, HEADER.size, 0, len(types), len(types), len(strings))
        yield header + types + strings
    yield store.files()["3.54.1.btf"]


def _cache() -> Iterator[bytes]:
    resolution = resolve(lookalike().stripped)
    yield json.dumps({"resolution": resolution.to_json()}).encode()
    yield b'{"resolution": null}'


def _overrides() -> Iterator[bytes]:
    yield b"sqlite3_step=0x1000\n" + json.dumps({"layout": resolve(lookalike().stripped).to_json()["layout"]}).encode()
    yield b'sqlite3_step=4096\n{"Vdbe.zSql": 248, "Vdbe.db": 0, "sizeof(Mem)": {"offset": 56, "size": 0}}'
    yield b'sqlite3_reset=0x1004\n{"MEM_Zero": 1024}'


_SEEDS = {
    "elf": _elf,
    "macho": _macho,
    "resolver": _resolver,
    "debugdata": _debugdata,
    "code": _code,
    "btf": _btf,
    "cache": _cache,
    "overrides": _overrides,
}
