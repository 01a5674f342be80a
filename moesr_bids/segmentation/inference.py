"""The network on an image of any contrast, orientation and voxel size; mask and labels on the image's own grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import nibabel as nib
import numpy as np
import torch
from attrs import frozen
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.nifti1 import Nifti1Image
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import ImageError
from ..intensities import without_outliers
from ..preproc.images import image_data, resample_isotropic
from ..preproc.tissues import TRUST, TissueModel, TissuePrior, fit_tissues
from ..sr.grid import bounding_box
from ..sr.precision import fast_dtype
from .components import largest_component
from .mixture import MIXTURE, tissue_shares
from .network import FACTOR, Segmenter
from .structures import BACKGROUND, BRAIN, CSF, EXTRACEREBRAL, MIRRORED
from .surface import brain_surface, without_rim, without_shading

VIEW = 96
"""Voxels per side of the cube around the brain that the network is trained on."""
_LOW, _HIGH = 0.01, 0.995
_NEAR = 0.02  # least probability of the brain for which a voxel of the network's grid counts
_MARGIN = 4  # voxels of the network's grid around a brain that is larger than the cube
_SLAB = 16  # voxels of the image's first axis that are filled at a time
# A scalp lies farther than this from the brain, has this share of the brain's median intensity, and a larger volume.
_AWAY_MM, _SIGNAL, _STRIPPED_ML = 5.0, 0.25, 60.0

Box = tuple[slice, ...]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
Affine = NDArray[np.float64]


class NoBrainError(ImageError):
    """An image in which no brain was found."""


@frozen(eq=False)
class Shares:
    """Probability of each class in a cube around the brain.

    Attributes
    ----------
    values : ndarray of float32, shape (classes, i, j, k)
        On the network's grid, axes to the right, the front and upwards.
    affine : ndarray, shape (4, 4)
        From its voxels to the image's world, mm.

    """

    values: FloatArray
    affine: Affine

    @property
    def brain(self) -> FloatArray:
        """Probability of the brain, (i, j, k)."""
        found: FloatArray = self.values[list(BRAIN)].sum(axis=0)
        return found

    @property
    def tissues(self) -> FloatArray:
        """Shares of white matter, grey matter and CSF, (i, j, k, 3)."""
        return tissue_shares(self.values)

    @property
    def certainty(self) -> float:
        """Mean probability of the most probable class in the brain; 0 without a brain."""
        inside = self.brain >= 0.5
        return float(self.values[CSF:].max(axis=0)[inside].mean()) if inside.any() else 0.0


@frozen(eq=False)
class Look:
    """What the network sees in an image.

    Attributes
    ----------
    shares : Shares
    brain, head : ndarray of bool, shape (i, j, k)
        Brain, and all that is not background, on the image's grid.
    stripped : bool
        Whether the image has no skull.

    """

    shares: Shares
    brain: BoolArray
    head: BoolArray
    stripped: bool


@frozen(eq=False)
class _Upright:
    """An image with its axes nearest to right, front and top."""

    data: FloatArray
    affine: Affine
    turn: NDArray[np.float64]
    back: NDArray[np.float64]

    @classmethod
    def of(cls, image: Nifti1Image) -> _Upright:
        data = without_outliers(image_data(image))
        if not data.max() > data.min():
            raise ImageError("the image is constant")
        ras = axcodes2ornt("RAS")
        turn = ornt_transform(io_orientation(image.affine), ras)
        affine = image.affine @ nib.orientations.inv_ornt_aff(turn, data.shape)
        upright = np.ascontiguousarray(apply_orientation(data, turn))
        return cls(upright, affine, turn, ornt_transform(ras, io_orientation(image.affine)))

    def turned(self, part: BoolArray) -> BoolArray:
        """Return an array on the image's own grid as it lies here."""
        return np.ascontiguousarray(apply_orientation(part, self.turn))

    def given_back(self, part: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return an array as it lies on the image's own grid."""
        return np.ascontiguousarray(apply_orientation(part, self.back))


def scaled(image: torch.Tensor) -> torch.Tensor:
    """Scale intensities so that the 1st and the 99.5th percentile become 0 and 1; limit them to -0.5 to 1.5."""
    some = image.flatten()[:: max(1, image.numel() // 100_000)].float()
    low, high = (float(v) for v in torch.quantile(some, torch.tensor([_LOW, _HIGH], device=some.device)))
    return ((image - low) / max(high - low, 1e-6)).clamp(-0.5, 1.5)


def look(
    image: Nifti1Image, network: Segmenter, likely: Callable[[Shares], BoolArray] = lambda shares: shares.brain >= 0
) -> Look:
    """Find the brain in an image.

    Parameters
    ----------
    image : Nifti1Image
        3-D image of finite voxels; any contrast, orientation and resolution; whole head or skull-stripped.
    network : Segmenter
        Network in evaluation mode.
    likely : Callable
        Function that says, from what the network found, where brain can be on its grid; anywhere by default.

    Raises
    ------
    ImageError
        If the image cannot be used.
    NoBrainError
        If it holds no brain.

    """
    upright = _Upright.of(image)
    zoom = network.shape.zoom
    coarse, coarse_affine = resample_isotropic(upright.data, upright.affine, zoom)
    first = class_probabilities(coarse, network)
    head = np.zeros(upright.data.shape, dtype=bool)
    for place, part in _slabs(1 - first[BACKGROUND : BACKGROUND + 1], coarse_affine, head.shape, upright.affine):
        head[place] = (part[0] >= 0.5).numpy()
    box = brain_box(first[list(BRAIN)].sum(dim=0).numpy() > 0.5)
    # Once more in a cube around the brain, as in training.
    values = both_ways(coarse[box], network).numpy()
    shares = Shares(values, _moved(coarse_affine, [part.start for part in box]))
    elsewhere = ~likely(shares)
    values[CSF:, elsewhere] = 0
    values[EXTRACEREBRAL, elsewhere] = 1 - values[BACKGROUND, elsewhere]
    tissues = np.moveaxis(shares.tissues, -1, 0)
    not_air = values[BACKGROUND] < 0.5
    even = without_shading(np.maximum(coarse[box], 0), tissues, zoom)
    soft = brain_surface(even, tissues, zoom, ndimage.binary_dilation(not_air))
    stripped = _is_stripped(even, soft >= 0.5, zoom)
    brain = np.zeros(upright.data.shape, dtype=bool)
    for place, part in _slabs(torch.from_numpy(soft[None]), shares.affine, brain.shape, upright.affine):
        brain[place] = (part[0] >= 0.5).numpy()
    if not brain.any():
        raise NoBrainError("no brain was found in the image")
    inside = bounding_box(brain, 1)
    whole = np.asarray(ndimage.binary_fill_holes(largest_component(brain[inside])))
    brain[inside] = without_rim(whole, upright.data[inside] != 0) if stripped else whole
    head |= brain
    return Look(shares, upright.given_back(brain).astype(bool), upright.given_back(head).astype(bool), stripped)


def _is_stripped(data: FloatArray, brain: BoolArray, zoom: float) -> bool:
    """Whether hardly anything beside a brain has signal: a scalp would have."""
    if not brain.any():
        return False
    signal = data > _SIGNAL * float(np.median(data[brain]))
    away = ndimage.distance_transform_edt(~brain) * zoom > _AWAY_MM
    return float((signal & away).sum()) * zoom**3 / 1000 < _STRIPPED_ML


def look_within(image: Nifti1Image, network: Segmenter, brain: BoolArray) -> Shares:
    """Return the probability of each class of the brain in an image, of which only what lies in a mask is seen.

    Raises
    ------
    ImageError
        If the image cannot be used.
    NoBrainError
        If the mask is empty.

    """
    upright = _Upright.of(image)
    return _shares_within(upright, upright.turned(brain), network)


def _shares_within(upright: _Upright, mask: BoolArray, network: Segmenter) -> Shares:
    if not mask.any():
        raise NoBrainError("the brain mask is empty")
    zoom = network.shape.zoom
    box = bounding_box(mask, math.ceil(2 * zoom / float(voxel_sizes(upright.affine).min())))
    corner = _moved(upright.affine, [part.start for part in box])
    coarse, coarse_affine = resample_isotropic(np.where(mask[box], upright.data[box], np.float32(0)), corner, zoom)
    share, _ = resample_isotropic(mask[box].astype(np.float32), corner, zoom)
    # Air is a part of the cube in training, and of the scale of its intensities.
    pads = [(lack // 2, lack - lack // 2) for lack in (max(0, VIEW - n) for n in coarse.shape)]
    values = both_ways(np.pad(coarse, pads), network).numpy()
    inside = np.pad(share, pads)
    values[CSF:] *= inside / np.maximum(values[CSF:].sum(axis=0), 1e-6)
    values[:CSF] = 0
    values[BACKGROUND] = 1 - inside
    return Shares(values, _moved(coarse_affine, [-before for before, _ in pads]))


def label(image: Nifti1Image, network: Segmenter, brain: BoolArray) -> NDArray[np.uint8]:
    """Return the structure of each voxel of a brain mask, on the image's grid.

    The intensities decide between tissues, with what the network found as prior: an image has finer detail than the
    network's grid.

    Parameters
    ----------
    image : Nifti1Image
        Image without bias field.
    network : Segmenter
        Network in evaluation mode.
    brain : ndarray of bool, shape (i, j, k)
        Brain mask, not empty.

    Returns
    -------
    ndarray of uint8, shape (i, j, k)
        Indices of :data:`moesr_bids.segmentation.structures.STRUCTURES`; background outside of the mask.

    Raises
    ------
    ImageError
        If the image cannot be used.
    NoBrainError
        If the mask is empty.

    """
    upright = _Upright.of(image)
    mask = upright.turned(brain)
    shares = _shares_within(upright, mask, network)
    prior = TissuePrior(shares.tissues, shares.affine)
    model = fit_tissues(upright.data, upright.affine, mask, prior)
    labels = np.full(mask.shape, CSF, dtype=np.uint8)
    box = bounding_box(shares.brain > _NEAR, 1)
    some = torch.from_numpy(np.ascontiguousarray(shares.values[(slice(CSF, None), *box)]))
    for place, parts in _slabs(some, _moved(shares.affine, [p.start for p in box]), mask.shape, upright.affine):
        weighed = parts**TRUST * _likelihood(model, upright.data[place])[CSF:]
        labels[place] = (weighed.argmax(dim=0) + CSF).to(torch.uint8).numpy()
    labels[~mask] = BACKGROUND
    return upright.given_back(labels).astype(np.uint8)


def _likelihood(model: TissueModel, values: FloatArray) -> torch.Tensor:
    """Return the likelihood of intensities under each class, (classes, i, j, k)."""
    of_tissues = torch.from_numpy(model.likelihood(values)[: MIXTURE.shape[1]].astype(np.float32))
    return torch.tensordot(torch.from_numpy(MIXTURE), of_tissues, dims=1)


def _moved(affine: Affine, start: Sequence[float]) -> Affine:
    """Return the affine of a part of a grid that begins at a voxel."""
    moved = affine.copy()
    moved[:3, 3] = apply_affine(affine, start)
    return moved


@torch.no_grad()
def class_probabilities(data: FloatArray, network: Segmenter) -> torch.Tensor:
    """Return the probability of each class, float32 (classes, i, j, k), of an upright image on the network's grid."""
    volume = scaled(torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32)))
    sides = [max(2, math.ceil(n / FACTOR)) * FACTOR for n in data.shape]
    padded = volume.new_zeros(sides)
    inside = tuple(slice(0, n) for n in data.shape)
    padded[inside] = volume
    batch = padded[None, None].contiguous(memory_format=torch.channels_last_3d)
    dtype = fast_dtype(torch.device("cpu"))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = network(batch)
    return logits[0][(slice(None), *inside)].float().softmax(dim=0)


def both_ways(data: FloatArray, network: Segmenter) -> torch.Tensor:
    """Return `class_probabilities`, the mean of those of an image and of its mirror image."""
    mirrored = class_probabilities(np.ascontiguousarray(data[::-1]), network).flip(1)[list(MIRRORED)]
    return (class_probabilities(data, network) + mirrored) / 2


def brain_box(brain: BoolArray) -> Box:
    """Return a cube of `VIEW` voxels per side around the largest part of a brain, larger if the brain needs it.

    Raises
    ------
    NoBrainError
        If the mask is empty.
    """
    largest = largest_component(brain)
    if not largest.any():
        raise NoBrainError("no brain was found in the image")
    box = []
    for part, n in zip(bounding_box(largest), brain.shape, strict=True):
        side = max(VIEW, part.stop - part.start + 2 * _MARGIN)
        start = int(np.clip((part.start + part.stop - side) // 2, 0, max(0, n - side)))
        box.append(slice(start, min(n, start + side)))
    return tuple(box)


def _slabs(
    parts_of: torch.Tensor, cube_affine: Affine, shape: tuple[int, ...], affine: Affine
) -> Iterator[tuple[Box, torch.Tensor]]:
    """Yield places on the fine grid and linearly interpolated values there; all at once would take a gigabyte.

    Both grids have the same axes, so one small matrix per axis is enough.
    """
    to_coarse = np.linalg.inv(cube_affine) @ affine
    matrices, starts = [], []
    for axis, (extent, n) in enumerate(zip(parts_of.shape[1:], shape, strict=True)):
        place = to_coarse[axis, axis] * np.arange(n) + to_coarse[axis, 3]
        inside = np.flatnonzero((place > -1) & (place < extent))
        starts.append(int(inside[0]))
        matrices.append(torch.from_numpy(_linear(place[inside], extent)))
    for first in range(0, len(matrices[0]), _SLAB):
        slab = matrices[0][first : first + _SLAB]
        parts = torch.tensordot(slab, parts_of.movedim(1, 0), dims=1).movedim(0, 1)
        for axis in (1, 2):
            parts = torch.tensordot(matrices[axis], parts.movedim(axis + 1, 0), dims=1).movedim(0, axis + 1)
        begin = (starts[0] + first, starts[1], starts[2])
        yield tuple(slice(b, b + n) for b, n in zip(begin, parts.shape[1:], strict=True)), parts


def _linear(place: NDArray[np.float64], n: int) -> FloatArray:
    """Matrix (places, n) that interpolates n samples linearly; beyond the ends the last sample is repeated."""
    place = np.clip(place, 0, n - 1)
    below = np.minimum(place.astype(int), max(n - 2, 0))
    matrix = np.zeros((len(place), n), dtype=np.float32)
    rows = np.arange(len(place))
    matrix[rows, below] = 1 - (place - below)
    matrix[rows, np.minimum(below + 1, n - 1)] += place - below
    return matrix
