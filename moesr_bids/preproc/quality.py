"""Image quality metrics under MRIQC's names and definitions (Esteban et al. 2017, doi:10.1371/journal.pone.0184661).

The definitions are those of MRIQC 24.0. Three inputs differ. Tissue probabilities come from
`moesr_bids.preproc.tissues`. Air is farther than `CLEARANCE_MM` from the head and above the lowest slice of the brain.
The smoothness is computed here rather than by AFNI, on the image without bias field.
"""

from __future__ import annotations

import math

import attrs
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from moesr_bids.preproc.images import BoolArray, FloatArray, resample_isotropic, resample_to
from moesr_bids.preproc.tissues import TISSUES
from moesr_bids.sr.grid import bounding_box

WORKING_MM = 2.0
CLEARANCE_MM = 6.0
WHITE_LEVEL = 1000.0  # white matter's median, to which MRIQC scales before it rounds
FEWEST_AIR_VOXELS = 1000
_SQRT_8_LN_2 = math.sqrt(8 * math.log(2))
# Regions of an image. OTHER lies near the head, or below the brain beside face and neck.
OTHER, FRAME, AIR, HEAD = range(4)


@attrs.frozen
class Distribution:
    """Intensities of a tissue: weighted median and standard deviation, and the sum of the weights."""

    median: float
    std: float
    count: float

    @classmethod
    def of(cls, values: FloatArray, weights: FloatArray) -> Distribution:
        """Describe ``values``, rounded to whole numbers; none is negative."""
        whole = np.rint(values).astype(np.int64)
        share = np.bincount(whole, weights=weights)
        total = float(share.sum())
        if total <= 1:
            return cls(math.nan, math.nan, total)
        level = np.arange(share.size)
        mean = float((level * share).sum()) / total
        variance = float(((level - mean) ** 2 * share).sum()) / total
        median = float(np.searchsorted(np.cumsum(share), total / 2))
        return cls(median, math.sqrt(variance), total)

    @property
    def snr(self) -> float:
        """Signal-to-noise ratio: median / (std sqrt(n / (n - 1))); NaN without a deviation."""
        return self.median / (self.std * math.sqrt(self.count / (self.count - 1))) if self.std > 0 else math.nan


def cnr(white: Distribution, grey: Distribution, air_std: float) -> float:
    """Return the contrast-to-noise ratio |white - grey| / sqrt(air std^2 + white std^2 + grey std^2)."""
    noise = math.sqrt(air_std**2 + white.std**2 + grey.std**2)
    return abs(white.median - grey.median) / noise if noise > 0 else math.nan


def efc(data: FloatArray) -> float:
    """Return the entropy focus criterion (Atkinson et al. 1997): 0 if one voxel has all energy, 1 if all are alike.

    Parameters
    ----------
    data : ndarray
        Intensities, none negative, without the zeros of a frame that rotation or masking left.

    """
    largest = math.sqrt(float(np.square(data, dtype=np.float64).sum()))
    if largest == 0 or data.size < 2:
        return math.nan
    share = data.astype(np.float64) / largest
    entropy = -float((share * np.log(share + 1e-16)).sum())
    return entropy / (math.sqrt(data.size) * math.log(math.sqrt(data.size)))


def fber(head: FloatArray, background: FloatArray) -> float:
    """Return the foreground-background energy ratio: median of the squares inside the head over that outside.

    NaN if there is no signal outside the head, where MRIQC returns -1.
    """
    if head.size == 0 or background.size == 0:
        return math.nan
    below = float(np.median(np.square(background)))
    return float(np.median(np.square(head))) / below if below >= 1e-3 else math.nan


def fwhm(data: FloatArray, mask: BoolArray) -> tuple[float, ...]:
    """Return the smoothness along each axis, as full width at half maximum in voxels (Forman et al. 1995).

    It is sqrt(8 ln 2) sqrt(-1 / (4 ln(1 - var(difference of neighbours) / (2 var(image))))) inside the mask, and NaN if
    neighbours are independent.
    """
    box = bounding_box(mask)
    values, inside = data[box], mask[box]
    variance = float(np.var(values[inside], dtype=np.float64))
    widths = []
    for axis in range(3):
        ahead, behind = (np.moveaxis(values, axis, 0)[part] for part in (slice(1, None), slice(None, -1)))
        both = np.moveaxis(inside, axis, 0)
        pairs = both[1:] & both[:-1]
        spread = float(np.var(ahead[pairs] - behind[pairs], dtype=np.float64)) if pairs.any() else math.nan
        correlation = 1 - 0.5 * spread / variance if variance > 0 else math.nan
        known = 0 < correlation < 1
        widths.append(_SQRT_8_LN_2 * math.sqrt(-1 / (4 * math.log(correlation))) if known else math.nan)
    return tuple(widths)


