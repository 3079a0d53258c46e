"""SQLite's source out of a Debian source package: for releases whose amalgamation no package on npm or PyPI bundles.

apt-get fetches the original source tree of a Debian suite that the machine itself does not use, with lists and a
cache of its own, and checks its signature.  SQLite's own makefile then puts sqlite3.c together.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Final

from sqltrace.errors import SqltraceError

_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"


class AptError(SqltraceError):
    """The source package could not be fetched or built."""


def amalgamation(package: str, version: str, suite: str) -> bytes:
    """Return the sqlite3.c that the source tree of this package makes.  Raises AptError."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        for name in ("state/lists/partial", "cache/archives/partial"):
            (here / name).mkdir(parents=True)
        sources = here / "sources.list"
        sources.write_text(f"deb-src [signed-by={_KEYRING}] {_mirror()} {suite} main\n")
        options = {
            "Dir::Etc::sourcelist": sources,
            "Dir::Etc::sourceparts": "-",
            "Dir::State": here / "state",
            "Dir::Cache": here / "cache",
            "Dir::State::status": "/var/lib/dpkg/status",
            "APT::Sandbox::User": "root",
        }
        apt_get = ["apt-get", "-qq", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
        _run([*apt_get, "update"], here)
        _run([*apt_get, "source", "--download-only", "--tar-only", f"{package}={version}"], here)
        tree = here / "tree"
        tree.mkdir()
        archive = next(here.glob("*.orig.tar.*"))
        _run(["tar", "--extract", "--strip-components=1", f"--file={archive}"], tree)
        _run(["./configure", "--disable-tcl"], tree)
        _run(["make", "sqlite3.c"], tree)
        return (tree / "sqlite3.c").read_bytes()


def _mirror() -> str:
    """Return where this machine gets Debian from."""
    known = _run(["apt-get", "indextargets", "--format", "$(REPO_URI)"], Path("/")).split()
    mirror = next((uri for uri in known if uri.rstrip("/").endswith("/debian")), None)
    if mirror is None:
        raise AptError("apt knows no mirror of Debian: add one to its sources")
    return mirror


def _run(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise AptError(f"{command[0]} is not installed. Use a Debian machine") from error
    if done.returncode:
        raise AptError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
    return done.stdout
