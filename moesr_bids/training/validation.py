"""Validation during a training: the gain over interpolation on fixed patches of named participants."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from attrs import evolve

from ..sr.psf import PSF, AxisPSF
from .acquisition import Contrast, Motion, RandomScan, RicianNoise, Sampling, Scan, SmoothField
from .examples import Batch
from .losses import without_border
from .pairs import PairedScan
from .simulation import Example, acquire
from .volumes import TrainingVolume, cut_out

Estimator = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Function from channels and acquisition vectors to the residual over image and correction, (batch, 1, i, j, k)."""
_NOISE = 0.02
_FOREGROUND = 0.1
_BORDER = 8  # voxels at each side of a patch where a network lacks its surroundings


def cases() -> dict[str, Sampling]:
    """Return the samplings of the validation by name: k-space window x2, and slices of 4 voxels along each axis."""
    chosen = {"kspace2": (2.0, 2.0, 2.0), **{f"slices4{'ijk'[a]}": _along(a, 4.0) for a in range(3)}}
    samplings = {}
    for name, zooms in chosen.items():
        i, j, k = (AxisPSF("gaussian" if z == 4.0 else "kspace", z) for z in zooms)
        psf = PSF((i, j, k), "validation")
        samplings[name] = Sampling(zooms, [(z - 1) / 2 for z in zooms], psf, psf)
    return samplings


def _along(axis: int, thickness: float) -> tuple[float, float, float]:
    zooms = [1.0, 1.0, 1.0]
    zooms[axis] = thickness
    return zooms[0], zooms[1], zooms[2]


def _along_sharp_axes(sampling: Sampling, detail: Sequence[float]) -> Sampling:
    """Return the sampling for a volume with detail of these sizes: coarse only along its sharp axes."""
    zooms = [zoom if size == 1 else 1.0 for zoom, size in zip(sampling.zooms, detail, strict=True)]
    i, j, k = (
        profile if size == 1 else AxisPSF("kspace", 1.0)
        for profile, size in zip(sampling.psf.axes, detail, strict=True)
    )
    psf = PSF((i, j, k), sampling.psf.reason)
    return Sampling(zooms, [(zoom - 1) / 2 for zoom in zooms], psf, psf)


def plain_scan() -> Scan:
    """Return a scan without contrast change, fields and motion; :func:`validate` sets its sampling and noise."""
    nothing = SmoothField([0.0] * 19, False)
    return evolve(
        RandomScan().sample(np.random.default_rng(0)),
        contrast=Contrast(1.0),
        bias=nothing,
        jacobian=nothing,
        motion=Motion(0, 1, [0.0]),
    )


def simulated(
    volume: TrainingVolume, *, patch: int, margin: int, patches: int, device: torch.device, scan: Scan | None = None
) -> Iterator[tuple[str, list[Example]]]:
    """Yield the name of each case and its examples, of fixed patches of a volume; parameters as of :func:`validate`."""
    plain, parts = scan or plain_scan(), volume.tensors(device)
    for name, sampling in cases().items():
        examples = []
        for number in range(patches):
            cut = volume.draw(patch + 2 * margin, np.random.default_rng(number))
            seen = _along_sharp_axes(sampling, cut.detail)
            if max(seen.zooms) == 1:
                continue
            sharp = cut_out(parts, cut, cut.matrix(patch + 2 * margin).to(device))
            noise = RicianNoise(_NOISE, _NOISE, number)
            examples.append(acquire(sharp, evolve(plain, sampling=seen, noise=noise, detail=cut.detail), margin))
        if examples:
            yield f"{volume.name}_{name}", examples


@torch.no_grad()
def validate(
    estimate: Estimator,
    held_out: Sequence[TrainingVolume | PairedScan],
    *,
    patch: int,
    margin: int,
    patches: int,
    device: torch.device,
    scan: Scan | None = None,
) -> dict[str, float]:
    """Mean PSNR gain over cubic interpolation in dB, per volume and case or per pair, in the head of fixed patches.

    The 8 voxels at each side of a patch do not count, because a network lacks its surroundings there. Along an axis
    where a volume is not sharp, the simulated scan is not coarse, and detail finer than the volume's does not count.

    Parameters
    ----------
    estimate
        Function from channels and acquisition vector to the residual.
    held_out
        Volumes and pairs that were not trained on.
    patch, margin, patches
        Voxels per side of a patch, voxels that are cut off each side of it, and number of patches of each volume.
    device
        Device of the simulation.
    scan
        Contrast, fields and motion of the simulated scan; by default none.
    """
    gains: dict[str, float] = {}
    for source in held_out:
        if isinstance(source, PairedScan):
            named: Iterable[tuple[str, list[Example]]] = [(source.name, list(source.fixed(patch, patches, device)))]
        else:
            named = simulated(source, patch=patch, margin=margin, patches=patches, device=device, scan=scan)
        for name, examples in named:
            gains[name] = float(np.mean([_gain(estimate, example) for example in examples]))
    return gains


def _gain(estimate: Estimator, example: Example) -> float:
    """PSNR gain over interpolation in dB, in the foreground of an example."""
    batch = Batch.of([example])
    residual = estimate(batch.channels, batch.acquisition)
    errors = torch.cat([batch.channels[:, :1], batch.start + residual], dim=1) - batch.sharp
    truth, errors = (without_border(part, _BORDER)[0] for part in (batch.sharp, batch.known(errors)))
    before, after = errors[:, truth[0] > _FOREGROUND].square().mean(dim=1)
    return 10 * math.log10(float(before) / float(after))
