"""Segmentation of an image of any contrast, orientation and voxel size, on its own grid."""

from __future__ import annotations

import math

import nibabel as nib
import numpy as np
import torch
from attrs import frozen
from nibabel.affines import voxel_sizes
from nibabel.nifti1 import Nifti1Image
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import ImageError
from ..intensities import without_outliers
from ..preproc.images import image_data, resample_isotropic
from ..sr.precision import fast_dtype
from .labels import BACKGROUND, BRAIN, CSF
from .network import FACTOR, Segmenter

VIEW = 96
"""Voxels per side of the cube around the brain that the network is trained on."""
_LOW, _HIGH = 0.01, 0.995
_LEAST_BRAIN_ML = 50.0

Box = tuple[slice, ...]


@frozen(eq=False)
class Segmentation:
    """The classes of an image.

    Attributes
    ----------
    labels : ndarray of uint8, shape (i, j, k)
        Indices of :data:`moesr_bids.segmentation.labels.STRUCTURES`, on the image's grid.
    brain : ndarray of bool, shape (i, j, k)
        Brain mask, on the image's grid.
    certainty : float
        Mean probability of the chosen class in the brain, 0 to 1.

    """

    labels: NDArray[np.uint8]
    brain: NDArray[np.bool_]
    certainty: float


def scaled(image: torch.Tensor) -> torch.Tensor:
    """Scale intensities so that the 1st and the 99.5th percentile become 0 and 1; limit them to -0.5 to 1.5."""
    some = image.flatten()[:: max(1, image.numel() // 100_000)].float()
    low, high = (float(v) for v in torch.quantile(some, torch.tensor([_LOW, _HIGH], device=some.device)))
    return ((image - low) / max(high - low, 1e-6)).clamp(-0.5, 1.5)


def segment(image: Nifti1Image, network: Segmenter) -> Segmentation:
    """Segment an image.

    Parameters
    ----------
    image : Nifti1Image
        3-D image of finite voxels; any contrast, orientation and resolution; whole head or skull-stripped.
    network : Segmenter
        Network in evaluation mode.

    Raises
    ------
    ImageError
        If the image cannot be used, or holds no brain.

    """
    data = without_outliers(image_data(image))
    to_ras = ornt_transform(io_orientation(image.affine), axcodes2ornt("RAS"))
    upright = np.ascontiguousarray(apply_orientation(data, to_ras))
    affine = image.affine @ nib.orientations.inv_ornt_aff(to_ras, data.shape)
    coarse, coarse_affine = resample_isotropic(upright, affine, network.shape.zoom)
    probabilities = class_probabilities(coarse, network)
    # Once more in a cube around the brain, as in training.
    box = brain_box(probabilities)
    probabilities = class_probabilities(coarse[box], network)
    labels, brain, certainty = _on_fine_grid(probabilities, box, coarse_affine, upright.shape, affine)
    volume = float(brain.sum()) * float(np.prod(voxel_sizes(image.affine))) / 1000
    if volume < _LEAST_BRAIN_ML:
        raise ImageError(f"no brain was found ({volume:.0f} mL)")
    back = ornt_transform(axcodes2ornt("RAS"), io_orientation(image.affine))
    return Segmentation(
        np.ascontiguousarray(apply_orientation(labels, back)),
        np.ascontiguousarray(apply_orientation(brain, back)),
        certainty,
    )


@torch.no_grad()
def class_probabilities(data: NDArray[np.float32], network: Segmenter) -> torch.Tensor:
    """Return the probability of each class, float32 (classes, i, j, k), of an upright image on the network's grid."""
    device = next(network.parameters()).device
    volume = scaled(torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32)).to(device))
    sides = [max(2, math.ceil(n / FACTOR)) * FACTOR for n in data.shape]
    padded = volume.new_zeros(sides)
    padded[tuple(slice(0, n) for n in data.shape)] = volume
    batch = padded[None, None].contiguous(memory_format=torch.channels_last_3d)
    dtype = fast_dtype(device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        logits = network(batch)
    inside = tuple(slice(0, n) for n in data.shape)
    return logits[0][(slice(None), *inside)].float().softmax(dim=0)


def brain_box(probabilities: torch.Tensor) -> Box:
    """Return a cube of `VIEW` voxels per side around the brain, larger if the brain needs it.

    Raises
    ------
    ImageError
        If no brain was found.
    """
    shape = probabilities.shape[1:]
    brain = np.asarray(probabilities[list(BRAIN)].sum(dim=0).cpu()) > 0.5
    labels, count = ndimage.label(brain)
    if not count:
        raise ImageError("no brain was found")
    largest = np.argwhere(labels == 1 + np.argmax(np.bincount(labels.ravel())[1:]))
    low, high = largest.min(axis=0), largest.max(axis=0) + 1
    box = []
    for first, last, n in zip(low, high, shape, strict=True):
        side = max(VIEW, int(last - first) + 8)
        start = int(np.clip((first + last - side) // 2, 0, max(0, n - side)))
        box.append(slice(start, min(n, start + side)))
    return tuple(box)


def _on_fine_grid(
    probabilities: torch.Tensor,
    box: Box,
    coarse_affine: NDArray[np.float64],
    shape: tuple[int, ...],
    affine: NDArray[np.float64],
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], float]:
    """Interpolate probabilities linearly to the fine grid; surfaces lie between the voxels of the coarse grid.

    Both grids have the same axes, so one small matrix per axis is enough. Returns labels, brain mask and certainty.
    """
    to_coarse = np.linalg.inv(coarse_affine) @ affine
    fine_box, parts = [], probabilities
    for axis, (side, n) in enumerate(zip(box, shape, strict=True)):
        place = to_coarse[axis, axis] * np.arange(n) + to_coarse[axis, 3] - side.start
        extent = side.stop - side.start
        inside = np.flatnonzero((place > -1) & (place < extent))
        fine_box.append(slice(int(inside[0]), int(inside[-1]) + 1))
        matrix = torch.from_numpy(_linear(place[inside], extent)).to(parts)
        parts = torch.tensordot(matrix, parts.movedim(axis + 1, 0), dims=1).movedim(0, axis + 1)
    most, chosen = parts.max(dim=0)
    inside_brain = parts[list(BRAIN)].sum(dim=0) >= 0.5
    whole = np.zeros(shape, dtype=bool)
    whole[tuple(fine_box)] = np.asarray(inside_brain.cpu())
    components, count = ndimage.label(whole)
    if count > 1:
        whole = components == 1 + np.argmax(np.bincount(components.ravel())[1:])
    whole = np.asarray(ndimage.binary_fill_holes(whole))
    labels = np.zeros(shape, dtype=np.uint8)
    labels[tuple(fine_box)] = np.asarray(chosen.to(torch.uint8).cpu())
    # Voxels have a class of the brain if and only if they lie in the brain mask.
    labels[~whole & (labels >= CSF)] = BACKGROUND
    labels[whole & (labels < CSF)] = CSF
    certainty = float(most[inside_brain].mean()) if bool(inside_brain.any()) else 0.0
    return labels, whole, certainty


def _linear(place: NDArray[np.float64], n: int) -> NDArray[np.float32]:
    """Matrix (places, n) that interpolates n samples linearly; beyond the ends the last sample is repeated."""
    place = np.clip(place, 0, n - 1)
    below = np.minimum(place.astype(int), max(n - 2, 0))
    matrix = np.zeros((len(place), n), dtype=np.float32)
    rows = np.arange(len(place))
    matrix[rows, below] = 1 - (place - below)
    matrix[rows, np.minimum(below + 1, n - 1)] += place - below
    return matrix
