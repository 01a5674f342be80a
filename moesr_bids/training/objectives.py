"""Objectives: for each kind of recipe the network, its loss, and its validation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve
from torch import nn

from ..sr.models.diffusion import noisy_state
from ..sr.models.mixture import MixtureNetwork, MixtureShape
from ..sr.models.network import NetworkOutput, NetworkShape, ResidualNetwork
from .distillation import ONE_STAGE, DistillationLossWeights, Pupil, Stage, distillation_loss, teach
from .losses import LossWeights, importance, student_loss, without_border
from .mixture_loss import Mixed, MixtureLossWeights, cross_entropy, mixture_loss
from .recall import GateMemory, gate_inputs
from .validation import Estimator, validate

if TYPE_CHECKING:
    from ..sr.weights import Network
    from .examples import Batch
    from .recipe import Recipe

Terms = dict[str, torch.Tensor]
_VALIDATION_PATCH = 64
_VALIDATION_PATCHES = 3


class Objective(ABC):
    """Interface of all objectives; by default nothing in the loss is random, and it has one stage."""

    @property
    def capturable(self) -> bool:
        """Whether the loss uses the same operations at each step, so that a CUDA graph can repeat them."""
        return True

    @abstractmethod
    def build(self, start: nn.Module | None) -> nn.Module:
        """Make the network, from the weights of another if one is given.

        Raises
        ------
        ValueError
            If the given network does not fit.
        """

    def draw(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Draw what is random in the loss of a batch."""
        del batch, generator
        return ()

    def stage(self, share: float) -> Stage:
        """Stage of the loss when this share of the run is done."""
        del share
        return ONE_STAGE

    @abstractmethod
    def loss(
        self, network: nn.Module, batch: Batch, drawn: Sequence[torch.Tensor], stage: Stage
    ) -> tuple[torch.Tensor, Terms]:
        """Compute the loss of a batch, and its terms, detached."""

    @abstractmethod
    def product(self, network: nn.Module) -> Network:
        """Return what is kept of the network after the training."""

    @abstractmethod
    def validate(
        self, network: nn.Module, held_out: Sequence[Any], *, margin: int, device: torch.device
    ) -> dict[str, float]:
        """Measure the network on each source that it was not trained on; ``margin`` is that of the recipe."""

    @abstractmethod
    def summary(self, values: Mapping[str, float]) -> str:
        """Return a validation in a few words."""


class ResidualObjective(Objective):
    """Interface of the objectives whose network estimates a residual over the interpolated image."""

    @abstractmethod
    def estimator(self, network: nn.Module) -> Estimator:
        """Return the function by which the network estimates a residual."""

    def validate(
        self, network: nn.Module, held_out: Sequence[Any], *, margin: int, device: torch.device
    ) -> dict[str, float]:
        """Measure gains over interpolation on fixed patches, dB."""
        return validate(
            self.estimator(network),
            held_out,
            patch=_VALIDATION_PATCH,
            margin=margin,
            patches=_VALIDATION_PATCHES,
            device=device,
        )

    def summary(self, values: Mapping[str, float]) -> str:
        """Return the mean gain."""
        return f"mean gain {sum(values.values()) / len(values):+.2f} dB"


_IMAGE_ALONE = Stage("image", 1.0, 0.0)


