"""Before/after sliders in three planes: input against output, template against registered image."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from PIL import Image, ImageDraw
from skimage.measure import find_contours

from moesr_bids.atomic import write_text
from moesr_bids.reports.planes import (
    PLANES,
    Box,
    FloatImage,
    Volume,
    bounding_box,
    box_on,
    foreground,
    intensity_window,
    plane,
    plane_of_other,
    plane_zooms,
    world_position,
)
from moesr_bids.reports.templates import render

JPEG_QUALITY = 92  # no block artefact visible at the size shown, a fifth of the size of PNG
CONTOUR_COLOR = (255, 176, 0)
WORLD_LETTER = ("R", "A", "S")
INTERPOLATIONS = {"nearest": 0, "linear": 1}


@attrs.frozen
class Side:
    """One of the two images of a slider.

    Attributes
    ----------
    volume : Volume
        Image.
    window : tuple of float
        Grey-scale limits.
    label : str
        Short name, shown on the picture.

    """

    volume: Volume
    window: tuple[float, float]
    label: str


def _data_uri(pixels: FloatImage, window: tuple[float, float], contours: Sequence[np.ndarray]) -> str:
    low, high = window
    grey = np.clip((pixels - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    picture = Image.fromarray(grey, mode="L")
    if contours:
        picture = picture.convert("RGB")
        draw = ImageDraw.Draw(picture)
        for contour in contours:
            draw.line([(float(column), float(row)) for row, column in contour], fill=CONTOUR_COLOR, width=1)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _panel(
    before: Side, after: Side, axis: int, index: int, box: Box, shown: Sequence[str], outline: Volume | None
) -> dict[str, Any]:
    grid = after.volume
    contours: list[np.ndarray] = []
    if outline is not None:
        contours = find_contours(plane_of_other(outline, grid, axis, index, box, order=0), 0.5)
    row_mm, column_mm = plane_zooms(grid, axis)
    pixels = plane(grid, axis, index, box)
    millimetres = world_position(grid, axis, index, box)
    return {
        "plane": PLANES[axis],
        "position": f"{WORLD_LETTER[axis]} {round(millimetres):+d} mm",
        "left_is_left": axis != 0,
        "width": round(pixels.shape[1] * column_mm),
        "height": round(pixels.shape[0] * row_mm),
        "after": _data_uri(pixels, after.window, contours),
        "before": {
            name: _data_uri(
                plane_of_other(before.volume, grid, axis, index, box, INTERPOLATIONS[name]), before.window, contours
            )
            for name in shown
        },
    }


def _fragment(
    before: Side,
    after: Side,
    box: Box,
    *,
    shown: Sequence[str],
    positions: int,
    caption: str,
    outline: Volume | None = None,
) -> str:
    indices = [box.positions(axis, positions, inset=0.3) for axis in range(3)]
    levels = [
        [_panel(before, after, axis, indices[axis][level], box, shown, outline) for axis in range(3)]
        for level in range(positions)
    ]
    return render(
        "slider.html.j2",
        levels=levels,
        start=positions // 2,
        shown=list(shown),
        before_label=before.label,
        after_label=after.label,
        caption=caption,
    )


def _write(out_html: Path, html: str) -> Path:
    out_html.parent.mkdir(parents=True, exist_ok=True)
    write_text(out_html, html)
    return out_html


def _size(volume: Volume) -> str:
    return " × ".join(f"{zoom:.2g}" if zoom < 1 else f"{zoom:.3g}" for zoom in volume.zooms) + " mm"


def plot_slider(
    input_path: Path, output_path: Path, out_html: Path, *, mask_path: Path | None = None, positions: int = 3
) -> Path:
    """Compare input and output by a before/after slider: three planes, the same slices of both.

    The slices are those of the output. The input is shown on them by the nearest voxel (what the scanner measured,
    voxel by voxel) or by linear interpolation, as the reader chooses; the fragment says so. Both images have the same
    grey scale.

    Parameters
    ----------
    input_path : pathlib.Path
        NIfTI image that the super-resolution was given (bias-corrected, own grid).
    output_path : pathlib.Path
        NIfTI image on the target grid, same world space.
    out_html : pathlib.Path
        HTML fragment to write; everything it shows is inside it.
    mask_path : pathlib.Path, optional
        Brain mask, any grid of the same world space: the slices are chosen and cropped around it. Without it, around
        the foreground of the output.
    positions : int
        Slices per plane.

    Returns
    -------
    pathlib.Path
        ``out_html``.

    Raises
    ------
    ValueError
        An image has more than one volume.

    """
    before, after = Volume.load(input_path), Volume.load(output_path)
    around = bounding_box(Volume.load(mask_path) if mask_path else foreground(after), margin_mm=12)
    if mask_path:
        around = box_on(Volume.load(mask_path), after, around)
    window = intensity_window(after, around)
    html = _fragment(
        Side(before, window, f"input {_size(before)}"),
        Side(after, window, f"output {_size(after)}"),
        around,
        shown=("nearest", "linear"),
        positions=positions,
        caption="The slices lie on the output's grid, and both sides have the same grey scale. “Voxels as acquired” "
        "shows the value of the nearest input voxel; “linear” is what most viewers show. Planes follow the axes of "
        "the scan; the patient's left is on the left.",
    )
    return _write(out_html, html)


def plot_registration(
    template_path: Path,
    warped_path: Path,
    out_html: Path,
    *,
    template_mask_path: Path | None = None,
    template_name: str = "template",
    rigid: bool = False,
    positions: int = 3,
) -> Path:
    """Compare a registered image with what it was registered to by a slider; the brain's outline is drawn on both.

    Parameters
    ----------
    template_path : pathlib.Path
        Template, or reference image of the session.
    warped_path : pathlib.Path
        Image of the participant in the template's space.
    out_html : pathlib.Path
        HTML fragment to write; everything it shows is inside it.
    template_mask_path : pathlib.Path, optional
        Brain mask of the template: its outline is drawn and the slices are chosen around it.
    template_name : str
        Shown on the template's side.
    rigid : bool
        Whether both are of the same person, so that everything should stay in place.
    positions : int
        Slices per plane.

    Returns
    -------
    pathlib.Path
        ``out_html``.

    Raises
    ------
    ValueError
        An image has more than one volume.

    """
    template, warped = Volume.load(template_path), Volume.load(warped_path)
    outline = Volume.load(template_mask_path) if template_mask_path else None
    box = bounding_box(outline if outline is not None else foreground(template), margin_mm=12)
    if outline is not None:
        box = box_on(outline, template, box)
    caption = (
        "Move the divider: everything should stay in place; only the contrast differs."
        if rigid
        else "Move the divider: ventricles and the brain's edge should stay in place; folds differ between people."
    )
    if outline is not None:
        caption += f" The line is the brain outline of {template_name}, the same on both sides."
    same_grid = outline if outline is not None and outline.data.shape == warped.data.shape else None
    html = _fragment(
        # the participant's image is shown on the template's slices, so the template is the side with the grid
        Side(warped, intensity_window(warped, box_on(template, warped, box), same_grid), "this image"),
        Side(template, intensity_window(template, box, outline), template_name),
        box,
        shown=("linear",),
        positions=positions,
        caption=caption,
        outline=outline,
    )
    return _write(out_html, html)
