"""Is it a brain? Figures of a mask and of the alignment of the template, and their limits."""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs
import numpy as np
from scipy import ndimage

from moesr_bids.preproc.align import mutual_information
from moesr_bids.preproc.images import BoolArray, FloatArray

_DETAIL_MM = 12.0
_BINS = 16


@attrs.frozen
class MaskLimits:
    """Figures that a mask must have.

    Attributes
    ----------
    volume_ml : tuple of float
        Smallest and largest brain.
    dice : float
        Dice coefficient with the template's mask after the affine transform, inside the field of view.
    likeness : float
        Mutual information (nats) with the template, of detail finer than 12 mm (standard deviation of a Gaussian), well
        inside the brain (6 mm from its surface); less that with the template upside down or back to front, whichever
        is larger. An image of something else has about 0.
    in_view : float
        Share of the template's brain inside the field of view.

    """

    volume_ml: tuple[float, float]
    dice: float
    likeness: float
    in_view: float

    def problems(self, figures: Mapping[str, float]) -> list[str]:
        """Return a sentence for each figure outside the limits; volume and Dice may be missing."""
        found = []
        if (likeness := figures["likeness"]) < self.likeness:
            found.append(
                f"the image has little in common with a brain (mutual information of detail, beyond chance, "
                f"{likeness:.3f}; expected: at least {self.likeness})"
            )
        if (in_view := figures["in_view"]) < self.in_view:
            found.append(f"only {in_view:.0%} of the brain would lie inside the field of view")
        low, high = self.volume_ml
        if not low <= (volume := figures.get("volume_ml", low)) <= high:
            found.append(f"the mask has {volume:.0f} mL (expected: {low:.0f} to {high:.0f})")
        if (dice := figures.get("dice", 1.0)) < self.dice:
            found.append(f"mask and template overlap badly (Dice {dice:.2f}, expected: at least {self.dice})")
        return found


SURE = MaskLimits(volume_ml=(600.0, 2100.0), dice=0.85, likeness=0.035, in_view=0.6)
"""A mask within these raises no doubt; the smallest volume is a toddler's, the largest a very large adult's."""
ANYTHING = MaskLimits(volume_ml=(0.0, math.inf), dice=0.0, likeness=-math.inf, in_view=0.0)
"""Limits that every mask fits."""
HEAD = MaskLimits(volume_ml=(300.0, 2600.0), dice=0.5, likeness=0.02, in_view=0.2)
"""An image outside these limits shows no head."""


def likeness(target: FloatArray, warped: FloatArray, brain: BoolArray, within: BoolArray, zoom: float) -> float:
    """Return how much an image has in common with a brain; see `MaskLimits`.

    Smooth blobs and shells have mutual information with anything, but no more with an upright brain than with one that
    is turned over. Without a voxel in ``within`` the result is 0.

    Parameters
    ----------
    target, warped : ndarray of float32, shape (i, j, k)
        Template, and the image on its grid; axes run to the right, the front and upwards.
    brain, within : ndarray of bool, shape (i, j, k)
        The template's brain inside the field of view, and the part of it in which images are compared.
    zoom : float
        Voxel size, mm.

    """
    if not within.any():
        return 0.0
    sigma = _DETAIL_MM / zoom
    share = np.maximum(ndimage.gaussian_filter(brain.astype(np.float32), sigma), 1e-3)
    fixed, moving = (
        part - ndimage.gaussian_filter(part * brain, sigma) / share for part in (np.asarray(target), warped)
    )
    by_chance = []
    for axis in (1, 2):
        middle = float(np.argwhere(within)[:, axis].mean())
        shift = round(2 * middle) - (target.shape[axis] - 1)
        turned, there = (np.roll(np.flip(part, axis), shift, axis) for part in (fixed, within))
        by_chance.append(mutual_information(turned[there & within], moving[there & within], _BINS))
    return mutual_information(fixed[within], moving[within], _BINS) - max(by_chance)
