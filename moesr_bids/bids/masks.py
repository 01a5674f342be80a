"""Brain masks that the user gives, from BIDS derivatives such as those of fMRIPrep or SynthStrip."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np

from moesr_bids.bids.collect import RawImage, is_nifti
from moesr_bids.bids.names import entities_of
from moesr_bids.bids.sidecars import read_sidecar
from moesr_bids.config import Settings
from moesr_bids.digests import sha256
from moesr_bids.errors import ImageError
from moesr_bids.nifti import open_image

# Entities of a mask that do not say which scan it belongs to.
_OWN = ("sub", "space", "res", "den", "desc", "label")
_ENDING = "_mask"
_ORIGINAL = "orig"
# fMRIPrep and others name the mask of the T1w without its suffix, and leave its space out.
_DEFAULT_SUFFIX = "T1w"


@attrs.frozen(kw_only=True)
class MaskPlan:
    """Brain mask that the user gives for an image.

    Attributes
    ----------
    file : pathlib.Path, optional
        The mask; None if there is none.
    name : str
        Name of its data set and path below it, for the sidecar.
    warnings : tuple of str
        Warnings for sidecar and report.

    """

    file: Path | None = None
    name: str = ""
    warnings: tuple[str, ...] = ()

    def digest(self) -> str | None:
        """Return the SHA-256 of the mask's file; None without one."""
        return None if self.file is None else sha256(self.file)


def plan_mask(image: RawImage, settings: Settings, *, unwarped: bool = False) -> MaskPlan:
    """Find the brain mask of an image in the folders of ``--derivatives``, which are searched in their order.

    A mask is named ``desc-brain_mask`` or ``label-brain_mask``, is of the same participant, and names no other session,
    acquisition or run. It counts if it is on the image's grid, or if its name puts it into the image's space:
    ``space-T2w`` for a T2w; ``space-T1w``, ``space-orig`` or no ``space`` for a T1w.

    Parameters
    ----------
    image : RawImage
        The image.
    settings : Settings
        ``derivatives`` are roots of data sets.
    unwarped : bool
        Whether gradient nonlinearity will be corrected. Then no mask of the raw image fits, and none is used.

    """
    for root in settings.derivatives:
        found = [path for path in _candidates(root, image) if _fits(path, image)]
        if not found:
            continue
        best = max(found, key=lambda path: (_on_grid(path, image), len(entities_of(path)), path.name))
        name = f"{_dataset_name(root)}: {best.relative_to(root).as_posix()}"
        if unwarped:
            return MaskPlan(warnings=(f"{name} is not used: it was made before gradient nonlinearity was corrected",))
        return MaskPlan(file=best, name=name)
    return MaskPlan()


def _candidates(root: Path, image: RawImage) -> Iterator[Path]:
    """Yield the brain masks of a participant."""
    for path in sorted((root / f"sub-{image.participant}").rglob(f"*{_ENDING}.nii*")):
        entities = entities_of(path)
        brain = "brain" in (entities.get("desc"), entities.get("label"))
        if brain and is_nifti(path):
            yield path


def _fits(path: Path, image: RawImage) -> bool:
    entities = entities_of(path)
    of_scan = {key: label for key, label in entities.items() if key not in _OWN}
    if any(image.entities.get(key) != label for key, label in of_scan.items()):
        return False
    if _on_grid(path, image):
        return True
    space = entities.get("space", _ORIGINAL)
    return space == image.suffix or (space == _ORIGINAL and image.suffix == _DEFAULT_SUFFIX)


def _on_grid(path: Path, image: RawImage) -> bool:
    try:
        (mask, _), (scan, _) = open_image(path), open_image(image.path)
    except ImageError:
        return False  # the step that uses the file reports that it cannot be read
    return mask.shape == scan.shape[:3] and bool(np.allclose(mask.affine, scan.affine, atol=1e-3))


def _dataset_name(root: Path) -> str:
    description = read_sidecar(root / "dataset_description.json")
    return str(description.get("Name") or root.name)
