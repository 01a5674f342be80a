"""Image quality inside a mask.

The data range of both metrics is the 99.9th percentile of the reference inside the mask (the background of MRI is
zero), so that a few bright voxels outside of the brain do not change the figures.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

_PERCENTILE = 99.9


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
    box = tuple(slice(max(0, int(hit.min()) - margin), int(hit.max()) + 1 + margin) for hit in np.nonzero(mask))
    _, local = structural_similarity(
        reference[box].astype(np.float64), image[box].astype(np.float64), data_range=peak, full=True
    )
    return float(local[mask[box]].mean())


def contrast_to_noise(image: NDArray[np.floating], inside: NDArray[np.bool_], around: NDArray[np.bool_]) -> float:
    """Contrast-to-noise ratio: difference of the means of two regions over the standard deviation of the second.

    Parameters
    ----------
    image, inside, around
        Arrays of one shape.
    """
    _same_shape(image, inside, around)
    background = image[around].astype(np.float64)
    return float((image[inside].mean(dtype=np.float64) - background.mean()) / background.std())


def _same_shape(*arrays: NDArray[np.generic]) -> None:
    if len({a.shape for a in arrays}) != 1:
        raise ValueError(f"reference, image and mask have different shapes: {[a.shape for a in arrays]}")
