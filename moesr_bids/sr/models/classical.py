"""Variational reconstruction: the classical model, and the baseline for all that learn.

    min_x  1/2 |A x - y|^2 + weight R(x)

with the edge-preserving prior R of :mod:`.prior`, minimised by the primal-dual method of Chambolle and Pock (2011,
algorithm 1). The data term enters by its exact proximal map (:func:`..projection.data_prox`), so 50 iterations are
enough, whatever the point-spread function. The weight follows from the noise: during the iterations it is adapted so
that the residual inside the mask is 0.85 times the noise (discrepancy principle).
"""

from __future__ import annotations

import math

import torch

from ..interpolation import cubic_spline
from ..operator import Factors
from ..projection import bounding_box, data_prox
from .base import Model, ModelCard, Problem, Reconstruction
from .prior import EdgePrior

ITERATIONS = 50
# Chosen on training images with 2 % noise: k-space windows x2 and 3 to 5 mm slices, T1w, T2w and FLAIR.
SECOND_ORDER = 0.25
WEIGHT_PER_VARIANCE = 3.0  # first weight over the noise variance, for images divided by their 99th percentile
# The best estimate has a residual somewhat below the noise (it fits some of it); Morozov's 1 smooths too much.
RESIDUAL_SHARE = 0.85
_STEP = 10.0  # primal step, in inverse squared singular values of A
# Iterations after which the weight is adapted; in the last ones it stays.
_ADAPT_AFTER = frozenset({6, 12, 18, 24, 30, 35, 39, 42, 45})
_LEAST_WEIGHT = 0.2  # of the start
_LARGEST_WEIGHT_PER_SIGMA = 0.5  # as much as plain denoising needs
_HEAD_LEVEL = 0.05  # of the 99th percentile: below is background
_HEAD_MARGIN_MM = 10.0


def reconstruct(problem: Problem) -> Reconstruction:
    """Minimise the variational problem inside the head's bounding box; the background is the cubic spline's."""
    operator = problem.operator
    image = cubic_spline(problem.acquired, operator.input_grid, operator.target_grid)
    box = head_box(image, operator.target_grid.zooms)
    rows = operator.input_box(box)
    outside = image.clone()
    outside[box] = 0
    acquired = (problem.acquired - operator.forward(outside))[rows]
    del outside
    factors = operator.factors(box)
    image[box] = _primal_dual(image[box].contiguous(), acquired, factors, problem, problem.mask[rows])
    return Reconstruction(image)


def head_box(image: torch.Tensor, zooms: tuple[float, float, float]) -> tuple[slice, slice, slice]:
    """Bounding box of the head with a margin of 10 mm; planes with less than 0.1 % bright voxels do not count."""
    foreground = image > _HEAD_LEVEL
    slices = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        share = foreground.float().mean(dim=others)
        hit = torch.nonzero(share > 1e-3).flatten()
        margin = round(_HEAD_MARGIN_MM / zooms[axis])
        low, high = (int(hit[0]), int(hit[-1])) if len(hit) else (0, image.shape[axis] - 1)
        slices.append(slice(max(0, low - margin), min(image.shape[axis], high + 1 + margin)))
    return slices[0], slices[1], slices[2]


def _primal_dual(
    image: torch.Tensor, acquired: torch.Tensor, factors: Factors, problem: Problem, mask: torch.Tensor
) -> torch.Tensor:
    left = factors.to_left(acquired)
    prior = EdgePrior((image.shape[0], image.shape[1], image.shape[2]), second_order=SECOND_ORDER, device=image.device)
    dual_step = 1 / (prior.squared_norm * _STEP)
    start = weight = WEIGHT_PER_VARIANCE * problem.sigma**2
    bounds = (_LEAST_WEIGHT * start, _LARGEST_WEIGHT_PER_SIGMA * problem.sigma)
    wanted = RESIDUAL_SHARE * problem.sigma * math.sqrt(factors.share)
    monitor = _ResidualMonitor(factors, left, mask)
    extrapolated = image.clone()
    for iteration in range(ITERATIONS):
        prior.ascend(extrapolated, dual_step, weight)
        extrapolated.copy_(image)
        for planes, divergence in prior.adjoint():
            extrapolated[planes].sub_(divergence, alpha=_STEP)
        updated = data_prox(extrapolated, left, factors, _STEP)
        torch.sub(updated, image, out=extrapolated)
        extrapolated.add_(updated)
        image = updated
        if iteration in _ADAPT_AFTER:
            share = monitor.rms(image) / wanted
            weight = min(max(weight / max(share, 1e-3), bounds[0]), bounds[1])
        problem.progress("reconstruct", (iteration + 1) / ITERATIONS)
    return image


class _ResidualMonitor:
    """Root mean square inside the mask of y - A x, of the part that the target grid can represent."""

    def __init__(self, factors: Factors, left: torch.Tensor, mask: torch.Tensor) -> None:
        if not mask.any():  # the mask lies outside of the head's box: measure everywhere
            mask = torch.ones_like(mask)
        box = bounding_box(mask)
        self._near = factors.seen_from(box)
        self._left, self._inside = left, mask[box]

    def rms(self, image: torch.Tensor) -> float:
        residual = self._near.from_left(self._left - self._near.values * self._near.to_right(image))
        return float(residual[self._inside].square().mean().sqrt())


MODEL = Model(
    "classical",
    ModelCard(
        "variational reconstruction with an edge-preserving prior; needs no weights",
        methods="The image with the least total variation of first and second order [@tv; @tgv] that explains the scan "
        "through a model of its acquisition (slice profile and k-space window) was found with a primal-dual method "
        "[@primaldual], the weight of the prior following from the estimated noise, and then projected onto the "
        "acquired data.",
        iterations=ITERATIONS,
        bytes_per_voxel=68,
        seconds_per_megavoxel=1.6,
    ),
    reconstruct,
)
