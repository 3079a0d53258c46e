"""The Python twin of the wire format against the C headers, and against garbage."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sqltrace.bpf
from sqltrace.events import wire
from sqltrace.resolution import Evidence, Field, Resolution

HEADERS = Path(sqltrace.bpf.__file__).parent
TYPES = """
typedef unsigned char u8; typedef unsigned short u16; typedef unsigned int u32; typedef unsigned long long u64;
typedef int s32; typedef long long s64;
#include <stddef.h>
#include <stdio.h>
"""


def compile_and_run(tmp_path: Path, body: str) -> dict[str, int]:
    source = tmp_path / "offsets.c"
    source.write_text(f'{TYPES}\n#include "records.h"\n#include "layout.h"\nint main(void) {{ {body} return 0; }}\n')
    subprocess.run(["gcc", f"-I{HEADERS}", "-o", tmp_path / "offsets", source], check=True)
    out = subprocess.run([tmp_path / "offsets"], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in out.splitlines())}


def test_every_member_of_a_statement_record_lies_where_the_c_struct_has_it(tmp_path: Path) -> None:
    names = [n for n in wire.STATEMENT.names or () if n not in ("type", "flags", "size")]
    counters = ["fullscan_steps", "sorts", "autoindexes", "vm_steps", "reprepares", "filter_misses", "filter_hits"]
    members = {n: f"counters[{counters.index(n)}]" if n in counters else n for n in names}
    body = "".join(f'printf("{n} %zu\\n", offsetof(struct record_statement, {m}));' for n, m in members.items())
    found = compile_and_run(tmp_path, body + 'printf("sizeof %zu\\n", sizeof(struct record_statement));')
    assert found.pop("sizeof") == wire.STATEMENT.itemsize == 128
    fields = wire.STATEMENT.fields
    assert fields is not None
    assert found == {n: fields[n][1] for n in names}


def test_every_member_of_a_layout_lies_where_the_c_struct_has_it(tmp_path: Path) -> None:
    names = wire.LAYOUT.names or ()
    body = "".join(f'printf("{n} %zu\\n", offsetof(struct layout, {n}));' for n in names)
    found = compile_and_run(tmp_path, body + 'printf("sizeof %zu\\n", sizeof(struct layout));')
    assert found.pop("sizeof") == wire.LAYOUT.itemsize == 64
    fields = wire.LAYOUT.fields
    assert fields is not None
    assert found == {n: fields[n][1] for n in names}


def test_records_have_the_sizes_of_the_c_structs(tmp_path: Path) -> None:
    body = "".join(
        f'printf("{kind.name} %zu\\n", sizeof(struct record_{kind.name.lower()}));' for kind in wire.RecordType
    )
    assert compile_and_run(tmp_path, body) == {kind.name: size for kind, size in wire.SIZES.items()}


def test_constants_are_those_of_the_header(tmp_path: Path) -> None:
    pairs = {
        "RECORD_STATEMENT": wire.RecordType.STATEMENT,
        "RECORD_MAPPING": wire.RecordType.MAPPING,
        "END_DONE": wire.End.DONE,
        "END_ERROR": wire.End.ERROR,
        "END_RESET": wire.End.RESET,
        "END_FINALIZE": wire.End.FINALIZE,
        "END_EXIT": wire.End.EXIT,
        "END_UNSEEN": wire.End.UNSEEN,
        "END_DETACH": wire.End.DETACH,
        "STATEMENT_AUTOCOMMIT": wire.AUTOCOMMIT,
        "STATEMENT_NESTED": wire.NESTED,
        "STATEMENT_INCOMPLETE": wire.INCOMPLETE,
        "STATEMENT_NO_COUNTERS": wire.NO_COUNTERS,
        "TEXT_LAST": wire.TEXT_LAST,
        "TEXT_NULL": wire.TEXT_NULL,
        "TEXT_TRUNCATED": wire.TEXT_TRUNCATED,
        "PROCESS_EXIT": wire.ProcessAction.EXIT,
        "UNKNOWN": wire.UNKNOWN,
    }
    body = "".join(f'printf("{n} %d\\n", {n});' for n in pairs)
    assert compile_and_run(tmp_path, body) == {n: int(v) for n, v in pairs.items()}


@given(st.binary(max_size=300))
def test_garbage_is_a_malformed_record_or_a_record_and_nothing_else(data: bytes) -> None:
    with contextlib.suppress(wire.MalformedRecordError):
        wire.parse_one(data)


@given(st.sampled_from(list(wire.RecordType)), st.integers(0, 2**32 - 1), st.binary(min_size=8, max_size=200))
def test_a_forged_size_or_length_is_refused(kind: wire.RecordType, size: int, rest: bytes) -> None:
    data = int(kind).to_bytes(2, "little") + b"\0\0" + size.to_bytes(4, "little") + rest
    try:
        record = wire.parse_one(data)
    except wire.MalformedRecordError:
        return
    assert size <= len(data)
    if isinstance(record, wire.Text):
        assert len(record.data) <= len(data)


def resolution(**layout: tuple[int, int]) -> Resolution:
    fields = {name.replace("__", "."): Field(o, s, (Evidence.ACCESSOR,)) for name, (o, s) in layout.items()}
    return Resolution("x", "ELF", "x86_64", None, "3.45.1", None, {}, fields)


def test_a_layout_without_zsql_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Vdbe\.zSql is not resolved"):
        wire.layout_words(resolution(Vdbe__db=(0, 8)))


@pytest.mark.parametrize(("counter", "sql", "count"), [(208, 248, 9), (212, 248, 9), (204, 232, 7), (168, 188, 5)])
def test_the_number_of_counters_follows_from_the_distance_to_zsql(counter: int, sql: int, count: int) -> None:
    words = wire.layout_words(resolution(Vdbe__db=(0, 8), Vdbe__zSql=(sql, 8), Vdbe__aCounter=(counter, 4)))
    row = np.frombuffer(words, dtype=wire.LAYOUT)[0]
    assert row["counters"] == count
    assert row["vdbe_read"] >= sql + 8
    assert row["Mem_n"] == wire.UNKNOWN


def test_an_absurd_offset_is_refused() -> None:
    with pytest.raises(ValueError, match="larger than any"):
        wire.layout_words(resolution(Vdbe__db=(0, 8), Vdbe__zSql=(4000, 8)))
