"""Estimated cost of an image, from its grids alone: memory of each step, and time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import lru_cache

import attrs
import numpy as np

from moesr_bids.bids.steps import SUPER_RESOLUTION, step_kind
from moesr_bids.resources import GIB, speed_of
from moesr_bids.sr.grid import Grid


@attrs.frozen
class _Step:
    """What a step takes; measured on heads of 1 to 5.5 mm whose outputs have 18 to 37 million voxels.

    Attributes
    ----------
    seconds, target_seconds : float
        Time, and further time per million voxels of the output, on a machine of pace 1: with two threads if
        `threaded`, else with one.
    base_gb : float
        Memory with small grids, GiB.
    input_bytes, target_bytes : float
        Further memory per voxel of the scan and of the output.
    threaded : bool
        Whether more threads make it faster.

    """

    seconds: float
    target_seconds: float = 0.0
    base_gb: float = 0.8
    input_bytes: float = 0.0
    target_bytes: float = 0.0
    threaded: bool = False


# The start of a run counts as a part of the header check, the page of the participant as one of the writing.
_STEPS: Mapping[str, _Step] = {
    "conform": _Step(2, input_bytes=25),
    "gradunwarp": _Step(14, base_gb=1.2, input_bytes=60),
    "brain_mask": _Step(8, base_gb=0.65, input_bytes=30, threaded=True),
    "n4": _Step(2.7, input_bytes=25, threaded=True),
    "coregister": _Step(2.5, input_bytes=25, threaded=True),
    "register": _Step(14, base_gb=0.9, input_bytes=25, threaded=True),
    "target_mask": _Step(0.1, 0.045, base_gb=0.7, target_bytes=8),
    # These two run beside the metrics: what they add to them with two CPUs.
    "segment": _Step(2, 0.15, base_gb=0.75, target_bytes=14),
    "warp": _Step(0.2, 0.06, base_gb=0.9, target_bytes=46),
    "quality": _Step(1.2, 0.22, base_gb=0.85, input_bytes=20, target_bytes=20),
    "reportlets": _Step(3.5, 0.08, base_gb=0.75, target_bytes=16),
    "publish": _Step(4, 0.04, base_gb=0.5, input_bytes=16, target_bytes=16),
}
_PREPARATION = ("conform", "gradunwarp", "brain_mask", "n4")
_FIELD_BYTES_PER_POINT = 250  # further memory per lattice point of a displacement field
_MEASURED_WITH = 2  # threads
_REFERENCE_SECONDS = 0.0162  # of `_timed` on that machine


@lru_cache(maxsize=1)
def machine_pace() -> float:
    """Return how long one thread of this machine works on what the machine of the measurements does in a second.

    A spline interpolation, such as registrations are made of, is timed once in a process.
    """
    return min(_timed() for _ in range(5)) / _REFERENCE_SECONDS


def _timed() -> float:
    from scipy import ndimage

    volume = np.linspace(0, 1, 64**3, dtype=np.float32).reshape(64, 64, 64)
    places = np.random.default_rng(0).random((3, 100_000)) * 63
    start = time.perf_counter()
    ndimage.map_coordinates(volume, places, order=3, prefilter=False)
    return time.perf_counter() - start


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
    runs : Mapping
        How often a step runs; a step that is not named runs once.
    threads : int
        Threads of a step.

    """

    input: Grid
    target: Grid
    field_points: int
    sr_memory_gb: float
    sr_seconds: float
    runs: Mapping[str, int] = attrs.field(factory=dict)
    threads: int = 1

    @property
    def seconds(self) -> float:
        """Wall time of the image on an idle machine, in seconds."""
        return self.sr_seconds + sum(self.runs.get(step, 1) * self.seconds_of(step) for step in _STEPS)

    def seconds_of(self, step: str) -> float:
        """Wall time of a step in seconds, by its name as a node or in a record; 0 if it does not run."""
        if step == SUPER_RESOLUTION:
            return self.sr_seconds
        kind = step_kind(step)
        found = _STEPS.get(kind)
        if found is None or not self.runs.get(kind, 1):
            return 0.0
        seconds = found.seconds + found.target_seconds * math.prod(self.target.shape) / 1e6
        if found.threaded:
            seconds *= speed_of(_MEASURED_WITH) / speed_of(self.threads)
        return machine_pace() * seconds

    def of_preparation(self) -> Cost:
        """Return the cost of a scan that is prepared and super-resolved, and of which no image is made."""
        return attrs.evolve(self, runs={step: self.runs.get(step, 1) if step in _PREPARATION else 0 for step in _STEPS})

    def without_preparation(self) -> Cost:
        """Return the cost of an image whose scans are prepared for themselves."""
        return attrs.evolve(self, runs={**self.runs, **dict.fromkeys(_PREPARATION, 0)})

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
