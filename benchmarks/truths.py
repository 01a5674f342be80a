"""Sharp scans as known truth: the whole scan, and the voxels of the brain in which methods are compared."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from attrs import evolve, frozen
from nibabel.processing import resample_from_to
from numpy.typing import NDArray
from scipy import ndimage

from moesr_bids.segmentation.brain import find_brain
from moesr_bids.sr.noise import foreground
from moesr_bids.training.sharpness import axis_resolution
from moesr_bids.training.volumes import too_coarse

from .degrade import Case, FloatArray, degrade

_MARGIN_VOXELS = 10
_LCM = 60  # least common multiple of all factors: every degraded image has the truth's field of view
_RIM_VOXELS = (1, 4)  # from and to this many voxels around a lesion
_FACE = 8  # voxels at the faces of a crop that do not count: beyond them the scan is missing
_SHARP = 1.25  # voxels: detail of an axis that is a truth in full
_USABLE = 1.5  # voxels: detail of an axis that can be made coarser
_CLAMPED = 0.01  # share of the brain that one value has where intensities were cut off
_PEAK = 8.0  # times as frequent as its neighbours among the values


@frozen(eq=False)
class Truth:
    """A sharp scan, whole and padded, and the voxels of the metrics.

    Parameters
    ----------
    participant, suffix
        Participant and contrast.
    image
        float32, voxels that count as isotropic.
    mask
        Brain without the voxels whose intensity was cut off.
    level
        99th percentile in the brain.
    detail
        Finest detail along each axis in voxels; finer detail does not count.
    lesions
        Mask; None if the scan has none.
    """

    participant: str
    suffix: str
    image: nib.Nifti1Image
    mask: NDArray[np.bool_]
    level: float
    detail: tuple[float, float, float] = (1.0, 1.0, 1.0)
    lesions: NDArray[np.bool_] | None = None

    @property
    def rim(self) -> NDArray[np.bool_]:
        """Brain around the lesions, without the nearest voxels, which may be partly lesion."""
        near, far = (ndimage.binary_dilation(self.lesions, iterations=n) for n in _RIM_VOXELS)
        return far & ~near & self.mask

    @property
    def zoom(self) -> float:
        """Voxel size in mm."""
        return float(self.image.header.get_zooms()[0])

    def cropped(self, size: int) -> Truth:
        """Cut out a cube around the middle of the brain; the voxels near its faces do not count."""
        middle = np.round(np.argwhere(self.mask).mean(axis=0)).astype(int)
        first = [max(0, min(int(m) - size // 2, n - size)) for m, n in zip(middle, self.mask.shape, strict=True)]
        box = tuple(slice(f, f + size) for f in first)
        affine = self.image.affine.copy()
        affine[:3, 3] = nib.affines.apply_affine(self.image.affine, first)
        inner = np.zeros_like(self.mask[box])
        inner[(slice(_FACE, -_FACE),) * 3] = True
        volume = np.ascontiguousarray(np.asanyarray(self.image.dataobj)[box])
        return evolve(self, image=nib.Nifti1Image(volume, affine), mask=inner & self.mask[box], lesions=None)

    def name(self, case: Case) -> str:
        """File name of the degraded image and of external results."""
        return f"{self.participant}_{case.name}_{self.suffix}.nii.gz"

    def degradation(self, case: Case) -> Case | None:
        """Return the case along the axes whose detail is fine enough to be made coarser.

        None if no such axis is left, or if a case of slices would become another one.
        """
        possible = case.along([size < _USABLE for size in self.detail])
        return None if possible is None or (case.group != case.name and possible != case) else possible

    def degraded(self, case: Case) -> nib.Nifti1Image:
        """Return the scan degraded by a case; the noise is the same each time."""
        return degrade(self.image, case, case.noise * self.level, seed=sum(map(ord, self.participant + case.name)))

    def known(self, volume: NDArray[np.floating]) -> NDArray[np.floating]:
        """Remove from a volume the frequencies that are too fine for the axes of this truth."""
        for axis, size in enumerate(self.detail):
            if size > _SHARP:
                spectrum = np.fft.rfft(volume, axis=axis)
                frequency = np.fft.rfftfreq(volume.shape[axis])
                kept = np.expand_dims(frequency <= 0.5 / size, [a for a in range(3) if a != axis])
                volume = np.fft.irfft(spectrum * kept, volume.shape[axis], axis=axis)
        return volume


def load_truths(data: Path, splits: Path, role: str, participants: Sequence[str]) -> Iterator[Truth]:
    """Yield the scans of the participants of a role whose voxels are small and isotropic enough for a truth.

    Voxels that are nearly isotropic count as isotropic. The brain is the FreeSurfer segmentation (``aparcaseg``) in the
    folder ``labels`` beside the data; without one the app finds it in the sharp scan. Lesion masks (``lesions``) come
    from that folder too.
    """
    with splits.open(encoding="utf-8") as lines:
        chosen = [row["participant_id"] for row in csv.DictReader(lines, delimiter="\t") if row["role"] == role]
    if participants:
        wanted = {name.removeprefix("sub-") for name in participants}
        chosen = [name for name in chosen if name.removeprefix("sub-") in wanted]
    for participant in chosen:
        for path in sorted((data / participant).glob("**/anat/*.nii.gz")):
            source = nib.load(path)
            if source.ndim == 3 and not too_coarse(source.affine) and max(source.header.get_zooms()) < 1.5:
                yield _prepare(source, participant, path, data.parent / "labels")


def _prepare(source: nib.Nifti1Image, participant: str, path: Path, labels: Path) -> Truth:
    volume = np.clip(source.get_fdata(dtype=np.float32), 0, None)
    segmentations = sorted((labels / "aparcaseg" / participant).glob("**/*_dseg.nii.gz"))
    if segmentations:
        mask = resample_from_to(nib.load(segmentations[0]), source, order=0).get_fdata() > 0
    else:
        mask = np.asanyarray(find_brain(source).mask.dataobj) > 0
    mask = mask & ~clamped(volume, mask)
    masks = [mask]
    for path_of_lesions in sorted((labels / "lesions" / participant).glob("**/*_mask.nii.gz")):
        drawn = nib.load(path_of_lesions)
        if drawn.shape == source.shape and np.allclose(drawn.affine, source.affine, atol=1e-3):
            masks.append(np.asanyarray(drawn.dataobj) > 0)
    detail = axis_resolution(volume, foreground(volume), nib.affines.voxel_sizes(source.affine))
    # Air of exactly 0 is cut off, since nothing in it could reach the head. All else stays, also far from the brain.
    box, padding = [], []
    for axis, n in enumerate(volume.shape):
        hit = np.flatnonzero(volume.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = max(0, hit[0] - _MARGIN_VOXELS), min(n, hit[-1] + 1 + _MARGIN_VOXELS)
        box.append(slice(low, high))
        padding.append((0, -(high - low) % _LCM))
    level = float(np.percentile(volume[mask], 99))
    volume = np.pad(volume[tuple(box)], padding, mode="edge")
    mask, *lesions = (np.pad(array[tuple(box)], padding) for array in masks)
    suffix = path.name.removesuffix(".nii.gz").rpartition("_")[2]
    image = nib.Nifti1Image(volume, _isotropic(source.affine, [b.start for b in box]))
    return Truth(participant, suffix, image, mask, level, detail, *lesions)


def _isotropic(affine: NDArray[np.float64], corner: Sequence[int]) -> NDArray[np.float64]:
    """Return the affine of the voxels from a corner on, as if they were isotropic with their mean size."""
    zooms = nib.affines.voxel_sizes(affine)
    changed = affine.copy()
    changed[:3, 3] = nib.affines.apply_affine(affine, corner)
    changed[:3, :3] *= np.cbrt(zooms.prod()) / zooms
    return changed


def clamped(volume: FloatArray, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return voxels of a mask whose intensity was cut off: at the maximum, or at a value of far too many voxels."""
    values, counts = np.unique(volume[mask], return_counts=True)
    if len(values) < 3:
        return np.zeros_like(mask)
    around = (np.append(counts[1:], counts[-2]) + np.insert(counts[:-1], 0, counts[1])) / 2
    peaks = values[(counts > _CLAMPED * mask.sum()) & (counts > _PEAK * around)]
    top = values[-1:] if counts[-1] > _PEAK * counts[-2] else values[:0]
    return mask & np.isin(volume, np.append(peaks, top))
