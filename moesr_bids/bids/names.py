"""BIDS file names: all building and splitting of names is here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

NIFTI_EXTENSIONS = (".nii", ".nii.gz")
# Order of entities in file names by the BIDS schema; raw entities not listed here come before all of these.
_LATE_ENTITIES = ("space", "split", "recording", "chunk", "seg", "res", "den", "label", "desc", "from", "to", "mode")
OWN_ENTITIES = ("space", "res", "label", "desc", "from", "to", "mode")
"""Entities that outputs set themselves; those of the raw image do not reach their names."""
_BEFORE_REC = ("sub", "ses", "sample", "task", "tracksys", "acq", "nuc", "voi", "ce", "trc", "stain")
_NOT_OF_THE_INPUT = re.compile(r"_(?:res|desc|space)-[0-9a-zA-Z+]+")
_VALID = re.compile(r"([a-z]+-[0-9A-Za-z+]+_)*[0-9A-Za-z]+\.nii(\.gz)?")


def stem_of(name: str | Path) -> str:
    """Return a file's name without folder and extension.

    Examples
    --------
    >>> stem_of("sub-01/anat/sub-01_T1w.nii.gz")
    'sub-01_T1w'

    """
    return Path(name).name.split(".", 1)[0]


def suffix_of(name: str | Path) -> str:
    """Return the BIDS suffix, such as ``T1w``."""
    return stem_of(name).rpartition("_")[2]


def entities_of(name: str | Path) -> dict[str, str]:
    """Return the entities by their short key, as written: ``{"sub": "01", "run": "01"}``."""
    parts = stem_of(name).split("_")
    named = parts if "-" in parts[-1] else parts[:-1]
    return dict(pair.split("-", 1) for pair in named if "-" in pair)


def is_valid(name: str) -> bool:
    """Whether the name of a NIfTI file is one that BIDS allows."""
    return _VALID.fullmatch(name) is not None


def file_name(entities: Mapping[str, str | None], suffix: str, extension: str) -> str:
    """Return a name with its entities in the order of BIDS; those that are None or empty are left out.

    Examples
    --------
    >>> file_name({"sub": "01", "desc": "brain", "res": "1mm", "space": None}, "mask", ".nii.gz")
    'sub-01_res-1mm_desc-brain_mask.nii.gz'

    """
    given = {key: label for key, label in entities.items() if label}
    order = [key for key in given if key not in _LATE_ENTITIES] + [key for key in _LATE_ENTITIES if key in given]
    return "_".join([*(f"{key}-{given[key]}" for key in order), suffix]) + extension


def with_rec(entities: Mapping[str, str], label: str) -> dict[str, str]:
    """Return entities with another ``rec``, at its place in the order of BIDS.

    Examples
    --------
    >>> with_rec({"sub": "01", "acq": "ax", "run": "1"}, "joined")
    {'sub': '01', 'acq': 'ax', 'rec': 'joined', 'run': '1'}

    """
    before = {key: value for key, value in entities.items() if key in _BEFORE_REC}
    return {**before, "rec": label, **{key: v for key, v in entities.items() if key not in (*before, "rec")}}


def anat_folder(participant: str, session: str | None) -> str:
    """Return the folder of anatomical images below a data set's root; labels come without ``sub-`` and ``ses-``."""
    return f"sub-{participant}" + (f"/ses-{session}" if session else "") + "/anat"


def sidecar_of(path: str) -> str:
    """Return the path of the JSON file beside an image or transform."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/{stem_of(name)}.json"


def image_key(name: str | Path) -> str:
    """Return the stem that an input image and all its derivatives and figures share.

    Examples
    --------
    >>> image_key("sub-01/anat/sub-01_run-1_res-0p7mm_desc-moesr_T1w.json")
    'sub-01_run-1_T1w'
    >>> image_key("sub-01_run-1_T1w.nii.gz")
    'sub-01_run-1_T1w'

    """
    return _NOT_OF_THE_INPUT.sub("", stem_of(name))


def figure_name(key: str, desc: str, extension: str) -> str:
    """Return the name of a figure of an image.

    Examples
    --------
    >>> figure_name("sub-01_ses-1_T1w", "slider", ".html")
    'sub-01_ses-1_desc-slider_T1w.html'

    """
    stem, _, suffix = key.rpartition("_")
    return f"{stem}_desc-{desc}_{suffix}{extension}"


def unique_key(path: str) -> str:
    """Return a unique key for the file of a raw image.

    It is the image's stem if the name repeats the labels of its folders; otherwise the labels are put before it, since
    another image could have the same stem.

    Parameters
    ----------
    path : str
        Path below the data set's root.

    """
    *folders, name = path.split("/")
    stem = re.sub(r"\.nii(\.gz)?$", "", name).replace(".", "")
    labels = labels_of(folders)
    if stem.startswith("_".join(labels) + "_"):
        return stem
    told, _, suffix = stem.rpartition("_")
    plain = re.sub(r"[^0-9A-Za-z]", "", told)
    return "_".join([*labels, *([f"name-{plain}"] if plain else []), suffix])


def labels_of(folders: Iterable[str]) -> list[str]:
    """Return the folders of participant and session, as in ``["sub-01", "ses-1"]``."""
    return [folder for folder in folders if folder.startswith(("sub-", "ses-"))]


def identifier(text: str) -> str:
    """Turn a text into the name of a Nipype node: letters, digits and underscores."""
    return re.sub(r"[^0-9A-Za-z_]", "_", text)
