"""Brain mask of any structural image: head or skull-stripped, any contrast, thin or thick slices.

The embedded template is aligned from several starting positions: first by the depth under the surface, then by mutual
information. Its tissue maps are deformed to the image and give the tissue classes; their surface is the mask. A result
that does not look like a brain is refused.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray
from scipy import ndimage

from moesr_bids.intensities import without_outliers
from moesr_bids.preproc.align import (
    AlignmentError,
    Pair,
    Start,
    inverse,
    mutual_information,
    quiet,
    read_affine,
    write_affine,
)
from moesr_bids.preproc.atlas import Atlas, depth_map, load_atlas
from moesr_bids.preproc.bias import BiasSettings, estimate_log_field
from moesr_bids.preproc.foreground import (
    Foreground,
    find_foreground,
    largest_component,
    starting_positions,
    wider_positions,
)
from moesr_bids.preproc.images import (
    BoolArray,
    FloatArray,
    image_data,
    like,
    resample_isotropic,
    resample_to,
    to_ants,
    use_threads,
)
from moesr_bids.preproc.likeness import ANYTHING, HEAD, SURE, MaskLimits, likeness
from moesr_bids.preproc.refine import refine_surface
from moesr_bids.sr.grid import bounding_box

ATLAS_MM = 3.0
WORKING_MM = 2.0
# Least and largest volume of a brain over the template's that an affine transform may give.
SMALLEST_RATIO, LARGEST_RATIO = 0.35, 1.25
_COARSE_BIAS = BiasSettings(zoom=6.0, iterations=(20, 20, 20), tolerance=1e-4)


@attrs.frozen
class MaskSettings:
    """Effort of the search for the brain.

    Attributes
    ----------
    bias : BiasSettings
        Settings of the rough bias field that is taken out first.
    starts : int, optional
        Starting positions of each round; all of them by default.
    finalists : int
        Positions that are aligned by mutual information after the alignment by depth.
    affine, deformation : tuple of (int, int, float)
        Levels of (iterations, shrink factor, smoothing in voxels) on a grid of `ATLAS_MM`; the affine ones are those
        of the best finalist.

    """

    bias: BiasSettings = _COARSE_BIAS
    starts: int | None = None
    finalists: int = 3
    affine: tuple[tuple[int, int, float], ...] = ((30, 2, 1), (15, 1, 0))
    # The last level only brings the field to the grid: the surface is refined after it.
    deformation: tuple[tuple[int, int, float], ...] = ((30, 3, 1), (25, 2, 1), (0, 1, 0))


THOROUGH = MaskSettings()
SLOPPY = MaskSettings(
    bias=BiasSettings(zoom=8.0, iterations=(10,), tolerance=1e-3),
    starts=1,
    finalists=1,
    affine=((20, 2, 1),),
    deformation=((20, 3, 1), (0, 1, 0)),
)


class BrainMaskError(RuntimeError):
    """No brain mask within the limits was found; the message says why."""


@attrs.frozen(eq=False)
class BrainMask:
    """A brain mask, with its figures.

    Attributes
    ----------
    mask : Nifti1Image
        uint8 on the image's own grid.
    tissues : Nifti1Image
        The atlas' shares of white matter, grey matter and CSF, shape (i, j, k, 3), deformed to the image, on a grid
        of `WORKING_MM`.
    to_template : ndarray, shape (4, 4)
        Affine transform from world mm of the image to world mm (RAS) of the embedded template.
    stripped : bool
        Whether the image has no skull.
    volume_ml, dice, likeness, in_view : float
        See `MaskLimits`.
    mutual_information : float
        Mutual information with the template well inside the brain, nats.
    attempts : int
        Number of the round of starting positions that gave the mask.
    doubts : tuple of str
        Reasons to look at the mask: figures outside the limits `SURE`.
    given : bool
        Whether the user gave the mask.

    """

    mask: Nifti1Image
    tissues: Nifti1Image
    to_template: NDArray[np.float64]
    stripped: bool
    volume_ml: float
    dice: float
    mutual_information: float
    likeness: float
    in_view: float
    attempts: int = 1
    doubts: tuple[str, ...] = ()
    given: bool = False

    def figures(self) -> dict[str, float]:
        """Return the figures that `MaskLimits` judges."""
        return {name: getattr(self, name) for name in ("volume_ml", "dice", "likeness", "in_view")}

    @property
    def credence(self) -> tuple[int, float]:
        """Rank among masks that are all in doubt: fewer doubts first, then likeness times Dice."""
        return -len(self.doubts), self.likeness * self.dice

    def facts(self) -> dict[str, Any]:
        """Return the facts of the sidecar."""
        kind = "skull-stripped input" if self.stripped else "whole head"
        found = f"atlas tissue classes after affine and SyN alignment, {kind}"
        return {
            "Method": "given by the user" if self.given else found,
            "SkullStripped": self.stripped,
            "VolumeML": round(self.volume_ml, 1),
            "Dice": round(self.dice, 3),
            "MutualInformation": round(self.mutual_information, 3),
            "Likeness": round(self.likeness, 3),
            "InView": round(self.in_view, 3),
            "Attempts": self.attempts,
            "Doubts": list(self.doubts),
        }


@attrs.frozen(eq=False)
class _Scene:
    """The image on the working grids, with the atlas: all inputs of the search."""

    data: FloatArray
    affine: NDArray[np.float64]
    coarse: FloatArray
    coarse_affine: NDArray[np.float64]
    foreground: Foreground
    coarse_depth: FloatArray
    atlas: Atlas

    @property
    def target(self) -> FloatArray:
        return self.atlas.brain if self.foreground.stripped else self.atlas.head

    def pair(self, folder: Path, seed: int, depth_weight: float) -> Pair:
        atlas, stripped = self.atlas, self.foreground.stripped
        depths = None
        if depth_weight > 0:
            fixed_depth = atlas.brain_depth if stripped else atlas.head_depth
            depths = to_ants(fixed_depth, atlas.affine), to_ants(self.coarse_depth, self.coarse_affine)
        return Pair(
            fixed=to_ants(self.target, atlas.affine),
            moving=to_ants(self.coarse, self.coarse_affine),
            mask=to_ants(atlas.brain_region if stripped else atlas.head_region, atlas.affine),
            folder=folder,
            seed=seed,
            depths=depths,
            depth_weight=depth_weight,
        )


@attrs.frozen
class _Candidate:
    transform: Path
    edge_information: float
    mutual_information: float
    likeness: float
    in_view: float
    ratio: float

    @property
    def rank(self) -> tuple[bool, float]:
        plausible = SMALLEST_RATIO < self.ratio < LARGEST_RATIO
        return plausible, self.edge_information * min(1.0, self.in_view / 0.9)


def extract_brain(
    image: Nifti1Image,
    *,
    work_dir: Path | None = None,
    threads: int = 1,
    seed: int = 1,
    sure: MaskLimits = SURE,
    head: MaskLimits = HEAD,
    given: Nifti1Image | None = None,
    settings: MaskSettings = THOROUGH,
) -> BrainMask:
    """Find the brain in a T1w, T2w or FLAIR image.

    The first mask within the limits `sure` is returned; without one the best of those within `head`, with its doubts.
    A given mask is returned as it is, on the grid of the image; the template is then aligned to the image inside it.

    Parameters
    ----------
    image : Nifti1Image
        3-D, finite; whole head or skull-stripped.
    work_dir : Path, optional
        Folder for temporary files, which are removed; the current folder by default.
    threads : int
        ITK threads; see `use_threads`.
    seed : int
        Seed of the metric's sampling; with one thread the same seed gives the same mask.
    sure, head : MaskLimits
        Limits of a mask without doubt, and the least that an image of a head reaches.
    given : Nifti1Image, optional
        Brain mask of the user, on any grid in the image's world space.
    settings : MaskSettings

    Raises
    ------
    ImageError
        If the image itself cannot be used (not 3-D, not finite, constant, sheared).
    BrainMaskError
        If the image shows no head, so that no attempt gave a mask within `head`; or if a given mask is empty in the
        image, or the template cannot be aligned inside it.

    """
    use_threads(threads)
    scene, own = _prepare(image, settings.bias), None
    stripped = scene.foreground.stripped
    if given is not None:
        own = _on_grid_of(image, given)
        coarse = resample_to(own.astype(np.float32), image.affine, scene.data.shape, scene.affine)
        scene, head = _within(scene, coarse), ANYTHING
    doubtful: list[BrainMask] = []
    reasons: list[str] = []
    with tempfile.TemporaryDirectory(prefix="brainmask_", dir=work_dir or Path.cwd()) as folder:
        for attempt, (variant, starts) in enumerate(_attempts(scene), 1):
            try:
                found = _attempt(image, variant, starts[: settings.starts], Path(folder), seed, head, own, settings)
            except (AlignmentError, BrainMaskError) as error:
                reasons.append(f"attempt {attempt}: {error}")
                continue
            doubts = tuple(sure.problems(found.figures()))
            found = attrs.evolve(found, attempts=attempt, doubts=doubts)
            if own is not None:
                found = attrs.evolve(found, stripped=stripped, given=True)
            if not found.doubts:
                return found
            doubtful.append(found)
    if doubtful:
        return max(doubtful, key=lambda found: found.credence)
    what = "no head was found in the image" if own is None else "the template cannot be laid onto the brain of the mask"
    raise BrainMaskError(f"{what} ({'; '.join(reasons)})")


def _prepare(image: Nifti1Image, bias: BiasSettings) -> _Scene:
    data, affine = resample_isotropic(without_outliers(image_data(image)), image.affine, WORKING_MM)
    foreground = find_foreground(data, affine)
    region = foreground.region & (data > 0.1 * foreground.signal)
    data = np.maximum(data, 0) / np.exp(estimate_log_field(data, affine, region, bias))
    data = np.clip(data / np.percentile(data[foreground.region], 98), 0, 1.5).astype(np.float32)
    return _scene(data, affine, foreground)


def _within(scene: _Scene, mask: FloatArray) -> _Scene:
    """Return the scene with the brain inside a mask alone, on the working grid."""
    region = mask >= 0.5
    if not region.any():
        raise BrainMaskError("the given mask holds next to nothing of the image")
    data = np.where(region, scene.data, 0)
    signal = float(np.percentile(data[region], 98))
    data = np.clip(data / max(signal, 1e-6), 0, 1.5).astype(np.float32)
    volume = float(region.sum()) * WORKING_MM**3 / 1000
    return _scene(data, scene.affine, Foreground(region, 1.0, volume, dip=0.0, stripped=True))


def _on_grid_of(image: Nifti1Image, mask: Nifti1Image) -> BoolArray:
    """Return a mask on the grid of an image: as it is, or by linear interpolation cut at one half."""
    inside = image_data(mask) > 0
    if inside.shape == image.shape and np.allclose(mask.affine, image.affine, atol=1e-3):
        return inside
    return resample_to(inside.astype(np.float32), mask.affine, image.shape, image.affine) >= 0.5


def _scene(data: FloatArray, affine: NDArray[np.float64], foreground: Foreground) -> _Scene:
    coarse, coarse_affine = resample_isotropic(data, affine, ATLAS_MM)
    share, _ = resample_isotropic(foreground.region.astype(np.float32), affine, ATLAS_MM)
    return _Scene(
        data=data,
        affine=affine,
        coarse=coarse,
        coarse_affine=coarse_affine,
        foreground=foreground,
        coarse_depth=depth_map(share >= 0.5, ATLAS_MM),
        atlas=load_atlas(ATLAS_MM),
    )


def _attempts(scene: _Scene) -> Iterator[tuple[_Scene, list[Start]]]:
    yield scene, starting_positions(scene.foreground, scene.affine)
    yield scene, wider_positions(scene.foreground, scene.affine)
    # The image may have a skull although it looked stripped, or the other way round.
    other = attrs.evolve(scene.foreground, stripped=not scene.foreground.stripped)
    yield attrs.evolve(scene, foreground=other), starting_positions(other, scene.affine)


def _attempt(
    image: Nifti1Image,
    scene: _Scene,
    starts: list[Start],
    folder: Path,
    seed: int,
    head: MaskLimits,
    given: BoolArray | None,
    settings: MaskSettings,
) -> BrainMask:
    best = _search(scene, starts, folder, seed, settings)
    if problems := head.problems({"likeness": best.likeness, "in_view": best.in_view}):
        raise BrainMaskError(", ".join(problems))
    soft, template_mask, tissues = _segment(scene, best, folder, seed, settings)
    mask = soft >= 0.5 if given is None else scene.foreground.region
    own = _own_mask(image, scene, soft) if given is None else given
    found = BrainMask(
        mask=like(own, image, np.uint8),
        tissues=Nifti1Image(np.moveaxis(tissues, 0, -1), scene.affine),
        to_template=inverse(read_affine(best.transform)),
        stripped=scene.foreground.stripped,
        volume_ml=float(own.sum()) * abs(float(np.linalg.det(image.affine[:3, :3]))) / 1000,
        dice=dice(mask, template_mask),
        mutual_information=best.mutual_information,
        likeness=best.likeness,
        in_view=best.in_view,
    )
    if problems := head.problems(found.figures()):
        raise BrainMaskError(", ".join(problems))
    return found


def _own_mask(image: Nifti1Image, scene: _Scene, soft: FloatArray) -> BoolArray:
    """Return the mask on the grid of the image."""
    own = resample_to(soft, scene.affine, image.shape, image.affine) >= 0.5
    if scene.foreground.stripped:
        own = _trim(own, np.asanyarray(image.dataobj) != 0)
    return largest_component(own)


def _search(scene: _Scene, starts: list[Start], folder: Path, seed: int, settings: MaskSettings) -> _Candidate:
    """Align by depth from every start, then the finalists by mutual information, and the best of these finely."""
    by_depth = scene.pair(folder, seed, depth_weight=2.0)
    by_signal = scene.pair(folder, seed, depth_weight=0.3)
    candidates = []
    for index, start in enumerate(starts):
        initial = write_affine(start.matrix(), folder / f"start{index}.mat")
        transform = by_depth.affine(f"depth{index}_", initial, [(30, 4, 2)], kinds=("Similarity",))
        candidates.append(_judge(scene, by_depth, transform))
    candidates.sort(key=lambda candidate: candidate.rank, reverse=True)
    finalists = []
    for index, candidate in enumerate(candidates[: settings.finalists]):
        transform = by_signal.affine(f"signal{index}_", candidate.transform, [(30, 3, 1)])
        finalists.append(_judge(scene, by_signal, transform))
    best = max(finalists, key=lambda candidate: candidate.rank)
    fine = by_signal.affine("fine_", best.transform, settings.affine, kinds=("Affine",), sampling=0.3)
    candidate = _judge(scene, by_signal, fine)
    if not candidate.rank[0]:
        raise BrainMaskError(f"the brain would be {candidate.ratio:.2f} times the template's volume")
    return candidate


def _judge(scene: _Scene, pair: Pair, transform: Path) -> _Candidate:
    import ants

    with quiet():
        warped = ants.apply_transforms(pair.fixed, pair.moving, [str(transform)], defaultvalue=-1).numpy()
    seen = warped >= 0
    brain = scene.atlas.mask >= 0.5
    # Outlines guide the search; only the inside tells a brain from a ball.
    near = ndimage.binary_dilation(brain) & seen
    within = ndimage.binary_erosion(brain, iterations=2) & seen
    edge, inner = (mutual_information(scene.target[part], warped[part]) for part in (near, within))
    ratio = float(np.linalg.det(read_affine(transform)[:3, :3]))
    detail = likeness(scene.target, warped, brain & seen, within, ATLAS_MM)
    return _Candidate(transform, edge, inner, detail, float((brain & seen).sum() / brain.sum()), ratio)


def _segment(
    scene: _Scene, best: _Candidate, folder: Path, seed: int, settings: MaskSettings
) -> tuple[FloatArray, BoolArray, FloatArray]:
    """Return on the working grid: soft mask, template's mask (by the affine transform alone), tissues of the atlas."""
    import ants

    pair = scene.pair(folder, seed, depth_weight=0)
    affine, _, inverse = pair.deform("syn_", best.transform, settings.deformation)
    grid = to_ants(scene.data, scene.affine)

    def carry(values: FloatArray, chain: list[Path], invert: list[bool]) -> FloatArray:
        with quiet():
            moved = ants.apply_transforms(
                grid, to_ants(values, scene.atlas.affine), [str(path) for path in chain], whichtoinvert=invert
            )
        return np.asarray(moved.numpy(), dtype=np.float32)

    tissues = np.stack([carry(tissue, [affine, inverse], [True, False]) for tissue in scene.atlas.tissues])
    template_mask = carry(scene.atlas.mask, [best.transform], [True]) >= 0.5
    near = tissues.sum(axis=0) >= 0.25
    if not near.any():
        raise BrainMaskError("the template's brain lies outside the field of view")
    box = bounding_box(near, margin=int(16 / WORKING_MM))
    allowed = ndimage.binary_dilation(scene.foreground.region)
    soft = np.zeros(scene.data.shape, dtype=np.float32)
    soft[box] = refine_surface(scene.data[box], tissues[(slice(None), *box)], WORKING_MM, allowed[box])
    return soft, template_mask, tissues


def _trim(mask: BoolArray, signal: BoolArray) -> BoolArray:
    """Remove the empty background of a skull-stripped image from the rim of its mask; holes and sulci stay filled."""
    if not mask.any():
        return mask
    box = bounding_box(mask)
    padded = np.pad(signal[box], 4)
    filled = ndimage.binary_fill_holes(ndimage.binary_closing(padded, iterations=3))
    trimmed = np.zeros_like(mask)
    trimmed[box] = mask[box] & filled[4:-4, 4:-4, 4:-4]
    return trimmed


def dice(first: BoolArray, second: BoolArray) -> float:
    """Return the Dice coefficient of two masks."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 0.0
