"""Rigid resampling between two grids of one voxel size: band-limited, with an exact adjoint.

The nearest signed permutation of the axes is applied first. The rest of the rotation is a product of four shears,

    M = (I + e_z a^T) (I + e_x b^T) (I + e_y c^T) (I + e_z d^T)

(Chen and Kaufman 2000, "3D volume rotation using shear transformations"; Hao and Shi 2001 for any matrix of determinant
1). Each shifts the lines along one axis, which is a phase in the Fourier transform of that axis. So nothing is blurred,
a rotation there and back gives the image again, and the adjoint is the conjugate phase. An interpolating spline would
weaken the very detail that scans are joined for, and PyTorch has none in three dimensions.
"""

from __future__ import annotations

import math
from itertools import permutations, product

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from scipy.fft import next_fast_len

from ..grid import Grid
from ..operator import apply_axes

Array = NDArray[np.float64]
_STILL_RADIANS = 1e-5  # moves the corner of a head by 2 micrometres
_MARGIN = 6  # voxels around what is needed, for the tails of band-limited interpolation
_NOTHING = 1e-12


@frozen(eq=False)
class Shear:
    """Shift of the lines along ``axis`` by ``slopes`` (dot) the position from the centre, plus ``shift``; voxels."""

    axis: int
    slopes: tuple[float, float, float]
    shift: float = 0.0

    def matrix(self) -> Array:
        """3 x 3 matrix."""
        matrix = np.eye(3)
        matrix[self.axis] += self.slopes
        return matrix


def shears_of(matrix: Array, shift: Array) -> tuple[Shear, ...]:
    """Decompose p -> matrix p + shift, with a rotation matrix, into four shears; the first is applied first.

    Of the six orders of the axes it takes the one whose largest slope is least.
    """
    found = [_shears(matrix, shift, (x, y, z)) for x, y, z in permutations(range(3))]
    possible = [shears for shears in found if shears is not None]
    return min(possible, key=lambda shears: max(abs(s) for shear in shears for s in shear.slopes))


def _shears(m: Array, shift: Array, order: tuple[int, int, int]) -> tuple[Shear, ...] | None:
    x, y, z = order
    d, b, c, a = np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(3)
    d_y = _ratio(m[y, y] - 1, m[y, z])
    if d_y is None:
        return None
    d[y] = d_y
    b[y] = m[x, y] - m[x, z] * d[y]
    d_x = _ratio(m[x, x] - 1 - b[y] * m[y, x], m[x, z] - b[y] * m[y, z])
    if d_x is None:
        return None
    d[x] = d_x
    rest = m.copy()
    rest[:, x] -= m[:, z] * d[x]
    rest[:, y] -= m[:, z] * d[y]
    c[x], c[z] = rest[y, x], rest[y, z]
    b[z] = rest[x, z] - b[y] * c[z]
    a[[x, y]] = np.linalg.solve(rest[np.ix_([x, y], [x, y])].T, rest[z, [x, y]])
    # Each axis is shifted with its last shear; what the following shears would add to the shift is subtracted.
    along_x = shift[x] - b[y] * shift[y]
    along_z = shift[z] - a[x] * shift[x] - a[y] * shift[y]
    plan = ((z, a, along_z), (x, b, along_x), (y, c, shift[y]), (z, d, 0.0))
    return tuple(Shear(axis, (u[0], u[1], u[2]), float(by)) for axis, u, by in plan)


def _ratio(numerator: float, denominator: float) -> float | None:
    if abs(numerator) < _NOTHING:
        return 0.0
    return None if abs(denominator) < _NOTHING else numerator / denominator


def nearest_permutation(matrix: Array) -> Array:
    """Return the signed permutation matrix nearest to an orthogonal matrix, of those with the same determinant."""
    best, most = np.eye(3), -np.inf
    for order in permutations(range(3)):
        for signs in product((1.0, -1.0), repeat=3):
            candidate = np.eye(3)[:, order] * signs
            agreement = float((candidate * matrix).sum())
            if np.linalg.det(candidate) * np.linalg.det(matrix) > 0 and agreement > most + 1e-9:
                best, most = candidate, agreement
    return best


def orthogonal(matrix: Array) -> Array:
    """Return the orthogonal matrix nearest to a matrix."""
    u, _, vt = np.linalg.svd(matrix)
    return np.asarray(u @ vt)


