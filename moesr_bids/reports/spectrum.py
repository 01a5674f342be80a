"""Figure of the power spectra, with the frequencies along each axis that were measured and those inferred."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nb
import numpy as np

from moesr_bids.bids.record import AxisProfile
from moesr_bids.reports.drawing import new_figure, save
from moesr_bids.reports.planes import Volume, bounding_box, box_on
from moesr_bids.sr.metrics import axis_spectrum

_NAMES = ("left to right", "posterior to anterior", "inferior to superior")
_DECADES = 7.0


def measured_up_to(image: Path, psf: Sequence[AxisProfile]) -> tuple[float, ...]:
    """Return the highest frequency that was measured along right, anterior and superior, in cycles per mm.

    Parameters
    ----------
    image : pathlib.Path
        Acquired image.
    psf : sequence of AxisProfile
        Kind and width per array axis. A k-space window ends at half a cycle per FWHM; in a zero-filled scan this is
        below the Nyquist frequency of the voxels.

    """
    source = nb.load(image)
    found = np.zeros(3)
    turned = nb.io_orientation(source.affine)[:, 0].astype(int)
    for axis, zoom, profile in zip(turned, source.header.get_zooms(), psf, strict=False):
        width = max(float(zoom), profile.fwhm) if profile.kind == "kspace" else float(zoom)
        found[axis] = 0.5 / width
    return tuple(map(float, found))


def plot_spectrum(
    input_path: Path, output_path: Path, mask_path: Path, out_file: Path, psf: Sequence[AxisProfile]
) -> Path:
    """Show the power spectra of input and output along each axis.

    Parameters
    ----------
    input_path : pathlib.Path
        Bias-corrected input on its own grid.
    output_path : pathlib.Path
        Super-resolved image on a grid with the same axes.
    mask_path : pathlib.Path
        Brain mask on the input's grid: lines are taken from its bounding box.
    out_file : pathlib.Path
        PNG to write.
    psf : sequence of AxisProfile
        Point-spread function of the input, see `measured_up_to`.

    Returns
    -------
    pathlib.Path
        ``out_file``.

    Raises
    ------
    ValueError
        One of the files holds more than one volume.

    """
    before, after = Volume.load(input_path), Volume.load(output_path)
    box = bounding_box(Volume.load(mask_path))
    boxes = (box, box_on(before, after, box))
    acquired = measured_up_to(input_path, psf)
    figure = new_figure(12.0, 3.9)
    places = {"left": 0.06, "right": 0.99, "bottom": 0.14, "top": 0.86, "wspace": 0.05}
    for axis, axes in enumerate(figure.subplots(1, 3, sharey=True, gridspec_kw=places)):
        axes.set_facecolor("white")
        highest = 0.0
        for volume, where, colour, name in zip(
            (before, after), boxes, ("#b03060", "#1f5fa8"), ("input", "output"), strict=True
        ):
            frequency, power = axis_spectrum(volume.data[where.slices], float(volume.zooms[axis]), axis)
            if len(power) > 1 and power[1:].max() > 0:
                axes.semilogy(frequency[1:], np.maximum(power[1:], 1e-12), color=colour, linewidth=1.4, label=name)
                highest = max(highest, float(power[1:].max()))
        stored, shown = (0.5 / float(volume.zooms[axis]) for volume in (before, after))
        measured = acquired[axis]
        filled = measured < 0.99 * stored
        size = (
            f"{0.5 / measured:.2g} mm, stored as {0.5 / stored:.2g} mm"
            if filled
            else f"voxels of {0.5 / stored:.2g} mm"
        )
        if shown > measured:
            axes.axvspan(measured, shown, color="#d9d9d9", zorder=0, label="inferred")
        axes.axvline(measured, color="black", linewidth=1, linestyle="--")
        axes.set_xlim(0, max(stored, shown))
        if highest > 0:
            axes.set_ylim(highest / 10**_DECADES, 2 * highest)
        axes.set_title(
            f"{_NAMES[axis]}\nmeasured up to {measured:.2f} per mm ({size})",
            color="white",
            fontsize=9,
            y=1.0,
        )
        axes.set_xlabel("frequency, cycles per mm", color="white", fontsize=9)
        axes.tick_params(colors="white", labelsize=8)
        if axis == 0:
            axes.set_ylabel("power spectral density", color="white", fontsize=9)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=8, loc="upper right")
    return save(figure, out_file)
