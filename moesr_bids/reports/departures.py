"""Figure of the places where the output departs most from the input as it was interpolated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from moesr_bids.preproc.images import resample_to
from moesr_bids.reports.drawing import label_panel, new_figure, save, show
from moesr_bids.reports.planes import Volume, bounding_box, box_on, intensity_window
from moesr_bids.reports.zooms import plane_showing_slices, window_around

PLACES = 4
APART_MM = 20.0
_WIDTH_MM = 1.5  # standard deviation of the Gaussian in which the difference is averaged: one voxel is no place
_INSIDE_MM = 3.0  # from the edge of the mask: there, skull and fluid differ most
_LEAST_LIMIT = 1.0  # % of the brightest: smaller differences are not magnified

Place = tuple[int, int, int]


def plot_departures(input_path: Path, output_path: Path, mask_path: Path, out_file: Path) -> Path:
    """Show input, output and their difference where they differ most inside the brain.

    Parameters
    ----------
    input_path : pathlib.Path
        Bias-corrected input on its own grid; it is interpolated linearly.
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
    inside, linear = (
        after.with_data(resample_to(volume.data, volume.affine, after.data.shape, after.affine, order))
        for volume, order in ((mask, 0), (before, 1))
    )
    low, high = intensity_window(after, box_on(mask, after, bounding_box(mask)), inside)
    difference = after.with_data(100 * (after.data - linear.data) / high)
    places = largest_places(difference, inside)
    axis = plane_showing_slices(before)
    figure = new_figure(12.0, 9.2)
    panels = figure.subplots(3, PLACES, squeeze=False)
    shares = [abs(float(difference.data[place])) for place in places]
    limit = max(_LEAST_LIMIT, *shares) if shares else _LEAST_LIMIT
    drawn: Any = None
    for column in range(PLACES):
        for axes in panels[:, column]:
            axes.set_axis_off()
        if column >= len(places):
            continue
        box, index = window_around(after, places[column], axis)
        for row, (name, volume) in enumerate((("input, interpolated", linear), ("output", after))):
            show(panels[row, column], volume, axis, index, box, cmap="gray", vmin=low, vmax=high)
            label_panel(panels[row, column], name, axis)
        drawn = show(panels[2, column], difference, axis, index, box, cmap="RdBu_r", vmin=-limit, vmax=limit)
        label_panel(panels[2, column], _where(after, places[column]), axis)
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=panels[2].tolist(), shrink=0.8, pad=0.01, extend="both")
        bar.set_label("output − input, % of the brightest", color="white", fontsize=9)
        bar.ax.tick_params(colors="white", labelsize=8)
    return save(figure, out_file)


def largest_places(difference: Volume, inside: Volume) -> list[Place]:
    """Find the voxels around which a volume differs most from 0, at least `APART_MM` from each other.

    Parameters
    ----------
    difference : Volume
        What is looked through.
    inside : Volume
        Mask on the same grid; its rim of a few millimetres is left out.

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
    return ", ".join(f"{letter} {value:+.0f}" for letter, value in zip("RAS", position, strict=True)) + " mm"
