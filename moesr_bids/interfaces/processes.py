"""Processes that a step starts, and that end with the process that started them.

If the process of a step is killed, the step runs again in the same folder. Processes of the first try must be gone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
# Loaded here: between fork and exec nothing may be imported.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with(parent: int) -> None:
    """Let the kernel kill this process as soon as the process that started it ends for any reason.

    Only Linux can do this. Elsewhere the process ends when its work is done.

    Parameters
    ----------
    parent : int
        Number of the process that started it.

    """
    if _LIBC is None:
        return
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the call
        os.kill(os.getpid(), signal.SIGKILL)


def in_own_process(task: Callable[..., Any], in_file: str, *arguments: Any, what: str) -> Any:
    """Return what a function of a file and further arguments gives in a process of its own.

    Raises
    ------
    MemoryError
        If the process was killed.

    """
    try:
        with ProcessPoolExecutor(1, get_context("spawn"), end_with, (os.getpid(),)) as pool:
            return pool.submit(task, in_file, *arguments).result()
    except BrokenExecutor:
        raise MemoryError(
            f"{in_file}: {what} was killed, most often for lack of memory; give more memory to the job"
        ) from None
