"""The one-step residual network.

It works on the target grid at half resolution (space-to-depth), so that compute goes into channels rather than voxels,
and returns the residual over the image and the logarithm of the scale of its error. The acquisition (voxel
sizes, point-spread function, noise) and the presence of each guidance map reach every block as a feature-wise affine
modulation (FiLM, Perez et al. 2018), so one set of weights serves all resolutions and slice axes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import attrs
import torch
from attrs import asdict, frozen
from torch import nn
from torch.nn import functional

from ..operator import Factors
from ..projection import data_prox
from ..psf import PSF

INPUTS = 2
"""Channels before the guidance maps: the interpolated image, and its correction by the data."""
GUIDANCE = ("log_bias", "log_jacobian")
"""Guidance maps in the order of the network's channels, after those.

``log_bias`` is the logarithm of the bias field that the image was divided by; ``log_jacobian`` that of the determinant
of the Jacobian of the map from corrected to acquired positions, with which the corrected image was multiplied.
"""
CONDITIONS = 3 * 3 + 1 + len(GUIDANCE)
"""Length of the vector that :func:`acquisition_vector` makes."""
FACTOR = 2
"""Ratio of the inner to the target voxel size; input shapes are multiples of it."""
_TYPICAL_NOISE = 0.02
_DETAIL = 0.05  # tau: what interpolation misses, in units of the 99th percentile
_LEAST_NOISE = 2e-3
_BLUR = 7  # voxels: what is finer is detail
_DETAIL_IN, _CORRECTION_IN, _MIDDLE, _DETAIL_OUT = 5.0, 10.0, 0.5, 0.2
_LOG_SCALE_START = math.log(0.03)
_LEAST_LOG_SCALE = -7.0


@frozen
class NetworkShape:
    """Size of the network.

    Parameters
    ----------
    channels
        Channels of the body.
    blocks
        Residual blocks of two 3 x 3 x 3 convolutions each.
    embedding
        Width of the embedding of the acquisition.
    """

    channels: int = 48
    blocks: int = 6
    embedding: int = 64

    @property
    def receptive_field(self) -> int:
        """Target voxels that an output voxel sees to each side, a multiple of :data:`FACTOR`."""
        return FACTOR * (2 * self.blocks + 2) + FACTOR * -(-_BLUR // (2 * FACTOR))

    def record(self) -> dict[str, int]:
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
        self.head = nn.Conv3d((INPUTS + 1 + len(GUIDANCE)) * cells, width, 3, padding=1)
        self.body = nn.ModuleList(ModulatedBlock(width, shape.embedding) for _ in range(shape.blocks))
        self.tail = nn.Conv3d(width, 2 * cells, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        with torch.no_grad():
            self.tail.bias.copy_(torch.tensor([0.0, _LOG_SCALE_START]).repeat_interleave(cells))  # type: ignore[union-attr]

    def grown(self, shape: NetworkShape) -> ResidualNetwork:
        """Return a trainable copy with as many blocks as ``shape`` says; those that are new leave their input as it is.

        Raises
        ------
        ValueError
            If ``shape`` has fewer blocks, or another width.
        """
        if shape.blocks < self.shape.blocks or attrs.evolve(shape, blocks=self.shape.blocks) != self.shape:
            raise ValueError(f"a network of {self.shape.record()} cannot grow to {shape.record()}")
        network = ResidualNetwork(shape)
        network.load_state_dict(self.state_dict(), strict=False)
        for block in network.body[self.shape.blocks :]:
            nn.init.zeros_(block.second.weight)  # type: ignore[union-attr, arg-type]
            nn.init.zeros_(block.second.bias)  # type: ignore[union-attr, arg-type]
        return network

    def forward(self, channels: torch.Tensor, acquisition: torch.Tensor) -> NetworkOutput:
        """Predict.

        Parameters
        ----------
        channels
            Interpolated image (divided by the 99th percentile in the brain), its correction by the data, and the
            guidance maps, float32, (batch, 2 + guidance, i, j, k) with even i, j, k. A missing map is 0 and said to be
            missing by ``acquisition``.
        acquisition
            float32, (batch, CONDITIONS), from :func:`acquisition_vector`.
        """
        return network_output(self.features(channels, acquisition), self.tail)

    def features(self, channels: torch.Tensor, acquisition: torch.Tensor) -> torch.Tensor:
        """Return what the last convolution is given: (batch, width, i / 2, j / 2, k / 2)."""
        embedding = self.embed(acquisition)
        features = self.head(network_cells(channels))
        inner = features
        for block in self.body:
            inner = block(inner, embedding)
        return features + inner


class FoldedNetwork(nn.Module):
    """A :class:`ResidualNetwork` up to its last convolution, for one acquisition.

    Its modulation is folded into the convolutions before it: the same result with less memory traffic. For inference.

    Parameters
    ----------
    network
        Network in evaluation mode.
    acquisition
        float32, (CONDITIONS,), from :func:`acquisition_vector`.
    """

    @torch.no_grad()
    def __init__(self, network: ResidualNetwork, acquisition: torch.Tensor) -> None:
        super().__init__()
        embedding = network.embed(acquisition)
        self.head, self.tail = network.head, network.tail
        pairs = [block.folded(embedding) for block in network.body]  # type: ignore[operator]
        self.first = nn.ModuleList(first for first, _ in pairs)
        self.second = nn.ModuleList(second for _, second in pairs)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """Return what :func:`network_output` needs, from what :func:`network_cells` makes."""
        features = inner = self.head(cells)
        for first, second in zip(self.first, self.second, strict=True):
            inner = second(first(inner).relu_()).add_(inner)
        return inner.add_(features)


def network_cells(channels: torch.Tensor) -> torch.Tensor:
    """Channels of the target grid as the convolutions take them, at half resolution."""
    return space_to_depth(_spread(channels))


def network_output(features: torch.Tensor, tail: nn.Module) -> NetworkOutput:
    """Apply the last convolution; it stays in float32, or its rounding would be seen in the image."""
    with torch.autocast(features.device.type, enabled=False):
        cells = tail(features.float())
    residual, log_scale = depth_to_space(cells).split(1, dim=1)
    # A smooth floor: no part of the head is free of error, and the likelihood must not run away.
    floored = functional.softplus(log_scale - _LEAST_LOG_SCALE) + _LEAST_LOG_SCALE
    return NetworkOutput(residual * _DETAIL_OUT, floored)


def _spread(channels: torch.Tensor) -> torch.Tensor:
    """Separate the detail of the image from its level, each about as large as 1: what is to be found is detail."""
    image, correction, maps = channels[:, :1], channels[:, 1:INPUTS], channels[:, INPUTS:]
    detail = (image - _level(image)) * _DETAIL_IN
    return torch.cat([detail, correction * _CORRECTION_IN, image - _MIDDLE, maps], dim=1)


def _level(image: torch.Tensor) -> torch.Tensor:
    """Mean over the voxels around each one, an axis at a time: one pooling of three axes takes twenty times longer."""
    for axis in range(3):
        size = [_BLUR if a == axis else 1 for a in range(3)]
        image = functional.avg_pool3d(image, size, 1, [n // 2 for n in size], count_include_pad=False)
    return image


class ModulatedBlock(nn.Module):
    """x + conv(relu(scale * conv(x) + shift)), scale and shift from an embedding of the acquisition.

    Parameters
    ----------
    width
        Channels.
    embedding
        Length of the embedding.
    dilation
        Of the first convolution.
    """

    def __init__(self, width: int, embedding: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv3d(width, width, 3, padding=dilation, dilation=dilation)
        self.second = nn.Conv3d(width, width, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        with torch.no_grad():
            self.second.weight.mul_(0.1)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        scale, shift = self.modulate(embedding)[:, :, None, None, None].chunk(2, dim=1)
        inner = torch.addcmul(shift.to(x.dtype), self.first(self.seen(x)), (1 + scale).to(x.dtype))
        return x + self.second(functional.relu(inner, inplace=True))

    def seen(self, x: torch.Tensor) -> torch.Tensor:
        """Part of the features that the block looks at."""
        return x

    def folded(self, embedding: torch.Tensor) -> tuple[nn.Conv3d, nn.Conv3d]:
        """Return both convolutions, scale and shift within the first."""
        scale, shift = self.modulate(embedding).chunk(2)
        first = copy.deepcopy(self.first)
        first.weight.mul_((1 + scale)[:, None, None, None, None])
        assert first.bias is not None
        first.bias.mul_(1 + scale).add_(shift)
        return first, self.second


def space_to_depth(volume: torch.Tensor) -> torch.Tensor:
    """(batch, c, i, j, k) to (batch, c * 8, i / 2, j / 2, k / 2), channels last in memory."""
    b, c, i, j, k = volume.shape
    cells = volume.reshape(b, c, i // FACTOR, FACTOR, j // FACTOR, FACTOR, k // FACTOR, FACTOR)
    packed = cells.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * FACTOR**3, i // FACTOR, j // FACTOR, k // FACTOR)
    return packed.contiguous(memory_format=torch.channels_last_3d)


def depth_to_space(cells: torch.Tensor) -> torch.Tensor:
    """Inverse of :func:`space_to_depth`."""
    b, c, i, j, k = cells.shape
    parts = cells.reshape(b, c // FACTOR**3, FACTOR, FACTOR, FACTOR, i, j, k).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return parts.reshape(b, c // FACTOR**3, i * FACTOR, j * FACTOR, k * FACTOR)


def data_correction(image: torch.Tensor, acquired: torch.Tensor, factors: Factors, sigma: float) -> torch.Tensor:
    """Return what the data add to the interpolated image, linearly.

    It is the minimiser of |x - image|^2 / tau^2 + |A x - acquired|^2 / sigma^2, minus ``image``: deconvolution as far
    as the noise allows. The network gets it beside the image, so that it need not learn to invert every A.

    Parameters
    ----------
    image
        Interpolated image on the target grid, float32.
    acquired
        Input image, float32.
    factors
        Singular value decomposition of A.
    sigma
        Standard deviation of the noise.
    """
    return data_prox(image, factors.to_left(acquired), factors, (_DETAIL / max(sigma, _LEAST_NOISE)) ** 2) - image


def acquisition_vector(
    psf: PSF, input_zooms: Sequence[float], target_zooms: Sequence[float], sigma: float, present: Sequence[bool]
) -> torch.Tensor:
    """Describe the acquisition to the network.

    Parameters
    ----------
    psf
        Point-spread function, mm.
    input_zooms, target_zooms
        Voxel sizes per axis in mm.
    sigma
        Standard deviation of the noise, in the units of the image that the network sees.
    present
        Whether each guidance map of :data:`GUIDANCE` is there.

    Returns
    -------
    vector
        float32, length :data:`CONDITIONS`: per axis the octaves between target voxel and input voxel, between target
        voxel and PSF width, and whether the profile is a k-space window; then noise in octaves of 2 per cent, and
        the presence flags. Input finer than the target counts as equal to it, since the image is low-passed first.
    """
    facts: list[float] = []
    for profile, zoom, target in zip(psf.axes, input_zooms, target_zooms, strict=True):
        facts += [
            max(0.0, math.log2(zoom / target)),
            max(0.0, math.log2(profile.fwhm / target)),
            1.0 if profile.kind == "kspace" else -1.0,
        ]
    facts.append(math.log2(max(sigma, 1e-4) / _TYPICAL_NOISE))
    facts += [1.0 if there else -1.0 for there in present]
    return torch.tensor(facts, dtype=torch.float32)
