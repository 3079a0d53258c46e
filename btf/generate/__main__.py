"""`python -m sqltrace.btf.generate`: builds the catalogue anew, or checks that some releases still come out equal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from sqltrace.btf import store
from sqltrace.btf.generate.build import Built, build, put_together
from sqltrace.btf.generate.fetch import FetchError, Source, sources
from sqltrace.errors import SqltraceError


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m sqltrace.btf.generate", description=__doc__)
    parser.add_argument("--check", nargs="+", metavar="VERSION", help="build these and compare, write nothing")
    parser.add_argument("--accept", action="store_true", help="accept sources that are not those of the last time")
    parser.add_argument("--cache", type=Path, default=Path("build/catalogue-cache"), help="where sources are kept")
    parser.add_argument("--output", type=Path, default=store.INDEX.parent, help="the folder for the catalogue")
    arguments = parser.parse_args()
    try:
        if arguments.check:
            return _check(arguments.check, arguments.cache)
        _generate(arguments.cache, arguments.output, accept=arguments.accept)
    except SqltraceError as error:
        _say(f"catalogue: {error}")
        return 1
    return 0


def _generate(cache: Path, output: Path, *, accept: bool) -> None:
    known = store.entries() if store.INDEX.exists() and not accept else {}
    whole = put_together(_unchanged(_built(sources(), cache), known))
    index, archive = store.write_index(whole.entries), store.write_archive(whole.files)
    output.mkdir(parents=True, exist_ok=True)
    (output / store.INDEX.name).write_bytes(index)
    (output / store.ARCHIVE.name).write_bytes(archive)
    _say(f"{len(whole.entries)} releases, {len(whole.files)} layouts: {len(archive)} bytes, index {len(index)} bytes")


def _check(versions: Iterable[str], cache: Path) -> int:
    known, files = store.entries(), store.files()
    by_version = {source.version: source for source in sources()}
    different = 0
    for version in versions:
        if version not in by_version or version not in known:
            raise FetchError(f"{version} is not covered")
        (built,) = _unchanged([build(by_version[version], cache)], known)
        for variant, content in built.layouts.items():
            same = files[known[version].layouts[variant]] == content
            different += not same
            _say(f"{version} {variant}: {'the same' if same else 'DIFFERENT'}, {len(content)} bytes")
    return 1 if different else 0


def _built(rows: Iterable[Source], cache: Path) -> Iterator[Built]:
    for source in rows:
        built = build(source, cache)
        _say(f"{source.version} from {source.registry} {source.package_name}")
        yield built


def _unchanged(releases: Iterable[Built], known: Mapping[str, store.Entry]) -> Iterator[Built]:
    """Pass the releases on; raise FetchError when a source is not what it was when the index was written."""
    for built in releases:
        entry = known.get(built.source.version)
        if entry is not None and entry.sha256 != built.sha256:
            raise FetchError(
                f"{built.source.package_name} does not hold the sqlite3.c that it did: the checksum was "
                f"{entry.sha256}, is {built.sha256}. Look at the difference, then use --accept"
            )
        yield built


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
