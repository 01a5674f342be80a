"""Losses of the mixture of experts: of the gated sum, of each expert in its tissue, and of the gate."""

from __future__ import annotations

from typing import NamedTuple

import torch
from attrs import field, frozen
from torch.nn import functional

from ..sr.models.context import FINE, gate_weights
from ..sr.models.mixture import gated_sum
from ..sr.models.network import NetworkOutput
from .losses import LossWeights, charbonnier, importance, loss_weights, student_loss, without_border
from .smoothing import box_mean
from .tissue import tissue_bands

_HEAD = 0.05  # of the 99th percentile
_EDGE = 0.05  # finite difference of the truth that counts as an edge
_BAND = 5  # voxels of the mean that is subtracted to get the high-frequency band
_NORMAL_MAD = 1.4826  # standard deviation of a normal law over its median absolute deviation
_LEAST_LOSS = 2e-4
_TINY = 1e-8


@frozen
class MixtureLossWeights:
    """Weights of the terms.

    Parameters
    ----------
    image
        Weights of the loss of the gated sum, as of the one-step model.
    experts
        Weight of the experts' own losses (:func:`experts_loss`).
    gate_error
        Weight of the gate's cross-entropy to the softmax of the experts' negative errors (:func:`gate_losses`).
    gate_tissue
        Weight of the gate's cross-entropy to the tissue bands, of this batch and of earlier ones.
    balance
        Weight of the load balance.
    diversity
        Weight of the similarity of the experts' corrections.
    """

    image: LossWeights = field(factory=LossWeights, converter=loss_weights)
    experts: float = 0.2
    gate_error: float = 0.02
    gate_tissue: float = 0.05
    balance: float = 0.02
    diversity: float = 0.01


class Mixed(NamedTuple):
    """Output of the mixture for a batch.

    ``base`` (batch, 1, i, j, k) is the residual before the experts, ``corrections`` (batch, 3, i, j, k) are theirs,
    ``logits`` are the gate's, per token of 4 voxels, ``log_scale`` is the log scale of the error, (batch, 1, i, j, k).
    """

    base: torch.Tensor
    corrections: torch.Tensor
    logits: torch.Tensor
    log_scale: torch.Tensor


