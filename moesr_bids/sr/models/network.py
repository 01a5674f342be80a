"""The one-step residual network.

It works on the target grid at half resolution (space-to-depth): operations go into channels rather than voxels. It
returns the residual over the interpolated image, and the logarithm of the scale of its error. The acquisition (voxel
sizes, point-spread function, noise) and the presence of each guidance map reach every block as a feature-wise affine
modulation (FiLM, Perez et al. 2018), and decide how the kernels of each convolution are mixed (CondConv, Yang et al.
2019). So one set of weights serves all resolutions. It serves all slice axes because the axes come in the order of
their voxel sizes, the coarsest last (:func:`.acquisition.axis_order`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from attrs import asdict, frozen
from torch import nn
from torch.nn import functional

from ..operator import Factors
from ..projection import data_prox
from .acquisition import CONDITIONS, GUIDANCE
from .layers import FACTOR, ConditionalConv, KernelShares, ModulatedBlock, depth_to_space, space_to_depth

INPUTS = 2
"""Channels before the guidance maps: the interpolated image, and its correction by the data."""
_DETAIL = 0.05  # tau: what interpolation misses, in units of the 99th percentile
_LEAST_NOISE = 2e-3
_BLUR = 7  # voxels of the mean that separates level and detail
_DETAIL_IN, _CORRECTION_IN, _MIDDLE, _DETAIL_OUT = 5.0, 10.0, 0.5, 0.2
_LOG_SCALE_START = math.log(0.03)
_LEAST_LOG_SCALE = -7.0
_LARGEST_LOG_SCALE = 0.0  # an error as large as the brightest tissue


@frozen
class NetworkShape:
    """Size of the network.

    Parameters
    ----------
    channels
        Number of channels of the body.
    blocks
        Number of residual blocks of two 3 x 3 x 3 convolutions each.
    embedding
        Length of the embedding of the acquisition.
    kernels
        Number of kernels that each convolution is mixed from.
    expansion
        Channels between the two convolutions of a block, over those of the body (Yu et al. 2018).
    """

    channels: int = 48
    blocks: int = 6
    embedding: int = 64
    kernels: int = 1
    expansion: float = 1.0

    @property
    def hidden(self) -> int:
        """Channels between the two convolutions of a block."""
        return round(self.channels * self.expansion)

    @property
    def receptive_field(self) -> int:
        """Target voxels that an output voxel sees to each side, a multiple of :data:`FACTOR`."""
        return FACTOR * (2 * self.blocks + 2) + FACTOR * -(-_BLUR // (2 * FACTOR))

    @property
    def convolutions(self) -> int:
        """Number of convolutions."""
        return 2 * self.blocks + 2

    def record(self) -> dict[str, float]:
        """Return the sizes as JSON-serialisable facts."""
        return asdict(self)


class NetworkOutput(NamedTuple):
    """Residual over the interpolated image and log scale of the error, each float32 (batch, 1, i, j, k)."""

    residual: torch.Tensor
    log_scale: torch.Tensor


class ResidualNetwork(nn.Module):
    """Residual network at half resolution.

    Parameters
    ----------
    shape
        Size of the network.
    """

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.channels
        cells = FACTOR**3
        self.embed = nn.Sequential(
            nn.Linear(CONDITIONS, shape.embedding), nn.SiLU(), nn.Linear(shape.embedding, shape.embedding), nn.SiLU()
        )
        self.head = ConditionalConv((INPUTS + 1 + len(GUIDANCE)) * cells, width, shape.kernels)
        self.body = nn.ModuleList(
            ModulatedBlock(width, shape.embedding, hidden=shape.hidden, kernels=shape.kernels)
            for _ in range(shape.blocks)
        )
        self.mix = KernelShares(shape.convolutions, shape.kernels)
        self.tail = ConditionalConv(width, 2 * cells, shape.kernels)
        nn.init.zeros_(self.tail.weight)
        with torch.no_grad():
            start = torch.tensor([0.0, _LOG_SCALE_START]).repeat_interleave(cells)
            self.tail.bias.copy_(start.repeat(shape.kernels))  # type: ignore[union-attr]

    def grown(self, shape: NetworkShape) -> ResidualNetwork:
        """Return a trainable copy of the size ``shape``, which computes the same at first.

        New blocks leave their input as it is, and nothing reads new channels yet. New kernels are copies of the single
        one before; training makes them differ, because each acquisition mixes them in another way.

        Raises
        ------
        ValueError
            If ``shape`` has fewer blocks or channels, another embedding, or another number of kernels while this
            network has more than one.
        """
        mine = self.shape
        smaller = any(
            larger < size
            for size, larger in (
                (mine.blocks, shape.blocks),
                (mine.channels, shape.channels),
                (mine.hidden, shape.hidden),
            )
        )
        if smaller or mine.embedding != shape.embedding or mine.kernels not in (1, shape.kernels):
            raise ValueError(f"a network of {mine.record()} cannot grow to {shape.record()}")
        network = ResidualNetwork(shape)
        with torch.no_grad():
            for name, part in self.named_parameters():
                module, whole = network.get_submodule(name.rpartition(".")[0]), network.get_parameter(name).data
                if isinstance(module, ConditionalConv):
                    whole, part = whole.unflatten(0, (shape.kernels, -1)), part.unflatten(0, (mine.kernels, -1))
                    part = part.expand(shape.kernels, *part.shape[1:])
                    if name.endswith("weight"):
                        whole[:, :, part.shape[2] :] = 0
                elif ".modulate." in name:
                    whole, part = whole.unflatten(0, (2, -1)), part.unflatten(0, (2, -1))
                whole[tuple(slice(n) for n in part.shape)] = part
            for block in network.body[mine.blocks :]:
                nn.init.zeros_(block.second.weight)  # type: ignore[union-attr, arg-type]
                nn.init.zeros_(block.second.bias)  # type: ignore[union-attr, arg-type]
        return network

    def forward(self, channels: torch.Tensor, acquisition: torch.Tensor) -> NetworkOutput:
        """Predict.

        Parameters
        ----------
        channels
            Interpolated image (divided by the 99th percentile in the brain), its correction by the data, and the
            guidance maps, float32, (batch, 2 + guidance, i, j, k) with even i, j, k. A missing map is 0, and
            ``acquisition`` says that it is missing.
        acquisition
            float32, (batch, CONDITIONS), from :func:`.acquisition.acquisition_vector`.
        """
        return self.output(self.features(channels, acquisition), acquisition)

    def features(self, channels: torch.Tensor, acquisition: torch.Tensor) -> torch.Tensor:
        """Return the input of the last convolution: (batch, channels, i / 2, j / 2, k / 2)."""
        embedding, shares = self.embed(acquisition), self.shares(acquisition)
        features = inner = self.head(network_cells(channels), shares[0])
        for block, first, second in zip(self.body, shares[2::2], shares[3::2], strict=True):
            inner = block(inner, embedding, first, second)
        return features + inner

    def output(self, features: torch.Tensor, acquisition: torch.Tensor) -> NetworkOutput:
        """Apply the last convolution to :meth:`features`."""
        return network_output(features, partial(self.tail, shares=self.shares(acquisition)[1]))

    def shares(self, acquisition: torch.Tensor) -> Sequence[torch.Tensor | None]:
        """Shares of the kernels (:class:`.layers.KernelShares`): of head, tail, and both convolutions of each block."""
        shares: Sequence[torch.Tensor | None] = self.mix(acquisition)
        return shares


class FoldedNetwork(nn.Module):
    """A :class:`ResidualNetwork` up to its last convolution, for one acquisition.

    Mixture and modulation are folded into plain convolutions: the same result with less memory traffic, for inference.

    Parameters
    ----------
    network
        Network in evaluation mode.
    acquisition
        float32, (CONDITIONS,), from :func:`.acquisition.acquisition_vector`.
    """

    @torch.no_grad()
    def __init__(self, network: ResidualNetwork, acquisition: torch.Tensor) -> None:
        super().__init__()
        embedding = network.embed(acquisition)
        shares = [None if share is None else share[0] for share in network.shares(acquisition[None])]
        self.head, self.tail = network.head.folded(shares[0]), network.tail.folded(shares[1])
        pairs = [
            block.folded(embedding, first, second)  # type: ignore[operator]
            for block, first, second in zip(network.body, shares[2::2], shares[3::2], strict=True)
        ]
        self.first = nn.ModuleList(first for first, _ in pairs)
        self.second = nn.ModuleList(second for _, second in pairs)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """Return the features that :func:`network_output` needs, from the cells of :func:`network_cells`."""
        features = inner = self.head(cells)
        for first, second in zip(self.first, self.second, strict=True):
            inner = second(first(inner).relu_()).add_(inner)
        return inner.add_(features)


def network_cells(channels: torch.Tensor) -> torch.Tensor:
    """Scale the channels of the target grid, and pack them into cells at half resolution."""
    return space_to_depth(_spread(channels))


def network_output(features: torch.Tensor, tail: Callable[[torch.Tensor], torch.Tensor]) -> NetworkOutput:
    """Apply the last convolution in float32; the rounding of bfloat16 would be seen in the image."""
    with torch.autocast(features.device.type, enabled=False):
        cells = tail(features.float())
    residual, log_scale = depth_to_space(cells).split(1, dim=1)
    # A smooth floor: no part of the head is free of error, and without it the likelihood could grow without bound.
    floored = functional.softplus(log_scale - _LEAST_LOG_SCALE) + _LEAST_LOG_SCALE
    return NetworkOutput(residual * _DETAIL_OUT, floored.clamp(max=_LARGEST_LOG_SCALE))


def _spread(channels: torch.Tensor) -> torch.Tensor:
    """Separate the detail of the image from its level, and scale each to about 1."""
    image, correction, maps = channels[:, :1], channels[:, 1:INPUTS], channels[:, INPUTS:]
    detail = (image - _level(image)) * _DETAIL_IN
    return torch.cat([detail, correction * _CORRECTION_IN, image - _MIDDLE, maps], dim=1)


def _level(image: torch.Tensor) -> torch.Tensor:
    """Mean over 7 x 7 x 7 voxels, one axis at a time: one pooling of three axes takes twenty times as long."""
    for axis in range(3):
        size = [_BLUR if a == axis else 1 for a in range(3)]
        image = functional.avg_pool3d(image, size, 1, [n // 2 for n in size], count_include_pad=False)
    return image


def data_correction(image: torch.Tensor, acquired: torch.Tensor, factors: Factors, sigma: float) -> torch.Tensor:
    """Return the linear correction of the interpolated image by the data.

    It is the minimiser of |x - image|^2 / tau^2 + |A x - acquired|^2 / sigma^2, minus ``image``, with tau = 0.05:
    deconvolution as far as the noise allows. The network gets it beside the image, so it need not learn to invert A.

    Parameters
    ----------
    image
        Interpolated image on the target grid, float32.
    acquired
        Input image, float32.
    factors
        Singular value decomposition of A.
    sigma
        Standard deviation of the noise, in the units of ``acquired``.
    """
    return data_prox(image, factors.to_left(acquired), factors, (_DETAIL / max(sigma, _LEAST_NOISE)) ** 2) - image
