"""Edge-preserving prior: total variation of first and second order.

    R(x) = sum over voxels of  |grad x| + h |hess x|

with isotropic norms over the three first and six second differences (mixed ones counted twice). First order alone
(Rudin, Osher and Fatemi 1992) turns slopes into steps; the second order keeps them and follows ridges (compare
Lysaker, Lundervold and Tai 2003; Bredies, Kunisch and Pock 2010). Differences across the border of the volume are zero.

The volume is processed in slabs of a few planes that fit into the processor's cache, because memory traffic, not
arithmetic, limits the speed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

_SLAB_VOXELS = 200_000
_SQRT2 = math.sqrt(2.0)
# Bounds of the squared norms of the difference operators: 4 per axis; its square over all pairs of axes.
_NORM_FIRST, _NORM_SECOND = 12.0, 144.0


class EdgePrior:
    """Dual side of the prior in a primal-dual method.

    Parameters
    ----------
    shape
        Shape of the volume.
    second_order
        Weight h of the second order relative to the first; 0 leaves it out.
    device
        Device of the volume.
    """

    def __init__(self, shape: tuple[int, int, int], *, second_order: float, device: torch.device) -> None:
        self.second_order = second_order
        self.first = torch.zeros((3, *shape), device=device)
        self.second = torch.zeros((6 if second_order else 0, *shape), device=device)
        planes = max(1, _SLAB_VOXELS // (shape[1] * shape[2]))
        self._slabs = [(a, min(a + planes, shape[0])) for a in range(0, shape[0], planes)]

    @property
    def squared_norm(self) -> float:
        """Upper bound of the squared norm of the stacked difference operators."""
        return _NORM_FIRST + (_NORM_SECOND if self.second_order else 0.0)

    def ascend(self, image: torch.Tensor, step: float, weight: float) -> None:
        """One dual step: p <- proj_{|p| <= weight}(p + step D image)."""
        for a, b in self._slabs:
            _step(self.first[:, a:b], _first_differences(image, a, b), step, weight)
            if self.second_order:
                bound = weight * self.second_order
                _step(self.second[:, a:b], _second_differences(image, a, b), step, bound)

    def adjoint(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield D^T p slab by slab: (planes along the first axis, values)."""
        for a, b in self._slabs:
            value = _first_adjoint(self.first, a, b)
            if self.second_order:
                value += _second_adjoint(self.second, a, b)
            yield slice(a, b), value


def _step(dual: torch.Tensor, ascent: torch.Tensor, step: float, bound: float) -> None:
    dual.add_(ascent, alpha=step)
    square = dual[0].square()
    for component in dual[1:]:
        square.addcmul_(component, component)
    dual.mul_(square.div_(bound * bound).clamp_(min=1.0).rsqrt_())


def _first_differences(x: torch.Tensor, a: int, b: int) -> torch.Tensor:
    """Forward differences of planes a to b along the three axes."""
    d = x.new_zeros((3, b - a, *x.shape[1:]))
    top = min(b + 1, x.shape[0])
    torch.sub(x[a + 1 : top], x[a : top - 1], out=d[0, : top - 1 - a])
    d[1, :, :-1] = x[a:b, 1:] - x[a:b, :-1]
    d[2, :, :, :-1] = x[a:b, :, 1:] - x[a:b, :, :-1]
    return d


def _first_adjoint(p: torch.Tensor, a: int, b: int) -> torch.Tensor:
    """Transpose of the forward differences; p is zero where a difference would leave the volume."""
    d = -(p[0, a:b] + p[1, a:b] + p[2, a:b])
    low = max(a, 1)
    d[low - a :] += p[0, low - 1 : b - 1]
    d[:, 1:] += p[1, a:b, :-1]
    d[:, :, 1:] += p[2, a:b, :, :-1]
    return d


def _second_differences(x: torch.Tensor, a: int, b: int) -> torch.Tensor:
    """Second differences of planes a to b: ii, jj, kk, and sqrt(2) times ij, ik, jk."""
    n = x.shape[0]
    d = x.new_zeros((6, b - a, *x.shape[1:]))
    c = x[a:b]
    low, high = max(a, 1), min(b, n - 1)
    if high > low:
        d[0, low - a : high - a] = x[low + 1 : high + 1] + x[low - 1 : high - 1] - 2 * x[low:high]
    d[1, :, 1:-1] = c[:, 2:] + c[:, :-2] - 2 * c[:, 1:-1]
    d[2, :, :, 1:-1] = c[:, :, 2:] + c[:, :, :-2] - 2 * c[:, :, 1:-1]
    top = min(b + 1, n)
    along_i = (x[a + 1 : top] - x[a : top - 1]).mul_(_SQRT2)
    m = along_i.shape[0]
    torch.sub(along_i[:, 1:], along_i[:, :-1], out=d[3, :m, :-1])
    torch.sub(along_i[:, :, 1:], along_i[:, :, :-1], out=d[4, :m, :, :-1])
    along_j = (c[:, 1:] - c[:, :-1]).mul_(_SQRT2)
    torch.sub(along_j[:, :, 1:], along_j[:, :, :-1], out=d[5, :, :-1, :-1])
    return d


def _second_adjoint(q: torch.Tensor, a: int, b: int) -> torch.Tensor:
    """Transpose of the second differences."""
    n = q.shape[1]
    d = (q[0, a:b] + q[1, a:b] + q[2, a:b]).mul_(-2)
    low, top = max(a, 1), min(b + 1, n)
    d[low - a :] += q[0, low - 1 : b - 1]
    d[: top - 1 - a] += q[0, a + 1 : top]
    d[:, 1:] += q[1, a:b, :-1]
    d[:, :-1] += q[1, a:b, 1:]
    d[:, :, 1:] += q[2, a:b, :, :-1]
    d[:, :, :-1] += q[2, a:b, :, 1:]
    # Mixed terms: -D_i^T of the transposes along j and k of plane i, plus those of the plane before.
    first = max(a - 1, 0)
    cross = -(q[3, first:b] + q[4, first:b])
    cross[:, 1:] += q[3, first:b, :-1]
    cross[:, :, 1:] += q[4, first:b, :, :-1]
    d.sub_(cross[a - first :], alpha=_SQRT2)
    d[low - a :].add_(cross[: b - low], alpha=_SQRT2)
    along_k = -q[5, a:b]
    along_k[:, :, 1:] += q[5, a:b, :, :-1]
    d.sub_(along_k, alpha=_SQRT2)
    d[:, 1:].add_(along_k[:, :-1], alpha=_SQRT2)
    return d