def mixture_loss(
    mixed: Mixed,
    start: torch.Tensor,
    sharp: torch.Tensor,
    tissue: torch.Tensor,
    weights: MixtureLossWeights,
    border: int = 0,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Compute the loss of a batch, and its terms, detached.

    Parameters
    ----------
    mixed
        Output of the network.
    start, sharp
        Image that the residual is added to, and the truth, (batch, 1, i, j, k).
    tissue
        Shares of white matter, cortex and lesions, (batch, 3, i, j, k), 0 where unknown.
    weights
        Weights of the terms.
    border
        Voxels at each side that do not count, a multiple of 4.
    """
    bands, confidence = tissue_bands(tissue)
    counted = (gate_weights(mixed.logits), bands, confidence, mixed.base, mixed.corrections, mixed.log_scale)
    gate, bands, confidence, base, corrections, log_scale = (without_border(volume, border) for volume in counted)
    start, sharp = (without_border(part, border) for part in (start, sharp))
    counts = without_border(importance(tissue, weights.image), border)
    logits = without_border(mixed.logits, border // FINE)
    gated = gated_sum(base, corrections, gate)
    image, terms = student_loss(NetworkOutput(gated, log_scale), start, sharp, weights.image, counts)
    # An expert is trained on its tissue where the tissue is known, elsewhere on the voxels that the gate gives it.
    place = torch.lerp(gate.detach(), bands, confidence)
    estimates = start + base + corrections
    parts = {
        "experts": experts_loss(estimates, start, sharp, place, weights.image.epsilon),
        **gate_losses(logits, (estimates - sharp).detach(), sharp, bands, confidence),
        "diversity": similarity(corrections),
    }
    total = image
    for name, value in parts.items():
        total = total + getattr(weights, name) * value
    return total, {**terms, **{name: value.detach() for name, value in parts.items()}}


def experts_loss(
    estimates: torch.Tensor, start: torch.Tensor, sharp: torch.Tensor, place: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """Sum of the experts' losses, each weighted by its ``place`` and relative to the loss of ``start`` there.

    Each loss holds the error of the image. That of the centrum expert also holds, with a tenth of the weight, the
    gradient of its image away from edges of the truth; that of the cortex expert the error of the gradient; that of the
    junction expert the error of the high-frequency band.

    Parameters
    ----------
    estimates
        Image that each expert alone would give, (batch, 3, i, j, k).
    start, sharp
        Image that the residual is added to, and the truth, (batch, 1, i, j, k).
    place
        Responsibility of each expert in each voxel, (batch, 3, i, j, k).
    epsilon
        See :class:`.losses.LossWeights`.
    """
    centrum, cortex, junction = (estimates[:, k : k + 1] for k in range(3))
    in_centrum, in_cortex, in_junction = (place[:, k : k + 1] for k in range(3))
    before = start - sharp

    def relative(error: torch.Tensor, reference: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        return (_charbonnier(error, where, epsilon) / (_charbonnier(reference, where, epsilon) + _LEAST_LOSS)).mean()

    total = sum(
        relative(image - sharp, before, where)
        for image, where in ((centrum, in_centrum), (cortex, in_cortex), (junction, in_junction))
    )
    total = total + relative(_high_pass(junction - sharp), _high_pass(before), in_junction)
    for axis in (2, 3, 4):
        edges = torch.diff(sharp, dim=axis)
        error, reference = torch.diff(cortex, dim=axis) - edges, torch.diff(before, dim=axis)
        inner = slice(1, None)
        index = tuple(inner if a == axis else slice(None) for a in range(5))
        total = total + relative(error, reference, in_cortex[index]) / 3
        flat = in_centrum[index] * (-edges.abs() / _EDGE).exp()
        total = total + relative(torch.diff(centrum, dim=axis), torch.diff(start, dim=axis), flat) / 30
    return torch.as_tensor(total)


def gate_losses(
    logits: torch.Tensor, errors: torch.Tensor, sharp: torch.Tensor, bands: torch.Tensor, confidence: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Losses of the gate, per token.

    ``gate_error`` is the cross-entropy to softmax(-e / T), with the experts' mean absolute errors e less their median,
    and T the robust standard deviation of these in the head, 1.4826 MAD (as in MoEDiff-SR, arXiv 2504.07308).
    ``gate_tissue`` is the cross-entropy to the tissue bands. ``balance`` is 3 sum_k m_k^2 - 1 with the mean weights m
    in the head; it is 0 if all experts are used alike.
    """

    def tokens(volume: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool3d(volume, FINE)

    log_gate = logits.float().log_softmax(dim=1)
    error = tokens(errors.abs())
    centred = error - error.median(dim=1, keepdim=True).values
    head = tokens((sharp > _HEAD).float())
    # In air there is nothing to correct, and all experts are alike.
    spread = centred.abs().where(head > 0, torch.nan).nanmedian().nan_to_num()
    better = (-centred / (_NORMAL_MAD * spread + _TINY)).softmax(dim=1)
    sure = tokens(confidence)
    shares = (log_gate.exp() * head).sum(dim=(0, 2, 3, 4)) / (head.sum() + 1)
    return {
        "gate_error": cross_entropy(better, log_gate, head),
        "gate_tissue": cross_entropy(tokens(bands), log_gate, sure),
        "balance": 3 * shares.square().sum() - shares.sum().square(),
    }


def similarity(corrections: torch.Tensor) -> torch.Tensor:
    """Mean squared cosine between the corrections of each two experts."""
    flat = corrections.flatten(2)
    norms = flat.norm(dim=2).clamp(min=_TINY)
    products = [(flat[:, a] * flat[:, b]).sum(dim=1) / (norms[:, a] * norms[:, b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    return torch.stack(products).square().mean()


def cross_entropy(target: torch.Tensor, log_gate: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted mean of the cross-entropy of the gate to a target; target, log gate and weight are per token."""
    return -(target * log_gate * weight).sum() / (weight.sum() + 1)


def _charbonnier(error: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Weighted mean of each example."""
    return (charbonnier(error, epsilon) * weight).mean(dim=(1, 2, 3, 4))


def _high_pass(volume: torch.Tensor) -> torch.Tensor:
    return volume - box_mean(volume, _BAND)
