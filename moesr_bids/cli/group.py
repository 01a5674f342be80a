"""Group level: tables and page about the derivatives of all participants."""

from __future__ import annotations

from moesr_bids.bids.status import write_table
from moesr_bids.config import Settings


def run_group(settings: Settings) -> int:
    """Write ``group_*.tsv`` and ``group.html``; return 1 if there is nothing to report on, or it fails, else 0."""
    from moesr_bids.console import say, waiting
    from moesr_bids.reports.group import build_group

    if (settings.output_dir / "logs" / "status").is_dir():
        write_table(settings.output_dir)  # when two jobs end together, the older table may be written last
    try:
        with waiting("the cohort page is being written"):
            paths = build_group(settings.output_dir)
    except ValueError as error:
        say(f"FAILED: {error}")
        return 1
    if not paths:
        say(f"{settings.output_dir} holds no finished image; run the participant level first")
        return 1
    for path in paths:
        say(f"wrote {path}")
    return 0
