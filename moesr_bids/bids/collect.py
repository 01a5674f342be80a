"""Find the images to process, with their entities and metadata."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from moesr_bids.bids.names import (
    NIFTI_EXTENSIONS,
    OWN_ENTITIES,
    entities_of,
    identifier,
    is_valid,
    labels_of,
    stem_of,
    suffix_of,
)
from moesr_bids.bids.sidecars import read_metadata
from moesr_bids.config import Settings

_DATABASE = "layout_index.sqlite"  # as PyBIDS names it
_NOT_MAGNITUDE = ("phase", "real", "imag")


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
        One sentence for each sidecar that could not be used, or for the lack of any.
    problem : str
        Why the name of the image cannot be used; empty if it can.
    reference : RawImage, optional
        Image of the session that this one is aligned to; see `moesr_bids.bids.sessions`.
    instead_of : RawImage, optional
        The better reference that could not be used.
    instead_reason : str
        Why it could not be used, in words.
    scans : tuple of RawImage
        What it is joined from, see `moesr_bids.bids.joining`; empty for an image of the data set.
    failed : tuple of RawImage
        Scans that it would be joined from, too, if they could be prepared.

    """

    path: Path
    root: Path
    metadata: Mapping[str, Any] = attrs.field(factory=dict, hash=False)
    warnings: tuple[str, ...] = ()
    problem: str = ""
    reference: RawImage | None = attrs.field(default=None, eq=False)
    instead_of: RawImage | None = attrs.field(default=None, eq=False)
    instead_reason: str = attrs.field(default="", eq=False)
    scans: tuple[RawImage, ...] = attrs.field(default=(), eq=False)
    failed: tuple[RawImage, ...] = attrs.field(default=(), eq=False)

    @property
    def relative(self) -> str:
        """Path below the data set's root, with forward slashes."""
        return self.path.relative_to(self.root).as_posix()

    @property
    def files(self) -> tuple[RawImage, ...]:
        """The images of the data set that it stands for: its scans, or itself."""
        return self.scans or (self,)

    @property
    def stem(self) -> str:
        """File name without extension."""
        return stem_of(self.path)

    @property
    def suffix(self) -> str:
        """BIDS suffix, such as ``T1w``."""
        return suffix_of(self.path)

    @property
    def entities(self) -> dict[str, str]:
        """Entities by their short key, as written: ``{"sub": "01", "run": "01"}``."""
        return entities_of(self.path)

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
        return identifier(self.stem) + "_wf"


def coarseness(image: RawImage) -> tuple[float, str]:
    """Return what scans are ordered by, the sharpest first: largest voxel size in mm, and the name."""
    from moesr_bids.nifti import coarsest_voxel  # not for --help: it takes time to import

    return round(coarsest_voxel(image.path), 3), image.relative


def with_scans(images: Iterable[RawImage]) -> list[RawImage]:
    """Return images and, of those that are joined, their scans; each once."""
    return list(dict.fromkeys(one for image in images for one in (image, *image.scans)))


def participant_labels(settings: Settings) -> list[str]:
    """Return the labels of the participants to process, sorted, without ``sub-``."""
    if settings.participant_label:
        return sorted(settings.participant_label)
    return sorted(path.name.removeprefix("sub-") for path in settings.bids_dir.glob("sub-*") if path.is_dir())


def is_nifti(path: Path) -> bool:
    """Whether a file is an image by its name. Hidden files, such as resource forks of a Mac (``._...``), are not."""
    return path.name.endswith(NIFTI_EXTENSIONS) and not path.name.startswith(".")


def _layout(settings: Settings) -> Any:
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    # Only participants' folders, and of these only where anatomy may be.
    ignore = [re.compile(r"^/(?!sub-)")]
    ignore.append(re.compile(r"/(func|dwi|fmap|perf|meg|eeg|ieeg|pet|micr|beh|motion|nirs)(/|$)"))
    database = settings.bids_database_dir
    if settings.participant_label and database is None:
        # A database outlives this run and its selection, so it must hold everybody.
        chosen = "|".join(map(re.escape, settings.participant_label))
        ignore.append(re.compile(rf"^/sub-(?!({chosen})(/|$))"))
    # Metadata is read per image by `read_metadata`: indexing it stops at the first broken JSON.
    indexer = BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=ignore)
    if database is not None and not (database / _DATABASE).exists():
        database.mkdir(parents=True, exist_ok=True)
        # PyBIDS writes the files last: what a killed run leaves behind would be an index of nothing.
        with tempfile.TemporaryDirectory(dir=database, prefix=".") as temporary:
            BIDSLayout(settings.bids_dir, validate=False, indexer=indexer, database_path=temporary).session.close()
            (Path(temporary) / _DATABASE).replace(database / _DATABASE)
    layout = BIDSLayout(settings.bids_dir, validate=False, indexer=indexer, database_path=database)
    if Path(layout.root) != settings.bids_dir:
        raise ValueError(f"the database is that of {layout.root}, not of {settings.bids_dir}; give another folder")
    return layout


