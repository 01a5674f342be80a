"""Context and gate of the mixture of experts: a Swin transformer over patches of three sizes.

Patches of 4, 8 and 16 target voxels of the image and of the trunk's features are embedded by overlapping convolutions,
each from the next smaller one. Such embeddings learn faster than linear ones (Xiao et al. 2021, arXiv 2106.14881). The
patches of 8 and 16 voxels are joined on the grid of 8 voxels and go through shifted-window attention (Liu et al. 2021).
The gate is a softmax over the experts per token of 4 voxels, interpolated linearly to the voxels, where its weights
still sum to 1.
"""

from __future__ import annotations

from typing import Any

import torch
from attrs import field, frozen
from torch import nn
from torch.nn import functional

from .layers import FACTOR

FINE = 4
"""Target voxels per side of the tokens of the gate."""
TOKEN = 2 * FINE
"""Target voxels per side of the tokens of the transformer; volumes are multiples of it."""
_CELL, _FINE, _MIDDLE, _COARSE = 32, 64, 96, 128  # channels at half resolution, and of the embeddings
_GROUPS = 8
_OVERLAP = 0.375  # least share of a patch that overlaps with the next one
_BORDER = 0.125  # share of a patch at each side that did not count in the training
_LEAST_WEIGHT = 1e-3
_PATCHES_ON_GPU = 16  # at a time: a single one does not fill the GPU
_PATCH_MULTIPLE = 4 * TOKEN
_THIN = 4  # tokens that make two of the coarse ones


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
    patch
        Target voxels per side of the patches that the network was trained on. It must see such patches later too, since
        its group normalisation takes mean and scale from a whole patch.

    Raises
    ------
    ValueError
        If ``patch`` is not a positive multiple of 32.
    """

    channels: int = 128
    depth: int = 4
    heads: int = 4
    window: int = 4
    patch: int = field(default=64)

    @patch.validator
    def _whole_tokens(self, attribute: Any, value: int) -> None:
        if value < 1 or value % _PATCH_MULTIPLE:
            raise ValueError(f"context.{attribute.name} is a positive multiple of {_PATCH_MULTIPLE}, got {value}")


class Context(nn.Module):
    """Network from the channels at half resolution to tokens for the experts and the logits of the gate.

    Parameters
    ----------
    shape
        Sizes.
    channels
        Channels at half resolution.
    features
        Channels of the features that the tokens are added to.
    experts
        Number of experts.
    """

    def __init__(self, shape: ContextShape, channels: int, features: int, experts: int) -> None:
        super().__init__()
        # Imported here: MONAI takes seconds, and only this model needs it.
        from monai.networks.nets.swin_unetr import BasicLayer

        width = shape.channels
        self.cell = _convolution(channels, _CELL, size=1)
        self.fine = nn.Sequential(_convolution(_CELL, _FINE, stride=2), _convolution(_FINE, _FINE))
        self.middle = nn.Sequential(_convolution(_FINE, _MIDDLE, stride=2), _convolution(_MIDDLE, _MIDDLE))
        self.coarse = nn.Sequential(_convolution(_MIDDLE, _COARSE, stride=2), _convolution(_COARSE, _COARSE))
        self.from_middle, self.from_coarse = nn.Conv3d(_MIDDLE, width, 1), nn.Conv3d(_COARSE, width, 1)
        self.transformer = BasicLayer(
            dim=width,
            depth=shape.depth,
            num_heads=shape.heads,
            window_size=(shape.window,) * 3,
            drop_path=[0.0] * shape.depth,
        )
        self.to_features = nn.Conv3d(width, features, 1)
        self.to_gate = nn.Conv3d(width, _FINE, 1)
        self.gate = nn.Sequential(_convolution(2 * _FINE, _FINE), nn.Conv3d(_FINE, experts, 1))
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
        fine = self.fine(self.cell(cells))
        middle = self.middle(fine)
        i, j, k = middle.shape[2:]
        # A volume of an odd number of tokens has half a coarse one at its end.
        coarse = _doubled(self.from_coarse(self._coarse(middle)))[:, :, :i, :j, :k]
        tokens = self.transformer(self.from_middle(middle) + coarse)
        return self.to_features(tokens), self.gate(torch.cat([fine, _doubled(self.to_gate(tokens))], dim=1))

    def _coarse(self, middle: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and not middle.is_cuda and middle.shape[2] <= _THIN:
            # oneDNN 3 leaves a part of the weights' gradient as it was in memory: bfloat16, AVX-512 without AMX.
            with torch.autocast("cpu", enabled=False):
                found: torch.Tensor = self.coarse(middle.float())
                return found
        coarse: torch.Tensor = self.coarse(middle)
        return coarse


def context_in_patches(context: Context, cells: torch.Tensor, patch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply :meth:`Context.forward` in overlapping patches of ``patch`` cells per side, and blend them."""
    size = [min(patch, n) for n in cells.shape[2:]]
    if size == list(cells.shape[2:]):
        found: tuple[torch.Tensor, torch.Tensor] = context(cells)
        return found
    from monai.inferers import sliding_window_inference

    weight = torch.einsum("i,j,k->ijk", *(_weights(n).to(cells.device) for n in size))
    # Half a cell, so that rounding does not make the distance of two patches one cell less.
    overlap = [max(0.0, 1 - (_distance(n) + 0.5) / n) for n in size]
    at_a_time = _PATCHES_ON_GPU if cells.is_cuda else 1
    tokens, logits = sliding_window_inference(
        cells, size, at_a_time, context, overlap=overlap, mode="gaussian", roi_weight_map=weight
    )
    return tokens, logits


