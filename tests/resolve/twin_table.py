"""The builds of SQLite that the resolver is held to, and what it does not find in each.

They are spread over the axes (release, compiler, optimisation, linkage, processor, format, with and without the API
table), not a product of them: each value of each axis several times, and the pairs that make a difference.
A public function or one of the internal ones that exists in the build and is neither found nor listed here fails
the test, and so does one that is listed and found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tests.support.sqlite_builds import Build

NO_TABLE: Final = "OMIT_LOAD_EXTENSION"
EXTENSIONS: Final = "ENABLE_FTS5 ENABLE_FTS3 ENABLE_RTREE ENABLE_SESSION ENABLE_PREUPDATE_HOOK"
_X64, _ARM64 = "x86_64-linux-gnu", "aarch64-linux-gnu"
_X64_MUSL, _ARM64_MUSL = "x86_64-linux-musl", "aarch64-linux-musl"
_X64_MAC, _ARM64_MAC = "x86_64-macos", "aarch64-macos"


@dataclass(frozen=True, slots=True)
class Case:
    """A build; what is in it and not found, by name with the reason; whether every run of the tests resolves it."""

    build: Build
    missing: Mapping[str, str] = field(default_factory=dict)
    quick: bool = False

    def __str__(self) -> str:
        return str(self.build)


_UNCALLED: Final = "nothing calls it, and zig's linker leaves LC_FUNCTION_STARTS empty"
_UNKNOWN: Final = "nothing calls it, and there is no unwind data"
_NO_HDR: Final = "-Wl,--no-eh-frame-hdr"
_NO_STARTS: Final = dict.fromkeys(("sqlite3_prepare", "sqlite3_prepare_v3", "sqlite3_close_v2"), _UNKNOWN)
_WITHOUT_UNWIND: Final = "-fno-asynchronous-unwind-tables -fno-unwind-tables"

CASES: Final = (
    # gcc, x86-64
    Case(Build("3.50.4", "gcc", _X64, "pie", "-O2"), quick=True),
    Case(Build("3.50.4", "gcc", _X64, "so", "-O2"), quick=True),
    Case(Build("3.50.4", "gcc", _X64, "no-pie", "-O2", f"{NO_TABLE} OMIT_TRACE"), quick=True),
    Case(Build("3.50.4", "gcc", _X64, "pie", "-O1", f"{NO_TABLE} MAX_ATTACHED=125"), quick=True),
    Case(Build("3.37.2", "gcc", _X64, "static", "-O2", NO_TABLE), quick=True),
    Case(Build("3.54.1", "gcc", _X64, "pie", "-O2", f"{NO_TABLE} THREADSAFE=0"), quick=True),
    Case(Build("3.50.4", "gcc", _X64, "pie", "-O0")),
    Case(Build("3.54.1", "gcc", _X64, "static", "-O0", NO_TABLE)),
    Case(Build("3.20.1", "gcc", _X64, "no-pie", "-O0", NO_TABLE), quick=True),
    Case(Build("3.20.1", "gcc", _X64, "pie", "-O2")),
    Case(Build("3.21.0", "gcc", _X64, "pie", "-Os", NO_TABLE)),
    Case(Build("3.22.0", "gcc", _X64, "static-pie", "-O2", NO_TABLE)),
    Case(Build("3.24.0", "gcc", _X64, "pie", "-O3", NO_TABLE)),
    Case(Build("3.26.0", "gcc", _X64, "pie", "-O2", NO_TABLE)),
    Case(Build("3.29.0", "gcc", _X64, "pie", "-O2", NO_TABLE)),
    Case(Build("3.31.1", "gcc", _X64, "pie", "-Os", f"{NO_TABLE} {EXTENSIONS}")),
    Case(Build("3.34.0", "gcc", _X64, "no-pie", "-O1", f"{NO_TABLE} {EXTENSIONS}")),
    Case(Build("3.35.2", "gcc", _X64, "so", "-O3", NO_TABLE), quick=True),
    Case(Build("3.38.5", "gcc", _X64, "pie", "-O2 -flto", NO_TABLE)),
    Case(Build("3.40.1", "gcc", _X64, "static", "-O3")),
    Case(Build("3.45.3", "gcc", _X64, "pie", "-O3", f"{NO_TABLE} {EXTENSIONS}")),
    Case(
        Build("3.47.2", "gcc", _X64, "pie", f"-O2 {_WITHOUT_UNWIND}", NO_TABLE, link="-Wl,--no-eh-frame-hdr"),
        _NO_STARTS,
    ),
    Case(Build("3.50.4", "gcc", _X64, "pie", "-O2 -flto")),
    Case(Build("3.53.4", "gcc", _X64, "pie", "-O2 -flto -fcf-protection=full", NO_TABLE)),
    Case(Build("3.53.4", "gcc", _X64, "no-pie", "-O2 -flto -fwhole-program", NO_TABLE, program="exec_driver")),
    Case(Build("3.43.2", "gcc", _X64, "static", "-Os -flto", NO_TABLE, program="exec_driver"), quick=True),
    Case(
        Build(
            "3.51.3", "gcc", _X64, "pie", "-O2 -ffunction-sections -fdata-sections", NO_TABLE, link="-Wl,--gc-sections"
        )
    ),
    Case(Build("3.54.1", "gcc", _X64, "so", "-O3 -flto")),
    # clang, x86-64
    Case(Build("3.50.4", "clang", _X64, "pie", "-O2", NO_TABLE)),
    Case(Build("3.54.1", "clang", _X64, "so", "-O2", NO_TABLE)),
    Case(Build("3.49.2", "clang", _X64, "no-pie", "-O3", NO_TABLE)),
    Case(Build("3.41.0", "clang", _X64, "pie", "-Os", NO_TABLE)),
    Case(Build("3.42.0", "clang", _X64, "static", "-O0", NO_TABLE)),
    Case(Build("3.39.1", "clang", _X64, "pie", "-O2 -flto", NO_TABLE, link="-fuse-ld=lld")),
    Case(Build("3.53.4", "clang", _X64, "pie", "-O3 -flto", link="-fuse-ld=lld")),
    Case(Build("3.47.2", "clang", _X64, "pie", "-O2 -flto=thin", NO_TABLE, link="-fuse-ld=lld", program="exec_driver")),
    Case(Build("3.36.0", "clang", _X64, "pie", "-O2", f"{NO_TABLE} {EXTENSIONS}")),
    Case(Build("3.21.0", "clang", _X64, "static", "-O2")),
    Case(Build("3.24.0", "clang", _X64, "no-pie", "-Os", NO_TABLE)),
    # zig, x86-64
    Case(Build("3.50.4", "zig", _X64_MUSL, "static", "-O2", NO_TABLE)),
    Case(Build("3.53.4", "zig", _X64_MUSL, "static", "-Os", NO_TABLE)),
    Case(Build("3.20.1", "zig", _X64_MUSL, "static", "-O0 -fno-sanitize=undefined"), quick=True),
    Case(Build("3.43.2", "zig", _X64_MUSL, "static-pie", "-O3", NO_TABLE)),
    Case(Build("3.51.3", "zig", _X64, "pie", "-O2")),
    Case(Build("3.54.1", "zig", _X64, "pie", "-O2 -flto", NO_TABLE)),
    Case(Build("3.45.3", "zig", _X64, "pie", "-O0", NO_TABLE)),
    Case(Build("3.38.5", "zig", _X64, "so", "-Os")),
    # gcc and clang, arm64
    Case(Build("3.50.4", "gcc", _ARM64, "pie", "-O2", NO_TABLE)),
    Case(Build("3.54.1", "gcc", _ARM64, "pie", "-O2 -mbranch-protection=standard")),
    Case(Build("3.29.0", "gcc", _ARM64, "no-pie", "-Os", NO_TABLE)),
    Case(Build("3.35.2", "gcc", _ARM64, "static", "-O3", NO_TABLE)),
    Case(Build("3.45.3", "gcc", _ARM64, "so", "-O2", NO_TABLE)),
    Case(Build("3.53.4", "gcc", _ARM64, "pie", "-O0", NO_TABLE)),
    Case(Build("3.49.2", "gcc", _ARM64, "pie", "-O2 -flto", NO_TABLE)),
    Case(Build("3.51.3", "clang", _ARM64, "pie", "-O2", NO_TABLE)),
    Case(Build("3.40.1", "clang", _ARM64, "static", "-Os")),
    Case(Build("3.31.1", "clang", _ARM64, "pie", "-O2 -flto", NO_TABLE, link="-fuse-ld=lld")),
    # zig, arm64
    Case(Build("3.50.4", "zig", _ARM64, "pie", "-O2", NO_TABLE), quick=True),
    Case(Build("3.53.4", "zig", _ARM64_MUSL, "static", "-O2")),
    Case(Build("3.37.2", "zig", _ARM64, "pie", "-Os", NO_TABLE)),
    Case(Build("3.50.4", "zig", _ARM64, "pie", "-O3 -mbranch-protection=standard", NO_TABLE)),
    Case(Build("3.50.4", "zig", _ARM64, "pie", f"-O1 {_WITHOUT_UNWIND}", NO_TABLE), _NO_STARTS),
    Case(Build("3.22.0", "zig", _ARM64_MUSL, "static", "-O0", NO_TABLE)),
    Case(Build("3.43.2", "zig", _ARM64_MUSL, "so", "-O2", NO_TABLE)),
    # Mach-O
    Case(Build("3.50.4", "zig", _ARM64_MAC, "macho", "-O2")),
    Case(Build("3.50.4", "zig", _ARM64_MAC, "macho", "-O2", NO_TABLE)),
    Case(Build("3.54.1", "zig", _X64_MAC, "macho", "-O2")),
    Case(Build("3.50.4", "zig", _X64_MAC, "macho", "-O2", NO_TABLE), quick=True),
    Case(Build("3.39.1", "zig", _X64_MAC, "macho", "-Os", NO_TABLE)),
    Case(Build("3.41.0", "zig", _ARM64_MAC, "macho", "-O3", NO_TABLE)),
    Case(Build("3.31.1", "zig", _ARM64_MAC, "dylib", "-O2")),
    Case(Build("3.24.0", "zig", _X64_MAC, "macho", "-O0 -fno-sanitize=undefined"), quick=True),
    Case(
        Build("3.45.3", "zig", _ARM64_MAC, "macho", "-O0 -fno-sanitize=undefined", NO_TABLE),
        missing=dict.fromkeys(("sqlite3_prepare_v3", "sqlite3_close_v2"), _UNCALLED),
        quick=True,
    ),
)
