"""Figure of the power spectra: which frequencies were measured along each axis, and which were inferred."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import nibabel as nb
import numpy as np
import numpy.typing as npt
from scipy import fft
from scipy.signal import windows

from moesr_bids.bids.record import AxisProfile
from moesr_bids.reports.drawing import new_figure, save
from moesr_bids.reports.planes import Box, Volume, bounding_box, box_on

_NAMES = ("left to right", "posterior to anterior", "inferior to superior")
_DECADES = 7.0


def axis_spectrum(volume: Volume, box: Box, axis: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Power spectral density along an axis, the mean over the lines of a box.

    Parameters
    ----------
    volume : Volume
        Image.
    box : Box
        Voxels to take lines from.
    axis : int
        Axis of the lines.

    Returns
    -------
    frequency : numpy.ndarray
        Cycles per mm, from 0 to the Nyquist frequency.
    power : numpy.ndarray
        Two-sided density (Welch 1967, one Hann-windowed segment per line), intensity squared times mm.

    """
    lines = np.moveaxis(volume.data[box.slices], axis, -1)
    count, spacing = lines.shape[-1], float(volume.zooms[axis])
    window = (windows.hann(count, sym=False) if count > 2 else np.ones(count)).astype(np.float32)
    # Each line's mean is anatomy at frequency 0; windowed, it would leak into its neighbours.
    lines = lines - lines.mean(axis=-1, keepdims=True)
    power = np.square(np.abs(fft.rfft(lines * window, axis=-1))).reshape(-1, count // 2 + 1)
    power = power.mean(axis=0, dtype=np.float64)
    return fft.rfftfreq(count, spacing), power * spacing / np.square(window).sum()


def effective_resolution(volume: Volume, box: Box, thresholds: Sequence[float]) -> tuple[float, ...]:
    """Size of the finest detail that stands out along each axis: half the period of its frequency.

    That frequency is the highest one up to which the power spectral density stays above a threshold. It is at most the
    Nyquist frequency, whose detail is a voxel.

    Parameters
    ----------
    volume : Volume
        Image.
    box : Box
        Voxels to take lines from.
    thresholds : sequence of float
        Density per axis, intensity squared times mm. White noise has its variance times the spacing of the voxels; with
        twice that as the threshold, a signal in such noise is at least as strong as the noise.

    Returns
    -------
    tuple of float
        mm per axis; NaN where nothing stands out.

    """
    sizes = []
    for axis, threshold in enumerate(thresholds):
        frequency, power = axis_spectrum(volume, box, axis)
        hidden = np.flatnonzero(power[1:] <= threshold)
        last = int(hidden[0]) if hidden.size else len(power) - 1
        sizes.append(0.5 / float(frequency[last]) if last > 0 else math.nan)
    return tuple(max(size, float(zoom)) for size, zoom in zip(sizes, volume.zooms, strict=True))


def measured_up_to(image: Path, psf: Sequence[AxisProfile]) -> tuple[float, ...]:
    """Return the highest frequency that was measured along right, anterior and superior, in cycles per mm.

    Parameters
    ----------
    image : pathlib.Path
        Acquired image.
    psf : sequence of AxisProfile
        Kind and width per axis of its array. A k-space window ends at half a cycle per FWHM, which is before the
        Nyquist frequency of the voxels where the scan was zero-filled.

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
        Point-spread function of the input, as its sidecar tells: see `measured_up_to`.

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
    for axis, axes in enumerate(figure.subplots(1, 3, sharey=True)):
        axes.set_facecolor("white")
        highest = 0.0
        for volume, where, colour, name in zip(
            (before, after), boxes, ("#b03060", "#1f5fa8"), ("input", "output"), strict=True
        ):
            frequency, power = axis_spectrum(volume, where, axis)
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
        )
        axes.set_xlabel("frequency, cycles per mm", color="white", fontsize=9)
        axes.tick_params(colors="white", labelsize=8)
        if axis == 0:
            axes.set_ylabel("power spectral density", color="white", fontsize=9)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=8, loc="upper right")
    return save(figure, out_file)
