"""Calibration of the predicted standard deviation: one factor per contrast, and how often intervals hold the truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from attrs import frozen
from numpy.typing import NDArray
from scipy.stats import norm

LEVELS = (50, 80, 90, 95)
"""Central intervals in per cent."""
_FITTED = 90  # the level that the factor makes exact
_EDGES = np.linspace(0, 20, 4001)


@frozen(eq=False)
class ErrorRatios:
    """Histogram of |error| / predicted standard deviation of one scan, or the mean of those of several.

    Parameters
    ----------
    counts
        Share of the voxels in each of 4000 bins from 0 to 20, summing to 1; the last bin holds everything beyond.
    """

    counts: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        error: NDArray[np.floating],
        std: NDArray[np.floating],
        mask: NDArray[np.bool_],
        *,
        temperature: float = 1.0,
    ) -> ErrorRatios:
        """Make the histogram of the voxels of a mask.

        Parameters
        ----------
        error, std
            Error and its predicted standard deviation, in the same units.
        mask
            Which voxels count; same shape, at least one of them true.
        temperature
            The factor that ``std`` was multiplied by; it is divided out first.
        """
        ratio = np.abs(error[mask]) / np.maximum(std[mask] / temperature, np.finfo(np.float32).tiny)
        return cls(np.histogram(np.minimum(ratio, _EDGES[-1]), _EDGES)[0] / np.count_nonzero(mask))

    @classmethod
    def pooled(cls, some: Sequence[ErrorRatios]) -> ErrorRatios:
        """Average over scans; each scan has the same weight."""
        return cls(np.mean([one.counts for one in some], axis=0))

    def temperature(self) -> float:
        """Return the factor of the standard deviation that makes the 90 % interval of a normal law hold 90 %."""
        return float(np.interp(_FITTED / 100, np.cumsum(self.counts), _EDGES[1:]) / _half_width(_FITTED))

    def coverage(self, temperature: float) -> dict[str, float]:
        """Return the share of voxels inside each interval of :data:`LEVELS`, by level."""
        inside = np.concatenate([[0.0], np.cumsum(self.counts)])
        return {str(p): float(np.interp(_half_width(p) * temperature, _EDGES, inside)) for p in LEVELS}


def _half_width(level: int) -> float:
    return float(norm.ppf(0.5 + level / 200))
