"""What the compiler says about SQLite's structs: offsetof and sizeof, from the amalgamation itself."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import subprocess
from collections.abc import Sequence

from sqltrace.resolve.catalogue import FIELDS
from tests.support.sqlite_builds import BUILD, amalgamation

MEMBERS = [*(name for name in FIELDS if "." in name), "Vdbe.iVdbeMagic"]
ARRAYS = {"Vdbe.aCounter", "Pager.aStat"}
"""Of these the resolver tells the size of an element."""
CONSTANTS = ["sizeof(Mem)", "sizeof(Db)", "MEM_Zero"]


def _has_member(source: str, struct: str, member: str) -> bool:
    body = re.search(rf"^struct {struct} \{{(.*?)^\}};", source, re.MULTILINE | re.DOTALL)
    return body is not None and re.search(rf"\b{member}\b(?:\[[^\]]*\])?(?: *: *\d+)?[;,]", body.group(1)) is not None


@functools.cache
def true_layout(version: str, flags: Sequence[str] = ()) -> dict[str, tuple[int, int]]:
    """Return (offset, size) of each member that this release has; CONSTANTS as (value, 0).

    Only the part of the amalgamation up to btree.c is compiled: by then all structs are declared.
    """
    cached = (
        BUILD / "layout" / (hashlib.sha256("\0".join([version, *flags, *MEMBERS]).encode()).hexdigest()[:16] + ".json")
    )
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_text(json.dumps(_compile(version, flags)))
    return {name: (offset, size) for name, (offset, size) in json.loads(cached.read_text()).items()}


def _compile(version: str, flags: Sequence[str]) -> dict[str, tuple[int, int]]:
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
    done = subprocess.run(
        ["gcc", "-w", "-O0", "-S", *flags, "-x", "c", "-", "-o", "-"],
        input=program.encode("latin-1"),
        check=True,
        capture_output=True,
    )
    text = done.stdout.decode()
    body = text[re.search(r"^truth:", text, re.MULTILINE).end() :]  # type: ignore[union-attr]
    numbers: list[int] = []
    for directive, value in re.findall(r"\.(long|zero)\s+(\d+)", body)[: len(values) + 1]:
        numbers += [int(value)] if directive == "long" else [0] * (int(value) // 4)
    return dict(zip([*names, *CONSTANTS], zip(numbers[::2], numbers[1::2], strict=False), strict=False))
