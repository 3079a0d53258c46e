"""SQLite that is not C any more: Go packages that hold it translated, with its messages and its source id.

modernc.org/sqlite is sqlite3.c turned into Go by a compiler, github.com/ncruces/go-sqlite3 is WebAssembly; glebarez's
is a fork of the first.  Neither has C's functions, arguments or stack, so that there is nothing to be probed.

Every Go program lists the modules it was built from behind a magic text (runtime/debug, "build info"), stripped or
not.  A module in the list need not be in use: only a file without the C functions is asked.
"""

from __future__ import annotations

import re
from typing import Final

from sqltrace.resolve.image import Image

_BUILD_INFO: Final = re.compile(rb"\xff Go buildinf:")
_MODULE: Final = re.compile(
    rb"\n(?:dep|mod)\t((?:modernc\.org/sqlite|github\.com/(?:ncruces/go-sqlite3|glebarez/go-sqlite)))\t([0-9A-Za-z.+()-]{1,80})"
)


def translation(image: Image) -> str | None:
    """Return module and version of a Go package that is SQLite in another form, None where there is none."""
    if next(image.search(_BUILD_INFO), None) is None:
        return None
    match = next(image.search(_MODULE), None)
    return f"{match[1].decode()} {match[2].decode()}" if match is not None else None
