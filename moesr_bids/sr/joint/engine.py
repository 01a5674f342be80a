"""Joint super-resolution: one image from several scans of one contrast of a head."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from attrs import frozen
from nibabel.affines import apply_affine
from numpy.typing import NDArray

from ... import __version__
from ...errors import ImageError
from ...nifti import image_like
from ...resources import measured
from ..consistency import Move
from ..engine import stage, super_resolve
from ..grid import Grid
from ..interpolation import cubic_spline
from ..models import get_model
from ..models.base import Progress, silent
from ..operator import AcquisitionOperator
from ..options import SROptions
from ..psf import PSF, AxisPSF
from ..reading import Reading
from . import APART
from .alternate import Alternation, Given, Placed, place, placed_scan
from .combine import believed_by, least, trusted_mean
from .facts import Agreement, consistency_facts, scan_facts
from .operator import Scan, ScanOperator
from .resampling import Resampling
from .solve import Prior, agree_with_scans

# In units of the 99th percentile; chosen on two heads of training with three stacks of 5 mm.
PRIOR = Prior(tau=0.2, rho=0.05)
"""Expected error of the mean of the estimates."""
ITERATIONS = 12
TEMPERATURE = 0.9
"""Factor of the least standard deviation of the scans alone; chosen on a T1w in three stacks of 5 mm, so that its 90 %
interval holds 90 %."""
_LEAST_STD = 1e-4  # of the 99th percentile: shears ring at the edge of the head, and no error is 0
_MARGIN_MM = 5.0
_WORTH = 1.2  # times the voxel size of the output from which on the data are worth a grid of their own
_OF_THE_REFERENCE = (
    *("PSF", "PSFReason", "InputZooms", "InputShape", "NoiseStd", "NoiseRange", "NoisePercent"),
    *("OutlierVoxels", "BackgroundOffset"),
)


@frozen(eq=False)
class JointResult:
    """What :func:`join` returns.

    Parameters
    ----------
    image
        Joint image, float32, isotropic, on the axes of the reference scan.
    seen
        How many scans saw each voxel, in slices that are believed, on the grid of ``image``, uint8.
    uncertainty
        Least standard deviation of the scans alone that saw a voxel, times `TEMPERATURE`; float32, same grid. None if
        the model predicts none.
    residuals
        Scan minus its prediction from ``image`` in units of its noise, on the grid of each scan in the order given,
        also of scans that were left out.
    record
        JSON-serialisable facts.
    """

    image: nib.Nifti1Image
    seen: nib.Nifti1Image
    uncertainty: nib.Nifti1Image | None
    residuals: tuple[nib.Nifti1Image, ...]
    record: dict[str, Any]


@frozen(eq=False)
class Alone:
    """What the model made of a scan alone.

    Parameters
    ----------
    image, uncertainty
        Image and standard deviation on the fine grid of the scan; the latter of models that know one.
    record
        As :class:`..engine.Result` has it.
    """

    image: nib.Nifti1Image
    uncertainty: nib.Nifti1Image | None
    record: Mapping[str, Any]


@frozen(eq=False)
class Estimate:
    """A scan super-resolved alone: image and standard deviation on its own fine grid, divided by ``Prepared.level``."""

    grid: Grid
    image: NDArray[np.float32]
    std: NDArray[np.float32] | None
    record: Mapping[str, Any]


@frozen(eq=False)
class Prepared:
    """Scans of a head and their estimates, divided by ``level``, the 99th percentile of the first."""

    given: tuple[Given, ...]
    estimates: tuple[Estimate, ...]
    level: float


@frozen(eq=False)
class Joint:
    """Joint image, the mean that it started from, its standard deviation, how many scans saw each voxel, the scans."""

    image: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor | None
    seen: torch.Tensor
    scans: dict[int, Scan]


def join(
    images: Sequence[str | Path],
    options: SROptions | None = None,
    *,
    metadata: Sequence[Mapping[str, Any] | None] | None = None,
    masks: Sequence[str | Path | None] | None = None,
    alone: Sequence[Alone] | None = None,
    target: Grid | None = None,
    progress: Progress | None = None,
) -> JointResult:
    """Reconstruct one image from several scans.

    Each scan is super-resolved alone; positions, gains and slice weights are found (:mod:`.alternate`); the estimates
    are averaged, each trusted where its scan measured (:mod:`.combine`); the mean is corrected by the data of all
    scans (:mod:`.solve`).

    Parameters
    ----------
    images
        Paths of 3-D magnitude images of one head and contrast. The output has the axes of the first, the reference; if
        most scans do not fit to it, another takes its place (:func:`.alternate.place`).
    options
        As for one scan; ``psf`` must be None, since each scan has its own.
    metadata
        BIDS sidecar of each.
    masks
        Brain mask of each, on its grid; by default the foreground.
    alone
        What the model made of each scan alone, with the same options; by default it is made here.
    target
        Grid of the output; by default that of the reference, widened to hold the heads of all scans.
    progress
        Called with the name of the step and the share of it that is done.

    Raises
    ------
    ImageError
        If an image cannot be used, or no two scans fit together.
    ValueError
        If there are fewer than two images or an option is wrong.
    MemoryError
        If the memory of the GPU or of the machine is full.
    """
    options = options or SROptions()
    if len(images) < 2:
        raise ValueError(f"two scans at least are joined, got {len(images)}")
    if options.psf is not None:
        raise ValueError("scans that are joined have a point-spread function each; leave out --psf")
    told = progress or silent
    stages: list[dict[str, Any]] = []
    with measured() as total:
        with stage("each scan", stages):
            prepared = prepare(images, options, metadata=metadata, masks=masks, alone=alone, progress=told)
        given = prepared.given
        with stage("positions", stages):
            told("positions", 0.0)
            found = place(given)
        told("positions", 1.0)
        if len(found.used) < 2:
            raise ImageError(_nothing_fits(images, found))
        grid = target or _common_grid(given, found, options.resolution)
        with stage("join", stages):
            joint = reconstruct(prepared, found, grid, told)
        with stage("compare", stages):
            scans = joint.scans | {
                s: _scan(given[s], found.placed[s], grid) for s in range(len(given)) if s not in joint.scans
            }
            agreements = [
                Agreement.of(scans[s], given[s], found.placed[s].weights, joint.mean, joint.image)
                for s in range(len(given))
            ]
            own = given[found.reference]
            inside = _on_grid(own.inside, own.grid, grid)
            move = Move.of(joint.mean, joint.image, joint.std, grid, sigma=own.sigma, mask=inside)
    record = {
        **_common_facts(prepared.estimates[found.reference].record, options),
        "OutputZooms": [round(z, 4) for z in grid.zooms],
        "OutputShape": list(grid.shape),
        "Lambda": (PRIOR.tau / own.sigma) ** 2,
        "DataConsistency": {
            **consistency_facts([(agreements[s], found.placed[s]) for s in found.used]),
            "Projection": move.record(),
        },
        **_uncertainty_facts(joint.std, inside),
        "Joined": {
            "Reference": found.reference,
            "Turns": found.turns,
            "Prior": {"Tau": PRIOR.tau, "Rho": PRIOR.rho},
            "Scans": [
                scan_facts(str(path), given[s], found, s, prepared.estimates[s].record, agreements[s])
                for s, path in enumerate(images)
            ],
        },
        "Stages": stages,
        "Seconds": total.seconds,
        "PeakMemoryGB": max(one["PeakMemoryGB"] for one in stages),
        "Warnings": [
            f"{images[s]} is left out: {placed.reason}" for s, placed in enumerate(found.placed) if placed.reason
        ],
    }
    like, level = nib.load(images[found.reference]), prepared.level
    return JointResult(
        image=image_like(joint.image.numpy() * level, grid.affine, like),
        seen=image_like(joint.seen.numpy().astype(np.uint8), grid.affine, like),
        uncertainty=None if joint.std is None else image_like(joint.std.numpy() * level, grid.affine, like),
        residuals=tuple(
            image_like(one.output.residual.numpy(), given[s].grid.affine, nib.load(path))
            for s, (path, one) in enumerate(zip(images, agreements, strict=True))
        ),
        record=json.loads(json.dumps(record)),
    )


def _common_facts(record: Mapping[str, Any], options: SROptions) -> dict[str, Any]:
    """Return what is told of a joint image as of one scan: model and machine, and the input of the reference."""
    model = get_model(options.model)
    return {
        **{key: record[key] for key in _OF_THE_REFERENCE},
        "Version": __version__,
        "Model": model.name,
        "WeightsSHA256": model.card.weights_sha256,
        "RandomSeed": options.random_seed,
        "Device": "cpu",
        "Precision": "float32",
        "Threads": torch.get_num_threads(),
    }


def _scan(given: Given, placed: Placed, grid: Grid) -> Scan:
    return placed_scan(given, placed, ScanOperator(given.grid, grid, given.psf, placed.position), given.sigma)


def _on_grid(mask: NDArray[np.bool_], grid: Grid, target: Grid) -> NDArray[np.bool_]:
    """Bring a mask to a grid on the same axes, whatever their centres; outside of its own there is nothing."""
    aligned = np.linalg.inv(grid.affine) @ target.affine
    for axis in range(3):
        places = np.rint(np.arange(target.shape[axis]) * aligned[axis, axis] + aligned[axis, 3]).astype(int)
        known = (places >= 0) & (places < grid.shape[axis])
        mask = np.take(mask, np.clip(places, 0, grid.shape[axis] - 1), axis=axis)
        mask &= np.expand_dims(known, [a for a in range(3) if a != axis])
    return mask


def _uncertainty_facts(std: torch.Tensor | None, inside: NDArray[np.bool_]) -> dict[str, Any]:
    """Median standard deviation in the head, in per cent of the 99th percentile, and what it was calibrated on."""
    if std is None:
        return {}
    return {
        "Uncertainty": {"MedianPercent": 100 * float(std[torch.from_numpy(inside)].median())},
        "UncertaintyCalibration": {"Temperature": TEMPERATURE, "Contrasts": ["T1w"], "Coverage": {}},
    }


def prepare(
    images: Sequence[str | Path],
    options: SROptions,
    *,
    metadata: Sequence[Mapping[str, Any] | None] | None = None,
    masks: Sequence[str | Path | None] | None = None,
    alone: Sequence[Alone] | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Super-resolve each scan alone, or read what was made of it before; parameters as for :func:`join`."""
    count = len(images)
    metadata, masks = metadata or [None] * count, masks or [None] * count
    estimates: list[Estimate] = []
    given: list[Given] = []
    level = 0.0
    for number, (path, facts, mask) in enumerate(zip(images, metadata, masks, strict=True)):
        if alone is None:
            result = super_resolve(path, options, metadata=facts, mask=mask)
            own = Alone(result.image, result.uncertainty, result.record)
        else:
            own = alone[number]
        level = level or 100 * own.record["NoiseStd"] / own.record["NoisePercent"]
        estimates.append(_estimate(own, level))
        given.append(_given(path, mask, own.record, level))
        (progress or silent)("each scan", (number + 1) / count)
    return Prepared(tuple(given), tuple(estimates), level)


