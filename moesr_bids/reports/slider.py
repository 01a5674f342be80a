"""Before/after sliders in three planes: input against output, template against registered image."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import cached_property
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
    spline_coefficients,
    where_words,
)
from moesr_bids.reports.templates import render

JPEG_QUALITY = 88  # no block artefact visible at the size shown, a sixth of the size of PNG
_MARGIN_MM = 12.0  # around the brain
CONTOUR_COLOR = (255, 176, 0)
INTERPOLATIONS = {"nearest": 0, "linear": 1, "cubic": 3}


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


def _data_uri(
    pixels: FloatImage, window: tuple[float, float], contours: Sequence[np.ndarray], *, magnified: bool
) -> str:
    low, high = window
    grey = np.clip((pixels - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    picture = Image.fromarray(grey, mode="L")
    if contours:
        picture = picture.convert("RGB")
        draw = ImageDraw.Draw(picture)
        for contour in contours:
            draw.line([(float(column), float(row)) for row, column in contour], fill=CONTOUR_COLOR, width=1)
    buffer = io.BytesIO()
    if magnified:  # each voxel is visible, and so would be artefacts of JPEG
        picture.save(buffer, format="PNG", optimize=True)
    else:
        picture.save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
    kind = "png" if magnified else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@attrs.frozen(slots=False)
class Comparison:
    """Comparison of two images by a slider.

    Attributes
    ----------
    before, after : Side
        The two images; slices are those of ``after``.
    shown : tuple of str
        Interpolations of ``before`` that the reader can choose from.
    outline : Volume or None
        Mask whose edge is drawn on both images.
    magnified : bool
        Whether small windows are shown voxel by voxel.

    """

    before: Side
    after: Side
    shown: tuple[str, ...]
    outline: Volume | None = None
    magnified: bool = False

    @cached_property
    def _shown_as(self) -> dict[str, Volume]:
        """Volume to interpolate for each interpolation: spline coefficients, or the image."""
        volume = self.before.volume
        return {name: spline_coefficients(volume) if name == "cubic" else volume for name in self.shown}

    @classmethod
    def of_output(
        cls, before: Volume, after: Volume, window: tuple[float, float], *, magnified: bool = False
    ) -> Comparison:
        """Compare input and output in one grey scale."""
        return cls(
            Side(before, window, f"input {size_words(before)}"),
            Side(after, window, f"output {size_words(after)}"),
            shown=("cubic", "nearest"),
            magnified=magnified,
        )

    def panel(self, axis: int, index: int, box: Box, what: str = "") -> dict[str, Any]:
        """Return one panel of the slice ``index`` across ``axis``, for the template; ``what`` is its name."""
        grid = self.after.volume
        contours: list[np.ndarray] = []
        if self.outline is not None:
            contours = find_contours(plane_of_other(self.outline, grid, axis, index, box, order=0), 0.5)
        row_mm, column_mm = plane_zooms(grid, axis)
        pixels = plane(grid, axis, index, box)
        position = where_words(grid, axis, index, box).partition(", ")[2]
        other = {
            name: plane_of_other(self._shown_as[name], grid, axis, index, box, INTERPOLATIONS[name])
            for name in self.shown
        }
        return {
            "what": what or PLANES[axis],
            "plane": PLANES[axis],
            "position": position,
            "left_is_left": axis != 0,
            "width": round(pixels.shape[1] * column_mm),
            "height": round(pixels.shape[0] * row_mm),
            "after": _data_uri(pixels, self.after.window, contours, magnified=self.magnified),
            "before": {
                name: _data_uri(image, self.before.window, contours, magnified=self.magnified)
                for name, image in other.items()
            },
        }

    def write(
        self,
        out_html: Path,
        levels: Sequence[tuple[str, Sequence[dict[str, Any]]]],
        *,
        start: int,
        choice: str,
        caption: str,
    ) -> Path:
        """Write the HTML fragment.

        Parameters
        ----------
        out_html : pathlib.Path
            File to write.
        levels : sequence of tuple
            Named groups of panels, of which one is visible.
        start : int
            Group that is visible first.
        choice : str
            Label of the choice between the groups.
        caption : str
            Text below the pictures.

        """
        html = render(
            "slider.html.j2",
            levels=levels,
            start=start,
            choice=choice,
            shown=self.shown,
            magnified=self.magnified,
            before_label=self.before.label,
            after_label=self.after.label,
            caption=caption,
        )
        out_html.parent.mkdir(parents=True, exist_ok=True)
        write_text(out_html, html)
        return out_html

    def write_slices(self, out_html: Path, box: Box, brain: Box, caption: str) -> Path:
        """Write the fragment with slices through ``brain`` in each plane; `box` is the part of them that is shown."""
        levels = []
        for indices in zip(*(brain.positions(axis) for axis in range(3)), strict=True):
            panels = [self.panel(axis, index, box) for axis, index in enumerate(indices)]
            levels.append((", ".join(panel["position"].removesuffix(" mm") for panel in panels) + " mm", panels))
        return self.write(out_html, levels, start=len(levels) // 2, choice="Slices at", caption=caption)


def size_words(volume: Volume) -> str:
    """Return the voxel size, as in ``0.7 × 0.7 × 0.7 mm``."""
    return " × ".join(f"{zoom:.2g}" if zoom < 1 else f"{zoom:.3g}" for zoom in volume.zooms) + " mm"


def plot_slider(input_path: Path, output_path: Path, out_html: Path, *, mask_path: Path | None = None) -> Path:
    """Compare input and output by a before/after slider: three planes, the same slices of both.

    The slices are those of the output. The reader chooses how the input is shown on them: interpolated by cubic
    splines, the best that can be done without a model, or by the nearest voxel, as the scanner measured it. Both images
    have the same grey scale, whose white is that of the brain.

    Parameters
    ----------
    input_path : pathlib.Path
        Input of the super-resolution, NIfTI (bias-corrected, own grid).
    output_path : pathlib.Path
        Super-resolved image, NIfTI, same world space.
    out_html : pathlib.Path
        HTML fragment to write; everything it shows is inside it.
    mask_path : pathlib.Path, optional
        Brain mask on any grid of the same world space; by default the foreground of the input. The slices are chosen
        and cropped around it.

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
    mask = Volume.load(mask_path) if mask_path else foreground(before)
    around, brain = (box_on(mask, after, bounding_box(mask, margin_mm=margin)) for margin in (_MARGIN_MM, 0))
    inside = mask.on(before, 0)
    compared = Comparison.of_output(before, after, intensity_window(before, bounding_box(inside), inside))
    return compared.write_slices(
        out_html,
        around,
        brain,
        "The slices lie on the output's grid, and both sides have the same grey scale. “Interpolated” is the input by "
        "cubic splines, without any model; “voxels as acquired” shows the value of the nearest input voxel. Planes "
        "follow the axes of the scan; the patient's left is on the left.",
    )


