"""The catalogue against what the code of real binaries tells."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sqltrace.btf.catalogue import claims
from sqltrace.resolution import Evidence, Resolution
from sqltrace.resolve import resolve
from tests.support.sqlite_builds import BUILD, Build

READ_OPTIONS = "import apsw, json; print(json.dumps(apsw.compile_options))"


def told_by_code(resolution: Resolution) -> dict[str, int]:
    return {n: f.offset for n, f in resolution.layout.items() if Evidence.ACCESSOR in f.evidence}


def apsw() -> Path:
    """Return the folder into which the wheel of apsw was unpacked; skips the test when it cannot be fetched."""
    folder = BUILD / "wheels" / "apsw"
    if not (folder / "apsw").exists():
        pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run(
            [*pip, "--only-binary", ":all:", "-d", folder, "apsw==3.54.1.0"], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip(f"cannot fetch apsw: {done.stderr.decode()[-200:]}")
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return folder


def test_apsw_with_125_databases_agrees_with_its_accessors() -> None:
    folder = apsw()
    listed = subprocess.run(
        [sys.executable, "-c", READ_OPTIONS], cwd=folder, capture_output=True, check=True, text=True
    ).stdout
    options = frozenset(json.loads(listed))
    assert "MAX_ATTACHED=125" in options
    (library,) = (folder / "apsw").glob("__init__*.so")
    told = told_by_code(resolve(library))
    assert told["Vdbe.zSql"] == 272
    for given in (options, None):
        assert {c.name: c.offset for c in claims("3.54.1", given, told, told)} == told
    # Its options alone leave open only whether it was built without trace, which moves these:
    alone = {c.name: c.offset for c in claims("3.54.1", options, {}, told)}
    assert set(told) - set(alone) == {"Vdbe.zSql", "Vdbe.aCounter", "Vdbe.eVdbeState"} & set(told)
    assert alone.items() <= told.items()


def test_a_build_without_trace_and_without_its_options_agrees_with_its_accessors() -> None:
    # The flags of a twin of tests/resolve, which is built already.
    twin = Build(kind="no-pie", options="OMIT_LOAD_EXTENSION OMIT_TRACE").twin()
    told = told_by_code(resolve(twin.stripped))
    assert told["Vdbe.zSql"] == 240
    said = {c.name: c.offset for c in claims("3.50.4", None, told, [*told, "Vdbe.eVdbeState", "Pager.zFilename"])}
    assert said == {**told, "Vdbe.eVdbeState": 191, "Pager.zFilename": 216}
