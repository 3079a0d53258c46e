"""`sqltrace catalogue`."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from sqltrace.btf import store
from sqltrace.btf.catalogue import Layout, layout
from sqltrace.btf.listing import struct_lines
from sqltrace.btf.options import movers, variants
from sqltrace.btf.writer import encode
from sqltrace.cli.base import Command
from sqltrace.errors import OutputError, SqltraceError, UsageError


class Catalogue(Command):
    """List the releases of SQLite whose structs are known, or show those of one.

    Without VERSION: every release, and where its source came from.  With VERSION: its structs; with STRUCT, too: that
    struct as C, with the offset and the size of each member.
    """

    name = "catalogue"

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("version", nargs="?", metavar="VERSION", help="a release of SQLite, such as 3.50.4")
        parser.add_argument("structs", nargs="*", metavar="STRUCT", help="Vdbe, Pager, ...")
        parser.add_argument(
            "--option", action="append", default=[], metavar="NAME[=N]",
            help="a compile-time option of SQLite: OMIT_TRACE, MAX_ATTACHED=125, DEBUG; repeats",
        )  # fmt: skip
        parser.add_argument("--btf", metavar="FILE", help="write the layout as BTF, for `bpftool btf dump file FILE`")

    @staticmethod
    def execute(arguments: argparse.Namespace) -> int:
        """Print what is asked for."""
        if arguments.version is None:
            if arguments.btf or arguments.option:
                raise UsageError("--btf and --option need a VERSION")
            lines = _releases()
        else:
            found = _layout(arguments.version, frozenset(o.removeprefix("SQLITE_") for o in arguments.option))
            if arguments.btf:
                _write(Path(arguments.btf), found)
                return 0
            lines = _structs(found, arguments.structs, arguments.option)
        for line in lines:
            sys.stdout.write(line + "\n")
        return 0


def _releases() -> Iterator[str]:
    yield f"{'release':<10}{'layout':<10}{'source':<50}source id"
    for version, entry in store.entries().items():
        yield f"{version:<10}{entry.layouts['default'].removesuffix('.btf'):<10}{entry.origin:<50}{entry.source_id}"


def _layout(version: str, options: frozenset[str]) -> Layout:
    try:
        variant = next(variants(version, options), None)
        found = layout(version, variant) if variant is not None else None
    except ValueError as error:
        raise UsageError(str(error)) from error
    if variant is None:
        raise SqltraceError("with OMIT_DISKIO SQLite has no pager, and the catalogue no layout")
    if found is None:
        raise SqltraceError(
            f"the catalogue does not cover {version}, and no covered release is known to be like it. "
            "`sqltrace catalogue` lists those that it has"
        )
    return found


def _structs(found: Layout, structs: list[str], options: list[str]) -> Iterator[str]:
    taken = "" if found.covered_by == found.version else f", taken to be like {found.covered_by}"
    yield f"SQLite {found.version}{taken}; variant: {found.variant}; 64-bit Linux and macOS"
    names = frozenset(o.removeprefix("SQLITE_").partition("=")[0] for o in options)
    for option in sorted(movers(found.version, frozenset(options)) & names):
        yield f"not accounted for: {option}"
    if structs:
        for struct in structs:
            yield ""
            yield from struct_lines(found.btf, struct)
        return
    for name, number in found.btf.structs():
        members = found.btf.types[number].members
        yield f"{name:<20}{found.btf.size(number):>6} bytes{len(members):>5} members"
    yield from textwrap.wrap(" ".join(f"{name}={value:#x}" for name, value in found.constants.items()), 100)


def _write(path: Path, found: Layout) -> None:
    try:
        with path.open("xb") as stream:
            stream.write(encode(found.btf))
    except FileExistsError as error:
        raise OutputError(f"{path} exists already; it is not overwritten") from error
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
