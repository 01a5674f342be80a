"""Bias field of the receive coils by N4 (Tustison et al. 2010, doi:10.1109/TMI.2010.2046908).

The field is estimated inside the brain at low resolution. Outside of the brain it is continued smoothly, within bounds.
Cubic splines bring it to the grid of the image. The image itself is never resampled, rescaled or clipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import make_interp_spline

from moesr_bids.errors import ImageError
from moesr_bids.intensities import without_outliers
from moesr_bids.preproc.align import quiet
from moesr_bids.preproc.images import (
    BoolArray,
    FloatArray,
    image_data,
    like,
    resample_isotropic,
    to_ants,
    use_threads,
)
from moesr_bids.sr.grid import bounding_box

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image


@attrs.frozen
class BiasSettings:
    """Settings of N4 and of the field outside the mask.

    Attributes
    ----------
    zoom : float
        Voxel size at which the field is estimated, mm.
    spline_distance : int
        Knot spacing of the first level, mm; each further level halves it.
    iterations : tuple of int
        Largest number of iterations per level.
    tolerance : float
        Change of the field at which a level ends.
    reach : float
        Distance over which the field passes into its blurred continuation outside the mask, mm: the standard deviation
        of the blur, and twice that of the Gaussian weight.
    largest_log : float
        Largest difference of the log field from its mean in the mask; larger values are limited.

    """

    zoom: float = 6.0
    spline_distance: int = 200
    iterations: tuple[int, ...] = (50, 50, 50)
    tolerance: float = 1e-5
    reach: float = 15.0
    largest_log: float = 1.6


SLOPPY = BiasSettings(zoom=6.0, iterations=(20, 10))
HIGH_FIELD_T = 2.0
"""From this field strength on, the wavelength in tissue (at 3 T about 26 cm) is near the size of the head."""
_HIGH_FIELD_SPLINE_DISTANCE = 120


def settings_for(field_strength: float | None) -> BiasSettings:
    """Choose the settings for a scanner by its field strength in tesla; those of 1.5 T if it is unknown.

    At 3 T standing waves of the transmit field vary faster across the head than at 1.5 T, so finer knots correct better
    (Boyes et al. 2008, doi:10.1016/j.neuroimage.2007.10.026; Zheng et al. 2009, doi:10.1016/j.neuroimage.2009.06.039).
    Still finer knots would follow the anatomy.
    """
    if field_strength is not None and field_strength >= HIGH_FIELD_T:
        return BiasSettings(spline_distance=_HIGH_FIELD_SPLINE_DISTANCE)
    return BiasSettings()


@attrs.frozen(eq=False)
class BiasCorrection:
    """Result of `correct_bias`; both images are float32 on the input's grid.

    Attributes
    ----------
    corrected : Nifti1Image
        Input divided by the field.
    log_field : Nifti1Image
        Natural logarithm of the field; mean 0 inside the mask.
    range_percent : tuple of float
        1st and 99th percentile of the field inside the mask, percent above its geometric mean.

    """

    corrected: Nifti1Image
    log_field: Nifti1Image
    range_percent: tuple[float, float]


def correct_bias(
    image: Nifti1Image, mask: Nifti1Image, settings: BiasSettings | None = None, threads: int = 1
) -> BiasCorrection:
    """Estimate the bias field of an image inside a mask and divide by it.

    Parameters
    ----------
    image : Nifti1Image
        3-D, finite.
    mask : Nifti1Image
        Brain, on the grid of `image`; voxels above 0 count.
    settings : BiasSettings, optional
    threads : int
        ITK threads; see `use_threads`.

    Raises
    ------
    ImageError
        If the image or the mask cannot be used (see `image_data`), the grids differ, the image has no positive
        intensity in the mask, the mask is too small, or N4 finds no field.

    """
    settings = settings or BiasSettings()
    use_threads(threads)
    data = image_data(image)
    inside = np.asanyarray(mask.dataobj) > 0
    if inside.shape != data.shape or not np.allclose(mask.affine, image.affine, atol=1e-3):
        raise ImageError("the mask is not on the grid of the image")
    if not (data[inside] > 0).any():
        raise ImageError("the mask holds no voxel of positive intensity")
    log_field = np.ascontiguousarray(estimate_log_field(data, image.affine, inside, settings))
    log_field -= log_field[inside].mean(dtype=np.float64)
    # Done in place of a second array: exp, then the quotient.
    corrected = np.exp(-log_field)
    corrected *= data
    low, high = np.expm1(np.percentile(log_field[inside], [1, 99])) * 100
    return BiasCorrection(
        corrected=like(corrected, image, np.float32),
        log_field=like(log_field, image, np.float32),
        range_percent=(round(float(low), 2), round(float(high), 2)),
    )


def estimate_log_field(
    data: FloatArray, affine: NDArray[np.float64], inside: BoolArray, settings: BiasSettings
) -> FloatArray:
    """Return the natural log of the bias field on the grid of `data`, up to a constant.

    Parameters
    ----------
    data : ndarray, shape (i, j, k)
    affine : ndarray, shape (4, 4)
        Voxel to world, mm.
    inside : ndarray of bool
        Voxels to estimate from.
    settings : BiasSettings

    Raises
    ------
    ImageError
        If the mask is too small, or N4 finds no field.

    """
    import ants

    zoom = max(settings.zoom, float(voxel_sizes(affine).min()))
    # Averages over the mask alone: the dark surroundings must not enter its rim.
    weight, low_affine = resample_isotropic(inside.astype(np.float32), affine, zoom)
    low, _ = resample_isotropic(np.where(inside, without_outliers(data), np.float32(0)), affine, zoom)
    low_inside = weight > 0.5
    low = np.where(low_inside, low / np.maximum(weight, 0.5), 0)
    # N4 works on logarithms, so voxels without signal are left out.
    usable = low_inside & (low > 1e-3 * np.percentile(low[low_inside], 95)) if low_inside.any() else low_inside
    if usable.sum() < 50:
        raise ImageError("the mask is too small to estimate a bias field from")
    box = bounding_box(usable)
    cropped = np.ascontiguousarray(low[box]) / np.float32(np.percentile(low[usable], 95))
    with quiet():
        field = ants.n4_bias_field_correction(
            to_ants(cropped, low_affine),
            mask=to_ants(usable[box], low_affine),
            shrink_factor=1,
            convergence={"iters": list(settings.iterations), "tol": settings.tolerance},
            spline_param=settings.spline_distance,
            return_bias_field=True,
        ).numpy()
    # antspyx does not say that N4 failed: it returns the image in place of a field.
    if np.array_equal(field, cropped) or not np.isfinite(field).all() or (field <= 0).any():
        raise ImageError("N4 found no bias field; look at the image and its mask in a viewer")
    log_low = np.zeros(low.shape, dtype=np.float64)
    log_low[box] = np.log(field)
    log_low = continue_outside(log_low, usable, zoom, settings)
    return _to_grid(log_low, low_affine, data.shape, affine)


def continue_outside(
    field: NDArray[np.float64], inside: BoolArray, zoom: float, settings: BiasSettings
) -> NDArray[np.float64]:
    """Return the field, limited to `largest_log`, with a smooth continuation outside the mask.

    Far outside it is the average of the field inside, weighted by a wide Gaussian. Within about `reach` of the mask it
    passes into the field itself. Its values never leave the range of those inside.
    """
    centre = field[inside].mean()
    low, high = field[inside].min(), field[inside].max()
    sigma = settings.reach / zoom
    limits = np.clip([low, high], centre - settings.largest_log, centre + settings.largest_log)
    known = np.where(inside, np.clip(field, *limits), 0.0)
    pad = int(np.ceil(4 * sigma))
    total = ndimage.gaussian_filter(np.pad(known, pad), sigma, mode="constant")
    share = ndimage.gaussian_filter(np.pad(inside.astype(np.float64), pad), sigma, mode="constant")
    # A little of the mean is added everywhere: beyond the reach of the Gaussian the quotient would be 0 / 0.
    blurred = ((total + 1e-4 * centre) / (share + 1e-4))[pad:-pad, pad:-pad, pad:-pad]
    distance, nearest = ndimage.distance_transform_edt(~inside, return_indices=True)
    trust = np.exp(-0.5 * (2 * distance * zoom / settings.reach) ** 2)
    return np.asarray(trust * known[tuple(nearest)] + (1 - trust) * blurred)


def _to_grid(
    low: NDArray[np.float64], low_affine: NDArray[np.float64], shape: tuple[int, ...], affine: NDArray[np.float64]
) -> FloatArray:
    """Interpolate a coarse field, whose grid has the axes of the fine one, with cubic splines, axis by axis."""
    to_low = np.linalg.inv(low_affine) @ affine
    field = low.astype(np.float32)
    for axis in range(3):
        count = low.shape[axis]
        positions = np.clip(to_low[axis, axis] * np.arange(shape[axis]) + to_low[axis, 3], 0, count - 1)
        if count > 1:
            degree = 3 if count > 3 else 1
            # The rows of the interpolation matrix: the spline through each unit vector.
            matrix = make_interp_spline(np.arange(count), np.eye(count), k=degree)(positions)
        else:
            matrix = np.ones((shape[axis], 1))
        field = np.moveaxis(np.tensordot(matrix.astype(np.float32), field, axes=(1, axis)), 0, axis)
    return field
