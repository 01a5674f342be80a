"""What an output folder says about its images: sidecars, status files and crash files, joined by image."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

_NOT_OF_THE_INPUT = re.compile(r"_(?:res|desc|space)-[0-9a-zA-Z+]+")
_ENTITY = re.compile(r"(?:^|_)([a-z]+)-([0-9a-zA-Z+]+)(?=_|$)")
_SUFFIX = re.compile(r"_([a-zA-Z0-9]+)$")


def image_key(name: str) -> str:
    """Return the stem that an input image and all its derivatives and figures share.

    Parameters
    ----------
    name : str
        File name or path, with or without extension.

    Returns
    -------
    str
        The name without folder, extension, ``res-``, ``desc-`` and ``space-``.

    Examples
    --------
    >>> image_key("sub-01/anat/sub-01_run-1_res-0p7mm_desc-moesr_T1w.json")
    'sub-01_run-1_T1w'
    >>> image_key("sub-01_run-1_T1w.nii.gz")
    'sub-01_run-1_T1w'

    """
    return _NOT_OF_THE_INPUT.sub("", Path(name).name.split(".", 1)[0])


@attrs.frozen
class ImageRecord:
    """All that the output folder holds about one input image.

    Attributes
    ----------
    key : str
        Stem of the input image, for example ``sub-01_ses-1_T1w``; ``sub-01`` for a record of a whole participant.
    moesr : Mapping
        ``Moesr`` block of the main output's sidecar; empty without a main output.
    status : Mapping
        Content of ``logs/status/<stem>.json``; empty without one.
    sidecar : pathlib.Path or None
        The main output's sidecar.
    problems : tuple of str
        What could not be read, in words.
    rating : Mapping
        ``rating`` and ``comment`` of whoever looked at it; see `moesr_bids.reports.ratings`.
    outlier_in : tuple of str
        Columns of the cohort table in which it is an outlier; see `moesr_bids.reports.plots`.

    """

    key: str
    moesr: Mapping[str, Any] = attrs.field(factory=dict)
    status: Mapping[str, Any] = attrs.field(factory=dict)
    sidecar: Path | None = None
    problems: tuple[str, ...] = ()
    rating: Mapping[str, str] = attrs.field(factory=dict)
    outlier_in: tuple[str, ...] = ()

    @property
    def entities(self) -> dict[str, str]:
        """BIDS entities of the key, by their short name (``sub``, ``ses``, ``run``)."""
        return dict(_ENTITY.findall(self.key))

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
        found = _SUFFIX.search(self.key)
        return found.group(1) if found else None

    @property
    def state(self) -> str:
        """``done``, ``skipped``, ``failed``, ``waiting``, ``running``, or ``missing`` (no output)."""
        stated = str(self.status.get("state", "done"))
        return "missing" if stated in ("done", "skipped") and not self.has_output else stated

    @property
    def has_output(self) -> bool:
        """Whether the main output and a readable sidecar exist."""
        return bool(self.moesr) and self.sidecar is not None and self.sidecar.with_suffix(".nii.gz").exists()

    def fact(self, *names: str | int) -> Any:
        """Return a value inside the ``Moesr`` block by its keys and indices; None where there is none."""
        value: Any = self.moesr
        for name in names:
            try:
                value = value[name]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    @property
    def registration_overlap(self) -> float | None:
        """Overlap of brain mask and template after registration; the least over the output spaces."""
        blocks = self.moesr.get("Registration")
        facts = blocks.values() if isinstance(blocks, Mapping) else ()
        overlaps = [block.get("Overlap") for block in facts if isinstance(block, Mapping)]
        return min((overlap for overlap in overlaps if isinstance(overlap, int | float)), default=None)

    @property
    def complete(self) -> bool:
        """Whether the image went through."""
        return self.state in ("done", "skipped")


def _read_json(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return {}, (f"{path.name} could not be read ({error}); run the image again",)
    if not isinstance(content, dict):
        return {}, (f"{path.name} does not hold a JSON object; run the image again",)
    return content, ()


def _of_participant(key: str, participant: str | None) -> bool:
    return participant is None or re.match(rf"{re.escape(participant)}(?:_|$)", key) is not None


def find_images(out_dir: Path, participant: str | None = None) -> list[ImageRecord]:
    """List the images that an output folder knows of, finished or not.

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
    folder = participant or "sub-*"
    records: dict[str, ImageRecord] = {}
    patterns = (f"{folder}/anat/*_desc-moesr_*.json", f"{folder}/ses-*/anat/*_desc-moesr_*.json")
    found = sorted(path for pattern in patterns for path in out_dir.glob(pattern))
    # Copies in the space of a template are no images of their own.
    for path in [path for path in found if "_space-" not in path.name]:
        content, problems = _read_json(path)
        key = image_key(path.name)
        records[key] = ImageRecord(key, moesr=content.get("Moesr", {}), sidecar=path, problems=problems)
    for path in sorted((out_dir / "logs" / "status").glob("sub-*.json")):
        key = image_key(path.name)
        if _of_participant(key, participant):
            status, problems = _read_json(path)
            known = records.get(key, ImageRecord(key))
            records[key] = attrs.evolve(known, status=status, problems=known.problems + problems)
    return [records[key] for key in sorted(records)]


def crash_files(out_dir: Path, participant: str) -> list[Path]:
    """List the crash files of a participant (``logs/sub-X/crash-*.txt``), oldest first."""
    found = (out_dir / "logs" / participant).glob("crash-*.txt")
    return sorted(found, key=lambda path: (path.stat().st_mtime, path.name))


def crash_file_of(out_dir: Path, record: ImageRecord) -> Path | None:
    """Return the crash file that an image's status names, or None where it names none or the file is gone."""
    stated = record.status.get("crash_file")
    if not stated or stated == "n/a":
        return None
    path = out_dir / str(stated)  # an absolute path replaces out_dir
    moved = out_dir / "logs" / record.participant / path.name  # the output folder was moved since
    return next((candidate for candidate in (path, moved) if candidate.is_file()), None)
