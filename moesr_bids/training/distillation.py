"""Distillation of a mixture-of-experts teacher into a one-step student.

In named stages the student is compared with the teacher in more and more detail: both estimates are smoothed, much at
first and not at all in the end. The truth stays in the loss beside the teacher. The teacher's features are hints
(FitNets, Romero et al. 2015) through a 1 x 1 x 1 adapter that is thrown away afterwards. The teacher sees each example
flipped at random, so the student learns the mean over all flips, which is better than any single one (Hinton et al.
2015, arXiv 1503.02531, on ensembles).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from attrs import field, frozen, validators
from torch import nn

from ..sr.models.layers import FACTOR
from ..sr.models.mixture import MixtureNetwork, parameters
from ..sr.models.network import NetworkOutput, ResidualNetwork
from ..sr.smoothing import smoothed
from .losses import LossWeights, image_loss, importance, loss_weights, scale_loss, without_border

if TYPE_CHECKING:
    from .examples import Batch

LARGEST_SHARE = 0.25
"""A student has at most this share of its teacher's parameters."""
_TINY = 1e-8


@frozen
class Stage:
    """A stage of the distillation.

    Parameters
    ----------
    name
        Name in the log.
    until
        Share of the run at which it ends.
    blur
        FWHM of the Gaussian through which the student's residual is compared with the teacher's, in target voxels; 0
        for all of its detail.
    """

    name: str
    until: float = field(validator=validators.and_(validators.gt(0.0), validators.le(1.0)))
    blur: float = field(validator=validators.ge(0.0))


ONE_STAGE = Stage("sharp", 1.0, 0.0)
"""Stage of a training that does not change as it goes on."""


def _stages(values: Sequence[Stage | dict[str, object]]) -> tuple[Stage, ...]:
    stages = tuple(value if isinstance(value, Stage) else Stage(**value) for value in values)  # type: ignore[arg-type]
    ends = [stage.until for stage in stages]
    if not stages or ends != sorted(set(ends)) or ends[-1] != 1:
        raise ValueError(f"stages end at rising shares of the run, the last at 1; got {ends}")
    return stages


@frozen
class DistillationLossWeights:
    """Weights of the terms.

    Parameters
    ----------
    image
        Weights of the loss against the truth, as without a teacher.
    teacher
        Share of the teacher in the loss of the image and its gradient, 0 to 1. The scale of the error is learnt against
        the truth alone.
    hints
        Weight of the loss of the features.
    stages
        Stages in their order; the last ends at 1.
    """

    image: LossWeights = field(factory=LossWeights, converter=loss_weights)
    teacher: float = field(default=0.5, validator=validators.and_(validators.ge(0.0), validators.le(1.0)))
    hints: float = field(default=0.05, validator=validators.ge(0.0))
    stages: tuple[Stage, ...] = field(default=(ONE_STAGE,), converter=_stages)

    def stage(self, share: float) -> Stage:
        """Return the stage at a share of the run, 0 to 1."""
        return next((stage for stage in self.stages if share < stage.until), self.stages[-1])


class Pupil(nn.Module):
    """A student, and the adapter from its features to those of its teacher.

    Raises
    ------
    ValueError
        If the student has more than a quarter of its teacher's parameters.
    """

    def __init__(self, student: ResidualNetwork, teacher: MixtureNetwork) -> None:
        super().__init__()
        share = parameters(student) / parameters(teacher)
        if share > LARGEST_SHARE:
            raise ValueError(f"a student of {share:.0%} of its teacher's parameters is none; at most a quarter")
        self.student = student
        self.adapter = nn.Conv3d(student.shape.channels, teacher.shape.trunk.channels, 1)
        # A student that starts as the trunk has its features already.
        nn.init.dirac_(self.adapter.weight)
        assert self.adapter.bias is not None
        nn.init.zeros_(self.adapter.bias)


@torch.no_grad()
def teach(
    teacher: MixtureNetwork, channels: torch.Tensor, acquisition: torch.Tensor, flips: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the teacher's mean estimate of the residual, and its features.

    The teacher estimates the batch flipped along the axes where ``flips`` (boolean, 3) is true; its estimate is flipped
    back. As in :mod:`..sr.models.moediff` the context sees the batch as it is.
    """
    scene = teacher.look(channels, acquisition)
    seen = _flipped(scene.tokens, flips), _flipped(scene.logits, flips)
    flipped = teacher.look(_flipped(channels, flips), acquisition, seen)
    return _flipped(teacher.mean(flipped, acquisition), flips), scene.features


def _flipped(volume: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
    for axis in range(3):
        # The same operations whatever was drawn, so that a CUDA graph can repeat them.
        volume = torch.where(flips[axis], volume.flip(2 + axis), volume)
    return volume


def distillation_loss(
    pupil: Pupil,
    batch: Batch,
    taught: tuple[torch.Tensor, torch.Tensor],
    weights: DistillationLossWeights,
    stage: Stage,
    border: int = 0,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Compute the loss of a batch, and its terms, detached.

    Parameters
    ----------
    pupil
        Student and adapter.
    batch
        Examples.
    taught
        From :func:`teach`.
    weights
        Weights of the terms.
    stage
        Smoothing through which student and teacher are compared.
    border
        Voxels at each side that do not count.
    """
    features = pupil.student.features(batch.channels, batch.acquisition)
    estimated, log_scale = pupil.student.output(features, batch.acquisition)
    output = NetworkOutput(*(without_border(part, border) for part in (batch.known(estimated), log_scale)))
    start, sharp = (without_border(batch.known(part), border) for part in (batch.start, batch.sharp))
    counts = without_border(importance(batch.tissue, weights.image), border)
    before, error = start - sharp, start + output.residual - sharp
    truth, terms = image_loss(error, before, weights.image, counts)
    likelihood = scale_loss(error, output.log_scale)
    residual, hint = taught
    # The teacher is smoothed too: a student that has the detail already must not lose it in the smooth stages.
    missed = smoothed(output.residual - without_border(batch.known(residual), border), stage.blur)
    teacher, _ = image_loss(missed, before, weights.image, counts)
    features, hint = (without_border(part, border // FACTOR) for part in (features, hint))
    hints = (pupil.adapter(features) - hint).square().mean() / (hint.square().mean() + _TINY)
    total = (1 - weights.teacher) * truth + weights.teacher * teacher
    total = total + weights.image.likelihood * likelihood + weights.hints * hints
    others = {"likelihood": likelihood, "teacher": teacher, "hints": hints}
    return total, terms | {name: term.detach() for name, term in others.items()}
