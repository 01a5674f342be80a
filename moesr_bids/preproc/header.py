"""Check an image's header and data, and bring it into the form that all later steps expect.

Nothing is resampled. The conformed image has the voxels and the axes of the input, as float32, with one affine.
"""

from __future__ import annotations

import math
from pathlib import Path

import attrs
import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.spatialimages import SpatialImage
from scipy import ndimage

from moesr_bids.errors import ImageError
from moesr_bids.intensities import Intensities
from moesr_bids.nifti import MAX_SHEAR, largest_shift, open_image, read_voxels, xform_code

VOXEL_SIZE_MM = (0.2, 10.0)
FIELD_OF_VIEW_MM = (60.0, 600.0)
MIN_VOXELS = 8


@attrs.frozen
class ConformedImage:
    """A checked image.

    Attributes
    ----------
    image : nibabel.Nifti1Image
        Three-dimensional float32 image with equal sform and qform, in millimetres.
    warnings : tuple of str
        Sentences about what was odd, and how it was handled.

    """

    image: nib.Nifti1Image
    warnings: tuple[str, ...]


def _check_shape(path: Path, shape: tuple[int, ...], warnings: list[str]) -> None:
    extra = shape[3:]
    if len(shape) < 3 or min(shape[:3]) < MIN_VOXELS:
        raise ImageError(f"{path}: shape {shape} is no 3-D image of at least {MIN_VOXELS} voxels per axis")
    if math.prod(extra) != 1:
        raise ImageError(
            f"{path}: a series of {math.prod(extra)} volumes, where one 3-D image is expected; "
            "choose or average the volumes first"
        )
    if extra:
        warnings.append(f"stored as {len(shape)}-D with one volume; the extra axis was dropped")


def _finite(path: Path, data: np.ndarray, warnings: list[str]) -> np.ndarray:
    bad = ~np.isfinite(data)
    count = int(bad.sum())
    if count == 0:
        return data
    if count == data.size:
        raise ImageError(f"{path}: no voxel is a finite number; export the image again")
    # Some tools mark the background with NaN. A hole inside the head is damage that cannot be repaired.
    labels, _ = ndimage.label(bad)
    edge = np.unique(np.concatenate([np.take(labels, i, axis).ravel() for axis in range(3) for i in (0, -1)]))
    inside = int((bad & ~np.isin(labels, edge[edge > 0])).sum())
    if inside:
        raise ImageError(f"{path}: {inside} voxels inside the image are NaN or infinite; export the image again")
    warnings.append(f"{count} background voxels were NaN or infinite and were set to 0")
    return np.where(bad, np.float32(0), data)


def _check_contrast(path: Path, data: np.ndarray) -> None:
    low, high = float(data.min()), float(data.max())
    if low == high:
        raise ImageError(f"{path}: all voxels have the value {low:g}; export the image again")
    if np.count_nonzero(data != data.flat[0]) < 1000:
        raise ImageError(f"{path}: fewer than 1000 voxels differ from the background; this is no brain image")


def _orthonormal(path: Path, shape: tuple[int, ...], affine: np.ndarray, warnings: list[str]) -> np.ndarray:
    """Return the nearest affine without shear and with the same centre: ITK directions are orthonormal."""
    zooms = voxel_sizes(affine)
    directions = affine[:3, :3] / zooms
    left, _, right = np.linalg.svd(directions)
    nearest = left @ right
    shear = float(np.abs(directions - nearest).max())
    if shear > MAX_SHEAR:
        raise ImageError(f"{path}: the affine's axes are not at right angles (by {shear:.2f}); convert the image again")
    if shear <= 1e-4:
        return affine
    conformed = affine.copy()
    conformed[:3, :3] = nearest * zooms
    conformed[:3, 3] += (affine - conformed)[:3, :3] @ ((np.array(shape[:3]) - 1) / 2)
    moved = largest_shift(shape, conformed - affine)
    warnings.append(
        f"the affine held a shear of {shear:.4f} of a voxel axis; the nearest rotation was taken, which leaves the "
        f"centre of the field of view where it is and moves its farthest corner by {moved:.1f} mm"
    )
    return conformed


def _affine(path: Path, image: SpatialImage, warnings: list[str]) -> np.ndarray:
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise ImageError(f"{path}: the affine cannot be inverted; convert the image again")
    return _orthonormal(path, image.shape, affine, warnings)


def _check_geometry(path: Path, shape: tuple[int, ...], affine: np.ndarray, warnings: list[str]) -> None:
    zooms = voxel_sizes(affine)
    if zooms.min() < VOXEL_SIZE_MM[0] or zooms.max() > VOXEL_SIZE_MM[1]:
        raise ImageError(
            f"{path}: voxel sizes {np.round(zooms, 3).tolist()} mm are not between {VOXEL_SIZE_MM[0]} and "
            f"{VOXEL_SIZE_MM[1]} mm; check the header"
        )
    extent = zooms * shape
    if extent.min() < FIELD_OF_VIEW_MM[0] or extent.max() > FIELD_OF_VIEW_MM[1]:
        raise ImageError(
            f"{path}: the field of view {np.round(extent).astype(int).tolist()} mm is not that of a head "
            f"({FIELD_OF_VIEW_MM[0]:g} to {FIELD_OF_VIEW_MM[1]:g} mm per axis)"
        )
    if extent.min() < 100:
        warnings.append(f"the field of view is only {extent.min():.0f} mm along one axis: a slab, not a whole head")


def conform(path: Path) -> ConformedImage:
    """Check an image and bring it into one form.

    Parameters
    ----------
    path : pathlib.Path
        NIfTI image as acquired.

    Returns
    -------
    ConformedImage
        The same voxels as float32 on the same axes. Two things change: NaN in the background becomes 0, and the offset
        of a background that is not at 0 is subtracted. A slight shear is removed from the affine.

    Raises
    ------
    ImageError
        If the file cannot be read or cannot be a head; the message is one sentence that says what to do.

    """
    source, notes = open_image(path)
    warnings = list(notes)
    shape = source.shape
    _check_shape(path, shape, warnings)
    affine = _affine(path, source, warnings)
    _check_geometry(path, shape[:3], affine, warnings)
    # Voxels are read last: a small compressed file may hold more than the memory.
    data = _finite(path, read_voxels(source, str(path)).reshape(shape[:3]), warnings)
    _check_contrast(path, data)
    values = Intensities.of(data, str(path))
    warnings += values.offset_notes  # outliers stay in the image: super-resolution tells of them
    if (low := float(values.raw.min())) < 0:
        warnings.append(f"negative values down to {low:.4g}, unusual for a magnitude image; kept as they are")
    image = nib.Nifti1Image(values.raw, affine)
    code = xform_code(source)
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    image.header.set_xyzt_units("mm", "sec")
    return ConformedImage(image, tuple(warnings))
