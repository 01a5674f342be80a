"""Figure of a joined image: its scans, which frequencies each measured, what the image leaves of it, its slices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes

from moesr_bids.bids.names import stem_of
from moesr_bids.bids.record import Joined, JoinedScan
from moesr_bids.preproc.images import resample_to
from moesr_bids.reports.drawing import draw_outline, label_panel, label_slice, new_figure, save, show
from moesr_bids.reports.planes import Box, Volume, bounding_box, intensity_window
from moesr_bids.reports.residual import RESIDUAL_LIMIT
from moesr_bids.sr.joint.combine import NOISE_POWER
from moesr_bids.sr.psf import PSF

_DIRECTIONS = ("left to right", "back to front", "foot to head")
_COLOURS = ("#b03060", "#1f5fa8", "#2e8b57")
_BAR = "#4a90c2"
_LOW = "#ffb000"


def plot_scans(
    output_path: Path,
    mask_path: Path,
    scan_paths: Sequence[Path],
    residual_paths: Sequence[Path],
    joined: Joined,
    out_file: Path,
) -> Path:
    """Show the joined image and, a row for each scan, the scan in its place, its residual, its reach and its slices.

    Parameters
    ----------
    output_path : pathlib.Path
        Joined image.
    mask_path : pathlib.Path
        Brain mask of the first scan, on its grid.
    scan_paths, residual_paths : sequence of pathlib.Path
        Bias-corrected scans, and what the image leaves of them in units of their noise, on their own grids.
    joined : Joined
        What is recorded of them.
    out_file : pathlib.Path
        PNG to write.

    Returns
    -------
    pathlib.Path
        ``out_file``.

    """
    image, mask = Volume.load(output_path), Volume.load(mask_path)
    mask = image.with_data(resample_to(mask.data, mask.affine, image.data.shape, image.affine, 0))
    box = bounding_box(mask, margin_mm=8)
    figure = new_figure(15.0, 2.6 * (1 + len(scan_paths)))
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1 + len(scan_paths), 6, squeeze=False)
    _draw_planes(panels[0], image, mask, box, "joined image")
    for axes in panels[0][3:]:
        axes.set_axis_off()
    for row, path, residual_path, facts in zip(panels[1:], scan_paths, residual_paths, joined.scans, strict=True):
        placed = _in_place(path, facts, image)
        _draw_planes(row, placed, mask, box, _name(facts))
        _draw_residual(row[3], Volume.load(residual_path), mask, facts)
        _draw_reach(row[4], nib.load(path).affine, facts, image)
        _draw_slices(row[5], facts)
    return save(figure, out_file)


def _name(facts: JoinedScan) -> str:
    parts = stem_of(facts.source).split("_")
    own = "_".join(part for part in parts if not part.startswith(("sub-", "ses-")))  # those need not be said
    return own if facts.used else f"LEFT OUT: {own}"


def _in_place(path: Path, facts: JoinedScan, image: Volume) -> Volume:
    """Bring a scan to where it lies in the joined image, each voxel with the value nearest to it."""
    scan = Volume.load(path)
    affine = np.linalg.inv(np.asarray(facts.position)) @ scan.affine
    return image.with_data(resample_to(scan.data, affine, image.data.shape, image.affine, 0))


def _draw_planes(row: Any, volume: Volume, mask: Volume, box: Box, name: str) -> None:
    low, high = intensity_window(volume, box, mask)
    for axis, axes in enumerate(row[:3]):
        place = box.positions(axis, 1)[0]
        show(axes, volume, axis, place, box, cmap="gray", vmin=low, vmax=high)
        label_slice(axes, volume, axis, place, box, name if axis == 0 else "")


def _draw_residual(axes: Axes, residual: Volume, mask: Volume, facts: JoinedScan) -> None:
    """Draw the middle slice as it was acquired, and the outline of the brain in it."""
    to_joint = np.linalg.inv(np.asarray(facts.position)) @ residual.affine
    brain = residual.with_data(resample_to(mask.data, mask.affine, residual.data.shape, to_joint, 0))
    box = bounding_box(brain, margin_mm=8)
    axis = int(np.argmax(residual.zooms))
    index = box.positions(axis, 1)[0]
    show(axes, residual, axis, index, box, cmap="RdBu_r", vmin=-RESIDUAL_LIMIT, vmax=RESIDUAL_LIMIT)
    draw_outline(axes, brain, axis, index, box, color="black")
    label_panel(axes, f"residual {facts.output.residual_std:.2f} (noise alone: 1)", axis)


def _draw_reach(axes: Axes, affine: Any, facts: JoinedScan, image: Volume) -> None:
    """Draw the share of each frequency along the joined image's axes that the scan measured."""
    zooms = nib.affines.voxel_sizes(affine)
    directions = (affine[:3, :3] / zooms).T @ np.asarray(facts.position)[:3, :3]
    text = ",".join(f"{profile.kind}:{profile.fwhm}" for profile in facts.psf)
    profiles = PSF.parse(text, tuple(zooms)).axes
    frequency = np.linspace(0, 0.5 / float(image.zooms.min()), 200)
    for world, (words, colour) in enumerate(zip(_DIRECTIONS, _COLOURS, strict=True)):
        transfer = np.ones_like(frequency)
        for axis, profile in enumerate(profiles):
            along = np.abs(directions[axis, world]) * frequency
            # What lies beyond half a cycle per voxel was sampled too coarsely, whatever the profile lets through.
            spectrum = profile.spectrum(along)
            transfer = transfer * np.where(along <= 0.5 / zooms[axis] + 1e-9, spectrum, 0) ** 2
        axes.plot(frequency, transfer / (transfer + NOISE_POWER), color=colour, linewidth=1.4, label=words)
    _plain(axes, "measured share", "cycles per mm")
    axes.set_ylim(0, 1.05)
    axes.legend(fontsize=6)


def _draw_slices(axes: Axes, facts: JoinedScan) -> None:
    """Draw the weight of each slice; those that are not believed in full stand out."""
    weights = np.ones(facts.slices)
    for number, weight in facts.slice_weights.items():
        weights[int(number)] = weight
    colours = [_BAR if weight == 1 else _LOW for weight in weights]
    axes.bar(np.arange(len(weights)), np.maximum(weights, 0.02), width=1.0, color=colours)
    low = int(np.count_nonzero(weights < 1))
    title = f"weight of slices, {low} lowered" if facts.used else "weight of slices"
    _plain(axes, title, f"slice along {facts.slice_axis}")
    axes.set_ylim(0, 1.05)


def _plain(axes: Axes, title: str, label: str) -> None:
    axes.set_facecolor("white")
    axes.set_title(title, color="white", fontsize=8)
    axes.set_xlabel(label, color="white", fontsize=7)
    axes.tick_params(colors="white", labelsize=6)
