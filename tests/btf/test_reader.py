"""The reader against bpftool, and against files that nobody should believe."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqltrace.btf import store
from sqltrace.btf.format import HEADER, MAGIC, MEMBER, RECORD, Kind
from sqltrace.btf.listing import struct_lines
from sqltrace.btf.reader import Btf, BtfError, Place
from sqltrace.btf.relayout import laid_out_anew
from sqltrace.btf.writer import encode
from sqltrace.errors import SqltraceError

SAMPLES = ("3.7.7.1.btf", "3.21.0-debug.btf", "3.54.1.btf")


def btf_file(*records: bytes, strings: bytes = b"\0A\0B\0") -> bytes:
    types = b"".join(records)
    return HEADER.pack(MAGIC, 1, 0, HEADER.size, 0, len(types), len(types), len(strings)) + types + strings


def record(kind: Kind, word: int, name: int = 0, count: int = 0) -> bytes:
    return RECORD.pack(name, kind << 24 | count, word)


@pytest.mark.skipif(shutil.which("bpftool") is None, reason="needs bpftool")
@pytest.mark.parametrize("name", SAMPLES)
def test_bpftool_reads_the_same(name: str, tmp_path: Path) -> None:
    content = store.files()[name]
    (tmp_path / "file.btf").write_bytes(content)
    dumped = subprocess.run(
        ["bpftool", "-j", "btf", "dump", "file", tmp_path / "file.btf"], capture_output=True, check=True
    ).stdout
    theirs = json.loads(dumped)["types"]
    ours = Btf.parse(content)
    assert len(theirs) == len(ours.types) - 1
    for their in theirs:
        our = ours.types[their["id"]]
        assert (our.kind.name, our.name) == (their["kind"], their["name"].replace("(anon)", ""))
        assert our.size == their.get("size", 0)
        assert our.type_id == their.get("type_id", 0)
        assert our.count == their.get("nr_elems", 0)
        members = [(m.name, m.type_id, m.bits, m.bit_size) for m in our.members]
        assert members == [
            (m["name"].replace("(anon)", ""), m["type_id"], m["bits_offset"], m.get("bitfield_size", 0))
            for m in their.get("members", [])
        ]
        # bpftool 7.1 extends the sign of values above 0x7fffffff to 64 bits, though the enum is unsigned.
        values = [(e.name, e.value & 0xFFFFFFFF) for e in our.enumerators]
        assert values == [(e["name"], e["val"] & 0xFFFFFFFF) for e in their.get("values", [])]


@pytest.mark.parametrize("name", sorted(store.files()))
def test_writing_what_was_read_gives_the_same_file(name: str) -> None:
    assert encode(Btf.parse(store.files()[name])) == store.files()[name]


@pytest.mark.parametrize("name", sorted(store.files()))
def test_laying_out_anew_what_did_not_change_changes_nothing(name: str) -> None:
    btf = Btf.parse(store.files()[name])
    assert laid_out_anew(btf).types == btf.types


def test_a_path_leads_through_structs_arrays_and_bit_fields() -> None:
    btf = Btf.parse(store.files()["3.54.1.btf"])
    assert btf.place("Vdbe.zSql") == Place(248, 8, 8)
    assert btf.place("BtCursor.info.nKey") == Place(48, 8, 8)
    assert btf.place("Pager.aStat") == Place(248, 16, 4)
    assert btf.place("Pager.aStat[1]") == Place(252, 4, 4)
    assert btf.place("Mem.u.r") == Place(0, 8, 8)
    assert btf.place("Vdbe.readOnly") == Place(200, 1, 1, 6, 1)
    assert btf.sizeof("Mem") == 56


@pytest.mark.parametrize(
    "path",
    ["", ".", "Vdbe", "Vdbe.", "Vdbe.nothing", "Nothing.zSql", "Vdbe.zSql.x", "Vdbe.zSql[0]", "Pager.aStat[4]",
     "Pager.aStat[-1]", "Vdbe.readOnly.x", "Vdbe.readOnly[0]", "u8.x", "Vdbe.zSql ", "Pager.aStat[1"],
)  # fmt: skip
def test_a_path_to_nowhere_is_none(path: str) -> None:
    assert Btf.parse(store.files()["3.54.1.btf"]).place(path) is None


def test_the_listing_has_the_form_of_c() -> None:
    text = "\n".join(struct_lines(Btf.parse(store.files()["3.54.1.btf"]), "Mem"))
    assert text.startswith("struct sqlite3_value {")
    assert "    char *z;" in text
    assert text.endswith("/* sizeof: 56 */")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "header"),
        (b"\xeb\x9f" + bytes(30), "not BTF"),
        (btf_file(record(Kind.PTR, 0))[:-8], "cut short"),
        (btf_file(b"\0" * 5), "within a type"),
        (btf_file(record(Kind.STRUCT, 8, count=65535)), "within a type"),
        (btf_file(record(Kind.PTR, 2)), "does not hold"),
        (btf_file(record(Kind.PTR, 0, name=99)), "name"),
        (btf_file(record(Kind.PTR, 0, name=1), strings=b"\0A"), "name"),
        (btf_file(struct.pack("<III", 0, 31 << 24, 0)), "kind 31"),
    ],
)
def test_what_is_no_btf_is_refused_with_the_reason(data: bytes, complaint: str) -> None:
    with pytest.raises(BtfError, match=complaint) as caught:
        Btf.parse(data)
    assert isinstance(caught.value, SqltraceError)
    assert isinstance(caught.value, ValueError)


def test_a_typedef_of_itself_ends() -> None:
    btf = Btf.parse(btf_file(record(Kind.TYPEDEF, 1, name=1)))
    with pytest.raises(BtfError, match="without end"):
        btf.sizeof("A")


def test_an_array_of_itself_ends() -> None:
    array = record(Kind.ARRAY, 0) + struct.pack("<III", 1, 0, 0xFFFFFFFF)
    btf = Btf.parse(btf_file(array, record(Kind.TYPEDEF, 1, name=1)))
    with pytest.raises(BtfError, match="without end"):
        btf.sizeof("A")


def test_a_struct_within_itself_ends() -> None:
    btf = Btf.parse(btf_file(record(Kind.STRUCT, 8, name=1, count=1) + MEMBER.pack(0, 1, 0)))
    assert btf.place("A.x") is None
    assert list(struct_lines(btf, "A"))
    with pytest.raises(BtfError, match="without end"):
        laid_out_anew(btf)


def test_nameless_structs_that_double_at_each_level_are_searched_once() -> None:
    levels = [record(Kind.STRUCT, 8, count=2) + MEMBER.pack(0, n + 2, 0) * 2 for n in range(500)]
    btf = Btf.parse(btf_file(record(Kind.STRUCT, 8, name=1, count=1) + MEMBER.pack(0, 2, 0), *levels[1:],
                             record(Kind.STRUCT, 8)))  # fmt: skip
    assert btf.place("A.x") is None


def use(data: bytes) -> None:
    """Do with a file all that a user can, and let only BtfError pass."""
    try:
        btf = Btf.parse(data)
        for name, number in list(btf.structs())[:20]:
            for member in btf.types[number].members[:20]:
                btf.place(f"{name}.{member.name}")
            btf.sizeof(name)
            list(struct_lines(btf, name))
        laid_out_anew(btf)
    except BtfError:
        pass


@given(st.binary(max_size=300))
def test_noise_is_refused(data: bytes) -> None:
    use(data)


@given(st.binary(max_size=300))
def test_noise_behind_a_header_is_read_or_refused(data: bytes) -> None:
    use(btf_file(data[: len(data) // 4 * 4]))


@given(st.lists(st.tuples(st.integers(0, 13000), st.integers(0, 255)), min_size=1, max_size=20))
def test_a_damaged_file_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(store.files()["3.54.1.btf"])
    for at, value in changes:
        data[at % len(data)] = value
    use(bytes(data))
