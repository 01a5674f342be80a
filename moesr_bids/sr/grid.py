"""Sampling grids: array shape and voxel-to-world affine, and the isotropic target grid of an input."""

from __future__ import annotations

import math
from typing import Any

import nibabel as nib
import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

# A field of view that misses a whole number of target voxels by less than this share of one counts as exact:
# zooms are stored in float32, so 256 x 0.859375 / 0.859375 must give 256 and not 257.
_VOXEL_TOLERANCE = 0.02


def bounding_box(mask: NDArray[np.bool_], margin: int = 0) -> tuple[slice, ...]:
    """Return the smallest box around a mask, wider by ``margin`` voxels on each side but within the array.

    Raises
    ------
    ValueError
        If the mask is empty.
    """
    return tuple(slice(max(int(hit.min()) - margin, 0), int(hit.max()) + 1 + margin) for hit in np.nonzero(mask))


def _affine(value: object) -> NDArray[np.float64]:
    affine = np.array(value, dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise ValueError(f"an affine is a finite 4 x 4 matrix, got shape {affine.shape}")
    affine.setflags(write=False)
    return affine


def _shape(value: object) -> tuple[int, int, int]:
    i, j, k = (int(n) for n in value)  # type: ignore[attr-defined]
    if min(i, j, k) < 1:
        raise ValueError(f"a grid has at least one voxel along each axis, got {(i, j, k)}")
    return i, j, k


@frozen(eq=False)
class Grid:
    """A regular 3-D grid.

    Parameters
    ----------
    shape
        Number of voxels along the array axes (i, j, k).
    affine
        4 x 4 matrix from voxel indices to world coordinates (RAS, mm). It may be oblique or left-handed.

    Raises
    ------
    ValueError
        If an axis has no voxel, or the affine is not a finite 4 x 4 matrix.
    """

    shape: tuple[int, int, int] = field(converter=_shape)
    affine: NDArray[np.float64] = field(converter=_affine)

    @classmethod
    def from_image(cls, image: nib.spatialimages.SpatialImage) -> Grid:
        """Grid of a 3-D image."""
        return cls(image.shape, image.affine)

    @property
    def zooms(self) -> tuple[float, float, float]:
        """Voxel size along (i, j, k) in mm."""
        i, j, k = nib.affines.voxel_sizes(self.affine)
        return float(i), float(j), float(k)

    @property
    def fov_mm(self) -> tuple[float, float, float]:
        """Field of view along (i, j, k) in mm, voxel edge to voxel edge."""
        i, j, k = (n * z for n, z in zip(self.shape, self.zooms, strict=True))
        return i, j, k

    @property
    def centre(self) -> NDArray[np.float64]:
        """World coordinates of the centre of the field of view, mm."""
        return nib.affines.apply_affine(self.affine, (np.array(self.shape) - 1) / 2)

    def axis_positions(self, axis: int) -> NDArray[np.float64]:
        """Voxel centres along one array axis in mm from the centre of the field of view."""
        n = self.shape[axis]
        return np.asarray((np.arange(n) - (n - 1) / 2) * self.zooms[axis], dtype=np.float64)

    def nearest(self, volume: NDArray[Any], target: Grid) -> NDArray[Any]:
        """Resample a volume of this grid to a grid with the same axes and centre, by the nearest voxel."""
        for axis in range(3):
            here, there = self.axis_positions(axis), target.axis_positions(axis)
            places = np.rint((there - here[0]) / self.zooms[axis]).astype(int)
            volume = np.take(volume, np.clip(places, 0, len(here) - 1), axis=axis)
        return volume

    def isotropic(self, resolution: float) -> Grid:
        """Isotropic grid with the same axes and the same centre of the field of view.

        The number of voxels is rounded up, so no part of the field of view is lost. Where the resolution divides
        the field of view, the edges coincide (2 mm to 1 mm gives exactly twice the voxels).

        Parameters
        ----------
        resolution
            Voxel size of the target in mm.

        Raises
        ------
        ValueError
            If the resolution is not a positive number.
        """
        if not (math.isfinite(resolution) and resolution > 0):
            raise ValueError(f"the resolution is a positive number of mm, got {resolution}")
        shape = tuple(max(1, math.ceil(fov / resolution - _VOXEL_TOLERANCE)) for fov in self.fov_mm)
        affine = np.eye(4)
        affine[:3, :3] = self.affine[:3, :3] / np.array(self.zooms) * resolution
        affine[:3, 3] = self.centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
        return Grid(shape, affine)
