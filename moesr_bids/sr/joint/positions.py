"""Rigid positions of scans against an image, by Gauss-Newton steps through the acquisition operator.

The image goes through the operator of the scan, so that thick slices are compared with thick slices. A small motion
(shift t, rotation vector w) about the centre c changes the image at p by -grad x . (t + w x (p - c)). The six parts of
this change go through the same blur and sampling as the image; robust least squares (Huber) finds the motion. Scan and
prediction are smoothed, much at first and then less.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from attrs import frozen
from nibabel.affines import apply_affine, from_matvec
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ..grid import Grid
from ..operator import apply_axes
from ..psf import PSF
from .operator import ScanOperator

Array = NDArray[np.float64]

SMOOTHING_MM = (6.0, 3.0, 1.5)
"""Standard deviations of the Gaussians of the levels, coarse to fine."""
_STEPS = 8
_STILL_MM = 0.01
_HUBER = 1.5
_RADIUS_MM = 60.0  # of the ball that stands for a head


def distance(first: Array, second: Array, centre: Array) -> float:
    """Root mean square distance in mm between the points of a head at two positions; a ball of 60 mm radius for it."""
    between = np.linalg.inv(first) @ second
    moved = apply_affine(between, centre) - centre
    # |(R - 1) p|^2 averaged over a ball: (R^2 / 5) |R - 1|^2, Frobenius.
    turn = np.linalg.norm(between[:3, :3] - np.eye(3)) ** 2
    return float(np.sqrt(moved @ moved + _RADIUS_MM**2 / 5 * turn))


def motion(parameters: Sequence[float] | Array, centre: Array) -> Array:
    """Rigid matrix of a shift (mm) and a rotation vector (radians) about a centre."""
    shift, turn = np.asarray(parameters[:3], dtype=np.float64), Rotation.from_rotvec(parameters[3:]).as_matrix()
    return np.asarray(from_matvec(turn, centre + shift - turn @ centre))


def centre_of(inside: NDArray[np.bool_], affine: Array) -> Array:
    """World coordinates of the centre of a mask, mm."""
    return np.asarray(apply_affine(affine, np.argwhere(inside).mean(axis=0)))


@frozen(eq=False)
class Movable:
    """A scan whose position is to be found.

    Parameters
    ----------
    acquired
        float32 on ``grid``.
    grid, psf
        Its grid and point-spread function.
    inside
        Voxels that are compared, boolean on ``grid``.
    weight
        Weight of each voxel, broadcast to ``grid``.
    """

    acquired: torch.Tensor
    grid: Grid
    psf: PSF
    inside: torch.Tensor
    weight: torch.Tensor


def refine(
    image: torch.Tensor,
    target: Grid,
    scan: Movable,
    position: Array,
    centre: Array,
    smoothing: Sequence[float] = SMOOTHING_MM,
) -> tuple[Array, float]:
    """Find the position at which a scan agrees best with an image.

    Parameters
    ----------
    image
        float32 on ``target``.
    target
        Isotropic grid.
    scan
        The scan.
    position
        Start: 4 x 4 rigid matrix from world mm of ``target`` to world mm of the scan.
    centre
        Centre of rotation, world mm of ``target``.
    smoothing
        Standard deviation of the Gaussian of each level in mm, coarse to fine.

    Returns
    -------
    position, correlation
        4 x 4 matrix, and the correlation of scan and prediction at the last level.

    Raises
    ------
    ValueError
        If fewer than 100 voxels of the scan lie inside the image.
    """
    correlation = 0.0
    for sigma in smoothing:
        view = _View.of(scan, sigma)
        for _ in range(_STEPS):
            step, correlation = _step(image, target, scan, view, position, centre)
            moved = motion(step, centre)
            position = position @ moved
            if distance(np.eye(4), moved, centre) < _STILL_MM:
                break
    return position, correlation


@frozen(eq=False)
class _View:
    """A smoothed scan, with only every n-th voxel as far as the smoothing allows, and the matrices that do it."""

    seen: torch.Tensor
    inside: torch.Tensor
    weight: torch.Tensor
    matrices: tuple[torch.Tensor, ...]
    steps: tuple[slice, ...]

    @classmethod
    def of(cls, scan: Movable, sigma: float) -> _View:
        steps = tuple(slice(None, None, max(1, int(sigma / zoom))) for zoom in scan.grid.zooms)
        matrices = tuple(_gaussian(scan.grid, axis, sigma)[steps[axis]] for axis in range(3))
        weight = scan.weight.expand(scan.grid.shape)[steps]
        return cls(apply_axes(scan.acquired, matrices), scan.inside[steps], weight, matrices, steps)


def _gaussian(grid: Grid, axis: int, sigma: float) -> torch.Tensor:
    """Matrix that smooths along an axis; its rows sum to 1."""
    places = grid.axis_positions(axis)
    matrix = np.exp(-0.5 * ((places[:, None] - places) / sigma) ** 2)
    return torch.from_numpy((matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32))


def _step(
    image: torch.Tensor, target: Grid, scan: Movable, view: _View, position: Array, centre: Array
) -> tuple[Array, float]:
    operator = ScanOperator(scan.grid, target, scan.psf, position)
    fine, affine = operator.on_fine_grid(image)
    matrices = operator.through(view.matrices)
    predicted = apply_axes(fine, matrices)
    where = view.inside & operator.seen()[view.steps]
    here, there = view.seen[where].double(), predicted[where].double()
    if len(here) < 100:
        raise ValueError("the scan lies outside of the image")
    weight = view.weight[where].double()
    gain = float((weight * here * there).sum() / (weight * there * there).sum().clamp(min=1e-12))
    residual = here - gain * there
    scale = _HUBER * 1.4826 * float(residual.abs().median()) + 1e-12
    weight = weight / (residual.abs() / scale).clamp(min=1)
    columns = [there]
    for part in _motions(fine, affine, centre):
        columns.append(gain * apply_axes(part, matrices)[where].double())
    design = torch.stack(columns, dim=1)
    normal = (design.T * weight) @ design
    solution = np.linalg.lstsq(normal.numpy(), ((design.T * weight) @ residual).numpy(), rcond=1e-10)[0]
    return solution[1:], float(np.corrcoef(here.numpy(), there.numpy())[0, 1])


def _motions(volume: torch.Tensor, affine: Array, centre: Array) -> list[torch.Tensor]:
    """Change of a volume by each of three shifts (per mm) and three rotations (per radian) about a centre."""
    axes = affine[:3, :3]
    slopes = torch.gradient(volume)
    inverse = np.linalg.inv(axes)
    gradient = [sum(slopes[axis] * float(inverse[axis, world]) for axis in range(3)) for world in range(3)]
    i, j, k = (torch.arange(n, dtype=torch.float32) for n in volume.shape)
    places = [
        i[:, None, None] * float(axes[world, 0])
        + j[:, None] * float(axes[world, 1])
        + k * float(axes[world, 2])
        + float(affine[world, 3] - centre[world])
        for world in range(3)
    ]
    turns = [
        places[(w + 1) % 3] * gradient[(w + 2) % 3] - places[(w + 2) % 3] * gradient[(w + 1) % 3] for w in range(3)
    ]
    return [torch.neg(torch.as_tensor(part)) for part in (*gradient, *turns)]
