"""Files that appear only when whole: write to a hidden name in the same folder, then rename."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Give a hidden temporary name beside `path`; on success it is renamed to `path`, on failure removed.

    The temporary name keeps the extensions, by which image libraries choose the format.
    """
    stem, dot, extensions = path.name.partition(".")
    temporary = path.with_name(f".{stem}.{uuid.uuid4().hex[:8]}.part{dot}{extensions}")
    try:
        yield temporary
        os.replace(temporary, path)  # noqa: PTH105
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one go."""
    with temporary_beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def copy_file(source: Path, target: Path) -> None:
    """Copy a file so that `target` appears only when whole."""
    with temporary_beside(target) as temporary:
        shutil.copyfile(source, temporary)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that a killed run left beside `path`."""
    stem, dot, extensions = path.name.partition(".")
    for leftover in path.parent.glob(f".{stem}.*.part{dot}{extensions}"):
        leftover.unlink(missing_ok=True)
