"""Slices of volumes for display: which ones, on whose grid, which way up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import nibabel as nb
import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes
from scipy.ndimage import map_coordinates

PLANES = ("sagittal", "coronal", "axial")
"""Names of the planes across the first, second and third axis of a volume in RAS order."""

FloatImage = npt.NDArray[np.float32]


@attrs.frozen
class Volume:
    """A 3-D image with its axes nearest to right, anterior, superior.

    Attributes
    ----------
    data : numpy.ndarray
        Shape (i, j, k), float32, non-finite voxels set to 0; axes nearest to R, A, S.
    affine : numpy.ndarray
        Shape (4, 4), voxel to world, mm, RAS.

    """

    data: FloatImage = attrs.field(eq=False)
    affine: npt.NDArray[np.float64] = attrs.field(eq=False)

    @classmethod
    def load(cls, path: Path) -> Volume:
        """Read a NIfTI file of three dimensions (or four with one volume).

        Raises
        ------
        ValueError
            The image has more than one volume.

        """
        image = nb.as_closest_canonical(nb.squeeze_image(nb.load(path)))
        if len(image.shape) != 3:
            raise ValueError(f"{path} has shape {image.shape}, a figure needs three dimensions: give a single volume")
        data = np.nan_to_num(image.get_fdata(dtype=np.float32, caching="unchanged"), posinf=0, neginf=0)
        return cls(np.asarray(data, dtype=np.float32), np.asarray(image.affine, dtype=np.float64))

    @property
    def zooms(self) -> npt.NDArray[np.float64]:
        """Voxel size in mm along each axis."""
        return np.asarray(voxel_sizes(self.affine))

    def with_data(self, data: npt.NDArray[Any]) -> Volume:
        """Return other voxels on the same grid."""
        return Volume(data.astype(np.float32), self.affine)


@attrs.frozen
class Box:
    """A box of voxels: ``low`` included, ``high`` excluded, per axis."""

    low: tuple[int, int, int]
    high: tuple[int, int, int]

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as slices of a volume."""
        i, j, k = (slice(low, high) for low, high in zip(self.low, self.high, strict=True))
        return i, j, k

    def positions(self, axis: int, count: int, inset: float = 0.2) -> list[int]:
        """Return ``count`` slice numbers along ``axis``, evenly between the fractions ``inset`` and 1 - ``inset``."""
        fractions = np.linspace(inset, 1 - inset, count) if count > 1 else np.array([0.5])
        first, last = self.low[axis], self.high[axis] - 1
        return [round(float(first + fraction * (last - first))) for fraction in fractions]


def bounding_box(volume: Volume, margin_mm: float = 0.0) -> Box:
    """Return the box around the voxels above zero, with a margin; the whole volume where there are none."""
    inside = volume.data > 0
    low, high = [0, 0, 0], list(volume.data.shape)
    if inside.any():
        for axis in range(3):
            others = tuple(other for other in range(3) if other != axis)
            occupied = np.flatnonzero(inside.any(axis=others))
            margin = int(np.ceil(margin_mm / volume.zooms[axis]))
            low[axis] = max(0, int(occupied[0]) - margin)
            high[axis] = min(volume.data.shape[axis], int(occupied[-1]) + 1 + margin)
    return Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def box_on(volume: Volume, grid: Volume, box: Box) -> Box:
    """Carry a box of ``volume`` over to the voxels of ``grid`` by its corners."""
    corners = np.stack(
        np.meshgrid(*[(low, high - 1) for low, high in zip(box.low, box.high, strict=True)], indexing="ij")
    ).reshape(3, -1)
    to_grid = np.linalg.inv(grid.affine) @ volume.affine
    there = to_grid[:3, :3] @ corners + to_grid[:3, 3:]
    shape = np.array(grid.data.shape)
    low = np.clip(np.floor(there.min(axis=1)), 0, shape - 1).astype(int)
    high = np.clip(np.ceil(there.max(axis=1)) + 1, low + 1, shape).astype(int)
    return Box((int(low[0]), int(low[1]), int(low[2])), (int(high[0]), int(high[1]), int(high[2])))


