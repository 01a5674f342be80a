"""What the benchmarks that run the app share: its command line, and what it took of the processors."""

from __future__ import annotations

import resource
import sys

APP = [sys.executable, "-m", "moesr_bids.cli.main"]


def children_seconds() -> float:
    """Return the processor time of all processes that this one started and that have ended, user and system."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
