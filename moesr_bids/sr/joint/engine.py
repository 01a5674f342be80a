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
from scipy.spatial.transform import Rotation

from ... import __version__
from ...errors import ImageError
from ...intensities import Intensities
from ...nifti import image_like, open_image, read_voxels
from ...resources import measured
from ..engine import Result, super_resolve
from ..grid import Grid
from ..interpolation import cubic_spline
from ..models import get_model
from ..models.base import Progress, silent
from ..noise import foreground
from ..options import SROptions
from ..psf import PSF
from .alternate import Alternation, Given, Placed, gain_facts, place, placed_scan
from .combine import believed_by, plain_mean, trusted_mean
from .operator import ScanOperator
from .resampling import Resampling
from .solve import Prior, agree_with_scans

# In units of the 99th percentile; chosen on two heads of training with three stacks of 5 mm.
PRIOR = Prior(tau=0.2, rho=0.05)
"""Expected error of the mean of the estimates."""
ITERATIONS = 12
_MARGIN_MM = 5.0
_UNCALIBRATED = (
    "the standard deviation is the mean of those of the scans alone; it was not calibrated for images of several scans"
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
        Mean of the standard deviations of the scans alone, float32, same grid; not calibrated for joined images. None
        if the model predicts none.
    residuals
        Scan minus its prediction from ``image`` in units of its noise, on the grid of each scan in the order given;
        None for scans that were left out.
    record
        JSON-serialisable facts.
    """

    image: nib.Nifti1Image
    seen: nib.Nifti1Image
    uncertainty: nib.Nifti1Image | None
    residuals: tuple[nib.Nifti1Image | None, ...]
    record: dict[str, Any]


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
    """Joint image and its standard deviation, how many scans saw each voxel, and residuals by number of the scan."""

    image: torch.Tensor
    std: torch.Tensor | None
    seen: torch.Tensor
    residuals: dict[int, NDArray[np.float32]]


def join(
    images: Sequence[str | Path],
    options: SROptions | None = None,
    *,
    metadata: Sequence[Mapping[str, Any] | None] | None = None,
    masks: Sequence[str | Path | None] | None = None,
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
    with measured() as total:
        prepared = prepare(images, options, metadata=metadata, masks=masks, progress=told)
        given = prepared.given
        found = place(given)
        told("positions", 1.0)
        if len(found.used) < 2:
            raise ImageError(_nothing_fits(images, found))
        grid = target or _common_grid(given, found, options.resolution)
        joint = reconstruct(prepared, found, grid, told)
    level, std, residuals = prepared.level, joint.std, joint.residuals
    record = {
        "Version": __version__,
        "Model": get_model(options.model).name,
        "WeightsSHA256": get_model(options.model).card.weights_sha256,
        "OutputZooms": [round(z, 4) for z in grid.zooms],
        "OutputShape": list(grid.shape),
        "Reference": str(images[found.reference]),
        "Turns": found.turns,
        "Prior": {"Tau": PRIOR.tau, "Rho": PRIOR.rho},
        "Scans": [
            _scan_facts(str(path), given[s], found, s, prepared.estimates[s].record, residuals.get(s))
            for s, path in enumerate(images)
        ],
        "Seconds": total.seconds,
        "PeakMemoryGB": total.peak_memory_gb,
        "Warnings": [
            f"{images[s]} is left out: {placed.reason}" for s, placed in enumerate(found.placed) if placed.reason
        ]
        + ([] if std is None else [_UNCALIBRATED]),
    }
    like = nib.load(images[found.reference])
    return JointResult(
        image=image_like(joint.image.numpy() * level, grid.affine, like),
        seen=image_like(joint.seen.numpy().astype(np.uint8), grid.affine, like),
        uncertainty=None if std is None else image_like(std.numpy() * level, grid.affine, like),
        residuals=tuple(
            image_like(residuals[s], given[s].grid.affine, nib.load(path)) if s in residuals else None
            for s, path in enumerate(images)
        ),
        record=json.loads(json.dumps(record)),
    )


def prepare(
    images: Sequence[str | Path],
    options: SROptions,
    *,
    metadata: Sequence[Mapping[str, Any] | None] | None = None,
    masks: Sequence[str | Path | None] | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Super-resolve each scan alone; parameters as for :func:`join`."""
    count = len(images)
    metadata, masks = metadata or [None] * count, masks or [None] * count
    estimates: list[Estimate] = []
    given: list[Given] = []
    level = 0.0
    for number, (path, facts, mask) in enumerate(zip(images, metadata, masks, strict=True)):
        result = super_resolve(path, options, metadata=facts, mask=mask)
        level = level or 100 * result.record["NoiseStd"] / result.record["NoisePercent"]
        estimates.append(_estimate(result, level))
        given.append(_given(path, mask, result.record, level))
        (progress or silent)("each scan", (number + 1) / count)
    return Prepared(tuple(given), tuple(estimates), level)


def _estimate(result: Result, level: float) -> Estimate:
    std = result.uncertainty
    return Estimate(
        Grid.from_image(result.image),
        np.asarray(result.image.dataobj, dtype=np.float32) / np.float32(level),
        None if std is None else np.asarray(std.dataobj, dtype=np.float32) / np.float32(level),
        result.record,
    )


def _given(path: str | Path, mask: str | Path | None, record: Mapping[str, Any], level: float) -> Given:
    image, _ = open_image(Path(path))
    # Without its faults, as the engine reads a scan alone: they would pull the image of all.
    data = Intensities.of(read_voxels(image, str(path)), str(path)).data
    inside = foreground(data) if mask is None else read_voxels(open_image(Path(mask))[0], str(mask)) > 0.5
    grid = Grid.from_image(image)
    text = ",".join(f"{axis['Kind']}:{axis['FWHM']}" for axis in record["PSF"])
    scaled = np.asarray(data, dtype=np.float32) / np.float32(level)
    return Given(scaled, grid, PSF.parse(text, grid.zooms), inside, record["NoiseStd"] / level)


def _nothing_fits(images: Sequence[str | Path], found: Alternation) -> str:
    reasons = "; ".join(f"{images[s]}: {placed.reason}" for s, placed in enumerate(found.placed) if placed.reason)
    return (
        f"{images[found.reference]}: no other scan can be joined to it ({reasons}); give scans of one contrast and head"
    )


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
    std = plain_mean(stds, covered) if len(stds) == len(moved) else None
    del moved
    told("mean", 1.0)
    scans = {s: placed_scan(given[s], found.placed[s], operator, given[s].sigma) for s, operator in operators.items()}
    image = agree_with_scans(
        start, list(scans.values()), PRIOR, iterations=ITERATIONS, progress=lambda share: told("agree", share)
    ).clamp_(min=0)
    residuals = {s: ((scan.acquired - scan.predicted(image)) / scan.sigma).numpy() for s, scan in scans.items()}
    return Joint(image, std, torch.stack(covered).sum(dim=0), residuals)


def brought(estimate: Estimate, given: Given, placed: Placed, grid: Grid) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Divide the estimate of a scan by its gain, and resample it to the common grid: image and standard deviation."""
    gain = cubic_spline(torch.from_numpy(placed.gain), given.grid, estimate.grid)
    resampling = Resampling(estimate.grid, grid, np.asarray(np.linalg.inv(placed.position), dtype=np.float64))
    image = resampling.forward(torch.from_numpy(estimate.image) / gain)
    std = None if estimate.std is None else resampling.forward(torch.from_numpy(estimate.std) / gain).clamp_(min=0)
    return image, std


def _scan_facts(
    path: str,
    given: Given,
    found: Alternation,
    s: int,
    record: Mapping[str, Any],
    residual: NDArray[np.float32] | None,
) -> dict[str, Any]:
    placed = found.placed[s]
    turn = np.rad2deg(Rotation.from_matrix(placed.position[:3, :3]).magnitude())
    shift = apply_affine(placed.position, found.centre) - found.centre
    facts: dict[str, Any] = {
        "Source": path,
        "Used": not placed.reason,
        "Position": np.round(placed.position, 6).tolist(),
        "RotationDegrees": round(float(turn), 3),
        "TranslationMM": round(float(np.linalg.norm(shift)), 3),
        "Agreement": round(placed.agreement, 3),
        "PSF": record["PSF"],
        "NoiseStd": record["NoiseStd"],
    }
    if placed.reason:
        return {**facts, "Reason": placed.reason}
    doubted = np.flatnonzero(placed.weights < 1)
    facts |= {
        "LastMoveMM": round(placed.moved, 3),
        "Gain": gain_facts(placed, given),
        "SliceAxis": "ijk"[given.slice_axis],
        "SliceWeights": {str(n): round(float(placed.weights[n]), 3) for n in doubted},
    }
    if residual is not None:
        believed = np.moveaxis(residual, given.slice_axis, -1)[..., placed.weights == 1]
        inside = np.moveaxis(given.inside, given.slice_axis, -1)[..., placed.weights == 1]
        facts["ResidualStd"] = round(float(np.sqrt(np.mean(believed[inside] ** 2))), 3)
    return facts
