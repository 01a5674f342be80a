"""The first look at an image: head or brain, its position, and positions from which to start an alignment."""

from __future__ import annotations

import attrs
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from numpy.typing import NDArray
from scipy import ndimage

from moesr_bids.errors import ImageError
from moesr_bids.preproc.align import Start
from moesr_bids.preproc.images import BoolArray, FloatArray

# An object that is larger than this, mL, is a head.
LARGEST_BRAIN_ML = 2250.0
# A head is bright at the scalp and dark in the skull: an object with a deeper dip than this is a head.
LARGEST_DIP = 0.2
# World point of the MNI brain's middle, and its distance under the top of an adult scalp (mm).
BRAIN_CENTRE = (0.0, -18.0, 8.0)
CENTRE_BELOW_TOP = 80.0
TYPICAL_SCALE = 0.92


@attrs.frozen(eq=False)
class Foreground:
    """The object in an image.

    Attributes
    ----------
    region : ndarray of bool
        The head or the brain, filled.
    signal : float
        98th percentile of the voxels above 2 % of the 99.9th percentile.
    volume_ml : float
    dip : float
        Deepest dip of the intensity on the way from the surface 24 mm inwards, relative to the median deeper than
        25 mm. The intensity is the 30th percentile of shells of 2 mm.
    stripped : bool
        Whether the image shows a brain without skull.

    """

    region: BoolArray
    signal: float
    volume_ml: float
    dip: float
    stripped: bool


def largest_component(mask: BoolArray) -> BoolArray:
    """Return the largest face-connected part of a mask."""
    labels, count = ndimage.label(mask)
    if count <= 1:
        return mask
    return np.asarray(labels == 1 + np.argmax(np.bincount(labels.ravel())[1:]))


def find_foreground(data: FloatArray, affine: NDArray[np.float64]) -> Foreground:
    """Find the object in an image with isotropic voxels of about 2 mm.

    Raises
    ------
    ImageError
        If there is no contrast, or nothing of the size of a head or brain stands out from the background.

    """
    zoom = float(voxel_sizes(affine).mean())
    low, top = (float(value) for value in np.percentile(data, (1, 99.9)))
    if not top > low:
        raise ImageError("the image is constant")
    bright = data[data > 0.02 * top]
    signal = float(np.percentile(bright, 98))
    pad = 4
    above = ndimage.binary_closing(np.pad(data > 0.1 * signal, pad), iterations=3)[pad:-pad, pad:-pad, pad:-pad]
    region = ndimage.binary_fill_holes(largest_component(ndimage.binary_opening(above, iterations=2)))
    volume = float(region.sum()) * zoom**3 / 1000
    if volume < 500:
        raise ImageError(f"nothing of the size of a brain stands out from the background ({volume:.0f} mL)")
    depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1, 1:-1] * zoom
    dip = _deepest_dip(data, depth)
    return Foreground(region, signal, volume, dip, stripped=volume <= LARGEST_BRAIN_ML and dip <= LARGEST_DIP)


def _deepest_dip(data: FloatArray, depth: NDArray[np.float64]) -> float:
    core = data[depth > 25]
    if core.size == 0:
        return 0.0
    shells = [data[(depth > mm) & (depth <= mm + 2)] for mm in range(0, 24, 2)]
    profile = np.array([np.percentile(shell, 30) for shell in shells if shell.size]) / max(float(np.median(core)), 1e-6)
    # Brighter on both sides: in a stripped T2w the CSF at the rim is bright, and the intensity only falls inwards.
    before, behind = np.maximum.accumulate(profile), np.maximum.accumulate(profile[::-1])[::-1]
    return float((np.minimum(before, behind) - profile).max())


def starting_positions(foreground: Foreground, affine: NDArray[np.float64]) -> list[Start]:
    """Return positions from which to start an affine registration of the template to this image.

    The centre of a stripped brain is laid onto that of the template's. The centre of the brain in a head is guessed in
    three ways: below the top of the scalp (a neck moves the centre of mass), at the height of the centre of the field
    of view (cropped scans), and at the centre of mass.
    """
    world = apply_affine(affine, np.argwhere(foreground.region))
    middle = world.mean(axis=0)
    if foreground.stripped:
        scale = float(np.clip(np.cbrt(foreground.volume_ml / 1880.0), 0.7, 1.1))
        return [Start((0.0, -18.0, 12.0), _point(middle), pitch, scale) for pitch in (0.0, -25.0, 25.0)]
    top = np.percentile(world[:, 2], 99.9)
    vault = world[world[:, 2] > top - 110]
    across = np.median(vault[:, 0])
    along = np.percentile(vault[:, 1], [2, 98]).mean()
    field = apply_affine(affine, (np.array(foreground.region.shape) - 1) / 2)
    anchors = [
        (across, along, top - CENTRE_BELOW_TOP),
        (across, along, field[2]),
        (middle[0], middle[1], middle[2]),
    ]
    return [
        Start(BRAIN_CENTRE, _point(anchor), pitch, TYPICAL_SCALE) for anchor in anchors for pitch in (0.0, -20.0, 20.0)
    ]


def wider_positions(foreground: Foreground, affine: NDArray[np.float64]) -> list[Start]:
    """Return further positions, for a second try: other sizes, larger rotations, higher and lower."""
    upright = [start for start in starting_positions(foreground, affine) if start.pitch == 0]
    first = upright[0]
    more = [attrs.evolve(start, pitch=pitch) for start in upright for pitch in (-45.0, 45.0)]
    more += [attrs.evolve(first, scale=first.scale * factor) for factor in (0.82, 1.15)]
    x, y, z = first.moving
    return more + [attrs.evolve(first, moving=(x, y, z + shift)) for shift in (-30.0, 30.0)]


def _point(values: NDArray[np.floating] | tuple[float, ...]) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z
