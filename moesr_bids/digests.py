"""SHA-256 of files."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits; a file that did not change is read once."""
    status = path.stat()
    # A clock of file times ticks every few milliseconds: a file that replaces another may have its time and size.
    return _sha256(path, (status.st_mtime_ns, status.st_size, status.st_ino))


@cache
def _sha256(path: Path, version: tuple[int, ...]) -> str:
    del version
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
