"""Raw data set of the super-resolved images, for software that reads no derivatives (``--export-raw``).

It is made from finished outputs, at the end of a run or any time later.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nibabel as nib
import numpy as np

from moesr_bids import __version__, atomic
from moesr_bids.bids.dataset import BIDS_VERSION, other_dataset
from moesr_bids.bids.derivatives import main_sidecars
from moesr_bids.bids.names import anat_folder, entities_of, file_name, suffix_of
from moesr_bids.bids.record import Record, record_of
from moesr_bids.bids.schema import RecordError, inside, read_object
from moesr_bids.bids.sidecars import read_metadata, read_sidecar
from moesr_bids.bids.source import raw_folder
from moesr_bids.console import counted, say
from moesr_bids.errors import ImageError
from moesr_bids.nifti import open_image
from moesr_bids.sr.storage import stored_part

LARGEST_MM = 256.0
"""Largest field of view that FreeSurfer and FastSurfer take without further options."""
_DESCRIPTION = "dataset_description.json"
_RAW = "bids:raw:"
_LABEL = "moesr"
_EVERYTHING = (slice(None), slice(None), slice(None))
# Entities that come before rec in a name; all others come after it.
_BEFORE = ("sub", "ses", "sample", "acq", "ce", "trc", "stain")
# Keys that stay true of a super-resolved image, and identify neither a person nor a place.
_KEPT = (
    *("Manufacturer", "ManufacturersModelName", "MagneticFieldStrength", "SoftwareVersions", "ReceiveCoilName"),
    *("PulseSequenceType", "ScanningSequence", "SequenceVariant", "SequenceName"),
    *("EchoTime", "RepetitionTime", "InversionTime", "FlipAngle"),
)
_README = """# Super-resolved scans, laid out as raw data

moesr-bids {version} made these images from coarser scans. They are laid out as raw data for software that reads
nothing else, such as FreeSurfer, FastSurfer and SynthSeg. They are not raw data: do not super-resolve them again.

Detail finer than the scans was inferred, not measured. The JSON file of each image says from which voxels
(`InferredDetail`, `Moesr`). Uncertainty, report and verdict lie in the folder that `SourceDatasets` in
dataset_description.json links to.
"""


def target_problem(target: Path, output_dir: Path, bids_dir: Path | None = None) -> str:
    """Return why a folder cannot take the raw data set; empty if it can."""
    for other, what in ((output_dir, "the outputs"), (bids_dir, "the scans")):
        here, there = target.resolve(), other.resolve() if other else None
        if there and (here.is_relative_to(there) or there.is_relative_to(here)):
            return f"{target} cannot be apart from {what} in {other}; choose a folder beside it"
    if name := other_dataset(target):
        return f"{target} holds another data set ({name}); choose another folder"
    if read_sidecar(target / _DESCRIPTION).get("DatasetType", "raw") != "raw":
        return f"{target} is an output folder of moesr-bids; choose another folder"
    return f"{target} is a file" if target.exists() and not target.is_dir() else ""


def export_raw(
    output_dir: Path, target: Path, participants: Iterable[str] = (), *, extension: str = ".nii.gz"
) -> list[Path]:
    """Copy the super-resolved images of an output folder into a raw data set.

    Each image is named as its scan, with ``rec-moesr``. Voxels keep the values and world positions of the output; a
    field of view of more than `LARGEST_MM` is cut to that around the brain. Images that were copied before are kept.

    Parameters
    ----------
    output_dir : pathlib.Path
        Output folder of ``moesr-bids``.
    target : pathlib.Path
        Folder of the raw data set, made if missing; `target_problem` must accept it.
    participants : iterable of str
        Labels without ``sub-``; by default all.
    extension : str
        ``.nii.gz``, or ``.nii`` for SPM.

    Returns
    -------
    list of pathlib.Path
        Images of the raw data set.

    """
    folders = [f"sub-{label}" for label in participants] or ["sub-*"]
    _write_root(output_dir, target)
    images = []
    for sidecar in sorted(path for folder in folders for path in main_sidecars(output_dir, folder)):
        try:
            images.append(_export(sidecar, output_dir, target, extension))
        except (RecordError, ImageError) as error:
            say(f"WARNING: not exported: {error}; run the image again")
    say(f"{counted(len(images), 'image')} as raw data in {target}")
    return images


def raw_name(sidecar: str | Path, extension: str) -> str:
    """Return the name in the raw data set for the image with this sidecar.

    Examples
    --------
    >>> raw_name("sub-1_acq-a_rec-norm_run-2_res-0p7mm_desc-moesr_T1w.json", ".nii")
    'sub-1_acq-a_rec-normmoesr_run-2_T1w.nii'

    """
    given = {key: label for key, label in entities_of(sidecar).items() if key not in ("res", "desc", "rec")}
    before = {key: label for key, label in given.items() if key in _BEFORE}
    label = entities_of(sidecar).get("rec", "") + _LABEL
    return file_name({**before, "rec": label, **given}, suffix_of(sidecar), extension)


def _export(sidecar: Path, output_dir: Path, target: Path, extension: str) -> Path:
    content = read_object(sidecar)
    record = record_of(content, str(sidecar))
    entities = entities_of(sidecar)
    path = target / anat_folder(entities["sub"], entities.get("ses")) / raw_name(sidecar, extension)
    told = path.with_name(f"{path.name.removesuffix(extension)}.json")
    image, _ = open_image(sidecar.with_suffix(".nii.gz"))
    facts = _sidecar(content, record, output_dir)
    if path.exists() and read_sidecar(told).get("Moesr") == facts["Moesr"]:
        return path
    box = _EVERYTHING
    if any(n > _most_voxels(zoom) for n, zoom in zip(image.shape, image.header.get_zooms(), strict=True)):
        box = _around_brain(open_image(_mask_of(record, output_dir))[0], image)
    path.parent.mkdir(parents=True, exist_ok=True)
    told.unlink(missing_ok=True)  # a sidecar without a whole image must not exist
    with atomic.temporary_beside(path) as temporary:
        stored_part(image, box).to_filename(temporary)
    atomic.write_text(told, json.dumps(facts, indent=2) + "\n")
    return path


def _most_voxels(zoom: float) -> int:
    return math.floor(LARGEST_MM / zoom + 1e-4)


def _around_brain(mask: nib.Nifti1Image, image: nib.Nifti1Image) -> tuple[slice, slice, slice]:
    """Return the box of at most `LARGEST_MM` along each axis, centred on the brain's box as far as possible."""
    inside_brain = np.asanyarray(mask.dataobj) > 0
    box = []
    for axis, (n, zoom) in enumerate(zip(image.shape, image.header.get_zooms(), strict=True)):
        most = min(n, _most_voxels(zoom))
        seen = np.flatnonzero(inside_brain.any(axis=tuple(other for other in range(3) if other != axis)))
        centre = (seen[0] + seen[-1] + 1) / 2 if seen.size else n / 2
        start = int(np.clip(round(centre - most / 2), 0, n - most))
        box.append(slice(start, start + most))
    return box[0], box[1], box[2]


