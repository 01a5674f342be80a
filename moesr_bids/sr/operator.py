"""The acquisition operator A: how the scanner would see an image of the target grid.

Target and input grid share axes and centre, so A is a Kronecker product of one small dense matrix per axis. An
input voxel at position p (mm) sees, of the band-limited image through the samples at positions t,

    A[p, t] = sum over |f| <= 1 / (2 d) of H(f) cos(2 pi f (p - t)),   rows normalised to sum to 1,

with H the spectrum of the point-spread function and d the spacing of the target. Positions are continuous: any
factor works, on any axis, without a shift. Where the input is finer than the target, the sum ends at the target's own
band limit, so A is band-limited interpolation there and nothing aliases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .grid import Grid
from .psf import PSF, AxisPSF

# Period of the Fourier series over the field of view: twice it, so that opposite faces do not see each other.
_PERIOD = 2.0


def axis_matrix(
    input_positions: NDArray[np.float64], target_positions: NDArray[np.float64], psf: AxisPSF, spacing: float
) -> NDArray[np.float64]:
    """Acquisition matrix of one axis.

    Parameters
    ----------
    input_positions, target_positions
        Voxel centres in mm, in one frame.
    psf
        Profile along the axis.
    spacing
        Distance of the target's voxels in mm.

    Returns
    -------
    matrix
        Shape (n_input, n_target); each row sums to 1.
    """
    both = np.concatenate([input_positions, target_positions])
    period = _PERIOD * (np.ptp(both) + max(spacing, psf.fwhm))
    frequency = np.arange(int(np.floor(period / (2 * spacing) + 1e-9)) + 1) / period
    weight = np.where(frequency > 0, 2.0, 1.0) * psf.spectrum(frequency)
    p, t = (2 * np.pi * np.outer(x, frequency) for x in (input_positions, target_positions))
    matrix = (np.cos(p) * weight) @ np.cos(t).T + (np.sin(p) * weight) @ np.sin(t).T
    return matrix / matrix.sum(axis=1, keepdims=True)


def apply_axes(volume: torch.Tensor, matrices: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Multiply a 3-D volume by one matrix per axis, the axis that shrinks most first.

    Parameters
    ----------
    volume
        Shape (a, b, c).
    matrices
        Shapes (A, a), (B, b), (C, c).

    Returns
    -------
    volume
        Shape (A, B, C).
    """
    order = sorted(range(3), key=lambda axis: matrices[axis].shape[0] / matrices[axis].shape[1])
    for axis in order:
        matrix, (a, b, c) = matrices[axis], volume.shape
        if axis == 0:
            volume = (matrix @ volume.reshape(a, b * c)).reshape(-1, b, c)
        elif axis == 1:
            volume = torch.matmul(matrix, volume)
        else:
            volume = (volume.reshape(a * b, c) @ matrix.T).reshape(a, b, -1)
    return volume


