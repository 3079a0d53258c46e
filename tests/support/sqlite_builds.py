"""SQLite built at many releases, by several compilers: the oracles of the resolver, and targets for everyone else.

The better-sqlite3 packages on npm carry SQLite's amalgamation, one release each, so that `npm pack` is all
that is needed to have nearly every release of the last ten years.
`Build.twin` compiles one of them twice over: an unstripped file, whose symbols and DWARF are the truth,
and a stripped copy of it, which is what users trace.
Zig (PyPI's ziglang) brings its own clang, linkers, libc and headers, and so builds for arm64, musl and macOS.
Everything lands under build/ in the checkout, keyed by what went in, so that the second run builds nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqltrace.btf.generate.fetch import fetch, sources, vanilla
from tests.support.elf_builder import without_sections
from tests.support.macho_builder import without_symbols

BUILD: Final = Path(__file__).resolve().parents[2] / "build"

PACKAGES: Final = {
    "3.19.3": "4.0.3",
    "3.21.0": "4.1.1",
    "3.24.0": "4.2.0",
    "3.26.0": "5.4.0",
    "3.29.0": "5.4.3",
    "3.31.1": "7.0.1",
    "3.34.0": "7.1.2",
    "3.35.2": "7.1.5",
    "3.36.0": "7.4.5",
    "3.37.0": "7.4.6",
    "3.37.2": "7.5.0",
    "3.38.2": "7.5.1",
    "3.38.5": "7.5.3",
    "3.39.0": "7.6.0",
    "3.39.1": "7.6.2",
    "3.40.1": "8.1.0",
    "3.41.0": "8.2.0",
    "3.42.0": "8.4.0",
    "3.43.0": "8.6.0",
    "3.43.2": "9.0.0",
    "3.45.3": "9.6.0",
    "3.47.2": "11.7.0",
    "3.49.2": "11.10.0",
    "3.50.4": "12.4.1",
    "3.51.3": "12.8.0",
    "3.53.4": "13.0.3",
    "3.54.1": "13.2.0",
}
"""SQLite release: the version of better-sqlite3 that carries it."""

DEFAULT_VERSION: Final = "3.50.4"

_HERE: Final = Path(__file__).parent
_HEADER: Final = re.compile(r"^/\*+ Begin file sqlite3\.h \*.*?^/\*+ End of sqlite3\.h \*", re.MULTILINE | re.DOTALL)
_VARIABLE: Final = re.compile(r"^SQLITE_API (char \*\w+|const char \w+\[\])(?: = \w+)?;", re.MULTILINE)
_KINDS: Final = {
    # how a program or library is linked: the compiler's flags, the linker's
    "pie": (("-fPIE",), ("-pie",)),
    "no-pie": (("-fno-pie",), ("-no-pie",)),
    "static": (("-fno-pie",), ("-static", "-no-pie")),
    "static-pie": (("-fPIE",), ("-static-pie",)),
    "so": (
        ("-fPIC", "-fvisibility=hidden"),
        ("-shared", "-Wl,-Bsymbolic", f"-Wl,--version-script={_HERE / 'driver.map'}"),
    ),
    "macho": ((), ()),
    "dylib": (("-fvisibility=hidden",), ("-dynamiclib",)),
}


@dataclass(frozen=True, slots=True)
class Twin:
    """One build of SQLite: with its symbols and DWARF, and stripped."""

    unstripped: Path
    stripped: Path


@dataclass(frozen=True, slots=True)
class Build:
    """How one program with SQLite inside is made.

    `kind` is one of pie, no-pie, static, static-pie, so (an addon that exports nothing of SQLite), macho and dylib;
    `options` are SQLite's, without SQLITE_.  The program executes its arguments: `twin.stripped DATABASE SQL...`
    prepares, steps and finalizes each SQL; with `program` exec_driver, through sqlite3_exec alone.
    """

    version: str = DEFAULT_VERSION
    compiler: str = "gcc"
    target: str = "x86_64-linux-gnu"
    kind: str = "pie"
    flags: str = "-O2"
    options: str = ""
    link: str = ""
    program: str = "driver"

    def __str__(self) -> str:
        program = "" if self.program == "driver" else self.program
        words = (self.version, self.compiler, self.target, self.kind, self.flags, self.options, self.link, program)
        return " ".join(filter(None, words))

    @property
    def defines(self) -> tuple[str, ...]:
        """SQLite's options as the compiler takes them."""
        return tuple(f"-DSQLITE_{option}" for option in self.options.split())

    @property
    def compile_command(self) -> tuple[str, ...]:
        """The compiler for this target, with nothing else."""
        if self.compiler == "zig":
            return (sys.executable, "-m", "ziglang", "cc", "-target", self.target)
        if self.compiler == "clang":
            return ("clang", f"--target={self.target}")
        return ("gcc" if self.arch == "x86_64" else f"{self.target}-gcc",)

    @property
    def arch(self) -> str:
        """The processor, as a Resolution names it."""
        return "x86_64" if self.target.startswith("x86_64") else "arm64"

    @property
    def has_table(self) -> bool:
        """Whether sqlite3_api_routines is in it."""
        return "OMIT_LOAD_EXTENSION" not in self.options.split()

    @property
    def is_macho(self) -> bool:
        """Whether this is for macOS."""
        return self.target.endswith("macos")

    def lacks(self) -> str | None:
        """Return which program this build needs that is not installed."""
        if self.compiler == "zig":
            return None if importlib.util.find_spec("ziglang") else "ziglang"
        wanted = [self.compile_command[0]]
        if self.arch != "x86_64":
            wanted += [f"{self.target}-gcc", f"{self.target}-strip"]  # clang, too, links with what that one brings
        if "-fuse-ld=lld" in self.link:
            wanted.append("ld.lld")
        return next((program for program in wanted if shutil.which(program) is None), None)

    def twin(self) -> Twin:
        """Build it, if that was not done before."""
        compiling, linking = _KINDS[self.kind]
        if (self.compiler, self.kind) == ("gcc", "pie"):
            compiling = linking = ()  # Debian's default
        flags = (*self.flags.split(), *compiling, *self.defines)
        compiled = sqlite_object(self.version, flags, self.compile_command)
        source = _HERE / f"{self.program}.c"
        libraries = ("-lm",) if self.compiler == "zig" else ("-lm", "-ldl", "-lpthread")
        link = (*linking, *self.link.split(), *libraries)
        key = hashlib.sha256("\0".join([*link, source.read_text()]).encode()).hexdigest()[:16]
        unstripped = compiled.parent / f"{self.program}-{key}"
        stripped = unstripped.with_suffix(".stripped")
        with _locked(compiled.parent):
            if not stripped.exists():
                visible = ("-fvisibility=default",) if self.kind in ("so", "dylib") else ()
                program = compiled.parent / f"{self.program}.o"
                partial = unstripped.with_suffix(".partial")
                headers = f"-I{amalgamation(self.version)}"
                _run(*self.compile_command, "-g", "-w", *flags, *visible, headers, "-c", source, "-o", program)
                _run(*self.compile_command, "-g", "-w", *flags, program, compiled, *link, "-o", partial)
                partial.rename(unstripped)
                if self.is_macho:
                    partial.write_bytes(without_symbols(unstripped.read_bytes()))
                elif self.compiler == "zig":  # which comes without strip, and links otherwise with -s
                    shutil.copy2(unstripped, partial)
                    partial.write_bytes(without_sections(unstripped.read_bytes()))
                else:
                    shutil.copy2(unstripped, partial)
                    _run("strip" if self.arch == "x86_64" else f"{self.target}-strip", partial)
                program.unlink()
                partial.rename(stripped)
        return Twin(unstripped, stripped)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Let one process at a time build in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": str(BUILD / "zig" / "cache")}
    done = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr[-2000:]}")
    return done.stdout


