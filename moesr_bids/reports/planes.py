"""Slices of volumes for display: which ones, on whose grid, which way up."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import attrs
import nibabel as nb
import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes
from scipy.ndimage import affine_transform, map_coordinates, spline_filter

PLANES = ("sagittal", "coronal", "axial")
"""Names of the planes across the first, second and third axis of a volume in RAS order."""
WORLD_LETTERS = ("R", "A", "S")
"""Directions in which world coordinates grow along these axes: right, anterior, superior."""
POSITIONS = 3
"""Number of slices of each plane in the figures; their positions are the same in all."""

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
        return _read(Path(path), Path(path).stat().st_mtime_ns)

    @property
    def zooms(self) -> npt.NDArray[np.float64]:
        """Voxel size in mm along each axis."""
        return np.asarray(voxel_sizes(self.affine))

    def cropped(self, box: Box) -> Volume:
        """Return the part of the volume in a box; its voxels keep their world positions."""
        affine = self.affine.copy()
        affine[:3, 3] += self.affine[:3, :3] @ np.array(box.low)
        return Volume(self.data[box.slices], affine)

    def every(self, steps: tuple[int, int, int]) -> Volume:
        """Return every n-th voxel along each axis, n from ``steps``."""
        i, j, k = (slice(None, None, step) for step in steps)
        return Volume(self.data[i, j, k], self.affine @ np.diag([*map(float, steps), 1.0]))

    def on(self, grid: Volume, order: int) -> Volume:
        """Interpolate at the voxels of another grid; beyond the volume its outermost voxels are repeated.

        `order` is 0 for the nearest voxel, 1 for linear interpolation, and 3 for cubic splines; for 3 this volume must
        be one of `spline_coefficients`.
        """
        if order < 2 and self.data.shape == grid.data.shape and np.allclose(self.affine, grid.affine, atol=1e-4):
            return self
        matrix = np.linalg.inv(self.affine) @ grid.affine
        place = {"matrix": matrix[:3, :3], "offset": matrix[:3, 3], "output_shape": grid.data.shape}
        return grid.with_data(affine_transform(self.data, **place, order=order, mode="nearest", prefilter=False))

    def with_data(self, data: npt.NDArray[Any]) -> Volume:
        """Return other voxels on the same grid."""
        return Volume(data.astype(np.float32, copy=False), self.affine)


@lru_cache(maxsize=4)
def _read(path: Path, changed_ns: int) -> Volume:
    """Read a file for `Volume.load`, and keep the last four; most figures of an image show the same few files."""
    image = nb.as_closest_canonical(nb.squeeze_image(nb.load(path)))
    if len(image.shape) != 3:
        raise ValueError(f"{path} has shape {image.shape}, a figure needs three dimensions: give a single volume")
    data = np.nan_to_num(image.get_fdata(dtype=np.float32, caching="unchanged"), copy=False, posinf=0, neginf=0)
    data.flags.writeable = False  # other figures share it
    return Volume(data, np.asarray(image.affine, dtype=np.float64))


def forget_volumes() -> None:
    """Free the memory of the files that were read."""
    _read.cache_clear()


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

    def positions(self, axis: int, count: int = POSITIONS, inset: float = 0.25) -> list[int]:
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


def whole(volume: Volume) -> Box:
    """Return the box of all voxels."""
    i, j, k = volume.data.shape
    return Box((0, 0, 0), (i, j, k))


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
    """Return a rough mask of the foreground: above a tenth of the 99th percentile."""
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


def spline_coefficients(volume: Volume) -> Volume:
    """Return the cubic-spline coefficients of an image, for `Volume.on` and `plane_of_other` with order 3."""
    return volume.with_data(spline_filter(volume.data, order=3, output=np.float32, mode="nearest"))


def plane_of_other(moving: Volume, grid: Volume, axis: int, index: int, box: Box, order: int) -> FloatImage:
    """Interpolate another image on a slice of ``grid``, by world coordinates.

    Parameters
    ----------
    moving : Volume
        Image to show; with order 3 its `spline_coefficients`.
    grid : Volume
        Image that the slice is of.
    axis, index, box
        The slice, as for `plane`, in voxels of ``grid``.
    order : int
        0 for the nearest voxel, 1 for linear interpolation, 3 for cubic splines.

    Returns
    -------
    numpy.ndarray
        Shape and orientation as `plane` returns for ``grid``; 0 outside of the field of view of ``moving``.

    """
    ranges = [np.array([index]) if other == axis else np.arange(box.low[other], box.high[other]) for other in range(3)]
    voxels = np.stack(np.meshgrid(*ranges, indexing="ij")).reshape(3, -1)
    to_moving = np.linalg.inv(moving.affine) @ grid.affine
    where = to_moving[:3, :3] @ voxels + to_moving[:3, 3:]
    values = map_coordinates(moving.data, where, order=order, mode="nearest", prefilter=False)
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


def where_words(volume: Volume, axis: int, index: int, box: Box) -> str:
    """Name a slice by its plane and its place in the world, as in ``axial, S +24 mm``."""
    return f"{PLANES[axis]}, {WORLD_LETTERS[axis]} {round(world_position(volume, axis, index, box)):+d} mm"


def intensity_window(volume: Volume, box: Box, inside: Volume | None = None) -> tuple[float, float]:
    """Return the grey-scale limits for display, black and white.

    Black is percentile 0.5 of the voxels in the box, but at most 0. White is percentile 99.5 of the positive voxels in
    the box, or in a mask on the same grid: fat can be far brighter than the brain, and would make it dark.
    """
    crop = volume.data[tuple(slice(low, high) for low, high in zip(box.low, box.high, strict=True))]
    chosen = crop if inside is None else volume.data[inside.data > 0]
    positive = chosen[chosen > 0]
    if positive.size == 0:
        return 0.0, 1.0
    high = float(np.percentile(positive, 99.5))
    return min(0.0, float(np.percentile(crop, 0.5))), high if high > 0 else 1.0
