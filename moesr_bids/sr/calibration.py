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
    """Histogram of |error| / predicted standard deviation; sums of them pool scans.

    Parameters
    ----------
    counts
        Voxels per bin of :data:`_EDGES`; the last bin holds everything beyond.
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
        """Count the voxels of a mask; ``temperature`` is what ``std`` was multiplied with and is taken out."""
        ratio = np.abs(error[mask]) / np.maximum(std[mask] / temperature, np.finfo(np.float32).tiny)
        return cls(np.histogram(np.minimum(ratio, _EDGES[-1]), _EDGES)[0] / np.count_nonzero(mask))

    @classmethod
    def pooled(cls, some: Sequence[ErrorRatios]) -> ErrorRatios:
        """Average over scans, each of which counts alike."""
        return cls(np.mean([one.counts for one in some], axis=0))

    def temperature(self) -> float:
        """Return the factor of the standard deviation for which the 90 % interval of a normal law holds 90 %."""
        return float(np.interp(_FITTED / 100, np.cumsum(self.counts), _EDGES[1:]) / _half_width(_FITTED))

    def coverage(self, temperature: float) -> dict[str, float]:
        """Return the share of voxels inside each interval of :data:`LEVELS`, by level."""
        inside = np.concatenate([[0.0], np.cumsum(self.counts)])
        return {str(p): float(np.interp(_half_width(p) * temperature, _EDGES, inside)) for p in LEVELS}


def _half_width(level: int) -> float:
    return float(norm.ppf(0.5 + level / 200))
