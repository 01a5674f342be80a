"""Losses of the one-step model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import frozen

from ..sr.models.network import NetworkOutput

_LEAST_LOSS = 2e-4  # an example that is nearly perfect before shall not count for all others


@frozen
class LossWeights:
    """Weights of the terms.

    Parameters
    ----------
    gradient
        Of the difference of finite differences: keeps edges, and punishes those that are not there.
    likelihood
        Of the scale.
    epsilon
        Where the Charbonnier loss turns from square to linear, in units of the 99th percentile.
    """

    gradient: float = 0.3
    likelihood: float = 0.02
    epsilon: float = 0.1


def loss_weights(value: LossWeights | Mapping[str, Any]) -> LossWeights:
    """Return weights from a recipe's mapping, or as they are."""
    return LossWeights(**value) if isinstance(value, Mapping) else value


def without_border(volume: torch.Tensor, border: int) -> torch.Tensor:
    """Cut voxels off all sides of (batch, channels, i, j, k): there the network misses its surroundings."""
    i, j, k = (slice(border, n - border) for n in volume.shape[2:])
    return volume[:, :, i, j, k]


def student_loss(
    output: NetworkOutput, start: torch.Tensor, sharp: torch.Tensor, weights: LossWeights
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

    Returns
    -------
    total, terms
        The Charbonnier loss (Charbonnier et al. 1994) of the image and that of its finite differences, both relative to
        the loss of ``start`` in the same example, so that easy and hard acquisitions count alike; and the negative
        log-likelihood of a Laplace distribution of the error, |e| / b + log b. The likelihood sees the error as a
        constant, so that the scale does not trade sharpness for confidence.
    """
    before, error = start - sharp, start + output.residual - sharp
    reconstruction = charbonnier_ratio(error, before, weights.epsilon)
    gradient = torch.stack(
        [charbonnier_ratio(torch.diff(error, dim=a), torch.diff(before, dim=a), weights.epsilon) for a in (2, 3, 4)]
    ).mean()
    likelihood = (error.detach().abs() * (-output.log_scale).exp() + output.log_scale).mean()
    total = reconstruction + weights.gradient * gradient + weights.likelihood * likelihood
    return total, {
        "reconstruction": reconstruction.detach(),
        "gradient": gradient.detach(),
        "likelihood": likelihood.detach(),
    }


def charbonnier_ratio(error: torch.Tensor, before: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Charbonnier loss of each example relative to that of its start, averaged over the batch."""
    return (_charbonnier(error, epsilon) / (_charbonnier(before, epsilon) + _LEAST_LOSS)).mean()


def _charbonnier(error: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Loss of each example of a batch."""
    return (error.square() + epsilon**2).sqrt().mean(dim=(1, 2, 3, 4)) - epsilon
