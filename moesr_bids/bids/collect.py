"""Find the images to process, with their entities and metadata."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from moesr_bids.bids.sidecars import read_metadata
from moesr_bids.config import Settings

NIFTI_EXTENSIONS = (".nii", ".nii.gz")


@attrs.frozen(kw_only=True)
class RawImage:
    """An image of the input data set.

    Attributes
    ----------
    path : pathlib.Path
        Absolute path of the NIfTI file.
    root : pathlib.Path
        Root of the data set.
    metadata : Mapping
        Merged sidecars.
    warnings : tuple of str
        What was odd about the sidecars.
    problem : str
        Why the image cannot be processed, from its name alone; empty when it can.
    reference : RawImage, optional
        Image of the session that this one is aligned to; see `moesr_bids.bids.sessions`.
    instead_of : RawImage, optional
        The better reference that could not be used.
    instead_reason : str
        Why, in words.

    """

    path: Path
    root: Path
    metadata: Mapping[str, Any] = attrs.field(factory=dict, hash=False)
    warnings: tuple[str, ...] = ()
    problem: str = ""
    reference: RawImage | None = attrs.field(default=None, eq=False)
    instead_of: RawImage | None = attrs.field(default=None, eq=False)
    instead_reason: str = attrs.field(default="", eq=False)

    @property
    def relative(self) -> str:
        """Path below the data set's root, with forward slashes."""
        return self.path.relative_to(self.root).as_posix()

    @property
    def stem(self) -> str:
        """File name without extension."""
        return self.path.name.split(".", 1)[0]

    @property
    def suffix(self) -> str:
        """BIDS suffix, such as ``T1w``."""
        return self.stem.rsplit("_", 1)[-1]

    @property
    def entities(self) -> dict[str, str]:
        """Entities by their short key, as written: ``{"sub": "01", "run": "01"}``."""
        return dict(pair.split("-", 1) for pair in self.stem.split("_")[:-1] if "-" in pair)

    @property
    def participant(self) -> str:
        """Participant label without ``sub-``, from the folder."""
        return self.path.relative_to(self.root).parts[0].removeprefix("sub-")

    @property
    def session(self) -> str | None:
        """Session label without ``ses-``, if there are sessions."""
        return self.entities.get("ses")

    @property
    def workflow_name(self) -> str:
        """Name of the image's workflow: letters, digits and underscores."""
        return re.sub(r"\W", "_", self.stem) + "_wf"


def participant_labels(settings: Settings) -> list[str]:
    """Return the labels of the participants to process, sorted, without ``sub-``."""
    if settings.participant_label:
        return sorted(settings.participant_label)
    return sorted(path.name.removeprefix("sub-") for path in settings.bids_dir.glob("sub-*") if path.is_dir())


def _layout(settings: Settings) -> Any:
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    ignore: list[Any] = ["code", "stimuli", "sourcedata", "models", "derivatives", re.compile(r"^\.")]
    ignore.append(re.compile(r"/(func|dwi|fmap|perf|meg|eeg|ieeg|pet|micr|beh|motion|nirs)(/|$)"))
    if settings.participant_label and settings.bids_database_dir is None:
        # A database outlives this run and its selection, so it must hold everybody.
        chosen = "|".join(map(re.escape, settings.participant_label))
        ignore.append(re.compile(rf"/sub-(?!({chosen})(/|_|$))"))
    # Metadata is read per image by `read_metadata`: indexing it stops at the first broken JSON.
    indexer = BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=ignore)
    return BIDSLayout(settings.bids_dir, validate=False, indexer=indexer, database_path=settings.bids_database_dir)


def collect_images(settings: Settings) -> list[RawImage]:
    """Find the images that the settings select.

    Parameters
    ----------
    settings : Settings
        Data set, participants, sessions, suffixes and filters.

    Returns
    -------
    list of RawImage
        Sorted by path. Dangling links are included: what they lack is told per image. Images whose names cannot be
        used have their `RawImage.problem` stated.

    """
    layout = _layout(settings)
    images = []
    for suffix in settings.suffixes:
        filters: dict[str, Any] = {
            "datatype": "anat",
            **settings.bids_filters.get("anat", {}),
            **settings.bids_filters.get(suffix, {}),
            "suffix": suffix,
            "extension": list(NIFTI_EXTENSIONS),
            "subject": participant_labels(settings),
        }
        if settings.session_label:
            filters["session"] = list(settings.session_label)
        for file in layout.get(**filters):
            path = Path(file.path)
            metadata, warnings = read_metadata(path, settings.bids_dir)
            images.append(RawImage(path=path, root=settings.bids_dir, metadata=metadata, warnings=warnings))
    stems = Counter((image.path.parent, image.stem) for image in images)
    named = [attrs.evolve(image, problem=_name_problem(image, stems)) for image in images]
    return sorted(named, key=lambda image: image.path)


def _name_problem(image: RawImage, stems: Counter[tuple[Path, str]]) -> str:
    """Say why the outputs of an image could not be named after it, or nothing."""
    if stems[image.path.parent, image.stem] > 1:
        return f"{image.path}: there is a .nii and a .nii.gz of this name; remove one of them"
    folders = image.path.relative_to(image.root).parts[:-1]
    stated = [f"{key}-{image.entities[key]}" for key in ("sub", "ses") if key in image.entities]
    if stated != [folder for folder in folders if folder.startswith(("sub-", "ses-"))]:
        return f"{image.path}: the file name does not repeat the labels of its folders; rename it as BIDS asks"
    return ""
