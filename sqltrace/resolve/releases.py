"""Which check-in is which release."""

from __future__ import annotations

from sqltrace.btf.catalogue import version_of


def release_of(source_id: str) -> int | None:
    """Return the release of a source id as in 3050004, None when it is of none that the catalogue covers."""
    version = version_of(source_id)
    if version is None:
        return None
    major, minor, patch, *_ = (*(int(part) for part in version.split(".")), 0, 0)
    return major * 1000000 + minor * 1000 + patch


def version_text(release: int) -> str:
    """Return 3.50.4 for 3050004."""
    return f"{release // 1000000}.{release // 1000 % 1000}.{release % 1000}"
