"""Memory and time of joining scans that were super-resolved alone, from the grids."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...resources import GIB, speed_of

# Measured on a head in three stacks of 5 mm at 0.7 mm, 14 million voxels; a scan that does not fit takes longer.
_BASE_GB, _BYTES_PER_VOXEL, _BYTES_PER_VOXEL_AND_SCAN = 1.0, 60, 12
_SECONDS_PER_MEGAVOXEL_AND_SCAN = 0.75  # of one thread
_PLACING_SECONDS_PER_SCAN = 4.0


def estimate_cost(target_shape: Sequence[int], scans: int, threads: int) -> tuple[float, float]:
    """Return the peak memory in GiB and the wall time in seconds.

    Parameters
    ----------
    target_shape
        Shape of the grid of the joint image.
    scans
        How many are joined.
    threads
        Of one process.
    """
    voxels = math.prod(target_shape)
    memory = _BASE_GB + (_BYTES_PER_VOXEL + _BYTES_PER_VOXEL_AND_SCAN * scans) * voxels / GIB
    work = scans * (_SECONDS_PER_MEGAVOXEL_AND_SCAN * voxels / 1e6 + _PLACING_SECONDS_PER_SCAN)
    return round(memory, 2), round(work / speed_of(threads), 1)