class StudentObjective(ResidualObjective):
    """One step of the residual network."""

    def __init__(self, shape: NetworkShape, weights: LossWeights, border: int = 0) -> None:
        self.shape, self.weights, self.border = shape, weights, border

    def build(self, start: nn.Module | None) -> ResidualNetwork:
        """Make the network; it may be larger than the one it starts from."""
        if start is None:
            return ResidualNetwork(self.shape)
        if not isinstance(start, ResidualNetwork):
            raise ValueError("a one-step network starts from the weights of a one-step network")
        return start.grown(self.shape)

    def stage(self, share: float) -> Stage:
        """Return the stage with the loss of the gradient, or the one of the image alone after it."""
        return ONE_STAGE if share < self.weights.gradient_until else _IMAGE_ALONE

    def loss(
        self, network: nn.Module, batch: Batch, drawn: Sequence[torch.Tensor], stage: Stage
    ) -> tuple[torch.Tensor, Terms]:
        """Compute the loss of the predicted residual and scale."""
        del drawn
        residual, log_scale = network(batch.channels, batch.acquisition)
        known = (batch.known(residual), log_scale)
        output = NetworkOutput(*(without_border(part, self.border) for part in known))
        start, sharp = (without_border(batch.known(part), self.border) for part in (batch.start, batch.sharp))
        counts = without_border(importance(batch.tissue, self.weights), self.border)
        weights = evolve(self.weights, gradient=0.0) if stage == _IMAGE_ALONE else self.weights
        return student_loss(output, start, sharp, weights, counts)

    def product(self, network: nn.Module) -> Network:
        """Return the network."""
        assert isinstance(network, ResidualNetwork)
        return network

    def estimator(self, network: nn.Module) -> Estimator:
        """Apply the network."""
        return _one_step(self.product(network))


