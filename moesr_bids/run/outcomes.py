"""Outcomes of the images of a run, as rows of the status table."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moesr_bids.bids.collect import RawImage, is_nifti, participant_labels
from moesr_bids.bids.crashes import Crash
from moesr_bids.bids.joining import LABEL
from moesr_bids.bids.names import entities_of
from moesr_bids.bids.plan import ImagePlan
from moesr_bids.bids.record import Record
from moesr_bids.bids.resume import finished_record, input_digest, settings_hash
from moesr_bids.bids.schema import RecordError, inner_path
from moesr_bids.bids.status import NO_PATH, ImageStatus, read_status
from moesr_bids.config import SUFFIXES, Settings
from moesr_bids.sr.joint import APART


def image_status(image: RawImage, **fields: Any) -> ImageStatus:
    """Return a status with participant, session and path of an image filled in."""
    session = f"ses-{image.session}" if image.session else "n/a"
    return ImageStatus(
        participant_id=f"sub-{image.participant}", session_id=session, image=inner_path(image.relative), **fields
    )


def skipped_status(image: RawImage, record: Record) -> ImageStatus:
    """Return the status of an image whose outputs were complete before the run."""
    return image_status(image, state="skipped", step="publish", reason="outputs were complete", **_measured(record))


def outcome(plan: ImagePlan, crash: Crash | None, error: Exception | None) -> ImageStatus:
    """Return the status of an image after the run.

    Parameters
    ----------
    plan : ImagePlan
        Plan of the image.
    crash : Crash or None
        First step of the image that failed.
    error : Exception or None
        Error that ended the run as a whole.

    """
    if crash is not None and plan.joined and APART in crash.reason:
        digest = settings_hash(plan, input_digest(plan))
        return image_status(plan.image, state="apart", step=crash.step, reason=crash.reason, settings_hash=digest)
    if crash is not None:
        file = crash.path.relative_to(plan.settings.output_dir).as_posix()
        return image_status(
            plan.image, state="failed", step=crash.step, reason=crash.reason, crash_file=inner_path(file)
        )
    record = finished_record(plan)
    if record is not None:
        return image_status(plan.image, state="done", step="publish", **_measured(record))
    lines = str(error).strip().splitlines() if error else []
    # The last line of a traceback is the error itself.
    reason = f"not finished: the run ended early ({lines[-1]})" if lines else "not finished"
    return image_status(plan.image, state="failed", step="run", reason=reason)


def rejected_status(image: RawImage) -> ImageStatus:
    """Return the status of an image whose name cannot be used."""
    return image_status(image, state="failed", step="collect", reason=image.problem)


def statuses_without_images(images: Iterable[RawImage], settings: Settings) -> list[ImageStatus]:
    """Return a failed status for each selected participant without any T1w, T2w or FLAIR image.

    A participant whose images the options do not select has not failed.
    """
    have = {image.participant for image in images}
    return [
        ImageStatus(
            participant_id=f"sub-{label}", state="failed", step="collect", reason=f"no {', '.join(SUFFIXES)} image"
        )
        for label in participant_labels(settings)
        if label not in have and not _has_anatomy(settings.bids_dir / f"sub-{label}")
    ]


def _has_anatomy(folder: Path) -> bool:
    return any(is_nifti(path) for suffix in SUFFIXES for path in folder.glob(f"**/anat/*_{suffix}.nii*"))


def forget_what_is_gone(settings: Settings, images: Iterable[RawImage]) -> None:
    """Remove status files of earlier runs: of these participants as a whole, and of images that no longer exist."""
    participants = {f"sub-{image.participant}" for image in images}
    for path in (settings.output_dir / "logs" / "status").glob("sub-*.json"):
        participant = f"sub-{entities_of(path)['sub']}"
        if participant not in participants:
            continue
        if path.stem == participant or _is_gone(path, settings.bids_dir):
            path.unlink(missing_ok=True)


def _is_gone(status: Path, bids_dir: Path) -> bool:
    """Whether the image of a status file no longer exists; true too if the status file cannot be read."""
    try:
        image = read_status(status).image
    except RecordError:
        return True
    if entities_of(image).get("rec", "").endswith(LABEL):
        return not (bids_dir / image).parent.is_dir()  # no file of the data set, but there as long as its scans are
    # A dangling link still exists: the header check reports it.
    return image != NO_PATH and not os.path.lexists(bids_dir / image)


def _measured(record: Record) -> dict[str, Any]:
    return {"seconds": record.seconds, "peak_memory_gb": record.peak_memory_gb}
