"""The generator: the same source gives the same bytes, whatever stands between."""

from __future__ import annotations

import io
import lzma
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from sqltrace.btf import store
from sqltrace.btf.format import REFERRING, Kind
from sqltrace.btf.generate.build import Built, put_together
from sqltrace.btf.generate.canonical import canonical
from sqltrace.btf.generate.compile import CompileError, declarations, types
from sqltrace.btf.generate.fetch import FetchError, Source, fetch, sources, vanilla
from sqltrace.btf.reader import Btf, Type
from sqltrace.btf.writer import encode
from tests.support.sqlite_builds import amalgamation

needs_pahole = pytest.mark.skipif(shutil.which("pahole") is None, reason="needs pahole")
SOURCE = Source("3.54.1", "npm", "package", "1.0.0", "deps/sqlite3/sqlite3.c")


def renumbered(btf: Btf) -> Btf:
    """Return the same types in the opposite order."""
    last = len(btf.types)

    def new(number: int) -> int:
        return last - number if number else 0

    def moved(type_: Type) -> Type:
        members = tuple(replace(m, type_id=new(m.type_id)) for m in type_.members)
        refers = type_.kind in REFERRING or type_.kind is Kind.ARRAY
        return replace(
            type_,
            type_id=new(type_.type_id) if refers else type_.type_id,
            index_id=new(type_.index_id),
            members=members,
        )

    return Btf([btf.types[0], *(moved(t) for t in reversed(btf.types[1:]))])


@needs_pahole
def test_a_source_gives_the_stored_bytes() -> None:
    source = vanilla((amalgamation("3.54.1") / "sqlite3.c").read_text(encoding="latin-1"))
    assert encode(types(source)) == store.files()["3.54.1.btf"]
    assert encode(types(source, ("-DSQLITE_DEBUG",))) == store.files()["3.54.1-debug.btf"]


@needs_pahole
def test_a_source_that_does_not_compile_is_an_error_that_says_why() -> None:
    with pytest.raises(CompileError, match=r"gcc failed.*error"):
        types("int x = ;")


@pytest.mark.parametrize("name", ["3.7.7.1.btf", "3.26.0.btf", "3.54.1-debug.btf"])
def test_the_order_of_types_does_not_matter(name: str) -> None:
    stored = Btf.parse(store.files()[name])
    assert encode(canonical(stored)) == store.files()[name]
    assert encode(canonical(renumbered(stored))) == store.files()[name]


def test_bodies_of_functions_are_cut_out_and_nothing_else() -> None:
    source = """
        struct a { int b; union { char c; } d; };
        static const char s[] = "} ) {";
        static int f(int x) { if (x) { return '}'; } return 0; }
        static int t[] = { 1, 2 };
        int g(void)
        { return "\\"}"[0]; }
        struct b { int (*f)(int); };
    """
    cut = declarations(source)
    assert (
        cut.split()
        == """
        struct a { int b; union { char c; } d; };
        static const char s[] = "} ) {";
        static int f(int x) ;
        static int t[] = { 1, 2 };
        int g(void) ;
        struct b { int (*f)(int); };
    """.split()
    )


def test_what_vendors_added_is_undone() -> None:
    theirs = """#define SQLITE_HAS_CODEC 1
/************** Begin file crypto.c *********/
#include <openssl/evp.h>
#include <sys/stat.h>
/************** Begin file btreeInt.h *********/
struct MemPage;
/************** End of btreeInt.h *********/
int crypto;
/************** Begin file global.c *********/
int exsqlite3_step;
"""
    assert vanilla(theirs).split("\n") == [
        "",
        "#include <sys/stat.h>",
        "/************** Begin file btreeInt.h *********/",
        "struct MemPage;",
        "/************** End of btreeInt.h *********/",
        "/************** Begin file global.c *********/",
        "int sqlite3_step;",
        "",
    ]


def test_a_cached_source_of_another_release_is_refused(tmp_path: Path) -> None:
    kept = tmp_path / "3.54.1" / "sqlite3.c"
    kept.parent.mkdir()
    kept.write_text('#define SQLITE_VERSION "3.54.0"')
    with pytest.raises(FetchError, match=r"package@1\.0\.0 does not hold SQLite 3\.54\.1"):
        fetch(SOURCE, tmp_path)


def test_every_source_is_in_the_index_with_its_checksum() -> None:
    entries = store.entries()
    assert [s.version for s in sources()] == list(entries)
    assert all(len(e.sha256) == 64 and e.source_id[:2] == "20" for e in entries.values())


def test_equal_layouts_share_a_file_named_after_the_first_release() -> None:
    layouts = [{"default": b"a", "debug": b"b"}, {"default": b"a", "debug": b"c"}]
    releases = [
        Built(replace(SOURCE, version=v), "id", "sum", files)
        for v, files in zip(("3.1.0", "3.2.0"), layouts, strict=True)
    ]
    whole = put_together(releases)
    assert whole.files == {"3.1.0.btf": b"a", "3.1.0-debug.btf": b"b", "3.2.0-debug.btf": b"c"}
    assert whole.entries["3.2.0"].layouts == {"default": "3.1.0.btf", "debug": "3.2.0-debug.btf"}


def test_the_archive_carries_no_time_and_no_owner() -> None:
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(store.ARCHIVE.read_bytes()))) as archive:
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in archive} == {(0, 0, 0, "")}
