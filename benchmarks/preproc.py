"""Brain mask, bias field and registration on real scans, against label maps and known fields.

    python -m benchmarks.preproc --data BIDS_DIR [--labels DIR] [--tables mask bias registration]

Three tables:

- ``mask``: the brain mask of every scan, with its Dice coefficient where ``--labels`` has an aparc+aseg map of it;
- ``bias``: the error of N4 under known smooth fields, for several voxel sizes and knot spacings of N4;
- ``registration``: how well the labels of different participants agree in the space of the template, after the affine
  transform alone and after SyN.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import combinations, product
from pathlib import Path

import nibabel as nib
import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray
from scipy import ndimage

from moesr_bids.preproc.align import inverse, write_composite
from moesr_bids.preproc.bias import BiasSettings, correct_bias
from moesr_bids.preproc.images import image_data, to_ants
from moesr_bids.preproc.registration import RegistrationError, register
from moesr_bids.preproc.template import load_template
from moesr_bids.segmentation.brain import dice, find_brain
from moesr_bids.sr.grid import bounding_box

TABLES = ("mask", "bias", "registration")
_CLOSING_VOXELS = 5
_VARIANTS = ((4.0, 200), (6.0, 200), (4.0, 120), (6.0, 120), (6.0, 80))  # voxel size, knot spacing, mm
_FIELDS = ((3, 0.1), (3, 0.25), (6, 0.1))  # order of the polynomial, standard deviation of its logarithm
_LEAST_LABEL = 500  # voxels of the template, below which a Dice coefficient is noise


@frozen(eq=False)
class Scan:
    """A scan and its labels, if there are any."""

    path: Path
    labels: Path | None

    @property
    def name(self) -> str:
        """File name without extension."""
        return self.path.name.split(".", 1)[0]

    def image(self) -> nib.Nifti1Image:
        """Read it as float32."""
        image = nib.load(self.path)
        return nib.Nifti1Image(image_data(image), image.affine)


def find_scans(data: Path, labels: Path | None) -> list[Scan]:
    """Find all anatomical scans, each with the aparc+aseg map on its grid."""
    scans = []
    for path in sorted(data.glob("sub-*/**/anat/*.nii.gz")):
        participant = path.name.split("_", 1)[0]
        maps = sorted(labels.glob(f"**/{participant}/anat/*_seg-aparcaseg_dseg.nii.gz")) if labels else []
        scans.append(Scan(path, maps[0] if maps else None))
    return scans


def closed_labels(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return the brain of an aparc+aseg map: its labels, the sulci between them and one voxel around."""
    box = bounding_box(labels > 0, 8)
    brain = np.zeros(labels.shape, bool)
    closed = ndimage.binary_closing(labels[box] > 0, iterations=_CLOSING_VOXELS)
    brain[box] = ndimage.binary_fill_holes(ndimage.binary_dilation(closed))
    return brain


def mask_table(scans: Sequence[Scan]) -> Iterator[str]:
    """Yield a line per scan: volume, certainty, misfit in mm, agreement with labels, time."""
    yield f"{'brain mask':32} {'mL':>6} {'certain':>8} {'misfit':>6} {'Dice':>6} {'s':>6}"
    for scan in scans:
        start = time.perf_counter()
        try:
            found = find_brain(scan.image())
        except Exception as error:  # A table of what fails, too.
            yield f"{scan.name:32} {error}"
            continue
        seconds = time.perf_counter() - start
        overlap = ""
        if scan.labels:
            truth = closed_labels(np.asarray(nib.load(scan.labels).dataobj))
            overlap = f"{dice(np.asarray(found.mask.dataobj) > 0, truth):.3f}"
        figures = f"{found.volume_ml:6.0f} {found.certainty:8.3f} {found.misfit_mm:6.1f} {overlap:>6} {seconds:6.1f}"
        yield f"{scan.name:32} {figures}"


def known_field(shape: tuple[int, ...], inside: NDArray[np.bool_], order: int, spread: float) -> NDArray[np.float32]:
    """Return a log field: a random polynomial with standard deviation ``spread`` and mean 0 inside the brain."""
    rng = np.random.default_rng(order)
    bounds = [(axis.min(), axis.max()) for axis in np.nonzero(inside)]
    x, y, z = np.meshgrid(
        *(2 * (np.arange(n) - low) / (high - low) - 1 for n, (low, high) in zip(shape, bounds, strict=True)),
        indexing="ij",
        sparse=True,
    )
    field = np.zeros(shape)
    for i, j, k in product(range(order + 1), repeat=3):
        if 0 < i + j + k <= order:
            field = field + rng.normal() * np.clip(x, -1, 1) ** i * np.clip(y, -1, 1) ** j * np.clip(z, -1, 1) ** k
    field -= field[inside].mean()
    return np.asarray(spread * field / field[inside].std(), dtype=np.float32)


