"""Dry run: print what would be done, on which grids, with how much memory and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moesr_bids.bids.collect import RawImage
from moesr_bids.bids.plan import ImagePlan
from moesr_bids.bids.resume import finished_record, known_apart
from moesr_bids.config import Settings
from moesr_bids.console import counted


def print_plans(images: Sequence[RawImage], plans: Mapping[RawImage, ImagePlan], settings: Settings) -> None:
    """Print a line per image and the totals; nothing is written.

    Parameters
    ----------
    images : sequence of RawImage
        All images that were found.
    plans : Mapping
        Plans of the images that can be processed.
    settings : Settings
        Settings of the run.

    """
    print(
        f"model {settings.sr.model}, {settings.sr.resolution:g} mm, device {settings.sr.device}, "
        f"{settings.nprocs} CPUs, {settings.mem_gb:.1f} GB; work folder {settings.work_dir}"
    )
    seconds, largest = 0.0, 0.0
    for image in images:
        plan = plans.get(image)
        if plan is None:
            print(f"{image.stem}: would fail: {image.problem}")
        elif plan.joined and known_apart(plan) is not None:
            print(f"{image.stem}: its scans do not fit together, would not be made")
        elif finished_record(plan) is not None:
            print(f"{image.stem}: complete, would be skipped")
        elif not plan.readable:
            print(f"{image.stem}: header cannot be read, would fail at the header check")
        else:
            seconds += plan.seconds
            largest = max(largest, plan.memory_gb)
            cost = f"about {plan.memory_gb:.1f} GB and {plan.seconds:.0f} s"
            print(f"{image.stem}: {_scans(plan)}{_grids(plan)}, {cost}")
    total = f"about {seconds / 60:.0f} min one after the other, {largest:.1f} GB at the most"
    print(f"{counted(len(images), 'image')}, {total}")
    if largest > settings.mem_gb:
        print(f"WARNING: a step needs more than --mem {settings.mem_gb:.1f}G; it would run alone and may be killed")


def _scans(plan: ImagePlan) -> str:
    return f"joined from {', '.join(scan.image.stem for scan in plan.scans)}; " if plan.joined else ""


def _grids(plan: ImagePlan) -> str:
    zooms = [round(zoom, 3) for zoom in plan.grid.zooms]
    return (
        f"{_by(plan.grid.shape)} voxels of {_by(zooms)} mm -> {_by(plan.target.shape)} of "
        f"{plan.settings.sr.resolution:g} mm"
    )


def _by(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