class Resampling:
    """Linear map from volumes on one grid to volumes on another that is turned and shifted against it.

    Beyond the source the image is continued by its outermost voxels.

    Parameters
    ----------
    source, onto
        Grids of one isotropic voxel size.
    position
        4 x 4 rigid matrix from world mm of ``source`` to world mm of ``onto``.
    device
        Device of the volumes.

    Raises
    ------
    ValueError
        If the voxel sizes differ.
    """

    def __init__(self, source: Grid, onto: Grid, position: Array, device: torch.device | str = "cpu") -> None:
        sizes = np.array([source.zooms, onto.zooms])
        if np.ptp(sizes) > 1e-3 * sizes.mean():
            raise ValueError(f"the grids have voxels of {source.zooms} and {onto.zooms} mm: one size is needed")
        self.source, self.onto = source, onto
        self._device = torch.device(device)
        whole = np.linalg.inv(position @ source.affine) @ onto.affine
        turn = orthogonal(whole[:3, :3])
        permutation = nearest_permutation(turn)
        self.matrix = permutation.T @ turn  # from voxels of `onto` to voxels of the source, its axes permuted
        self._order = tuple(int(np.argmax(np.abs(permutation[:, axis]))) for axis in range(3))
        signs = np.array([permutation[self._order[axis], axis] for axis in range(3)])
        shape = np.array([source.shape[axis] for axis in self._order])
        centre = (np.array(onto.shape) - 1) / 2
        seen = (whole @ [*centre, 1.0])[:3][list(self._order)]
        # Voxel of the permuted source that lies on the centre of `onto`; reversed axes count from their other end.
        at = np.where(signs > 0, seen, shape - 1 - seen)
        angle = math.acos(min(1.0, max(-1.0, (np.trace(self.matrix) - 1) / 2)))
        self.turned = angle > _STILL_RADIANS
        self._shears, low, high = self._plan(at - centre)
        self.shape = tuple(next_fast_len(int(n), real=True) for n in high - low)
        self._low = tuple(int(v) for v in low)
        start = -np.rint(at - centre).astype(int) - low
        self._enter = tuple(
            self._tensor(_continued(int(shape[axis]), self.shape[axis], int(start[axis]), bool(signs[axis] < 0)))
            for axis in range(3)
        )
        self._leave = tuple(slice(-v, n - v) for v, n in zip(self._low, onto.shape, strict=True))
        self._phases = [self._phase(shear) for shear in self._shears]

    def _plan(self, offset: Array) -> tuple[tuple[Shear, ...], NDArray[np.int_], NDArray[np.int_]]:
        """Shears, and the box of voxels of ``onto`` that they need."""
        shape = np.array(self.onto.shape)
        part = offset - np.rint(offset)
        matrix = self.matrix if self.turned else np.eye(3)
        if self.turned:
            shears = shears_of(matrix, part)
        else:
            shears = tuple(
                Shear(axis, (0.0, 0.0, 0.0), float(part[axis])) for axis in range(3) if abs(part[axis]) > 1e-9
            )
        centre = (shape - 1) / 2
        corners = np.array(list(product(*((0.0, n - 1.0) for n in shape)))) - centre
        boxes = [corners]
        for shear in reversed(shears):
            corners = corners @ shear.matrix().T
            corners[:, shear.axis] += shear.shift
            boxes.append(corners)
        everything = np.concatenate(boxes) + centre
        low = np.floor(everything.min(axis=0)).astype(int) - _MARGIN
        high = np.ceil(everything.max(axis=0)).astype(int) + 1 + _MARGIN
        return shears, low, high

    def _tensor(self, array: NDArray[np.floating]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(self._device)

    def _phase(self, shear: Shear) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors of exp(2 pi i f (slopes p + shift)) that depend on f and one other axis each."""
        frequency = np.fft.rfftfreq(self.shape[shear.axis])
        first, second = (axis for axis in range(3) if axis != shear.axis)
        factors = []
        for other, shift in ((first, shear.shift), (second, 0.0)):
            distance = np.arange(self.shape[other]) + self._low[other] - (self.onto.shape[other] - 1) / 2
            phase = 2j * np.pi * np.outer(frequency, shear.slopes[other] * distance + shift)
            shape = [1, 1, 1]
            shape[shear.axis], shape[other] = len(frequency), len(distance)
            table = np.exp(phase) if shear.axis < other else np.exp(phase).T
            factors.append(torch.from_numpy(table.reshape(shape).astype(np.complex64)).to(self._device))
        return factors[0], factors[1]

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Resample a float32 volume of ``source`` onto ``onto``."""
        work = apply_axes(volume.permute(self._order), self._enter)
        for shear, phase in zip(self._shears, self._phases, strict=True):
            work = self._shifted(work, shear.axis, phase, conjugate=False)
        return work[self._leave].contiguous()

    def adjoint(self, volume: torch.Tensor) -> torch.Tensor:
        """Apply the transpose of :meth:`forward`: from ``onto`` to ``source``."""
        work = torch.zeros(self.shape, dtype=volume.dtype, device=volume.device)
        work[self._leave] = volume
        for shear, phase in zip(reversed(self._shears), reversed(self._phases), strict=True):
            work = self._shifted(work, shear.axis, phase, conjugate=True)
        back = apply_axes(work, tuple(matrix.T for matrix in self._enter))
        inverse = [self._order.index(axis) for axis in range(3)]
        return back.permute(inverse).contiguous()

    def _shifted(
        self, work: torch.Tensor, axis: int, phase: tuple[torch.Tensor, torch.Tensor], *, conjugate: bool
    ) -> torch.Tensor:
        spectrum = torch.fft.rfft(work, dim=axis)
        for factor in phase:
            spectrum.mul_(factor.conj() if conjugate else factor)
        return torch.fft.irfft(spectrum, n=self.shape[axis], dim=axis)


def _continued(n: int, length: int, start: int, reverse: bool) -> Array:
    """Matrix (length, n) that puts n samples into a longer line, from place ``start`` on, and fills the rest.

    The fill runs from the last sample to the first, so that the line is periodic without a jump.
    """
    matrix = np.zeros((length, n))
    places = np.arange(length)
    index = places - start
    inside = (index >= 0) & (index < n)
    matrix[places[inside], index[inside]] = 1
    after, before = places[index >= n], places[index < 0]
    if len(after):
        matrix[after, n - 1] = 1
    if len(before):
        matrix[before, 0] = 1
    _blend(matrix, after, before, n)
    return matrix[:, ::-1] if reverse else matrix


def _blend(matrix: Array, after: NDArray[np.int_], before: NDArray[np.int_], n: int) -> None:
    """Fill the places after and before the samples with a ramp from the last sample to the first."""
    gap = np.concatenate([after, before])
    if len(gap) < 2 or n < 2:
        return
    share = (np.arange(len(gap)) + 1) / (len(gap) + 1)
    matrix[gap, n - 1], matrix[gap, 0] = 1 - share, share
