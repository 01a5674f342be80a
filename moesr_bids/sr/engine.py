"""Super-resolution of one image: noise, model, its consistency with the data, projection onto them, record."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from attrs import evolve, frozen
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from .. import __version__
from ..errors import ImageError
from ..intensities import Intensities
from ..nifti import image_like
from ..resources import available_memory_gb, measured
from .consistency import Misfit, Move
from .cost import window_voxels
from .device import choose_device, device_name, full_memory_told
from .grid import Grid
from .models import get_model, refuse_unused
from .models.base import Model, Problem, Progress, Reconstruction, silent
from .noise import estimate_noise, fills_corners
from .operator import AcquisitionOperator, Factors
from .options import SROptions
from .projection import project
from .psf import PSF
from .reading import Reading
from .windows import CPU_WINDOW_VOXELS
from .zerofilling import measured_shares, zero_filled

_SYNTHESIS = "the model translates the contrast: the image is a synthesis, what another scanner might show of this head"
_WAY_OUT = "a coarser --resolution"
_PERCENTILE = 99.0
_FEW_NEGATIVE = 0.01  # share of voxels; images of signed values have more, in air alone or everywhere
# Each of the two projections undoes a part of the other; after four turns little is left to do.
_PROJECTIONS = 4
_NOTHING_KNOWN = 1.0  # standard deviation: as large as the brightest tissue


@frozen(eq=False)
class Result:
    """What `super_resolve` returns.

    Attributes
    ----------
    image : nibabel.Nifti1Image
        Super-resolved image, float32, isotropic, on the axes of the input.
    residual : nibabel.Nifti1Image
        Input minus A(image) on the input grid, in units of the noise, float32.
    uncertainty : nibabel.Nifti1Image or None
        Standard deviation of the error of ``image``, in its units, float32, same grid; None if the model predicts none.
    record : dict
        JSON-serialisable facts (see the ``Moesr`` block of the sidecars).
    maps : dict
        Gate and difference maps of a mixture of experts, float32 on the grid of ``image``, if they were asked for: see
        `models.base.Reconstruction.maps`.

    """

    image: nib.Nifti1Image
    residual: nib.Nifti1Image
    uncertainty: nib.Nifti1Image | None
    record: dict[str, Any]
    maps: dict[str, nib.Nifti1Image]


def super_resolve(
    image: SpatialImage | str | Path,
    options: SROptions | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
    mask: SpatialImage | str | Path | None = None,
    guidance: Mapping[str, SpatialImage | str | Path] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Reconstruct an image on an isotropic grid that agrees with what the scanner measured.

    Parameters
    ----------
    image
        3-D magnitude image, or its path.
    options
        Resolution, model and all else that a user may choose.
    metadata
        BIDS sidecar of the image.
    mask
        Brain mask on the grid of the image, or its path; by default the foreground. Noise and data consistency are
        measured inside it. It does not cut the output.
    guidance
        Maps on the grid of the image, or their paths: ``log_bias``, the natural logarithm of the bias field that was
        removed; ``log_jacobian``, that of the Jacobian determinant of the gradient-nonlinearity correction. The card
        of a model says with which of them it was trained.
    progress
        Called with the name of the step and the share of it that is done.

    Returns
    -------
    Result
        The super-resolved image, its uncertainty, the residual and the record.

    Raises
    ------
    ImageError
        If the image, the mask or a guidance map cannot be used.
    ValueError
        If an option is wrong: an unknown model or device, an option that the model has no use for, an impossible PSF,
        resolution or number of threads, CUDA without a GPU, or a guidance map that the model was not trained with.
    MemoryError
        If the memory of the GPU or of the machine is full.
    """
    options = options or SROptions()
    chosen = get_model(options.model)
    refuse_unused(
        options.model,
        averaged=options.averaged,
        runtime=options.runtime,
        sampling=options.sampling,
        maps=options.maps,
    )
    for key in guidance or {}:
        if key not in chosen.card.guidance:
            known = ", ".join(chosen.card.guidance) or "no map"
            raise ValueError(
                f"model {options.model} was not trained with the guidance map {key!r} but with {known}; leave it out"
            )
    where = choose_device(options.device)
    with measured() as total, _thread_limit(options.threads), full_memory_told(_WAY_OUT):
        stages: list[dict[str, Any]] = []
        with stage("prepare", stages):
            scan = Reading.of(image, mask)
            name, values, data, grid, inside = scan.name, scan.values, scan.values.data, scan.grid, scan.inside
            profile = PSF.parse(options.psf, grid.zooms) if isinstance(options.psf, str) else options.psf
            profile = profile or zero_filled(PSF.from_acquisition(grid.zooms, metadata), data, grid.zooms, inside)
            target = grid.isotropic(options.resolution)
            operator = AcquisitionOperator(grid, target, profile, where)
            shares = measured_shares(profile, grid.zooms)
            noise = estimate_noise(data, inside, zooms=grid.zooms, shares=shares)
            sigma = noise.std
            inside = inside & ~values.outliers  # after the noise: each would cost it all that touches it
            told = {key: scan.map_on_grid(value) for key, value in (guidance or {}).items()}
            scale = float(np.percentile(data[inside], _PERCENTILE))
            if scale <= 0:
                raise ImageError(f"{name}: the image is not positive inside the mask; a magnitude image is needed")
        limit = round(available_memory_gb() if options.memory_gb is None else options.memory_gb, 3)
        window = window_voxels(chosen.card, grid.shape, target.shape, limit)
        shrunk = where.type == "cpu" and window < min(CPU_WINDOW_VOXELS, math.prod(target.shape))
        problem = Problem(
            acquired=torch.from_numpy(data / np.float32(scale)).to(where),
            mask=torch.from_numpy(inside).to(where),
            operator=operator,
            sigma=sigma / scale,
            seed=options.random_seed,
            progress=progress or silent,
            guidance={key: torch.from_numpy(value).to(where) for key, value in told.items()},
            contrast=options.contrast,
            averaged=options.averaged,
            runtime=options.runtime,
            sampling=options.sampling,
            maps=options.maps,
            window=window,
        )
        with stage("reconstruct", stages):
            reconstruction, mended = _usable(chosen.reconstruct(problem), name)
        with stage("project", stages):
            factors = operator.factors()
            non_negative = _is_magnitude(data)
            own = reconstruction.image.clamp_(min=0) if non_negative else reconstruction.image
            problem = _without_faults(problem, own, values.outliers)
            compare = partial(Misfit.of, acquired=problem.acquired, operator=operator, sigma=problem.sigma, mask=inside)
            before = compare(own)
            volume, lam = _agree_with_data(chosen, problem, own, factors, non_negative=non_negative)
            after = compare(volume) if lam > 0 else before
            move = Move.of(
                own, volume, reconstruction.std, target, sigma=problem.sigma, mask=grid.nearest(inside, target)
            )
            residual, beyond_grid = after.residual.cpu().numpy(), after.beyond_grid_std
        facts = {
            "Version": __version__,
            "Model": chosen.name,
            "WeightsSHA256": chosen.card.weights_sha256,
            "RandomSeed": options.random_seed,
            "Device": device_name(where),
            "Precision": "float32",
            "Threads": torch.get_num_threads(),
            **reconstruction.facts,
            **({"Synthesis": True} if chosen.card.synthesis else {}),
            # Windows change the rounding: a repetition needs the same.
            **({"MemoryLimitGB": limit} if shrunk else {}),
            "PSF": profile.record(),
            "PSFReason": profile.reason,
            "InputZooms": [round(z, 4) for z in grid.zooms],
            "InputShape": list(grid.shape),
            "OutputZooms": [round(z, 4) for z in target.zooms],
            "OutputShape": list(target.shape),
            "NoiseStd": sigma,
            "NoiseRange": [noise.lowest, noise.highest],
            "NoisePercent": 100 * sigma / scale,
            "OutlierVoxels": int(np.count_nonzero(values.outliers)),
            "BackgroundOffset": values.offset,
            "Lambda": lam,
            "DataConsistency": {
                "ResidualStd": after.std,
                "FractionBeyond3": after.fraction_beyond3,
                "BeyondGridStd": beyond_grid,
                # Below 1 in zero-filled scans.
                "NoiseAloneStd": round(math.sqrt(math.prod(shares)), 4),
                "Model": before.record(),
                "Projection": move.record(),
            },
            "Warnings": [
                *scan.notes,
                *values.notes,
                *([_SYNTHESIS] if chosen.card.synthesis else []),
                *mended,
                *_warnings(grid, target, profile, beyond_grid, None if mask is not None else inside),
            ],
        }
        output = _with_faults(volume.mul_(scale).cpu().numpy(), values, operator)
        facts |= _uncertainty_facts(reconstruction.std, operator, inside)
        std = None if reconstruction.std is None else reconstruction.std.mul_(scale).cpu().numpy()
    facts |= {"Stages": stages, "Seconds": total.seconds, "PeakMemoryGB": max(s["PeakMemoryGB"] for s in stages)}
    return Result(
        image=_nifti(output, target.affine, scan.image, f"moesr {chosen.name} {options.resolution:g} mm"),
        residual=_nifti(residual, scan.image.affine, scan.image, "input - A(output), noise units"),
        uncertainty=None if std is None else _nifti(std, target.affine, scan.image, "standard deviation of the error"),
        record=json.loads(json.dumps(facts)),
        maps={
            key: _nifti(
                (volume if key.startswith("gate") else volume * scale).cpu().numpy(), target.affine, scan.image, key
            )
            for key, volume in reconstruction.maps.items()
        },
    )


