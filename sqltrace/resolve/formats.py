"""Which file format a binary has."""

from __future__ import annotations

import os
import platform

from sqltrace.errors import NotAnImageError
from sqltrace.resolve.elf import Elf
from sqltrace.resolve.image import Buffer, Image, open_image
from sqltrace.resolve.macho import OTHER_MAGIC, THIN_MAGIC, UNIVERSAL_MAGIC, MachO, slices

_THIS_MACHINE = {"x86_64": "x86_64", "AMD64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}


def read_images(path: str | os.PathLike[str]) -> list[Image]:
    """Open a binary; a universal one has an image for each architecture.  Raises NotAnImageError."""
    return images_in(open_image(path), os.fspath(path))


def images_in(data: Buffer, name: str) -> list[Image]:
    """Like `read_images`, for the content of a file that is called `name`."""
    magic = bytes(data[:4])
    if magic == b"\x7fELF":
        return [Elf(data, name)]
    if magic == THIN_MAGIC:
        return [MachO(data, name)]
    if magic in UNIVERSAL_MAGIC:
        images, errors = [], []
        for start, size in slices(data, name):
            try:
                images.append(MachO(data, name, start, size))
            except NotAnImageError as error:
                errors.append(error)
        if not images:
            raise errors[0]
        return list(images)
    if magic in OTHER_MAGIC:
        raise NotAnImageError(f"{name} is a Mach-O file, but not a 64-bit little-endian one")
    raise NotAnImageError(f"{name} is neither an ELF nor a Mach-O file")


def read_image(path: str | os.PathLike[str]) -> Image:
    """Open a binary; of a universal one the part that runs here, else the first.  Raises NotAnImageError."""
    images = read_images(path)
    arch = _THIS_MACHINE.get(platform.machine())
    return next((image for image in images if image.arch == arch), images[0])
