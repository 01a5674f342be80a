"""Figure of the residual: what the output leaves of the input, in noise units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from scipy.stats import norm

from moesr_bids.reports.drawing import BACKGROUND, draw_outline, label_panel, new_figure, require_same_grid, save, show
from moesr_bids.reports.planes import PLANES, Volume, bounding_box

RESIDUAL_LIMIT = 4.0


def plot_residual(
    residual_path: Path, mask_path: Path, out_file: Path, *, noise_alone: float = 1.0, columns: int = 4
) -> Path:
    """Show what the output leaves of the input, in noise units, as a map and as a histogram.

    Parameters
    ----------
    residual_path : pathlib.Path
        Input minus A(output), divided by the noise standard deviation, on the input's grid.
    mask_path : pathlib.Path
        Brain mask on the same grid; the histogram counts its voxels.
    out_file : pathlib.Path
        PNG to write.
    noise_alone : float
        Standard deviation that noise alone would have in the map: below 1 in a zero-filled scan.
    columns : int
        Slices per plane.

    Returns
    -------
    pathlib.Path
        ``out_file``.

    Raises
    ------
    ValueError
        The two files have different grids, or one holds more than one volume.

    """
    residual, mask = Volume.load(residual_path), Volume.load(mask_path)
    require_same_grid(residual, mask, names=(residual_path, mask_path))
    brain = bounding_box(mask)
    box = bounding_box(mask, margin_mm=8)
    figure = new_figure(12.0, 6.0)
    parts: Any = figure.subfigures(1, 2, width_ratios=(2.4, 1), facecolor=BACKGROUND)
    map_part, histogram_part = parts
    panels = map_part.subplots(3, columns, squeeze=False)
    shown = None
    for axis in range(3):
        for axes, index in zip(panels[axis], brain.positions(axis, columns), strict=True):
            shown = show(axes, residual, axis, index, box, cmap="RdBu_r", vmin=-RESIDUAL_LIMIT, vmax=RESIDUAL_LIMIT)
            draw_outline(axes, mask, axis, index, box, color="black")
            label_panel(axes, f"{PLANES[axis]} {index}", axis)
    bar = map_part.colorbar(shown, ax=panels, orientation="horizontal", shrink=0.6, aspect=40, pad=0.02, extend="both")
    bar.set_label("input − A(output), in units of the noise", color="white", fontsize=9)
    bar.ax.tick_params(colors="white", labelsize=8)
    _histogram(histogram_part.subplots(), residual.data[mask.data > 0], noise_alone)
    return save(figure, out_file)


def _histogram(axes: Axes, values: npt.NDArray[np.float32], noise_alone: float) -> None:
    """Draw the residual's density on a logarithmic scale against that of noise alone."""
    axes.set_facecolor("white")
    edges = np.linspace(-6, 6, 97)
    if values.size:
        density = np.histogram(np.clip(values, edges[0], edges[-1]), bins=edges)[0] / values.size / np.diff(edges)
        axes.stairs(density, edges, fill=True, color="#4a90c2", label="brain voxels")
        beyond = 100 * float((np.abs(values) > 3).mean())
        axes.set_title(
            f"standard deviation {values.std():.2f} (noise alone: {noise_alone:.3g})\n"
            f"beyond ±3: {beyond:.2f} % (noise alone: {200 * norm.sf(3 / noise_alone):.2g} %)",
            color="white",
            fontsize=9,
        )
    else:
        axes.set_title("the mask is empty", color="white", fontsize=9)
    line = np.linspace(-6, 6, 241)
    axes.plot(line, norm.pdf(line, scale=noise_alone), color="#b03060", linewidth=1.5, label="noise alone")
    axes.set_yscale("log")
    axes.set_ylim(1e-6, 2)
    axes.set_xlim(-6, 6)
    axes.set_xlabel("residual in units of the noise", color="white", fontsize=9)
    axes.set_ylabel("density", color="white", fontsize=9)
    axes.tick_params(colors="white", labelsize=8)
    axes.legend(fontsize=8, loc="lower center")
