"""Which file format a binary has."""

from __future__ import annotations

import os

from sqltrace.resolve.elf import Elf
from sqltrace.resolve.image import Image, open_image


def read_image(path: str | os.PathLike[str]) -> Image:
    """Open a binary.  Raises NotAnImageError."""
    return Elf(open_image(path), os.fspath(path))