def foreground(volume: Volume) -> Volume:
    """Return a rough mask of what is not background: above a tenth of the 99th percentile."""
    return volume.with_data(volume.data > 0.1 * np.percentile(volume.data, 99))


def plane(volume: Volume, axis: int, index: int, box: Box) -> FloatImage:
    """Cut one slice.

    Parameters
    ----------
    volume : Volume
        Image.
    axis : int
        Axis across the plane (0 sagittal, 1 coronal, 2 axial).
    index : int
        Slice number along ``axis``.
    box : Box
        Crop of the two other axes.

    Returns
    -------
    numpy.ndarray
        Shape (rows, columns), float32. First row superior (axial: anterior); first column the patient's left
        (sagittal: posterior).

    """
    crop = tuple(
        slice(index, index + 1) if other == axis else slice(box.low[other], box.high[other]) for other in range(3)
    )
    return np.flipud(volume.data[crop].squeeze(axis).T)


def plane_of_other(moving: Volume, grid: Volume, axis: int, index: int, box: Box, order: int) -> FloatImage:
    """Cut the slice of ``grid`` out of another image, by world coordinates.

    Parameters
    ----------
    moving : Volume
        Image to show.
    grid : Volume
        Image whose slice is asked for.
    axis, index, box
        The slice, as for `plane`, in voxels of ``grid``.
    order : int
        0 for the nearest voxel, 1 for linear interpolation.

    Returns
    -------
    numpy.ndarray
        As `plane` gives for ``grid``; half a voxel beyond the outermost voxel centres of ``moving`` and farther, 0.

    """
    ranges = [np.array([index]) if other == axis else np.arange(box.low[other], box.high[other]) for other in range(3)]
    voxels = np.stack(np.meshgrid(*ranges, indexing="ij")).reshape(3, -1)
    to_moving = np.linalg.inv(moving.affine) @ grid.affine
    where = to_moving[:3, :3] @ voxels + to_moving[:3, 3:]
    values = map_coordinates(moving.data, where, order=order, mode="nearest")
    limits = np.array(moving.data.shape)[:, None] - 0.5
    values[((where < -0.5) | (where > limits)).any(axis=0)] = 0
    shape = [len(numbers) for numbers in ranges]
    return np.flipud(values.reshape(shape).squeeze(axis).T)


def plane_zooms(volume: Volume, axis: int) -> tuple[float, float]:
    """Return the size in mm of a row step and of a column step of `plane`."""
    columns, rows = (float(volume.zooms[other]) for other in range(3) if other != axis)
    return rows, columns


def world_position(volume: Volume, axis: int, index: int, box: Box) -> float:
    """Return where the middle of the slice lies along its world axis, mm (R, A or S positive)."""
    centre = [(low + high - 1) / 2 for low, high in zip(box.low, box.high, strict=True)]
    centre[axis] = index
    return float((volume.affine @ np.array([*centre, 1.0]))[axis])


def intensity_window(volume: Volume, box: Box, inside: Volume | None = None) -> tuple[float, float]:
    """Return the grey-scale limits for display: percentiles 0.5 and 99.5 of the voxels above zero in the box.

    The upper one is that of the voxels in a mask on the same grid, if given: fat can be far brighter than the brain.
    """
    crop = volume.data[tuple(slice(low, high) for low, high in zip(box.low, box.high, strict=True))]
    chosen = crop if inside is None else volume.data[inside.data > 0]
    positive = chosen[chosen > 0]
    if positive.size == 0:
        return 0.0, 1.0
    high = float(np.percentile(positive, 99.5))
    return min(0.0, float(np.percentile(crop, 0.5))), high if high > 0 else 1.0
