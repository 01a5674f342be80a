"""Layers of the networks: convolutions whose kernels are mixed for each acquisition, and space-to-depth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from .acquisition import typical_acquisitions

FACTOR = 2
"""Voxel size inside the network over that of the target grid; input shapes are multiples of it."""


class KernelShares(nn.Module):
    """Shares of the kernels of several :class:`ConditionalConv`, from the vector of the acquisition.

    They begin as softmax(-|facts - typical|^2 / 2), with one typical acquisition for each kernel. The kernels may begin
    as copies of one: they come to differ because each acquisition mixes them in another way.

    Parameters
    ----------
    convolutions
        Number of convolutions.
    kernels
        Number of kernels of each; with one there is nothing to learn.
    """

    def __init__(self, convolutions: int, kernels: int) -> None:
        super().__init__()
        self.convolutions, self.kernels = convolutions, kernels
        if kernels > 1:
            typical = typical_acquisitions(kernels).repeat(convolutions, 1)
            self.weight = nn.Parameter(typical)
            self.bias = nn.Parameter(-typical.square().sum(dim=1) / 2)

    def forward(self, acquisition: torch.Tensor) -> Sequence[torch.Tensor | None]:
        """Return the shares (batch, kernels) for each convolution; None for each if there is only one kernel."""
        if self.kernels == 1:
            return [None] * self.convolutions
        logits = functional.linear(acquisition, self.weight, self.bias).float()
        return logits.unflatten(1, (self.convolutions, self.kernels)).softmax(dim=-1).unbind(dim=1)


class ConditionalConv(nn.Conv3d):
    """3 x 3 x 3 convolution whose kernel is a mixture of several (CondConv, Yang et al. 2019).

    The kernels lie one after the other in ``weight``, their biases in ``bias``.

    Parameters
    ----------
    inside, outside
        Channels of input and output.
    kernels
        Number of kernels; with one it is a plain convolution.
    dilation
        Distance of the kernel's taps in voxels.
    """

    def __init__(self, inside: int, outside: int, kernels: int = 1, dilation: int = 1) -> None:
        super().__init__(inside, kernels * outside, 3, padding=dilation, dilation=dilation)
        self.kernels = kernels

    def mixed(self, shares: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return kernel and bias for the shares of the kernels, (..., kernels).

        They are (..., outside, inside, 3, 3, 3) and (..., outside).
        """
        assert self.bias is not None
        if shares is None:
            return self.weight, self.bias
        # In the order in which they lie in memory while training; autocast would round them before the mixture.
        kernels = self.weight.unflatten(0, (self.kernels, -1)).movedim(2, -1)
        with torch.autocast(self.weight.device.type, enabled=False):
            mixed = (shares @ kernels.flatten(1)).unflatten(-1, kernels.shape[1:])
            return mixed.movedim(-1, -4), shares @ self.bias.unflatten(0, (self.kernels, -1))

    def forward(self, x: torch.Tensor, shares: torch.Tensor | None = None) -> torch.Tensor:
        """Apply the mixture of each example, (batch, inside, i, j, k), by its shares, (batch, kernels)."""
        if shares is None:
            return super().forward(x)
        kernels, biases = self.mixed(shares)
        if torch.is_autocast_enabled(x.device.type):  # cast once, not once per example
            dtype = torch.get_autocast_dtype(x.device.type)
            kernels, biases = kernels.to(dtype), biases.to(dtype)
        parts = [
            functional.conv3d(one[None], kernel, bias, padding=self.padding, dilation=self.dilation)
            for one, kernel, bias in zip(x, kernels, biases, strict=True)
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def folded(self, shares: torch.Tensor | None) -> nn.Conv3d:
        """Return a plain convolution with the mixed kernel of one acquisition."""
        kernel, bias = self.mixed(shares)
        outside, inside = kernel.shape[:2]
        plain = nn.Conv3d(inside, outside, 3, padding=self.padding, dilation=self.dilation, device=kernel.device)  # type: ignore[arg-type]
        plain.load_state_dict({"weight": kernel, "bias": bias})
        return plain.to(memory_format=torch.channels_last_3d).requires_grad_(False)  # type: ignore[call-overload]


class ModulatedBlock(nn.Module):
    """x + conv(relu((1 + scale) * conv(x) + shift)), with scale and shift from an embedding of the acquisition.

    Parameters
    ----------
    width
        Number of channels.
    embedding
        Length of the embedding.
    dilation
        Dilation of the first convolution.
    kernels
        Number of kernels that each convolution is mixed from.
    hidden
        Number of channels between the convolutions; by default ``width``.
    """

    def __init__(
        self, width: int, embedding: int, dilation: int = 1, kernels: int = 1, hidden: int | None = None
    ) -> None:
        super().__init__()
        hidden = width if hidden is None else hidden
        self.first = ConditionalConv(width, hidden, kernels, dilation)
        self.second = ConditionalConv(hidden, width, kernels)
        self.modulate = nn.Linear(embedding, 2 * hidden)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        with torch.no_grad():
            self.second.weight.mul_(0.1)

    def forward(
        self,
        x: torch.Tensor,
        embedding: torch.Tensor,
        first: torch.Tensor | None = None,
        second: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Apply the block; ``first`` and ``second`` are the kernel shares of its convolutions, None with one kernel."""
        scale, shift = self.modulate(embedding)[:, :, None, None, None].chunk(2, dim=1)
        inner = torch.addcmul(shift.to(x.dtype), self.first(self.seen(x), first), (1 + scale).to(x.dtype))
        return x + self.second(functional.relu(inner, inplace=True), second)

    def seen(self, x: torch.Tensor) -> torch.Tensor:
        """Return the part of the features that the block works on."""
        return x

    def folded(
        self, embedding: torch.Tensor, first: torch.Tensor | None, second: torch.Tensor | None
    ) -> tuple[nn.Conv3d, nn.Conv3d]:
        """Return both convolutions for one acquisition, with scale and shift folded into the first."""
        scale, shift = self.modulate(embedding).chunk(2)
        plain = self.first.folded(first)
        plain.weight.mul_((1 + scale)[:, None, None, None, None])
        plain.bias.mul_(1 + scale).add_(shift)  # type: ignore[union-attr]
        return plain, self.second.folded(second)


def space_to_depth(volume: torch.Tensor) -> torch.Tensor:
    """Reshape (batch, c, i, j, k) to (batch, c * 8, i / 2, j / 2, k / 2), channels last in memory."""
    b, c, i, j, k = volume.shape
    cells = volume.reshape(b, c, i // FACTOR, FACTOR, j // FACTOR, FACTOR, k // FACTOR, FACTOR)
    packed = cells.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * FACTOR**3, i // FACTOR, j // FACTOR, k // FACTOR)
    return packed.contiguous(memory_format=torch.channels_last_3d)


def depth_to_space(cells: torch.Tensor) -> torch.Tensor:
    """Inverse of :func:`space_to_depth`."""
    b, c, i, j, k = cells.shape
    parts = cells.reshape(b, c // FACTOR**3, FACTOR, FACTOR, FACTOR, i, j, k).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return parts.reshape(b, c // FACTOR**3, i * FACTOR, j * FACTOR, k * FACTOR)
