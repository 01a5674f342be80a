"""Check of voxel values before they are used: outliers, a background that is not 0, values that are no magnitudes.

All limits come from ranks of the values, so a few voxels change nothing, however bright they are.
"""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import NDArray

from .errors import ImageError

# Limits in units of the range from the median to the 99th percentile: above the percentile, and below the median.
_FAR = 12.0  # twice that of the brightest artery in 64 real scans: inflow into a carotid, 6.2 times
_FAR_BELOW = 7.0
# A voxel above this limit is an outlier too, if it is _ALONE times as bright as each of its neighbours.
_NEAR = 1.0
_ALONE = 3.0
_MOST_CANDIDATES = 20_000
_LEAST_OFFSET = 0.1  # of the range of the values: noise of many coils lifts the background by less
_BACKGROUND_SHARE = 0.1  # least share of the voxels that must be dark for a background
_BORDER_SHARE = 0.33  # of the voxels on the faces of the field of view
_BACKGROUND_WIDTH = 0.05  # of the range of the values
_DEEPEST = 0.2  # of the brightest: signed noise of air does not go below
_FEW = 0.01  # of the voxels
_MOST_OUTLIERS = 0.0075  # of the voxels: more are a part of the image, not faults


@attrs.frozen(eq=False)
class Intensities:
    """Voxel values, with their faults.

    Attributes
    ----------
    data : ndarray of float32
        Values with the background at 0, and outliers replaced by the median of their neighbours.
    outliers : ndarray of bool
        Outliers, same shape.
    raw : ndarray of float32
        Values with the background at 0, and outliers as they are.
    offset : float
        Value that was subtracted to bring the background to 0.
    """

    data: NDArray[np.float32]
    outliers: NDArray[np.bool_]
    raw: NDArray[np.float32]
    offset: float = 0.0

    @classmethod
    def of(cls, values: NDArray[np.float32], name: str) -> Intensities:
        """Check an image; without faults ``data`` is the given array, not a copy.

        Parameters
        ----------
        values
            Voxels, 3-D, float32.
        name
            File name for messages.

        Raises
        ------
        ImageError
            If the values are no magnitudes, even after the offset is subtracted.
        """
        offset = background_offset(values)
        raw = values - np.float32(offset) if offset else values
        outliers = find_outliers(raw)
        data = _repaired(raw, outliers) if outliers.any() else raw
        _require_magnitudes(data, name)
        return cls(data, outliers, raw, offset)

    @property
    def offset_notes(self) -> tuple[str, ...]:
        """Sentence about the background, if it was not at 0."""
        if not self.offset:
            return ()
        return (f"the background was at {self.offset:.4g}, not at 0; this was subtracted from all voxels",)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about the faults, for warnings."""
        count = int(np.count_nonzero(self.outliers))
        if not count:
            return self.offset_notes
        place = ", ".join(str(n) for n in np.argwhere(self.outliers)[0])
        some = "outlier" if count == 1 else "outliers, the first"
        told = f"{count} {some} at voxel {place}: left out of all that is estimated, shown as in the input"
        return (*self.offset_notes, told)


def without_outliers(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an image with its outliers replaced; the same array if there are none."""
    outliers = find_outliers(values)
    return _repaired(values, outliers) if outliers.any() else values


def background_offset(values: NDArray[np.float32]) -> float:
    """Return the value of the background if it is far from 0, else 0.

    A background is at least a tenth of all voxels and a third of those on the faces of the field of view, with values
    within 5 % of the range from the darkest. An image without one, such as one that is cut to the brain, has no offset.
    """
    low, high = _rank(values, 0.01), _rank(values, 0.99)
    span = high - low
    if not span > 0:
        return 0.0
    dark = np.abs(values - low) <= _BACKGROUND_WIDTH * span
    border = np.concatenate([dark[face].ravel() for face in _faces(values.ndim)])
    if dark.mean() < _BACKGROUND_SHARE or border.mean() < _BORDER_SHARE:
        return 0.0
    inner = low if low > 0 else float(np.median(values[dark]))  # air of signed noise has its middle at 0
    return low if abs(inner) > _LEAST_OFFSET * span else 0.0


def _faces(dimensions: int) -> list[tuple[slice | int, ...]]:
    """Return the indices of the outer faces of a volume."""
    whole: tuple[slice | int, ...] = (slice(None),) * dimensions
    return [(*whole[:axis], end, *whole[axis + 1 :]) for axis in range(dimensions) for end in (0, -1)]


def find_outliers(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Find voxels that no anatomy explains: far beyond all others, or bright and alone.

    Limits are in units of the range from the median to the 99th percentile of the positive values: beyond the
    percentile by 12 ranges, or by 1 range and three times as bright as all 26 neighbours; below the median by 7 ranges.
    If more than 0.75 % of the voxels were outliers, none are.

    Parameters
    ----------
    values
        3-D, background at 0.

    Returns
    -------
    outliers
        Boolean, same shape.
    """
    positive = values[values > 0]
    none = np.zeros(values.shape, dtype=bool)
    if positive.size == 0:
        return none
    middle, bright = _rank(positive, 0.5), _rank(positive, 0.99)
    span = bright - middle
    if not span > 0:
        return none
    found = (values > bright + _FAR * span) | (values < middle - _FAR_BELOW * span)
    candidates = np.argwhere(~found & (values > bright + _NEAR * span))
    if 0 < len(candidates) <= _MOST_CANDIDATES:
        alone = candidates[_stand_alone(values, candidates)]
        found[tuple(alone.T)] = True
    return found if np.count_nonzero(found) <= _MOST_OUTLIERS * values.size else none


def _stand_alone(values: NDArray[np.float32], places: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Whether all 26 neighbours of each place are much darker; the voxels of an artery have bright neighbours."""
    around = _neighbours(values, places)
    return np.asarray(values[tuple(places.T)] > _ALONE * np.maximum(around.max(axis=1), 0))


def _neighbours(values: NDArray[np.float32], places: NDArray[np.intp], reach: int = 1) -> NDArray[np.float32]:
    """Values around each place, (places, neighbours); beyond the border its voxels are repeated."""
    steps = np.stack(np.meshgrid(*[range(-reach, reach + 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    steps = steps[np.any(steps != 0, axis=1)]
    at = np.clip(places[:, None] + steps, 0, np.array(values.shape) - 1)
    return values[at[..., 0], at[..., 1], at[..., 2]]


def _repaired(values: NDArray[np.float32], outliers: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Replace outliers by the median of their neighbours without outliers, from the border of a cluster inwards."""
    repaired = values.copy()
    repaired[outliers] = np.nan
    left = np.argwhere(outliers)
    while len(left):
        around = _neighbours(repaired, left)
        known = np.isfinite(around).any(axis=1)
        if not known.any():
            repaired[tuple(left.T)] = 0
            break
        repaired[tuple(left[known].T)] = np.nanmedian(around[known], axis=1)
        left = left[~known]
    return repaired


def _require_magnitudes(data: NDArray[np.float32], name: str) -> None:
    bright = _rank(data, 0.99)
    below = float(np.mean(data < -_DEEPEST * max(bright, 0)))
    if below > _FEW:
        raise ImageError(
            f"{name}: {100 * below:.0f} % of the voxels are far below 0 and no background explains it, as after "
            "z-scoring; give the image as it was scanned"
        )


def _rank(values: NDArray[np.floating], share: float) -> float:
    """Return the value below which a share of the voxels lies; it is one of the values."""
    return float(np.percentile(values, 100 * share, method="lower"))
