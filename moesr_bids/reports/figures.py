"""Still figures of brain mask, structures, bias field, gradient nonlinearity and uncertainty: NIfTI in, PNG out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure

from moesr_bids.preproc.images import resample_to
from moesr_bids.reports.drawing import (
    BAR,
    box_mm,
    colour_bar,
    draw_outline,
    label_slice,
    panel_grid,
    pixel_centres,
    require_same_grid,
    save,
    sheet_of_planes,
    show,
    show_inside,
    slices_in_columns,
)
from moesr_bids.reports.planes import Box, Volume, bounding_box, box_on, foreground, intensity_window, plane, whole
from moesr_bids.segmentation.structures import STRUCTURES

_MASK_COLUMNS = 6
# Of both sides, in the order of the legend.
_COLOURS = {
    "cortex": "#e0576f",
    "white matter": "#f2e8cf",
    "deep grey matter": "#7fb069",
    "lateral ventricle": "#5b8def",
    "midline ventricles": "#2f5fc4",
    "csf": "#8fd3e8",
    "cerebellum": "#e6a157",
    "brainstem": "#a783c9",
}
_MARGIN_MM = 4.0  # around the brain
_STRENGTH = 0.45  # of the colours over the image
_SHEET_WIDTH = 10.0  # inches: two pixels per voxel of 0.7 mm, and small enough for a page that is mailed


def plot_mask(image_path: Path, mask_path: Path, out_file: Path) -> Path:
    """Draw the outline of the brain mask on the image, in three planes.

    Parameters
    ----------
    image_path : pathlib.Path
        Image on its own grid; voxels are shown as acquired.
    mask_path : pathlib.Path
        Brain mask on the same grid.
    out_file : pathlib.Path
        PNG to write.

    Returns
    -------
    pathlib.Path
        ``out_file``.

    Raises
    ------
    ValueError
        The two files have different grids, or one holds more than one volume.

    """
    image, mask = Volume.load(image_path), Volume.load(mask_path)
    require_same_grid(image, mask, names=(image_path, mask_path))
    # Slices through the mask, each with the whole head: a mask in the neck must be seen.
    field_of_view = bounding_box(foreground(image), margin_mm=5)
    brain = bounding_box(mask)
    low, high = intensity_window(image, field_of_view, mask)
    positions = [brain.positions(axis, _MASK_COLUMNS, inset=0.08) for axis in range(3)]
    figure, _ = _three_planes(image, field_of_view, positions, partial(draw_outline, mask=mask), vmin=low, vmax=high)
    return save(figure, out_file)


def _three_planes(
    image: Volume, box: Box, positions: Sequence[Sequence[int]], draw: Callable[..., object], **grey: float
) -> tuple[Figure, Any]:
    """Draw a row of slices of an image for each plane, and something over each; return the figure and its panels."""
    x, y, z = box_mm(image, box)
    figure, panels = panel_grid([max(x, y)] * len(positions[0]), (z, z, y))
    for axis in range(3):
        for axes, index in zip(panels[axis], positions[axis], strict=True):
            show(axes, image, axis, index, box, cmap="gray", **grey)
            draw(axes, axis=axis, index=index, box=box)
            label_slice(axes, image, axis, index, box)
    return figure, panels


def plot_structures(image_path: Path, labels_path: Path, out_file: Path) -> Path:
    """Draw the structures of the brain over the image, in three planes.

    Parameters
    ----------
    image_path : pathlib.Path
        Super-resolved image.
    labels_path : pathlib.Path
        Indices of `moesr_bids.segmentation.structures.STRUCTURES` on its grid.
    out_file : pathlib.Path
        PNG to write.

    Returns
    -------
    pathlib.Path
        ``out_file``.

    Raises
    ------
    ValueError
        The two files have different grids, or one holds more than one volume.

    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    image, labels = Volume.load(image_path), Volume.load(labels_path)
    require_same_grid(image, labels, names=(image_path, labels_path))
    box = bounding_box(labels, margin_mm=_MARGIN_MM)
    low, high = intensity_window(image, box, labels)
    colours = ListedColormap([_COLOURS.get(structure.tissue, "black") for structure in STRUCTURES])
    style: dict[str, Any] = {"cmap": colours, "vmin": -0.5, "vmax": len(STRUCTURES) - 0.5, "alpha": _STRENGTH}
    positions = [box.positions(axis, _MASK_COLUMNS, inset=0.2) for axis in range(3)]
    paint = partial(show_inside, volume=labels, mask=labels, **style)
    figure, panels = _three_planes(image, box, positions, paint, vmin=low, vmax=high)
    names = [Patch(color=colour, label="CSF" if name == "csf" else name) for name, colour in _COLOURS.items()]
    panels[2][0].legend(handles=names, loc="lower left", fontsize=6, framealpha=0.7)
    return save(figure, out_file)


