"""The three denoising experts, over shared features. Each has its own kind of block.

* centrum semiovale (deep white matter): dilated convolutions, which see far and smooth widely;
* sulcal and gyral cortex: plain dense convolutions;
* grey-white junction: convolutions of the high-pass of the features, which holds the edges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

from .layers import FACTOR, ConditionalConv, ModulatedBlock, depth_to_space, space_to_depth

STATE_CHANNELS = 2
_STATE_SCALE = 0.02  # of the residual, in units of the image's 99th percentile
_HALO_PER_BLOCK = 3  # inner voxels that a block of any kind sees to each side


class DilatedBlock(ModulatedBlock):
    """Block whose first convolution skips every other voxel."""

    def __init__(self, width: int, embedding: int, kernels: int = 1) -> None:
        super().__init__(width, embedding, dilation=2, kernels=kernels)


class DetailBlock(ModulatedBlock):
    """Block that sees the features without their mean over 3 x 3 x 3 inner voxels."""

    def seen(self, x: torch.Tensor) -> torch.Tensor:
        """Return the high-pass of the features; pooling would take ten times as long as this convolution."""
        mean = x.new_full((x.shape[1], 1, 3, 3, 3), 1 / 27)
        return x - functional.conv3d(x, mean, padding=1, groups=x.shape[1])


_BLOCKS: dict[str, Callable[..., ModulatedBlock]] = {
    "centrum": DilatedBlock,
    "cortex": ModulatedBlock,
    "junction": DetailBlock,
}


class Expert(nn.Module):
    """Correction of the estimated residual by one expert.

    Parameters
    ----------
    name
        One of :data:`moesr_bids.sr.models.EXPERTS`.
    width
        Number of channels.
    blocks
        Number of residual blocks.
    embedding
        Length of the embedding of acquisition and step.
    kernels
        Number of kernels that each convolution is mixed from.
    """

    def __init__(self, name: str, width: int, blocks: int, embedding: int, kernels: int = 1) -> None:
        super().__init__()
        cells = FACTOR**3
        self.head = ConditionalConv(STATE_CHANNELS * cells, width, kernels)
        self.body = nn.ModuleList(_BLOCKS[name](width, embedding, kernels=kernels) for _ in range(blocks))
        self.tail = ConditionalConv(width, cells, kernels)
        nn.init.zeros_(self.tail.weight)
        assert self.tail.bias is not None
        nn.init.zeros_(self.tail.bias)

    def forward(
        self,
        features: torch.Tensor,
        state: torch.Tensor,
        embedding: torch.Tensor,
        shares: Sequence[torch.Tensor | None],
    ) -> torch.Tensor:
        """Return the correction, float32 (batch, 1, i, j, k).

        Parameters
        ----------
        features
            Shared features at half resolution.
        state
            From :func:`state_cells`.
        embedding
            Embedding of acquisition and step, (batch, length).
        shares
            Shares of the kernels, in the order of :meth:`.network.ResidualNetwork.shares`.
        """
        inner = features + self.head(state, shares[0])
        for block, first, second in zip(self.body, shares[2::2], shares[3::2], strict=True):
            inner = block(inner, embedding, first, second)
        with torch.autocast(inner.device.type, enabled=False):
            cells = self.tail(inner.float(), shares[1])
        return depth_to_space(cells) * _STATE_SCALE


def expert_halo(blocks: int) -> int:
    """Target voxels that an expert sees to each side."""
    return FACTOR * (_HALO_PER_BLOCK * blocks + 2)


def state_cells(base: torch.Tensor, innovation: torch.Tensor) -> torch.Tensor:
    """Pack two volumes of the target grid, (batch, 1, i, j, k) each, into scaled cells at half resolution."""
    return space_to_depth(torch.cat([base, innovation], dim=1) / _STATE_SCALE)
