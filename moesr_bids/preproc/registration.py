"""Affine and deformable registration to a reference template, written as ITK composite transforms both ways."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage

from moesr_bids.errors import ImageError
from moesr_bids.intensities import without_outliers
from moesr_bids.preproc.align import (
    AlignmentError,
    Pair,
    Start,
    agreement,
    inverse,
    quiet,
    read_affine,
    write_affine,
    write_composite,
)
from moesr_bids.preproc.images import (
    BoolArray,
    FloatArray,
    image_data,
    resample_isotropic,
    to_ants,
    use_threads,
)
from moesr_bids.preproc.template import Template
from moesr_bids.sr.grid import Grid, bounding_box

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

WORKING_MM = 2.0
# Distance from the template's brain up to which the image is deformed; farther out the transform is affine.
MARGIN_MM = 12.0


class RegistrationError(RuntimeError):
    """An image could not be registered; the message says why."""


@attrs.frozen
class RegistrationLimits:
    """Limits for the affine part of a registration.

    Attributes
    ----------
    dice : float
        Dice coefficient of the brain masks on the template's grid, inside the image's field of view.
    mutual_information : float
        Mutual information (nats) inside the template's brain.
    volume_ratio : tuple of float
        Volume of the image's brain relative to the template's.

    """

    dice: float = 0.85
    mutual_information: float = 0.06
    volume_ratio: tuple[float, float] = (0.35, 1.25)

    def problem(self, dice: float, mutual_information: float) -> str:
        """Return a sentence with both figures if one is too low; otherwise an empty one."""
        if dice >= self.dice and mutual_information >= self.mutual_information:
            return ""
        return (
            f"masks overlap by {dice:.2f} (Dice, at least {self.dice}), "
            f"mutual information {mutual_information:.3f} (at least {self.mutual_information})"
        )


SURE = RegistrationLimits()
# Below these limits the registration fails. Between them and `SURE` it is used, with a warning.
LEAST = RegistrationLimits(dice=0.5, mutual_information=0.02)


@attrs.frozen
class RegistrationSettings:
    """Effort of a registration.

    Attributes
    ----------
    affine, deformation : tuple of (int, int, float)
        Levels of (iterations, shrink factor, smoothing in voxels) on a grid of `WORKING_MM`; the affine ones are those
        after the start was chosen.
    step : float
        Largest step of an iteration of SyN, voxels. On the finest grid 8 iterations do about as much as 15 with half
        the step.

    """

    affine: tuple[tuple[int, int, float], ...] = ((40, 3, 2), (30, 2, 1), (10, 1, 0))
    deformation: tuple[tuple[int, int, float], ...] = ((60, 4, 2), (40, 2, 1), (8, 1, 0))
    step: float = 0.3


THOROUGH = RegistrationSettings()
# The last level only brings the field to the grid.
SLOPPY = RegistrationSettings(affine=((20, 3, 2),), deformation=((10, 4, 2), (0, 1, 0)))


@attrs.frozen(eq=False)
class Registration:
    """A registration, with its figures.

    Attributes
    ----------
    to_template : Path
        ITK composite transform (.h5) that resamples the image onto the template's grid
        (``antsApplyTransforms -i image -r template -t to_template``).
    from_template : Path
        Its inverse, which resamples the template onto the image's grid.
    matrix : ndarray, shape (4, 4)
        The affine part as a matrix from world mm of the image to world mm (RAS) of the template.
    jacobian : tuple of float
        Least and largest determinant of the Jacobian of the deformation in the template's brain. If the least is
        positive, nothing folds.
    dice : float
        Dice coefficient of the masks, see `RegistrationLimits`.
    mutual_information : float
        Mutual information, nats.
    attempts : int
        Number of rounds of starting positions that were tried.
    template : str
        Name of the template.
    doubt : str
        Which figures of the affine part are below `SURE`; empty if none are.

    """

    to_template: Path
    from_template: Path
    matrix: NDArray[np.float64]
    jacobian: tuple[float, float]
    dice: float
    mutual_information: float
    attempts: int
    template: str
    doubt: str = ""

    def facts(self) -> dict[str, Any]:
        """Return the facts of the sidecar."""
        facts: dict[str, Any] = {
            "Template": self.template,
            "Transform": "affine (12 parameters) and symmetric normalisation (SyN)",
            "JacobianRange": list(self.jacobian),
            "Dice": round(self.dice, 3),
            "MutualInformation": round(self.mutual_information, 3),
            "Attempts": self.attempts,
        }
        warnings = []
        if self.doubt:
            warnings.append(f"the registration to {self.template} is doubtful ({self.doubt}): look at it")
        if self.jacobian[0] <= 0:
            warnings.append(f"the deformation to {self.template} folds (Jacobian {self.jacobian[0]:g}): look at it")
        if warnings:
            facts["Warnings"] = warnings
        return facts


@attrs.frozen(eq=False)
class _Task:
    """Template and image on working grids, both as brains."""

    template: FloatArray
    template_brain: BoolArray
    template_affine: NDArray[np.float64]
    data: FloatArray
    brain: FloatArray
    affine: NDArray[np.float64]

    def pair(self, folder: Path, seed: int) -> Pair:
        region = ndimage.binary_dilation(self.template_brain, iterations=2)
        shapes = (
            ndimage.gaussian_filter(self.template_brain.astype(np.float32), 1),
            ndimage.gaussian_filter(self.brain, 1),
        )
        return Pair(
            fixed=to_ants(self.template, self.template_affine),
            moving=to_ants(self.data, self.affine),
            mask=to_ants(region, self.template_affine),
            folder=folder,
            seed=seed,
            depths=(to_ants(shapes[0], self.template_affine), to_ants(shapes[1], self.affine)),
            depth_weight=0.5,
        )


def register(
    image: Nifti1Image,
    mask: Nifti1Image,
    template: Template,
    to_template: Path,
    from_template: Path,
    *,
    initial: NDArray[np.float64] | None = None,
    threads: int = 1,
    seed: int = 1,
    settings: RegistrationSettings = THOROUGH,
    sure: RegistrationLimits = SURE,
    least: RegistrationLimits = LEAST,
) -> Registration:
    """Register the brain of an image to a template: affine, then a diffeomorphism (SyN).

    The first affine transform within the limits `sure` is used; without one the best of those within `least`, with its
    doubt. Both images are masked, so templates with and without skull are treated alike.

    Parameters
    ----------
    image : Nifti1Image
        Bias-corrected, 3-D, finite.
    mask : Nifti1Image
        Its brain, on the same grid.
    template : Template
        Must have a mask; see `moesr_bids.preproc.template_mask.with_mask`.
    to_template, from_template : Path
        Files to write (.h5); they appear only when whole.
    initial : ndarray, shape (4, 4), optional
        A transform from world mm of the image to world mm of the template to start from, such as
        `BrainMask.to_template`; tried first.
    threads : int
        ITK threads; see `use_threads`.
    seed : int
        Seed of the metric's sampling.
    settings : RegistrationSettings
    sure, least : RegistrationLimits
        Limits of a registration without doubt, and the least ones.

    Raises
    ------
    ImageError
        If the image or its mask cannot be used.
    ValueError
        If the template has no mask.
    RegistrationError
        If the mask is far too small or too large for a brain, or no starting position leads to an affine transform
        within `least`.
    AlignmentError
        If the deformation fails.

    """
    use_threads(threads)
    task = _prepare(image, mask, template)
    _check_volume(task, template.name, least)
    folder_above = to_template.absolute().parent
    with tempfile.TemporaryDirectory(prefix="register_", dir=folder_above) as name:
        folder = Path(name)
        attempt, aligned = _align(task, template.name, initial, folder, seed, settings, sure, least)
        affine, warp, inverse_warp = aligned.pair.deform("syn_", aligned.transform, settings.deformation, settings.step)
        dice, mutual_information = _judge(task, aligned.pair, [warp, affine])
        forward = read_affine(affine)
        # To the image: a point of the template is first deformed, then moved. Back: in the opposite order.
        _publish([warp, forward], folder, to_template)
        _publish([inverse(forward), inverse_warp], folder, from_template)
        return Registration(
            to_template=to_template,
            from_template=from_template,
            matrix=inverse(forward),
            jacobian=_jacobian_range(aligned.pair, warp, task.template_brain),
            dice=dice,
            mutual_information=mutual_information,
            attempts=attempt,
            template=template.name,
            # After the deformation even a wrong affine transform has good figures, so its own are judged.
            doubt=sure.problem(aligned.dice, aligned.mutual_information),
        )


def warp_to_template(image: Nifti1Image, grid: Grid, transform: Path, order: str = "linear") -> Nifti1Image:
    """Return the image on a grid in the template's space (float32), within its range of intensities.

    Parameters
    ----------
    image : Nifti1Image
    grid : Grid
    transform : Path
        `Registration.to_template`.
    order : str
        Interpolator of antsApplyTransforms.

    """
    import ants

    data = without_outliers(image_data(image))
    with quiet():
        warped = ants.apply_transforms(
            to_ants(np.zeros(grid.shape, np.float32), grid.affine),
            to_ants(data, image.affine),
            [str(transform)],
            interpolator=order,
        ).numpy()
    # Interpolators with negative lobes give values outside the range of the image.
    return nib.nifti1.Nifti1Image(np.clip(warped, data.min(), data.max()), grid.affine)


def judge_registration(
    image: Nifti1Image, mask: Nifti1Image, template: Template, transform: Path, *, threads: int = 1
) -> tuple[float, float]:
    """Return Dice coefficient and mutual information (nats) of a transform that was made elsewhere.

    Raises
    ------
    ImageError
        If the image or its mask cannot be used.
    ValueError
        If the template has no mask.
    RegistrationError
        If one of them is below `LEAST`.

    """
    use_threads(threads)
    task = _prepare(image, mask, template)
    with tempfile.TemporaryDirectory(prefix="judge_", dir=transform.absolute().parent) as name:
        dice, mutual_information = _judge(task, task.pair(Path(name), 1), [transform])
    if problem := LEAST.problem(dice, mutual_information):
        raise RegistrationError(f"registration to {template.name} failed: {problem}")
    return dice, mutual_information


def _prepare(image: Nifti1Image, mask: Nifti1Image, template: Template) -> _Task:
    data = without_outliers(image_data(image))
    inside = np.asanyarray(mask.dataobj) > 0
    if inside.shape != data.shape or not np.allclose(mask.affine, image.affine, atol=1e-3):
        raise ImageError("the mask is not on the grid of the image")
    if not inside.any():
        raise ImageError("the mask is empty")
    if template.mask is None:
        raise ValueError(f"template {template.name} has no mask: use with_mask first")
    low, affine = resample_isotropic(np.where(inside, data, np.float32(0)), image.affine, WORKING_MM)
    brain, _ = resample_isotropic(inside.astype(np.float32), image.affine, WORKING_MM)
    low = np.clip(low / max(float(np.percentile(low[brain > 0.5], 98)), 1e-6), 0, 1.5)
    template_inside = np.asarray(template.mask.dataobj) > 0
    template_data = np.where(template_inside, np.asarray(template.image.dataobj, dtype=np.float32), np.float32(0))
    fixed, fixed_affine = resample_isotropic(template_data, template.image.affine, WORKING_MM)
    share, _ = resample_isotropic(template_inside.astype(np.float32), template.image.affine, WORKING_MM)
    fixed = np.clip(fixed / np.percentile(fixed[share > 0.5], 98), 0, 1.5)
    box = bounding_box(share >= 0.5, round(MARGIN_MM / WORKING_MM))
    fixed_affine[:3, 3] = apply_affine(fixed_affine, [part.start for part in box])
    return _Task(fixed[box], share[box] >= 0.5, fixed_affine, low, brain, affine)


def _check_volume(task: _Task, name: str, limits: RegistrationLimits) -> None:
    # The field of view may cut the brain, so only a far too small or too large mask is refused at once.
    volumes = [float((task.brain >= 0.5).sum()), float(task.template_brain.sum())]
    ratio = volumes[0] / volumes[1]
    if not limits.volume_ratio[0] / 2 <= ratio <= limits.volume_ratio[1]:
        raise RegistrationError(
            f"registration to {name} failed: the brain mask has {volumes[0] * WORKING_MM**3 / 1000:.0f} mL, "
            f"{ratio:.2f} times the template's brain"
        )


def _attempts(task: _Task, initial: NDArray[np.float64] | None) -> list[list[Start | NDArray[np.float64]]]:
    fixed = apply_affine(task.template_affine, np.argwhere(task.template_brain)).mean(axis=0)
    moving = apply_affine(task.affine, np.argwhere(task.brain >= 0.5)).mean(axis=0)
    volumes = [(task.brain >= 0.5).sum(), task.template_brain.sum()]
    scale = float(np.clip(np.cbrt(volumes[0] / volumes[1]), 0.7, 1.1))

    def at(pitch: float, size: float = scale) -> Start:
        return Start(tuple(map(float, fixed)), tuple(map(float, moving)), pitch, size)  # type: ignore[arg-type]

    rounds: list[list[Start | NDArray[np.float64]]] = [] if initial is None else [[inverse(initial)]]
    rounds.append([at(0.0), at(-20.0), at(20.0)])
    rounds.append([at(-40.0), at(40.0), at(0.0, 0.85 * scale), at(0.0, 1.15 * scale)])
    return rounds


@attrs.frozen(eq=False)
class _Aligned:
    """An affine transform, with its figures."""

    pair: Pair
    transform: Path
    dice: float
    mutual_information: float


def _align(
    task: _Task,
    name: str,
    initial: NDArray[np.float64] | None,
    folder: Path,
    seed: int,
    settings: RegistrationSettings,
    sure: RegistrationLimits,
    least: RegistrationLimits,
) -> tuple[int, _Aligned]:
    """Return the number of rounds that were tried, and the first affine transform within `sure`, or the best of all."""
    reasons: list[str] = []
    usable: list[_Aligned] = []
    for attempt, starts in enumerate(_attempts(task, initial), 1):
        try:
            found = _attempt(task, starts, f"round{attempt}_", folder, seed, settings, least)
        except (AlignmentError, RegistrationError) as error:
            reasons.append(f"attempt {attempt}: {error}")
            continue
        if not sure.problem(found.dice, found.mutual_information):
            return attempt, found
        usable.append(found)
    if not usable:
        raise RegistrationError(f"registration to {name} failed (" + "; ".join(reasons) + ")")
    return len(reasons) + len(usable), max(usable, key=lambda found: found.mutual_information)


def _attempt(
    task: _Task,
    starts: list[Start | NDArray[np.float64]],
    prefix: str,
    folder: Path,
    seed: int,
    settings: RegistrationSettings,
    least: RegistrationLimits,
) -> _Aligned:
    pair = task.pair(folder, seed)
    candidates = []
    for index, start in enumerate(starts):
        matrix = start.matrix() if isinstance(start, Start) else np.asarray(start)
        transform = write_affine(matrix, folder / f"{prefix}start{index}.mat")
        if len(starts) > 1:
            transform = pair.affine(f"{prefix}coarse{index}_", transform, [(40, 4, 2)])
        candidates.append((_judge(task, pair, [transform]), transform))
    candidates.sort(key=lambda item: item[0][1], reverse=True)
    best = pair.affine(f"{prefix}fine_", candidates[0][1], settings.affine, kinds=("Affine",), sampling=0.25)
    dice, mutual_information = _judge(task, pair, [best])
    ratio = float(np.linalg.det(read_affine(best)[:3, :3]))
    if not least.volume_ratio[0] <= ratio <= least.volume_ratio[1]:
        raise RegistrationError(f"the brain would be {ratio:.2f} times the template's volume")
    if problem := least.problem(dice, mutual_information):
        raise RegistrationError(problem)
    return _Aligned(pair, best, dice, mutual_information)


def _jacobian_range(pair: Pair, warp: Path, inside: BoolArray) -> tuple[float, float]:
    import ants

    with quiet():
        determinant = ants.create_jacobian_determinant_image(pair.fixed, str(warp)).numpy()[inside]
    return round(float(determinant.min()), 3), round(float(determinant.max()), 3)


def _judge(task: _Task, pair: Pair, chain: Sequence[Path]) -> tuple[float, float]:
    """Return the Dice coefficient of the masks and the mutual information in the brain, inside the field of view."""
    brain = to_ants(task.brain, task.affine)
    return agreement(pair, chain, fixed=task.template, fixed_brain=task.template_brain, moving_brain=brain)


def _publish(parts: Sequence[NDArray[np.float64] | Path], folder: Path, path: Path) -> None:
    """Write a transform under a temporary name on the same file system, then rename it."""
    write_composite(parts, folder / "whole.h5").replace(path)