def bias_table(scans: Sequence[Scan], folder: Path, threads: int) -> Iterator[str]:
    """Yield lines: how much of known fields N4 leaves, per voxel size; the scan's own field is taken out first."""
    yield f"{'N4: field':28} {'left of it at':>16} " + " ".join(f"{f'{z:g}/{d}':>10}" for z, d in _VARIANTS)
    seconds: dict[tuple[float, int], list[float]] = {variant: [] for variant in _VARIANTS}
    left: dict[tuple[int, float], list[list[float]]] = {field: [] for field in _FIELDS}
    for scan in scans:
        image = scan.image()
        mask = find_brain(image).mask
        inside = np.asarray(mask.dataobj) > 0
        variants = {v: evolve(BiasSettings(), zoom=v[0], spline_distance=v[1]) for v in _VARIANTS}
        own = {
            v: correct_bias(image, mask, settings, threads).log_field.get_fdata() for v, settings in variants.items()
        }
        for order, spread in _FIELDS:
            truth = known_field(image.shape, inside, order, spread)
            biased = nib.Nifti1Image(np.asarray(image.dataobj) * np.exp(truth), image.affine)
            row = []
            for variant, settings in variants.items():
                start = time.perf_counter()
                found = np.asarray(correct_bias(biased, mask, settings, threads).log_field.dataobj)
                seconds[variant].append(time.perf_counter() - start)
                row.append(float(np.std((found - own[variant] - truth)[inside])) * 100)
            left[order, spread].append(row)
            yield f"{scan.name:28} {f'{order}, {spread * 100:.0f} %':>16} " + " ".join(
                f"{value:10.1f}" for value in row
            )
    for (order, spread), rows in left.items():
        name = f"order {order}, {spread * 100:.0f} % in {len(rows)} scans"
        values = zip(np.mean(rows, axis=0), np.max(rows, axis=0), strict=True)
        yield f"{name:28} {'mean (max), %':>16} " + " ".join(
            f"{f'{mean:.1f} ({most:.1f})':>10}" for mean, most in values
        )
    yield f"{'seconds':45} " + " ".join(f"{np.mean(times):10.1f}" for times in seconds.values())


def registration_table(scans: Sequence[Scan], folder: Path, threads: int) -> Iterator[str]:
    """Yield lines of the agreement of labels between participants in the space of the template."""
    import ants

    template = load_template()
    grid = to_ants(np.asarray(template.image.dataobj), template.image.affine)
    carried: dict[str, list[tuple[str, NDArray[np.integer]]]] = {"affine": [], "affine and SyN": []}
    for scan in scans:
        if scan.labels is None:
            continue
        image = scan.image()
        found = find_brain(image)
        corrected = correct_bias(image, found.mask, threads=threads).corrected
        start = time.perf_counter()
        paths = folder / f"{scan.name}_to.h5", folder / f"{scan.name}_from.h5"
        try:
            result = register(corrected, found.mask, template, *paths, initial=found.to_template, threads=threads)
        except RegistrationError as error:
            yield f"{scan.name}: {error}"
            continue
        yield (
            f"{scan.name}: {time.perf_counter() - start:.1f} s, masks overlap by {result.dice:.3f}, Jacobian "
            f"{result.jacobian[0]:.2f} to {result.jacobian[1]:.2f}"
        )
        affine = write_composite([inverse(result.matrix)], folder / f"{scan.name}_affine.h5")
        labels = nib.load(scan.labels)
        moving = to_ants(np.asarray(labels.dataobj, dtype=np.float32), labels.affine)
        for kind, transform in zip(carried, (affine, result.to_template), strict=True):
            moved = ants.apply_transforms(grid, moving, [str(transform)], interpolator="nearestNeighbor")
            carried[kind].append((scan.name, moved.numpy().astype(int)))
    for kind, maps in carried.items():
        for (first, a), (second, b) in combinations(maps, 2):
            common = [n for n in np.intersect1d(a, b) if n and min((a == n).sum(), (b == n).sum()) >= _LEAST_LABEL]
            values = [dice(a == n, b == n) for n in common]
            yield f"{first} and {second}, {kind}: mean Dice {np.mean(values):.3f} of {len(values)} labels"


def main(argv: list[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preproc", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="BIDS_DIR", help="scans")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="aparc+aseg maps on the grids of the scans")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES, help="(default: all)")
    parser.add_argument("--bias-scans", nargs="+", default=[], metavar="NAME", help="scans of the bias table, by stem")
    parser.add_argument("--omp-nthreads", type=int, default=2, metavar="N", help="threads (default: 2)")
    options = parser.parse_args(argv)
    scans = find_scans(options.data, options.labels)
    chosen = [scan for scan in scans if not options.bias_scans or scan.name in options.bias_scans]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tables = {
            "mask": lambda: mask_table(scans),
            "bias": lambda: bias_table(chosen, folder, options.omp_nthreads),
            "registration": lambda: registration_table(scans, folder, options.omp_nthreads),
        }
        for table in options.tables:
            for line in tables[table]():
                print(line, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
