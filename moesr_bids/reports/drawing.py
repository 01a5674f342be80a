"""Common parts of the still figures: black sheets of panels at one scale, slices, outlines, labels, colour bars."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image

from moesr_bids.atomic import temporary_beside
from moesr_bids.reports.planes import POSITIONS, Box, Volume, plane, plane_zooms, where_words

BACKGROUND = "#000000"
OUTLINE = "#ffb000"  # visible on black and on white, also without colour vision
DPI = 110
WIDTH = 12.0  # inches
_TITLE, _GAP = 0.19, 0.04  # inches: above a panel, between panels
BAR = 0.95
"""Width of a colour bar in inches."""


def new_figure(width: float, height: float) -> Figure:
    """Return an empty black figure of this width and height in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)  # no pyplot: figures are made in worker processes without a display
    return figure


def panel_grid(
    widths: Sequence[float], heights: Sequence[float], *, width: float = WIDTH, right: float = 0.0
) -> tuple[Figure, npt.NDArray[Any]]:
    """Return a figure with a grid of panels at one scale.

    The panels are placed here, not by a layout engine, which would draw the figure several times.

    Parameters
    ----------
    widths, heights : sequence of float
        Widths of the columns and heights of the rows, mm.
    width : float
        Width of the figure, inches.
    right : float
        Space on the right for something else, inches.

    Returns
    -------
    figure : matplotlib.figure.Figure
    panels : numpy.ndarray of matplotlib.axes.Axes
        Shape (rows, columns).

    """
    inches_per_mm = (width - right - _GAP * len(widths)) / sum(widths)
    height = sum(inches_per_mm * mm + _TITLE + _GAP for mm in heights)
    figure = new_figure(width, height)
    panels = np.empty((len(heights), len(widths)), dtype=object)
    bottom = height
    for row, row_mm in enumerate(heights):
        bottom -= inches_per_mm * row_mm + _TITLE
        left = 0.0
        for column, column_mm in enumerate(widths):
            size = (inches_per_mm * column_mm / width, inches_per_mm * row_mm / height)
            panels[row, column] = axes = figure.add_axes((left / width, bottom / height, *size))
            axes.set_axis_off()
            left += inches_per_mm * column_mm + _GAP
        bottom -= _GAP
    return figure, panels


def box_mm(volume: Volume, box: Box) -> npt.NDArray[np.float64]:
    """Return the size of a box along the three axes, in mm."""
    return np.asarray((np.array(box.high) - box.low) * volume.zooms)


def sheet_of_planes(
    volume: Volume, box: Box, brain: Box, *, width: float = WIDTH, right: float = BAR
) -> tuple[Figure, list[tuple[Axes, int, int]]]:
    """Return a figure with the three planes side by side, a row per position.

    Parameters
    ----------
    volume : Volume
        Volume with the grid of the slices.
    box : Box
        Part of each slice that is shown.
    brain : Box
        Box that the slices are taken from.
    width, right : float
        As for `panel_grid`.

    Returns
    -------
    figure : matplotlib.figure.Figure
    slices : list of tuple
        Panel, axis across the slice and number of the slice.

    """
    x, y, z = box_mm(volume, box)
    figure, panels = panel_grid((y, x, x), [max(y, z)] * POSITIONS, width=width, right=right)
    slices = [(panels[row, axis], axis, index) for axis in range(3) for row, index in enumerate(brain.positions(axis))]
    return figure, slices


def slices_in_columns(volume: Volume, box: Box, brain: Box) -> tuple[list[tuple[int, int]], Any, float]:
    """Return two slices of each plane for the columns of a figure: their axis and number, widths and height in mm."""
    x, y, z = box_mm(volume, box)
    slices = [(axis, index) for axis in range(3) for index in brain.positions(axis, 2)]
    return slices, [(y, x, x)[axis] for axis, _ in slices], max(y, z)


def colour_bar(figure: Figure, drawn: Any, words: str, *, extend: str, bottom: float = 0.2, top: float = 0.8) -> None:
    """Draw a colour bar at the right edge for an image of `show`; `bottom` and `top` are shares of the height."""
    width = figure.get_size_inches()[0]
    axes = figure.add_axes((1 - (BAR - 0.15) / width, bottom, 0.18 / width, top - bottom))
    bar = figure.colorbar(drawn, cax=axes, extend=extend)
    bar.set_label(words, color="white", fontsize=9)
    axes.tick_params(colors="white", labelsize=8)


