"""Small data sets of scans of the phantom that moved between scans."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation


def rigid(shift: Sequence[float], turn: Sequence[float]) -> np.ndarray:
    """Return a 4 x 4 movement in the world: a shift in mm, after turns about x, y and z in degrees."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def new_data_set(folder: Path, name: str) -> Path:
    """Begin a raw data set in ``folder/bids``; return the folder for scans of its only participant."""
    anat = folder / "bids/sub-01/anat"
    anat.mkdir(parents=True)
    description = {"Name": name, "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    (folder / "bids/dataset_description.json").write_text(json.dumps(description))
    return anat


def save_scan(image: nib.Nifti1Image, stem: Path, metadata: Mapping[str, Any], position: np.ndarray) -> None:
    """Write a scan of a head that was moved, and its sidecar."""
    moved = position @ image.affine
    image.set_sform(moved, code=1)
    image.set_qform(moved, code=1)
    image.to_filename(f"{stem}.nii.gz")
    stem.with_name(f"{stem.name}.json").write_text(json.dumps(dict(metadata)))
