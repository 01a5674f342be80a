"""Mean of images of one head, in which each frequency is weighted by how well its scan measured it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .operator import ScanOperator, covered_by

# Chosen on two heads of training with three stacks of 5 mm; values from three to fifty give the same within 0.1 dB.
DISTRUST = 30.0
"""Weight of a frequency that a scan measured fully, over that of one that it did not measure, minus 1."""
NOISE_POWER = 0.02
"""Power of the noise over that of detail: below it a frequency counts as not measured."""


def measured_share(operator: ScanOperator) -> torch.Tensor:
    """Return how well a scan measured each spatial frequency of the target: |H|^2 / (|H|^2 + 0.02), H its profile.

    Returns
    -------
    share
        float32, in the order of :func:`torch.fft.rfftn` of a volume on the target grid.
    """
    shape, zoom = operator.target.shape, operator.target.zooms[0]
    # Cycles per mm along the axes of the target, then of the scan.
    frequencies = [torch.from_numpy(np.fft.fftfreq(n, zoom).astype(np.float32)) for n in shape]
    frequencies[2] = torch.from_numpy(np.fft.rfftfreq(shape[2], zoom).astype(np.float32))
    directions = operator.position[:3, :3] @ (operator.target.affine[:3, :3] / zoom)
    own = (operator.grid.affine[:3, :3] / np.array(operator.grid.zooms)).T @ directions
    transfer = torch.ones(())
    for axis, profile in enumerate(operator.psf.axes):
        f, g, h = (float(own[axis, other]) * frequencies[other] for other in range(3))
        along = (f[:, None, None] + g[:, None] + h).abs()
        # The profile is smooth: a table of it is enough.
        knots = np.linspace(0, float(along.max()) + 1e-6, 4096)
        table = torch.from_numpy(profile.spectrum(knots).astype(np.float32) ** 2)
        transfer = transfer * table[(along / float(knots[1])).round().long()]
    return transfer / (transfer + NOISE_POWER)


def trusted_mean(
    estimates: Sequence[torch.Tensor], operators: Sequence[ScanOperator], covered: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Mean over scans at each frequency f, with weights 1 / (1 + 30 (1 - share_s(f))).

    Parameters
    ----------
    estimates
        Images on the target grid, one of each scan; float32.
    operators
        Acquisition operators of their scans, in the same order.
    covered
        Voxels of the target that each scan saw, boolean. Elsewhere the mean of the others takes its place.

    Returns
    -------
    mean
        float32 on the target grid.

    Raises
    ------
    ValueError
        If there is no image.
    """
    mean = plain_mean(estimates, covered)
    above = below = None
    for image, operator, part in zip(estimates, operators, covered, strict=True):
        weight = 1 / (1 + DISTRUST * (1 - measured_share(operator)))
        spectrum = torch.fft.rfftn(torch.where(part, image, mean)).mul_(weight)
        above = spectrum if above is None else above.add_(spectrum)
        below = weight if below is None else below.add_(weight)
    if above is None or below is None:
        raise ValueError("there is no image to take the mean of")
    return torch.fft.irfftn(above.div_(below), s=mean.shape)


def believed_by(operator: ScanOperator, axis: int, weights: NDArray[np.float32], least: float = 0.99) -> torch.Tensor:
    """Which voxels of the target lie in the field of view of a scan and between slices of full weight.

    The image that was made of a scan alone shows the faults of a bad slice as far as the slices next to it.

    Parameters
    ----------
    operator
        Acquisition operator of the scan.
    axis
        Array axis across its slices.
    weights
        Weight of each slice, 0 to 1.
    least
        Least weight, interpolated linearly between the slices.

    Returns
    -------
    believed
        Boolean, on the target grid.
    """
    target = operator.target
    covered = covered_by(operator.grid, target, operator.position)
    if weights.min() >= least:
        return covered
    whole = np.linalg.inv(operator.grid.affine) @ operator.position @ target.affine
    a, b, c, d = (np.float32(value) for value in whole[axis])
    i, j, k = (np.arange(n, dtype=np.float32) for n in target.shape)
    place = a * i[:, None, None] + b * j[:, None] + c * k + d
    return covered & torch.from_numpy(np.interp(place, np.arange(len(weights)), weights) >= least)


def least(volumes: Sequence[torch.Tensor], covered: Sequence[torch.Tensor]) -> torch.Tensor:
    """Least of volumes where they are covered; the first one where none is."""
    inside = torch.stack([torch.where(part, v, torch.inf) for v, part in zip(volumes, covered, strict=True)])
    found = inside.amin(dim=0)
    return torch.where(found.isfinite(), found, volumes[0])


def plain_mean(volumes: Sequence[torch.Tensor], covered: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean of volumes where they are covered; the first one where none is."""
    counts, total = torch.zeros_like(volumes[0]), torch.zeros_like(volumes[0])
    for volume, part in zip(volumes, covered, strict=True):
        counts += part
        total += torch.where(part, volume, 0.0)
    return torch.where(counts > 0, total / counts.clamp(min=1), volumes[0])
