"""Processes that a step starts, and their end with the process that started them.

A step whose process is killed is tried again in the same folder: what the first try has started may not go on there.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
# Loaded here: between fork and exec nothing may be imported.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with(parent: int) -> None:
    """Have the kernel kill this process as soon as the one that started it ends, however that ends.

    Linux alone knows this; elsewhere the process goes on, and ends with its work.

    Parameters
    ----------
    parent : int
        Process number of the one that started it.

    """
    if _LIBC is None:
        return
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before it could be watched
        os.kill(os.getpid(), signal.SIGKILL)
