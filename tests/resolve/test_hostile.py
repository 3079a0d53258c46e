"""Files made to exhaust whoever reads them: each ends in a sentence, within a minute of CPU time and 1 GiB."""

from __future__ import annotations

import lzma
import os
import random
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.elf_builder import Part, R, W, X, build_elf, with_sections
from tests.support.lookalike import lookalike
from tests.support.macho_builder import build_macho, chained_fixups

GIBIBYTE = 1 << 30
CPU_SECONDS = 60
SOURCE_ID = b"2025-07-30 19:33:53 4d8adfb30e03f9cf27f800a2c1ba3c48fb4ca1b08b0f5ed59a4d5ecbf45e20a3\0"
RETURN_RELEASE = b"\xb8" + struct.pack("<I", 3050004) + b"\xc3"
_READ = """
import sys
from sqltrace.errors import SqltraceError
from sqltrace.resolve import explain_all, resolver
resolver._SURPRISES = ()
for path in sys.argv[1:]:
    try:
        explain_all(path)
    except SqltraceError as error:
        print(error)
    else:
        print("resolved")
"""


def within_limits(*files: Path) -> list[str]:
    """Resolve files in a process that may not take more than 1 GiB of address space; return what it says of each."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (GIBIBYTE, GIBIBYTE))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))

    done = subprocess.run(
        [sys.executable, "-c", _READ, *files],
        check=False,
        capture_output=True,
        text=True,
        preexec_fn=limited,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # each thread reserves address space
    )
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout.splitlines()


def names_bomb() -> bytes:
    """10 kB of xz that unpack to one symbol name of 60 MiB."""
    names = b"\0" + b"sqlite3_a@" * (6 << 20)
    symbols = struct.pack("<IBBHQQ", 1, 2, 0, 1, 0x1000, 1) * 1000
    plain = with_sections(build_elf([Part(0x1000, R | X, b"\xc3" * 64)]), {".symtab": symbols, ".strtab": names})
    return with_debugdata(lzma.compress(plain, preset=1))


def many_names() -> bytes:
    names = b"\0" + b"sqlite3_a\0" * (6 << 20)
    file = with_sections(build_elf([Part(0x1000, R | X, b"\xc3" * 64)]), {".symtab": bytes(48), ".strtab": names})
    return with_debugdata(lzma.compress(file, preset=1))


def with_debugdata(content: bytes) -> bytes:
    return with_sections(build_elf([Part(0x1000, R | X, b"\xc3" * 64 + SOURCE_ID)]), {".gnu_debugdata": content})


def bomb_of_zeros() -> bytes:
    return with_debugdata(lzma.compress(b"\x7fELF" + bytes(200 << 20), preset=0))


def endless_dictionary() -> bytes:
    """A stream that says it needs 4 GiB to be unpacked."""
    return with_debugdata(b"\x5d" + b"\xff" * 4 + b"\xff" * 8 + bytes(64))


def tables_everywhere() -> bytes:
    """Every word points to what could be sqlite3_libversion_number."""
    words = struct.pack("<Q", 0x1000) * (1 << 20)
    return build_elf([Part(0x1000, R | X, RETURN_RELEASE + SOURCE_ID), Part(0x10000, R | W, words)])


def options_everywhere() -> bytes:
    """A list of compile options that is one option a million times."""
    text = b"\0THREADSAFE=1\0"
    library = bytearray(lookalike("SKEW_NO_TABLE").stripped.read_bytes())
    return appended(library, text, lambda at: struct.pack("<Q", at + 1) * (1 << 20))


def references_everywhere() -> bytes:
    """Code that does nothing but refer to one of the messages."""
    message = b"cannot start a transaction within a transaction\0"
    lea, count = 7, 1 << 18
    code = b"".join(
        b"\x48\x8d\x3d" + struct.pack("<i", 0x1000 + lea * count - (0x1000 + lea * (i + 1))) for i in range(count)
    )
    return build_elf([Part(0x1000, R | X, code + message + SOURCE_ID)])


def messages_everywhere() -> bytes:
    message = b"cannot start a transaction within a transaction\0"
    return build_elf([Part(0x1000, R | X, b"\xc3" * 64), Part(0x100000, R, SOURCE_ID + message * (1 << 18))])


def calls_everywhere() -> bytes:
    """A function every 12 bytes, which refers to a message and calls another."""
    messages = b"cannot start a transaction within a transaction\0API called with finalized prepared statement\0"
    generator = random.Random(1)
    size = 12 * 80000
    code = b"".join(
        b"\x48\x8d\x3d" + struct.pack("<i", size - at - 7) + b"\xe8" + struct.pack("<i", generator.randrange(size) - at)
        for at in range(0, size, 12)
    )
    return build_elf([Part(0x1000, R | X, code + messages + SOURCE_ID)])


def ids_everywhere() -> bytes:
    return build_elf([Part(0x1000, R | X, b"\xc3" * 64), Part(0x100000, R, SOURCE_ID * (1 << 18))])


def rebase_opcodes() -> bytes:
    return build_macho(b"\xc0\x03\x5f\xd6" * 64, SOURCE_ID, bytes(64), rebase=b"\x21\x00" + b"\x51" * (1 << 20))


def chains() -> bytes:
    fixups = chained_fixups(6, 0)
    return build_macho(b"\xc0\x03\x5f\xd6" * 64, SOURCE_ID, struct.pack("<Q", 1 << 51) * 512, fixups=fixups)


def appended(library: bytearray, text: bytes, words: Callable[[int], bytes]) -> bytes:
    """Return the library with two more segments, whose headers take the place of PT_NOTE and PT_GNU_STACK."""
    headers = [64 + 56 * i for i in range(struct.unpack_from("<H", library, 56)[0])]
    places = [at for at in headers if struct.unpack_from("<I", library, at)[0] in (4, 0x6474E551)]
    address = 0x10000000
    for place, content, flags in zip(places, (text, words(address)), (R, R | W), strict=False):
        library += bytes(-len(library) % 8)
        struct.pack_into("<IIQQQQQQ", library, place, 1, flags, len(library), address, 0, len(content), len(content), 8)
        library += content
        address += 0x10000000
    return bytes(library)


@pytest.mark.parametrize(
    "bomb",
    [
        *(names_bomb, many_names, bomb_of_zeros, endless_dictionary, tables_everywhere, options_everywhere),
        *(references_everywhere, messages_everywhere, calls_everywhere, ids_everywhere, rebase_opcodes, chains),
    ],
    ids=lambda bomb: bomb.__name__,
)
def test_a_file_made_to_exhaust_us_ends_in_a_sentence(bomb: Callable[[], bytes], tmp_path: Path) -> None:
    file = tmp_path / "bomb"
    file.write_bytes(bomb())
    (said,) = within_limits(file)
    assert said == "resolved" or str(file) in said


def test_truncated_and_mutated_libraries_are_resolved_or_refused(tmp_path: Path) -> None:
    generator = random.Random(2)
    files = []
    for number, defines in enumerate((("",), ("SKEW_NO_TABLE",))):
        whole = lookalike(*filter(None, defines)).unstripped.read_bytes()
        for i in range(60):
            data = bytearray(whole)
            for _ in range(generator.randrange(12)):
                # Half of the changes in the headers, where they hurt most.
                data[generator.randrange(generator.choice((0x400, len(data))))] = generator.randrange(256)
            files.append(tmp_path / f"damaged-{number}-{i}")
            files[-1].write_bytes(data[: generator.choice((len(data), generator.randrange(len(data))))])
    said = within_limits(*files)
    assert len(said) == len(files)
    assert "resolved" in said
    assert all(line == "resolved" or str(file) in line for file, line in zip(files, said, strict=True))
