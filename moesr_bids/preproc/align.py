"""Affine and deformable alignment with ANTs, from given starting positions, with fixed seeds.

A thin layer over antsRegistration (Avants et al. 2011, doi:10.1016/j.neuroimage.2010.09.025), its transform files, and
the figures that say how well two images agree.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import mutual_info_score

from moesr_bids.preproc.images import RAS_TO_LPS

if TYPE_CHECKING:
    from ants.core.ants_image import ANTsImage

HISTOGRAM_BINS = 32
# With fewer voxels a joint histogram is mostly chance.
SMALLEST_SAMPLE = 1000
SYN_UPDATE_VARIANCE = 3.0
"""Variance of the smoothing of each update of SyN, voxels squared."""
# A transform with more values is a displacement field, and is compressed.
_LARGE = 1000


class AlignmentError(RuntimeError):
    """Two images could not be aligned; the message says why."""


@attrs.frozen
class Start:
    """A position to start from: maps a world point x of the fixed image to ``scale R (x - fixed) + moving``.

    Attributes
    ----------
    fixed, moving : tuple of float
        Points that are laid onto each other, world RAS mm.
    pitch : float
        Rotation about the left-right axis, degrees; positive is nose down in the moving image.
    scale : float
        Size of the moving head relative to the fixed one.

    """

    fixed: tuple[float, float, float]
    moving: tuple[float, float, float]
    pitch: float = 0.0
    scale: float = 1.0

    def matrix(self) -> NDArray[np.float64]:
        """Return the 4 x 4 matrix in world RAS mm."""
        angle = np.deg2rad(self.pitch)
        rotation = np.array(
            [[1, 0, 0], [0, np.cos(angle), np.sin(angle)], [0, -np.sin(angle), np.cos(angle)]], dtype=float
        )
        matrix = np.eye(4)
        matrix[:3, :3] = self.scale * rotation
        matrix[:3, 3] = np.asarray(self.moving) - matrix[:3, :3] @ np.asarray(self.fixed)
        return matrix


def write_affine(matrix: NDArray[np.float64], path: Path) -> Path:
    """Write a world RAS matrix (fixed to moving, mm) as an ITK affine transform (.mat, LPS)."""
    import ants

    ants.write_transform(_itk(matrix), str(path))
    return path


def inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the inverse of a 4 x 4 matrix."""
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def read_affine(path: Path) -> NDArray[np.float64]:
    """Read an ITK affine transform (.mat) as a world RAS matrix (4 x 4, fixed to moving, mm)."""
    import ants

    transform = ants.read_transform(str(path))
    parameters = np.asarray(transform.parameters, dtype=float)
    centre = np.asarray(transform.fixed_parameters, dtype=float)
    lps = np.eye(4)
    lps[:3, :3] = parameters[:9].reshape(3, 3)
    # ITK stores x -> A (x - c) + c + t.
    lps[:3, 3] = parameters[9:12] + centre - lps[:3, :3] @ centre
    return RAS_TO_LPS @ lps @ RAS_TO_LPS


def write_composite(parts: Sequence[NDArray[np.float64] | Path], path: Path) -> Path:
    """Write an ITK composite transform (.h5), compressed: a displacement field takes a third of the space.

    Parameters
    ----------
    parts : sequence of ndarray or Path
        World RAS matrices (mm) and ITK displacement fields (.nii.gz), in the order in which a point of the fixed image
        passes through them.
    path : Path

    """
    import ants
    import h5py

    # Displacement fields are float32, and ANTs composes only what has one precision.
    precision = "float" if any(isinstance(part, Path) for part in parts) else "double"
    transforms = [
        ants.transform_from_displacement_field(ants.image_read(str(part)))
        if isinstance(part, Path)
        else _itk(part, precision)
        for part in parts
    ]
    plain = path.with_name(f"plain_{path.name}")
    ants.write_transform(ants.compose_ants_transforms(transforms), str(plain))
    with h5py.File(plain) as source, h5py.File(path, "w") as target:
        for item in source.values():
            if isinstance(item, h5py.Dataset):
                source.copy(item, target)
        for name, group in source["TransformGroup"].items():
            for key, item in group.items():
                there = target.require_group(f"TransformGroup/{name}")
                if item.size > _LARGE:
                    there.create_dataset(key, data=item[()], compression="gzip", compression_opts=4, shuffle=True)
                else:
                    source.copy(item, there, key)
    plain.unlink()
    return path