def _distance(size: int) -> int:
    """Cells from one patch to the next: whole tokens."""
    cells = TOKEN // FACTOR
    return max(1, int((1 - _OVERLAP) * size / cells)) * cells


def _weights(size: int) -> torch.Tensor:
    """Blending weight along an axis of a patch: nearly 0 in its border, then rising over the rest of the overlap."""
    border = int(_BORDER * size)
    places = torch.arange(size) + 0.5
    rising = max(1, size - _distance(size) - 2 * border)
    return ((torch.minimum(places, size - places) - border) / rising).clamp(_LEAST_WEIGHT, 1.0)


def context_flops(shape: ContextShape, channels: int) -> float:
    """Return the floating-point operations of the context per target voxel of a large volume."""
    patch = shape.patch // FACTOR
    width, overlapping = shape.channels, (patch / _distance(patch)) ** 3
    cell = channels * _CELL
    fine = 27 * (_CELL + _FINE) * _FINE + 27 * 2 * _FINE * _FINE
    middle = 27 * (_FINE + _MIDDLE) * _MIDDLE + 12 * shape.depth * width**2
    coarse = 27 * (_MIDDLE + _COARSE) * _COARSE
    sizes = (FACTOR, FINE, TOKEN, 2 * TOKEN)
    return 2 * overlapping * sum(work / n**3 for work, n in zip((cell, fine, middle, coarse), sizes, strict=True))


def _convolution(channels: int, out: int, *, size: int = 3, stride: int = 1) -> nn.Module:
    from monai.networks.blocks import Convolution

    norm = ("GROUP", {"num_groups": _GROUPS})
    return Convolution(3, channels, out, strides=stride, kernel_size=size, norm=norm, act="SWISH")


def _doubled(volume: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(volume, scale_factor=2.0, mode="trilinear")


def gate_weights(logits: torch.Tensor) -> torch.Tensor:
    """Weights of the experts per voxel, summing to 1, float32 (batch, experts, i, j, k).

    Parameters
    ----------
    logits
        One per expert and token of 4 voxels, (batch, experts, i / 4, j / 4, k / 4).
    """
    return functional.interpolate(logits.float().softmax(dim=1), scale_factor=float(FINE), mode="trilinear")
