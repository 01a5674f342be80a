"""End of a run that is stopped: its workers, and the processes that they started, end with it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

_PATIENCE_SECONDS = 5.0


@contextmanager
def ended_with_its_children() -> Iterator[None]:
    """Treat SIGTERM, which schedulers and containers send, as an exit, and end all child processes on an early end."""
    run = os.getpid()

    def leave(number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != run:  # a worker inherits this handler from the run
            os._exit(128 + number)
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        end_children()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def end_children() -> None:
    """Send SIGTERM to all descendants of this process, and SIGKILL to those still alive after 5 s."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        _signal(child, signal.SIGTERM)
    _, stubborn = psutil.wait_procs(children, timeout=_PATIENCE_SECONDS)
    for child in stubborn:
        _signal(child, signal.SIGKILL)
    psutil.wait_procs(stubborn, timeout=_PATIENCE_SECONDS)


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)
