"""What a user installs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = (".c", ".h", ".js", ".xz", ".json")


def test_the_wheel_holds_every_data_file_and_nothing_beside_the_package(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    subprocess.run(["git", "clone", "-q", ROOT, tree], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(tree)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"sqltrace"}
    for folder in ("backends", "bpf", "agent_js", "btf"):  # btf/generate is for us only
        for file in (tree / folder).rglob("*"):
            if file.suffix in (*DATA, ".py") and "generate" not in file.parts:
                assert f"sqltrace/{folder}/{file.relative_to(tree / folder)}" in names
