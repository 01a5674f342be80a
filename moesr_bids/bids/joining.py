"""Which scans of a session are joined into one image, and what that is called.

Joined are scans of one contrast in one session that differ in acquisition (``acq``, as orientations do) or repeat
(``run``) and in nothing else that a name tells, unless their sidecars tell of different contrasts. Scans of different
sessions are never joined: what changed in between would be averaged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import attrs

from moesr_bids.bids.collect import RawImage, coarseness, output_name
from moesr_bids.bids.names import file_name, with_rec

LABEL = "joined"
"""Of the entity ``rec``, by which the image is told from its scans."""
FIRST_APART = "the first scan does not fit the others, which fit each other"
"""Words of the error of the step that joins; the joined image would lie as no scan that it is registered by."""
_MAY_DIFFER = ("acq", "run")
# Two scans whose values differ by more than this factor are of different contrasts.
_FACTORS = {"EchoTime": 1.5, "InversionTime": 1.25, "RepetitionTime": 2.5}
_AGENT = "ContrastBolusIngredient"


def with_joined(images: Sequence[RawImage], mode: str) -> tuple[list[RawImage], list[str]]:
    """Add the images that are joined from several of the scans.

    Parameters
    ----------
    images : sequence of RawImage
        All images of the run, with their references.
    mode : str
        ``auto``: the scans alone, too; ``only``: without those that are joined; ``off``: nothing is joined.

    Returns
    -------
    images : list of RawImage
        Sorted by path.
    notes : list of str
        Which scans were not joined, and why.

    """
    if mode == "off":
        return list(images), []
    joined: list[RawImage] = []
    notes: list[str] = []
    names = Counter(map(output_name, images))
    for group in _groups(images):
        together, apart = _of_one_contrast(group)
        notes += apart
        if len(together) < 2:
            continue
        image = joined_image(together, warnings=apart)
        if names[output_name(image)]:
            notes.append(f"{image.stem} is not joined: there is an image of this name")
            continue
        joined.append(image)
    left_out = {scan for image in joined for scan in image.scans} if mode == "only" else set()
    kept = [image for image in images if image not in left_out]
    return sorted([*kept, *joined], key=lambda image: image.path), notes


def joined_image(scans: Sequence[RawImage], warnings: Sequence[str] = ()) -> RawImage:
    """Return the image of several scans: no file of the data set, but named as one.

    Its entities are those that the scans have in common, and ``rec-joined``.
    """
    first = scans[0]
    common = {key: label for key, label in first.entities.items() if all(s.entities.get(key) == label for s in scans)}
    entities = with_rec(common, common.get("rec", "") + LABEL)
    path = first.path.with_name(file_name(entities, first.suffix, ".nii.gz"))
    return of_scans(RawImage(path=path, root=first.root, warnings=tuple(warnings)), scans)


def without_failed(image: RawImage, failed: Mapping[RawImage, str]) -> RawImage:
    """Return a joined image without the scans that are of no use; it stays as it is where fewer than two are left.

    Parameters
    ----------
    image : RawImage
        The joined image.
    failed : Mapping
        Scans, and why each is left out.

    """
    usable = [scan for scan in image.scans if scan not in failed]
    if len(usable) < 2:
        return image
    gone = tuple(attrs.evolve(scan, problem=failed[scan]) for scan in image.scans if scan in failed)
    return attrs.evolve(of_scans(image, usable), failed=(*image.failed, *gone))


def of_scans(image: RawImage, scans: Sequence[RawImage]) -> RawImage:
    """Return a joined image of these scans: the first says how it lies, and what it is aligned to."""
    first = scans[0]
    return attrs.evolve(
        image,
        scans=tuple(scans),
        reference=first.reference,
        instead_of=first.instead_of,
        instead_reason=first.instead_reason,
    )


def _groups(images: Sequence[RawImage]) -> Iterator[list[RawImage]]:
    """Yield the scans whose names allow that they are joined, the sharpest first."""

    def key(image: RawImage) -> tuple[Any, ...]:
        fixed = [f"{name}-{label}" for name, label in image.entities.items() if name not in _MAY_DIFFER]
        return image.participant, image.suffix, *sorted(fixed)

    usable = sorted((image for image in images if not image.problem), key=key)
    for _, group in groupby(usable, key=key):
        scans = sorted(group, key=coarseness)
        if len(scans) > 1:
            yield scans


def _of_one_contrast(scans: Sequence[RawImage]) -> tuple[list[RawImage], list[str]]:
    """Return the scans of the contrast that most of them have, and of the others why they are not joined."""
    clusters: list[list[RawImage]] = []
    for scan in scans:
        fitting = next((c for c in clusters if not _difference(c[0].metadata, scan.metadata)), None)
        if fitting is None:
            clusters.append([scan])
        else:
            fitting.append(scan)
    together = max(clusters, key=len)
    first = together[0]
    apart = [
        f"{scan.stem} is not joined with {first.stem}: {_difference(first.metadata, scan.metadata)}"
        for scan in scans
        if scan not in together
    ]
    return together, apart


def _difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Say by what sidecars tell that two scans are of different contrasts; nothing where they do not."""
    for key, factor in _FACTORS.items():
        told = [value for value in (first.get(key), second.get(key)) if isinstance(value, int | float) and value > 0]
        if len(told) == 2 and max(told) > factor * min(told):
            return f"{key} of {told[0]:g} and {told[1]:g} s is another contrast"
    if bool(first.get(_AGENT)) != bool(second.get(_AGENT)):
        return f"one of them has a contrast agent ({_AGENT})"
    return ""