def _estimate(alone: Alone, level: float) -> Estimate:
    std = alone.uncertainty
    return Estimate(
        Grid.from_image(alone.image),
        np.asarray(alone.image.dataobj, dtype=np.float32) / np.float32(level),
        None if std is None else np.asarray(std.dataobj, dtype=np.float32) / np.float32(level),
        alone.record,
    )


def _given(path: str | Path, mask: str | Path | None, record: Mapping[str, Any], level: float) -> Given:
    # Without its faults, as the engine reads a scan alone: they would pull the image of all.
    scan = Reading.of(path, mask)
    text = ",".join(f"{axis['Kind']}:{axis['FWHM']}" for axis in record["PSF"])
    scaled = scan.values.data / np.float32(level)
    return Given(scaled, scan.grid, PSF.parse(text, scan.grid.zooms), scan.inside, record["NoiseStd"] / level)


def _nothing_fits(images: Sequence[str | Path], found: Alternation) -> str:
    reasons = "; ".join(f"{Path(images[s]).name}: {one.reason}" for s, one in enumerate(found.placed) if one.reason)
    return f"{APART} ({reasons}); give scans of one contrast and head"


def _common_grid(given: Sequence[Given], found: Alternation, resolution: float) -> Grid:
    """Grid of the reference, widened by whole voxels to hold the heads of all scans."""
    own = given[found.reference].grid.isotropic(resolution)
    low, high = np.zeros(3), np.array(own.shape) - 1.0
    for s in found.used:
        to_voxels = np.linalg.inv(found.placed[s].position @ own.affine) @ given[s].grid.affine
        places = apply_affine(to_voxels, np.argwhere(given[s].inside))
        margin = _MARGIN_MM / resolution
        low, high = np.minimum(low, places.min(axis=0) - margin), np.maximum(high, places.max(axis=0) + margin)
    first = np.floor(low).astype(int)
    affine = own.affine.copy()
    affine[:3, 3] = apply_affine(own.affine, first)
    size = np.ceil(high).astype(int) + 1 - first
    return Grid((int(size[0]), int(size[1]), int(size[2])), affine)


