"""Magnified before/after windows in cortex, deep white matter and at the grey-white junction."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from moesr_bids.preproc.tissues import GREY, WHITE
from moesr_bids.reports.planes import PLANES, Box, Volume, bounding_box, intensity_window
from moesr_bids.reports.slider import Comparison

WINDOW_MM = 36.0
RIM_MM = 8.0  # cortex: grey matter at most this deep under the brain's surface
DEEP_MM = 5.0  # deep white matter: at least this far from other tissue
LOWER_SHARE = 0.4  # of the brain's height, left out: cerebellum and temporal poles have finer or disturbed folds
_BLOCK_MM = 2.0  # windows are chosen on a grid of about this spacing

BoolArray = npt.NDArray[np.bool_]


@attrs.frozen(eq=False)
class Region:
    """A kind of region to look at.

    Attributes
    ----------
    name : str
        Name over the picture.
    interest : numpy.ndarray of bool
        Voxels of the region.

    """

    name: str
    interest: BoolArray


def plot_zooms(input_path: Path, output_path: Path, tissue_path: Path, out_html: Path) -> Path:
    """Compare input and output, magnified, in cortex, deep white matter and at the grey-white junction.

    In each plane, the window of `WINDOW_MM` that holds most of a region is shown. The same image always gives the same
    windows.

    Parameters
    ----------
    input_path : pathlib.Path
        Bias-corrected input on its own grid.
    output_path : pathlib.Path
        Super-resolved image.
    tissue_path : pathlib.Path
        Labels on the output's grid: 1 white matter, 2 grey matter, 3 CSF.
    out_html : pathlib.Path
        HTML fragment to write; everything it shows is inside it.

    Returns
    -------
    pathlib.Path
        ``out_html``.

    Raises
    ------
    ValueError
        A file holds more than one volume.

    """
    before, after, labels = Volume.load(input_path), Volume.load(output_path), Volume.load(tissue_path)
    window = _grey_scale(after, labels)
    compared = Comparison.of_output(before, after, window, magnified=True)
    blocks = _blocks(labels)
    found = regions(blocks)
    levels = []
    for axis in range(3):
        panels = []
        for region in found:
            centre = best_window(region.interest, axis, blocks.zooms)
            box, index = window_around(after, _on(after, blocks, centre), axis)
            panels.append(compared.panel(axis, index, box, region.name))
        levels.append((PLANES[axis], panels))
    return compared.write(
        out_html,
        levels,
        start=plane_showing_slices(before),
        choice="Plane",
        caption=f"Windows of {WINDOW_MM:g} mm: of all in a plane those with most cortex, most deep white matter (at "
        f"least {DEEP_MM:g} mm from other tissue) and most grey-white junction, in the upper part of the brain. Both "
        "sides have the same grey scale, narrower than above.",
    )


def _grey_scale(image: Volume, labels: Volume) -> tuple[float, float]:
    """Return black and white: half of the 2nd percentile, and the 99.5th percentile, of grey and white matter."""
    tissue = image.data[(labels.data == WHITE) | (labels.data == GREY)]
    if tissue.size == 0:
        return intensity_window(image, bounding_box(labels))
    low, high = (float(value) for value in np.percentile(tissue, (2, 99.5)))
    return (low / 2, high) if high > low else (min(0.0, low), max(high, 1.0))


def regions(labels: Volume) -> list[Region]:
    """Find cortex, deep white matter and grey-white junction in tissue labels (1 white, 2 grey, 3 CSF)."""
    white, grey = labels.data == WHITE, labels.data == GREY
    zooms = tuple(labels.zooms)
    brain = ndimage.binary_fill_holes(labels.data > 0)
    depth = ndimage.distance_transform_edt(np.pad(brain, 1), sampling=zooms)[1:-1, 1:-1, 1:-1]
    inside_white = ndimage.distance_transform_edt(np.pad(white, 1), sampling=zooms)[1:-1, 1:-1, 1:-1]
    occupied = np.flatnonzero(brain.any(axis=(0, 1)))
    lowest = int(occupied[0] + LOWER_SHARE * (occupied[-1] - occupied[0])) if occupied.size else 0
    for tissue in (white, grey):
        tissue[..., :lowest] = False
    cross = ndimage.generate_binary_structure(3, 1)
    return [
        Region("cortex", grey & (depth <= RIM_MM)),
        Region("deep white matter", inside_white > DEEP_MM),
        Region(
            "grey-white junction",
            (white & ndimage.binary_dilation(grey, cross)) | (grey & ndimage.binary_dilation(white, cross)),
        ),
    ]


def best_window(interest: BoolArray, axis: int, zooms: npt.NDArray[np.float64]) -> tuple[int, int, int]:
    """Return the centre of the window of `WINDOW_MM` across ``axis`` that holds most voxels of interest.

    Of several equal ones, it is the first in the order of the voxels; without any such voxel, the middle of the volume.
    """
    if not interest.any():
        i, j, k = (n // 2 for n in interest.shape)
        return i, j, k
    size = [1 if other == axis else max(1, round(WINDOW_MM / float(zooms[other]))) for other in range(3)]
    share = ndimage.uniform_filter(interest.astype(np.float32), size, mode="constant")
    i, j, k = (int(n) for n in np.unravel_index(int(np.argmax(share)), share.shape))
    return i, j, k


def _blocks(labels: Volume) -> Volume:
    """Take every n-th voxel, so that voxels are about `_BLOCK_MM` apart."""
    steps = [max(1, round(_BLOCK_MM / float(zoom))) for zoom in labels.zooms]
    i, j, k = (slice(None, None, step) for step in steps)
    return Volume(labels.data[i, j, k], labels.affine @ np.diag([*map(float, steps), 1.0]))


def _on(grid: Volume, blocks: Volume, centre: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the voxel of ``grid`` nearest to a voxel of ``blocks``."""
    place = np.linalg.inv(grid.affine) @ blocks.affine @ np.array([*centre, 1.0])
    i, j, k = (int(n) for n in np.clip(np.rint(place[:3]).astype(int), 0, np.array(grid.data.shape) - 1))
    return i, j, k


def window_around(grid: Volume, middle: tuple[int, int, int], axis: int) -> tuple[Box, int]:
    """Return the window of `WINDOW_MM` around a voxel, and the number of the slice across ``axis``."""
    low, high = [], []
    for other, zoom in enumerate(grid.zooms):
        half = max(1, round(WINDOW_MM / 2 / float(zoom)))
        # At the edge of the volume the window is moved, not cut, so that all windows have one size.
        first = max(0, min(middle[other] - half, grid.data.shape[other] - 2 * half))
        low.append(first)
        high.append(min(first + 2 * half, grid.data.shape[other]))
    return Box((low[0], low[1], low[2]), (high[0], high[1], high[2])), middle[axis]


def plane_showing_slices(before: Volume) -> int:
    """Return the axis across the plane to show first: coronal if slices are thick and axial, else axial."""
    zooms = before.zooms
    thick = zooms.max() > 1.1 * zooms.min()
    return 1 if thick and int(np.argmax(zooms)) == 2 else 2
