"""The segmentation network: a small 3-D U-Net (Ronneberger et al. 2015) of MONAI on a coarse isotropic grid.

The U-Net works at half the resolution of that grid, with the voxels of each block of 2 x 2 x 2 as channels: layers at
full resolution take most of the time, and see the least.

Its training data, not its shape, make it independent of contrast (Billot et al. 2023, doi:10.1016/j.media.2023.102789;
Hoopes et al. 2022, doi:10.1016/j.neuroimage.2022.119474).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import asdict, field, frozen, validators
from torch import nn

from ..sr.models.layers import FACTOR as BLOCK
from ..sr.models.layers import depth_to_space, space_to_depth
from .structures import STRUCTURES

_LEVELS = 5
FACTOR = BLOCK * 2 ** (_LEVELS - 1)
"""Sides of the network's input are multiples of this, from twice this on: one voxel alone has no deviation."""


def _features(values: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(v) for v in values)


@frozen(kw_only=True)
class SegmenterShape:
    """Sizes of the network.

    Parameters
    ----------
    features
        Channels of the five levels, and of the last layer.
    zoom
        Isotropic voxel size of its grid, mm.
    classes
        Number of classes, that of :data:`moesr_bids.segmentation.structures.STRUCTURES`.
    """

    features: tuple[int, ...] = field(
        default=(32, 64, 96, 112, 128, 32),
        converter=_features,
        validator=[validators.min_len(_LEVELS + 1), validators.max_len(_LEVELS + 1)],
    )
    zoom: float = field(default=2.0, validator=validators.gt(0))
    classes: int = field(default=len(STRUCTURES), validator=validators.in_((len(STRUCTURES),)))

    def record(self) -> dict[str, Any]:
        """Return the sizes as JSON-serialisable facts."""
        return asdict(self)


class Segmenter(nn.Module):
    """Network from an image to the logit of each class.

    The input is float (batch, 1, i, j, k) in the orientation RAS, with sides that are multiples of `FACTOR`, at
    least ``2 * FACTOR``, and intensities of about 0 to 1 (see :func:`moesr_bids.segmentation.inference.scaled`).
    """

    def __init__(self, shape: SegmenterShape) -> None:
        from monai.networks.nets.basic_unet import BasicUNet

        super().__init__()
        self.shape = shape
        self.unet = BasicUNet(
            spatial_dims=3,
            in_channels=BLOCK**3,
            out_channels=BLOCK**3 * shape.classes,
            features=shape.features,
            upsample="nontrainable",
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits, (batch, classes, i, j, k)."""
        return depth_to_space(self.unet(space_to_depth(image)))
