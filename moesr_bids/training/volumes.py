"""Real sharp volumes: loading them, with their resolution along each axis, and drawing patches from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import ImageError
from ..nifti import open_image, read_voxels
from ..sr.noise import foreground
from ..sr.operator import apply_axes, axis_matrix
from ..sr.psf import AxisPSF
from .sharpness import axis_resolution
from .tissue import find_lesions, find_segmentation

_PERCENTILE = 99.0
_MOST_ANISOTROPIC = 1.5  # voxel sizes of a target may differ by this factor
_SHARP = 1.25  # detail of a sharp axis, in target voxels: k-space filters reach that far
_COARSER = 1.35  # patches are drawn at up to this many times the voxel size
_COARSE_FWHM = 0.9  # of the coarser voxel: little aliasing, and no Gibbs ringing
_DEEP_VOXELS = 8
_BRAIN_HEIGHT_MM = 125.0  # below the top of the head there is mostly brain down to here


@frozen(eq=False)
class TrainingVolume:
    """A sharp volume.

    Parameters
    ----------
    name
        File name without extension.
    data
        float16, divided by the 99th percentile of its foreground.
    resolution
        Finest detail along each axis in voxels, from :func:`.sharpness.axis_resolution`.
    centres
        Voxels that patches are drawn around, (n, 3).
    tissue
        Masks of white matter, cortex and lesions, (3, i, j, k); unknown ones are empty; None if all are unknown.
    lesions
        Voxels of each lesion, (n, 3).
    """

    name: str
    data: NDArray[np.float16]
    resolution: tuple[float, float, float]
    centres: NDArray[np.int16]
    tissue: NDArray[np.uint8] | None = None
    lesions: Sequence[NDArray[np.int16]] = ()

    @property
    def spacings(self) -> tuple[float, float]:
        """Range of voxel sizes of patches, in voxels of this volume, with sharp detail along two axes or more."""
        least = max(1.0, sorted(self.resolution)[1] / _SHARP)
        return least, least * _COARSER

    @property
    def segmented(self) -> bool:
        """Whether white matter or cortex is known somewhere."""
        return self.tissue is not None and bool(self.tissue[:2].any())

    def draw(self, size: int, rng: np.random.Generator, focus: float = 0.0) -> Cut:
        """Draw where a cube of ``size`` voxels per side is cut out: half of the cubes at the finest spacing.

        A share ``focus`` of them is around a lesion, if there are lesions; large and small ones are equally likely.
        """
        low, high = self.spacings
        spacing = low if rng.random() < 0.5 else float(rng.uniform(low, high))
        centres = self.centres
        if focus and self.lesions and rng.random() < focus:
            centres = self.lesions[int(rng.integers(len(self.lesions)))]
        centre = centres[rng.integers(len(centres))] + rng.integers(-8, 9, size=3)
        reach = size if spacing == 1 else math.ceil(size * spacing) + 4
        corner = [int(c) - reach // 2 for c in centre]
        turn = Turn.sample(rng)
        return Cut(corner, reach, spacing, turn, detail_of(self.resolution, turn.axes, spacing))

    def tensors(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Image and tissue on a device, for :func:`cut_out`."""
        parts = [self.data, *(self.tissue if self.tissue is not None else ())]
        return tuple(torch.from_numpy(part).to(device) for part in parts)


@frozen(eq=False)
class Turn:
    """A permutation of the axes of a cube, and the axes that are flipped after it."""

    axes: tuple[int, ...]
    flips: tuple[int, ...]

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Turn:
        """Draw an orientation."""
        axes = tuple(int(a) for a in rng.permutation(3))
        return cls(axes, tuple(axis for axis in range(3) if rng.random() < 0.5))

    def apply(self, cubes: torch.Tensor) -> torch.Tensor:
        """Turn the last three axes of a stack of cubes."""
        cubes = cubes.permute([0, *(1 + axis for axis in self.axes)])
        return cubes.flip([1 + axis for axis in self.flips]).contiguous()


@frozen(eq=False)
class Cut:
    """Where a cube is cut out of a volume.

    Parameters
    ----------
    corner, reach
        First voxel, and voxels of the volume per side.
    spacing
        Voxel size of the cube, in voxels of the volume.
    turn
        Orientation of the cube.
    detail
        Finest detail of the cube along each axis, in its voxels: 1 where it is sharp.
    """

    corner: Sequence[int]
    reach: int
    spacing: float
    turn: Turn
    detail: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def matrix(self, size: int) -> torch.Tensor:
        """Make the matrix that resamples an axis to ``size`` voxels, (size, reach); empty if nothing is resampled."""
        return torch.empty(0) if self.spacing == 1 else _resampling(size, self.reach, self.spacing)


def cut_out(parts: Sequence[torch.Tensor], cut: Cut, matrix: torch.Tensor) -> torch.Tensor:
    """Cut a cube out of a volume; outside of the volume the cube is zero.

    Parameters
    ----------
    parts
        From :meth:`TrainingVolume.tensors`.
    cut
        From :meth:`TrainingVolume.draw`.
    matrix
        From :meth:`Cut.matrix`, on the device of the volume.

    Returns
    -------
    patch
        float32 (4, size, size, size): the image, and the shares of white matter, cortex and lesions (0 where unknown).
    """
    cubes = torch.stack([_crop(part, cut.corner, cut.reach) for part in parts])
    if matrix.numel():
        cubes = torch.stack([apply_axes(cube, (matrix,) * 3) for cube in cubes])
        # The profile overshoots at edges; shares do not.
        cubes[1:].clamp_(0, 1)
    if len(cubes) == 1:
        cubes = torch.cat([cubes, cubes.new_zeros((3, *cubes.shape[1:]))])
    return cut.turn.apply(cubes)


