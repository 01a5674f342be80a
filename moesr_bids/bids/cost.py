"""Estimated cost of an image, from its grids alone: memory of each step, and time."""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs

from moesr_bids.bids.steps import SUPER_RESOLUTION, step_kind
from moesr_bids.resources import GIB
from moesr_bids.sr.grid import Grid

PREPROC_SECONDS = 90.0


@attrs.frozen
class _Step:
    """What a step takes beside super-resolution.

    Attributes
    ----------
    share : float
        Of the time without super-resolution, per cent; measured on a whole head of 1 mm.
    base_gb : float
        Memory with small grids, GiB.
    input_bytes, target_bytes : float
        Further memory per voxel of the scan and of the output; measured on outputs of 1, 10 and 37 million voxels.

    """

    share: float
    base_gb: float
    input_bytes: float = 0.0
    target_bytes: float = 0.0


_STEPS: Mapping[str, _Step] = {
    "conform": _Step(2, 0.8, input_bytes=25),
    "gradunwarp": _Step(0, 1.2, input_bytes=60),
    "brain_mask": _Step(24, 0.8, input_bytes=25),
    "n4": _Step(8, 0.8, input_bytes=25),
    "coregister": _Step(0, 0.8, input_bytes=25),
    "register": _Step(30, 0.9, input_bytes=25),
    "target_mask": _Step(3, 0.7, target_bytes=8),
    "warp": _Step(8, 0.9, target_bytes=46),
    "quality": _Step(10, 0.85, input_bytes=20, target_bytes=20),
    "reportlets": _Step(13, 0.75, target_bytes=16),
    "publish": _Step(2, 0.5, input_bytes=16, target_bytes=16),
}
_FIELD_BYTES_PER_POINT = 250  # further memory per lattice point of a displacement field


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
        kind = step_kind(step)
        return PREPROC_SECONDS * _STEPS[kind].share / 100 if kind in _STEPS else 0.0

    def memory_of(self, step: str) -> float:
        """Peak memory of a step in GiB, by its name as a node or in a record.

        Raises
        ------
        KeyError
            If there is no such step.

        """
        if step == SUPER_RESOLUTION:
            return self.sr_memory_gb
        kind = step_kind(step)
        found = _STEPS[kind]
        size = found.input_bytes * math.prod(self.input.shape) + found.target_bytes * math.prod(self.target.shape)
        if kind == "gradunwarp":
            size += _FIELD_BYTES_PER_POINT * self.field_points
        return found.base_gb + size / GIB

    @property
    def memory_gb(self) -> float:
        """Largest memory of any step, in GiB."""
        return max(map(self.memory_of, (SUPER_RESOLUTION, *_STEPS)))
