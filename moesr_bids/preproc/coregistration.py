"""Rigid alignment of the images of a session to one of them, written as ITK composite transforms both ways."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from moesr_bids.intensities import without_outliers
from moesr_bids.preproc.align import (
    AlignmentError,
    Pair,
    agreement,
    inverse,
    read_affine,
    write_affine,
    write_composite,
)
from moesr_bids.preproc.images import FloatArray, image_data, resample_isotropic, to_ants, use_threads
from moesr_bids.preproc.registration import THOROUGH, RegistrationError, RegistrationLimits, RegistrationSettings

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

WORKING_MM = 2.0
_RIM_MM = 6.0  # around the brain, whose surface helps the alignment more than its inside
_TOUCHING = 0.5  # least Dice coefficient of the masks after the coarse alignment from a useful start


@attrs.frozen(eq=False)
class Coregistration:
    """A rigid transform and how good it is.

    Attributes
    ----------
    to_reference : Path
        ITK composite transform (.h5) that resamples the image onto the reference's grid.
    from_reference : Path
        Its inverse.
    matrix : ndarray, shape (4, 4)
        From world mm of the reference to world mm (RAS) of the image.
    centre : ndarray, shape (3,)
        Centre of the reference's brain, world mm.
    dice, mutual_information : float
        See `RegistrationLimits`.

    """

    to_reference: Path
    from_reference: Path
    matrix: NDArray[np.float64]
    centre: NDArray[np.float64]
    dice: float
    mutual_information: float

    def facts(self) -> dict[str, Any]:
        """Return the facts of the sidecar; the movement is that of the brain's centre, relative to the headers."""
        angle = Rotation.from_matrix(self.matrix[:3, :3]).magnitude()
        moved = apply_affine(self.matrix, self.centre) - self.centre
        return {
            "Transform": "rigid (6 parameters)",
            "RotationDegrees": round(float(np.rad2deg(angle)), 2),
            "TranslationMM": round(float(np.linalg.norm(moved)), 2),
            "Dice": round(self.dice, 3),
            "MutualInformation": round(self.mutual_information, 3),
        }


@attrs.frozen(eq=False)
class _Side:
    """An image and its brain on a working grid."""

    data: FloatArray
    brain: FloatArray
    affine: NDArray[np.float64]

    @classmethod
    def of(cls, image: Nifti1Image, mask: Nifti1Image) -> _Side:
        inside = (np.asanyarray(mask.dataobj) > 0).astype(np.float32)
        data, affine = resample_isotropic(without_outliers(image_data(image)), image.affine, WORKING_MM)
        brain, _ = resample_isotropic(inside, image.affine, WORKING_MM)
        if not (brain >= 0.5).any():
            raise RegistrationError("the brain mask is empty")
        top = max(float(np.percentile(data[brain >= 0.5], 98)), 1e-6)
        return cls(np.clip(data / top, 0, 1.5), brain, affine)

    @property
    def centre(self) -> NDArray[np.float64]:
        return np.asarray(apply_affine(self.affine, np.argwhere(self.brain >= 0.5)).mean(axis=0))


def coregister(
    image: Nifti1Image,
    mask: Nifti1Image,
    reference: Nifti1Image,
    reference_mask: Nifti1Image,
    to_reference: Path,
    from_reference: Path,
    *,
    initial: NDArray[np.float64],
    threads: int = 1,
    seed: int = 1,
    settings: RegistrationSettings = THOROUGH,
    limits: RegistrationLimits | None = None,
) -> Coregistration:
    """Align an image to the reference image of its session, rigidly, by mutual information.

    The search starts where the headers put the image, and where `initial` puts it; the better one is refined.

    Parameters
    ----------
    image, reference : Nifti1Image
        Bias-corrected, 3-D, finite; contrasts and grids may differ.
    mask, reference_mask : Nifti1Image
        Their brains, on the same grids.
    to_reference, from_reference : Path
        Files to write (.h5); they appear only when whole.
    initial : ndarray, shape (4, 4)
        From world mm of the reference to world mm of the image, found by way of a template. Its rotation is used; the
        translation lays the centres of the brains onto each other.
    threads, seed, settings, limits
        As for `register`; only the limits of the Dice coefficient and the mutual information count.

    Raises
    ------
    ImageError
        If an image is not 3-D, not finite or sheared.
    RegistrationError
        If a mask is empty, or the images cannot be aligned within the limits.

    """
    use_threads(threads)
    limits = limits or RegistrationLimits()
    moving, fixed = _Side.of(image, mask), _Side.of(reference, reference_mask)
    near = ndimage.binary_dilation(fixed.brain >= 0.5, iterations=round(_RIM_MM / WORKING_MM))
    with tempfile.TemporaryDirectory(prefix="coregister_", dir=to_reference.absolute().parent) as name:
        folder = Path(name)
        pair = Pair(
            fixed=to_ants(fixed.data, fixed.affine),
            moving=to_ants(moving.data, moving.affine),
            mask=to_ants(near, fixed.affine),
            folder=folder,
            seed=seed,
        )
        try:
            best = _align(pair, [np.eye(4), _rigid(initial, fixed.centre, moving.centre)], fixed, moving, settings)
        except AlignmentError as error:
            raise RegistrationError(f"alignment to the session's reference failed ({error})") from error
        dice, mutual_information = _judge(pair, best, fixed, moving)
        if problem := limits.problem(dice, mutual_information):
            raise RegistrationError(f"alignment to the session's reference failed: {problem}; is it the same person?")
        matrix = read_affine(best)
        write_composite([matrix], folder / "to.h5").replace(to_reference)
        write_composite([inverse(matrix)], folder / "from.h5").replace(from_reference)
    return Coregistration(to_reference, from_reference, matrix, fixed.centre, dice, mutual_information)


def _align(
    pair: Pair,
    starts: Sequence[NDArray[np.float64]],
    fixed: _Side,
    moving: _Side,
    settings: RegistrationSettings,
) -> Path:
    found, reasons = [], []
    for index, matrix in enumerate(starts):
        start = write_affine(matrix, pair.folder / f"start{index}.mat")
        try:
            coarse = pair.affine(f"coarse{index}_", start, [(40, 4, 2)], kinds=("Rigid",))
        except AlignmentError as error:  # from this start the two images do not overlap
            reasons.append(str(error))
            continue
        dice, mutual_information = _judge(pair, coarse, fixed, moving)
        # With few common voxels the mutual information can be large by chance.
        found.append((dice >= _TOUCHING, mutual_information, coarse))
    if not found:
        raise AlignmentError("; ".join(reasons))
    best = max(found, key=lambda item: item[:2])[2]
    return pair.affine("fine_", best, settings.affine, kinds=("Rigid",))


def _rigid(matrix: NDArray[np.float64], fixed: NDArray[np.float64], moving: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the nearest rotation of an affine transform, with one point laid onto the other."""
    left, _, right = np.linalg.svd(matrix[:3, :3])
    rigid = np.eye(4)
    rigid[:3, :3] = left @ right
    rigid[:3, 3] = moving - rigid[:3, :3] @ fixed
    return rigid


def _judge(pair: Pair, transform: Path, fixed: _Side, moving: _Side) -> tuple[float, float]:
    """Return Dice coefficient of the masks and mutual information in the brain (nats), where both were scanned."""
    brain = to_ants(moving.brain, moving.affine)
    return agreement(pair, [transform], fixed=fixed.data, fixed_brain=fixed.brain >= 0.5, moving_brain=brain)
