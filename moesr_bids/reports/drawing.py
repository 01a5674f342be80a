"""What the still figures share: black sheets, slices in square millimetres, outlines, labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from moesr_bids.atomic import temporary_beside
from moesr_bids.reports.planes import Box, Volume, plane, plane_zooms

BACKGROUND = "#000000"
OUTLINE = "#ffb000"  # visible on black and on white, also without colour vision
DPI = 110


def new_figure(width: float, height: float) -> Figure:
    """Return an empty black figure, inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=BACKGROUND, layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: figures are made in worker processes without a display
    return figure


def save(figure: Figure, out_file: Path) -> Path:
    """Write the figure as PNG; the file appears only when whole."""
    out_file.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(out_file) as temporary:
        figure.savefig(temporary, dpi=DPI, facecolor=figure.get_facecolor(), pil_kwargs={"optimize": True})
    return out_file


def _extent(pixels: npt.NDArray[Any], zooms: tuple[float, float]) -> tuple[float, float, float, float]:
    rows, columns = pixels.shape
    return (0.0, columns * zooms[1], rows * zooms[0], 0.0)


def show(axes: Axes, volume: Volume, axis: int, index: int, box: Box, **style: Any) -> Any:
    """Draw a slice with square millimetres, voxels as they are."""
    pixels = plane(volume, axis, index, box)
    zooms = plane_zooms(volume, axis)
    shown = axes.imshow(pixels, extent=_extent(pixels, zooms), interpolation="nearest", **style)
    axes.set_axis_off()
    return shown


def pixel_centres(volume: Volume, axis: int, pixels: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the columns' and the rows' centres in mm, as `show` places them."""
    row_mm, column_mm = plane_zooms(volume, axis)
    return (np.arange(pixels.shape[1]) + 0.5) * column_mm, (np.arange(pixels.shape[0]) + 0.5) * row_mm


def draw_outline(axes: Axes, mask: Volume, axis: int, index: int, box: Box, color: str = OUTLINE) -> None:
    """Draw the edge of a mask on a slice shown by `show`."""
    pixels = plane(mask, axis, index, box)
    if 0 < pixels.sum() < pixels.size:
        axes.contour(*pixel_centres(mask, axis, pixels), pixels, levels=[0.5], colors=[color], linewidths=1.0)


def label_panel(axes: Axes, text: str, axis: int) -> None:
    """Write a title above a slice and mark the patient's left and right, which a sagittal slice has not."""
    axes.set_title(text, color="white", fontsize=8, pad=2)
    if axis != 0:
        for x, letter, side in ((0.01, "L", "left"), (0.99, "R", "right")):
            mark = axes.text(x, 0.5, letter, transform=axes.transAxes, color="white", fontsize=9, va="center", ha=side)
            mark.set_path_effects([withStroke(linewidth=1.5, foreground="black")])


def require_same_grid(*volumes: Volume, names: tuple[Path, ...]) -> None:
    """Raise ValueError, naming the file, unless all volumes have the grid of the first."""
    for volume, name in zip(volumes[1:], names[1:], strict=True):
        if volume.data.shape != volumes[0].data.shape or not np.allclose(volume.affine, volumes[0].affine, atol=1e-3):
            raise ValueError(f"{name} is not on the grid of {names[0]}: give two files of the same grid")
