"""Windows of a volume that is too large for a network at once.

Each window has a halo as wide as the network sees. So every voxel is computed from all that it depends on, the result
does not depend on the windows, and nothing needs blending. (Overlapped and blended windows, as MONAI's
SlidingWindowInferer makes them, compute two to three times the volume and still depend on the window size.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    import torch

Box = tuple[slice, slice, slice]
_LEAST_CORE = 16
_GPU_SHARE = 0.7  # of the free memory
CPU_WINDOW_VOXELS = 24_000_000
"""Most voxels of a window on a CPU: enough for a head at 0.7 mm; a limit, so that memory can be estimated before."""
LEAST_CPU_WINDOW_VOXELS = 2_000_000
"""Least voxels of a window that is shrunk to fit: smaller windows would spend most of the work on halos."""


@frozen
class Window:
    """Part of a volume: ``outer`` is what the network is given, ``core`` is what is kept of its output.

    Both are slices of the volume.
    """

    outer: Box
    core: Box

    @property
    def inner(self) -> Box:
        """The core as slices of the outer part."""
        i, j, k = (slice(c.start - o.start, c.stop - o.start) for c, o in zip(self.core, self.outer, strict=True))
        return i, j, k

    @property
    def voxels(self) -> int:
        """Voxels that the network works on."""
        return math.prod(o.stop - o.start for o in self.outer)


def fitting_window(free_bytes: float, bytes_per_voxel: int) -> int:
    """Voxels of the largest window on a CPU, for ``free_bytes`` of memory and the network's bytes per voxel."""
    if not bytes_per_voxel:
        return CPU_WINDOW_VOXELS
    return int(min(max(free_bytes / bytes_per_voxel, LEAST_CPU_WINDOW_VOXELS), CPU_WINDOW_VOXELS))


def largest_window(bytes_per_voxel: int, device: torch.device, on_cpu: int, reserved: int = 0) -> int:
    """Voxels of the largest window: ``on_cpu`` on a CPU; on a GPU what fits into 70 % of its free memory.

    ``reserved`` bytes of the free memory are kept for whole volumes that are still to be made.
    """
    if device.type == "cpu":
        return on_cpu
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # kept for this process
    return max(0, int(_GPU_SHARE * (free - reserved) / bytes_per_voxel))


def plan_windows(shape: Sequence[int], box: Box, *, halo: int, largest: int, multiple: int) -> list[Window]:
    """Cut a box of a volume into windows.

    Parameters
    ----------
    shape
        Shape of the volume, multiples of ``multiple``.
    box
        Part of the volume that the cores cover.
    halo
        Voxels around a core that its result depends on, a multiple of ``multiple``.
    largest
        Most voxels of a window with its halo.
    multiple
        All slices start at multiples of it, so that all windows are aligned with the network's inner grid.

    Raises
    ------
    MemoryError
        If even the smallest window is larger than ``largest``.
    """
    snapped = [
        (b.start // multiple * multiple, min(n, -(-b.stop // multiple) * multiple))
        for b, n in zip(box, shape, strict=True)
    ]
    parts = [1, 1, 1]
    while True:
        windows = list(_cut(snapped, parts, shape, halo, multiple))
        if max(window.voxels for window in windows) <= largest:
            return windows
        lengths = [(high - low) / n for (low, high), n in zip(snapped, parts, strict=True)]
        axis = max(range(3), key=lambda a: lengths[a])
        if lengths[axis] <= _LEAST_CORE:
            raise MemoryError(
                f"memory is free for windows of {largest} voxels, which is too small: the network sees {halo} to each "
                "side; use --device cpu or a coarser --resolution, or free some"
            )
        parts[axis] += 1


def _cut(
    box: Sequence[tuple[int, int]], parts: Sequence[int], shape: Sequence[int], halo: int, multiple: int
) -> Iterator[Window]:
    axes = []
    for (low, high), count, n in zip(box, parts, shape, strict=True):
        step = -(-(high - low) // (count * multiple)) * multiple
        cores = [(a, min(a + step, high)) for a in range(low, high, step)]
        axes.append([(slice(max(0, a - halo), min(n, b + halo)), slice(a, b)) for a, b in cores])
    for i, j, k in product(*axes):
        yield Window((i[0], j[0], k[0]), (i[1], j[1], k[1]))
