"""Classes of maps of FreeSurfer's labels, and volumes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..sr.grid import bounding_box
from .structures import BACKGROUND, BRAIN, CSF, EXTRACEREBRAL, INDEX, LEFT, MIRRORED, RIGHT, STRUCTURES

# CSF belongs to the brain in gaps of up to twice SULCUS_MM, and in a rim of RIM_MM (mm).
SULCUS_MM, RIM_MM = 5.0, 1.0
_LARGEST = 14_999  # FreeSurfer number

# FreeSurfer numbers (FreeSurferColorLUT.txt), left and right, by tissue. The numbers 25, 57 and 136, 137, 163, 164 are
# those of the whole-head maps: tissue between white matter and ventricle, and choroid plexus.
_FREESURFER: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "lateral ventricle": ((4, 5, 31, 136, 137), (43, 44, 63, 163, 164)),
    "cortex": ((3,), (42,)),
    "white matter": ((2, 25), (41, 57)),
    # As FreeSurfer's SubCortGray (thalamus to accumbens, hippocampus, amygdala), and the ventral diencephalon.
    "deep grey matter": ((10, 11, 12, 13, 17, 18, 26, 28, 30), (49, 50, 51, 52, 53, 54, 58, 60, 62)),
    "cerebellum": ((7, 8), (46, 47)),
}
_UNSIDED: dict[str, tuple[int, ...]] = {"brainstem": (16,), "midline ventricles": (14, 15, 72), "csf": (24, 85)}
_WHITE_OF_EITHER_SIDE = (77, 251, 252, 253, 254, 255)
_PARCELS = {LEFT: (1000, 2000), RIGHT: (2000, 3000)}


def _table() -> NDArray[np.uint8]:
    """Index of each FreeSurfer number; numbers of no side get the left one."""
    table = np.full(_LARGEST + 1, EXTRACEREBRAL, dtype=np.uint8)
    table[0] = BACKGROUND
    for tissue, numbers in _UNSIDED.items():
        table[list(numbers)] = INDEX[tissue]
    for tissue, both in _FREESURFER.items():
        for side, numbers in zip((LEFT, RIGHT), both, strict=True):
            table[list(numbers)] = INDEX[f"{side} {tissue}"]
    table[list(_WHITE_OF_EITHER_SIDE)] = INDEX["left white matter"]
    for side, (first, last) in _PARCELS.items():
        table[first:last] = INDEX[f"{side} cortex"]
    return table


def from_freesurfer(labels: NDArray[np.integer], zooms: Iterable[float]) -> NDArray[np.uint8]:
    """Return the classes of a map of FreeSurfer labels.

    Fluid in the sulci, and up to `RIM_MM` around the brain, is CSF. Other fluid, such as that of the spinal canal, is
    extracerebral. If a map of a brain alone has no CSF, it is filled in.

    Parameters
    ----------
    labels : ndarray of int, shape (i, j, k)
        Map whose first axis runs from left to right (RAS). A map with merged sides is divided at its middle.
    zooms : iterable of float
        Voxel sizes, mm.

    Returns
    -------
    ndarray of uint8, shape (i, j, k)
        Indices of `STRUCTURES`.

    Raises
    ------
    ValueError
        If a value is no FreeSurfer number.

    """
    raw = np.asarray(labels).astype(np.int64)
    if raw.min() < 0 or raw.max() > _LARGEST:
        raise ValueError(f"no FreeSurfer labels: values from {raw.min()} to {raw.max()}")
    classes = _table()[raw]
    either = np.isin(raw, _WHITE_OF_EITHER_SIDE)
    if not np.isin(classes, [s.index for s in STRUCTURES if s.side == RIGHT]).any():
        either = np.isin(classes, [s.index for s in STRUCTURES if s.side == LEFT])
    _divide(classes, either)
    tissue = classes > CSF
    region = closed(tissue, zooms)
    classes[(classes == CSF) & ~region] = EXTRACEREBRAL
    classes[region & ~tissue] = CSF
    return classes


def closed(tissue: NDArray[np.bool_], zooms: Iterable[float]) -> NDArray[np.bool_]:
    """Return the brain with its CSF from a mask of its tissue: sulci filled, and a rim of `RIM_MM` added."""
    sizes = tuple(zooms)
    found = np.zeros_like(tissue)
    if not tissue.any():
        return found
    pad = int(np.ceil(2 * SULCUS_MM / min(sizes))) + 1
    box = bounding_box(tissue)
    padded = np.pad(tissue[box], pad)
    dilated = ndimage.distance_transform_edt(~padded, sampling=sizes) <= SULCUS_MM
    eroded = ndimage.distance_transform_edt(dilated, sampling=sizes) > SULCUS_MM - RIM_MM
    rim = int(np.ceil(RIM_MM / min(sizes)))
    wide = tuple(slice(max(part.start - rim, 0), part.stop + rim) for part in box)
    inner = tuple(
        slice(pad - (part.start - there.start), pad + min(part.stop + rim, size) - part.start)
        for part, there, size in zip(box, wide, tissue.shape, strict=True)
    )
    found[wide] = ndimage.binary_fill_holes(eroded)[inner]
    return found


def _divide(classes: NDArray[np.uint8], either: NDArray[np.bool_]) -> None:
    """Give voxels of no certain side, which have left labels, the right ones if they lie in the right half."""
    sided = np.isin(classes, [s.index for s in STRUCTURES if s.side])
    if not sided.any():
        return
    middle = float(np.argwhere(sided)[:, 0].mean())
    right = either & (np.arange(classes.shape[0])[:, None, None] > middle)
    classes[right] = np.asarray(MIRRORED, dtype=np.uint8)[classes[right]]


def volumes_ml(classes: NDArray[np.integer], voxel_ml: float) -> Mapping[str, float]:
    """Return the volume of each structure of the brain and of the whole brain, mL; ``voxel_ml`` is that of a voxel."""
    counts = np.bincount(classes.ravel(), minlength=len(STRUCTURES)) * voxel_ml
    found = {STRUCTURES[index].name: float(counts[index]) for index in BRAIN}
    return {**found, "brain": float(sum(found.values()))}
