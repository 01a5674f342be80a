"""SHA-256 of files."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits; a file that did not change is read once."""
    status = path.stat()
    # File times have steps of milliseconds: a new file may have the time and size of the one that it replaces.
    return _sha256(path, (status.st_mtime_ns, status.st_size, status.st_ino))


@cache
def _sha256(path: Path, version: tuple[int, ...]) -> str:
    del version
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
