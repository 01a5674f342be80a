"""Description of an acquisition for a network: the order of the axes, and a vector of voxel sizes, profile, noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..psf import PSF

GUIDANCE = ("log_bias", "log_jacobian")
"""Guidance maps in the order of the network's channels, after the :data:`.network.INPUTS`.

``log_bias`` is the logarithm of the bias field that the image was divided by; ``log_jacobian`` that of the determinant
of the Jacobian of the map from corrected to acquired positions, with which the corrected image was multiplied.
"""
CONDITIONS = 3 * 3 + 1 + len(GUIDANCE)
"""Length of the vector that :func:`acquisition_vector` makes."""
_TYPICAL_NOISE = 0.02
_TYPICAL_OCTAVES = {"isotropic": (0.0, 1.8), "slices": (0.8, 3.0)}  # input over target voxel size


def typical_acquisitions(count: int) -> torch.Tensor:
    """Acquisitions that the kernels of a convolution start from, one for each kernel.

    Half of them are isotropic, half have slices along the last axis; their factors are evenly spaced in octaves.

    Returns
    -------
    facts
        float32 (count, :data:`CONDITIONS`), rows as of :func:`acquisition_vector`, with 0 for noise and guidance maps.
    """
    rows = []
    for number in range(count):
        isotropic = number < count // 2
        low, high = _TYPICAL_OCTAVES["isotropic" if isotropic else "slices"]
        first, last = (0, count // 2) if isotropic else (count // 2, count)
        factor = low + (number - first + 0.5) / (last - first) * (high - low)
        in_plane = [factor, factor, 1.0] if isotropic else [0.0, 0.0, 1.0]
        along = [factor, factor, 1.0 if isotropic else -1.0]
        rows.append([*in_plane, *in_plane, *along, *[0.0] * (CONDITIONS - 9)])
    return torch.tensor(rows)


def axis_order(input_zooms: Sequence[float], target_zooms: Sequence[float]) -> tuple[int, int, int]:
    """Order in which the network gets the axes: from the finest to the coarsest input voxel, the slice axis last.

    Input finer than the target counts as equal to it. Equal axes keep their order. Axes that differ only by rounding
    (those of oblique affines do) are equal.
    """
    octaves = [
        round(max(0.0, math.log2(zoom / target)), 3) for zoom, target in zip(input_zooms, target_zooms, strict=True)
    ]
    i, j, k = sorted(range(3), key=octaves.__getitem__)
    return i, j, k


def acquisition_vector(
    psf: PSF, input_zooms: Sequence[float], target_zooms: Sequence[float], sigma: float, present: Sequence[bool]
) -> torch.Tensor:
    """Describe the acquisition to the network.

    Parameters
    ----------
    psf
        Point-spread function, mm.
    input_zooms, target_zooms
        Voxel sizes per axis in mm.
    sigma
        Standard deviation of the noise, in the units of the image that the network sees.
    present
        Whether each guidance map of :data:`GUIDANCE` is there.

    Returns
    -------
    vector
        float32, length :data:`CONDITIONS`: per axis, in the order of :func:`axis_order`, the octaves between target
        voxel and input voxel, between target voxel and PSF width, and whether the profile is a k-space window; then
        noise in octaves of 2 per cent, and the presence flags. Input finer than the target counts as equal to it, since
        the image is low-passed first.
    """
    facts: list[float] = []
    for axis in axis_order(input_zooms, target_zooms):
        profile, target = psf.axes[axis], target_zooms[axis]
        facts += [
            max(0.0, math.log2(input_zooms[axis] / target)),
            max(0.0, math.log2(profile.fwhm / target)),
            1.0 if profile.kind == "kspace" else -1.0,
        ]
    facts.append(math.log2(max(sigma, 1e-4) / _TYPICAL_NOISE))
    facts += [1.0 if there else -1.0 for there in present]
    return torch.tensor(facts, dtype=torch.float32)
