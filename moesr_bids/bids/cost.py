"""Estimated cost of an image, from its grids alone: memory of each step, and time."""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs

from moesr_bids.bids.steps import SUPER_RESOLUTION, step_kind
from moesr_bids.sr.grid import Grid

BYTES_PER_GB = 1024**3
# Measured on whole heads: mask, bias field and registration work on grids of 2 mm and coarser, plus whole-grid copies.
_PREPROC_BASE_GB, _PREPROC_BYTES_PER_VOXEL = 1.2, 60
PREPROC_SECONDS = 90.0
# Shares of the steps in the time without super-resolution, in per cent: measured on a whole head of 1 mm.
_STEP_SHARES: Mapping[str, float] = {
    "conform": 2,
    "brain_mask": 24,
    "n4": 9,
    "register": 30,
    "target_mask": 2,
    "warp": 6,
    "quality": 7,
    "reportlets": 17,
    "publish": 3,
}
_FIELD_BYTES_PER_POINT = 250  # further memory per lattice point of a displacement field
_QUALITY_BASE_GB, _QUALITY_BYTES_PER_VOXEL = 1.0, 42
_PUBLISH_BASE_GB, _PUBLISH_BYTES_PER_VOXEL = 0.5, 16
_REPORTLETS_BASE_GB, _REPORTLETS_BYTES_PER_TARGET_VOXEL = 2.0, 8
_WARP_GB = 1.0


@attrs.frozen(kw_only=True)
class Cost:
    """Estimated cost of an image.

    Attributes
    ----------
    input, target : Grid
        Grids of the scan and of the output.
    field_points : int
        Lattice points of the displacement field that corrects gradient nonlinearity; 0 without such a file.
    sr_memory_gb : float
        Peak memory of the super-resolution process, in GiB.
    sr_seconds : float
        Wall time of super-resolution on an idle machine, in seconds.

    """

    input: Grid
    target: Grid
    field_points: int
    sr_memory_gb: float
    sr_seconds: float

    @property
    def seconds(self) -> float:
        """Wall time of the image on an idle machine, in seconds."""
        return self.sr_seconds + PREPROC_SECONDS

    def seconds_of(self, step: str) -> float:
        """Wall time of a step in seconds, by its name as a node or in a record; 0 for very short steps."""
        if step == SUPER_RESOLUTION:
            return self.sr_seconds
        return PREPROC_SECONDS * _STEP_SHARES.get(step_kind(step), 0) / 100

    @property
    def memory_gb(self) -> float:
        """Larger memory of super-resolution and of the correction of gradient nonlinearity, in GiB."""
        return max(self.sr_memory_gb, self.gradunwarp_memory_gb)

    @property
    def preproc_memory_gb(self) -> float:
        """Peak memory of a preprocessing step, in GiB."""
        return _PREPROC_BASE_GB + self._largest_gb(_PREPROC_BYTES_PER_VOXEL)

    @property
    def gradunwarp_memory_gb(self) -> float:
        """Peak memory of the correction of gradient nonlinearity, in GiB."""
        return self.preproc_memory_gb + _FIELD_BYTES_PER_POINT * self.field_points / BYTES_PER_GB

    @property
    def warp_memory_gb(self) -> float:
        """Peak memory of bringing the output into the space of a template, in GiB."""
        return self.preproc_memory_gb + _WARP_GB

    @property
    def quality_memory_gb(self) -> float:
        """Peak memory of the image quality metrics, in GiB."""
        return _QUALITY_BASE_GB + self._largest_gb(_QUALITY_BYTES_PER_VOXEL)

    @property
    def reportlets_memory_gb(self) -> float:
        """Peak memory of the figures, in GiB."""
        of_target = _REPORTLETS_BYTES_PER_TARGET_VOXEL * math.prod(self.target.shape) / BYTES_PER_GB
        return _REPORTLETS_BASE_GB + of_target

    @property
    def publish_memory_gb(self) -> float:
        """Peak memory of publication, in GiB; an output space is taken to be no larger than input or target."""
        return _PUBLISH_BASE_GB + self._largest_gb(_PUBLISH_BYTES_PER_VOXEL)

    def _largest_gb(self, bytes_per_voxel: float) -> float:
        return bytes_per_voxel * max(math.prod(self.input.shape), math.prod(self.target.shape)) / BYTES_PER_GB
