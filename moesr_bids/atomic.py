"""Files that appear only when they are whole: write under a hidden name in the same folder, then rename."""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_HOST = re.sub(r"[^0-9a-zA-Z-]", "-", socket.gethostname())
_ABANDONED_SECONDS = 24 * 3600


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Yield a hidden temporary path beside `path`; on success it is renamed to `path`, on failure removed.

    The temporary name keeps the extensions, by which image libraries choose the format.
    """
    stem, dot, extensions = path.name.partition(".")
    owner = f"{_HOST}+{os.getpid()}+{uuid.uuid4().hex[:8]}"
    temporary = path.with_name(f".{stem}.{owner}.part{dot}{extensions}")
    try:
        yield temporary
        os.replace(temporary, path)  # noqa: PTH105
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) so that it appears only when whole."""
    with temporary_beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def copy_file(source: Path, target: Path) -> None:
    """Copy a file so that `target` appears only when whole."""
    with temporary_beside(target) as temporary:
        shutil.copyfile(source, temporary)


def link_file(source: Path, target: Path) -> None:
    """Give a file a second name (hard link); copy it where the file system has no hard links."""
    with temporary_beside(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed runs left beside `path`; those of running processes stay.

    For a file of this host, the process is looked up. Files of another host are removed after a day.
    """
    stem, dot, extensions = path.name.partition(".")
    for leftover in path.parent.glob(f".{stem}.*.part{dot}{extensions}"):
        between = leftover.name[len(stem) + 2 : -len(f".part{dot}{extensions}")]
        owner = re.fullmatch(r"(.+)\+(\d+)\+[0-9a-f]{8}", between)
        if owner is None:
            continue
        with suppress(OSError):
            here = owner[1] == _HOST
            old = time.time() - leftover.stat().st_mtime > _ABANDONED_SECONDS
            if (here and not Path(f"/proc/{owner[2]}").exists()) or old:
                leftover.unlink()
