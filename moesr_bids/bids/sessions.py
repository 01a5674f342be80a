"""Reference image of each session, to which the other images of the session are aligned."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby

import attrs

from moesr_bids.bids.collect import RawImage, coarseness
from moesr_bids.bids.joining import of_scans


def with_references(images: Sequence[RawImage], failed: Collection[RawImage] = ()) -> list[RawImage]:
    """Return the images with their references: the sharpest T1w of the session, else its sharpest image.

    Parameters
    ----------
    images : sequence of RawImage
        All images of the run.
    failed : collection of RawImage
        Images that cannot be a reference. `RawImage.instead_of` names such an image where it would have been chosen.

    Returns
    -------
    list of RawImage
        The same images in the same order. `RawImage.reference` is None for a reference itself, and for the only image
        of a session. A joined image has that of its first scan, and is none itself.

    """
    scans = list(dict.fromkeys(scan for image in images for scan in image.files))
    best, usable = _references(scans, ()), _references(scans, failed)

    def referred(image: RawImage) -> RawImage:
        if image.scans:
            return of_scans(image, [referred(scan) for scan in image.scans])
        first, second = (choice.get(_session(image)) for choice in (best, usable))
        better = None if first in (second, image) else first
        return attrs.evolve(
            image,
            reference=None if second == image else second,
            instead_of=better,
            instead_reason=f"{better.stem} could not serve as the reference of the session" if better else "",
        )

    return [referred(image) for image in images]


def registered_by_itself(image: RawImage, why: str) -> RawImage:
    """Return the image without a reference, and with the reason why it could not be aligned to the one it had."""
    assert image.reference is not None
    told = f"not aligned to {image.reference.stem}, but registered by itself: {why}"
    # The next run compares with the first choice.
    better = image.instead_of or image.reference
    reasons = [reason for reason in (image.instead_reason, told) if reason]
    return attrs.evolve(image, reference=None, instead_of=better, instead_reason="; ".join(reasons))


def _session(image: RawImage) -> tuple[str, str]:
    return image.participant, image.session or ""


def _references(images: Sequence[RawImage], failed: Collection[RawImage]) -> dict[tuple[str, str], RawImage]:
    found = {}
    for key, group in groupby(sorted(images, key=_session), key=_session):
        usable = [image for image in group if not image.problem and image not in failed]
        if usable:
            found[key] = attrs.evolve(min(usable, key=_rank), reference=None, instead_of=None, instead_reason="")
    return found


def _rank(image: RawImage) -> tuple[bool, float, str]:
    return image.suffix != "T1w", *coarseness(image)
