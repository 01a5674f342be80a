"""Losses of the one-step model, and weights of the segmentation's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import field, frozen, validators
from torch.nn import functional

from ..sr.models.network import NetworkOutput

_AROUND = 2  # voxels
_LEAST_LOSS = 2e-4  # so that an example that is nearly perfect already does not outweigh all others


@frozen
class LossWeights:
    """Weights of the terms.

    Parameters
    ----------
    gradient
        Weight of the error of finite differences, relative to that of the image: it keeps edges sharp, and punishes
        false ones.
    gradient_until
        Share of the run at which this term ends.
    likelihood
        Weight of the likelihood of the scale.
    epsilon
        Error at which the Charbonnier loss turns from square to linear, in units of the 99th percentile.
    lesions
        Additional weight of lesions, and of voxels up to two away from them, in the loss of the image and its gradient:
        with 1 they count twice as much as other voxels. Where a lesion or none would explain the scan equally well, the
        estimate then tends to the lesion. The likelihood of the scale has no such weight.
    """

    gradient: float = 0.3
    gradient_until: float = field(default=1.0, validator=validators.and_(validators.gt(0.0), validators.le(1.0)))
    likelihood: float = 0.02
    epsilon: float = 0.1
    lesions: float = field(default=0.0, validator=validators.ge(0.0))


@frozen(kw_only=True)
class SegmentationLossWeights:
    """Weights of the terms: Dice and cross-entropy over all classes, and Dice of the brain as a whole."""

    dice: float = field(default=1.0, validator=validators.ge(0.0))
    cross_entropy: float = field(default=1.0, validator=validators.ge(0.0))
    brain: float = field(default=1.0, validator=validators.ge(0.0))


def loss_weights(value: LossWeights | Mapping[str, Any]) -> LossWeights:
    """Return weights from a recipe's mapping, or as they are."""
    return LossWeights(**value) if isinstance(value, Mapping) else value


def without_border(volume: torch.Tensor, border: int) -> torch.Tensor:
    """Cut ``border`` voxels off all sides of (batch, channels, i, j, k), where the network lacks its surroundings."""
    i, j, k = (slice(border, n - border) for n in volume.shape[2:])
    return volume[:, :, i, j, k]


def student_loss(
    output: NetworkOutput,
    start: torch.Tensor,
    sharp: torch.Tensor,
    weights: LossWeights,
    counts: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Compute the loss of a batch, and its terms, detached.

    The terms are the Charbonnier loss of the image and that of its finite differences, both relative to the loss of
    ``start`` in the same example, so that easy and hard acquisitions count alike; and the negative log-likelihood of a
    Laplace distribution of the error, |e| / b + log b. The likelihood takes the error as a constant, so the network
    cannot lower it by smoothing the image.

    Parameters
    ----------
    output
        Output of the network, (batch, 1, i, j, k).
    start, sharp
        Image that the residual is added to, and the truth; same shape.
    weights
        Weights of the terms.
    counts
        Weight of each voxel, from :func:`importance`.

    Returns
    -------
    total, terms
        Weighted sum of the terms, and each term by name.
    """
    before, error = start - sharp, start + output.residual - sharp
    image, terms = image_loss(error, before, weights, counts)
    likelihood = scale_loss(error, output.log_scale)
    return image + weights.likelihood * likelihood, {**terms, "likelihood": likelihood.detach()}


def scale_loss(error: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Return the mean negative log-likelihood of the scale b, |e| / b + log b; the error e counts as a constant."""
    return (error.detach().abs() * (-log_scale).exp() + log_scale).mean()


def image_loss(
    error: torch.Tensor, before: torch.Tensor, weights: LossWeights, counts: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the weighted sum of :func:`charbonnier_ratio` of the image and of its finite differences, and both."""
    differences = []
    for axis in (2, 3, 4):
        steps, steps_before = torch.diff(error, dim=axis), torch.diff(before, dim=axis)
        ahead = counts.narrow(axis, 1, steps.shape[axis])
        differences.append(charbonnier_ratio(steps, steps_before, weights.epsilon, ahead))
    reconstruction = charbonnier_ratio(error, before, weights.epsilon, counts)
    gradient = torch.stack(differences).mean()
    total = reconstruction + weights.gradient * gradient
    return total, {"reconstruction": reconstruction.detach(), "gradient": gradient.detach()}


def charbonnier_ratio(error: torch.Tensor, before: torch.Tensor, epsilon: float, counts: torch.Tensor) -> torch.Tensor:
    """Charbonnier loss of each example relative to that of its start, averaged over the batch.

    ``counts`` is the weight of each voxel.
    """
    loss, reference = (_mean(charbonnier(part, epsilon), counts) for part in (error, before))
    return (loss / (reference + _LEAST_LOSS)).mean()


def charbonnier(error: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Charbonnier loss of each voxel (Charbonnier et al. 1994)."""
    return (error.square() + epsilon**2).sqrt() - epsilon


def importance(tissue: torch.Tensor, weights: LossWeights) -> torch.Tensor:
    """Weight of each voxel in the loss, (batch, 1, i, j, k): 1, and more in and around lesions.

    Parameters
    ----------
    tissue
        Shares of white matter, cortex and lesions, (batch, 3, i, j, k).
    weights
        Weights of the terms.
    """
    near = tissue[:, 2:]
    if not weights.lesions:
        return torch.ones_like(near)
    for axis in range(3):  # axis by axis: 15 voxels instead of 125
        reach = [_AROUND if a == axis else 0 for a in range(3)]
        near = functional.max_pool3d(near, [2 * n + 1 for n in reach], stride=1, padding=reach)
    return 1 + weights.lesions * near


def _mean(loss: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Weighted mean of each example of a batch."""
    each = (1, 2, 3, 4)
    return (loss * counts).mean(dim=each) / counts.mean(dim=each)
