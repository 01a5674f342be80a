"""Figure of the places where the output differs most from the interpolated input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from moesr_bids.reports.drawing import BAR, colour_bar, label_panel, panel_grid, save, show_pixels
from moesr_bids.reports.planes import (
    WORLD_LETTERS,
    Volume,
    bounding_box,
    box_on,
    intensity_window,
    plane,
    plane_of_other,
    plane_zooms,
    spline_coefficients,
)
from moesr_bids.reports.zooms import WINDOW_MM, plane_showing_slices, window_around

PLACES = 4
APART_MM = 20.0
_WIDTH_MM = 1.5  # standard deviation of the Gaussian that averages the difference: single voxels do not count
_APART_AT_MOST_MM = 1.5  # distance of the voxels that are searched
_INSIDE_MM = 3.0  # least distance from the edge of the mask, where skull and CSF differ most
_LEAST_LIMIT = 1.0  # % of the brightest: smaller differences are not magnified

Place = tuple[int, int, int]


def plot_departures(input_path: Path, output_path: Path, mask_path: Path, out_file: Path) -> Path:
    """Show input, output and their difference where they differ most inside the brain.

    Parameters
    ----------
    input_path : pathlib.Path
        Bias-corrected input on its own grid; it is interpolated by cubic splines.
    output_path : pathlib.Path
        Super-resolved image.
    mask_path : pathlib.Path
        Brain mask on any grid.
    out_file : pathlib.Path
        PNG to write.

    Returns
    -------
    pathlib.Path
        ``out_file``.

    Raises
    ------
    ValueError
        A file holds more than one volume.

    """
    before, after, mask = Volume.load(input_path), Volume.load(output_path), Volume.load(mask_path)
    low, high = intensity_window(before, bounding_box(mask), mask.on(before, 0))
    spline = spline_coefficients(before)
    places = _places(spline, after, mask)
    axis = plane_showing_slices(before)
    windows = [window_around(after, place, axis) for place in places]
    pairs = [
        (plane_of_other(spline, after, axis, index, box, order=3), plane(after, axis, index, box))
        for box, index in windows
    ]
    changes = [100 * (output - interpolated) / high for interpolated, output in pairs]
    limit = max([_LEAST_LIMIT, *(float(np.percentile(np.abs(change), 99.8)) for change in changes)])
    zooms = plane_zooms(after, axis)
    rows, columns = (WINDOW_MM, WINDOW_MM) if not pairs else np.array(pairs[0][0].shape) * zooms
    figure, panels = panel_grid([columns] * PLACES, [rows] * 3, right=BAR)
    drawn: Any = None
    for column, (place, (interpolated, output), change) in enumerate(zip(places, pairs, changes, strict=True)):
        for row, (name, pixels) in enumerate((("input, interpolated", interpolated), ("output", output))):
            show_pixels(panels[row, column], pixels, zooms, cmap="gray", vmin=low, vmax=high)
            label_panel(panels[row, column], name, axis)
        drawn = show_pixels(panels[2, column], change, zooms, cmap="RdBu_r", vmin=-limit, vmax=limit)
        label_panel(panels[2, column], _where(after, place), axis)
    if drawn is not None:
        colour_bar(figure, drawn, "output − input, % of the brightest", extend="both", bottom=0.02, top=0.3)
    return save(figure, out_file)


def _places(spline: Volume, after: Volume, mask: Volume) -> list[Place]:
    """Find where the output differs most, on a grid that is fine enough to miss no place."""
    box = box_on(mask, after, bounding_box(mask))
    i, j, k = (max(1, int(_APART_AT_MOST_MM / float(zoom))) for zoom in after.zooms)
    sparse = after.cropped(box).every((i, j, k))
    difference = sparse.with_data(sparse.data - spline.on(sparse, 3).data)
    found = np.array(largest_places(difference, mask.on(sparse, 0)), dtype=int).reshape(-1, 3) * (i, j, k) + box.low
    return [(int(x), int(y), int(z)) for x, y, z in found]


def largest_places(difference: Volume, inside: Volume) -> list[Place]:
    """Find the voxels around which a volume differs most from 0, at least `APART_MM` from each other.

    Parameters
    ----------
    difference : Volume
        Difference of two images.
    inside : Volume
        Mask on the same grid; its outer 3 mm are left out.

    Returns
    -------
    list of tuple of int
        Up to `PLACES` voxels with the largest Gaussian-weighted mean of squares, the largest first.

    """
    box = bounding_box(inside)
    zooms = difference.zooms
    within = np.pad(inside.data[box.slices] > 0, 1)
    deep = ndimage.distance_transform_edt(within, sampling=tuple(zooms))[1:-1, 1:-1, 1:-1] > _INSIDE_MM
    squares = np.where(deep, np.square(difference.data[box.slices]), 0)
    mean: npt.NDArray[Any] = ndimage.gaussian_filter(squares, _WIDTH_MM / zooms)
    mean[~deep] = 0
    index = np.ogrid[tuple(slice(n) for n in mean.shape)]
    found: list[Place] = []
    while len(found) < PLACES and mean.max() > 0:
        peak = np.unravel_index(int(np.argmax(mean)), mean.shape)
        found.append(tuple(int(p) + low for p, low in zip(peak, box.low, strict=True)))  # type: ignore[arg-type]
        far = sum(((i - p) * zoom) ** 2 for i, p, zoom in zip(index, peak, zooms, strict=True))
        mean[far < APART_MM**2] = 0
    return found


def _where(volume: Volume, place: Place) -> str:
    """World position of a voxel, as in "R +12, A -30, S +44 mm"."""
    position = (volume.affine @ np.array([*place, 1.0]))[:3]
    return (
        ", ".join(f"{letter} {round(value):+d}" for letter, value in zip(WORLD_LETTERS, position, strict=True)) + " mm"
    )
