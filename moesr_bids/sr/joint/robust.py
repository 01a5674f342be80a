"""How far a scan can be used: its gain against the joint image, weights of its slices, agreement of its detail."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FloatArray = NDArray[np.float32]
Bools = NDArray[np.bool_]

FIELD_MM = 25.0
"""Standard deviation of the Gaussian that smooths the gain field: wide enough to follow coils, not anatomy."""
_GAIN_RANGE = (0.5, 2.0)  # of the scan's overall gain
_DETAIL_MM = 6.0  # standard deviation of the Gaussian whose mean is subtracted to get detail
_RIM_MM = 5.0
# Residuals of slices in units of their spread: up to the first the weight is 1, from the second on it is 0.
_DOUBT, _REFUSAL = 3.0, 6.0
_LEAST_SPREAD = 0.08  # of the logarithm: slices without a fault differ by this much
_FEWEST = 0.1  # of the voxels of the fullest slice


def overall_gain(acquired: FloatArray, predicted: FloatArray, inside: Bools) -> float:
    """Return the median ratio of a scan to its prediction, where that is above 30 % of its 99th percentile."""
    bright = inside & (predicted > 0.3 * np.percentile(predicted[inside], 99))
    return float(np.median(acquired[bright] / predicted[bright]))


def gain_field(acquired: FloatArray, predicted: FloatArray, inside: Bools, zooms: Sequence[float]) -> FloatArray:
    """Gain of a scan over its prediction, a smooth field: ratio of local means in Gaussian windows of ``FIELD_MM``.

    A least-squares fit would give too small a gain, because the prediction has errors too.

    Parameters
    ----------
    acquired, predicted
        float32 on the scan's grid.
    inside
        Voxels that are compared, boolean.
    zooms
        Voxel size per axis in mm.

    Returns
    -------
    gain
        float32 on the scan's grid, between half and twice :func:`overall_gain`.
    """
    overall = overall_gain(acquired, predicted, inside)
    sigma = [FIELD_MM / zoom for zoom in zooms]
    known = inside & (predicted > 0)
    both, own = (
        ndimage.gaussian_filter(np.where(known, part, 0).astype(np.float32), sigma, mode="constant", truncate=3)
        for part in (acquired, predicted)
    )
    # Far from the head there is nothing to compare: the overall gain holds.
    little = 1e-3 * float(own.max())
    field = (both + overall * little) / (own + little)
    return np.asarray(np.clip(field, _GAIN_RANGE[0] * overall, _GAIN_RANGE[1] * overall), dtype=np.float32)


def detail(volume: FloatArray, inside: Bools, zooms: Sequence[float]) -> FloatArray:
    """Subtract the mean over a Gaussian window (standard deviation 6 mm); only voxels ``inside`` enter the mean."""
    sigma = [_DETAIL_MM / zoom for zoom in zooms]
    total, share = (
        ndimage.gaussian_filter(part.astype(np.float32), sigma, mode="constant", truncate=3)
        for part in (np.where(inside, volume, 0), inside)
    )
    return np.asarray(volume - total / np.maximum(share, 1e-6), dtype=np.float32)


def agreement(
    acquired: FloatArray, predicted: FloatArray, inside: Bools, believed: Bools, zooms: Sequence[float]
) -> float:
    """Correlation of the detail of a scan with that of its prediction: 1 for the same head, about 0 for chance.

    Outlines of heads are alike, so only voxels more than 5 mm inside count. Of these, only ``believed`` slices count: a
    few that moved say nothing of whose head it is.
    """
    deep = ndimage.distance_transform_edt(np.pad(inside, 1), sampling=zooms)[1:-1, 1:-1, 1:-1] > _RIM_MM
    if np.count_nonzero(deep) < 100:
        deep = inside
    here, there = (detail(volume, inside & believed, zooms)[deep & believed] for volume in (acquired, predicted))
    if not here.size or here.std() == 0 or there.std() == 0:
        return 0.0
    return float(np.corrcoef(here, there)[0, 1])


def slice_weights(
    acquired: FloatArray, predicted: FloatArray, inside: Bools, axis: int, sigma: float
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Weight of each slice from its residual against a prediction by the other scans.

    The residual that noise and contours explain is sqrt(sigma^2 + k^2 c^2), with c the root mean square gradient in the
    slice, and k the same for all slices: the median of what the residual has beyond noise, over c. The excess of a
    slice is the logarithm of its residual over that, minus the median of all slices, in units of their spread (scaled
    median absolute deviation). The weight is 1 up to an excess of 3 and falls linearly to 0 at 6.

    Parameters
    ----------
    acquired, predicted
        float32 on the scan's grid.
    inside
        Voxels that are compared, boolean.
    axis
        Array axis across the slices.
    sigma
        Standard deviation of the noise.

    Returns
    -------
    weights, excess
        One value per slice; weight 1 and excess 0 for slices with too few voxels to compare.
    """
    others = tuple(a for a in range(3) if a != axis)
    counts = inside.sum(axis=others)
    judged = counts >= max(50, _FEWEST * counts.max())
    weights, excess = np.ones(len(counts), dtype=np.float32), np.zeros(len(counts))
    if np.count_nonzero(judged) < 5:
        return weights, excess
    slope = sum(np.gradient(predicted, axis=a) ** 2 for a in others)
    squared, contours = (
        np.where(inside, part, 0).sum(axis=others)[judged] / counts[judged]
        for part in ((acquired - predicted) ** 2, slope)
    )
    k2 = float(np.median(np.maximum(squared - sigma**2, 0) / np.maximum(contours, 1e-12)))
    logs = 0.5 * np.log(squared / (sigma**2 + k2 * contours))
    centred = logs - np.median(logs)
    spread = max(1.4826 * float(np.median(np.abs(centred))), _LEAST_SPREAD)
    excess[judged] = centred / spread
    return np.interp(excess, (_DOUBT, _REFUSAL), (1.0, 0.0)).astype(np.float32), excess