def join_composites(parts: Sequence[Path], path: Path) -> Path:
    """Join ITK composite transforms (.h5) to one.

    Parameters
    ----------
    parts : sequence of Path
        In the order in which a point passes through them.
    path : Path

    """
    import h5py

    with h5py.File(path, "w") as target:
        with h5py.File(parts[0]) as first:
            for item in first.values():
                if isinstance(item, h5py.Dataset):
                    first.copy(item, target)
            first.copy("TransformGroup/0", target.create_group("TransformGroup"))
        groups = target["TransformGroup"]
        # ITK lists them as a stack: the transform that a point passes first comes last.
        for part in reversed(parts):
            with h5py.File(part) as source:
                for index in range(1, len(source["TransformGroup"])):
                    source.copy(f"TransformGroup/{index}", groups, str(len(groups)))
    return path


def _itk(matrix: NDArray[np.float64], precision: str = "double") -> Any:
    """Return a world RAS matrix as an ITK affine transform (LPS)."""
    import ants

    lps = RAS_TO_LPS @ matrix @ RAS_TO_LPS
    return ants.create_ants_transform(
        transform_type="AffineTransform", dimension=3, matrix=lps[:3, :3], offset=lps[:3, 3], precision=precision
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discard lines that compiled code prints to the standard output."""
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        with Path(os.devnull).open("wb") as sink:
            os.dup2(sink.fileno(), 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def _schedule(levels: Sequence[tuple[int, int, float]]) -> list[str]:
    """Return antsRegistration's options for levels of (iterations, shrink factor, smoothing in voxels)."""
    iterations, shrinks, sigmas = zip(*levels, strict=True)
    return [
        "--convergence", f"[{'x'.join(map(str, iterations))},1e-6,10]",
        "--shrink-factors", "x".join(map(str, shrinks)),
        "--smoothing-sigmas", "x".join(f"{sigma:g}" for sigma in sigmas) + "vox",
    ]  # fmt: skip


@attrs.frozen
class Pair:
    """Two images to align, and the region of the fixed image in which they are compared.

    Attributes
    ----------
    fixed, moving : ANTsImage
    mask : ANTsImage
        On the fixed grid.
    folder : Path
        Where transform files are written.
    seed : int
        Seed of the metric's sampling; 0 counts as 1, since with 0 ANTs takes a seed from the clock.
    depths : tuple of ANTsImage, optional
        Depth under the surface in each voxel of the fixed and of the moving image; aligned beside the intensities.
    depth_weight : float
        Weight of the mean square difference of the depths, relative to that of mutual information.

    """

    fixed: ANTsImage
    moving: ANTsImage
    mask: ANTsImage
    folder: Path
    seed: int = 1
    depths: tuple[ANTsImage, ANTsImage] | None = None
    depth_weight: float = 0.5

    def _information_metric(self, sampling: float | None) -> list[str]:
        from ants.internal import get_pointer_string

        images = f"{get_pointer_string(self.fixed)},{get_pointer_string(self.moving)}"
        points = "" if sampling is None else f",Regular,{sampling:g}"
        return ["--metric", f"MI[{images},1,{HISTOGRAM_BINS}{points}]"]

    def _depth_metric(self, sampling: float) -> list[str]:
        from ants.internal import get_pointer_string

        if self.depths is None:
            return []
        images = ",".join(get_pointer_string(image) for image in self.depths)
        return ["--metric", f"MeanSquares[{images},{self.depth_weight:g},0,Regular,{sampling:g}]"]

    def _run(self, prefix: str, initial: Path, stages: list[str]) -> None:
        import ants
        from ants.internal import get_pointer_string

        # The C++ code takes addresses in memory, so the mask must live until the call ends.
        mask = self.mask.clone("unsigned char")
        arguments = [
            "--dimensionality", "3", "--float", "1", "--random-seed", str(max(self.seed, 1)), "-z", "1",
            "--initial-moving-transform", str(initial), *stages,
            "--masks", f"[{get_pointer_string(mask)},NA]", "--output", str(self.folder / prefix),
        ]  # fmt: skip
        try:
            with quiet():
                ants.registration(arguments, None)
        except RuntimeError as error:
            raise AlignmentError(f"antsRegistration failed: {error}") from error

    def affine(
        self,
        prefix: str,
        initial: Path,
        levels: Sequence[tuple[int, int, float]],
        kinds: Sequence[str] = ("Rigid", "Affine"),
        sampling: float = 0.5,
        step: float = 0.1,
    ) -> Path:
        """Maximise Mattes mutual information over transforms of the given kinds, one after the other.

        With ``depths`` their mean square difference is minimised at the same time. ``levels`` are (iterations, shrink
        factor, smoothing in voxels), ``sampling`` is the share of the voxels that are compared.

        Returns
        -------
        Path
            ITK affine (.mat), fixed to moving.

        Raises
        ------
        AlignmentError
            If antsRegistration fails.

        """
        stages: list[str] = []
        for kind in kinds:
            stages += ["--transform", f"{kind}[{step}]"]
            stages += [*self._information_metric(sampling), *self._depth_metric(sampling), *_schedule(levels)]
        self._run(prefix, initial, stages)
        return self.folder / f"{prefix}0GenericAffine.mat"

    def deform(
        self, prefix: str, initial: Path, levels: Sequence[tuple[int, int, float]], step: float = 0.15
    ) -> tuple[Path, Path, Path]:
        """Maximise Mattes mutual information over diffeomorphisms.

        The algorithm is symmetric normalisation (SyN, Avants et al. 2008, doi:10.1016/j.media.2007.06.004). One
        iteration moves a point by at most ``step`` voxels. ``levels`` are as in `affine`.

        Returns
        -------
        affine, warp, inverse_warp : Path
            ITK affine (.mat) and displacement fields.

        Raises
        ------
        AlignmentError
            If antsRegistration fails.

        """
        stages = ["--transform", f"SyN[{step},{SYN_UPDATE_VARIANCE},0]"]
        stages += [*self._information_metric(None), *_schedule(levels)]
        self._run(prefix, initial, stages)
        stem = self.folder / prefix
        return Path(f"{stem}0GenericAffine.mat"), Path(f"{stem}1Warp.nii.gz"), Path(f"{stem}1InverseWarp.nii.gz")


def agreement(
    pair: Pair,
    transforms: Sequence[Path],
    *,
    fixed: NDArray[np.floating],
    fixed_brain: NDArray[np.bool_],
    moving_brain: ANTsImage,
) -> tuple[float, float]:
    """Return how well a pair agrees after transforms, where both images were scanned.

    Parameters
    ----------
    pair : Pair
    transforms : sequence of Path
        As antsApplyTransforms takes them.
    fixed, fixed_brain : ndarray
        Intensities and brain on the fixed grid.
    moving_brain : ANTsImage
        Share of brain in each voxel, on the moving grid.

    Returns
    -------
    dice, mutual_information : float
        Dice coefficient of the brains, and mutual information in the fixed brain, nats; 0 and 0 if fewer than
        `SMALLEST_SAMPLE` voxels of that brain were scanned.

    """
    import ants

    paths = [str(path) for path in transforms]
    with quiet():
        brain, signal = (
            ants.apply_transforms(pair.fixed, image, paths, defaultvalue=-1).numpy()
            for image in (moving_brain, pair.moving)
        )
    seen = brain >= 0
    first, second = brain >= 0.5, fixed_brain & seen
    total = int(first.sum()) + int(second.sum())
    dice = 2 * int((first & second).sum()) / total if total else 0.0
    if second.sum() < SMALLEST_SAMPLE:
        return 0.0, 0.0
    return dice, mutual_information(fixed[second], signal[second])


def mutual_information(first: NDArray[np.floating], second: NDArray[np.floating], bins: int = HISTOGRAM_BINS) -> float:
    """Return the mutual information of two samples, nats; 0 for fewer than `SMALLEST_SAMPLE` values.

    The histogram spans their 1st to 99th percentiles; values beyond count in its first and last bin.
    """
    if first.size < SMALLEST_SAMPLE:
        return 0.0
    codes = []
    for values in (first, second):
        low, high = np.percentile(values, [1, 99])
        if high <= low:
            return 0.0
        codes.append(np.clip((values - low) / (high - low) * bins, 0, bins - 1).astype(int))
    joint = np.bincount(codes[0] * bins + codes[1], minlength=bins * bins).reshape(bins, bins)
    return float(mutual_info_score(None, None, contingency=joint))
