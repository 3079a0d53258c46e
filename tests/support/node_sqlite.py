"""better-sqlite3, the SQLite addon of Node programs, compiled here.

Its packages on npm hold sources only; the binaries that its install script would fetch lie elsewhere and are not
needed.  So it is installed without scripts and then built by npm's own node-gyp, against the headers that came with
Node: a Node from nodejs.org or NodeSource has them in PREFIX/include/node, Debian's libnode-dev in
/usr/include/nodejs.  Needs node, npm, g++, make and python3; takes one to two minutes, once.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
SCRIPT: Final = ROOT / "tests" / "programs" / "better_sqlite3.js"

_MINIMUM_NODE: Final = {"12.4.1": 20, "11.10.0": 18}
"""Versions of better-sqlite3, newest first, and the oldest Node that each supports."""


class NodeMissingError(RuntimeError):
    """Something that is needed to build the addon is not installed; the text says what."""


def _node_version() -> str:
    for tool in ("node", "npm", "g++", "make"):
        if shutil.which(tool) is None:
            raise NodeMissingError(
                f"{tool} is not installed. On Debian: apt-get install nodejs npm libnode-dev g++ make"
            )
    return subprocess.run(["node", "--version"], check=True, capture_output=True, text=True).stdout.strip()


def headers() -> Path:
    """Return the directory that node-gyp takes as --nodedir.  Raises NodeMissingError."""
    node = Path(shutil.which("node") or "/usr/bin/node").resolve()
    candidates = [node.parent.parent, Path("/usr"), Path("/usr/local")]
    for prefix in candidates:
        if (prefix / "include" / "node" / "common.gypi").exists():
            return prefix
    debian = Path("/usr/include/nodejs")  # laid out like Node's source tree
    if (debian / "common.gypi").exists():
        return debian
    raise NodeMissingError("Node's headers are not installed. On Debian: apt-get install libnode-dev")


def better_sqlite3() -> Path:
    """Return a node_modules directory with a working better-sqlite3, for NODE_PATH.  Raises NodeMissingError."""
    node = _node_version()
    major = int(node.lstrip("v").split(".")[0])
    package = next((p for p, minimum in _MINIMUM_NODE.items() if major >= minimum), None)
    if package is None:
        raise NodeMissingError(f"Node {node} is older than better-sqlite3 supports; it needs 18 or newer")
    directory = ROOT / "build" / "npm" / f"better-sqlite3-{package}-node-{node}"
    modules = directory / "node_modules"
    complete = directory / "complete"
    if complete.exists():
        return modules
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            (directory / "package.json").write_text('{"private": true}\n')
            environment = os.environ | {"npm_config_nodedir": str(headers()), "npm_config_update_notifier": "false"}
            _run(
                ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", f"better-sqlite3@{package}"],
                directory,
                environment,
            )
            # `npm run` has node-gyp in its PATH, wherever npm keeps it.
            _run(["npm", "run", "build-release"], modules / "better-sqlite3", environment)
            _run(["node", "-e", "require('better-sqlite3')(':memory:').exec('SELECT 1')"], directory, environment)
            complete.touch()
    return modules


def _run(command: list[str], directory: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=directory, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {(done.stdout + done.stderr)[-3000:]}")
