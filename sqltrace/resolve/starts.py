"""Whether a function can start at an address that somebody gave us.

What the rungs find is a start by the way it was found.  `--offset` can be a typing error, or an address of another
build, and a probe in the middle of an instruction changes what the program does.  So everything that speaks
against a start is looked for: data instead of code, bytes that are no instruction, unwind data, and, where there
is none, the code before: the function that reaches over the address, read from its own start.
"""

from __future__ import annotations

from typing import Final

from sqltrace.resolve.callgraph import CallGraph
from sqltrace.resolve.code import code_of
from sqltrace.resolve.image import Image
from sqltrace.resolve.symbolic import Executor

_NEARBY: Final = 256 << 10


def objection(image: Image, executor: Executor, address: int) -> str | None:
    """Return why no function can start at `address`, None where nothing speaks against it."""
    if not image.is_code(address):
        return "would not lie in executable code"
    if image.contradicts_start(address):
        return "would start in the middle of a function, unwind data says"
    if not executor.size_at(address):
        return "would not start with an instruction"
    if image.unwind_covers(address):
        return None
    graph = CallGraph(image, address - _NEARBY, address + _NEARBY)
    before = graph.function_at(address)
    if before is None or before == address:
        return None
    reached = code_of(image).reachable(before, before + graph.size(before))
    if address in reached:
        return f"would start in the middle of the function at {before:#x}"
    last = max(pc for pc in reached if pc < address)  # the function's own start is
    if address < last + executor.size_at(last):
        return f"would start within an instruction, the one at {last:#x}"
    return None
