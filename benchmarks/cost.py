"""What a statement costs more when it is observed: CPU time in the target's thread, ratios within one run."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sqltrace.backends.choice import BACKENDS, load

KINDS = ("INSERT, 2 parameters", "SELECT ?", "100 rows")
ROUNDS = 3


def build(folder: Path) -> Path:
    """Compile the program to observe against the system's SQLite."""
    program = folder / "hot_loop"
    source = Path(__file__).with_name("hot_loop.c")
    subprocess.run(["gcc", "-O2", "-o", program, source, "-lsqlite3"], check=True)
    return program


def modes(program: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield a name and the command for each way to observe."""
    yield "not observed", [str(program), "none"]
    yield "sqlite3_trace_v2 PROFILE", [str(program), "profile"]
    for name in BACKENDS:
        if load(name).available().ok:
            tracer = [sys.executable, "-m", "sqltrace", "run", "-q", "--backend", name, "--force", "-o", "/dev/null"]
            yield f"sqltrace --backend {name}", [*tracer, "--", str(program), "none"]


def table() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        commands = dict(modes(build(Path(folder))))
        best: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for name, command in commands.items():
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                times = [float(word) for word in done.stdout.split()]
                best[name] = [min(a, b) for a, b in zip(best.get(name, times), times, strict=True)]
    print(f"\nCPU time of one execution, ns (smallest of {ROUNDS} rounds)")
    print(f"{'':<28}" + "".join(f"{kind:>32}" for kind in KINDS))
    base = best["not observed"]
    for name, times in best.items():
        cells = (f"{t:>12.0f} {t - b:>+10.0f} x{t / b:<7.2f}" for t, b in zip(times, base, strict=True))
        print(f"{name:<28}" + "".join(cells))
