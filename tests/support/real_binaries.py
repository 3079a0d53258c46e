"""Binaries that other people built, fetched from npm and PyPI once and kept under build/."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.sqlite_builds import BUILD

CIPHERS = "better-sqlite3-multiple-ciphers@13.0.3"
"""Holds prebuilt addons for glibc and musl, not stripped: SQLite 3.53.4."""


def from_npm(package: str, member: str) -> Path:
    """Return a file of an npm package; skips the test when it cannot be fetched."""
    directory = BUILD / "npm" / package.replace("/", "-")
    file = directory / "package" / member
    if not file.exists():
        directory.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["npm", "pack", "--silent", package], cwd=directory, check=False, capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"cannot fetch {package}: {done.stderr.strip()[-200:]}")
        archive = directory / done.stdout.split()[-1]
        with tarfile.open(archive) as content:
            inside = content.extractfile(f"package/{member}")
            assert inside is not None
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(inside.read())
        archive.unlink()
    return file


def from_pypi(package: str, member: str) -> Path:
    """Return a file of a wheel for Linux x86-64 and CPython 3.11; skips the test when it cannot be fetched."""
    directory = BUILD / "pypi" / package
    file = directory / member
    if not file.exists():
        directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", package]
        command += ["--python-version=3.11", "--implementation=cp", "--abi=cp311", "--dest", str(directory)]
        for tag in ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"):
            command += ["--platform", tag]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot fetch {package}: {done.stderr.strip()[-200:]}")
        (wheel,) = directory.glob("*.whl")
        with zipfile.ZipFile(wheel) as content:
            content.extract(member, directory)
        wheel.unlink()
    return file


def from_apt(package: str, member: str) -> Path:
    """Return a file of the Debian package that apt offers here; skips the test when it cannot be fetched."""
    directory = BUILD / "apt" / package
    file = directory / member
    if not file.exists():
        directory.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["apt-get", "download", "-qq", package], cwd=directory, check=False, capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"cannot fetch {package}: {done.stderr.strip()[-200:]}")
        for archive in directory.glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", archive, directory], check=True)
            archive.unlink()
    return file
