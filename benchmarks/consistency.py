"""Data consistency of right and of wrong outputs.

    python -m benchmarks.consistency --data BIDS_DIR --splits splits.tsv [--role ROLE] [--masks DIR] [scans ...]

The model's own image, before the projection, is compared with the scan. Wrong outputs are made from it: zeros; left and
right swapped; shifted by one input voxel, in plane and across slices; blurred to 2 mm; another head, with its centre
and intensities brought to this one; a lesion of 5 mm painted in, or painted over. Two rows have a wrong slice profile
(half and twice the thickness): once the model gets it too, once only the comparison. Isotropic scans are degraded
(:mod:`benchmarks.degrade`), all others are used as they are.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from attrs import evolve, frozen
from numpy.typing import NDArray
from scipy import ndimage

from moesr_bids.sr.consistency import Misfit
from moesr_bids.sr.grid import Grid
from moesr_bids.sr.models import DEFAULT_MODEL, get_model
from moesr_bids.sr.models.base import Problem
from moesr_bids.sr.noise import estimate_noise, foreground
from moesr_bids.sr.operator import AcquisitionOperator
from moesr_bids.sr.psf import PSF, AxisPSF
from moesr_bids.sr.zerofilling import measured_shares, zero_filled

from .degrade import Case, degrade
from .phantom import ACQUISITIONS, acquire, make_truth

_PERCENTILE = 99.0
_NOISE = 0.02
_ISOTROPIC = 0.3  # mm
_RESOLUTION = 1.0
_MARGIN_MM = 12.0
_LESION_MM = 5.0
_CONTRAST = 0.3  # of the 99th percentile: of a lesion
_BLUR_MM = 2.0
DEGRADED = (Case("kspace2", (2, 2, 2), "kspace"), Case("slices4", (1, 1, 4), "gaussian"))


@frozen(eq=False)
class Scan:
    """A scan and the brain in it, cut to the brain with a margin."""

    name: str
    person: str
    image: nib.Nifti1Image
    mask: NDArray[np.bool_]


@frozen(eq=False)
class Seen:
    """A scan as the engine prepares it: the problem of a model, and the mask as an array."""

    problem: Problem
    mask: NDArray[np.bool_]

    @classmethod
    def of(cls, scan: Scan, psf: PSF | None = None) -> Seen:
        """Prepare a scan as the engine does."""
        data, grid = np.asanyarray(scan.image.dataobj, dtype=np.float32), Grid.from_image(scan.image)
        profile = psf or zero_filled(PSF.from_acquisition(grid.zooms), data, grid.zooms, scan.mask)
        shares = measured_shares(profile, grid.zooms)
        scale = float(np.percentile(data[scan.mask], _PERCENTILE))
        sigma = estimate_noise(data, scan.mask, zooms=grid.zooms, shares=shares).std / scale
        operator = AcquisitionOperator(grid, grid.isotropic(min(_RESOLUTION, min(grid.zooms))), profile)
        acquired, inside = torch.from_numpy(data / np.float32(scale)), torch.from_numpy(scan.mask)
        return cls(Problem(acquired, inside, operator, sigma, 0, lambda step, share: None), scan.mask)

    def image(self, model: str) -> torch.Tensor:
        """Return the image of a model before any projection."""
        return get_model(model).reconstruct(self.problem).image.clamp_(min=0)

    def misfit(self, image: torch.Tensor) -> Misfit:
        """Compare an image with the scan."""
        return Misfit.of(image, self.problem.acquired, self.problem.operator, sigma=self.problem.sigma, mask=self.mask)


def wrong_images(
    image: torch.Tensor, seen: Seen, other: tuple[Seen, torch.Tensor] | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield wrong images with the name of their fault; ``other`` is the head of another person, if there is one yet."""
    operator = seen.problem.operator
    target, zooms = operator.target_grid, operator.input_grid.zooms
    yield "zeros", torch.zeros_like(image)
    axis = int(np.abs(target.affine[0, :3]).argmax())
    yield "left-right swapped", image.flip(axis)
    volume = image.numpy()
    for name, along in (("in plane", int(np.argmin(zooms))), ("across slices", int(np.argmax(zooms)))):
        steps = [zooms[along] / target.zooms[along] if a == along else 0.0 for a in range(3)]
        moved = ndimage.shift(volume, steps, order=1, mode="nearest")
        yield f"shifted by a voxel {name}", torch.from_numpy(moved)
    blurred = ndimage.gaussian_filter(volume, [_BLUR_MM / 2.3548 / z for z in target.zooms])
    yield f"blurred to {_BLUR_MM:g} mm", torch.from_numpy(blurred)
    if other is not None:
        yield "another head", torch.from_numpy(_laid_over(other[1].numpy(), other[0], seen))
    inside = np.argwhere(ndimage.binary_erosion(seen.mask, iterations=3))
    place = inside[len(inside) // 2]
    world = nib.affines.apply_affine(operator.input_grid.affine, place)
    centre = nib.affines.apply_affine(np.linalg.inv(target.affine), world)
    distance = np.sqrt(
        sum(((x - c) * z) ** 2 for x, c, z in zip(np.indices(volume.shape), centre, target.zooms, strict=True))
    )
    ball = np.clip((_LESION_MM / 2 - distance) / min(target.zooms) + 0.5, 0, 1).astype(np.float32)
    yield "lesion painted in", torch.from_numpy(volume + _CONTRAST * ball)
    yield "lesion removed", torch.from_numpy(np.maximum(volume - _CONTRAST * ball, 0))


def _laid_over(theirs: NDArray[np.float32], other: Seen, seen: Seen) -> NDArray[np.float32]:
    """Bring another head to this grid, with the centre of the brain and the 99th percentile of this one."""
    here, there = seen.problem.operator.target_grid, other.problem.operator.target_grid
    centres = [
        nib.affines.apply_affine(s.problem.operator.input_grid.affine, np.argwhere(s.mask).mean(axis=0))
        for s in (seen, other)
    ]
    move = nib.affines.from_matvec(np.eye(3), centres[1] - centres[0])
    to_theirs = np.linalg.inv(there.affine) @ move @ here.affine
    return np.asarray(ndimage.affine_transform(theirs, to_theirs, output_shape=here.shape, order=1), dtype=np.float32)


def told_wrong(seen: Seen) -> Iterator[tuple[str, PSF]]:
    """Yield slice profiles of half and twice the thickness, where there are slices."""
    psf = seen.problem.operator.psf
    for axis, profile in enumerate(psf.axes):
        if profile.kind == "gaussian":
            for name, factor in (("half the slice profile", 0.5), ("twice the slice profile", 2.0)):
                axes = [AxisPSF("gaussian", factor * profile.fwhm) if a == axis else p for a, p in enumerate(psf.axes)]
                yield name, PSF((axes[0], axes[1], axes[2]), "given")


def cut(image: nib.Nifti1Image, mask: NDArray[np.bool_], name: str, person: str) -> Scan:
    """Cut a scan to the brain with a margin."""
    zooms = nib.affines.voxel_sizes(image.affine)
    box = []
    for hits, zoom, n in zip(np.nonzero(mask), zooms, image.shape, strict=True):
        margin = round(_MARGIN_MM / zoom)
        box.append(slice(max(0, int(hits.min()) - margin), min(n, int(hits.max()) + 1 + margin)))
    affine = image.affine @ nib.affines.from_matvec(np.eye(3), [b.start for b in box])
    data = np.clip(np.asanyarray(image.dataobj, dtype=np.float32)[tuple(box)], 0, None)
    return Scan(name, person, nib.Nifti1Image(data, affine), mask[tuple(box)])


def scans_of(path: Path, masks: Path | None) -> Iterator[Scan]:
    """Yield a scan as it is, or degraded where it is isotropic."""
    image = nib.load(path)
    name = path.name.removesuffix(".nii.gz").removeprefix("sub-")
    own = masks / f"{name}.nii.gz" if masks else None
    data = np.clip(image.get_fdata(dtype=np.float32), 0, None)
    inside = np.asanyarray(nib.load(own).dataobj) > 0 if own and own.exists() else foreground(data)
    person = name.split("_")[0]
    whole = cut(nib.Nifti1Image(data, image.affine), inside, name, person)
    zooms = image.header.get_zooms()[:3]
    if np.ptp(zooms) > _ISOTROPIC or min(zooms) > 1.2:
        yield whole
        return
    even = tuple(slice(0, n - n % 4) for n in whole.image.shape)
    volume, inside = np.asanyarray(whole.image.dataobj)[even], whole.mask[even]
    sigma = _NOISE * float(np.percentile(volume[inside], _PERCENTILE))
    for case in DEGRADED:
        low = degrade(nib.Nifti1Image(volume, whole.image.affine), case, sigma, seed=1)
        blocks = tuple(int(n) for size, f in zip(volume.shape, case.factors, strict=True) for n in (size // f, f))
        yield Scan(f"{name} {case.name}", person, low, inside.reshape(blocks).mean(axis=(1, 3, 5)) > 0.5)


def phantoms() -> Iterator[Scan]:
    """Yield the phantom's two acquisitions."""
    for acquisition in ACQUISITIONS:
        image = acquire(make_truth(acquisition.seed), acquisition)
        data = np.asanyarray(image.dataobj, dtype=np.float32)
        name = f"phantom {'x'.join(f'{z:g}' for z in acquisition.zooms)}"
        yield cut(image, foreground(data), name, acquisition.participant)


def rows(scan: Scan, model: str, heads: dict[str, tuple[Seen, torch.Tensor]]) -> list[str]:
    """Return the lines of the table for a scan; ``heads`` has the heads of the people before, and gets this one."""
    seen = Seen.of(scan)
    image = seen.image(model)
    noise = 100 * seen.problem.sigma
    lines = [_line(scan.name, "right", noise, seen.misfit(image))]
    others = [head for person, head in heads.items() if person != scan.person]
    heads[scan.person] = seen, image
    for name, wrong in wrong_images(image, seen, others[-1] if others else None):
        lines.append(_line(scan.name, name, noise, seen.misfit(wrong)))
    for name, psf in told_wrong(seen):
        mistaken = Seen.of(scan, psf)
        lines.append(_line(scan.name, name, 100 * mistaken.problem.sigma, mistaken.misfit(mistaken.image(model))))
        straight = evolve(mistaken, problem=evolve(mistaken.problem, sigma=seen.problem.sigma))
        lines.append(_line(scan.name, f"{name}, in the comparison alone", noise, straight.misfit(image)))
    return lines


def _line(scan: str, name: str, noise_percent: float, misfit: Misfit) -> str:
    figures = (noise_percent, misfit.std, 100 * misfit.fraction_beyond3, misfit.structure_std, misfit.structure_largest)
    return f"| {scan} | {name} | " + " | ".join(f"{value:.3g}" for value in figures) + " |"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Figures of right and wrong outputs.")
    parser.add_argument("scans", nargs="*", help="only these, as lh11_T2w; none: all of the role")
    parser.add_argument("--data", type=Path, help="BIDS data set; without it, the phantom alone")
    parser.add_argument("--splits", type=Path, help="TSV with participant_id and role")
    parser.add_argument("--role", default="validation")
    parser.add_argument("--masks", type=Path, help="folder with brain masks, as lh11_T2w.nii.gz; else the foreground")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    options = parser.parse_args(argv)
    print("| scan | output | noise, % | residual | beyond 3, % | structure | largest |\n|---|---|---|---|---|---|---|")
    heads: dict[str, tuple[Seen, torch.Tensor]] = {}
    for scan in phantoms() if options.data is None else _chosen(options):
        print(*rows(scan, options.model, heads), sep="\n", flush=True)


def _chosen(options: argparse.Namespace) -> Iterator[Scan]:
    with options.splits.open(encoding="utf-8") as lines:
        people = {row["participant_id"] for row in csv.DictReader(lines, delimiter="\t") if row["role"] == options.role}
    for path in sorted(options.data.glob("sub-*/**/anat/*.nii.gz")):
        name = path.name.removesuffix(".nii.gz").removeprefix("sub-")
        if path.name.split("_")[0] in people and (not options.scans or name in options.scans):
            yield from scans_of(path, options.masks)


if __name__ == "__main__":
    main()
