"""Function starts from .eh_frame itself, for programs that gcc linked with -static: these lack .eh_frame_hdr.

The section is a list of records (Linux Standard Base core specification, "Exception Frames"): a common one (CIE)
that says how the addresses in those that follow are written, and one for each function (FDE).  They are of different
lengths, so that they are walked one by one; static programs are small.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

from sqltrace.resolve.image import Addresses, Buffer

_RELATIVE_32: Final = 0x1B
"""DW_EH_PE_pcrel | DW_EH_PE_sdata4, which all compilers write in the small and medium code models."""
_POINTER_SIZES: Final = {0x0: 8, 0x2: 2, 0x3: 4, 0x4: 8, 0xA: 2, 0xB: 4, 0xC: 8}
_HEADER: Final = struct.Struct("<II")
_RANGE: Final = struct.Struct("<iI")
_LONGEST_CIE: Final = 64


def frames(data: Buffer, address: int, offset: int, size: int) -> tuple[Addresses, Addresses]:
    """Return sorted starts and sizes of the functions in the section at `address`, `offset` in the file."""
    common: dict[int, int | None] = {}
    found: list[tuple[int, int]] = []
    at, end = offset, min(offset + size, len(data)) - 16
    while at <= end:
        length, identity = _HEADER.unpack_from(data, at)
        if not 4 <= length < 0xFFFFFFF0:
            break
        if identity:
            record = at + 4 - identity
            if offset <= record < at:
                if record not in common:
                    common[record] = _encoding(bytes(data[record : record + _LONGEST_CIE]))
                if common[record] == _RELATIVE_32:
                    start, extent = _RANGE.unpack_from(data, at + 8)
                    found.append((address + at + 8 - offset + start, extent))
        at += 4 + length
    found.sort()
    table = np.array(found, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _encoding(record: bytes) -> int | None:
    """Return how the FDEs of this CIE write addresses, None where it does not say so."""
    augmentation, zero, rest = record[9:].partition(b"\0")
    if not zero or not augmentation.startswith(b"z"):
        return None
    at = 0
    for _ in range(4):  # code and data alignment, the return address's register, the augmentation's length
        while at < len(rest) and rest[at] & 0x80:
            at += 1
        at += 1
    for letter in augmentation[1:].decode("latin-1"):
        if at >= len(rest):
            return None
        if letter == "R":
            return rest[at]
        if letter == "P":
            at += 1 + _POINTER_SIZES.get(rest[at] & 0xF, 8)
        elif letter == "L":
            at += 1
    return None