class MixtureObjective(ResidualObjective):
    """The mixture of experts at a step of the chain that is drawn at random."""

    def __init__(self, recipe: Recipe, memory: GateMemory | None = None) -> None:
        assert isinstance(recipe.network, MixtureShape) and isinstance(recipe.loss, MixtureLossWeights)
        self.shape, self.weights, self.frozen = recipe.network, recipe.loss, recipe.frozen
        self.border = recipe.border
        self.memory = memory

    def build(self, start: nn.Module | None) -> nn.Module:
        """Make the network, from a mixture, or with a one-step network as its trunk; freeze the recipe's parts."""
        network = MixtureNetwork(self.shape)
        if isinstance(start, MixtureNetwork):
            if start.shape != self.shape:
                raise ValueError(f"a mixture of {start.shape.record()} is not one of {self.shape.record()}")
            network.load_state_dict(start.state_dict())
        elif isinstance(start, ResidualNetwork):
            network.trunk.load_state_dict(start.grown(self.shape.trunk).state_dict())
        for name in self.frozen:
            try:
                network.get_submodule(name).requires_grad_(False)
            except AttributeError:
                known = ", ".join(part for part, _ in network.named_children())
                raise ValueError(f"frozen: a mixture has no part {name!r}; its parts are {known}") from None
        return network

    @property
    def capturable(self) -> bool:
        """Whether the gate has no memory; with one, the operations differ from step to step."""
        return self.memory is None

    def draw(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Draw a step of the chain for each example, and return its state and eta.

        More than half of the examples get the step that sampling begins with.
        """
        schedule = self.shape.schedule
        count, device = len(batch.channels), batch.channels.device
        steps = torch.randint(1, schedule.steps + 1, (count,), generator=generator)
        # Errors of the first step are hardly mended later, and there the state holds no more than the image.
        steps[torch.rand(count, generator=generator) < 0.5] = schedule.steps
        etas = torch.tensor(schedule.etas)[steps].to(device, non_blocking=True)
        # Drawn on the device: from the CPU it would come too slowly for a GPU.
        seed = int(torch.randint(2**31, (), generator=generator))
        drawing = torch.Generator(device).manual_seed(seed)
        noise = torch.randn(batch.sharp.shape, generator=drawing, device=device)
        return noisy_state(batch.sharp - batch.start, etas[:, None, None, None, None], schedule.kappa, noise), etas

    def loss(
        self, network: nn.Module, batch: Batch, drawn: Sequence[torch.Tensor], stage: Stage
    ) -> tuple[torch.Tensor, Terms]:
        """Compute the loss at the step that was drawn, and that of the gate on earlier examples if it has a memory."""
        del stage
        assert isinstance(network, MixtureNetwork)
        state, etas = drawn
        scene = network.look(batch.channels, batch.acquisition)
        told = network.told(batch.acquisition, etas)
        base, corrections = network(scene.features, scene.trunk, state, etas, told)
        mixed = Mixed(batch.known(base), batch.known(corrections), scene.logits, scene.trunk.log_scale)
        start, sharp = batch.known(batch.start), batch.known(batch.sharp)
        total, terms = mixture_loss(mixed, start, sharp, batch.tissue, self.weights, self.border)
        if self.memory is None:
            return total, terms
        earlier = self.memory.draw(batch.first, network)
        self.memory.keep(batch.first, gate_inputs(batch, scene.cells, self.border))
        recalled = total.new_zeros(())
        if earlier is not None:
            _, logits = network.context(earlier.cells.float())
            recalled = cross_entropy(earlier.bands, logits.float().log_softmax(dim=1), earlier.sure)
        return total + self.weights.gate_tissue * recalled, {**terms, "gate_recalled": recalled.detach()}

    def product(self, network: nn.Module) -> Network:
        """Return the network."""
        assert isinstance(network, MixtureNetwork)
        return network

    def estimator(self, network: nn.Module) -> Estimator:
        """Return the estimate of the mean of all samples, in one step."""
        assert isinstance(network, MixtureNetwork)
        return lambda channels, acquisition: network.mean(network.look(channels, acquisition), acquisition)


class DistillationObjective(ResidualObjective):
    """One step of the residual network, with a mixture as its teacher."""

    def __init__(self, recipe: Recipe, teacher: nn.Module | None) -> None:
        assert isinstance(recipe.network, NetworkShape) and isinstance(recipe.loss, DistillationLossWeights)
        if not isinstance(teacher, MixtureNetwork):
            raise ValueError("a distillation needs --teacher, the weights of a mixture of experts")
        self.student, self.weights = StudentObjective(recipe.network, recipe.loss.image), recipe.loss
        self.teacher, self.border = teacher, recipe.border

    def build(self, start: nn.Module | None) -> nn.Module:
        """Make the student, from the weights of another if one is given, and its adapter."""
        return Pupil(self.student.build(start), self.teacher)

    def draw(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Draw the axes along which the teacher sees the batch flipped."""
        flips = torch.rand(3, generator=generator) < 0.5
        return (flips.to(batch.channels.device, non_blocking=True),)

    def stage(self, share: float) -> Stage:
        """Return the stage, with the smoothing through which student and teacher are compared."""
        return self.weights.stage(share)

    def loss(
        self, network: nn.Module, batch: Batch, drawn: Sequence[torch.Tensor], stage: Stage
    ) -> tuple[torch.Tensor, Terms]:
        """Compute the loss against the truth, the teacher's estimate, and the teacher's features."""
        assert isinstance(network, Pupil)
        taught = teach(self.teacher, batch.channels, batch.acquisition, *drawn)
        return distillation_loss(network, batch, taught, self.weights, stage, self.border)

    def product(self, network: nn.Module) -> Network:
        """Return the student; the adapter is thrown away."""
        assert isinstance(network, Pupil)
        return network.student

    def estimator(self, network: nn.Module) -> Estimator:
        """Apply the student."""
        return _one_step(self.product(network))


def _one_step(network: nn.Module) -> Estimator:
    def estimate(channels: torch.Tensor, acquisition: torch.Tensor) -> torch.Tensor:
        output: NetworkOutput = network(channels, acquisition)
        return output.residual

    return estimate


def objective_of(recipe: Recipe, teacher: nn.Module | None = None, memory: GateMemory | None = None) -> Objective:
    """Return the objective of a recipe.

    Parameters
    ----------
    recipe
        Settings.
    teacher
        Mixture that a distillation learns from.
    memory
        Earlier examples for the gate of a mixture; None if it sees none again.

    Raises
    ------
    ValueError
        If the recipe needs a teacher and there is none, or there is one and it has no use for it.
    """
    if recipe.kind == "distill":
        return DistillationObjective(recipe, teacher)
    if teacher is not None:
        raise ValueError(f"a recipe of kind {recipe.kind} has no use for --teacher; leave it out")
    if recipe.kind == "moediff":
        return MixtureObjective(recipe, memory)
    assert isinstance(recipe.network, NetworkShape)
    assert isinstance(recipe.loss, LossWeights)
    return StudentObjective(recipe.network, recipe.loss, recipe.border)
