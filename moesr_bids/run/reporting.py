"""Status files, status table, and reports of participants."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from moesr_bids.bids.collect import participant_labels
from moesr_bids.bids.crashes import crashes_by_image
from moesr_bids.bids.plan import ImagePlan
from moesr_bids.bids.status import more_statuses_than, read_statuses, write_status, write_table
from moesr_bids.config import Settings
from moesr_bids.console import say
from moesr_bids.errors import UsageError
from moesr_bids.run.outcomes import image_status, outcome

_FEW_IMAGES = 100  # with more, the table is not written for each image, since it needs every status file
_SECONDS_BETWEEN_TABLES = 60.0


class Reporter:
    """Writes status and report of an image when it begins and ends, so that a long run shows its results.

    Parameters
    ----------
    plans : sequence of ImagePlan
        Images of the run.
    settings : Settings
        Settings of the run.
    earlier : collection of pathlib.Path
        Crash files that were there before the run.

    """

    def __init__(self, plans: Sequence[ImagePlan], settings: Settings, *, earlier: Collection[Path]) -> None:
        self._settings, self._earlier = settings, earlier
        self._table_seconds = 0.0 if len(plans) <= _FEW_IMAGES else _SECONDS_BETWEEN_TABLES

    def began(self, plan: ImagePlan) -> None:
        """Write that the first step of an image runs."""
        write_status(self._settings.output_dir, image_status(plan.image, state="running"))
        tabulate(self._settings, unless_younger_s=self._table_seconds)

    def ended(self, plan: ImagePlan) -> None:
        """Write that an image is published, or that one of its steps failed, and write the report."""
        logs = self._settings.output_dir / "logs"
        crash = crashes_by_image(logs, [plan.image], earlier=self._earlier).get(plan.image)
        write_status(self._settings.output_dir, outcome(plan, crash, None))
        tabulate(self._settings, unless_younger_s=self._table_seconds)
        write_reports(self._settings, [plan.image.participant], quiet=True)


def tabulate(settings: Settings, *, unless_younger_s: float = 0.0) -> Path | None:
    """Write the status table and return its path.

    In a task of a large cohort it is not written, and None is returned: each task would read the status files of all
    participants. The group level writes it.
    """
    if settings.participant_label and more_statuses_than(_FEW_IMAGES, settings.output_dir):
        return None
    return write_table(settings.output_dir, unless_younger_s=unless_younger_s)


def write_reports(settings: Settings, participants: Sequence[str], *, quiet: bool = False) -> bool:
    """Write the reports of participants; return False if one could not be written."""
    from moesr_bids.reports.individual import build_participant_report

    written = True
    for label in participants:
        try:
            single = settings.report_format == "single"
            path = build_participant_report(settings.output_dir, f"sub-{label}", single_file=single)
        except Exception as error:  # A report that cannot be written must not hide the others, nor the exit code.
            say(f"FAILED report of sub-{label}: {error}")
            written = False
        else:
            if not quiet:
                say(f"report: {path}")
    return written


def rewrite_reports(settings: Settings) -> int:
    """Write the reports of all selected participants that the output folder knows of; return the exit code."""
    if not settings.output_dir.is_dir():
        raise UsageError(f"output folder {settings.output_dir} does not exist; run without --reports-only first")
    known = {status.participant_id for status in read_statuses(settings.output_dir)}
    known |= {path.name for path in settings.output_dir.glob("sub-*") if path.is_dir()}
    labels = [label for label in participant_labels(settings) if f"sub-{label}" in known]
    if not labels:
        raise UsageError(f"output folder {settings.output_dir} has nothing of the selected participants to report")
    return 0 if write_reports(settings, labels) else 1