def plot_registration(
    template_path: Path,
    warped_path: Path,
    out_html: Path,
    *,
    template_mask_path: Path | None = None,
    template_name: str = "template",
    rigid: bool = False,
) -> Path:
    """Compare a registered image with its template or reference by a slider; a brain outline is drawn on both.

    Parameters
    ----------
    template_path : pathlib.Path
        Template, or reference image of the session.
    warped_path : pathlib.Path
        Image of the participant in the template's space.
    out_html : pathlib.Path
        HTML fragment to write; everything it shows is inside it.
    template_mask_path : pathlib.Path, optional
        Brain mask of the template: its outline is drawn, and the slices are chosen around it. Without it there is no
        outline, and the slices are chosen around the foreground.
    template_name : str
        Name on the template's side.
    rigid : bool
        Whether both images are of the same person, so that everything should stay in place.

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
    shown = outline if outline is not None else foreground(template)
    box, brain = (box_on(shown, template, bounding_box(shown, margin_mm=margin)) for margin in (_MARGIN_MM, 0))
    caption = (
        "Move the divider: everything should stay in place; only the contrast differs."
        if rigid
        else "Move the divider: ventricles and the brain's edge should stay in place; folds differ between people."
    )
    if outline is not None:
        caption += f" The line is the brain outline of {template_name}, the same on both sides."
    same_grid = outline if outline is not None and outline.data.shape == warped.data.shape else None
    compared = Comparison(
        # The participant's image is shown on the template's slices, so the template is the side with the grid.
        Side(warped, intensity_window(warped, box_on(template, warped, box), same_grid), "this image"),
        Side(template, intensity_window(template, box, outline), template_name),
        shown=("linear",),
        outline=outline,
    )
    return compared.write_slices(out_html, box, brain, caption)
