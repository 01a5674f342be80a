"""Noise of a magnitude image, estimated inside a mask.

The product of second differences along the axes is nearly blind to anatomy that is smooth over three voxels, and is
normalised so that white noise keeps its standard deviation. Cortex is not smooth over three voxels of 2 mm, so only
the most homogeneous windows of the mask count (compare the weak-texture patches of Liu, Tanaka and Okutomi 2013), and
the median absolute deviation makes it robust. Nothing outside of the mask enters, so a zero background does no harm;
inside the brain of usual scans Rician noise is Gaussian to within a per cent. Along zero-filled axes the noise is
smooth as well, and the differences see little of it; how little is known from the share of frequencies that it fills.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

_SECOND_DIFFERENCE = np.array([1.0, -2.0, 1.0], dtype=np.float32) / np.sqrt(6.0).astype(np.float32)
_HOMOGENEOUS_SHARE = 0.02
_MAD_OF_NORMAL = 0.6745
_WINDOW, _WINDOW_ACROSS_SLICES = 5, 3
_ANISOTROPIC = 1.5
_FLOOR = 1e-3  # of the 99th percentile: below the quantisation of the 8-bit images that pass for noiseless
_FLAT = 1e-4  # of the 99th percentile: windows with less variation were clamped, not measured


def estimate_noise(
    data: NDArray[np.floating],
    mask: NDArray[np.bool_],
    *,
    zooms: Sequence[float] = (1.0, 1.0, 1.0),
    shares: Sequence[float] = (1.0, 1.0, 1.0),
) -> float:
    """Estimate the standard deviation of the noise; along zero-filled axes that which it would have if it were white.

    Parameters
    ----------
    data
        3-D image.
    mask
        Brain or foreground, same shape.
    zooms
        Voxel size per axis in mm: across thick slices neighbours are not compared.
    shares
        Share of the frequencies of each axis that the noise fills.

    Returns
    -------
    sigma
        In the units of ``data``; at least a thousandth of the 99th percentile in the mask, or the rounding error of
        integer values.

    Raises
    ------
    ValueError
        If the mask is empty or has another shape.
    """
    if mask.shape != data.shape or not mask.any():
        raise ValueError(f"the mask {mask.shape} is empty or does not fit the image {data.shape}")
    hits = np.nonzero(mask)
    box = tuple(slice(max(0, int(h.min()) - 3), int(h.max()) + 4) for h in hits)
    volume, inside = np.asarray(data[box], dtype=np.float32), mask[box]
    level = float(np.percentile(volume[inside], 99))
    # In units of the level, so that squares keep their precision in float32.
    volume = volume / np.float32(level if level > 0 else 1.0)
    along = [a for a in _compared(zooms) if volume.shape[a] >= 3]
    residual = volume
    for axis in along:
        residual = ndimage.correlate1d(residual, _SECOND_DIFFERENCE, axis=axis, mode="nearest")
    size = [_WINDOW if axis in along else _WINDOW_ACROSS_SLICES for axis in range(3)]
    mean = ndimage.uniform_filter(volume, size)
    variance = ndimage.uniform_filter((volume - mean) ** 2, size)
    flat = inside & (variance <= _FLAT**2)
    # Windows that overlap a clamped region hold fewer measured voxels than they seem to.
    near_flat = ndimage.maximum_filter(flat, [2 * n - 1 for n in size])
    candidates = _eroded(inside, along) & ~near_flat
    sigma = 0.0
    if candidates.any():
        calm = candidates & (variance <= np.quantile(variance[candidates], _HOMOGENEOUS_SHARE))
        seen = math.prod(_seen_variance(shares[axis]) for axis in along)
        sigma = float(np.median(np.abs(residual[calm]))) / _MAD_OF_NORMAL / math.sqrt(seen)
    return max(sigma * level, _FLOOR * abs(level), _rounding_error(data[box][inside]))


def seen_variance(zooms: Sequence[float], shares: Sequence[float]) -> float:
    """Variance of what :func:`estimate_noise` looks at, of unit noise that fills shares of the frequencies."""
    return math.prod(_seen_variance(shares[axis]) for axis in _compared(zooms))


def _compared(zooms: Sequence[float]) -> list[int]:
    """Axes along which neighbours are compared: not across thick slices."""
    return [axis for axis in range(3) if zooms[axis] < _ANISOTROPIC * sorted(zooms)[1]]


def _seen_variance(share: float) -> float:
    """Variance of the second difference of unit white noise that was cut off at a share of the frequencies.

    The integral of |H(w)|^2 / pi = (2 - 2 cos w)^2 / (6 pi) from 0 to pi share.
    """
    w = math.pi * share
    return (6 * w - 8 * math.sin(w) + math.sin(2 * w)) / (6 * math.pi)


def foreground(data: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Head or brain without a mask: above half of Otsu's threshold of the non-zero voxels, holes filled."""
    positive = data[data > 0]
    if positive.size == 0 or positive.min() == positive.max():
        return data != 0 if (data != 0).any() else np.ones(data.shape, dtype=bool)
    # Every fourth voxel is enough for a histogram.
    threshold = 0.5 * threshold_otsu(positive[:: max(1, positive.size // 2_000_000)])
    return np.asarray(ndimage.binary_fill_holes(data > threshold), dtype=bool)


def _eroded(mask: NDArray[np.bool_], along: Sequence[int]) -> NDArray[np.bool_]:
    """Mask without its border of two voxels (one across slices), less eroded where little would be left."""
    structure = np.zeros((3, 3, 3), dtype=bool)
    structure[tuple(slice(None) if axis in along else slice(1, 2) for axis in range(3))] = True
    for iterations in (2, 1):
        smaller = ndimage.binary_erosion(mask, structure, iterations=iterations)
        if np.count_nonzero(smaller) >= 2000:
            return np.asarray(smaller, dtype=bool)
    return mask


def _rounding_error(values: NDArray[np.floating]) -> float:
    """Return the standard deviation of rounding to whole numbers, 0 for values that are not whole."""
    some = values[:: max(1, values.size // 10_000)]
    return 1 / math.sqrt(12.0) if np.array_equal(some, np.round(some)) else 0.0
