"""The price of the probes themselves: the sites of the bcc backend with programs that do nothing.

`python -m benchmarks.empty LIBRARY CMD ...` runs a command while they are there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import sqltrace.bpf
from sqltrace.backends.bcc import links
from sqltrace.backends.bcc.sites import placed
from sqltrace.resolve import resolve

PROGRAMS = """
#include <uapi/linux/ptrace.h>
int at_entry(struct pt_regs *ctx) { return 0; }
int at_return(struct pt_regs *ctx) { return 0; }
"""


def main() -> int:
    """Place the probes (a uprobe_multi link each: kernel 6.6), run the command, return its exit status."""
    library, command = sys.argv[1], sys.argv[2:]
    os.environ["BCC_KERNEL_SOURCE"] = str(Path(sqltrace.bpf.__file__).parent / "shim")
    from bcc import BPF  # noqa: PLC0415 - it reads the variable above

    bpf = BPF(text=PROGRAMS.encode(), cflags=["-Wno-everything"])
    for name in ("at_entry", "at_return"):
        bpf.load_func(name.encode(), BPF.KPROBE, None, links.BPF_TRACE_UPROBE_MULTI)
    for name, found in placed(library, resolve(library)).items():
        if name == "sqlite3_step":
            links.attach_multi(links.Program(bpf.funcs[b"at_return"].fd, True), library, [found.offset], 0)
        links.attach_multi(links.Program(bpf.funcs[b"at_entry"].fd, False), library, [found.offset], 0)
    return subprocess.call(command)


if __name__ == "__main__":
    sys.exit(main())