def plot_bias(preproc_path: Path, log_field_path: Path, out_file: Path, *, mask_path: Path | None = None) -> Path:
    """Show the image before the bias correction, the field in percent, and the corrected image.

    The uncorrected image is the corrected one times the field. The field is shown relative to its median in the
    mask, ``100 (exp(log field - median) - 1)``, with contours.

    Parameters
    ----------
    preproc_path : pathlib.Path
        Bias-corrected image on its own grid.
    log_field_path : pathlib.Path
        Natural logarithm of the bias field, same grid.
    out_file : pathlib.Path
        PNG to write.
    mask_path : pathlib.Path, optional
        Brain mask on the same grid; without it the foreground is used.

    Returns
    -------
    pathlib.Path
        ``out_file``.

    Raises
    ------
    ValueError
        The files have different grids, or one holds more than one volume.

    """
    corrected, field = Volume.load(preproc_path), Volume.load(log_field_path)
    require_same_grid(corrected, field, names=(preproc_path, log_field_path))
    inside = foreground(corrected)
    if mask_path is not None:
        inside = Volume.load(mask_path)
        require_same_grid(corrected, inside, names=(preproc_path, mask_path))
    box = bounding_box(foreground(corrected), margin_mm=5)
    brain = bounding_box(inside)
    values = field.data[inside.data > 0]
    middle = float(np.median(values)) if values.size else 0.0
    percent = field.with_data(100 * np.expm1(field.data - middle))
    uncorrected = corrected.with_data(corrected.data * np.exp(field.data - middle))
    in_brain = np.abs(percent.data[inside.data > 0])
    limit = max(5.0, float(np.ceil(np.percentile(in_brain, 99)))) if values.size else 5.0
    low, high = intensity_window(corrected, brain, inside)
    grey = {"cmap": "gray", "vmin": low, "vmax": high}
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 1000) if limit / step <= 4 or step == 1000)
    levels = np.arange(-10, 11) * step

    slices, widths, height = slices_in_columns(corrected, box, brain)
    figure, panels = panel_grid(widths, [height] * 3, right=BAR)
    colored: Any = None
    for column, (axis, index) in enumerate(slices):
        for row, volume, text in ((0, uncorrected, "before"), (1, uncorrected, "field"), (2, corrected, "after")):
            show(panels[row, column], volume, axis, index, box, **grey)
            label_slice(panels[row, column], corrected, axis, index, box, text)
        colored = show(panels[1, column], percent, axis, index, box, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=0.55)
        pixels = plane(percent, axis, index, box)
        lines = panels[1, column].contour(
            *pixel_centres(percent, axis, pixels), pixels, levels=levels, colors="white", linewidths=0.6
        )
        panels[1, column].clabel(lines, fontsize=6, fmt="%d")
    colour_bar(figure, colored, "field, % of its median", extend="both", bottom=0.36, top=0.64)
    return save(figure, out_file)


