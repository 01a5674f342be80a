"""Decision on the gradient-nonlinearity correction of an image, from its sidecar and the coefficient files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import nibabel as nib
import numpy as np

from moesr_bids.bids.collect import RawImage
from moesr_bids.config import GRADIENT_EXTENSIONS, Settings
from moesr_bids.nifti import open_image

_SCANNER_SPACE = 1  # NIfTI xform code of scanner-based coordinates
_SLICE_AXES = {"i": 0, "j": 1, "k": 2}


@attrs.frozen(kw_only=True)
class GradientPlan:
    """Decision on the correction of gradient nonlinearity.

    Attributes
    ----------
    action : str
        ``none``, ``full`` (three dimensions), or ``through-plane`` after a scanner's 2-D correction.
    reason : str
        Reason, a clause for sidecar and report.
    file : pathlib.Path, optional
        Coefficients or displacement field; None for the action ``none``.
    slice_axis : int
        Array axis across the slices, for ``through-plane``.
    patient_position : str
        DICOM Patient Position, such as ``HFS`` (head first, supine).
    warnings : tuple of str
        Warnings for sidecar and report.

    """

    action: str
    reason: str
    file: Path | None = None
    slice_axis: int = 2
    patient_position: str = "HFS"
    warnings: tuple[str, ...] = ()

    @property
    def corrects(self) -> bool:
        """Whether the image is corrected."""
        return self.action != "none"

    def record(self) -> dict[str, Any]:
        """Return the facts for the sidecar."""
        facts: dict[str, Any] = {"Action": self.action, "Reason": self.reason}
        if self.file is not None:
            facts |= {"File": self.file.name, "PatientPosition": self.patient_position}
        if self.action == "through-plane":
            facts["SliceAxis"] = "ijk"[self.slice_axis]
        return facts


def plan_gradunwarp(image: RawImage, settings: Settings) -> GradientPlan:
    """Decide how gradient nonlinearity of an image is corrected.

    Nothing is guessed: an image whose sidecar does not tell whether the scanner corrected it is not corrected, with a
    warning.

    Parameters
    ----------
    image : RawImage
        The image; its header and sidecar are read.
    settings : Settings
        ``gradient_coefficients`` is a file, or a folder with files named after scanners.

    """
    if settings.gradunwarp == "off":
        return GradientPlan(action="none", reason="--gradunwarp off")
    if settings.gradient_coefficients is None:
        return GradientPlan(action="none", reason="no --gradient-coefficients were given")
    file, problem = coefficient_file(settings.gradient_coefficients, image.metadata)
    if file is None:
        return _left(problem)
    position = str(image.metadata.get("PatientPosition") or "")
    plan = GradientPlan(action="full", reason="--gradunwarp force", file=file, patient_position=position or "HFS")
    if settings.gradunwarp != "force":
        plan = _by_scanner(plan, image)
    if plan.corrects and not position:
        told = "the sidecar has no PatientPosition: taken to be head first, supine (HFS)"
        plan = attrs.evolve(plan, warnings=(*plan.warnings, told))
    return plan


def _by_scanner(plan: GradientPlan, image: RawImage) -> GradientPlan:
    corrected = image.metadata.get("NonlinearGradientCorrection")
    kinds = _image_type(image)
    if "DIS3D" in kinds:
        return GradientPlan(action="none", reason="the scanner corrected it in three dimensions (ImageType DIS3D)")
    # Before NonlinearGradientCorrection, which converters set for a correction in two dimensions as well.
    if "DIS2D" in kinds:
        reason = "the scanner corrected it within the slices only (ImageType DIS2D)"
        axis, doubt = _slice_axis(image)
        plan = attrs.evolve(plan, action="through-plane", reason=reason, slice_axis=axis, warnings=doubt)
        return _in_scanner_space(plan, image)
    if corrected is True:
        return GradientPlan(action="none", reason="the scanner corrected it (NonlinearGradientCorrection)")
    if corrected is False:
        reason = "the scanner did not correct it (NonlinearGradientCorrection)"
    elif "ND" in kinds:
        reason = "the scanner did not correct it (ImageType ND)"
    else:
        return _left(
            "the sidecar does not say whether the scanner corrected it (NonlinearGradientCorrection, ImageType); "
            "--gradunwarp force corrects it all the same"
        )
    return _in_scanner_space(attrs.evolve(plan, reason=reason), image)


def _image_type(image: RawImage) -> set[str]:
    """Return the values of DICOM's Image Type in capitals; some converters write them as one text."""
    stated = image.metadata.get("ImageType")
    parts = stated.split("\\") if isinstance(stated, str) else stated
    return {str(part).upper() for part in parts} if isinstance(parts, list) else set()


