"""Acquisition operators of several scans of a head on one target grid.

A scan s sees the image x as

    A_s x = g_s K_s W_s x,

where W_s turns and shifts the target grid onto the isotropic grid of the scan's own axes (:mod:`.resampling`), K_s is
the separable operator of one scan (:class:`..operator.AcquisitionOperator`) and g_s its gain, a number or a smooth
field on the scan's grid. A scan whose axes are those of the target needs no W_s: its matrices are computed for its true
positions.
"""

from __future__ import annotations

import numpy as np
import torch
from attrs import evolve, field, frozen
from numpy.typing import NDArray

from ..grid import Grid
from ..operator import AcquisitionOperator, apply_axes, axis_matrix
from ..psf import PSF
from .resampling import Resampling

Array = NDArray[np.float64]
_STILL_MM = 1e-3


class ScanOperator:
    """Acquisition operator of one scan at its position.

    Parameters
    ----------
    grid
        Grid of the scan.
    target
        Isotropic grid of the joint image; its axes need not be those of the scan.
    psf
        Profile along each axis of the scan.
    position
        4 x 4 rigid matrix from world mm of the target to world mm of the scan.
    device
        Device of the volumes.

    Attributes
    ----------
    turned
        Whether the scan's axes differ from those of the target: by more than 1 micrometre over its field of view.
    """

    def __init__(
        self, grid: Grid, target: Grid, psf: PSF, position: Array | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.grid, self.target, self.psf = grid, target, psf
        self.position = np.eye(4) if position is None else np.asarray(position, dtype=np.float64)
        self.device = torch.device(device)
        aligned = np.linalg.inv(self.position @ target.affine) @ grid.affine
        straight = aligned[:3, :3] * (target.zooms[0] / np.array(grid.zooms))
        reach = max(grid.fov_mm)
        self.turned = bool(np.abs(straight - np.eye(3)).max() * reach > _STILL_MM)
        if self.turned:
            self.fine = grid.isotropic(target.zooms[0])
            self.alone = AcquisitionOperator(grid, self.fine, psf, self.device)
            self.resampling: Resampling | None = Resampling(target, self.fine, self.position, self.device)
            self._matrices = self.alone.matrices
        else:
            self.fine, self.resampling = target, None
            self._matrices = tuple(self._matrix(axis, aligned) for axis in range(3))

    def _matrix(self, axis: int, aligned: Array) -> torch.Tensor:
        spacing = self.target.zooms[axis]
        index = np.arange(self.grid.shape[axis], dtype=np.float64)
        here = (aligned[axis, axis] * index + aligned[axis, 3]) * spacing
        there = np.arange(self.target.shape[axis], dtype=np.float64) * spacing
        matrix = axis_matrix(here, there, self.psf.axes[axis], spacing)
        return torch.from_numpy(matrix.astype(np.float32)).to(self.device)

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Return K W x, of gain 1: from the target to the scan's grid, float32."""
        return self.from_fine_grid(self.on_fine_grid(volume)[0])

    def on_fine_grid(self, volume: torch.Tensor) -> tuple[torch.Tensor, Array]:
        """Return W x, and the affine of its voxels to world mm of the target."""
        if self.resampling is None:
            return volume, self.target.affine
        return self.resampling.forward(volume), np.linalg.inv(self.position) @ self.fine.affine

    def from_fine_grid(self, volume: torch.Tensor) -> torch.Tensor:
        """Apply K to a volume on the fine grid: to the scan's grid, float32."""
        return apply_axes(volume, self._matrices)

    def adjoint(self, acquired: torch.Tensor) -> torch.Tensor:
        """Return W^T K^T y: from the scan's grid to the target, float32."""
        volume = apply_axes(acquired, tuple(matrix.T for matrix in self._matrices))
        return volume if self.resampling is None else self.resampling.adjoint(volume)

    def through(self, reduced: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Return the matrices of K, each multiplied from the left by one more matrix of its axis."""
        first, second, third = (more @ matrix for more, matrix in zip(reduced, self._matrices, strict=True))
        return first, second, third

    def seen(self) -> torch.Tensor:
        """Which voxels of the scan have their centre inside the target's field of view, boolean."""
        return covered_by(self.target, self.grid, np.linalg.inv(self.position)).to(self.device)


def covered_by(grid: Grid, target: Grid, position: NDArray[np.floating]) -> torch.Tensor:
    """Which voxels of the target have their centre in the field of view of a scan.

    Parameters
    ----------
    grid, target
        Grid of the scan, and grid of the voxels that are asked about.
    position
        4 x 4 rigid matrix from world mm of the target to world mm of the scan.

    Returns
    -------
    covered
        Boolean, shape of ``target``.
    """
    whole = np.linalg.inv(grid.affine) @ position @ target.affine
    i, j, k = (np.arange(n, dtype=np.float32) for n in target.shape)
    inside = np.ones(target.shape, dtype=bool)
    for axis, n in enumerate(grid.shape):
        a, b, c, d = (np.float32(value) for value in whole[axis])
        place = a * i[:, None, None] + b * j[:, None] + c * k + d
        inside &= (place > -0.5) & (place < n - 0.5)
    return torch.from_numpy(inside)


@frozen(eq=False)
class Scan:
    """A scan as the joint reconstruction sees it.

    Parameters
    ----------
    acquired
        float32 on its own grid.
    operator
        Its acquisition operator at its position.
    sigma
        Standard deviation of its noise, in the units of ``acquired``.
    gain
        Factor by which it is brighter than the joint image: a number, or a field on its grid.
    weight
        Weight of each voxel, 0 to 1, broadcast to its grid.
    """

    acquired: torch.Tensor
    operator: ScanOperator
    sigma: float
    gain: torch.Tensor = field(factory=lambda: torch.ones(()))
    weight: torch.Tensor = field(factory=lambda: torch.ones(()))

    def predicted(self, volume: torch.Tensor) -> torch.Tensor:
        """Return A_s x."""
        return self.operator.forward(volume).mul_(self.gain)

    def back(self, acquired: torch.Tensor) -> torch.Tensor:
        """Return A_s^T y."""
        return self.operator.adjoint(acquired * self.gain)

    def moved(self, operator: ScanOperator) -> Scan:
        """Return the scan with another operator."""
        return evolve(self, operator=operator)