def collect_images(settings: Settings) -> list[RawImage]:
    """Find the images that the settings select.

    Parameters
    ----------
    settings : Settings
        Data set, participants, sessions, suffixes and filters.

    Returns
    -------
    list of RawImage
        Sorted by path. Dangling links are included; the header check reports them. For images whose names cannot be
        used, `RawImage.problem` says why.

    Raises
    ------
    ValueError
        If the filters name an entity that PyBIDS does not know, or the database is that of another data set.

    """
    layout = _layout(settings)
    images = []
    for suffix in settings.suffixes:
        # PyBIDS answers what the filters ask. Participant, session and folder are judged here: it finds them anywhere
        # in the path, that of the data set included, and reads labels that are not alphanumeric only in part.
        filters = {**settings.bids_filters.get("anat", {}), **settings.bids_filters.get(suffix, {})}
        for file in layout.get(**{key: _query(value) for key, value in filters.items()}, suffix=suffix):
            path = Path(file.path)
            if _is_selected(path, settings):
                metadata, warnings = read_metadata(path, settings.bids_dir)
                images.append(RawImage(path=path, root=settings.bids_dir, metadata=metadata, warnings=warnings))
    stems = Counter((image.path.parent, image.stem) for image in images)
    outputs = Counter(output_name(image) for image in images)
    named = [attrs.evolve(image, problem=_name_problem(image, stems, outputs)) for image in images]
    return sorted(named, key=lambda image: image.path)


def _query(value: Any) -> Any:
    """Translate a value of a filter file for PyBIDS: ``"*"`` is any value (there must be one), null is no value."""
    from bids.layout import Query

    if isinstance(value, list):
        return [_query(one) for one in value]
    return {"*": Query.REQUIRED, None: Query.NONE}.get(value, value)


def _is_selected(path: Path, settings: Settings) -> bool:
    """Whether a file is a magnitude image in an ``anat`` folder of a selected participant and session."""
    folders = path.relative_to(settings.bids_dir).parts[:-1]
    participants = {f"sub-{label}" for label in settings.participant_label}
    sessions = {f"ses-{label}" for label in settings.session_label}
    return (
        is_nifti(path)
        and not any(f"_part-{part}_" in path.name for part in _NOT_MAGNITUDE)
        and folders[-1:] == ("anat",)
        and folders[0].startswith("sub-")
        and (not participants or folders[0] in participants)
        and (not sessions or not sessions.isdisjoint(folders))
    )


def output_name(image: RawImage) -> tuple[str, ...]:
    """Return the parts that the names of an image's outputs are made of."""
    kept = [f"{key}-{label}" for key, label in image.entities.items() if key not in OWN_ENTITIES]
    return image.participant, *kept, image.suffix


def _name_problem(image: RawImage, stems: Counter[tuple[Path, str]], outputs: Counter[tuple[str, ...]]) -> str:
    """Return why the outputs of an image cannot be named after it; empty if they can."""
    if stems[image.path.parent, image.stem] > 1:
        return f"{image.path}: there is a .nii and a .nii.gz of this name; remove one of them"
    folders = image.path.relative_to(image.root).parts[:-1]
    stated = [f"{key}-{image.entities[key]}" for key in ("sub", "ses") if key in image.entities]
    if stated != labels_of(folders):
        return f"{image.path}: the file name does not repeat the labels of its folders; rename it as BIDS asks"
    if not is_valid(image.path.name):
        return f"{image.path}: labels may hold letters and digits only; rename it as BIDS asks"
    if outputs[output_name(image)] > 1:
        return f"{image.path}: outputs of another image would have the same names; rename or remove one of them"
    return ""
