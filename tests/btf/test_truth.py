"""The catalogue against the compiler and against other people's DWARF.

Each claim is turned into a `_Static_assert(offsetof(...))` behind the amalgamation itself, for every member of every
struct: gcc refuses to go on where one is wrong, and checking takes it a second or two.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sqltrace.btf.catalogue import Layout, layout, layout_for
from sqltrace.btf.options import MOVERS, Variant, variants
from sqltrace.btf.reader import Btf
from tests.support.sqlite_builds import BUILD, amalgamation

VERSIONS = ("3.21.0", "3.38.5", "3.54.1")
CASES = [
    (),
    ("OMIT_TRACE",),
    ("DEBUG",),
    ("MAX_ATTACHED=31", "MAX_VARIABLE_NUMBER=250000"),
    ("MAX_ATTACHED=64",),
    ("MAX_ATTACHED=125", "DEBUG", "OMIT_TRACE"),
]


def compiled_like(version: str, options: tuple[str, ...]) -> Layout:
    found = layout(version, next(variants(version, frozenset(options))))
    assert found is not None
    return found


def assertions(found: Layout, leave_out: tuple[str, ...] = ()) -> list[str]:
    lines = []
    for name, number in found.btf.structs():
        if not found.moved_by(f"sizeof({name})", leave_out):
            lines.append(f'_Static_assert(sizeof(struct {name})=={found.btf.size(number)}, "sizeof {name}");')
        for member in found.btf.types[number].members:
            path = f"{name}.{member.name}"
            if member.bit_size or not member.name or found.moved_by(path, leave_out):
                continue
            true = f"offsetof(struct {name},{member.name})=={member.bits // 8}"
            if size := found.btf.size(member.type_id):  # none: `CollSeq *aColl[]`
                true += f" && sizeof(((struct {name}*)0)->{member.name})=={size}"
            lines.append(f'_Static_assert({true}, "{path}");')
    lines += [f'_Static_assert({n}=={v}, "{n}");' for n, v in found.constants.items()]
    return lines


def refused(version: str, options: tuple[str, ...], lines: list[str]) -> list[str]:
    source = (amalgamation(version) / "sqlite3.c").read_text(encoding="latin-1")
    # MemValue is a union, and btmutex.c is where the last of the structs has been declared.
    source = source[: source.index("/************** Begin file btree.c")]
    text = "\n".join(["#include <stddef.h>", source, *lines]).replace("struct MemValue", "union MemValue")
    text += "\n#endif" if "#ifndef SQLITE_AMALGAMATION" in source[:4000] else ""
    flags = [f"-DSQLITE_{o}" for o in options]
    done = subprocess.run(
        ["gcc", "-w", "-fsyntax-only", *flags, "-x", "c", "-"],
        input=text.encode("latin-1"), capture_output=True, check=False,
    )  # fmt: skip
    return [line for line in done.stderr.decode(errors="replace").splitlines() if " error: " in line]


@pytest.mark.parametrize("options", CASES, ids=lambda o: "+".join(o) or "default")
@pytest.mark.parametrize("version", VERSIONS)
def test_every_member_lies_where_the_compiler_has_it(version: str, options: tuple[str, ...]) -> None:
    lines = assertions(compiled_like(version, options))
    assert len(lines) > 400
    assert refused(version, options, lines) == []


def test_a_wrong_offset_would_be_refused() -> None:
    wrong = ['_Static_assert(offsetof(struct Vdbe,zSql)==240, "Vdbe.zSql");']
    assert "Vdbe.zSql" in "".join(refused("3.54.1", (), wrong))


@pytest.mark.parametrize("option", sorted(MOVERS))
def test_an_option_moves_no_other_members_than_it_is_said_to(option: str) -> None:
    for version in ("3.29.0", "3.54.1"):
        found = layout_for(version)
        assert found is not None
        assert refused(version, (option,), assertions(found, (option,))) == [], version


@pytest.mark.skipif(shutil.which("pahole") is None, reason="needs pahole")
def test_debug_information_in_somebody_elses_wheel_says_the_same(tmp_path: Path) -> None:
    directory = BUILD / "wheels"
    if not list(directory.glob("pysqlite3-0.6.1-*.whl")):
        pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run(
            [*pip, "--only-binary", ":all:", "-d", directory, "pysqlite3==0.6.1"], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip(f"cannot fetch pysqlite3: {done.stderr.decode()[-200:]}")
    (wheel,) = directory.glob("pysqlite3-0.6.1-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".so")]
        library = archive.extract(name, tmp_path)
    out = tmp_path / "library.btf"
    subprocess.run(["pahole", f"--btf_encode_detached={out}", library], check=True, capture_output=True)
    theirs, ours = Btf.parse(out.read_bytes()), layout("3.53.4", Variant())
    assert ours is not None
    compared = 0
    for struct in ("Vdbe", "Mem", "Db", "Btree", "Pager", "BtCursor", "BtreePayload", "VdbeCursor", "Schema", "Table"):
        number = ours.btf.resolve(ours.btf.find(struct) or 0)
        for member in ours.btf.types[number].members:
            if not member.name or (struct == "Vdbe" and member.name == "nVar"):  # MAX_VARIABLE_NUMBER=250000
                continue
            assert theirs.place(f"{struct}.{member.name}") == ours.place(f"{struct}.{member.name}"), member.name
            compared += 1
    assert compared > 200
