"""Figure of the residual, input minus A(output), in noise units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from scipy.stats import norm

from moesr_bids.reports.drawing import colour_bar, label_slice, require_same_grid, save, sheet_of_planes, show_inside
from moesr_bids.reports.planes import Volume, bounding_box, whole

RESIDUAL_LIMIT = 4.0
_HISTOGRAM = 4.2  # inches
_MARGIN_MM = 4.0


def plot_residual(residual_path: Path, mask_path: Path, out_file: Path, *, noise_alone: float = 1.0) -> Path:
    """Show the residual inside the brain, in noise units, as a map and as a histogram.

    Parameters
    ----------
    residual_path : pathlib.Path
        Input minus A(output), divided by the noise standard deviation, on the input's grid.
    mask_path : pathlib.Path
        Brain mask on the same grid.
    out_file : pathlib.Path
        PNG to write.
    noise_alone : float
        Standard deviation that noise alone has in the map: below 1 in a zero-filled scan.

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
    around = bounding_box(mask, margin_mm=_MARGIN_MM)
    residual, mask = residual.cropped(around), mask.cropped(around)
    box = whole(residual)
    figure, slices = sheet_of_planes(residual, box, bounding_box(mask), right=_HISTOGRAM)
    shown: Any = None
    for axes, axis, index in slices:
        limits = {"vmin": -RESIDUAL_LIMIT, "vmax": RESIDUAL_LIMIT}
        shown = show_inside(axes, residual, mask, axis, index, box, cmap="RdBu_r", **limits)
        label_slice(axes, residual, axis, index, box)
    width = figure.get_size_inches()[0]
    histogram = figure.add_axes((1 - (_HISTOGRAM - 0.65) / width, 0.1, (_HISTOGRAM - 1.75) / width, 0.76))
    _histogram(histogram, residual.data[mask.data > 0], noise_alone)
    colour_bar(figure, shown, "input − A(output), in units of the noise", extend="both")
    return save(figure, out_file)


def _histogram(axes: Axes, values: npt.NDArray[np.float32], noise_alone: float) -> None:
    """Draw the density of the residual on a logarithmic scale, with that of noise alone."""
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
            y=1.0,
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
