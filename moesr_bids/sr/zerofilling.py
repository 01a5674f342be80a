"""Zero-filled k-space: what share of the frequencies that a grid can hold the scanner measured.

Clinical scanners store images on finer grids than they acquired them. The noise then ends with the signal, and the
spectrum falls off a cliff, which anatomy has nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .psf import PSF, AxisPSF

_LEAST_SAMPLES = 64
_LEAST_SHARE = 0.45  # grids twice as fine as acquired are the most that scanners make
_CLIFF_DB = 7.0  # scans that were not zero-filled fall by less than 5 dB
_WIDTH = 0.04  # of the spectrum: on each side of the cliff


def acquired_share(data: NDArray[np.floating], axis: int) -> float:
    """Return the acquired share of the frequencies along an axis; 1 unless the spectrum falls off a cliff.

    Parameters
    ----------
    data
        3-D image.
    axis
        Array axis.
    """
    if data.shape[axis] < _LEAST_SAMPLES:
        return 1.0
    others = tuple(a for a in range(3) if a != axis)
    power = (np.abs(np.fft.rfft(data, axis=axis)) ** 2).mean(axis=others)
    decibels = 10 * np.log10(power + np.finfo(np.float64).tiny)
    n = len(decibels)
    width = max(3, round(_WIDTH * n))
    places = range(round(_LEAST_SHARE * n), n - 2 * width)
    falls = [decibels[c - width : c].mean() - decibels[c + width : c + 2 * width].mean() for c in places]
    steepest = int(np.argmax(falls))
    return 1.0 if falls[steepest] < _CLIFF_DB else (places[steepest] + width / 2) / n


def zero_filled(psf: PSF, data: NDArray[np.floating], zooms: Sequence[float]) -> PSF:
    """Return the point-spread function with k-space windows as wide as was acquired.

    Parameters
    ----------
    psf
        As the grid suggests.
    data
        3-D image.
    zooms
        Voxel sizes in mm.
    """
    axes, told = list(psf.axes), []
    for axis, (profile, zoom) in enumerate(zip(psf.axes, zooms, strict=True)):
        if profile.kind == "kspace" and (share := acquired_share(data, axis)) < 1:
            axes[axis] = AxisPSF("kspace", round(zoom / share, 3))
            told.append(f"{'ijk'[axis]} (acquired at {zoom / share:.2g} mm)")
    if not told:
        return psf
    return PSF((axes[0], axes[1], axes[2]), f"{psf.reason}; zero-filled along {', '.join(told)}, as its spectrum tells")


def measured_shares(psf: PSF, zooms: Sequence[float]) -> list[float]:
    """Return the share of the frequencies of each axis that holds noise: less than 1 along zero-filled ones."""
    return [
        min(1.0, zoom / profile.fwhm) if profile.kind == "kspace" else 1.0
        for profile, zoom in zip(psf.axes, zooms, strict=True)
    ]
