"""Validation during a training: the gain over interpolation on fixed patches of named participants."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from attrs import evolve

from ..sr.models.network import INPUTS
from ..sr.psf import PSF, AxisPSF
from .acquisition import Contrast, Motion, RandomScan, RicianNoise, Sampling, Scan, SmoothField
from .losses import without_border
from .objectives import Estimator
from .simulation import acquire
from .volumes import Volume, cut_out

_NOISE = 0.02
_FOREGROUND = 0.1
_BORDER = 8  # voxels at the sides of a patch in which a network misses its surroundings


def cases() -> dict[str, Sampling]:
    """k-space window x2, and slices of 4 voxels along each axis, without metadata."""
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


@torch.no_grad()
def validate(
    estimate: Estimator,
    volumes: Sequence[Volume],
    *,
    patch: int,
    margin: int,
    patches: int,
    device: torch.device,
    scan: Scan | None = None,
) -> dict[str, float]:
    """Mean PSNR gain over cubic interpolation in dB, per volume and case, in the foreground of fixed patches.

    The 8 voxels at the sides of a patch do not count: there a network misses its surroundings.

    Parameters
    ----------
    estimate
        From channels and acquisition vector to the residual.
    volumes
        Volumes that were not trained on.
    patch, margin, patches
        Size of a patch, what is cut off around it, and how many there are of each volume.
    device
        Where to simulate.
    scan
        What else happens in the scan; by default nothing.
    """
    plain = scan or plain_scan()
    gains: dict[str, float] = {}
    for volume in volumes:
        parts = volume.tensors(device)
        for name, sampling in cases().items():
            found = []
            for number in range(patches):
                cut = volume.draw(patch + 2 * margin, np.random.default_rng(number))
                sharp = cut_out(parts, cut, cut.matrix(patch + 2 * margin).to(device))
                noise = RicianNoise(_NOISE, _NOISE, number)
                example = acquire(sharp, evolve(plain, sampling=sampling, noise=noise), margin)
                residual = estimate(example.channels[None], example.acquisition[None])
                whole = (example.channels[None], example.sharp[None, None], residual)
                channels, truth, estimated = (without_border(part, _BORDER)[0] for part in whole)
                inside = truth[0] > _FOREGROUND
                before = (channels[0] - truth[0])[inside].square().mean()
                after = (channels[:INPUTS].sum(dim=0) + estimated[0] - truth[0])[inside].square().mean()
                found.append(10 * math.log10(float(before) / float(after)))
            gains[f"{volume.name}_{name}"] = float(np.mean(found))
    return gains