def _without_faults(problem: Problem, image: torch.Tensor, outliers: NDArray[np.bool_]) -> Problem:
    """Replace faulty voxels of the scan by what A sees of the image there, so that they do not pull the projection."""
    if not outliers.any():
        return problem
    faulty = torch.from_numpy(outliers).to(image.device)
    return evolve(problem, acquired=torch.where(faulty, problem.operator.forward(image), problem.acquired))


def _with_faults(
    output: NDArray[np.float32], values: Intensities, operator: AcquisitionOperator
) -> NDArray[np.float32]:
    """Put the faulty voxels of the input into the output as they were."""
    if values.outliers.any():
        source, target = operator.input_grid, operator.target_grid
        faulty = source.nearest(values.outliers, target)
        output[faulty] = source.nearest(values.raw, target)[faulty]
    return output


def _usable(found: Reconstruction, name: str) -> tuple[Reconstruction, list[str]]:
    """Mend voxels that are not finite in the maps beside the image, and return a note of it.

    Raises
    ------
    ImageError
        If the image itself is not finite.
    """
    if not found.image.isfinite().all():
        raise ImageError(f"{name}: the model's image has voxels that are NaN or infinite; try another model")
    notes: list[str] = []
    std = None if found.std is None else _finite("uncertainty", found.std, _NOTHING_KNOWN, notes)
    maps = {key: _finite(key, volume, 0.0, notes) for key, volume in found.maps.items()}
    return evolve(found, std=std, maps=maps), notes


