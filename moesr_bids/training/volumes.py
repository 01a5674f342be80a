"""Real sharp volumes: loading, how smooth they are along each axis, and drawing patches from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import ImageError
from ..sr.noise import foreground
from ..sr.operator import apply_axes, axis_matrix
from ..sr.psf import AxisPSF
from .tissue import find_segmentation

_PERCENTILE = 99.0
_MOST_ANISOTROPIC = 1.3  # voxel sizes of a target may differ by this factor
_SMOOTHER = 1.25  # an axis this much smoother than the sharpest one was acquired thicker
_COARSER = 1.35  # patches are drawn at up to this many times the voxel size
_COARSE_FWHM = 0.9  # of the coarser voxel: little aliasing, and no Gibbs ringing in a target
_DEEP_VOXELS = 8
_BRAIN_HEIGHT_MM = 125.0  # below the top of the head there is mostly brain down to here
_EROSION = 4


@frozen(eq=False)
class Volume:
    """A sharp volume.

    Parameters
    ----------
    name
        File name without extension.
    data
        float16, divided by the 99th percentile of its foreground.
    smoothness
        FWHM of the intensities along the smoothest axis over that along the sharpest.
    centres
        Voxels that patches are drawn around, (n, 3).
    tissue
        Masks of white matter and cortex, (2, i, j, k); None where unknown.
    """

    name: str
    data: NDArray[np.float16]
    smoothness: float
    centres: NDArray[np.int16]
    tissue: NDArray[np.uint8] | None = None

    @property
    def spacings(self) -> tuple[float, float]:
        """Voxel sizes, in own voxels, at which this volume is a sharp target."""
        least = 1.0 if self.smoothness < _SMOOTHER else self.smoothness
        return least, least * _COARSER

    def patch(self, size: int, rng: np.random.Generator, device: torch.device) -> torch.Tensor:
        """Draw a cube in random orientation; outside of the volume it is zero.

        Returns
        -------
        patch
            float32 (3, size, size, size): the image, and the shares of white matter and cortex (0 where unknown). Half
            of the patches are at the finest spacing, the others coarser.
        """
        low, high = self.spacings
        spacing = low if rng.random() < 0.5 else float(rng.uniform(low, high))
        centre = self.centres[rng.integers(len(self.centres))] + rng.integers(-8, 9, size=3)
        reach = size if spacing == 1 else math.ceil(size * spacing) + 4
        parts = [self.data, *(self.tissue if self.tissue is not None else ())]
        cubes = [torch.from_numpy(_crop(part, centre, reach)).to(device, torch.float32) for part in parts]
        if spacing > 1:
            cubes = [_resample(cube, size, spacing) for cube in cubes]
            # The profile overshoots at edges; shares do not.
            cubes[1:] = [cube.clamp(0, 1) for cube in cubes[1:]]
        if self.tissue is None:
            cubes += [torch.zeros_like(cubes[0])] * 2
        return turned(torch.stack(cubes), rng)


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number whose logarithm is uniform."""
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


def log_triangular(rng: np.random.Generator, low: float, mode: float, high: float) -> float:
    """Draw a number whose logarithm has a triangular distribution."""
    return float(math.exp(rng.triangular(math.log(low), math.log(mode), math.log(high))))


