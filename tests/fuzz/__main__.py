"""Fuzz targets for a while, with atheris: `python -m tests.fuzz SECONDS [TARGET...]`, or `make fuzz`.

Each target runs in a process of its own, limited to 1 GiB and 30 seconds an input.  It starts from seeds.py, from
corpus/TARGET and from what earlier runs collected under build/fuzz; a finding lands in findings/TARGET, for
test_corpus.py to repeat it for ever, and ends the run with a failure.
`--minimise` replaces corpus/TARGET by the few small files of build/fuzz that reach most of what was reached.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS
from tests.support.sqlite_builds import BUILD

HERE = Path(__file__).parent
MEGABYTES = 1024
RUNS = 40000
"""Then a new process goes on: atheris 3.0 keeps what numpy's arrays were compared with (16 kB an input)."""
MOST_GROWTH = 256 << 10
"""kB that the peak may grow by during one input: the files are tiny, so that this is somebody's count believed."""
SECONDS_PER_INPUT = 30
LARGEST = {
    "elf": 40000,
    "macho": 40000,
    "resolver": 40000,
    "debugdata": 20000,
    "code": 2048,
    "btf": 16000,
    "cache": 8192,
}
LARGEST_STORED = 4000
MOST_STORED = 22000
"""Bytes of a file in the corpus, and of all for one target: seeds.py has the whole files."""


def main() -> int:
    """Return 0 when no target had a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("seconds", type=int)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--minimise", action="store_true")
    parser.add_argument("--within", help=argparse.SUPPRESS)
    arguments, rest = parser.parse_known_args()
    if arguments.within:
        return _fuzz(arguments.within, rest)
    targets = arguments.targets or list(TARGETS)
    if arguments.minimise:
        for target in targets:
            _minimise(target)
        return 0
    failed = [target for target in targets if not _run(target, arguments.seconds)]
    if failed:
        print(f"findings in {', '.join(failed)}: see {HERE.relative_to(Path.cwd())}/findings")  # noqa: T201 - a tool's report
    return 1 if failed else 0


def _run(target: str, seconds: int) -> bool:
    """Run one target in a process of its own; return whether nothing was found."""
    collected, stored, found = BUILD / "fuzz" / target, HERE / "corpus" / target, HERE / "findings" / target
    for directory in (collected, stored, found):
        directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        for i, content in enumerate(seeds(target)):
            (Path(directory) / f"seed-{i}").write_bytes(content)
        options = [
            f"-rss_limit_mb={MEGABYTES}",
            f"-timeout={SECONDS_PER_INPUT}",
            f"-max_len={LARGEST.get(target, 4096)}",
            f"-artifact_prefix={found}/",
            "-print_final_stats=1",
        ]
        options += [f"-runs={RUNS}", str(collected), str(stored), str(found), directory]
        end = time.monotonic() + seconds
        while True:
            left = max(1, math.ceil(end - time.monotonic()))
            command = [sys.executable, "-m", "tests.fuzz", "0", "--within", target, f"-max_total_time={left}", *options]
            status = subprocess.run(command, check=False).returncode
            if status or time.monotonic() >= end:
                break
    if not any(found.iterdir()):
        found.rmdir()
    return status == 0


def _minimise(target: str) -> None:
    """Keep of what was collected the smallest files that each take a way through our code that no smaller one takes."""
    stored = HERE / "corpus" / target
    stored.mkdir(parents=True, exist_ok=True)
    collected = sorted({f.read_bytes() for d in (BUILD / "fuzz" / target, stored) for f in d.iterdir()}, key=len)
    for file in stored.iterdir():
        file.unlink()
    known: set[tuple[str, int, int]] = set()
    room = MOST_STORED
    for content in collected:
        if len(content) > min(LARGEST_STORED, room):
            break
        ways = _ways(target, content)
        if ways - known:
            known |= ways
            room -= len(content)
            (stored / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)


def _ways(target: str, content: bytes) -> set[tuple[str, int, int]]:
    """Return the steps from line to line that our code takes for this input."""
    steps: set[tuple[str, int, int]] = set()

    def within(frame: FrameType) -> Callable[[FrameType, str, object], object]:
        name, line = frame.f_code.co_qualname, 0

        def step(frame: FrameType, _event: str, _argument: object) -> object:
            nonlocal line
            steps.add((name, line, frame.f_lineno))
            line = frame.f_lineno
            return step

        return step

    def call(frame: FrameType, _event: str, _argument: object) -> object:
        return within(frame) if "sqltrace" in frame.f_code.co_filename else None

    sys.settrace(call)
    try:
        TARGETS[target](content)
    finally:
        sys.settrace(None)
    return steps


def _fuzz(target: str, options: list[str]) -> int:
    import atheris  # noqa: PLC0415 - only `make fuzz` installs it

    with atheris.instrument_imports(include=["sqltrace"]):
        _forget_imports()
        from tests.fuzz.targets import TARGETS as INSTRUMENTED  # noqa: PLC0415 - this is what instruments it

    def frugal(data: bytes) -> None:
        before = _peak()
        INSTRUMENTED[target](data)
        if _peak() - before > MOST_GROWTH:
            raise MemoryError(f"an input of {len(data)} bytes took {_peak() - before >> 10} MB")

    atheris.Setup([f"fuzz-{target}", *options], frugal)
    atheris.Fuzz()
    return 0


def _peak() -> int:
    """Return the most kB of memory that this process ever held at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _forget_imports() -> None:
    """Let what was imported before instrumentation be imported again."""
    for name in [n for n in sys.modules if n.split(".")[0] == "sqltrace" or n == "tests.fuzz.targets"]:
        del sys.modules[name]


if __name__ == "__main__":
    sys.exit(main())
