"""What is fuzzed: each target takes bytes, does with them all that a user can, and lets only explained errors pass.

Whatever else comes out (or no answer in time, or more than 1 GiB) is a finding.  Where plain bytes would die at the
first checksum or magic number, the target wraps them in a valid file, so that the reader behind it is reached.
"""

from __future__ import annotations

import contextlib
import lzma
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from sqltrace.btf.listing import struct_lines
from sqltrace.btf.reader import Btf, BtfError
from sqltrace.btf.relayout import Meaning, relaid
from sqltrace.errors import NoSQLiteError, SqltraceError
from sqltrace.events.wire import layout_words
from sqltrace.resolution import Resolution
from sqltrace.resolve import cache
from sqltrace.resolve import resolver as ladder
from sqltrace.resolve.code import code_of, executor_of
from sqltrace.resolve.describe import describe
from sqltrace.resolve.formats import images_in
from sqltrace.resolve.image import Image
from sqltrace.resolve.options import compile_options
from sqltrace.resolve.overrides import Overrides, parse_overrides
from sqltrace.resolve.resolver import explain_image, source_ids
from sqltrace.resolve.symbols import named_functions
from tests.support.elf_builder import Part, R, X, build_elf, with_sections

SOURCE_ID: Final = b"2025-07-30 19:33:53 4d8adfb30e03f9cf27f800a2c1ba3c48fb4ca1b08b0f5ed59a4d5ecbf45e20a3\0"
_MACHINES: Final = (62, 183)
_PLACE: Final = 0x1000


@contextlib.contextmanager
def _surprises_are_seen() -> Iterator[None]:
    """Let the resolver's net for unforeseen exceptions have no meshes."""
    net = ladder._SURPRISES
    ladder._SURPRISES = ()  # type: ignore[misc]
    try:
        yield
    finally:
        ladder._SURPRISES = net  # type: ignore[misc]


@contextlib.contextmanager
def _file(data: bytes) -> Iterator[Path]:
    """Put the bytes into a file."""
    with tempfile.NamedTemporaryFile(prefix="fuzz-") as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


def _use(image: Image) -> None:
    """Ask an image for all it can tell."""
    _ = image.build_id, image.functions, image.constants, image.pointers
    for table in image.symbol_tables():
        assert table.names.startswith(b"\0")
        assert len(table.name_offsets) == len(table.addresses)
    for _, companion in image.companions():
        list(companion.symbol_tables())
    for segment in image.segments:
        assert image.offset_of(segment.address) is not None
        assert len(image.read(segment.address, 64)) <= 64
        image.unwind_covers(segment.address)
        image.relocated(segment.address)
    with contextlib.suppress(SqltraceError):
        named_functions(image)
    compile_options(image)
    source_ids(image)


def elf(data: bytes) -> None:
    """ELF files: headers, symbols, relocations, unwind data."""
    if data[:4] == b"\x7fELF":
        _images(data)


def macho(data: bytes) -> None:
    """Mach-O files, universal ones too: load commands, symbols, exports, fixups."""
    if data[:4] != b"\x7fELF":
        _images(data)


def _images(data: bytes) -> None:
    with _surprises_are_seen(), contextlib.suppress(SqltraceError):
        for image in images_in(data, "fuzzed"):
            _use(image)


def resolver(data: bytes) -> None:
    """Both, all the way up the ladder."""
    with _surprises_are_seen(), contextlib.suppress(SqltraceError):
        for image in images_in(data, "fuzzed"):
            with contextlib.suppress(SqltraceError):
                describe(explain_image(image).resolution)


def debugdata(data: bytes) -> None:
    """The compressed symbol table in an ELF file: the bytes as they are (first byte odd), or compressed by us."""
    if not data:
        return
    content = data[1:] if data[0] & 1 else lzma.compress(data[1:], preset=0)
    file = build_elf([Part(_PLACE, R | X, b"\xc3" * 64 + SOURCE_ID)])
    _images(with_sections(file, {".gnu_debugdata": content}))


def code(data: bytes) -> None:
    """Machine code: the scans for branches and references, and the symbolic executor, started at each 16 bytes."""
    if len(data) < 16:
        return
    machine = _MACHINES[data[0] & 1]
    file = build_elf([Part(_PLACE, R | X, data[1:] + SOURCE_ID)], machine=machine)
    with _surprises_are_seen():
        (image,) = images_in(file, "fuzzed")
        reader, executor = code_of(image), executor_of(image)
        for segment in image.code:
            content = image.array[segment.offset : segment.offset + segment.size]
            branches = reader.branches(segment.address, content)
            reader.conditional_branches(segment.address, content)
            reader.comparisons(segment.address, content, 99)
            for target in branches.targets.tolist()[:4]:
                reader.stub_target(target)
            reader.reachable(segment.address, segment.end)
        for start in range(_PLACE, _PLACE + min(len(data), 256), 16):
            trace = executor.run(start, budget=400, max_paths=20, depth=1)
            for value in trace.returns:
                str(value)
        with contextlib.suppress(SqltraceError):
            explain_image(image)


def btf(data: bytes) -> None:
    """Type information: every struct listed, each member asked for, and all laid out anew."""
    with contextlib.suppress(BtfError):
        types = Btf.parse(data)
        for name, number in list(types.structs())[:20]:
            for member in types.types[number].members[:20]:
                types.place(f"{name}.{member.name}")
                types.place(f"{name}.{member.name}[0]")
            types.sizeof(name)
            list(struct_lines(types, name))
        types.enumerators("constants")
        relaid(types, {"yDbMask": Meaning(1, 17), "ynVar": Meaning(4)}, "Vdbe.startTime")


def cached(data: bytes) -> None:
    """An entry of the cache: nothing, or a resolution that everyone can work with."""
    with _file(data) as entry:
        try:
            found = cache._read(entry, "fuzzed")
        except NoSQLiteError:
            return
    if found is not None:
        assert found.path == "fuzzed"
        assert Resolution.from_json(found.to_json()) == found
        describe(found)
        with contextlib.suppress(ValueError):  # says which field is missing or absurd
            layout_words(found)


def overrides(data: bytes) -> None:
    """`--offset` (the first line) and `--layout` (the rest), applied to a small file."""
    offset, _, layout = data.partition(b"\n")
    with _file(layout) as file, contextlib.suppress(SqltraceError), _surprises_are_seen():
        given = parse_overrides([offset.decode("utf-8", "surrogateescape")] if offset else [], file)
        assert isinstance(given, Overrides)
        image = images_in(build_elf([Part(_PLACE, R | X, b"\xc3" * 64 + SOURCE_ID)]), "fuzzed")[0]
        words = layout_words(explain_image(image, overrides=given).resolution)
        assert len(words) == 64


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "elf": elf,
    "macho": macho,
    "resolver": resolver,
    "debugdata": debugdata,
    "code": code,
    "btf": btf,
    "cache": cached,
    "overrides": overrides,
}