def save(figure: Figure, out_file: Path) -> Path:
    """Write the figure as PNG with 256 colours, a third of the size of full colour; it appears only when whole."""
    drawn = BytesIO()
    figure.savefig(drawn, format="raw", dpi=DPI, facecolor=figure.get_facecolor())
    columns, rows = (int(n) for n in figure.canvas.get_width_height())
    picture = Image.frombuffer("RGBA", (columns, rows), drawn.getvalue(), "raw", "RGBA", 0, 1).convert("RGB")
    # The method that keeps the largest error small: 12 of 255 at most on the figures of a head.
    few = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    out_file.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(out_file) as temporary:
        few.save(temporary, format="PNG", optimize=True)
    return out_file


def _extent(pixels: npt.NDArray[Any], zooms: tuple[float, float]) -> tuple[float, float, float, float]:
    rows, columns = pixels.shape
    return (0.0, columns * zooms[1], rows * zooms[0], 0.0)


def show(axes: Axes, volume: Volume, axis: int, index: int, box: Box, **style: Any) -> Any:
    """Draw a slice to scale in millimetres, without interpolation."""
    return show_pixels(axes, plane(volume, axis, index, box), plane_zooms(volume, axis), **style)


def show_pixels(axes: Axes, pixels: npt.NDArray[Any], zooms: tuple[float, float], **style: Any) -> Any:
    """Draw pixels to scale; ``zooms`` are the distances of rows and of columns in mm."""
    shown = axes.imshow(pixels, extent=_extent(pixels, zooms), interpolation="nearest", **style)
    axes.set_axis_off()
    return shown


def show_inside(axes: Axes, volume: Volume, mask: Volume, axis: int, index: int, box: Box, **style: Any) -> Any:
    """Draw the part of a slice inside a mask on the same grid, over what was drawn before."""
    pixels = np.ma.masked_where(plane(mask, axis, index, box) <= 0, plane(volume, axis, index, box))
    return show_pixels(axes, pixels, plane_zooms(volume, axis), **style)


def pixel_centres(volume: Volume, axis: int, pixels: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the centres of columns and of rows in mm, as `show` places them."""
    row_mm, column_mm = plane_zooms(volume, axis)
    return (np.arange(pixels.shape[1]) + 0.5) * column_mm, (np.arange(pixels.shape[0]) + 0.5) * row_mm


def draw_outline(axes: Axes, mask: Volume, axis: int, index: int, box: Box, color: str = OUTLINE) -> None:
    """Draw the edge of a mask on a slice shown by `show`."""
    pixels = plane(mask, axis, index, box)
    if 0 < pixels.sum() < pixels.size:
        axes.contour(*pixel_centres(mask, axis, pixels), pixels, levels=[0.5], colors=[color], linewidths=1.0)


def label_slice(axes: Axes, volume: Volume, axis: int, index: int, box: Box, what: str = "") -> None:
    """Write above a slice what it shows and where it lies, and mark left and right."""
    where = where_words(volume, axis, index, box)
    label_panel(axes, f"{what}, {where}" if what else where, axis)


def label_panel(axes: Axes, text: str, axis: int) -> None:
    """Write a title above a slice, and mark the patient's left and right on coronal and axial slices."""
    axes.set_title(
        text, color="white", fontsize=8, pad=2, y=1.0
    )  # without y, matplotlib measures where it fits, which is slow
    if axis != 0:
        for x, letter, side in ((0.01, "L", "left"), (0.99, "R", "right")):
            mark = axes.text(x, 0.5, letter, transform=axes.transAxes, color="white", fontsize=9, va="center", ha=side)
            mark.set_path_effects([withStroke(linewidth=1.5, foreground="black")])


def require_same_grid(*volumes: Volume, names: tuple[Path, ...]) -> None:
    """Raise ValueError, naming the file, unless all volumes have the grid of the first."""
    for volume, name in zip(volumes[1:], names[1:], strict=True):
        if volume.data.shape != volumes[0].data.shape or not np.allclose(volume.affine, volumes[0].affine, atol=1e-3):
            raise ValueError(f"{name} is not on the grid of {names[0]}: give two files of the same grid")
