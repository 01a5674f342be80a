"""Memory and time of a reconstruction, from the grids alone: what ``--dry-run`` shows and a scheduler needs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..resources import GIB, speed_of
from .models import DEFAULT_MODEL, get_model
from .models.base import ModelCard
from .precision import network_flops
from .sampling import Sampling
from .windows import fitting_window

_BASE_GB = 0.6  # Python, torch, nibabel and the input as read
_WITH_HALO = 1.15  # voxels of a window and its surroundings over its own
_MULTIPLY_ADD_PER_SECOND = 2.0e10  # per thread, float32 matrix products of these shapes


def estimate_memory(
    input_shape: Sequence[int], target_shape: Sequence[int], model: str = DEFAULT_MODEL, memory_gb: float = math.inf
) -> float:
    """Estimate peak memory of a reconstruction in GiB; the parameters are those of :func:`estimate_cost`."""
    card = get_model(model).card
    largest = window_voxels(card, input_shape, target_shape, memory_gb)
    voxels = math.prod(target_shape)
    windows = math.ceil(voxels / largest)
    outer = voxels / windows * (1 if windows == 1 else _WITH_HALO)
    window = card.window_bytes_per_voxel * min(outer, largest)
    return round(_without_window(card, input_shape, target_shape) + window / GIB, 2)


def estimate_cost(
    input_shape: Sequence[int],
    target_shape: Sequence[int],
    model: str = DEFAULT_MODEL,
    threads: int = 1,
    sampling: Sampling | None = None,
    memory_gb: float = math.inf,
) -> tuple[float, float]:
    """Estimate peak memory and wall time of :func:`moesr_bids.sr.engine.super_resolve` on this machine's CPU.

    The estimate is for a head that fills the field of view; a smaller head takes less.

    Parameters
    ----------
    input_shape, target_shape
        Shapes of the input and of the target grid.
    model
        Name of a registered model.
    threads
        Threads of one process.
    sampling
        How a diffusion model is sampled; by default its mean.
    memory_gb
        Memory in GiB that the windows must fit into, see :func:`window_voxels`.

    Returns
    -------
    memory_gb, seconds
        Peak resident memory in GiB and wall time in seconds.
    """
    card = get_model(model).card
    voxels = math.prod(target_shape)
    transform = _transform_work(input_shape, target_shape)
    speed = speed_of(threads)
    flips, steps = (sampling or Sampling()).evaluations(card.flips, card.steps_per_sample)
    transforms = (card.iterations + 3) * 2 * transform / _MULTIPLY_ADD_PER_SECOND
    work = transforms + card.seconds_per_megavoxel * voxels / 1e6
    if flops := card.flops_per_voxel + flips * card.flops_per_flip + steps * card.flops_per_step:
        work += flops * voxels / network_flops()
    seconds = 6.0 + work / speed
    return estimate_memory(input_shape, target_shape, model, memory_gb), round(seconds, 1)


def window_voxels(card: ModelCard, input_shape: Sequence[int], target_shape: Sequence[int], memory_gb: float) -> int:
    """Voxels of the largest window on a CPU with which a reconstruction fits into ``memory_gb`` (GiB).

    A window never shrinks below a least size, so a reconstruction in too little memory may need a little more.
    """
    left = memory_gb - _without_window(card, input_shape, target_shape)
    return fitting_window(left * GIB, card.window_bytes_per_voxel)


def _without_window(card: ModelCard, input_shape: Sequence[int], target_shape: Sequence[int]) -> float:
    """Memory in GiB of everything but the network's inner volumes."""
    return _BASE_GB + (card.bytes_per_voxel * math.prod(target_shape) + 24 * math.prod(input_shape)) / GIB


def _transform_work(input_shape: Sequence[int], target_shape: Sequence[int]) -> float:
    """Multiply-adds of one separable product from the target to the input grid, smallest first."""
    shape = list(target_shape)
    work = 0.0
    for axis in sorted(range(3), key=lambda a: input_shape[a] / target_shape[a]):
        work += math.prod(shape) * input_shape[axis]
        shape[axis] = input_shape[axis]
    return work
