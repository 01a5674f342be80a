"""Interpolation onto the grid of another image, with which every model is compared."""

from __future__ import annotations

from collections.abc import Callable

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

BASELINE = "cubic"
_LANCZOS_RADIUS = 5


def interpolate(image: nib.Nifti1Image, grid: nib.Nifti1Image, order: int) -> NDArray[np.float32]:
    """Interpolate by SciPy's splines onto the grid of another image."""
    to_source = np.linalg.inv(image.affine) @ grid.affine
    volume = np.asanyarray(image.dataobj, dtype=np.float32)
    return ndimage.affine_transform(volume, to_source, output_shape=grid.shape, order=order, mode="nearest")


def windowed_sinc(image: nib.Nifti1Image, grid: nib.Nifti1Image) -> NDArray[np.float32]:
    """Interpolate by a Lanczos-windowed sinc of radius 5 onto a grid with the same axes; edge voxels are repeated."""
    to_source = np.linalg.inv(image.affine) @ grid.affine
    volume = np.asanyarray(image.dataobj, dtype=np.float32)
    for axis in range(3):
        n = volume.shape[axis]
        positions = to_source[axis, axis] * np.arange(grid.shape[axis]) + to_source[axis, 3]
        taps = np.floor(positions).astype(int)[:, None] + np.arange(1 - _LANCZOS_RADIUS, _LANCZOS_RADIUS + 1)
        distance = positions[:, None] - taps
        weights = np.sinc(distance) * np.sinc(distance / _LANCZOS_RADIUS) * (np.abs(distance) < _LANCZOS_RADIUS)
        matrix = np.zeros((len(positions), n))
        np.add.at(matrix, (np.arange(len(positions))[:, None], np.clip(taps, 0, n - 1)), weights)
        matrix /= matrix.sum(axis=1, keepdims=True)
        volume = np.moveaxis(np.tensordot(matrix.astype(np.float32), volume, axes=(1, axis)), 0, axis)
    return volume


INTERPOLATORS: dict[str, Callable[[nib.Nifti1Image, nib.Nifti1Image], NDArray[np.float32]]] = {
    "linear": lambda image, grid: interpolate(image, grid, 1),
    BASELINE: lambda image, grid: interpolate(image, grid, 3),
    "sinc": windowed_sinc,
}