def _mask_of(record: Record, output_dir: Path) -> Path:
    name = next(name for name in record.outputs if name.endswith("_desc-brain_mask.nii.gz"))
    return inside(output_dir, name)


def _sidecar(content: Mapping[str, Any], record: Record, output_dir: Path) -> dict[str, Any]:
    scan = next(str(text) for text in content["Sources"] if str(text).startswith(_RAW)).removeprefix(_RAW)
    root = raw_folder(output_dir)
    known = root is not None and (root / scan).parent.is_dir()
    metadata = read_metadata(root / scan, root)[0] if root is not None and known else {}
    voxels = " x ".join(f"{zoom:.3g}" for zoom in record.input_zooms)
    made = " x ".join(f"{zoom:.3g}" for zoom in record.output_zooms)
    from_scan = f"Super-resolved by moesr-bids {record.version} from voxels of {voxels} mm to {made} mm."
    return {
        **{key: metadata[key] for key in _KEPT if key in metadata},
        "InferredDetail": f"{from_scan} {content.get('InferredDetail', '')}".strip(),
        "Moesr": {
            "Version": record.version,
            "Model": record.model,
            "Source": scan,
            "InputZooms": list(record.input_zooms),
            "SkullStripped": record.brain_mask.skull_stripped,
            "GradientNonlinearity": record.gradient_nonlinearity.action,
            "OutputSHA256": record.output_sha256,
        },
    }


def _write_root(output_dir: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    told = read_sidecar(output_dir / _DESCRIPTION)
    sources = told.get("SourceDatasets") or [{}]
    name = sources[0].get("Name") or "Scans"
    description = {
        "Name": f"{name}, super-resolved by moesr-bids",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "raw",
        "GeneratedBy": [{"Name": "moesr-bids", "Version": __version__}],
        "SourceDatasets": [{"URL": quote(os.path.relpath(output_dir, target))}],
        "HowToAcknowledge": "Cite the works listed in logs/CITATION.md of the source data set.",
        **({"License": told["License"]} if told.get("License") else {}),
    }
    atomic.write_text(target / _DESCRIPTION, json.dumps(description, indent=2) + "\n")
    atomic.write_text(target / "README.md", _README.format(version=__version__))
