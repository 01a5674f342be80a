"""Thickness of slices that no metadata tells, from the spectrum of the scan.

Anatomy looks alike along all axes, so a scan holds its own reference: what it shows within its slices, blurred by the
right slice profile, has the spectrum that it shows across them (the symmetry that Han et al. 2021, ESPRESO, arXiv
2104.00100, train networks with; here spectra are compared). The profile acts on both sides: slices are blurred along an
in-plane axis by the candidate, so that both planes are slabs of one thickness; the other in-plane axis is blurred by it
and folded at the Nyquist frequency of the slices, as their spacing folds what lies across.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray
from scipy import fft, ndimage

from .psf import PSF, AxisPSF

_RIM_MM, _TAPER_MM = 3.0, 10.0  # the surface of the head and the edge of a stripped brain hold all frequencies
_LEVEL_MM = 8.0  # what is smoother is no detail
_PADDING_MM = 16.0
_SHARES = np.linspace(0.4, 1.5, 45)
_LOWEST = 0.25  # of the Nyquist frequency of the slices: what is slower is the shape of the head
_LEAST_SLICES = 16
_LEAST_RATIO = 2.5  # of slice spacing to in-plane voxel: finer planes hold what the profile takes away
_WORST_FIT_DB = 1.5
_LEAST_SIGNAL = 0.5  # of the power of the noise
_LEAST_FREQUENCIES = 5
# Of scans of people whom models were trained on, degraded with known profiles: the estimate is too low by this much,
# for anatomy is not quite alike along its axes, and errs by that much (standard deviation, of the spacing).
_BIAS, _ERROR = -0.09, 0.13
# Clinical slices are mostly 0.7 to 1 times as thick as their spacing: what is expected, and its weight.
_USUAL_SHARE, _PRIOR_WEIGHT = 0.85, 0.3


@frozen
class SliceProfile:
    """What a scan tells of its slices.

    Parameters
    ----------
    share
        Width (FWHM) of the Gaussian profile that explains the scan best, over the spacing of the slices.
    misfit
        Root mean square difference of the two spectra under it, dB.
    """

    share: float
    misfit: float


def spectral_profile(
    data: NDArray[np.floating], head: NDArray[np.bool_], zooms: Sequence[float], axis: int, sigma: float
) -> SliceProfile | None:
    """Find the width of the slice profile that makes planes across the slices look like the slices.

    Parameters
    ----------
    data
        3-D image.
    head
        Foreground, same shape.
    zooms
        Voxel size per axis in mm.
    axis
        Across the slices.
    sigma
        Standard deviation of the noise, in the units of ``data``.

    Returns
    -------
    profile
        None where the scan cannot tell: too few slices, planes that are not much finer than the slices, or noise.
    """
    planes = [a for a in range(3) if a != axis]
    if zooms[axis] < _LEAST_RATIO * max(zooms[a] for a in planes):
        return None
    depth = ndimage.distance_transform_edt(np.pad(head, 1), sampling=zooms)[1:-1, 1:-1, 1:-1]
    ramp = np.clip((depth - _RIM_MM) / _TAPER_MM, 0, 1).astype(np.float32)
    weight = ramp * ramp * (3 - 2 * ramp)
    hits = np.nonzero(weight)
    if not hits[axis].size or np.ptp(hits[axis]) + 1 < _LEAST_SLICES:
        return None
    box = tuple(slice(int(hit.min()), int(hit.max()) + 1) for hit in hits)
    weight, volume = weight[box], np.asarray(data[box], np.float32)
    widths = [_LEVEL_MM / zoom for zoom in zooms]
    level = ndimage.gaussian_filter(volume * weight, widths) / np.maximum(
        ndimage.gaussian_filter(weight, widths), np.finfo(np.float32).eps
    )
    # Of one length in mm, or frequencies that are compared would lie beside each other.
    count = math.ceil((max(n * zoom for n, zoom in zip(volume.shape, zooms, strict=True)) + _PADDING_MM) / zooms[axis])
    shape = [round(count * zooms[axis] / zoom) for zoom in zooms]
    power = np.square(np.abs(fft.fftn((volume - level) * weight, shape, workers=-1))).astype(np.float64)
    noise = sigma**2 * float(np.square(weight).sum(dtype=np.float64))
    frequency = [np.abs(fft.fftfreq(n, zoom)) for n, zoom in zip(shape, zooms, strict=True)]
    signals = _spectra(power - noise, frequency, axis, zooms[axis])
    noises = _spectra(np.full_like(power, noise), frequency, axis, zooms[axis])
    clear = np.all([(s > _LEAST_SIGNAL * n).all(axis=0) for s, n in zip(signals, noises, strict=True)], axis=0)
    if clear.sum() < _LEAST_FREQUENCIES:
        return None
    across, within = (signal[:, clear] for signal in signals)
    difference = 10 * np.log10(across / within)
    # Their ratio is that of the sizes of the head; the shape tells the profile.
    misfit = (difference - difference.mean(axis=1, keepdims=True)).std(axis=1)
    best = int(np.argmin(misfit))
    return SliceProfile(round(float(_SHARES[best]), 3), round(float(misfit[best]), 2))


def _spectra(
    power: NDArray[np.float64], frequency: Sequence[NDArray[np.float64]], axis: int, spacing: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Spectra across the slices and within them for each candidate, (candidates, frequencies)."""
    first, second = (a for a in range(3) if a != axis)
    count = power.shape[axis]
    chosen = range(math.ceil(_LOWEST * count / 2), count // 2 + 1)
    across, within = [], []
    for along, blurred in ((first, second), (second, first)):
        gains = np.stack([_gain(share * spacing, frequency[blurred]) for share in _SHARES])
        slab = np.moveaxis(power, (along, blurred, axis), (0, 1, 2)).sum(axis=0)
        across.append(_binned(gains @ slab, frequency[axis] * spacing * count, chosen))
        gains = np.stack([_gain(share * spacing, frequency[along]) for share in _SHARES])
        line = power.sum(axis=tuple(a for a in range(3) if a != along))
        folded = np.abs((frequency[along] * spacing + 0.5) % 1 - 0.5)
        within.append(_binned(gains * line, folded * count, chosen))
    return np.mean(across, axis=0), np.mean(within, axis=0)


def _gain(width: float, frequency: NDArray[np.float64]) -> NDArray[np.float64]:
    return AxisPSF("gaussian", width).spectrum(frequency) ** 2


def _binned(spectra: NDArray[np.float64], frequency: NDArray[np.float64], chosen: Sequence[int]) -> NDArray[np.float64]:
    """Average around chosen frequencies."""
    bins = np.round(frequency).astype(int)
    return np.stack([spectra[:, bins == number].mean(axis=1) for number in chosen], axis=1)


def with_spectral_thickness(
    psf: PSF, data: NDArray[np.floating], head: NDArray[np.bool_], zooms: Sequence[float], sigma: float
) -> PSF:
    """Replace a slice thickness that nobody told by what the spectrum tells.

    Parameters
    ----------
    psf
        As metadata and grid suggest.
    data, head, zooms, sigma
        As of :func:`spectral_profile`.

    Returns
    -------
    psf
        The same where the thickness was told, or the scan cannot tell it.
    """
    axis = psf.untold
    found = None if axis is None else spectral_profile(data, head, zooms, axis, sigma)
    if axis is None or found is None or found.misfit > _WORST_FIT_DB:
        return psf
    share = _PRIOR_WEIGHT * _USUAL_SHARE + (1 - _PRIOR_WEIGHT) * (found.share - _BIAS)
    axes = list(psf.axes)
    axes[axis] = AxisPSF("gaussian", round(share * zooms[axis], 3))
    reason = f"{psf.reason}; the spectrum tells a profile of {share:.2f} ± {_ERROR:.2f} of that"
    return evolve(psf, axes=(axes[0], axes[1], axes[2]), reason=reason)
