"""Image quality: PSNR and SSIM inside a mask, contrast and geometry of lesions, effective resolution.

The data range of PSNR and SSIM is the 99.9th percentile of the reference inside the mask (the background of MRI is
zero), so that a few bright voxels outside of the brain do not change the figures. All functions that compare arrays
raise ValueError if their shapes differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.signal import welch
from skimage.metrics import structural_similarity

from .grid import bounding_box

_PERCENTILE = 99.9
_LEAST_LESION = 27  # voxels
_AROUND = 2


def data_range(reference: NDArray[np.floating], mask: NDArray[np.bool_]) -> float:
    """99.9th percentile of the reference inside the mask."""
    return float(np.percentile(reference[mask], _PERCENTILE))


def psnr(
    reference: NDArray[np.floating],
    image: NDArray[np.floating],
    mask: NDArray[np.bool_],
    *,
    peak: float | None = None,
) -> float:
    """Peak signal-to-noise ratio in dB over the voxels of a mask.

    Parameters
    ----------
    reference, image, mask
        Arrays of one shape.
    peak
        Data range; by default the 99.9th percentile of the reference inside the mask.

    Returns
    -------
    psnr
        dB; infinite if the images are equal.
    """
    _same_shape(reference, image, mask)
    error = float(np.mean((reference[mask].astype(np.float64) - image[mask]) ** 2))
    peak = data_range(reference, mask) if peak is None else peak
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def ssim(
    reference: NDArray[np.floating],
    image: NDArray[np.floating],
    mask: NDArray[np.bool_],
    *,
    peak: float | None = None,
) -> float:
    """Structural similarity (Wang et al. 2004, scikit-image's 7-voxel window) averaged over the voxels of a mask.

    Parameters
    ----------
    reference, image, mask
        3-D arrays of one shape.
    peak
        Data range; by default the 99.9th percentile of the reference inside the mask.
    """
    _same_shape(reference, image, mask)
    peak = data_range(reference, mask) if peak is None else peak
    margin = 4  # half a window and one: voxels farther away do not enter the map inside the mask
    box = bounding_box(mask, margin)
    _, local = structural_similarity(
        reference[box].astype(np.float64), image[box].astype(np.float64), data_range=peak, full=True
    )
    return float(local[mask[box]].mean())


def contrast_to_noise(
    image: NDArray[np.floating],
    inside: NDArray[np.bool_],
    around: NDArray[np.bool_],
    *,
    reference: NDArray[np.floating],
) -> float:
    """Contrast-to-noise ratio: difference of the means of two regions of an image, over a standard deviation.

    The standard deviation is that of the reference in the second region. With the image's own, smoothing would count
    as contrast.

    Parameters
    ----------
    image, reference
        Arrays of one shape; give the reference as ``image`` for its own ratio.
    inside, around
        The two regions, boolean, same shape.
    """
    _same_shape(image, inside, around, reference)
    contrast = image[inside].mean(dtype=np.float64) - image[around].mean(dtype=np.float64)
    return float(contrast / reference[around].std(dtype=np.float64))


def lesion_contrasts(
    reference: NDArray[np.floating],
    image: NDArray[np.floating],
    lesions: NDArray[np.bool_],
    around: NDArray[np.bool_],
    bounds: Sequence[float],
) -> tuple[float, ...]:
    """Contrast of lesions in an image, over that in a reference, for classes of size.

    Parameters
    ----------
    reference, image, lesions, around
        3-D arrays of one shape; the contrast is the difference of the means inside the lesions and ``around`` them.
    bounds
        Rising sizes in voxels; a class holds the lesions from one bound to just below the next.

    Returns
    -------
    ratios
        One per class; NaN without lesions of this size.
    """
    _same_shape(reference, image, lesions, around)
    labels, count = ndimage.label(lesions)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0  # what is no lesion
    ratios = []
    for low, high in pairwise(bounds):
        inside = ((sizes >= max(low, 1)) & (sizes < high))[labels]
        here, there = (
            part[inside].mean(dtype=np.float64) - part[around].mean(dtype=np.float64) if inside.any() else math.nan
            for part in (image, reference)
        )
        ratios.append(float(here / there))
    return tuple(ratios)


def lesion_geometry(
    reference: NDArray[np.floating], image: NDArray[np.floating], lesions: NDArray[np.bool_], level: float
) -> tuple[float, float]:
    """Place and size of lesions in an image against a reference.

    A voxel up to two voxels around a lesion belongs to it if its contrast is more than half of the mean contrast of the
    lesion in the reference.

    Parameters
    ----------
    reference, image, lesions
        3-D arrays of one shape; lesions of less than 27 voxels do not count.
    level
        Intensity around the lesions, from which contrast is counted.

    Returns
    -------
    shift, volume
        Median distance in voxels between the centres of contrast in image and reference, and the summed volume in the
        image over that in the reference; NaN without lesions.
    """
    _same_shape(reference, image, lesions)
    labels, _ = ndimage.label(lesions)
    shifts, volumes = [], np.zeros(2)
    for number, place in enumerate(ndimage.find_objects(labels), 1):
        box = tuple(slice(max(0, b.start - _AROUND), b.stop + _AROUND) for b in place)
        lesion = labels[box] == number
        if np.count_nonzero(lesion) < _LEAST_LESION:
            continue
        where = np.nonzero(ndimage.binary_dilation(lesion, iterations=_AROUND))
        contrast = float(reference[box][lesion].mean()) - level
        shares = [np.maximum((part[box][where] - level) / contrast, 0) for part in (reference, image)]
        volumes += [np.count_nonzero(share > 0.5) for share in shares]
        if shares[1].any():
            there, here = (np.average(np.stack(where), axis=1, weights=share) for share in shares)
            shifts.append(float(np.linalg.norm(here - there)))
    shift = float(np.median(shifts)) if shifts else math.nan
    return shift, float(volumes[1] / volumes[0]) if volumes[0] else math.nan


def axis_spectrum(
    data: NDArray[np.floating], spacing: float, axis: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Power spectral density along an axis, averaged over all lines.

    Parameters
    ----------
    data
        Image, or a box of it, shape (i, j, k).
    spacing
        Voxel size along the axis, mm.
    axis
        Axis of the lines.

    Returns
    -------
    frequency
        Cycles per mm, from 0 to the Nyquist frequency.
    power
        Two-sided density (Welch 1967, one Hann-windowed segment per line without its mean), intensity squared times mm.
    """
    lines = np.moveaxis(data, axis, -1)
    count = lines.shape[-1]
    # A Hann window of one or two samples is all zeros.
    window = "hann" if count > 2 else "boxcar"
    frequency, power = welch(
        lines, 1 / spacing, window, nperseg=count, detrend="constant", return_onesided=False, axis=-1
    )
    kept = count // 2 + 1
    power = power[..., :kept].reshape(-1, kept).mean(axis=0, dtype=np.float64)
    return np.abs(frequency[:kept]), power


def effective_resolution(
    data: NDArray[np.floating], zooms: Sequence[float], thresholds: Sequence[float]
) -> tuple[float, ...]:
    """Size of the finest detail that stands out along each axis: half the period of its frequency.

    That frequency is the highest one up to which the power spectral density stays above a threshold. It is at most the
    Nyquist frequency, whose detail is a voxel.

    Parameters
    ----------
    data
        Box of an image, shape (i, j, k).
    zooms
        Voxel sizes, mm.
    thresholds
        Density per axis, intensity squared times mm. White noise has its variance times the spacing of the voxels; with
        twice that as the threshold, a signal in such noise is at least as strong as the noise.

    Returns
    -------
    sizes
        mm per axis; NaN where nothing stands out.
    """
    sizes = []
    for axis, (zoom, threshold) in enumerate(zip(zooms, thresholds, strict=True)):
        frequency, power = axis_spectrum(data, zoom, axis)
        hidden = np.flatnonzero(power[1:] <= threshold)
        last = int(hidden[0]) if hidden.size else len(power) - 1
        sizes.append(0.5 / float(frequency[last]) if last > 0 else math.nan)
    return tuple(max(size, float(zoom)) for size, zoom in zip(sizes, zooms, strict=True))


def _same_shape(*arrays: NDArray[np.generic]) -> None:
    if len({a.shape for a in arrays}) != 1:
        raise ValueError(f"reference, image and mask have different shapes: {[a.shape for a in arrays]}")
