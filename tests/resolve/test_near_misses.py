"""Files that are nearly what the resolver looks for: it finds the right address, or none, never a wrong one."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest

from sqltrace.errors import AmbiguousResolutionError, NoSQLiteError, ResolutionError
from sqltrace.resolution import Evidence, Resolution
from sqltrace.resolve import resolve
from tests.support.elf_builder import X
from tests.support.lookalike import lookalike
from tests.support.sqlite_builds import Twin, amalgamation
from tests.support.symbol_oracle import symbol_addresses

SOURCE_ID = "2025-07-30 19:33:53 4d8adfb30e03f9cf27f800a2c1ba3c48fb4ca1b08b0f5ed59a4d5ecbf45e20a3"
BY_STRINGS = {
    *("sqlite3_step", "sqlite3_reset", "sqlite3_finalize", "sqlite3_close", "sqlite3_close_v2"),
    *("sqlite3_prepare", "sqlite3_prepare_v2", "sqlite3_prepare_v3", "sqlite3VdbeHalt", "sqlite3VdbeReset"),
}


def assert_nothing_wrong(resolution: Resolution, twin: Twin) -> None:
    symbols = symbol_addresses(twin.unstripped)
    assert {n: f.address for n, f in resolution.functions.items()} == {n: symbols[n] for n in resolution.functions}


def test_the_whole_lookalike_resolves_by_every_rung() -> None:
    twin = lookalike()
    resolution = resolve(twin.stripped)
    assert_nothing_wrong(resolution, twin)
    by_strings = {n for n, f in resolution.functions.items() if Evidence.STRINGS in f.evidence}
    assert by_strings == BY_STRINGS
    assert resolution.functions["sqlite3_step"].evidence == (Evidence.API_TABLE, Evidence.STRINGS)
    assert resolution.layout["Vdbe.zSql"].evidence == (Evidence.ACCESSOR, Evidence.CATALOGUE)


@pytest.mark.parametrize(
    ("skew", "lost"),
    [
        ("SKEW_SECOND_EXEC", {"sqlite3VdbeHalt", "sqlite3VdbeReset"}),
        ("SKEW_SECOND_RESET", {"sqlite3VdbeReset"}),
        ("SKEW_SECOND_STEP", set()),
        ("SKEW_SHORT_TABLE", set()),
        ("PREPARE_V2_FLAGS=0", set()),
        ("PREPARE_V2_FLAGS=1", set()),
    ],
)
def test_what_the_table_names_survives_when_strings_are_at_a_loss(skew: str, lost: set[str]) -> None:
    whole, twin = resolve(lookalike().stripped), lookalike(skew)
    resolution = resolve(twin.stripped)
    assert_nothing_wrong(resolution, twin)
    assert set(whole.functions) - set(resolution.functions) == lost


@pytest.mark.parametrize(
    ("skew", "missing"),
    [
        ("SKEW_SECOND_EXEC", "sqlite3_step and sqlite3_reset and sqlite3_finalize"),  # two run statements
        ("SKEW_SECOND_STEP", "sqlite3_step"),  # two call sqlite3VdbeExec and complain about NULL
        ("SKEW_SECOND_RESET", "sqlite3_reset"),  # two hand their argument to sqlite3VdbeReset after a test
    ],
)
def test_wrong_counts_of_calls_are_no_answer(skew: str, missing: str) -> None:
    with pytest.raises(ResolutionError, match=rf"3\.50\.4, but {missing} could not be found; --offset"):
        resolve(lookalike("SKEW_NO_TABLE", skew).stripped)


@pytest.mark.parametrize(
    ("skew", "lost"),
    [
        ("PREPARE_V2_FLAGS=0", {"sqlite3_prepare", "sqlite3_prepare_v2"}),  # two that hand on the same
        ("PREPARE_V2_FLAGS=1", {"sqlite3_prepare_v2"}),  # neither's constant
        ('COMMIT_MESSAGE="cannot commit"', set()),  # three of four messages are enough
        ("SKEW_SHORT_TABLE", set()),
    ],
)
def test_without_the_table_a_sibling_that_does_not_fit_is_left_out(skew: str, lost: set[str]) -> None:
    twin = lookalike("SKEW_NO_TABLE", skew)
    resolution = resolve(twin.stripped)
    assert_nothing_wrong(resolution, twin)
    assert BY_STRINGS - set(resolution.functions) == lost


def test_a_table_whose_number_and_text_differ_is_no_table() -> None:
    twin = lookalike("VERSION_NUMBER=3050003", 'VERSION="3.50.4"')
    resolution = resolve(twin.stripped)
    assert_nothing_wrong(resolution, twin)
    assert {e for f in resolution.functions.values() for e in f.evidence} == {Evidence.STRINGS}


def test_two_tables_are_two_sqlites_and_both_are_named() -> None:
    twin = lookalike("SKEW_SECOND_TABLE")
    with pytest.raises(AmbiguousResolutionError, match="more than one SQLite") as caught:
        resolve(twin.stripped)
    assert len(re.findall(r"SQLite 3\.50\.4 with its table at 0x[0-9a-f]+", str(caught.value))) == 2


def test_a_table_and_calls_that_disagree_are_both_named() -> None:
    twin = lookalike("SKEW_SWAPPED_SLOTS")
    symbols = symbol_addresses(twin.unstripped)
    step, reset = symbols["sqlite3_step"], symbols["sqlite3_reset"]
    with pytest.raises(
        AmbiguousResolutionError, match=f"sqlite3_step disagrees: api-table says {reset:#x}, strings says {step:#x}"
    ):
        resolve(twin.stripped)


@pytest.mark.parametrize("table", [[], ["SKEW_NO_TABLE"]], ids=["table", "no table"])
def test_code_that_reads_another_member_than_the_source_has_is_a_contradiction(table: list[str]) -> None:
    with pytest.raises(AmbiguousResolutionError, match=r"Vdbe\.zSql disagrees: accessor says 240 .*catalogue says 248"):
        resolve(lookalike(*table, "ZSQL=240").stripped)


@pytest.mark.parametrize("table", [[], ["SKEW_NO_TABLE"]], ids=["table", "no table"])
def test_code_that_is_cut_off_anywhere_gives_no_wrong_address(table: list[str], tmp_path: Path) -> None:
    twin = lookalike(*table)
    whole = twin.stripped.read_bytes()
    symbols = symbol_addresses(twin.unstripped)
    offset, size = next(
        (offset, size)
        for kind, flags, offset, _, _, size in (
            struct.unpack_from("<IIQQQQ", whole, 64 + 56 * i) for i in range(struct.unpack_from("<H", whole, 56)[0])
        )
        if kind == 1 and flags & X
    )
    file, found = tmp_path / "cut", set()
    for cut in range(0, size, max(37, size // 40 | 1)):
        file.write_bytes(whole[: offset + cut] + bytes(size - cut) + whole[offset + size :])
        try:
            functions = resolve(file).functions
        except (NoSQLiteError, ResolutionError):
            continue
        found |= set(functions)
        # The table still says where functions were; what strings say was seen in the code that is left.
        assert {n: f.address for n, f in functions.items()} == {n: symbols[n] for n in functions}
    assert found >= {"sqlite3_step"}


def program(tmp_path: Path, source: str, *options: str) -> Path:
    file = tmp_path / "program"
    subprocess.run(["gcc", "-O1", "-x", "c", "-", "-o", file, *options], input=source.encode(), check=True)
    return file


def test_sqlites_source_as_a_text_in_a_program_is_no_sqlite(tmp_path: Path) -> None:
    text = amalgamation("3.50.4") / "sqlite3.c"
    included = f'".section .rodata\\n.global text\\ntext: .incbin \\"{text}\\"\\n.byte 0\\n.text"'
    source = f"__asm__({included}); extern const char text[];"
    with pytest.raises(NoSQLiteError, match="names a SQLite release but holds no SQLite"):
        resolve(program(tmp_path, source + " int main(void) { return text[7]; }"))


MESSAGES = (
    "cannot commit transaction - SQL statements in progress",
    "cannot start a transaction within a transaction",
    "API called with NULL prepared statement",
    "API called with finalized prepared statement",
    "statement too long",
    SOURCE_ID,
)


def test_a_list_of_sqlites_messages_is_no_function_of_it(tmp_path: Path) -> None:
    # As a checker of logs may hold it: one function refers to all of them.
    messages = ", ".join(f'"{m}"' for m in MESSAGES)
    source = "#include <stdio.h>\n" + f"const char *const all[] = {{{messages}}};"
    source += "int main(void) { for (int i = 0; i < 6; i++) puts(all[i]);"
    source += " ".join(f'puts("{m}");' for m in MESSAGES) + "}"
    with pytest.raises(ResolutionError, match="could not be found; --offset and --layout"):
        resolve(program(tmp_path, source))


def test_a_program_that_uses_a_shared_sqlite_holds_none(tmp_path: Path) -> None:
    source = "int sqlite3_step(void *); int sqlite3_reset(void *);"
    source += " int main(void) { return sqlite3_step(0) + sqlite3_reset(0); }"
    with pytest.raises(NoSQLiteError):
        resolve(program(tmp_path, source, "-l:libsqlite3.so.0"))


@pytest.mark.parametrize(
    "module", ["modernc.org/sqlite", "github.com/ncruces/go-sqlite3", "github.com/glebarez/go-sqlite"]
)
@pytest.mark.parametrize("messages", [MESSAGES, (SOURCE_ID,)], ids=["messages", "source id"])
def test_sqlite_translated_to_go_is_called_so(module: str, messages: tuple[str, ...], tmp_path: Path) -> None:
    # What a Go linker leaves in every program (runtime/debug), and the texts that the translation keeps.
    info = rf"\377 Go buildinf:\010\002path\tcommand\nmod\tcommand\t(devel)\t\ndep\t{module}\tv1.29.1\th1:abc=\n"
    texts = ", ".join(f'"{m}"' for m in messages)
    source = f'const char info[] = "{info}"; const char *const all[] = {{{texts}}};'
    source += " int main(int n, char **a) { return info[n] + all[n][0]; }"
    with pytest.raises(ResolutionError, match=rf"holds SQLite translated to Go \({module} v1\.29\.1\), not C"):
        resolve(program(tmp_path, source))


def test_a_go_program_with_the_c_library_resolves_whatever_else_it_was_built_from() -> None:
    twin = lookalike("SKEW_GO_BUILD_INFO")
    assert_nothing_wrong(resolve(twin.stripped), twin)
    assert b"modernc.org/sqlite" in twin.stripped.read_bytes()