def regions(data: FloatArray, affine: NDArray[np.float64], mask: BoolArray, head: BoolArray) -> NDArray[np.uint8]:
    """Return the region of each voxel: `FRAME` (zeros that no scanner measured), `AIR`, `HEAD` or `OTHER`.

    Parameters
    ----------
    data : ndarray, shape (i, j, k)
        Axes nearest to right, anterior, superior.
    affine : ndarray, shape (4, 4)
        Voxel to world, mm.
    mask, head : ndarray of bool
        Brain, and all that is not background.

    """
    share, coarse_affine = resample_isotropic(head.astype(np.float32), affine, WORKING_MM)
    distance = np.asarray(ndimage.distance_transform_edt(share < 0.5), dtype=np.float32) * np.float32(WORKING_MM)
    own = resample_to(distance, coarse_affine, data.shape, affine)
    found = np.full(data.shape, OTHER, dtype=np.uint8)
    lowest = int(np.flatnonzero(mask.any(axis=(0, 1)))[0])
    found[..., lowest:][own[..., lowest:] > CLEARANCE_MM] = AIR
    found[own < WORKING_MM / 2] = HEAD
    # Opened, as in MRIQC, since single voxels of air are 0 by chance.
    zeros = ndimage.binary_opening(np.pad(data <= 0, 1, constant_values=True), ndimage.generate_binary_structure(3, 2))
    found[zeros[1:-1, 1:-1, 1:-1] & (found != HEAD)] = FRAME
    return found


def image_quality(
    data: FloatArray, mask: BoolArray, probabilities: FloatArray, around: NDArray[np.uint8]
) -> dict[str, float | None]:
    """Return MRIQC's metrics of an image without bias field; None for a metric that is not defined.

    Parameters
    ----------
    data : ndarray, shape (i, j, k)
        Axes nearest to right, anterior, superior.
    mask : ndarray of bool
        Brain.
    probabilities : ndarray, shape (3, voxels in the mask)
        Of white matter, grey matter and CSF.
    around : ndarray of uint8
        See `regions`.

    Returns
    -------
    dict
        ``cnr``, ``snr_csf``, ``snr_gm``, ``snr_wm``, ``snr_total``, ``efc``, ``fber``, and ``fwhm_x``, ``fwhm_y``,
        ``fwhm_z``, ``fwhm_avg`` in voxels.

    """
    brain = np.maximum(data[mask], 0)
    sure = brain[probabilities[0] >= 0.9]
    level = float(np.median(sure)) if sure.size else 0.0
    if level <= 0:
        level = float(np.percentile(brain, 99)) or 1.0
    scaled = np.maximum(data, 0) * np.float32(WHITE_LEVEL / level)
    brain = scaled[mask]
    tissues = {name: Distribution.of(brain, share) for name, share in zip(TISSUES, probabilities, strict=True)}
    air = scaled[around == AIR]
    air_std = float(np.std(air, dtype=np.float64)) if air.size >= FEWEST_AIR_VOXELS else 0.0
    ratios = {f"snr_{name}": tissues[name].snr for name in ("csf", "gm", "wm")}
    outside = (around != HEAD) & (around != FRAME)
    widths = fwhm(scaled, mask)
    metrics = {
        "cnr": cnr(tissues["wm"], tissues["gm"], air_std),
        **ratios,
        "snr_total": sum(ratios.values()) / len(ratios),
        "efc": efc(scaled[around != FRAME]),
        "fber": fber(scaled[around == HEAD], scaled[outside]),
        **{f"fwhm_{axis}": width for axis, width in zip("xyz", widths, strict=True)},
        "fwhm_avg": sum(widths) / len(widths),
    }
    return {name: round(value, 4) if math.isfinite(value) else None for name, value in metrics.items()}


def inu(log_field: FloatArray, mask: BoolArray) -> dict[str, float]:
    """Return ``inu_range`` (95th minus 5th percentile) and ``inu_med`` of the bias field in the brain."""
    low, middle, high = np.percentile(np.exp(log_field[mask]), (5, 50, 95))
    return {"inu_range": round(float(high - low), 4), "inu_med": round(float(middle), 4)}
