"""White matter, cortex and lesions of label maps, and the tissue bands that supervise the gate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from ..config import SUFFIXES
from ..errors import ImageError
from .smoothing import box_mean

# FreeSurfer numbers (FreeSurferColorLUT.txt): cerebral and cerebellar white matter, hypointensities, corpus callosum.
WHITE = (2, 41, 7, 46, 77, 251, 252, 253, 254, 255)
# Cerebral and cerebellar cortex and the CSF of the sulci; the parcels of aparc+aseg count as cortex too.
CORTEX = (3, 42, 8, 47, 24)
_PARCELS = (1000, 3000)
_REACH = 5  # voxels of the mean that blurs the classes, taken twice
_JUNCTION = 4.0  # makes the junction as likely as the pure tissues where both are equal


def tissue_fractions(labels: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return the masks of white matter and cortex of a FreeSurfer label map, (2, i, j, k)."""
    white = np.isin(labels, WHITE)
    cortex = np.isin(labels, CORTEX) | ((labels >= _PARCELS[0]) & (labels < _PARCELS[1]))
    return np.stack([white, cortex]).astype(np.uint8)


def find_segmentation(scan: Path, image: SpatialImage, folders: Sequence[Path]) -> NDArray[np.uint8] | None:
    """Masks of white matter and cortex of a scan, (2, i, j, k) uint8, from a segmentation; None without one.

    The segmentation is of the same participant, on the same grid, and of the same session or of none. The folders are
    searched in their order. In each, a map that is named after the scan (:func:`segmentation_name`) comes first; maps
    that are named after another scan are left out.

    Raises
    ------
    ImageError
        If the participant's segmentation cannot be read.
    """
    own = segmentation_name(scan)
    others = tuple(f"_desc-{suffix}_dseg.nii.gz" for suffix in SUFFIXES)
    for folder in folders:
        found = _of_person(scan, folder, "_dseg.nii.gz")
        named = [path for path in found if path.name == own]
        labels = _first_on_grid(named + [path for path in found if not path.name.endswith(others)], image)
        if labels is not None:
            return tissue_fractions(labels.astype(np.int32))
    return None


def find_lesions(scan: Path, image: SpatialImage, folders: Sequence[Path]) -> NDArray[np.uint8] | None:
    """Lesions of a scan, (i, j, k) uint8, from a mask of the same participant on the same grid; None without one.

    The mask is of the same session or of none, and its name holds ``label-lesion``, as in
    ``sub-01_space-T1w_label-lesion_mask.nii.gz``.

    Raises
    ------
    ImageError
        If the participant's mask cannot be read.
    """
    for folder in folders:
        masks = _of_person(scan, folder, "_mask.nii.gz")
        lesions = _first_on_grid([path for path in masks if "_label-lesion_" in path.name], image)
        if lesions is not None:
            return (lesions > 0).astype(np.uint8)
    return None


def _of_person(scan: Path, folder: Path, ending: str) -> list[Path]:
    """Files of the participant of a scan, of no session or of that of the scan."""
    participant, second = scan.name.split("_")[:2]
    found = sorted(folder.rglob(f"{participant}_*{ending}"))
    return [path for path in found if (other := path.name.split("_")[1]) == second or not other.startswith("ses-")]


def _first_on_grid(paths: Sequence[Path], image: SpatialImage) -> NDArray[np.number] | None:
    """Voxels of the first of some label maps that is on the grid of an image; None without one."""
    for path in paths:
        try:
            labels = nib.load(path)
            voxels = np.squeeze(np.asanyarray(labels.dataobj))
        except (nib.filebasedimages.ImageFileError, OSError, EOFError) as error:
            raise ImageError(f"{path}: not a readable segmentation ({error}); leave its folder out") from error
        if voxels.shape == image.shape[:3] and np.allclose(labels.affine, image.affine, atol=1e-3):
            return voxels
    return None


def segmentation_name(scan: Path) -> str:
    """Name of the segmentation of a scan that ``moesr segment`` writes."""
    stem, _, suffix = scan.name.removesuffix(".nii.gz").rpartition("_")
    return f"{stem}_desc-{suffix}_dseg.nii.gz"


def tissue_bands(tissue: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the target of the gate, and its weight.

    With the shares w and c of white matter and cortex in the neighbourhood of a voxel, the bands are proportional to
    w^2 (centrum semiovale), c^2 (cortex) and 4 w c (junction). Their weight is (w + c)^2, so that they do not count
    away from both.

    Parameters
    ----------
    tissue
        Shares of white matter, cortex and lesions in each voxel, (batch, 3, i, j, k); 0 where unknown.

    Returns
    -------
    bands, confidence
        (batch, 3, i, j, k), summing to 1 in each voxel, in the order of :data:`moesr_bids.sr.models.EXPERTS`; and
        (batch, 1, i, j, k).
    """
    tissue = tissue[:, :2]
    for _ in range(2):
        tissue = box_mean(tissue, _REACH)
    white, cortex = tissue[:, :1], tissue[:, 1:]
    bands = torch.cat([white.square(), cortex.square(), _JUNCTION * white * cortex], dim=1)
    total = bands.sum(dim=1, keepdim=True)
    return (bands + 1e-6 / 3) / (total + 1e-6), (white + cortex).square()