class AcquisitionOperator:
    """Acquisition operator between a target grid and the input grid.

    Parameters
    ----------
    input_grid, target_grid
        Grids with the same axes and centre (see :meth:`Grid.isotropic`).
    psf
        Profile per axis.
    device
        Device of the matrices; volumes given to the operator must be on it.

    Attributes
    ----------
    matrices
        One float32 tensor (n_input, n_target) per axis.
    """

    def __init__(self, input_grid: Grid, target_grid: Grid, psf: PSF, device: torch.device | str = "cpu") -> None:
        self.input_grid, self.target_grid, self.psf = input_grid, target_grid, psf
        self.device = torch.device(device)
        self._exact = tuple(
            axis_matrix(
                input_grid.axis_positions(axis),
                target_grid.axis_positions(axis),
                psf.axes[axis],
                target_grid.zooms[axis],
            )
            for axis in range(3)
        )
        self.matrices = tuple(self._tensor(m) for m in self._exact)
        self._factors: Factors | None = None

    def _tensor(self, array: NDArray[np.float64]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(self.device)

    def forward(self, target: torch.Tensor) -> torch.Tensor:
        """Return A x: target grid to input grid, float32."""
        return apply_axes(target, self.matrices)

    def adjoint(self, acquired: torch.Tensor) -> torch.Tensor:
        """Return A^T y: input grid to target grid, float32."""
        return apply_axes(acquired, tuple(m.T for m in self.matrices))

    def factors(self, box: tuple[slice, slice, slice] | None = None) -> Factors:
        """Thin singular value decomposition of A.

        Parameters
        ----------
        box
            Restrict A to these target voxels and to the input voxels whose centre lies among them.
        """
        if box is None:
            if self._factors is None:
                self._factors = Factors.of(self._exact, self.device)
            return self._factors
        rows = self.input_box(box)
        return Factors.of(tuple(m[r][:, c] for m, r, c in zip(self._exact, rows, box, strict=True)), self.device)

    def input_box(self, box: tuple[slice, slice, slice]) -> tuple[slice, slice, slice]:
        """Input voxels whose centre lies inside a box of target voxels."""
        rows = []
        for axis, columns in enumerate(box):
            inside = self.target_grid.axis_positions(axis)[columns]
            half = self.target_grid.zooms[axis] / 2
            positions = self.input_grid.axis_positions(axis)
            hit = np.flatnonzero((positions >= inside[0] - half) & (positions <= inside[-1] + half))
            rows.append(slice(int(hit[0]), int(hit[-1]) + 1))
        return rows[0], rows[1], rows[2]


def axis_factors(matrix: NDArray[np.float64]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Thin singular value decomposition of the matrix of one axis: U, the values and V, float32."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    keep = s > 1e-6 * s[0]
    left, values, right = (
        torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32)) for part in (u[:, keep], s[keep], vt[keep].T)
    )
    return left, values, right


class Factors:
    """Singular value decomposition A = U S V^T of a Kronecker product, kept per axis.

    ``coefficients`` (U^T y or V^T x) and S have the shape of the ranks (r_i, r_j, r_k).
    """

    def __init__(self, left: tuple[torch.Tensor, ...], values: torch.Tensor, right: tuple[torch.Tensor, ...]) -> None:
        self.left, self.values, self.right = left, values, right
        self._left_t = tuple(m.T.contiguous() for m in left)
        self._right_t = tuple(m.T.contiguous() for m in right)

    @classmethod
    def of(cls, matrices: tuple[NDArray[np.float64], ...], device: torch.device) -> Factors:
        """Decompose one matrix per axis (float64 inside, float32 out)."""
        return cls.joined([tuple(part.to(device) for part in axis_factors(matrix)) for matrix in matrices])

    @classmethod
    def joined(cls, axes: Sequence[tuple[torch.Tensor, ...]]) -> Factors:
        """Join the decompositions of three axes, each from :func:`axis_factors`."""
        left, single, right = zip(*axes, strict=True)
        i, j, k = single
        return cls(left, i[:, None, None] * j[:, None] * k, right)

    def seen_from(self, box: tuple[slice, slice, slice]) -> Factors:
        """Return the same decomposition for the input voxels of a box alone: fewer rows of U."""
        return Factors(tuple(u[b] for u, b in zip(self.left, box, strict=True)), self.values, self.right)

    @property
    def share(self) -> float:
        """Share of the input's degrees of freedom, and so of white noise, that lies inside the range of A."""
        return self.values.numel() / math.prod(u.shape[0] for u in self.left)

    def to_left(self, acquired: torch.Tensor) -> torch.Tensor:
        """Return U^T y."""
        return apply_axes(acquired, self._left_t)

    def from_left(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return U c."""
        return apply_axes(coefficients, self.left)

    def to_right(self, target: torch.Tensor) -> torch.Tensor:
        """Return V^T x."""
        return apply_axes(target, self._right_t)

    def from_right(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return V c."""
        return apply_axes(coefficients, self.right)
