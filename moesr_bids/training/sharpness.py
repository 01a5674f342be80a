"""How sharp a scan is along each of its axes, from its spectrum; a scan is no target along an axis that is not sharp.

Scanners store images on finer grids than they acquired them, and processing resamples them. Anatomy has nearly the same
spectrum along all axes. So an axis whose spectrum lies below that of the others, or falls off suddenly, was acquired
coarser.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

_RIM, _TAPER = 4.0, 8.0  # voxels: the surface of the head and the edge of a stripped brain hold all frequencies
_LEVEL = 7  # voxels of the mean that is subtracted to get detail
_LEAST_LENGTH = 256
_SMOOTHING = 5  # bins
_SHORT_DB = 6.0
_FIT = (0.15, 0.3)  # cycles per voxel of the finest axis, over which decibels fall in a straight line
_FIRST = 0.15
_LEAST_RUN = 10  # bins of a two-hundredth of a cycle per voxel


def axis_resolution(
    data: NDArray[np.floating], head: NDArray[np.bool_], zooms: Sequence[float]
) -> tuple[float, float, float]:
    """Size of the finest detail along each axis of a scan, in its voxels.

    It is half the period of the frequency at which the power spectral density inside the head falls 6 dB below an
    expected one, and stays there for a twentieth of a cycle per voxel or to the end of the spectrum. The expected
    density is the larger of two: that of the axis with most power at this frequency, and the straight line (in
    decibels) that fits it between 0.15 and 0.3 cycles per voxel.

    Parameters
    ----------
    data
        3-D image.
    head
        Foreground, same shape.
    zooms
        Voxel size per axis in mm.

    Returns
    -------
    tuple of float
        One size per axis, in voxels of that axis; at least 1.
    """
    # Padded, or a head that fills the image would have no surface.
    depth = ndimage.distance_transform_edt(np.pad(head, 1))[1:-1, 1:-1, 1:-1]
    ramp = np.clip((depth - _RIM) / _TAPER, 0, 1)
    weight = (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)
    if not weight.any():
        return 1.0, 1.0, 1.0
    detail = (np.asarray(data, np.float32) - ndimage.uniform_filter(np.asarray(data, np.float32), _LEVEL)) * weight
    finest = min(zooms)
    # Frequencies in cycles per voxel of the finest axis, the same for all axes.
    grid = np.linspace(0, 0.5, 101)
    density = np.full((3, grid.size), -np.inf)
    for axis, zoom in enumerate(zooms):
        lines = np.moveaxis(detail, axis, -1)
        count = max(_LEAST_LENGTH, lines.shape[-1])
        power = np.square(np.abs(fft.rfft(lines, n=count, axis=-1))).mean(axis=(0, 1), dtype=np.float64) * zoom
        power = ndimage.uniform_filter1d(power, _SMOOTHING)
        frequency = fft.rfftfreq(count) * finest / zoom
        seen = grid <= frequency[-1] + 1e-9
        density[axis, seen] = np.interp(grid[seen], frequency, 10 * np.log10(power + np.finfo(np.float64).tiny))
    densest = density.max(axis=0)
    fitted = (grid >= _FIT[0]) & (grid <= _FIT[1])
    expected = np.maximum(densest, np.polyval(np.polyfit(grid[fitted], densest[fitted], 1), grid))
    i, j, k = (_cutoff(grid, expected - line, finest / zoom) for line, zoom in zip(density, zooms, strict=True))
    return i, j, k


def _cutoff(grid: NDArray[np.float64], short: NDArray[np.float64], nyquist: float) -> float:
    """Return the finest detail in voxels of an axis whose Nyquist frequency is half of ``nyquist``."""
    within = (grid >= _FIRST) & (grid <= 0.5 * nyquist + 1e-9)
    frequency, dark = grid[within], short[within] >= _SHORT_DB
    runs, _ = ndimage.label(dark)
    for run in ndimage.find_objects(runs):
        # A short run is a gap in the spectrum, unless it reaches the end: then it is a roll-off.
        if run[0].stop - run[0].start >= _LEAST_RUN or run[0].stop == dark.size:
            return max(1.0, float(0.5 * nyquist / frequency[max(0, run[0].start - 1)]))
    return 1.0