def detail_of(resolution: Sequence[float], axes: Sequence[int], spacing: float = 1.0) -> tuple[float, float, float]:
    """Finest detail along some axes of a volume, in voxels of size ``spacing``; 1 where it is sharp.

    ``resolution`` and ``spacing`` are in voxels of the volume.
    """
    i, j, k = (1.0 if (d := resolution[axis] / spacing) <= _SHARP else d for axis in axes)
    return i, j, k


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number whose logarithm is uniform."""
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


def log_triangular(rng: np.random.Generator, low: float, mode: float, high: float) -> float:
    """Draw a number whose logarithm has a triangular distribution."""
    return float(math.exp(rng.triangular(math.log(low), math.log(mode), math.log(high))))


def load_volume(path: Path, segmentations: Sequence[Path] = ()) -> TrainingVolume:
    """Load a volume that may serve as a sharp target.

    Patches are cut on its own grid. Voxels that are not isotropic are treated as if they were, so heads look compressed
    along the axes of larger voxels.

    Parameters
    ----------
    path
        NIfTI image.
    segmentations
        Folders that are searched for a FreeSurfer label map and a lesion mask on the image's grid.

    Raises
    ------
    ImageError
        If the file is no readable 3-D image, or its voxel sizes differ by more than a factor of 1.5.
    """
    data, affine = read_3d(path)
    if coarse := too_coarse(affine):
        raise ImageError(f"{path}: {coarse}")
    head = foreground(data)
    scale = float(np.percentile(data[head], _PERCENTILE))
    name = path.name.split(".", 1)[0]
    image = nib.Nifti1Image(data, affine)
    tissue, lesions = (find(path, image, segmentations) for find in (find_segmentation, find_lesions))
    return TrainingVolume(
        name,
        np.clip(data / scale, 0, 8).astype(np.float16),
        axis_resolution(data, head, nib.affines.voxel_sizes(affine)),
        _deep_voxels(head, affine),
        _stacked(data.shape, tissue, lesions),
        [] if lesions is None else _voxels_of_each(lesions),
    )


def _stacked(
    shape: tuple[int, ...], tissue: NDArray[np.uint8] | None, lesions: NDArray[np.uint8] | None
) -> NDArray[np.uint8] | None:
    """Join the masks of tissue and lesions of a volume; None if there are none."""
    if tissue is None and lesions is None:
        return None
    masks = np.zeros((3, *shape), np.uint8)
    if tissue is not None:
        masks[:2] = tissue
    if lesions is not None:
        masks[2] = lesions
    return masks


def _voxels_of_each(lesions: NDArray[np.uint8]) -> list[NDArray[np.int16]]:
    """Voxels of each lesion, (n, 3); those that touch at a corner are one."""
    labels, _ = ndimage.label(lesions, np.ones((3, 3, 3)))
    places = ndimage.value_indices(labels, ignore_value=0)
    return [np.stack(place, axis=1).astype(np.int16) for place in places.values()]


def too_coarse(affine: NDArray[np.float64]) -> str | None:
    """Return why a scan is no sharp target, if its voxel sizes differ by more than a factor of 1.5; else None."""
    zooms = nib.affines.voxel_sizes(affine)
    if max(zooms) <= _MOST_ANISOTROPIC * min(zooms):
        return None
    sizes = " x ".join(f"{z:.3g}" for z in zooms)
    return f"voxels of {sizes} mm are no sharp target; leave it out"


def read_3d(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Read the voxels (float32) and the affine of a 3-D image.

    Raises
    ------
    ImageError
        If it cannot be read, has more than one volume, or voxels that are not finite.
    """
    image, _ = open_image(path)
    shape = tuple(n for n in image.shape if n > 1)
    if len(shape) != 3:
        raise ImageError(f"{path}: a 3-D image is needed, this one has shape {image.shape}; extract one volume")
    data = read_voxels(image, str(path)).reshape(shape)
    if not np.isfinite(data).all():
        raise ImageError(f"{path}: has voxels that are NaN or infinite; replace them first")
    return data, image.affine


def _deep_voxels(head: NDArray[np.bool_], affine: NDArray[np.float64]) -> NDArray[np.int16]:
    """Voxels well inside the upper head, where the brain is, (n, 3); at most about 100,000."""
    depth = ndimage.distance_transform_edt(ndimage.binary_closing(head, iterations=2))
    deep = np.argwhere(depth >= min(_DEEP_VOXELS, 0.5 * depth.max()))
    height = nib.affines.apply_affine(affine, deep)[:, 2]
    deep = deep[height > np.percentile(height, 99.9) - _BRAIN_HEIGHT_MM]
    return deep[:: max(1, len(deep) // 100_000)].astype(np.int16)


def _crop(volume: torch.Tensor, corner: Sequence[int], size: int) -> torch.Tensor:
    cube = volume.new_zeros((size,) * 3, dtype=torch.float32)
    inner, outer = [], []
    for start, n in zip(corner, volume.shape, strict=True):
        low, high = max(0, start), min(n, start + size)
        inner.append(slice(low - start, max(low, high) - start))
        outer.append(slice(low, max(low, high)))
    cube[tuple(inner)] = volume[tuple(outer)].float()
    return cube


def _resampling(size: int, reach: int, spacing: float) -> torch.Tensor:
    source = np.arange(reach, dtype=np.float64) - (reach - 1) / 2
    target = (np.arange(size, dtype=np.float64) - (size - 1) / 2) * spacing
    matrix = axis_matrix(target, source, AxisPSF("gaussian", _COARSE_FWHM * spacing), 1.0)
    return torch.from_numpy(matrix.astype(np.float32))
