"""Symbol tables: renamed, compressed, and of programs that merely use SQLite."""

from __future__ import annotations

import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from sqltrace.errors import AmbiguousResolutionError, NoSQLiteError
from sqltrace.resolve.api_slots import SLOTS
from sqltrace.resolve.elf import Elf
from sqltrace.resolve.image import open_image
from sqltrace.resolve.resolver import resolve
from sqltrace.resolve.symbols import symbols
from tests.support.sqlite_builds import build_twin
from tests.support.symbol_oracle import symbol_addresses


def read(path: Path) -> Elf:
    return Elf(open_image(path), str(path))


def gcc(tmp_path: Path, source: str, *flags: str) -> Path:
    (tmp_path / "x.c").write_text(source)
    subprocess.run(["gcc", *flags, tmp_path / "x.c", "-o", tmp_path / "x"], check=True)
    return tmp_path / "x"


def test_a_prefix_before_all_names_is_seen_through(tmp_path: Path) -> None:
    twin = build_twin()
    renamed = tmp_path / "renamed"
    names = [n for n in symbol_addresses(twin.unstripped) if n.startswith("sqlite3")]
    (tmp_path / "names").write_text("".join(f"{n} chrome_{n}\n" for n in names))
    subprocess.run(
        ["objcopy", f"--redefine-syms={tmp_path / 'names'}", twin.unstripped, renamed], check=True, capture_output=True
    )
    assert symbols(read(renamed))["sqlite3_step"] == symbol_addresses(twin.unstripped)["sqlite3_step"]


def test_minidebuginfo_counts_as_a_symbol_table(tmp_path: Path) -> None:
    twin = build_twin()
    (tmp_path / "mini.xz").write_bytes(lzma.compress(twin.unstripped.read_bytes(), preset=0))
    file = tmp_path / "file"
    shutil.copy(twin.stripped, file)
    subprocess.run(["objcopy", "--add-section", f".gnu_debugdata={tmp_path / 'mini.xz'}", file], check=True)
    assert symbols(read(file))["sqlite3_step"] == symbol_addresses(twin.unstripped)["sqlite3_step"]
    (tmp_path / "mini.xz").write_bytes(b"\xfd7zXZ\0 and then garbage")
    subprocess.run(["objcopy", "--update-section", f".gnu_debugdata={tmp_path / 'mini.xz'}", file], check=True)
    assert symbols(read(file)) == {}


def test_a_wrapper_of_a_few_functions_is_not_sqlite(tmp_path: Path) -> None:
    source = "\n".join(
        f"int {name}(void *p) {{ return p != 0; }}" for name in ("sqlite3_step", "my_sqlite3_reset", "sqlite3_finalize")
    )
    library = gcc(tmp_path, source, "-shared", "-fPIC")
    assert symbols(read(library)) == {}
    with pytest.raises(NoSQLiteError, match="holds no SQLite"):
        resolve(library)


def test_a_program_that_only_calls_sqlite_holds_none(tmp_path: Path) -> None:
    source_id = "2025-07-30 19:33:53 4d8adfb30e03f9cf27f800a2c1ba3c48fb4ca1b08b0f5ed59a4d5ecbf45e20a3"
    program = gcc(
        tmp_path,
        f'const char *built_with = "{source_id}";\n'
        "int sqlite3_step(void *); int f(void *p) { return sqlite3_step(p); }",
        "-shared",
        "-fPIC",
    )
    with pytest.raises(NoSQLiteError, match="names a SQLite release but holds no SQLite"):
        resolve(program)


def test_two_copies_in_one_file_are_refused_with_both_named(tmp_path: Path) -> None:
    names = [f"sqlite3_{name}" for name in SLOTS]
    source = "\n".join(f"int {p}{n}(void) {{ return {i}; }}" for p in ("", "chrome_") for i, n in enumerate(names))
    library = gcc(tmp_path, source, "-shared", "-fPIC", "-O0", "-w", "-fno-builtin")
    with pytest.raises(
        AmbiguousResolutionError, match=r"more than one SQLite: sqlite3_step at 0x.*chrome_sqlite3_step"
    ):
        symbols(read(library))


@pytest.mark.parametrize("path", ["/lib/x86_64-linux-gnu/libc.so.6", "/usr/bin/gcc", "/usr/bin/python3"])
def test_other_binaries_hold_no_sqlite(path: str) -> None:
    with pytest.raises(NoSQLiteError) as caught:
        resolve(path)
    assert str(caught.value) == f"{path} holds no SQLite"
