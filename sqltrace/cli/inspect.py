"""`sqltrace inspect`."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import msgspec

from sqltrace.backends.bcc.sites import placed
from sqltrace.backends.proc_maps import mapped_files
from sqltrace.cli.attach import parse_pids
from sqltrace.cli.base import Command
from sqltrace.cli.overrides import add_override_options, overrides_from
from sqltrace.cli.tracing import say
from sqltrace.errors import NoSQLiteError, NotAnImageError, SqltraceError, UsageError
from sqltrace.resolution import Resolution
from sqltrace.resolve import Explained, Overrides, clear_cache, describe, explain_all
from sqltrace.resolve.describe import describe_briefly


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file to look into: its name for the user, the path to open, whether the user asked for just this file."""

    name: str
    path: str
    named: bool


class Inspect(Command):
    """Say whether a file holds SQLite, which release, and where everything is.

    Shows each function and each struct field with the evidence for it, and what will not be reported and why;
    with -v, what exactly that evidence is.  Several files, a directory or a process give one line for each file
    that holds SQLite.
    """

    name = "inspect"

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "file", metavar="FILE", nargs="*", help="a program, a library, or a directory with such files in it"
        )
        parser.add_argument(
            "-p", "--pid", action="append", type=parse_pids, default=[], metavar="PID", help="all that a process runs"
        )
        parser.add_argument(
            "--json", action="store_true", help="a JSON object instead of text; one line each if several"
        )
        parser.add_argument("-v", "--verbose", action="store_true", help="show what each piece of evidence saw")
        parser.add_argument(
            "--clear-cache",
            action="store_true",
            help="forget what run and attach remember of files (inspect never asks)",
        )
        add_override_options(parser)

    @staticmethod
    def execute(arguments: argparse.Namespace) -> int:
        """Resolve the files anew, without the cache, and show all that was found."""
        pids = [pid for group in arguments.pid for pid in group]
        if arguments.clear_cache:
            count = clear_cache()
            say(f"removed {count} remembered {'file' if count == 1 else 'files'}.")
            if not arguments.file and not pids:
                return 0
        if not arguments.file and not pids:
            raise UsageError("inspect wants a file, a directory or -p PID")
        overrides = overrides_from(arguments)
        if len(arguments.file) == 1 and not pids and not os.path.isdir(arguments.file[0]):
            several = explain_all(arguments.file[0], overrides=overrides)
            for explained in several:
                _show(explained, arguments, arguments.file[0], alone=len(several) == 1)
            return 0
        found = 0
        for candidate in _candidates(arguments.file, pids):
            for explained in _look_into(candidate, overrides):
                _show(explained, arguments, candidate.path, alone=False)
                found += 1
        if not found:
            where = ", ".join([*arguments.file, *(f"process {pid}" for pid in pids)])
            raise NoSQLiteError(f"no SQLite that can be resolved was found in {where}")
        return 0


def _look_into(candidate: Candidate, overrides: Overrides | None) -> list[Explained]:
    """Resolve one of several files; say what is wrong with it where the user should know."""
    try:
        found = explain_all(candidate.path, overrides=overrides)
    except (NoSQLiteError, NotAnImageError) as error:
        if candidate.named:
            say(f"{error}.")
        return []
    except SqltraceError as error:
        say(f"{error}.")
        return []
    return [replace(e, resolution=replace(e.resolution, path=candidate.name)) for e in found]


def _probe_sites(path: str, resolution: Resolution) -> dict[str, str]:
    """Where in each function bcc would probe: empty for a file that it cannot observe."""
    if (resolution.format.lower(), resolution.arch) != ("elf", "x86_64"):
        return {}
    try:
        return {name: str(found.site) for name, found in placed(path, resolution).items()}
    except (KeyError, SqltraceError):
        return {}  # why is among what is off


def _show(explained: Explained, arguments: argparse.Namespace, path: str, *, alone: bool) -> None:
    resolution = explained.resolution
    sites = _probe_sites(path, resolution) if arguments.verbose else {}
    if arguments.json:
        content = resolution.to_json()
        if arguments.verbose:
            content["details"] = {
                name: [{"evidence": d.evidence, "text": d.text} for d in details]
                for name, details in explained.details.items()
            }
            content["sites"] = sites
        encoded = msgspec.json.encode(content)
        text = (msgspec.json.format(encoded) if alone else encoded).decode()
    elif alone or arguments.verbose:
        text = describe(resolution, explained.details if arguments.verbose else None)
        if sites:
            width = max(map(len, sites))
            text += "\n\nPROBE SITE"
            text += "".join(f"\n{name:<{width}}  {site}" for name, site in sites.items())
        text += "" if alone else "\n"
    else:
        text = describe_briefly(resolution)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()  # a directory takes a while


def _candidates(names: list[str], pids: list[int]) -> Iterator[Candidate]:
    """Yield each file once, also where it has several names (hard links, -p of related processes)."""
    seen: set[tuple[int, int]] = set()
    for candidate in _all_candidates(names, pids):
        try:
            status = os.stat(candidate.path)
        except (OSError, ValueError):
            status = None  # opening it will tell why
        if status is not None:
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
        yield candidate


def _all_candidates(names: list[str], pids: list[int]) -> Iterator[Candidate]:
    for name in names:
        if os.path.isdir(name):
            yield from _files_below(name)
        else:
            yield Candidate(name, name, named=True)
    for pid in pids:
        for mapped in mapped_files(pid):
            yield Candidate(mapped.name, mapped.path, named=False)


def _files_below(directory: str) -> Iterator[Candidate]:
    """Yield the regular files below a directory.

    Symbolic links are passed over: what they lead to is either below the directory, too, or none of its files.
    """

    def complain(error: OSError) -> None:
        say(f"cannot read {error.filename}: {error.strerror}.")

    for folder, folders, files in os.walk(directory, onerror=complain):
        folders.sort()
        for file in sorted(files):
            path = os.path.join(folder, file)
            try:
                regular = stat.S_ISREG(os.lstat(path).st_mode)
            except OSError:
                continue  # gone meanwhile
            if regular:
                yield Candidate(path, path, named=False)
