"""A scan and its mask as super-resolution reads them, alone or with others: checked, without faults."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from attrs import frozen
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from ..errors import ImageError
from ..intensities import Intensities
from ..nifti import MAX_SHEAR, length_unit, open_image, read_voxels
from .grid import Grid
from .noise import foreground


@frozen(eq=False)
class Reading:
    """A scan as it was read.

    Parameters
    ----------
    image
        The scan.
    name
        What messages call it.
    notes
        What is odd about its header.
    values
        Its voxels, float32, and their faults.
    grid
        Its grid.
    inside
        Brain mask or, without one, the foreground; boolean on ``grid``.
    """

    image: SpatialImage
    name: str
    notes: tuple[str, ...]
    values: Intensities
    grid: Grid
    inside: NDArray[np.bool_]

    @classmethod
    def of(cls, image: SpatialImage | str | Path, mask: SpatialImage | str | Path | None = None) -> Reading:
        """Read and check a scan and its mask.

        Raises
        ------
        ImageError
            If one of them cannot be used.
        """
        source, name, notes = _load(image)
        values = Intensities.of(_checked_data(source, name), name)
        inside = foreground(values.data) if mask is None else _checked_mask(mask, source, name)
        return cls(source, name, notes, values, Grid.from_image(source), inside)

    def map_on_grid(self, value: SpatialImage | str | Path) -> NDArray[np.float32]:
        """Read a map that has to lie on the grid of the scan and to be finite."""
        source, map_name = _load_on_grid(value, self.image, self.name, "map")
        data = read_voxels(source, map_name)
        if not np.isfinite(data).all():
            raise ImageError(f"{map_name}: the map has voxels that are NaN or infinite; replace them first")
        return data


def _load(image: SpatialImage | str | Path) -> tuple[SpatialImage, str, tuple[str, ...]]:
    """Return an image, its name in messages, and notes of what is odd about its header."""
    if isinstance(image, SpatialImage):
        return image, image.get_filename() or "image", ()
    opened, notes = open_image(Path(image))
    return opened, str(image), notes


def _checked_data(image: SpatialImage, name: str) -> NDArray[np.float32]:
    if len(image.shape) != 3 or min(image.shape) < 2:
        raise ImageError(f"{name}: a 3-D image is needed, this one has shape {image.shape}; extract one volume")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-9:
        raise ImageError(f"{name}: the affine is not invertible; repair the header")
    directions = image.affine[:3, :3] / nib.affines.voxel_sizes(image.affine)
    if np.abs(directions.T @ directions - np.eye(3)).max() > MAX_SHEAR:
        raise ImageError(f"{name}: the axes of the affine are not at right angles; convert the image again")
    if isinstance(image, nib.Nifti1Image) and length_unit(image.header) in ("meter", "micron"):
        raise ImageError(f"{name}: voxel sizes are not in mm; convert the image again")
    data = read_voxels(image, name)
    if not np.isfinite(data).all():
        count = int(np.count_nonzero(~np.isfinite(data)))
        raise ImageError(f"{name}: {count} voxels are NaN or infinite; replace them first")
    if data.min() == data.max():
        raise ImageError(f"{name}: all voxels have the value {data.flat[0]:g}; there is no image in this file")
    return data


def _load_on_grid(
    value: SpatialImage | str | Path, image: SpatialImage, name: str, what: str
) -> tuple[SpatialImage, str]:
    source, own_name, _ = _load(value)
    if source.shape != image.shape or not np.allclose(source.affine, image.affine, atol=1e-2):
        raise ImageError(f"{own_name}: the {what} is not on the grid of {name}; resample it onto the image")
    return source, own_name


def _checked_mask(mask: SpatialImage | str | Path, image: SpatialImage, name: str) -> NDArray[np.bool_]:
    source, mask_name = _load_on_grid(mask, image, name, "mask")
    inside = read_voxels(source, mask_name) > 0.5
    if np.count_nonzero(inside) < 100:
        raise ImageError(f"{mask_name}: the mask has fewer than 100 voxels; check the brain extraction")
    return inside
