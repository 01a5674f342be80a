"""Shared by the benchmarks that run the app: its command line, and its processor time."""

from __future__ import annotations

import resource
import sys

APP = [sys.executable, "-m", "moesr_bids.cli.main"]


def children_seconds() -> float:
    """Return the processor time of all processes that this one started and that have ended, user and system."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
