"""Projection onto the data: the last step of every model.

The output x is the image closest to the model's x_net that agrees with the acquired image y,

    min_x |x - x_net|^2 + lambda |A x - y|^2.

A is a Kronecker product, so its singular value decomposition A = U S V^T takes one small decomposition per axis, and
the minimiser has an exact closed form; conjugate gradients are not needed (the tests compare with them):

    x = x_net + V [lambda S r / (1 + lambda S^2)],   r = U^T y - S V^T x_net.

The residual inside the range of A is then U [r / (1 + lambda S^2)], which makes it cheap to find the lambda for which
its root mean square inside the brain equals the noise (Morozov's discrepancy principle; the root by Brent's method).
If x_net already agrees better than the noise, lambda is 0 and x_net stays. Lambda is at most 1e8.
"""

from __future__ import annotations

import math

import torch
from attrs import frozen
from scipy.optimize import brentq

from .operator import Factors

_LAMBDA_RANGE = (1e-4, 1e8)
_TOLERANCE = 3e-3  # of log lambda
_SAMPLE = 100_000  # voxels are enough for a root mean square: a quarter of a per cent


@frozen(eq=False)
class Projection:
    """Image after the projection, and the lambda that was used."""

    image: torch.Tensor
    lam: float


def data_prox(image: torch.Tensor, left: torch.Tensor, factors: Factors, lam: float) -> torch.Tensor:
    """Return argmin_x |x - image|^2 + lam |A x - y|^2 where ``left`` is U^T y."""
    s = factors.values
    gain = lam * s / (1 + lam * s * s)
    return factors.from_right(gain * (left - s * factors.to_right(image))).add_(image)


def project(
    image: torch.Tensor, acquired: torch.Tensor, factors: Factors, *, sigma: float, mask: torch.Tensor
) -> Projection:
    """Project a model's output onto the data.

    Parameters
    ----------
    image
        Output of a model on the target grid, float32.
    acquired
        Input image y on the input grid, float32.
    factors
        Singular value decomposition of A.
    sigma
        Standard deviation of the noise of ``acquired``, in its units.
    mask
        Boolean, on the input grid: where the residual is compared with the noise.

    Returns
    -------
    Projection
        The image and lambda.

    Notes
    -----
    What the target grid cannot represent (an input finer than the target along an axis) is outside the range of A.
    White noise has the share ``rank / n`` of its variance inside the range (:attr:`.Factors.share`), so that is what
    the residual inside the range is compared with.
    """
    r = factors.to_left(acquired) - factors.values * factors.to_right(image)
    wanted = sigma * math.sqrt(factors.share)
    lam = _discrepancy(r, factors, wanted, mask)
    s = factors.values
    if lam > 0:
        image = image + factors.from_right(r * (lam * s / (1 + lam * s * s)))
    return Projection(image, lam)


def _discrepancy(r: torch.Tensor, factors: Factors, wanted: float, mask: torch.Tensor) -> float:
    """Lambda for which the residual's root mean square inside the mask is ``wanted``; it falls with lambda."""
    rows = _sampled(mask)
    near = factors.seen_from(rows)
    inside = mask[rows]
    s2 = factors.values**2

    def excess(log_lam: float) -> float:
        left = r / (s2 * math.exp(log_lam)).add_(1)
        return math.log(float(near.from_left(left)[inside].square().mean().sqrt()) / wanted)

    low, high = (math.log(v) for v in _LAMBDA_RANGE)
    if excess(low) <= 0:
        return 0.0
    if excess(high) > 0:
        return math.exp(high)
    return math.exp(brentq(excess, low, high, xtol=_TOLERANCE))


def _sampled(mask: torch.Tensor) -> tuple[slice, slice, slice]:
    """Bounding box of a mask, with every third or second voxel along each axis if that leaves 100,000 of them."""
    i, j, k = bounding_box(mask)
    for step in (3, 2):
        rows = (slice(i.start, i.stop, step), slice(j.start, j.stop, step), slice(k.start, k.stop, step))
        if int(mask[rows].sum()) >= _SAMPLE:
            return rows
    return i, j, k


def bounding_box(mask: torch.Tensor) -> tuple[slice, slice, slice]:
    """Bounding box of the true voxels of a 3-D mask; the whole volume if there are none."""
    slices = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        hit = torch.nonzero(mask.any(dim=others[1]).any(dim=others[0])).flatten()
        if len(hit) == 0:
            return slice(0, mask.shape[0]), slice(0, mask.shape[1]), slice(0, mask.shape[2])
        slices.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return slices[0], slices[1], slices[2]
