"""What compilers say about SQLite's structs: a build's own DWARF, or offsetof and sizeof in the amalgamation itself."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from elftools.dwarf.die import DIE
from elftools.elf.elffile import ELFFile

from sqltrace.resolve.catalogue import FIELDS
from tests.support.sqlite_builds import BUILD, amalgamation

MEMBERS = [*(name for name in FIELDS if "." in name), "Vdbe.iVdbeMagic"]
ARRAYS = {"Vdbe.aCounter", "Pager.aStat"}
"""Of these the resolver tells the size of an element."""
CONSTANTS = ["sizeof(Mem)", "sizeof(Db)", "MEM_Zero"]


_STRUCTS = {name.split(".")[0].replace("Mem", "sqlite3_value") for name in MEMBERS}
_ZERO = re.compile(r"^#define MEM_Zero +(0x[0-9a-f]+)", re.MULTILINE)


@functools.cache
def dwarf_layout(file: Path, version: str) -> dict[str, tuple[int, int]]:
    """Return what `true_layout` does from the DWARF of one build."""
    found: dict[str, tuple[int, int]] = {}
    with file.open("rb") as stream:
        for unit in ELFFile(stream).get_dwarf_info().iter_CUs():
            for die in unit.get_top_DIE().iter_children() if _name(unit.get_top_DIE()).endswith("sqlite3.c") else ():
                size = die.attributes.get("DW_AT_byte_size")
                if die.tag == "DW_TAG_structure_type" and _name(die) in _STRUCTS and size is not None:
                    struct = _name(die).replace("sqlite3_value", "Mem")
                    found[f"sizeof({struct})"] = (size.value, 0)
                    for member in die.iter_children():
                        place = member.attributes.get("DW_AT_data_member_location")
                        if place is not None:
                            found[f"{struct}.{_name(member)}"] = (place.value, _size(member))
    found = {name: fact for name, fact in found.items() if name in (*MEMBERS, *CONSTANTS)}
    source = (amalgamation(version) / "sqlite3.c").read_text(encoding="latin-1")
    return {**found, "MEM_Zero": (int(_ZERO.search(source)[1], 16), 0)}  # type: ignore[index]


def _name(die: DIE) -> str:
    name = die.attributes.get("DW_AT_name")
    return name.value.decode() if name is not None else ""


def _size(die: DIE) -> int:
    """Return the size of what has a type, such as a member."""
    kind = die.get_DIE_from_attribute("DW_AT_type")
    if kind.tag == "DW_TAG_array_type":
        ranges = [c for c in kind.iter_children() if c.tag == "DW_TAG_subrange_type"]
        counts = [r.attributes.get("DW_AT_count") for r in ranges]
        bounds = [r.attributes.get("DW_AT_upper_bound") for r in ranges]
        pairs = zip(counts, bounds, strict=True)
        return math.prod(c.value if c else b.value + 1 if b else 0 for c, b in pairs) * _size(kind)
    if "DW_AT_byte_size" in kind.attributes:
        return int(kind.attributes["DW_AT_byte_size"].value)
    return 8 if kind.tag == "DW_TAG_pointer_type" else _size(kind)


def _has_member(source: str, struct: str, member: str) -> bool:
    body = re.search(rf"^struct {struct} \{{(.*?)^\}};", source, re.MULTILINE | re.DOTALL)
    return body is not None and re.search(rf"\b{member}\b(?:\[[^\]]*\])?(?: *: *\d+)?[;,]", body.group(1)) is not None


@functools.cache
def true_layout(
    version: str, flags: Sequence[str] = (), command: Sequence[str] = ("gcc",)
) -> dict[str, tuple[int, int]]:
    """Return (offset, size) of each member that this release has; CONSTANTS as (value, 0).

    Only the part of the amalgamation up to btree.c is compiled: by then all structs are declared.
    """
    target = [] if tuple(command) == ("gcc",) else command[1:]
    key = hashlib.sha256("\0".join([version, *flags, *MEMBERS, *target]).encode()).hexdigest()[:16]
    cached = BUILD / "layout" / f"{key}.json"
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_text(json.dumps(_compile(version, flags, command)))
    return {name: (offset, size) for name, (offset, size) in json.loads(cached.read_text()).items()}


def _compile(version: str, flags: Sequence[str], command: Sequence[str]) -> dict[str, tuple[int, int]]:
    source = (amalgamation(version) / "sqlite3.c").read_text(encoding="latin-1")
    names = []
    for name in MEMBERS:
        struct, member = name.split(".")
        struct = {"Mem": "(?:Mem|sqlite3_value)"}.get(struct, struct)
        if _has_member(source, struct, member):
            names.append(name)
    values = []
    for name in names:
        struct, member = name.replace("Mem.", "sqlite3_value.").split(".")
        values += [f"offsetof(struct {struct}, {member})", f"sizeof(((struct {struct}*)0)->{member})"]
    for name in CONSTANTS:
        values += [name.replace("(Db)", "(struct Db)"), "0"]
    cut = source.index("/************** Begin file btree.c")
    opened = "#ifndef" in source[: source.index("#define")]  # newer ones guard the whole file
    program = f"#include <stddef.h>\n{source[:cut]}\nconst unsigned truth[] = {{{', '.join(values)}}};\n"
    program += "#endif\n" if opened else ""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "truth.s"
        subprocess.run(
            [*command, "-w", "-O0", "-g0", "-S", *flags, "-x", "c", "-", "-o", written],
            input=program.encode("latin-1"),
            check=True,
            capture_output=True,
        )
        text = written.read_text()
    body = text[re.search(r"^_?truth:", text, re.MULTILINE).end() :]  # type: ignore[union-attr]
    numbers: list[int] = []
    for directive, value in re.findall(r"\.(long|zero|space)\s+(\d+)", body)[: len(values) + 1]:
        numbers += [int(value)] if directive == "long" else [0] * (int(value) // 4)
    return dict(zip([*names, *CONSTANTS], zip(numbers[::2], numbers[1::2], strict=False), strict=False))