def reconstruct(prepared: Prepared, found: Alternation, grid: Grid, progress: Progress | None = None) -> Joint:
    """Average the estimates of the scans that are used, and correct the mean by their data.

    Parameters
    ----------
    prepared
        From :func:`prepare`.
    found
        From :func:`.alternate.place`.
    grid
        Grid of the joint image.
    progress
        As for :func:`join`.
    """
    told, given = progress or silent, prepared.given
    operators = {s: ScanOperator(given[s].grid, grid, given[s].psf, found.placed[s].position) for s in found.used}
    covered = [believed_by(operator, given[s].slice_axis, found.placed[s].weights) for s, operator in operators.items()]
    moved = [brought(prepared.estimates[s], given[s], found.placed[s], grid) for s in found.used]
    told("mean", 0.5)
    start = trusted_mean([image for image, _ in moved], list(operators.values()), covered).clamp_(min=0)
    stds = [std for _, std in moved if std is not None]
    std = least(stds, covered).mul_(TEMPERATURE) if len(stds) == len(moved) else None
    del moved
    told("mean", 1.0)
    measured_grid = _measured_grid(grid, [given[s].grid for s in found.used])
    change = _change(start, grid, [_scan(given[s], found.placed[s], measured_grid) for s in found.used], told)
    image = change.add_(start).clamp_(min=0)
    scans = {s: placed_scan(given[s], found.placed[s], operator, given[s].sigma) for s, operator in operators.items()}
    return Joint(image, start, std, torch.stack(covered).sum(dim=0), scans)