def _in_scanner_space(plan: GradientPlan, image: RawImage) -> GradientPlan:
    try:
        header = open_image(image.path)[0].header
        code = int(header["sform_code"]) or int(header["qform_code"])
    except Exception:  # Whatever is wrong, the header check reports it with its reason.
        return plan
    if code == _SCANNER_SPACE:
        return plan
    return _left(
        f"the header does not place the image in the scanner (xform code {code}, not {_SCANNER_SPACE}), so where the "
        "isocentre was is unknown; --gradunwarp force takes the origin for it"
    )


def _left(reason: str) -> GradientPlan:
    return GradientPlan(action="none", reason=reason, warnings=(f"gradient nonlinearity was not corrected: {reason}",))


def _slice_axis(image: RawImage) -> tuple[int, tuple[str, ...]]:
    """Return the array axis across the slices, and a warning where nothing tells it."""
    stated = str(image.metadata.get("SliceEncodingDirection") or "")[:1]
    if stated in _SLICE_AXES:
        return _SLICE_AXES[stated], ()
    try:
        affine = open_image(image.path)[0].affine
    except Exception:  # As above.
        return _SLICE_AXES["k"], ()
    zooms = nib.affines.voxel_sizes(affine)
    directions = image.metadata.get("ImageOrientationPatientDICOM")
    if isinstance(directions, list) and len(directions) == 6 and all(isinstance(x, int | float) for x in directions):
        # Directions of rows and columns; their normal is across the slices, however the file is stored. LPS to RAS.
        normal = np.cross(directions[:3], directions[3:]) * (-1, -1, 1)
        return int(np.abs(normal @ (affine[:3, :3] / zooms)).argmax()), ()
    # The thickest voxels; converters store slices along k, so k if all are alike.
    axis = max(range(3), key=lambda axis: (round(float(zooms[axis]), 2), axis))
    if zooms[axis] > 1.05 * sorted(zooms)[1]:
        return axis, ()
    return axis, (f"no key tells along which axis the slices lie: taken to be {'ijk'[axis]}, as converters store them",)


def is_coefficients(path: Path) -> bool:
    """Whether a file holds coefficients (``.grad``) and not a displacement field, judged by its name."""
    return path.suffix.lower() == ".grad"


def coefficient_file(source: Path, metadata: Mapping[str, Any]) -> tuple[Path | None, str]:
    """Find the file for a scanner.

    In a folder, names are compared without case and punctuation with StationName, then Manufacturer and
    ManufacturersModelName together, then ManufacturersModelName.

    Returns
    -------
    pathlib.Path or None, str
        The file, or None and why.

    """
    if not source.is_dir():
        return source, ""
    station, maker, model = (
        str(metadata.get(key) or "") for key in ("StationName", "Manufacturer", "ManufacturersModelName")
    )
    by_name: dict[str, list[Path]] = {}
    for path in sorted(source.iterdir()):
        if path.name.lower().endswith(GRADIENT_EXTENSIONS):
            by_name.setdefault(_plain(path.name.lower().removesuffix(".gz").rpartition(".")[0]), []).append(path)
    wanted = list(dict.fromkeys(name for name in map(_plain, (station, maker + model, model)) if name))
    if not wanted:
        return None, "the sidecar names no scanner (StationName, Manufacturer, ManufacturersModelName)"
    for name in wanted:
        files = by_name.get(name, [])
        if len(files) > 1:
            return None, f"{source} has {len(files)} files for {name}: {', '.join(f.name for f in files)}; keep one"
        if files:
            return files[0], ""
    return None, f"{source} has no file named after the scanner ({' or '.join(wanted)})"


def _plain(name: str) -> str:
    return re.sub(r"[^0-9a-z]", "", name.lower())