def _finite(key: str, volume: torch.Tensor, value: float, notes: list[str]) -> torch.Tensor:
    """Replace voxels of a map that are not finite by ``value``, and add a note of it."""
    faulty = ~volume.isfinite()
    count = int(faulty.sum())
    if count == 0:
        return volume
    notes.append(f"{count} voxels of the map {key} were NaN or infinite; nothing is known of them")
    return volume.masked_fill(faulty, value)


def _agree_with_data(
    model: Model, problem: Problem, volume: torch.Tensor, factors: Factors, *, non_negative: bool
) -> tuple[torch.Tensor, float]:
    """Project onto the data and onto the non-negative images in turn, until both hold or four turns are over.

    Returns the image and the largest lambda; 0 if the image agreed with the data already.
    """
    problem.progress("project", 0.0)
    lam = 0.0
    if model.card.projected:
        for _ in range(_PROJECTIONS if non_negative else 1):
            projection = project(volume, problem.acquired, factors, sigma=problem.sigma, mask=problem.mask)
            if projection.lam == 0:
                break
            volume, lam = projection.image, max(lam, projection.lam)
            if non_negative:
                volume = volume.clamp_(min=0)
    problem.progress("project", 1.0)
    return volume, lam


def _uncertainty_facts(
    std: torch.Tensor | None, operator: AcquisitionOperator, inside: NDArray[np.bool_]
) -> dict[str, Any]:
    """Median standard deviation inside the mask, seen on the input grid, in per cent of the 99th percentile."""
    if std is None:
        return {}
    median = float(np.median(operator.forward(std).cpu().numpy()[inside]))
    return {"Uncertainty": {"MedianPercent": 100 * median}}


def _is_magnitude(data: NDArray[np.float32]) -> bool:
    """Whether an image holds magnitudes: a few faulty or rounded voxels below 0 are allowed."""
    return bool(np.mean(data < 0) < _FEW_NEGATIVE)


def _warnings(
    grid: Grid, target: Grid, psf: PSF, beyond_grid: float, foreground_alone: NDArray[np.bool_] | None
) -> list[str]:
    warnings = []
    finer = [
        f"{axis} ({zoom:.3g} mm)"
        for axis, zoom, wanted in zip("ijk", grid.zooms, target.zooms, strict=True)
        if zoom < wanted * 0.99
    ]
    if finer:
        warnings.append(
            f"the input is finer than the output of {target.zooms[0]:.3g} mm along {', '.join(finer)}: what the output "
            f"cannot hold is {beyond_grid:.2g} times the noise"
        )
    for axis, profile, zoom in zip("ijk", psf.axes, grid.zooms, strict=True):
        if profile.kind != "kspace" and profile.fwhm < 0.75 * zoom:
            gap = zoom - profile.fwhm
            warnings.append(f"gaps of {gap:.2g} mm between the slices along {axis}: what lies there is not measured")
    if foreground_alone is not None:
        warnings.append("no brain mask: noise and data consistency were measured in the foreground")
        if fills_corners(foreground_alone):
            warnings.append(
                "the corners of the field of view are as bright as the head, as air is in MP2RAGE: scale and noise are "
                "those of the air; give a brain mask"
            )
    return warnings


def _nifti(data: NDArray[np.float32], affine: NDArray[np.float64], like: SpatialImage, text: str) -> nib.Nifti1Image:
    image = image_like(np.asarray(data, dtype=np.float32), affine, like)
    image.header["descrip"] = text.encode()[:79]
    return image


@contextmanager
def stage(name: str, stages: list[dict[str, Any]]) -> Iterator[None]:
    """Measure a part of the work, and add what it took to the stages."""
    with measured() as used:
        yield
    stages.append({"Stage": name, "Seconds": used.seconds, "PeakMemoryGB": used.peak_memory_gb})


@contextmanager
def _thread_limit(threads: int | None) -> Iterator[None]:
    """Limit PyTorch's threads inside the context.

    Raises
    ------
    ValueError
        If the number is less than 1.
    """
    before = torch.get_num_threads()
    if threads is not None:
        if threads < 1:
            raise ValueError(f"the number of threads is at least 1, got {threads}")
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
