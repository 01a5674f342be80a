"""Exchange of images between NIfTI (nibabel, RAS) and ANTs (ITK, LPS), and the low-resolution working grid.

Arrays have the NIfTI axis order (i, j, k) on both sides. No function writes a file.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from numpy.typing import NDArray
from scipy import ndimage

from moesr_bids.errors import ImageError

if TYPE_CHECKING:
    from ants.core.ants_image import ANTsImage
    from nibabel.nifti1 import Nifti1Image

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Largest cosine between two voxel axes that ITK accepts as a rotation.
ITK_SHEAR = 1e-3


def use_threads(threads: int) -> None:
    """Ask ITK for a number of threads.

    ITK reads the number once per process, at its first filter; later calls change nothing. Results depend slightly
    on it (order of sums), so a repeated run should ask for the same number.

    Parameters
    ----------
    threads : int
        At least 1.

    Raises
    ------
    ValueError
        If it is less.

    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)


def image_data(image: Nifti1Image) -> FloatArray:
    """Return the voxels of a 3-D image as a C-contiguous float32 array of shape (i, j, k).

    Raises
    ------
    ImageError
        If the image is not 3-D, holds values that are not finite, or is sheared.

    """
    data = np.ascontiguousarray(np.asanyarray(image.dataobj), dtype=np.float32)
    if data.ndim != 3:
        raise ImageError(f"the image has shape {data.shape}: a 3-D image is needed")
    if not np.isfinite(data).all():
        raise ImageError("the image holds NaN or infinite values: replace them first")
    check_affine(image.affine)
    return data


def check_affine(affine: NDArray[np.float64]) -> None:
    """Raise ImageError for an affine (4 x 4, voxel to world RAS mm) that an ITK image cannot hold exactly."""
    directions = affine[:3, :3] / voxel_sizes(affine)
    shear = np.abs(directions.T @ directions - np.eye(3)).max()
    if not np.isfinite(shear) or shear > ITK_SHEAR:
        raise ImageError(f"the voxel axes are not at right angles (cosine {shear:.3g}): resample the image first")


def to_ants(data: NDArray[np.generic], affine: NDArray[np.float64]) -> ANTsImage:
    """Return an ANTs image (float32) with the same voxels and the same world positions.

    Parameters
    ----------
    data : ndarray, shape (i, j, k)
    affine : ndarray, shape (4, 4)
        Voxel to world RAS mm; may be oblique or left-handed.

    Raises
    ------
    ImageError
        If the voxel axes are not at right angles.

    """
    import ants

    check_affine(affine)
    spacing = voxel_sizes(affine)
    lps = RAS_TO_LPS @ affine
    return ants.from_numpy(
        np.ascontiguousarray(data, dtype=np.float32),
        origin=tuple(lps[:3, 3]),
        spacing=tuple(spacing),
        direction=lps[:3, :3] / spacing,
    )


def ants_affine(image: ANTsImage) -> NDArray[np.float64]:
    """Return the voxel-to-world affine (4 x 4, RAS mm) of an ANTs image."""
    lps = np.eye(4)
    lps[:3, :3] = np.asarray(image.direction) * np.asarray(image.spacing)
    lps[:3, 3] = image.origin
    return cast("NDArray[np.float64]", RAS_TO_LPS @ lps)


def from_ants(image: ANTsImage, affine: NDArray[np.float64]) -> FloatArray:
    """Return the voxels of an ANTs image after checking that it lies where `affine` says.

    Raises
    ------
    ImageError
        If the image was moved: positions differ by more than 1e-3 mm.

    """
    data = np.ascontiguousarray(image.numpy(), dtype=np.float32)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in data.shape])).reshape(3, -1).T
    shift = np.abs(apply_affine(ants_affine(image), corners) - apply_affine(affine, corners)).max()
    if shift > 1e-3:
        raise ImageError(f"ANTs returned an image that lies {shift:.3g} mm from where it should")
    return data


def voxel_ml(affine: NDArray[np.float64]) -> float:
    """Return the volume of a voxel in mL, of a 4 x 4 affine to world mm."""
    return abs(float(np.linalg.det(affine[:3, :3]))) / 1000


def like(data: NDArray[np.generic], image: Nifti1Image, dtype: type[np.generic]) -> Nifti1Image:
    """Return a NIfTI image of `dtype` on the grid of `image`, with its sform and qform codes.

    A code of 0 becomes that of the other form, or 1 if both are 0.
    """
    header = nib.nifti1.Nifti1Header()
    header.set_xyzt_units("mm")
    header.set_data_dtype(dtype)
    new = nib.nifti1.Nifti1Image(np.asarray(data, dtype=dtype), image.affine, header)
    source = image.header
    if isinstance(source, nib.nifti1.Nifti1Header):
        new.set_sform(image.affine, int(source["sform_code"]) or int(source["qform_code"]) or 1)
        new.set_qform(image.affine, int(source["qform_code"]) or int(source["sform_code"]) or 1)
    return new


def resample_isotropic(
    data: FloatArray, affine: NDArray[np.float64], zoom: float
) -> tuple[FloatArray, NDArray[np.float64]]:
    """Resample to about isotropic voxels along the same axes, with the same centre of the field of view.

    Axes finer than `zoom` are smoothed first, so that detail does not alias: by a Gaussian with a FWHM of
    sqrt(zoom^2 - voxel size^2). Values are then interpolated linearly; beyond the outermost voxels the nearest counts.

    Parameters
    ----------
    data : ndarray, shape (i, j, k)
    affine : ndarray, shape (4, 4)
        Voxel to world, mm.
    zoom : float
        Voxel size wanted, mm.

    Returns
    -------
    data : ndarray of float32
    affine : ndarray, shape (4, 4)

    """
    zooms = voxel_sizes(affine)
    shape = np.array(data.shape)
    new_shape = np.maximum(np.ceil(shape * zooms / zoom - 1e-3).astype(int), 1)
    # FWHM of the smoothing that turns a voxel of size z into one of size zoom; 2.355 turns FWHM into sigma.
    sigma = np.sqrt(np.maximum(zoom**2 - zooms**2, 0.0)) / zooms / 2.355
    smooth = ndimage.gaussian_filter(data, sigma, mode="nearest", truncate=3.0)
    step = zoom / zooms
    offset = (shape - 1) / 2 - step * (new_shape - 1) / 2
    new = ndimage.affine_transform(
        smooth, np.diag(step), offset, output_shape=tuple(new_shape), order=1, mode="nearest"
    )
    new_affine = affine @ np.block([[np.diag(step), offset[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]])
    return np.ascontiguousarray(new, dtype=np.float32), new_affine


def resample_to(
    data: FloatArray,
    affine: NDArray[np.float64],
    shape: tuple[int, ...],
    target_affine: NDArray[np.float64],
    order: int = 1,
) -> FloatArray:
    """Interpolate `data` at the voxels of another grid; outside the field of view of `data` its nearest voxel counts.

    Parameters
    ----------
    data, affine
        Image and its voxel-to-world affine, mm.
    shape, target_affine
        The grid to fill.
    order : int
        Spline order, 1 is linear.

    """
    matrix = np.linalg.inv(affine) @ target_affine
    out = ndimage.affine_transform(data, matrix[:3, :3], matrix[:3, 3], output_shape=shape, order=order, mode="nearest")
    return np.asarray(out, dtype=np.float32)
