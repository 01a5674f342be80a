"""Locks in the work folder, so that no two runs work on the same image there at the same time."""

from __future__ import annotations

import errno
import fcntl
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from moesr_bids.bids.collect import RawImage, with_scans
from moesr_bids.config import Settings
from moesr_bids.console import say
from moesr_bids.errors import UsageError

LOCK_FILE = "moesr_wf.lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)


@contextmanager
def working_on(images: Iterable[RawImage], settings: Settings) -> Iterator[None]:
    """Lock images inside the context; runs that share intermediate files could publish each other's.

    Each image is a byte of one file, since a process cannot open as many files as a cohort has images. The kernel frees
    the locks when the process ends, however it ends.

    Raises
    ------
    UsageError
        If another run has locked one of the images.

    """
    settings.work_dir.mkdir(parents=True, exist_ok=True)
    with (settings.work_dir / LOCK_FILE).open("ab") as stream:
        # The scans of a joined image have folders of their own, whether or not they are images of the run.
        for image in with_scans(images):
            place = int(hashlib.sha256(image.workflow_name.encode()).hexdigest()[:15], 16)
            try:
                fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except OSError as error:
                if error.errno in _TAKEN:
                    raise UsageError(
                        f"another run works on {image.stem} in the work folder {settings.work_dir}; wait for it, or "
                        "name another folder with --work-dir"
                    ) from None
                say(f"WARNING: {settings.work_dir} knows no locks ({error.strerror}): let no other run use it now")
                break
        yield
