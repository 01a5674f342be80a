"""The reference image of each session, to which its other images are aligned."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby

import attrs
import nibabel as nib

from moesr_bids.bids.collect import RawImage


def with_references(images: Sequence[RawImage], failed: Collection[RawImage] = ()) -> list[RawImage]:
    """Return the images with their references: a T1w if the session has one, and the sharpest of those.

    Parameters
    ----------
    images : sequence of RawImage
        All images of the run.
    failed : collection of RawImage
        Those that cannot be a reference.

    Returns
    -------
    list of RawImage
        In the same order; `RawImage.reference` is None for references themselves and for images that are alone.

    """

    def session(image: RawImage) -> tuple[str, str]:
        return image.participant, image.session or ""

    references: dict[tuple[str, str], RawImage] = {}
    for key, group in groupby(sorted(images, key=session), key=session):
        usable = [image for image in group if not image.problem and image not in failed]
        if usable:
            references[key] = attrs.evolve(min(usable, key=_rank), reference=None)
    found = []
    for image in images:
        reference = references.get(session(image))
        found.append(attrs.evolve(image, reference=None if reference == image else reference))
    return found


def _rank(image: RawImage) -> tuple[bool, float, str]:
    try:
        coarsest = max(float(zoom) for zoom in nib.load(image.path).header.get_zooms()[:3])
    except Exception:  # Whatever is wrong, the header check says so; here it is only the last choice.
        coarsest = float("inf")
    return image.suffix != "T1w", round(coarsest, 3), image.relative
