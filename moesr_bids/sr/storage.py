"""Images on disk: 16-bit integers with a scale, where rounding does no harm; a third of the size of float32."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

_LARGEST = np.iinfo(np.int16).max
_SHARE_OF_NOISE = 0.1
_SHARE_OF_STD = 0.02
_WHOLE = np.iinfo(np.uint8).max


def compact(image: nib.Nifti1Image, noise: float) -> nib.Nifti1Image:
    """Return the image as int16 with a scale, if rounding loses less than a tenth of the noise; else as float32.

    The scale has no offset, so that zero stays zero.

    Parameters
    ----------
    image
        Image of finite voxels.
    noise
        Standard deviation of its noise, in its units. It is compared with the standard deviation of the rounding error,
        step / sqrt(12).

    Returns
    -------
    image
        A new image on the same grid; its header differs only in data type and scale.

    Raises
    ------
    ValueError
        If a voxel is NaN or infinite.
    """
    data = _finite(image)
    step = float(np.abs(data).max()) / _LARGEST
    if step == 0 or step / math.sqrt(12) >= _SHARE_OF_NOISE * noise:
        return _as_float(image, data)
    return _as_codes(image, np.rint(data / np.float32(step)).astype(np.int16), step)


def compact_std(image: nib.Nifti1Image, typical: float) -> nib.Nifti1Image:
    """Return a map of standard deviations as int16 in steps of 2 % of a typical one.

    A standard deviation is itself known to a tenth at best, so finer steps would only store its noise.

    Parameters
    ----------
    image
        Positive standard deviations.
    typical
        Their median in the brain, in their units. Rounding changes a value of this size by at most 1 %. Positive values
        stay positive; values above 32767 steps (655 times the typical) are stored as 32767 steps.

    Returns
    -------
    image
        int16 with a scale; float32 where ``typical`` is not positive.

    Raises
    ------
    ValueError
        If a voxel is NaN or infinite.
    """
    data = _finite(image)
    if not typical > 0:
        return _as_float(image, data)
    step = _SHARE_OF_STD * typical
    codes = np.clip(np.rint(data / np.float32(step)), data > 0, _LARGEST)
    return _as_codes(image, codes.astype(np.int16), step)


def compact_share(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return a map of shares, 0 to 1, as uint8 in steps of 1/255.

    Raises
    ------
    ValueError
        If a voxel is NaN or infinite.
    """
    return _as_codes(image, np.rint(np.clip(_finite(image), 0, 1) * _WHOLE).astype(np.uint8), 1 / _WHOLE)


def _finite(image: nib.Nifti1Image) -> NDArray[np.float32]:
    data = np.asarray(image.dataobj, dtype=np.float32)
    if not np.isfinite(data).all():
        raise ValueError(f"{image.get_filename() or 'image'}: voxels are NaN or infinite; nothing was written")
    return data


def _as_float(image: nib.Nifti1Image, data: NDArray[np.float32]) -> nib.Nifti1Image:
    header = image.header.copy()
    header.set_data_dtype(np.float32)
    header.set_slope_inter(1, 0)
    return nib.Nifti1Image(data, image.affine, header)


def _as_codes(image: nib.Nifti1Image, codes: NDArray[np.integer], step: float) -> nib.Nifti1Image:
    header = image.header.copy()
    header.set_data_dtype(codes.dtype)
    stored = nib.Nifti1Image(codes, image.affine, header)
    # After the image was made: nibabel takes a scale that is set for one that the codes have already been divided by.
    stored.header.set_slope_inter(step, 0)
    return stored


def write_compact(image: nib.Nifti1Image, path: Path, noise: float) -> None:
    """Write the image as :func:`compact` stores it."""
    compact(image, noise).to_filename(path)


def stored_part(image: nib.Nifti1Image, box: tuple[slice, slice, slice]) -> nib.Nifti1Image:
    """Cut a box out of an image on disk; voxels keep their stored values and their place in the world.

    Parameters
    ----------
    image
        Image as it was loaded from a file.
    box
        Voxels of the box along each axis.
    """
    affine = image.slicer.slice_affine(box)
    part = nib.Nifti1Image(image.dataobj.get_unscaled()[box], affine, image.header)
    # The codes say what positions refer to; nibabel drops those of an image that it takes for a moved one.
    part.set_sform(affine, int(image.header["sform_code"]))
    part.set_qform(affine, int(image.header["qform_code"]))
    part.header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)  # after it was made, as above
    return part