def _sqlite_files(package: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield sqlite3.c and its headers, which older packages keep in an archive within the archive."""
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        for member in archive:
            name = member.name.rsplit("/", 1)[-1]
            file = archive.extractfile(member) if member.isfile() else None
            if file is None:
                continue
            if name in ("sqlite3.c", "sqlite3.h", "sqlite3ext.h"):
                yield name, file.read()
            elif "/deps/" in member.name and name.endswith(".tar.gz"):
                yield from _sqlite_files(file.read())


def amalgamation(version: str = DEFAULT_VERSION) -> Path:
    """Return the directory that holds sqlite3.c and sqlite3.h of one release.

    Those that are not in PACKAGES come from where the catalogue of struct layouts has them, without changes of vendors.
    """
    directory = BUILD / "amalgamation" / version
    if (directory / "complete").exists():
        return directory
    with _locked(directory):
        if not (directory / "complete").exists():
            if version not in PACKAGES:
                _from_catalogue(version, directory)
                return directory
            name = _run("npm", "pack", "--silent", f"better-sqlite3@{PACKAGES[version]}", cwd=directory).split()[-1]
            for file, content in _sqlite_files((directory / name).read_bytes()):
                (directory / file).write_bytes(content)
            (directory / name).unlink()
            if f'"{version}"'.encode() not in (directory / "sqlite3.h").read_bytes():
                raise RuntimeError(f"better-sqlite3 {PACKAGES[version]} does not hold SQLite {version}")
            (directory / "complete").touch()
    return directory


def _from_catalogue(version: str, directory: Path) -> None:
    (source,) = (s for s in sources() if s.version == version)
    text = vanilla(fetch(source, BUILD / "catalogue-cache").text)
    (directory / "sqlite3.c").write_text(text, encoding="latin-1")
    header = _HEADER.search(text)
    if header is None:
        raise RuntimeError(f"{source.package_name} does not hold sqlite3.h")
    declared = _VARIABLE.sub(r"extern \1;", f"{header.group()}/\n")  # inside sqlite3.c it defines them
    (directory / "sqlite3.h").write_text(declared, encoding="latin-1")
    (directory / "complete").touch()


def sqlite_object(version: str, flags: Sequence[str], command: Sequence[str] = ("gcc",)) -> Path:
    """Compile the amalgamation with -g and these flags; return the object file."""
    source = amalgamation(version)
    named = () if tuple(command) == ("gcc",) else [Path(command[0]).name, *command[1:]]
    key = hashlib.sha256("\0".join([version, *flags, *named]).encode()).hexdigest()[:16]
    directory = BUILD / "sqlite" / key
    target = directory / "sqlite3.o"
    with _locked(directory):
        if not target.exists():
            partial = directory / "partial.o"
            _run(*command, "-g", "-w", *flags, "-c", source / "sqlite3.c", "-o", partial)
            partial.rename(target)
            (directory / "flags").write_text(" ".join([version, *flags, *named]))
    return target


def build_twin() -> Twin:
    """Return what most tests are content with: gcc -O2, linked as Debian's programs are."""
    return Build().twin()