def _measured_grid(grid: Grid, scans: Sequence[Grid]) -> Grid:
    """Grid that holds all that scans measured: the data say nothing of finer detail, and take longer on finer grids."""
    finest = min(min(scan.zooms) for scan in scans)
    return grid if finest < _WORTH * grid.zooms[0] else grid.isotropic(finest)


def _change(start: torch.Tensor, grid: Grid, scans: Sequence[Scan], told: Progress) -> torch.Tensor:
    """By what the data of the scans, on the grid that holds what they measured, correct an image on a finer one."""
    coarse = scans[0].operator.target
    axis = AxisPSF("kspace", coarse.zooms[0])
    profile = PSF((axis, axis, axis))
    before = start if coarse is grid else AcquisitionOperator(coarse, grid, profile).forward(start)
    after = agree_with_scans(before, scans, PRIOR, iterations=ITERATIONS, progress=lambda share: told("agree", share))
    change = after.sub_(before)
    return change if coarse is grid else cubic_spline(change, coarse, grid)


def brought(estimate: Estimate, given: Given, placed: Placed, grid: Grid) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Divide the estimate of a scan by its gain, and resample it to the common grid: image and standard deviation."""
    gain = cubic_spline(torch.from_numpy(placed.gain), given.grid, estimate.grid)
    resampling = Resampling(estimate.grid, grid, np.asarray(np.linalg.inv(placed.position), dtype=np.float64))
    image = resampling.forward(torch.from_numpy(estimate.image) / gain)
    std = (
        None
        if estimate.std is None
        else resampling.forward(torch.from_numpy(estimate.std) / gain).clamp_(min=_LEAST_STD)
    )
    return image, std
