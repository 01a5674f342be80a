"""Losses of the one-step model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import field, frozen, validators
from torch.nn import functional

from ..sr.models.network import NetworkOutput

_AROUND = 2  # voxels
_LEAST_LOSS = 2e-4  # an example that is nearly perfect before shall not count for all others


@frozen
class LossWeights:
    """Weights of the terms.

    Parameters
    ----------
    gradient
        Of the difference of finite differences: keeps edges, and punishes those that are not there.
    gradient_until
        Share of the run at which that ends: the rest is for the image alone.
    likelihood
        Of the scale.
    epsilon
        Where the Charbonnier loss turns from square to linear, in units of the 99th percentile.
    lesions
        How much more the image and its gradient count in lesions, and up to two voxels around them, than elsewhere: 1
        for twice as much. Where both would explain the scan, the estimate then leans to the lesion. The likelihood of
        the scale has no such weight.
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
    """Cut voxels off all sides of (batch, channels, i, j, k): there the network misses its surroundings."""
    i, j, k = (slice(border, n - border) for n in volume.shape[2:])
    return volume[:, :, i, j, k]


def student_loss(
    output: NetworkOutput,
    start: torch.Tensor,
    sharp: torch.Tensor,
    weights: LossWeights,
    counts: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of a batch.

    Parameters
    ----------
    output
        Of the network, (batch, 1, i, j, k).
    start, sharp
        What the residual is added to, and the truth; same shape.
    weights
        Weights of the terms.
    counts
        How much each voxel counts, from :func:`importance`.

    Returns
    -------
    total, terms
        The Charbonnier loss of the image and that of its finite differences, both relative to
        the loss of ``start`` in the same example, so that easy and hard acquisitions count alike; and the negative
        log-likelihood of a Laplace distribution of the error, |e| / b + log b. The likelihood sees the error as a
        constant, so that the scale does not trade sharpness for confidence.
    """
    before, error = start - sharp, start + output.residual - sharp
    image, terms = image_loss(error, before, weights, counts)
    likelihood = scale_loss(error, output.log_scale)
    return image + weights.likelihood * likelihood, {**terms, "likelihood": likelihood.detach()}


def scale_loss(error: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of the scale b, |e| / b + log b; the error e is a constant here."""
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

    ``counts`` says how much each voxel counts.
    """
    loss, reference = (_mean(charbonnier(part, epsilon), counts) for part in (error, before))
    return (loss / (reference + _LEAST_LOSS)).mean()


def charbonnier(error: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Charbonnier loss of each voxel (Charbonnier et al. 1994)."""
    return (error.square() + epsilon**2).sqrt() - epsilon


def importance(tissue: torch.Tensor, weights: LossWeights) -> torch.Tensor:
    """How much each voxel counts, (batch, 1, i, j, k).

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
    for axis in range(3):  # one axis after the other: the window has 125 voxels
        reach = [_AROUND if a == axis else 0 for a in range(3)]
        near = functional.max_pool3d(near, [2 * n + 1 for n in reach], stride=1, padding=reach)
    return 1 + weights.lesions * near


def _mean(loss: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Weighted mean of each example of a batch."""
    each = (1, 2, 3, 4)
    return (loss * counts).mean(dim=each) / counts.mean(dim=each)
