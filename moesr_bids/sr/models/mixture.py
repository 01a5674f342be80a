"""The mixture-of-experts denoiser of the diffusion model.

The trunk, which is the one-step network, sees the image once. At every step of the chain, its estimate of the residual
and the state are weighted by their variances, three experts correct the result, and the gate weights the corrections:

    r = b + sum_k g_k e_k,    b = m + w (z / (1 - eta) - m),    w = s^2 / (s^2 + kappa^2 eta / (1 - eta)^2)

with the trunk's estimate m, its standard deviation s and the state z; b is the posterior mean if both errors are
Gaussian. The experts start from zero corrections, so training starts from the trunk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from attrs import asdict, field, frozen
from torch import nn
from torch.nn import functional

from . import EXPERTS
from .acquisition import GUIDANCE
from .context import TOKEN, Context, ContextShape, context_in_patches, gate_weights
from .diffusion import Denoiser, ShiftSchedule
from .experts import Expert, state_cells
from .layers import FACTOR, KernelShares
from .network import INPUTS, NetworkOutput, NetworkShape, ResidualNetwork, network_cells

_STEP_FACTS = 3
_TYPICAL_STATE_NOISE = 0.03


def _trunk(value: NetworkShape | Mapping[str, Any]) -> NetworkShape:
    return NetworkShape(**value) if isinstance(value, Mapping) else value


def _context(value: ContextShape | Mapping[str, Any]) -> ContextShape:
    return ContextShape(**value) if isinstance(value, Mapping) else value


def _schedule(value: ShiftSchedule | Mapping[str, Any]) -> ShiftSchedule:
    return ShiftSchedule(**value) if isinstance(value, Mapping) else value


@frozen
class MixtureShape:
    """Size of the mixture and its chain.

    Parameters
    ----------
    trunk
        Size of the trunk; the experts have as many channels, and as many kernels per convolution.
    context
        Size of context network and gate.
    blocks
        Residual blocks of each expert.
    schedule
        Schedule of the chain that the experts were trained for.
    """

    trunk: NetworkShape = field(factory=NetworkShape, converter=_trunk)
    context: ContextShape = field(factory=ContextShape, converter=_context)
    blocks: int = 3
    schedule: ShiftSchedule = field(factory=ShiftSchedule, converter=_schedule)

    def record(self) -> dict[str, Any]:
        """Return the sizes as JSON-serialisable facts."""
        return asdict(self)


class Scene(NamedTuple):
    """Everything about an image that does not depend on the step.

    ``features`` are at half resolution, context added; ``trunk`` is the trunk's output on the target grid; ``cells``
    are the inputs of the context; ``tokens`` (of 8 voxels) and ``logits`` of the gate (per token of 4) its outputs.
    """

    features: torch.Tensor
    trunk: NetworkOutput
    cells: torch.Tensor
    tokens: torch.Tensor
    logits: torch.Tensor


class Told(NamedTuple):
    """Description of acquisition and step for the experts.

    ``embedding`` is (batch, length); ``shares`` are the shares of the kernels, one sequence per expert.
    """

    embedding: torch.Tensor
    shares: Sequence[Sequence[torch.Tensor | None]]


class MixtureNetwork(nn.Module):
    """Trunk, context with gate, and experts."""

    def __init__(self, shape: MixtureShape) -> None:
        super().__init__()
        self.shape = shape
        width, embedding = shape.trunk.channels, shape.trunk.embedding
        self.trunk = ResidualNetwork(shape.trunk)
        self.context = Context(shape.context, context_channels(shape.trunk), width, len(EXPERTS))
        self.embed_step = nn.Sequential(nn.Linear(_STEP_FACTS, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        kernels = shape.trunk.kernels
        self.experts = nn.ModuleList(Expert(name, width, shape.blocks, embedding, kernels) for name in EXPERTS)
        self.mix = KernelShares(len(EXPERTS) * self._convolutions, kernels)

    @property
    def _convolutions(self) -> int:
        """Number of convolutions of an expert."""
        return 2 * self.shape.blocks + 2

    def look(
        self, channels: torch.Tensor, acquisition: torch.Tensor, seen: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> Scene:
        """Compute everything that does not depend on the step.

        Parameters
        ----------
        channels, acquisition
            As of :meth:`.network.ResidualNetwork.forward`; i, j, k are multiples of 8.
        seen
            Tokens and logits, if the context has already seen this image in another flip; flipped alike.
        """
        features = self.trunk.features(channels, acquisition)
        cells = context_cells(network_cells(channels), features)
        tokens, logits = seen or self.see(cells)
        return Scene(with_context(features, tokens), self.trunk.output(features, acquisition), cells, tokens, logits)

    def see(self, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Apply the context in patches of the size that it was trained on; return tokens and logits."""
        return context_in_patches(self.context, cells, self.shape.context.patch // FACTOR)

    def told(self, acquisition: torch.Tensor, etas: torch.Tensor) -> Told:
        """Embed acquisition (batch, conditions) and step (``etas``, (batch,)) for the experts."""
        noise = self.shape.schedule.kappa * etas.sqrt() / (1 - etas)
        facts = torch.stack([etas, (noise / _TYPICAL_STATE_NOISE).log(), (1 - etas).log()], dim=1) / 3
        count = self._convolutions
        shares = self.mix(acquisition)
        return Told(
            self.trunk.embed(acquisition) + self.embed_step(facts),
            [shares[k * count : (k + 1) * count] for k in range(len(EXPERTS))],
        )

    def base(self, trunk: NetworkOutput, state: torch.Tensor, etas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Combine trunk and state: return the estimate b of the module's formula, and b - m."""
        eta = etas[:, None, None, None, None]
        # A Laplace law of scale b has the variance 2 b^2.
        variance = 2 * (2 * trunk.log_scale).exp()
        noise = (self.shape.schedule.kappa / (1 - eta)).square() * eta
        innovation = (state / (1 - eta) - trunk.residual) * (variance / (variance + noise))
        return trunk.residual + innovation, innovation

    def forward(
        self,
        features: torch.Tensor,
        trunk: NetworkOutput,
        state: torch.Tensor,
        etas: torch.Tensor,
        told: Told,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute one step: the estimate b and the correction of each expert.

        Parameters
        ----------
        features, trunk
            Of a :class:`Scene`.
        state
            z_t, (batch, 1, i, j, k).
        etas
            eta_t of each example of the batch.
        told
            From :meth:`told`.

        Returns
        -------
        base, corrections
            (batch, 1, i, j, k) and (batch, 3, i, j, k), in the order of :data:`moesr_bids.sr.models.EXPERTS`.
        """
        base, innovation = self.base(trunk, state, etas)
        cells = state_cells(base, innovation)
        corrections = [
            expert(features, cells, told.embedding, shares)
            for expert, shares in zip(self.experts, told.shares, strict=True)
        ]
        return base, torch.cat(corrections, dim=1)

    def denoise(
        self, scene: Scene, gate: torch.Tensor, acquisition: torch.Tensor, state: torch.Tensor, eta: float
    ) -> torch.Tensor:
        """Estimate the residual, (batch, 1, i, j, k), at one step of the chain that all examples share.

        Parameters
        ----------
        scene, acquisition
            Scene and acquisition vector of the image.
        gate
            From :func:`.context.gate_weights`.
        state, eta
            z_t and eta_t.
        """
        # In float32, whatever the state's type is: 1 - eta is small.
        etas = torch.full((len(state),), eta, device=state.device)
        base, corrections = self(scene.features, scene.trunk, state, etas, self.told(acquisition, etas))
        return gated_sum(base, corrections, gate)

    def mean(self, scene: Scene, acquisition: torch.Tensor) -> torch.Tensor:
        """Estimate the mean residual, (batch, 1, i, j, k), by the first step; its state holds no information."""
        state = torch.zeros_like(scene.trunk.residual, dtype=torch.float32)
        return self.denoiser(scene, acquisition)(state, self.shape.schedule.etas[-1])

    def denoiser(self, scene: Scene, acquisition: torch.Tensor) -> Denoiser:
        """Return :meth:`denoise` for an image and its gate, as :func:`.diffusion.sample` needs it."""
        return partial(self.denoise, scene, gate_weights(scene.logits), acquisition)


def gated_sum(base: torch.Tensor, corrections: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Return b + sum_k g_k e_k, (batch, 1, i, j, k)."""
    return base + (gate * corrections).sum(dim=1, keepdim=True)


def context_channels(trunk: NetworkShape) -> int:
    """Count the channels of :func:`context_cells`."""
    return (INPUTS + 1 + len(GUIDANCE)) * FACTOR**3 + trunk.channels


def context_cells(cells: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Join the inputs of the context: the channels and the trunk's features, both at half resolution."""
    return torch.cat([cells, features.to(cells.dtype)], dim=1)


def with_context(features: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Add the context, interpolated from the tokens, to the features at half resolution."""
    return features + functional.interpolate(tokens, scale_factor=TOKEN / FACTOR, mode="trilinear").to(features.dtype)


def parameters(network: nn.Module) -> int:
    """Count the parameters of a network."""
    return sum(math.prod(p.shape) for p in network.parameters())
