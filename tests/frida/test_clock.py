"""The hooks' clock: reckoned from the time-stamp counter, held to the kernel's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sqltrace.backends.frida.sources import hooks_source
from sqltrace.backends.frida.tsc import counter_is_trusted

MAIN = """
int printf(const char *, ...); unsigned long long strtoull(const char *, char **, int);
struct module module; char pages[65536]; struct private private; struct constants constants = {0, 1};
int main(int argc, char **argv)
{
  u64 worst = 0, reckoned = 0, i, start = clock_now(), run = strtoull(argv[1], 0, 10) * 1000000;
  int naps = argc > 2;
  while (clock_now() - start < run) {
    u64 before = clock_now(), told = now(), after = clock_now(), off = 0;
    if (told < before) off = before - told;
    if (told > after) off = told - after;
    if (off > worst) worst = off;
    reckoned += private.clock.tsc != 0 && private.clock.wrong <= WRONG;
    if (naps) { struct timespec t = {0, 3000000}; nap(&t); }
  }
  printf("%llu %llu %llu\\n", worst, reckoned, private.clock.wrong);
  return 0;
}
"""
SLOWED = """
static u64 ticks(void) { static u64 first, n; u64 t = real_ticks(); if (!first) first = t;
  n = t - first; return n > (1ULL << 26) ? t + (n - (1ULL << 26)) / 4 : t; }
static u64 syscall0(u64 number)"""


def measured(folder: Path, source: str, *arguments: str) -> list[int]:
    (folder / "glib.h").touch()
    (folder / "clock.c").write_text(
        source.replace("extern struct ring_header ring;", "struct ring_header ring;") + MAIN
    )
    subprocess.run(["gcc", "-O2", "-w", "-I", folder, "-o", folder / "clock", folder / "clock.c"], check=True)
    out = subprocess.run([folder / "clock", *arguments], check=True, capture_output=True, text=True).stdout
    return [int(word) for word in out.split()]


needs_counter = pytest.mark.skipif(not counter_is_trusted(), reason="the kernel does not keep time by the counter")


@needs_counter
@pytest.mark.parametrize("arguments", [["400"], ["400", "naps"]])
def test_reckoned_time_is_the_kernels(tmp_path: Path, arguments: list[str]) -> None:
    worst, reckoned, wrong = measured(tmp_path, hooks_source(), *arguments)
    assert worst < 3000  # ns beyond what was read just before and after
    assert reckoned > 0
    assert wrong <= 3


@needs_counter
def test_a_counter_that_changes_its_rate_is_given_up(tmp_path: Path) -> None:
    source = hooks_source().replace("static u64 ticks(void)", "static u64 real_ticks(void)")
    source = source.replace("\nstatic u64 syscall0(u64 number)", SLOWED, 1)
    _, _, wrong = measured(tmp_path, source, "400")
    assert wrong > 3


@pytest.mark.parametrize(
    ("source", "flags", "trusted"),
    [
        ("tsc", "fpu constant_tsc nonstop_tsc", True),
        ("tsc", "fpu constant_tsc", False),
        ("kvm-clock", "constant_tsc nonstop_tsc", False),
    ],
)
def test_the_counter_is_trusted_where_the_kernel_does(tmp_path: Path, source: str, flags: str, trusted: bool) -> None:
    (tmp_path / "source").write_text(source + "\n")
    (tmp_path / "cpuinfo").write_text(f"processor: 0\nflags\t\t: {flags}\n")
    assert counter_is_trusted(tmp_path / "source", tmp_path / "cpuinfo") is trusted
    assert not counter_is_trusted(tmp_path / "none", tmp_path / "cpuinfo")
