"""Figure of a mixture of experts: its gate, and the image that each expert alone would give."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.patches import Patch

from moesr_bids.reports.drawing import (
    BAR,
    colour_bar,
    label_slice,
    panel_grid,
    require_same_grid,
    save,
    show,
    slices_in_columns,
)
from moesr_bids.reports.planes import Box, Volume, bounding_box, box_on, intensity_window, plane

# Distinct also without colour vision (Okabe and Ito): blue, vermilion, green.
COLOURS = ("#0072b2", "#d55e00", "#009e73")
_LEAST_LIMIT = 0.5  # % of the brightest: smaller differences are not magnified


def plot_experts(image_path: Path, mask_path: Path, maps: Mapping[str, Path], out_file: Path) -> Path:
    """Show the gate of a mixture of experts on the image, and the difference that each expert makes.

    Parameters
    ----------
    image_path : pathlib.Path
        Super-resolved image.
    mask_path : pathlib.Path
        Brain mask on any grid; the figure shows the box around it.
    maps : Mapping
        ``gate-<expert>`` (weights, 0 to 1) and ``difference-<expert>`` (the image with this expert alone, minus the
        image, in its units), three of each in one order, on the grid of the image.
    out_file : pathlib.Path
        PNG to write.

    Returns
    -------
    pathlib.Path
        ``out_file``.

    Raises
    ------
    ValueError
        The files have different grids, or one holds more than one volume.

    """
    image = Volume.load(image_path)
    volumes = {name: Volume.load(path) for name, path in maps.items()}
    require_same_grid(image, *volumes.values(), names=(image_path, *maps.values()))
    experts = [name.removeprefix("gate-") for name in volumes if name.startswith("gate-")]
    mask = Volume.load(mask_path)
    box = box_on(mask, image, bounding_box(mask, margin_mm=8))
    brain = box_on(mask, image, bounding_box(mask))
    low, high = intensity_window(image, box, image.with_data(mask.on(image, 0).data > 0))
    changes = {name: volumes[f"difference-{name}"] for name in experts}
    changes = {name: change.with_data(100 * change.data / high) for name, change in changes.items()}
    spread = [np.percentile(np.abs(change.data[box.slices]), 99.5) for change in changes.values()]
    limit = max(_LEAST_LIMIT, float(max(spread)))

    slices, widths, height = slices_in_columns(image, box, brain)
    figure, panels = panel_grid(widths, [height] * (2 + len(experts)), right=BAR)
    drawn: Any = None
    for column, (axis, index) in enumerate(slices):
        show(panels[0, column], image, axis, index, box, cmap="gray", vmin=low, vmax=high)
        label_slice(panels[0, column], image, axis, index, box)
        weights = [plane(volumes[f"gate-{name}"], axis, index, box) for name in experts]
        drawn_gate = panels[1, column].imshow(
            _blend(weights, _grey(image, axis, index, box, low, high)),
            extent=panels[0, column].images[0].get_extent(),
            interpolation="nearest",
        )
        drawn_gate.axes.set_axis_off()
        label_slice(panels[1, column], image, axis, index, box, "gate")
        for row, (name, change) in enumerate(changes.items(), start=2):
            drawn = show(panels[row, column], change, axis, index, box, cmap="RdBu_r", vmin=-limit, vmax=limit)
            label_slice(panels[row, column], image, axis, index, box, f"{name} alone")
    gates = panels[1, -1].get_position()
    figure.legend(
        handles=[Patch(color=colour, label=name) for colour, name in zip(COLOURS, experts, strict=True)],
        loc="center left",
        bbox_to_anchor=(gates.x1, (gates.y0 + gates.y1) / 2),
        frameon=False,
        labelcolor="white",
        fontsize=9,
    )
    colour_bar(figure, drawn, "difference to the image, % of the brightest", extend="both", bottom=0.1, top=0.5)
    return save(figure, out_file)


def _grey(image: Volume, axis: int, index: int, box: Box, low: float, high: float) -> Any:
    return np.clip((plane(image, axis, index, box) - low) / (high - low), 0, 1)


def _blend(weights: list[Any], grey: Any) -> Any:
    """Mix the experts' colours by their weights, with the brightness of the image."""
    palette = [[int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)] for colour in COLOURS]
    mixed = sum(weight[..., None] * np.array(rgb) for weight, rgb in zip(weights, palette, strict=True))
    return np.clip(mixed * (0.25 + 0.75 * grey[..., None]), 0, 1)