def plot_gradunwarp(acquired_path: Path, unwarped_path: Path, field_path: Path, out_file: Path) -> Path:
    """Show an image before and after its gradient nonlinearity was corrected, with contours of the displacement.

    Parameters
    ----------
    acquired_path, unwarped_path : pathlib.Path
        Images on one grid.
    field_path : pathlib.Path
        ITK displacement field of any grid, shape (i, j, k, 1, 3), mm.
    out_file : pathlib.Path
        PNG to write.

    Returns
    -------
    pathlib.Path
        ``out_file``.

    Raises
    ------
    ValueError
        The images have different grids, or one holds more than one volume.

    """
    acquired, unwarped = Volume.load(acquired_path), Volume.load(unwarped_path)
    require_same_grid(acquired, unwarped, names=(acquired_path, unwarped_path))
    field = nib.load(field_path)
    lengths = np.linalg.norm(field.get_fdata(dtype=np.float32)[:, :, :, 0], axis=-1)
    distance = acquired.with_data(resample_to(lengths, field.affine, acquired.data.shape, acquired.affine))
    box = bounding_box(foreground(acquired), margin_mm=10)
    low, high = intensity_window(acquired, box)
    largest = max(float(distance.data[box.slices].max()), 1e-3)
    step = next((step for step in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0) if largest / step <= 8), 10.0)
    levels = np.arange(1, 40) * step
    slices, widths, height = slices_in_columns(acquired, box, box)
    figure, panels = panel_grid(widths, [height] * 2)
    for column, (axis, index) in enumerate(slices):
        for row, volume, text in ((0, acquired, "acquired"), (1, unwarped, "corrected")):
            axes = panels[row, column]
            show(axes, volume, axis, index, box, cmap="gray", vmin=low, vmax=high)
            label_slice(axes, acquired, axis, index, box, text)
            pixels = plane(distance, axis, index, box)
            centres = pixel_centres(distance, axis, pixels)
            lines = axes.contour(*centres, pixels, levels=levels, colors="#f0e442", linewidths=0.6)
            axes.clabel(lines, fontsize=6, fmt="%g")
    return save(figure, out_file)


def plot_uncertainty(image_path: Path, std_path: Path, out_file: Path, *, mask_path: Path | None = None) -> Path:
    """Show the standard deviation of the error over the super-resolved image, in three planes.

    Parameters
    ----------
    image_path : pathlib.Path
        Super-resolved image.
    std_path : pathlib.Path
        Standard deviation of its error, same grid and units; shown in % of the 99th percentile of the image in the
        mask.
    out_file : pathlib.Path
        PNG to write.
    mask_path : pathlib.Path, optional
        Brain mask on any grid; by default the foreground. The uncertainty is shown inside it, the image around it.

    Returns
    -------
    pathlib.Path
        ``out_file``.

    Raises
    ------
    ValueError
        The files have different grids, or one holds more than one volume.

    """
    image, std = Volume.load(image_path), Volume.load(std_path)
    require_same_grid(image, std, names=(image_path, std_path))
    mask = foreground(image) if mask_path is None else Volume.load(mask_path)
    around = box_on(mask, image, bounding_box(mask, margin_mm=_MARGIN_MM))
    # The figure shows only this box.
    image, std = image.cropped(around), std.cropped(around)
    inside = mask.on(image, 0)
    box, brain = whole(image), bounding_box(inside)
    low, high = intensity_window(image, box, inside)
    within = inside.data > 0
    # Of the brain, as in the tables: skin and fat are brighter.
    brightest = float(np.percentile(image.data[within], 99)) if within.any() else high
    percent = std.with_data(100 * std.data / brightest)
    limit = max(1.0, float(np.ceil(np.percentile(percent.data[within], 99)))) if within.any() else 1.0
    figure, slices = sheet_of_planes(image, box, brain, width=_SHEET_WIDTH)
    shown: Any = None
    for axes, axis, index in slices:
        show(axes, image, axis, index, box, cmap="gray", vmin=low, vmax=high)
        shown = show_inside(axes, percent, inside, axis, index, box, cmap="magma", vmin=0, vmax=limit)
        label_slice(axes, image, axis, index, box)
    colour_bar(figure, shown, "standard deviation of the error, % of the brightest", extend="max")
    return save(figure, out_file)
