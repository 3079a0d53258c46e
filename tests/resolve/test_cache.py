"""Remembered resolutions: right, private, and never in the way."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sqltrace.cli import main
from sqltrace.errors import NoSQLiteError
from sqltrace.resolution import Field, Function, Resolution
from sqltrace.resolve import Overrides, cache, clear_cache, resolve_cached
from tests.support.sqlite_builds import build_twin

LIBC = "/lib/x86_64-linux-gnu/libc.so.6"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sqltrace"


def forbid_resolving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "resolve_image", lambda *_, **__: pytest.fail("resolved again"))


def test_the_second_answer_comes_from_the_cache_under_the_path_asked_for(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copy(build_twin().stripped, copy)
    first = resolve_cached(build_twin().stripped)
    forbid_resolving(monkeypatch)
    second = resolve_cached(copy)
    assert second.path == str(copy)
    assert (second.functions, second.layout, second.build_id) == (first.functions, first.layout, first.build_id)


def test_that_a_file_holds_no_sqlite_is_remembered(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoSQLiteError):
        resolve_cached(LIBC)
    forbid_resolving(monkeypatch)
    with pytest.raises(NoSQLiteError, match=LIBC):
        resolve_cached(LIBC)


def test_directory_and_entries_are_for_their_owner_only(home: Path) -> None:
    resolve_cached(build_twin().stripped)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert [stat.S_IMODE(f.stat().st_mode) for f in home.iterdir()] == [0o600]


@pytest.mark.parametrize(
    "garbage", [b"", b"{", b"[]", b'{"resolution": {}}', b'{"resolution": 7}', b"\xff" * 99, b"[" * 99999]
)
def test_a_corrupted_entry_is_resolved_again_and_mended(home: Path, garbage: bytes) -> None:
    expected = resolve_cached(build_twin().stripped)
    entry = next(home.iterdir())
    entry.write_bytes(garbage)
    assert resolve_cached(build_twin().stripped) == expected
    assert json.loads(entry.read_bytes())["resolution"]["sqlite_version"] == "3.50.4"


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for place in (str(tmp_path / "file"), "/proc/nowhere", "/dev/null", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", place)
        assert resolve_cached(build_twin().stripped).sqlite_version == "3.50.4"


def test_a_cache_that_others_may_write_is_neither_read_nor_written(home: Path) -> None:
    home.mkdir(parents=True)
    home.chmod(0o777)
    resolve_cached(build_twin().stripped)
    assert not any(home.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_the_cache_of_another_user_is_not_touched_under_sudo(home: Path) -> None:
    home.parent.mkdir(parents=True)
    os.chown(home.parent, 65534, 65534)
    resolve_cached(build_twin().stripped)
    assert not home.exists()


def test_what_the_user_says_wins_and_is_not_remembered(home: Path) -> None:
    step = resolve_cached(build_twin().stripped).functions["sqlite3_step"]
    overrides = Overrides(functions={"sqlite3_reset": step.address}, layout={"Vdbe.zSql": Field(8, 8, ())})
    before = sorted(home.iterdir())
    resolution = resolve_cached(build_twin().stripped, overrides=overrides)
    assert resolution.functions["sqlite3_reset"] == Function(step.address, ("override",))  # type: ignore[arg-type]
    assert resolution.layout["Vdbe.zSql"].offset == 8
    assert sorted(home.iterdir()) == before


def test_clear_cache_removes_entries_and_nothing_else(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = resolve_cached(build_twin().stripped)
    with pytest.raises(NoSQLiteError):
        resolve_cached(LIBC)
    (home / ".abcd_123").touch()  # a writer was killed
    (home / "notes.json").touch()
    assert main(["inspect", "--clear-cache"]) == 0
    assert capsys.readouterr().err == "sqltrace: removed 2 remembered files.\n"
    assert [f.name for f in home.iterdir()] == ["notes.json"]
    assert main(["inspect", "--clear-cache"]) == 0
    assert resolve_cached(build_twin().stripped) == expected


def test_clear_cache_makes_no_directory_and_then_inspects(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--clear-cache", str(build_twin().stripped)]) == 0
    captured = capsys.readouterr()
    assert captured.err == "sqltrace: removed 0 remembered files.\n"
    assert "sqlite3_step" in captured.out
    assert not home.exists()


def test_clear_cache_leaves_what_a_link_leads_to(home: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / f"{'0' * 64}.json").touch()
    home.parent.mkdir(parents=True)
    home.symlink_to(kept)
    assert main(["inspect", "--clear-cache"]) == 0
    assert len(list(kept.iterdir())) == 1
    home.unlink()
    home.mkdir(mode=0o700)
    entry = home / f"{'1' * 64}.json"
    entry.symlink_to(kept / f"{'0' * 64}.json")
    assert main(["inspect", "--clear-cache"]) == 0
    assert not entry.is_symlink()
    assert len(list(kept.iterdir())) == 1


def test_concurrent_writers_and_a_clearing_do_not_disturb_each_other(home: Path) -> None:
    expected = resolve_cached(build_twin().stripped)

    def work(number: int) -> Resolution | int:
        return cache.clear_cache() if number % 4 == 0 else resolve_cached(build_twin().stripped)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(12)))
    assert all(r == expected for r in results if isinstance(r, Resolution))
    assert {f.suffix for f in home.iterdir()} <= {".json"}


def without_build_id(path: Path) -> Path:
    subprocess.run(["objcopy", "--remove-section", ".note.gnu.build-id", build_twin().stripped, path], check=True)
    return path


def let_it_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time() + 10
    monkeypatch.setattr(cache.time, "time", lambda: now)


def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    add_content = cache._add_content
    monkeypatch.setattr(cache, "_add_content", lambda d, i: (found.append(i.size), add_content(d, i)))
    return found


def test_a_file_without_a_build_id_is_hashed_once(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = without_build_id(tmp_path / "file")
    let_it_settle(monkeypatch)
    times = hashed(monkeypatch)
    first = resolve_cached(file)
    assert first.build_id is None
    assert len(times) == 1
    forbid_resolving(monkeypatch)
    assert resolve_cached(file) == first
    assert len(times) == 1
    copy = tmp_path / "copy"
    shutil.copy(file, copy)
    assert resolve_cached(copy).functions == first.functions
    assert len(times) == 2


def test_a_file_that_has_just_changed_is_hashed_every_time(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = without_build_id(tmp_path / "file")
    times = hashed(monkeypatch)
    assert resolve_cached(file) == resolve_cached(file)
    assert len(times) == 2


def test_a_file_that_was_written_over_is_another_file(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = without_build_id(tmp_path / "file")
    let_it_settle(monkeypatch)
    step = resolve_cached(file).functions["sqlite3_step"].address
    times = file.stat()
    content = bytearray(file.read_bytes())
    content[step - 16] ^= 1  # behind the first 64 KiB, and the size and the time of the content stay
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    resolved = []
    resolve_image = cache.resolve_image
    monkeypatch.setattr(cache, "resolve_image", lambda image: (resolved.append(image), resolve_image(image))[1])
    assert resolve_cached(file).functions["sqlite3_step"].address == step
    assert len(resolved) == 1


@pytest.mark.parametrize("garbage", [b"", b"{", b'{"content": 7}', b'{"content": "../../x"}', b'{"content": "%s"}'])
def test_a_poisoned_hash_leads_nowhere_else(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, garbage: bytes
) -> None:
    file = without_build_id(tmp_path / "file")
    let_it_settle(monkeypatch)
    first = resolve_cached(file)
    (entry,) = home.glob("*.hash")
    entry.write_bytes(garbage.replace(b"%s", b"0" * 64))
    assert resolve_cached(file) == first
    assert clear_cache() >= 1
    assert not list(home.iterdir())


def test_no_cache_neither_asks_nor_remembers(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve_cached(build_twin().stripped, use_cache=False)
    assert not home.exists()
    resolve_cached(build_twin().stripped)
    forbid_resolving(monkeypatch)
    assert resolve_cached(build_twin().stripped) == first
    with pytest.raises(pytest.fail.Exception):
        resolve_cached(build_twin().stripped, use_cache=False)