def turned(cube: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Permute and flip the last three axes of a stack of cubes at random."""
    cube = cube.permute([0, *(1 + int(a) for a in rng.permutation(3))])
    flips = [1 + axis for axis in range(3) if rng.random() < 0.5]
    return cube.flip(flips).contiguous()


def load_volume(path: Path, segmentations: Sequence[Path] = ()) -> Volume:
    """Load a volume that may serve as a sharp target.

    Parameters
    ----------
    path
        NIfTI image.
    segmentations
        Folders in which a FreeSurfer label map on the image's grid is looked for.

    Raises
    ------
    ImageError
        If the file is no 3-D image, or its voxels are too anisotropic for a sharp target.
    """
    data, affine = read_3d(path)
    zooms = nib.affines.voxel_sizes(affine)
    if max(zooms) > _MOST_ANISOTROPIC * min(zooms):
        sizes = " x ".join(f"{z:.3g}" for z in zooms)
        raise ImageError(f"{path}: voxels of {sizes} mm are no sharp target; leave it out")
    head = foreground(data)
    scale = float(np.percentile(data[head], _PERCENTILE))
    inside = ndimage.binary_erosion(head, iterations=_EROSION)
    smoothness = axis_smoothness(data, inside if inside.any() else head)
    name = path.name.split(".", 1)[0]
    return Volume(
        name,
        np.clip(data / scale, 0, 8).astype(np.float16),
        max(smoothness) / min(smoothness),
        _deep_voxels(head, affine),
        find_segmentation(path, affine, list(segmentations)),
    )


def read_3d(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Read the voxels (float32) and the affine of a 3-D image.

    Raises
    ------
    ImageError
        If it cannot be read, has more than one volume, or voxels that are not finite.
    """
    try:
        image = nib.load(path)
        data = np.squeeze(image.get_fdata(dtype=np.float32))
    except (nib.filebasedimages.ImageFileError, OSError, EOFError) as error:
        raise ImageError(f"{path}: not a readable NIfTI image ({error}); leave it out or fetch it again") from error
    if data.ndim != 3:
        raise ImageError(f"{path}: a 3-D image is needed, this one has shape {data.shape}; extract one volume")
    if not np.isfinite(data).all():
        raise ImageError(f"{path}: has voxels that are NaN or infinite; replace them first")
    return data, image.affine


def axis_smoothness(data: NDArray[np.floating], mask: NDArray[np.bool_]) -> tuple[float, float, float]:
    """FWHM in voxels along each axis of the Gaussian kernel that gives white noise the same smoothness.

    From the variance of first differences (Forman et al. 1995, eq. 4; AFNI's 3dFWHMx). Anatomy has its own smoothness,
    so the figures compare the axes of one image rather than images.
    """
    variance = float(np.var(data[mask]))
    widths = []
    for axis in range(3):
        ahead = [slice(None)] * 3
        behind = [slice(None)] * 3
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        pairs = mask[tuple(ahead)] & mask[tuple(behind)]
        step = float(np.mean(np.square(data[tuple(ahead)][pairs] - data[tuple(behind)][pairs])))
        correlation = min(max(1 - step / (2 * variance), 1e-6), 1 - 1e-6)
        widths.append(math.sqrt(-2 * math.log(2) / math.log(correlation)))
    return widths[0], widths[1], widths[2]


def _deep_voxels(head: NDArray[np.bool_], affine: NDArray[np.float64]) -> NDArray[np.int16]:
    """Voxels well inside of the upper head, where the brain is, as many as are needed for variety."""
    depth = ndimage.distance_transform_edt(ndimage.binary_closing(head, iterations=2))
    deep = np.argwhere(depth >= min(_DEEP_VOXELS, 0.5 * depth.max()))
    height = nib.affines.apply_affine(affine, deep)[:, 2]
    deep = deep[height > np.percentile(height, 99.9) - _BRAIN_HEIGHT_MM]
    return deep[:: max(1, len(deep) // 100_000)].astype(np.int16)


def _crop(data: NDArray[Any], centre: Sequence[int] | NDArray[np.generic], size: int) -> NDArray[Any]:
    cube = np.zeros((size,) * 3, dtype=data.dtype)
    inner, outer = [], []
    for c, n in zip(centre, data.shape, strict=True):
        start = int(c) - size // 2
        low, high = max(0, start), min(n, start + size)
        inner.append(slice(low - start, max(low, high) - start))
        outer.append(slice(low, max(low, high)))
    cube[tuple(inner)] = data[tuple(outer)]
    return cube


def _resample(cube: torch.Tensor, size: int, spacing: float) -> torch.Tensor:
    source = np.arange(cube.shape[0], dtype=np.float64) - (cube.shape[0] - 1) / 2
    target = (np.arange(size, dtype=np.float64) - (size - 1) / 2) * spacing
    matrix = axis_matrix(target, source, AxisPSF("gaussian", _COARSE_FWHM * spacing), 1.0)
    one = torch.from_numpy(matrix.astype(np.float32)).to(cube.device)
    return apply_axes(cube, (one, one, one))
