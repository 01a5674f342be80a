"""Gaussian smoothing of volumes on the processor and on the GPU."""

from __future__ import annotations

import math
from functools import lru_cache

import torch


def smoothed(volume: torch.Tensor, fwhm: float) -> torch.Tensor:
    """Smooth volumes (batch, 1, i, j, k) by a Gaussian with its FWHM in voxels; float32; edge voxels are repeated."""
    if fwhm == 0:
        return volume
    from monai.networks.layers.simplelayers import separable_filtering

    with torch.autocast(volume.device.type, enabled=False):
        return separable_filtering(volume.float(), [_gaussian(fwhm, volume.device)] * 3, mode="replicate")


@lru_cache(maxsize=8)
def _gaussian(fwhm: float, device: torch.device) -> torch.Tensor:
    from monai.networks.layers.convutils import gaussian_1d

    sigma = torch.tensor(fwhm / math.sqrt(8 * math.log(2)))
    return gaussian_1d(sigma, truncated=3.0, approx="sampled", normalize=True).to(device)
