"""Zero-filled k-space: the share of the frequencies of a grid that the scanner measured.

Clinical scanners store images on finer grids than they acquired them. The noise then ends where the signal ends, and
the spectrum falls off a cliff; anatomy alone never does that. The cliff is looked for well inside the object, because
the magnitude of air has noise of all frequencies, and so has the edge that skull-stripping leaves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from .psf import PSF, AxisPSF

_LEAST_SAMPLES = 64
_LEAST_SHARE = 0.45  # grids twice as fine as acquired are the most that scanners make
_CLIFF_DB = 8.0  # scans that were not zero-filled fall by less
_WIDTH = 0.04  # of the spectrum: on each side of the cliff
_EDGE = 2  # voxels: standard deviation of the transition, which ends at the border of the object


def acquired_share(data: NDArray[np.floating], axis: int, inside: NDArray[np.bool_]) -> float:
    """Return the acquired share of the frequencies along an axis; 1 unless the spectrum falls off a cliff.

    Parameters
    ----------
    data
        3-D image.
    axis
        Array axis.
    inside
        Brain or foreground, same shape.
    """
    return _share(_well_inside(data, inside), axis)


def _well_inside(data: NDArray[np.floating], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the image less its median in the object, falling smoothly to 0 at the object's border."""
    deep = ndimage.binary_erosion(inside, iterations=2 * _EDGE)
    if not deep.any():
        return np.zeros(data.shape, dtype=np.float32)
    weight = ndimage.gaussian_filter(deep.astype(np.float32), _EDGE, truncate=2)
    return np.asarray((data - np.median(data[deep])) * weight, dtype=np.float32)


def _share(data: NDArray[np.float32], axis: int) -> float:
    if data.shape[axis] < _LEAST_SAMPLES or not data.any():
        return 1.0
    others = tuple(a for a in range(3) if a != axis)
    power = (np.abs(fft.rfft(data, axis=axis)) ** 2).mean(axis=others, dtype=np.float64)
    decibels = 10 * np.log10(power + np.finfo(np.float64).tiny)
    n = len(decibels)
    width = max(3, round(_WIDTH * n))
    places = range(round(_LEAST_SHARE * n), n - 2 * width)
    falls = np.array([decibels[c - width : c].mean() - decibels[c + width : c + 2 * width].mean() for c in places])
    if falls.max() < _CLIFF_DB:
        return 1.0
    steepest = places[int(np.argmax(falls))]
    # The finite object smears the spectrum, so the cliff is where half of the power is lost.
    below = decibels < decibels[steepest - width : steepest].mean() - 10 * np.log10(2)
    return float((steepest - width + int(np.argmax(below[steepest - width :]))) / n)


def zero_filled(psf: PSF, data: NDArray[np.floating], zooms: Sequence[float], inside: NDArray[np.bool_]) -> PSF:
    """Return the point-spread function with k-space windows of the acquired voxel size along zero-filled axes.

    Parameters
    ----------
    psf
        Point-spread function that voxel sizes and metadata suggest.
    data
        3-D image.
    zooms
        Voxel sizes in mm.
    inside
        Brain or foreground, same shape as ``data``.
    """
    axes, told = list(psf.axes), []
    volume = _well_inside(data, inside)
    for axis, (profile, zoom) in enumerate(zip(psf.axes, zooms, strict=True)):
        if profile.kind == "kspace" and (share := _share(volume, axis)) < 1:
            axes[axis] = AxisPSF("kspace", round(zoom / share, 3))
            told.append(f"{'ijk'[axis]} (acquired at {zoom / share:.2g} mm)")
    if not told:
        return psf
    return PSF((axes[0], axes[1], axes[2]), f"{psf.reason}; zero-filled along {', '.join(told)}, as its spectrum tells")


def measured_shares(psf: PSF, zooms: Sequence[float]) -> list[float]:
    """Return the share of the frequencies of each axis that was acquired: less than 1 along zero-filled axes."""
    return [
        min(1.0, zoom / profile.fwhm) if profile.kind == "kspace" else 1.0
        for profile, zoom in zip(psf.axes, zooms, strict=True)
    ]
