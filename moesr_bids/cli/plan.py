"""The dry run: what would be done, on which grids, with how much memory and time."""

from __future__ import annotations

from collections.abc import Sequence

from moesr_bids.bids.collect import RawImage
from moesr_bids.bids.outputs import finished_record
from moesr_bids.config import Settings


def print_plan(images: Sequence[RawImage], settings: Settings) -> None:
    """Print a line per image and the totals; nothing is written."""
    from moesr_bids.workflows.estimates import estimate

    print(
        f"model {settings.sr.model}, {settings.sr.resolution:g} mm, device {settings.sr.device}, "
        f"{settings.nprocs} CPUs, {settings.mem_gb:.1f} GB; work folder {settings.work_dir}"
    )
    seconds, largest = 0.0, 0.0
    for image in images:
        if image.problem:
            print(f"{image.stem}: would fail: {image.problem}")
            continue
        if finished_record(image, settings) is not None:
            print(f"{image.stem}: complete, would be skipped")
            continue
        cost = estimate(image, settings)
        if not cost.readable:
            print(f"{image.stem}: header cannot be read, would fail at the header check")
            continue
        seconds += cost.seconds
        largest = max(largest, cost.memory_gb)
        print(
            f"{image.stem}: {_grid(cost.input_shape)} voxels of {_grid(cost.input_zooms)} mm -> "
            f"{_grid(cost.target_shape)} of {settings.sr.resolution:g} mm, about {cost.memory_gb:.1f} GB "
            f"and {cost.seconds:.0f} s"
        )
    print(f"{len(images)} images, about {seconds / 60:.0f} min one after the other, {largest:.1f} GB at the most")
    if largest > settings.mem_gb:
        print(f"WARNING: a step needs more than --mem {settings.mem_gb:.1f}G; it would run alone and may be killed")


def _grid(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
