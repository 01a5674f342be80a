"""Noise of a magnitude image, estimated inside a mask.

The product of second differences along the axes is nearly blind to anatomy that is smooth over three voxels, and is
normalised so that white noise keeps its standard deviation. Cortex is not smooth over three voxels of 2 mm, so only
the calmest places count (compare the weak-texture patches of Liu, Tanaka and Okutomi 2013): those with the least
gradient of the smoothed image. Smoothing leaves nothing of the frequencies that the differences look at, so the choice
does not favour places where the noise happens to be small. The median absolute deviation makes each estimate robust.

Noise often varies in space (parallel imaging, receive coils, a bias field that was divided out). So the mask is cut
into cells of equally many voxels, each cell has an estimate, and the noise of the image is their median.

Nothing outside of the mask enters, so a zero background does no harm; inside the brain of usual scans Rician noise is
Gaussian to within a per cent. Values at which the image was clipped, and what touches them, are left out. Along
zero-filled axes the image is first brought to the voxels that were acquired: on its own grid the differences would
see little of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
from attrs import frozen
from numpy.typing import NDArray
from scipy import fft, ndimage
from skimage.filters import threshold_otsu

from .grid import bounding_box

_SECOND_DIFFERENCE = np.array([1.0, -2.0, 1.0], dtype=np.float32) / np.sqrt(6.0).astype(np.float32)
_SMOOTHING = 1.0  # voxels
_CALM_SHARE = 0.02
_AS_CALM_AS_NOISE = 2.0  # times what noise alone gives
_CELLS = 2  # along each axis
_FEWEST_IN_CELL = 20_000
_FEWEST_CALM = 1500  # voxels of a cell: a precision of some per cent
MAD_OF_NORMAL = 0.6745
"""Median absolute deviation of a normal distribution, in standard deviations."""
_WINDOW = 5
_CORNER = 8  # of an axis
_ANISOTROPIC = 1.5
_FLOOR = 1e-3  # of the 99th percentile: below the quantisation of the 8-bit images that pass for noiseless
_FLAT = 1e-4  # of the 99th percentile: places with less variation were clamped, not measured
_SURELY_ACQUIRED = 0.9  # of the share of the frequencies that was found


@frozen
class Noise:
    """Standard deviation of the noise of an image, in its units.

    Parameters
    ----------
    std
        Median over eight parts of the mask.
    lowest, highest
        10th and 90th percentile over the parts; equal to ``std`` where the mask is too small to be cut.
    """

    std: float
    lowest: float
    highest: float


def estimate_noise(
    data: NDArray[np.floating],
    mask: NDArray[np.bool_],
    *,
    zooms: Sequence[float] = (1.0, 1.0, 1.0),
    shares: Sequence[float] = (1.0, 1.0, 1.0),
) -> Noise:
    """Estimate the standard deviation of the noise.

    For zero-filled axes it is that of the acquisition: what the noise would be if it filled all frequencies.

    Parameters
    ----------
    data
        3-D image.
    mask
        Brain or foreground, same shape.
    zooms
        Voxel size per axis in mm: across thick slices neighbours are not compared.
    shares
        Share of the frequencies of each axis that was acquired; less than 1 for zero-filled k-space.

    Returns
    -------
    noise
        In the units of ``data``; at least a thousandth of the 99th percentile in the mask, and at least the rounding
        error of integer values.

    Raises
    ------
    ValueError
        If the mask is empty or has another shape.
    """
    if mask.shape != data.shape or not mask.any():
        raise ValueError(f"the mask {mask.shape} is empty or does not fit the image {data.shape}")
    level = float(np.percentile(data[mask], 99))
    floor = max(_FLOOR * abs(level), _rounding_error(data[mask]))
    # In units of the level, so that squares keep their precision in float32.
    volume, inside = np.asarray(data, dtype=np.float32) / np.float32(level if level > 0 else 1.0), mask
    clipped = inside & np.isin(volume, _clip_levels(volume[inside]))
    acquired = 1.0
    for axis, share in enumerate(shares):
        if share < 1:
            volume, inside, clipped, kept = _as_acquired(volume, inside, clipped, axis, share)
            acquired *= kept
    box = bounding_box(inside, 3)
    along = [axis for axis in _compared(zooms) if inside[box].shape[axis] >= 3]
    found = _by_cell(volume[box], inside[box], clipped[box], along)
    if found.size == 0:
        return Noise(floor, floor, floor)
    found *= level / math.sqrt(acquired)
    std, lowest, highest = (max(float(value), floor) for value in (np.median(found), *np.percentile(found, (10, 90))))
    return Noise(std, lowest, highest)


def seen_variance(zooms: Sequence[float], shares: Sequence[float]) -> float:
    """Variance that :func:`estimate_noise` finds for noise of unit density in these shares, without knowing of them."""
    return math.prod(_seen_variance(shares[axis]) for axis in _compared(zooms))


def _by_cell(
    volume: NDArray[np.float32], inside: NDArray[np.bool_], clipped: NDArray[np.bool_], along: Sequence[int]
) -> NDArray[np.float64]:
    """Noise in each cell of a mask; empty where nothing can be measured."""
    residual = volume
    for axis in along:
        residual = ndimage.correlate1d(residual, _SECOND_DIFFERENCE, axis=axis, mode="nearest")
    near = [3 if axis in along else 1 for axis in range(3)]
    mean = ndimage.uniform_filter(volume, near)
    flat = inside & (ndimage.uniform_filter((volume - mean) ** 2, near) <= _FLAT**2)
    # Flat places were clamped; second differences next to them would see the clamped values.
    beside_flat = ndimage.maximum_filter(flat, [2 * n - 1 for n in near])
    candidates = _eroded(inside, along) & ~beside_flat & ~ndimage.maximum_filter(clipped, near)
    structure = _structure(volume, along)
    places = np.argwhere(candidates)
    cells = [np.arange(len(places))]
    if len(places) >= _FEWEST_IN_CELL * _CELLS**3:
        for axis in range(3):
            cells = [
                part
                for cell in cells
                for part in np.array_split(cell[np.argsort(places[cell, axis], kind="stable")], _CELLS)
            ]
    size, spread = np.abs(residual[candidates]), structure[candidates] / _structure_of_noise(along)
    return np.array([_calm_noise(size[cell], spread[cell]) for cell in cells if len(cell)])


def _calm_noise(size: NDArray[np.float32], structure: NDArray[np.float32]) -> float:
    """Noise where there is least structure: first in the calmest places, then wherever noise alone explains it.

    Parameters
    ----------
    size
        Absolute values of the second differences.
    structure
        Squared gradient of the smoothed image, over the mean that noise of variance 1 gives.
    """
    count = min(len(size), max(_FEWEST_CALM, math.ceil(_CALM_SHARE * len(size))))
    calm = np.argpartition(structure, count - 1)[:count]
    first = float(np.median(size[calm])) / MAD_OF_NORMAL
    like_noise = structure <= _AS_CALM_AS_NOISE * first**2
    # Where noise varies the calmest places are those with little of it.
    return float(np.median(size[like_noise])) / MAD_OF_NORMAL if np.count_nonzero(like_noise) > count else first


def _structure(volume: NDArray[np.float32], along: Sequence[int]) -> NDArray[np.float32]:
    """Squared gradient of the smoothed image, averaged over a window."""
    smooth = [_SMOOTHING if axis in along else 0.0 for axis in range(3)]
    squares = np.zeros_like(volume)
    for axis in along:
        order = [1 if other == axis else 0 for other in range(3)]
        squares += ndimage.gaussian_filter(volume, smooth, order=order, truncate=3) ** 2
    return np.asarray(ndimage.uniform_filter(squares, [_WINDOW if axis in along else 1 for axis in range(3)]))


def _structure_of_noise(along: Sequence[int]) -> float:
    """Return the mean of :func:`_structure` for noise of variance 1."""
    impulse = np.zeros((17, 17, 17), dtype=np.float32)
    impulse[8, 8, 8] = 1
    smooth = [_SMOOTHING if axis in along else 0.0 for axis in range(3)]
    orders = ([1 if other == axis else 0 for other in range(3)] for axis in along)
    return sum(float((ndimage.gaussian_filter(impulse, smooth, order=o, truncate=3) ** 2).sum()) for o in orders)


def _clip_levels(values: NDArray[np.float32]) -> list[float]:
    """Return the largest and the smallest value, each only if more voxels have it than the value next to it."""
    levels = []
    for sign in (1, -1):
        signed = sign * values
        end = signed.max()
        beside = signed[signed < end].max(initial=-np.inf)
        if np.count_nonzero(signed == end) > np.count_nonzero(signed == beside):
            levels.append(sign * float(end))
    return levels


def _as_acquired(
    volume: NDArray[np.float32], inside: NDArray[np.bool_], clipped: NDArray[np.bool_], axis: int, share: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_], float]:
    """Resample an axis to voxels a little larger than those acquired; return the share of samples kept as well."""
    n = volume.shape[axis]
    half = math.floor(_SURELY_ACQUIRED * share * n / 2)
    m = 2 * half + 1
    spectrum = np.take(fft.rfft(volume, axis=axis), range(half + 1), axis=axis)
    fewer = fft.irfft(spectrum, n=m, axis=axis) * np.float32(m / n)
    nearest = np.minimum(np.rint(np.arange(m) * n / m).astype(int), n - 1)
    reach = [3 if other == axis else 1 for other in range(3)]
    wider = ndimage.maximum_filter(clipped, reach)
    return fewer, np.take(inside, nearest, axis=axis), np.take(wider, nearest, axis=axis), m / n


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
    """Foreground of an image: head, or brain of a stripped one; boolean, same shape.

    It is the largest connected part above half of Otsu's threshold of the positive voxels, with holes filled.
    """
    positive = data[data > 0]
    if positive.size == 0 or positive.min() == positive.max():
        return data != 0 if (data != 0).any() else np.ones(data.shape, dtype=bool)
    # Every fourth voxel is enough for a histogram.
    threshold = 0.5 * threshold_otsu(positive[:: max(1, positive.size // 2_000_000)])
    filled = ndimage.binary_fill_holes(data > threshold)
    labels, count = ndimage.label(filled, np.ones((3, 3, 3)))
    # Things beside the head, such as a capsule that marks a side, are no part of it.
    return np.asarray(labels == 1 + np.argmax(np.bincount(labels.ravel())[1:]) if count else filled, dtype=bool)


def fills_corners(inside: NDArray[np.bool_]) -> bool:
    """Whether more than four of the eight corners of the field of view are foreground, as in MP2RAGE (noise in air)."""
    filled = 0
    for corner in product((False, True), repeat=3):
        sizes = [max(2, n // _CORNER) for n in inside.shape]
        block = inside[tuple(slice(-n, None) if last else slice(n) for n, last in zip(sizes, corner, strict=True))]
        filled += block.mean() > 0.5
    return filled > 4


def _eroded(mask: NDArray[np.bool_], along: Sequence[int]) -> NDArray[np.bool_]:
    """Mask without its border of two voxels along the axes ``along``; of one or none if little would be left."""
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
