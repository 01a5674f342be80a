"""Facts of an output folder about its images: sidecars, status files and crash files, joined by image."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import attrs

from moesr_bids.bids.derivatives import main_sidecars
from moesr_bids.bids.names import entities_of, image_key, suffix_of
from moesr_bids.bids.record import Record, read_record
from moesr_bids.bids.schema import RecordError, inside
from moesr_bids.bids.status import NO_PATH, ImageStatus, read_status


@attrs.frozen
class ImageRecord:
    """Everything that the output folder holds about one input image.

    Attributes
    ----------
    key : str
        Stem of the input image, for example ``sub-01_ses-1_T1w``; ``sub-01`` for a record of a whole participant.
    moesr : Record or None
        ``Moesr`` object of the main output's sidecar; None without a main output.
    status : ImageStatus or None
        Content of ``logs/status/<stem>.json``; None without one.
    sidecar : pathlib.Path or None
        The main output's sidecar.
    problems : tuple of str
        Sentences about files that could not be read.
    rating : Mapping
        ``rating`` and ``comment`` of the rater; see `moesr_bids.reports.ratings`.
    outlier_in : tuple of str
        Columns of the cohort table in which the image is an outlier; see `moesr_bids.reports.plots`.

    """

    key: str
    moesr: Record | None = None
    status: ImageStatus | None = None
    sidecar: Path | None = None
    problems: tuple[str, ...] = ()
    rating: Mapping[str, str] = attrs.field(factory=dict)
    outlier_in: tuple[str, ...] = ()

    @property
    def entities(self) -> dict[str, str]:
        """BIDS entities of the key, by their short name (``sub``, ``ses``, ``run``)."""
        return entities_of(self.key)

    @property
    def participant(self) -> str:
        """Participant, as in ``sub-01``."""
        return f"sub-{self.entities.get('sub', '')}"

    @property
    def session(self) -> str | None:
        """Session, as in ``ses-1``; None without sessions."""
        return f"ses-{self.entities['ses']}" if "ses" in self.entities else None

    @property
    def suffix(self) -> str | None:
        """Suffix of the image (``T1w``); None for a record of a whole participant."""
        suffix = suffix_of(self.key)
        return None if "-" in suffix else suffix

    @property
    def state(self) -> str:
        """``done``, ``skipped``, ``failed``, ``waiting``, ``running``, ``apart``, or ``missing`` (done, no output)."""
        stated = self.status.state if self.status else "done"
        return "missing" if stated in ("done", "skipped") and not self.has_output else stated

    @property
    def has_output(self) -> bool:
        """Whether the main output and a readable sidecar exist."""
        return self.moesr is not None and self.sidecar is not None and self.sidecar.with_suffix(".nii.gz").exists()

    @property
    def registration_dice(self) -> float | None:
        """Dice coefficient of brain mask and template after registration; the least over the output spaces."""
        blocks = self.moesr.registration.values() if self.moesr else ()
        return min((block.dice for block in blocks), default=None)

    @property
    def seconds(self) -> float | None:
        """Processing time in seconds."""
        source = self.moesr or self.status
        return source.seconds if source else None

    @property
    def peak_memory_gb(self) -> float | None:
        """Largest peak memory of a step, in GiB."""
        source = self.moesr or self.status
        return source.peak_memory_gb if source else None

    @property
    def complete(self) -> bool:
        """Whether the image is finished: ``done`` or ``skipped``, with its output."""
        return self.state in ("done", "skipped")


def _of_participant(key: str, participant: str | None) -> bool:
    return participant is None or re.match(rf"{re.escape(participant)}(?:_|$)", key) is not None


def find_images(out_dir: Path, participant: str | None = None) -> list[ImageRecord]:
    """List the images of an output folder, finished or not.

    Parameters
    ----------
    out_dir : pathlib.Path
        Output folder of the app.
    participant : str, optional
        Only this participant, as in ``sub-01``.

    Returns
    -------
    list of ImageRecord
        Sorted by key: every image with a main output or a status file.

    """
    records: dict[str, ImageRecord] = {}
    for path in main_sidecars(out_dir, participant or "sub-*"):
        key = image_key(path.name)
        try:
            records[key] = ImageRecord(key, moesr=read_record(path), sidecar=path)
        except RecordError as error:
            records[key] = ImageRecord(key, sidecar=path, problems=(f"{error}; run the image again",))
    for path in sorted((out_dir / "logs" / "status").glob("sub-*.json")):
        key = image_key(path.name)
        if not _of_participant(key, participant):
            continue
        known = records.get(key, ImageRecord(key))
        try:
            records[key] = attrs.evolve(known, status=read_status(path))
        except RecordError as error:
            records[key] = attrs.evolve(known, problems=(*known.problems, f"{error}; run the image again"))
    return [records[key] for key in sorted(records)]


def crash_files(out_dir: Path, participant: str) -> list[Path]:
    """List the crash files of a participant (``logs/sub-X/crash-*.txt``), oldest first."""
    found = (out_dir / "logs" / participant).glob("crash-*.txt")
    return sorted(found, key=lambda path: (path.stat().st_mtime, path.name))


def crash_file_of(out_dir: Path, record: ImageRecord) -> Path | None:
    """Return the crash file that an image's status names; None if it names none or the file is gone."""
    if record.status is None or record.status.crash_file == NO_PATH:
        return None
    path = inside(out_dir, record.status.crash_file)
    return path if path.is_file() else None
