"""Inputs of the learned models: the scan on the target grid, padded, and a weight that is 1 in the head."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from attrs import evolve, frozen
from torch.nn import functional

from ..interpolation import spline_matrix
from ..operator import AcquisitionOperator, apply_axes, axis_matrix
from ..psf import AxisPSF
from ..windows import Box
from .acquisition import GUIDANCE, acquisition_vector, axis_order
from .base import Problem
from .network import data_correction

FLIPS = tuple(tuple(axis for axis in range(3) if turn[axis]) for turn in product((False, True), repeat=3))
"""Axes that are reversed in each of the eight flips of a volume; the first flip reverses none."""
_HEAD_LEVEL = 0.05  # of the 99th percentile: below is background
_CELL = 8  # voxels per side of the cells that hold a part of the head or do not


@frozen(eq=False)
class Inputs:
    """Volumes on the target grid, float32, axes in the order of the network, padded at their ends.

    Parameters
    ----------
    image
        The interpolated scan.
    correction
        Its linear correction by the data (:func:`.network.data_correction`).
    head
        Weight of each voxel: 1 in the head, falling to 0 around it (:func:`head_weight`).
    maps
        Guidance maps by name; absent maps are left out.
    acquisition
        Vector from :func:`.acquisition.acquisition_vector`.
    shape
        Shape of the target grid in the order of the network, without the padding.
    order
        Order of the axes, from :func:`.acquisition.axis_order`.
    """

    image: torch.Tensor
    correction: torch.Tensor
    head: torch.Tensor
    maps: dict[str, torch.Tensor]
    acquisition: torch.Tensor
    shape: tuple[int, int, int]
    order: tuple[int, int, int]

    @classmethod
    def of(cls, problem: Problem, multiple: int) -> Inputs:
        """Make the inputs of a problem; each axis is padded to a multiple of ``multiple`` voxels."""
        operator = problem.operator
        image = network_image(problem.acquired, operator)
        correction = data_correction(image, problem.acquired, operator.factors(), problem.sigma)
        maps = {name: network_image(problem.guidance[name], operator) for name in GUIDANCE if name in problem.guidance}
        vector = acquisition_vector(
            operator.psf,
            operator.input_grid.zooms,
            operator.target_grid.zooms,
            problem.sigma * _noise_kept(operator),
            [name in maps for name in GUIDANCE],
        )
        order = axis_order(operator.input_grid.zooms, operator.target_grid.zooms)
        i, j, k = (image.shape[axis] for axis in order)
        padding = [n for size in (k, j, i) for n in (0, -size % multiple)]

        def padded(volume: torch.Tensor) -> torch.Tensor:
            return functional.pad(volume.permute(order)[None, None], padding, mode="replicate")[0, 0].contiguous()

        head = padded(head_weight(image))
        return cls(
            padded(image),
            padded(correction),
            head,
            {name: padded(volume) for name, volume in maps.items()},
            vector.to(image.device),
            (i, j, k),
            order,
        )

    def channels(self, box: Box | None = None) -> torch.Tensor:
        """Channels of the network in a window, or in the whole volume, (1, 2 + guidance, i, j, k)."""
        where = box or (slice(None),) * 3
        parts = [self.image[where], self.correction[where]]
        absent = torch.zeros_like(parts[0])
        parts += [self.maps[name][where] if name in self.maps else absent for name in GUIDANCE]
        return torch.stack(parts)[None]

    def flipped(self, axes: tuple[int, ...]) -> Inputs:
        """Reverse some axes of the volumes; the vector of the acquisition stays, since it has no direction."""
        if not axes:
            return self
        maps = {name: volume.flip(axes) for name, volume in self.maps.items()}
        image, correction, head = (volume.flip(axes) for volume in (self.image, self.correction, self.head))
        return evolve(self, image=image, correction=correction, head=head, maps=maps)

    def unpadded(self, volume: torch.Tensor) -> torch.Tensor:
        """Cut the padding off a volume, and put its axes back into the order of the image."""
        i, j, k = self.shape
        return volume[:i, :j, :k].permute([self.order.index(axis) for axis in range(3)]).contiguous()


def network_image(volume: torch.Tensor, operator: AcquisitionOperator) -> torch.Tensor:
    """Bring a volume from the input to the target grid as the network expects it.

    Cubic splines interpolate it. Along an axis where the input is finer than the target, splines would alias; a
    low-pass at the target's band limit takes their place.
    """
    source, target = operator.input_grid, operator.target_grid
    matrices = []
    for axis in range(3):
        here, there = source.axis_positions(axis), target.axis_positions(axis)
        zoom, wanted = source.zooms[axis], target.zooms[axis]
        if zoom < 0.99 * wanted:
            matrix = axis_matrix(there, here, AxisPSF("kspace", wanted), zoom)
        else:
            matrix = spline_matrix(here, there)
        matrices.append(torch.from_numpy(matrix.astype(np.float32)).to(volume.device))
    return apply_axes(volume, tuple(matrices))


def _noise_kept(operator: AcquisitionOperator) -> float:
    """Factor by which the low-pass of :func:`network_image` reduces the standard deviation of white noise."""
    pairs = zip(operator.input_grid.zooms, operator.target_grid.zooms, strict=True)
    return float(np.prod([min(1.0, zoom / wanted) ** 0.5 for zoom, wanted in pairs]))


def head_weight(image: torch.Tensor) -> torch.Tensor:
    """Return a weight that is 1 in the head and falls to 0 within two cells of 8 voxels; specks of noise do not count.

    Parameters
    ----------
    image
        Image on the target grid, (i, j, k), in units of its 99th percentile; the head is what is brighter than 0.05.
    """
    solid = functional.avg_pool3d((image > _HEAD_LEVEL)[None, None].float(), 3, stride=1, padding=1) > 0.5
    cells = functional.max_pool3d(solid.float(), _CELL, ceil_mode=True)
    near = functional.max_pool3d(cells, 3, stride=1, padding=1)
    size = [n * _CELL for n in near.shape[2:]]
    smooth = functional.interpolate(near, size=size, mode="trilinear")[0, 0]
    i, j, k = image.shape
    return smooth[:i, :j, :k].contiguous()
