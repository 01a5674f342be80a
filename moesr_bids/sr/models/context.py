"""Context and gate of the mixture of experts: a Swin transformer over patches of three sizes.

Patches of 4, 8 and 16 target voxels of the image and of the trunk's features are embedded, joined on the grid of 8
voxels and put through shifted-window attention (Liu et al. 2021). The gate is a softmax over the experts per token of 4
voxels, interpolated linearly to the voxels: soft, smooth, and still summing to 1.
"""

from __future__ import annotations

import torch
from attrs import frozen
from torch import nn
from torch.nn import functional

from .network import FACTOR

FINE = 4
"""Target voxels per side of the tokens of the gate."""
TOKEN = 2 * FINE
"""Target voxels per side of the tokens of the transformer; volumes are multiples of it."""


@frozen
class ContextShape:
    """Size of the context network.

    Parameters
    ----------
    channels
        Channels of a token.
    depth
        Transformer blocks.
    heads
        Attention heads.
    window
        Tokens per side of an attention window.
    """

    channels: int = 128
    depth: int = 4
    heads: int = 4
    window: int = 4


class Context(nn.Module):
    """From the channels at half resolution to tokens for the experts and the logits of the gate.

    Parameters
    ----------
    shape
        Sizes.
    channels
        Channels at half resolution.
    features
        Channels of the features that the context is added to.
    experts
        Number of experts.
    """

    def __init__(self, shape: ContextShape, channels: int, features: int, experts: int) -> None:
        super().__init__()
        # Imported here: MONAI takes seconds, and only this model needs it.
        from monai.networks.nets.swin_unetr import BasicLayer

        width = shape.channels
        self.fine, self.middle, self.coarse = (nn.Conv3d(channels, width, 2, stride=2) for _ in range(3))
        self.merge = nn.Conv3d(width, width, 2, stride=2)
        self.transformer = BasicLayer(
            dim=width,
            depth=shape.depth,
            num_heads=shape.heads,
            window_size=(shape.window,) * 3,
            drop_path=[0.0] * shape.depth,
        )
        self.to_features = nn.Conv3d(width, features, 1)
        self.gate = nn.Sequential(nn.Conv3d(2 * width, width // 2, 1), nn.SiLU(), nn.Conv3d(width // 2, experts, 1))
        for last in (self.to_features, self.gate[-1]):
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the context of the features, per token of 8 voxels, and the logits of the gate, per token of 4.

        Parameters
        ----------
        cells
            From :func:`.mixture.context_cells`, (batch, channels, i, j, k) with multiples of 4.
        """
        fine = self.fine(cells)
        middle = self.middle(functional.avg_pool3d(cells, 2))
        # A volume of an odd number of tokens has half a coarse one at its end.
        coarse = self.coarse(functional.avg_pool3d(_even(cells), 4))
        coarse = functional.interpolate(coarse, scale_factor=2.0, mode="trilinear")
        i, j, k = middle.shape[2:]
        tokens = self.transformer(self.merge(fine) + middle + coarse[:, :, :i, :j, :k])
        wide = functional.interpolate(tokens, scale_factor=2.0, mode="trilinear")
        return self.to_features(tokens), self.gate(torch.cat([fine, wide], dim=1))


def _even(cells: torch.Tensor) -> torch.Tensor:
    """Repeat the rim until the volume holds whole patches of the largest size."""
    largest = 2 * TOKEN // FACTOR
    padding = [n for size in reversed(cells.shape[2:]) for n in (0, -size % largest)]
    return functional.pad(cells, padding, mode="replicate") if any(padding) else cells


def gate_weights(logits: torch.Tensor) -> torch.Tensor:
    """Weights of the experts per voxel, from the logits per token of 4 voxels: they sum to 1."""
    return functional.interpolate(logits.float().softmax(dim=1), scale_factor=float(FINE), mode="trilinear")
