"""Lesions of random shape, in the white matter of synthetic volumes and of real scans.

Few scans have lesions. In the others most small bright spots are noise or vessels, so a network trained on these alone
takes contrast from small lesions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray

from .smoothing import box_mean
from .volumes import log_uniform

_ROUGHNESS = 0.25
_MOST = 12  # lesions in a patch
_RADII = (1.0, 8.0)  # voxels
_OBLONG = 0.35  # natural logarithm of the ratio of a radius to their mean, at most
_SOFTEST = 1.0  # width of an edge in mean radii, at most
_EDGE_OF_WHITE = 3  # voxels over which the border of white matter is smoothed
_ALIKE = 0.1  # contrasts of the lesions of a scan differ by up to this share
# Intensity relative to the mean of white matter.
_DARKER, _BRIGHTER = (0.5, 0.95), (1.05, 2.0)

Box = tuple[slice, slice, slice]


@frozen(eq=False)
class RoughBall:
    """An ellipsoid with waves on its surface: ``centre`` and ``radii`` in voxels, and the ``phases`` of the waves."""

    centre: Sequence[float]
    radii: Sequence[float]
    phases: Sequence[float]

    @classmethod
    def draw(cls, size: int, radii: NDArray[np.floating], rng: np.random.Generator) -> RoughBall:
        """Draw place and waves of a ball with these radii in a cube of ``size`` voxels per side."""
        centre, phases = rng.uniform(0, size, size=3), rng.uniform(0, 2 * math.pi, size=3)
        return cls(centre.tolist(), radii.tolist(), phases.tolist())

    @property
    def radius(self) -> float:
        """Geometric mean of the radii."""
        return math.prod(self.radii) ** (1 / 3)

    def box(self, size: int) -> Box:
        """Part of a cube of ``size`` voxels per side that holds the ball with its waves and soft edge."""
        i, j, k = (
            slice(max(0, math.floor(c - 2 * r - 1)), min(size, math.ceil(c + 2 * r + 2)))
            for c, r in zip(self.centre, self.radii, strict=True)
        )
        return i, j, k

    def distance(self, box: Box, device: torch.device) -> torch.Tensor:
        """Squared distance of each voxel of a box to the centre, in radii, with waves: less than 1 inside; float32."""
        parts = []
        for place, c, r, phase in zip(box, self.centre, self.radii, self.phases, strict=True):
            offset = torch.arange(place.start, place.stop, device=device, dtype=torch.float32) - c
            parts.append((offset / r).square() + _ROUGHNESS * torch.sin(offset * (2 * math.pi / (3 * r)) + phase))
        return parts[0][:, None, None] + parts[1][:, None] + parts[2]


@frozen(eq=False)
class PlantedLesion:
    """A lesion to plant: its shape, its intensity relative to white matter, and the width of its edge in voxels."""

    ball: RoughBall
    intensity: float
    edge: float

    def share(self, box: Box, device: torch.device) -> torch.Tensor:
        """Share of the lesion in each voxel of a box, float32."""
        # Near the surface, the squared distance in radii rises by 2 / radius per voxel.
        slope = self.ball.radius / 2 / self.edge
        return (0.5 + (1 - self.ball.distance(box, device)) * slope).clamp(0, 1)


def draw_lesions(size: int, darker: bool, rng: np.random.Generator) -> list[PlantedLesion]:
    """Draw 1 to 12 lesions of one scan for a cube of ``size`` voxels per side, darker or brighter than white matter."""
    low, high = _DARKER if darker else _BRIGHTER
    intensity = rng.uniform(low, high)
    lesions = []
    for _ in range(int(rng.integers(1, _MOST + 1))):
        radii = log_uniform(rng, *_RADII) * np.exp(rng.uniform(-_OBLONG, _OBLONG, size=3))
        ball = RoughBall.draw(size, radii, rng)
        contrast = (intensity - 1) * rng.uniform(1 - _ALIKE, 1 + _ALIKE)
        edge = max(1.0, rng.uniform(0, _SOFTEST) * ball.radius)
        lesions.append(PlantedLesion(ball, float(np.clip(1 + contrast, low, high)), edge))
    return lesions


def plant(patch: torch.Tensor, lesions: Sequence[PlantedLesion]) -> torch.Tensor:
    """Plant lesions into the white matter of a patch.

    Parameters
    ----------
    patch
        float32 (4, n, n, n): the image, and the shares of white matter, cortex and lesions.
    lesions
        All darker or all brighter than white matter; where they overlap, the one that shows most counts.

    Returns
    -------
    patch
        The patch with the lesions in the image and in the last share. It changes only in known white matter, whose
        border is smoothed, so lesions reach one voxel beyond it.
    """
    image, white = patch[:2]
    n, device = image.shape[0], image.device
    level = (image * white).sum() / white.sum().clamp(min=1)
    change, present = torch.zeros_like(image), torch.zeros_like(image)
    for lesion in lesions:
        box = lesion.ball.box(n)
        share = lesion.share(box, device)
        present[box] = torch.maximum(present[box], share)
        contrast = share * (lesion.intensity - 1)
        change[box] = torch.where(contrast.abs() > change[box].abs(), contrast, change[box])
    room = box_mean(white[None, None], _EDGE_OF_WHITE)[0, 0]
    planted = patch.clone()
    planted[0] += change * room * level
    planted[3] = torch.maximum(patch[3], present * room)
    return planted
