"""One image from several scans against known truth: simulated stacks of sharp scans, joined.

    python -m benchmarks.join --data BIDS_DIR --splits splits.tsv [--participants NAME ...] [--cases CASE ...]

Sharp scans are moved by an unknown amount (up to 5 mm and 5 degrees; splines of order 5), degraded with the forward
models of :mod:`benchmarks.degrade`, and joined. The first stack is not moved, so that the truth is in its frame.
The joined image is compared with three others: the best of the scans alone, by the same model; the mean of these at
their true positions; and the least squares image of all scans (Tikhonov, from the mean of the cubic splines, at the
positions that were found). ``--crop`` cuts out a cube around the middle of the brain first, which is faster. Voxels
near its faces do not count.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from attrs import asdict, evolve, frozen
from numpy.typing import NDArray
from scipy import ndimage

from moesr_bids.sr.calibration import ErrorRatios
from moesr_bids.sr.grid import Grid
from moesr_bids.sr.interpolation import cubic_spline
from moesr_bids.sr.joint.alternate import Alternation, place, placed_scan
from moesr_bids.sr.joint.combine import believed_by, plain_mean
from moesr_bids.sr.joint.engine import Prepared, brought, prepare, reconstruct
from moesr_bids.sr.joint.operator import ScanOperator
from moesr_bids.sr.joint.positions import centre_of, distance, motion
from moesr_bids.sr.joint.resampling import Resampling
from moesr_bids.sr.joint.solve import Prior, agree_with_scans
from moesr_bids.sr.metrics import psnr, ssim
from moesr_bids.sr.options import SROptions

from .degrade import Case, degrade
from .truths import Truth, load_truths

_NOISE = 0.02
_MOST_MM, _MOST_DEGREES = 5.0, 5.0
# Chosen on two heads of training, like the constants of the joined image.
_TIKHONOV = Prior(0.2, 0.1)


@frozen
class Setting:
    """A simulated examination: the voxel size of each scan in voxels of the truth.

    The last one is ``foreign``, of another person; the last that is not may be ``spoilt`` by motion and a lost slice.
    """

    name: str
    factors: tuple[tuple[float, float, float], ...]
    spoilt: bool = False
    foreign: bool = False

    @property
    def profile(self) -> str:
        """Profile of the degradation."""
        return "kspace" if min(self.factors[0]) > 1 else "gaussian"


def _stacks(thickness: float, axes: str) -> tuple[tuple[float, float, float], ...]:
    return tuple(tuple(thickness if a == axis else 1.0 for a in "ijk") for axis in axes)  # type: ignore[misc]


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("three5", _stacks(5, "kij")),
        Setting("three4", _stacks(4, "kij")),
        Setting("two5", _stacks(5, "ki")),
        Setting("repeats", ((2.0, 2.0, 2.0),) * 2),
        Setting("spoilt", _stacks(5, "kij"), spoilt=True),
        Setting("foreign", _stacks(5, "kij"), foreign=True),
        Setting("both", _stacks(5, "kijk"), spoilt=True, foreign=True),
    )
}


@frozen
class Row:
    """One line of the result.

    ``within90`` is the share of voxels in the predicted 90 % interval, ``temperature`` the factor that makes it 90 %.
    """

    participant: str
    case: str
    positions: str
    method: str
    psnr: float
    ssim: float
    position_error: float = float("nan")
    used: str = ""
    within90: float = float("nan")
    temperature: float = float("nan")


def moved(truth: nib.Nifti1Image, position: NDArray[np.float64]) -> nib.Nifti1Image:
    """Return the image of a head that has moved in the scanner."""
    back = np.linalg.inv(position @ truth.affine) @ truth.affine
    volume = ndimage.affine_transform(
        np.asanyarray(truth.dataobj, dtype=np.float32), back[:3, :3], back[:3, 3], order=5, mode="nearest"
    )
    return nib.Nifti1Image(np.clip(volume, 0, None), truth.affine)


def positions_of(count: int, centre: NDArray[np.float64], seed: int, *, known: bool) -> list[NDArray[np.float64]]:
    """Draw positions of scans. The first lies where its header says; if positions are known, all do."""
    rng = np.random.default_rng(seed)
    found = [np.eye(4)]
    for _ in range(count - 1):
        shift, turn = rng.normal(size=3), rng.normal(size=3)
        shift *= _MOST_MM / np.linalg.norm(shift)
        turn *= np.deg2rad(_MOST_DEGREES) / np.linalg.norm(turn)
        found.append(np.eye(4) if known else motion([*shift, *turn], centre))
    return found


def simulate(
    truth: Truth, other: Truth | None, setting: Setting, positions: Sequence[NDArray[np.float64]], seed: int
) -> Iterator[nib.Nifti1Image]:
    """Yield the scans of an examination."""
    centre = centre_of(truth.mask, truth.image.affine)
    for number, (factors, position) in enumerate(zip(setting.factors, positions, strict=True)):
        last = number == len(positions) - 1
        source = other if setting.foreign and last and other is not None else truth
        case = Case(setting.name, factors, setting.profile, noise=_NOISE)
        sigma = _NOISE * source.level
        scan = degrade(moved(source.image, position), case, sigma, seed=seed + number)
        if setting.spoilt and number == len(positions) - 1 - setting.foreign:
            elsewhere = position @ motion([3.0, -2.0, 3.0, 0.05, 0.03, -0.04], centre)
            scan = _spoil(scan, degrade(moved(truth.image, elsewhere), case, sigma, seed=seed + 50))
        yield scan


def _spoil(scan: nib.Nifti1Image, elsewhere: nib.Nifti1Image) -> nib.Nifti1Image:
    """Spoil a scan: three slices are of a head that had moved, and one has a fifth of its signal."""
    axis = int(np.argmax(scan.header.get_zooms()))
    data = np.moveaxis(scan.get_fdata(dtype=np.float32), axis, 0).copy()
    there = np.moveaxis(elsewhere.get_fdata(dtype=np.float32), axis, 0)
    middle = len(data) // 2
    for n in (middle - 4, middle + 1, middle + 3):
        data[n] = there[n]
    data[middle - 2] *= 0.2
    return nib.Nifti1Image(np.ascontiguousarray(np.moveaxis(data, 0, axis)), scan.affine)


def examine(truth: Truth, other: Truth | None, setting: Setting, *, known: bool, options: SROptions) -> list[Row]:
    """Return a row of each method for one examination."""
    seed = sum(map(ord, truth.participant + setting.name))
    positions = positions_of(len(setting.factors), centre_of(truth.mask, truth.image.affine), seed, known=known)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, scan in enumerate(simulate(truth, other, setting, positions, seed)):
            paths.append(Path(folder) / f"scan{number}.nii.gz")
            nib.save(scan, paths[-1])
        prepared = prepare(paths, options)
    sharp, grid = np.asanyarray(truth.image.dataobj, dtype=np.float32), Grid.from_image(truth.image)
    found = place(prepared.given)
    misplaced = max(
        (distance(positions[s], found.placed[s].position, found.centre) for s in found.used if s), default=float("nan")
    )
    used = "+".join(str(s + 1) for s in found.used)

    def row(method: str, image: torch.Tensor) -> Row:
        volume = truth.known(image.numpy() * prepared.level)
        quality = psnr(truth.known(sharp), volume, truth.mask), ssim(truth.known(sharp), volume, truth.mask)
        return Row(
            truth.participant, setting.name, "known" if known else "unknown", method, *quality, float(misplaced), used
        )

    own = [s for s in range(len(paths)) if not (setting.foreign and s == len(paths) - 1)]
    alone = [
        Resampling(prepared.estimates[s].grid, grid, np.asarray(np.linalg.inv(positions[s]), dtype=np.float64)).forward(
            torch.from_numpy(prepared.estimates[s].image)
        )
        for s in own
    ]
    rows = [max((row("best alone", image) for image in alone), key=lambda one: one.psnr)]
    rows.append(row("mean", torch.stack(alone).mean(dim=0)))
    rows.append(row("tikhonov", _tikhonov(prepared, found, grid)))
    if len(found.used) > 1:
        joint = reconstruct(prepared, found, grid)
        rows.append(row("join", joint.image))
        if joint.std is not None:
            error = truth.known(joint.image.numpy() * prepared.level) - truth.known(sharp)
            ratios = ErrorRatios.of(error, joint.std.numpy() * prepared.level, truth.mask)
            rows[-1] = evolve(rows[-1], within90=ratios.coverage(1.0)["90"], temperature=ratios.temperature())
    return rows


def _tikhonov(prepared: Prepared, found: Alternation, grid: Grid) -> torch.Tensor:
    scans, images, covered = [], [], []
    for s in found.used:
        given, placed = prepared.given[s], found.placed[s]
        operator = ScanOperator(given.grid, grid, given.psf, placed.position)
        scans.append(placed_scan(given, placed, operator, given.sigma))
        spline = cubic_spline(torch.from_numpy(given.data), given.grid, prepared.estimates[s].grid)
        images.append(brought(evolve(prepared.estimates[s], image=spline.numpy(), std=None), given, placed, grid)[0])
        covered.append(believed_by(operator, given.slice_axis, placed.weights))
    return agree_with_scans(plain_mean(images, covered), scans, _TIKHONOV, iterations=25, tolerance=0.01)


def table(rows: Sequence[Row]) -> str:
    """Return a table of PSNR and SSIM, with a line for each examination."""
    methods = list(dict.fromkeys(row.method for row in rows))
    heads = ["participant", "case", "positions", *methods, "error of position, mm", "used", "in the 90 % interval, %"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for key in dict.fromkeys((row.participant, row.case, row.positions) for row in rows):
        here = {r.method: r for r in rows if (r.participant, r.case, r.positions) == key}
        cells = [f"{here[m].psnr:.2f} / {here[m].ssim:.3f}" if m in here else "n/a" for m in methods]
        *_, last = here.values()
        cells += [f"{last.position_error:.2f}", last.used, f"{100 * last.within90:.1f}"]
        lines.append(f"| {' | '.join([*key, *cells])} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.join", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="BIDS folder of sharp scans")
    parser.add_argument("--splits", type=Path, required=True, help="TSV with participant_id and role")
    parser.add_argument("--role", default="validation", help="(default: validation)")
    parser.add_argument("--participants", nargs="*", default=[], help="only these participants of the role")
    parser.add_argument("--other", metavar="NAME", help="participant of the role whose scan is the foreign one")
    parser.add_argument("--cases", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--positions", nargs="*", choices=["known", "unknown"], default=["known", "unknown"])
    parser.add_argument("--model", default="student")
    parser.add_argument(
        "--crop", type=int, metavar="N", help="cut out a cube of N voxels per side first (a multiple of 60)"
    )
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="CPU threads (default: 2)")
    parser.add_argument("--out", type=Path, metavar="TSV", help="write all figures")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    names = [*options.participants, *([options.other] if options.other and options.participants else [])]
    truths = list(load_truths(options.data, options.splits, options.role, names))
    if options.crop:
        truths = [truth.cropped(options.crop) for truth in truths]
    rows: list[Row] = []
    for truth in truths:
        if options.participants and truth.participant.removeprefix("sub-") not in options.participants:
            continue
        other = next((t for t in truths if options.other and t.participant.endswith(options.other)), None)
        sr = SROptions(resolution=truth.zoom, model=options.model, contrast=truth.suffix, threads=options.threads)
        for name in options.cases:
            if SETTINGS[name].foreign and (other is None or other is truth):
                continue
            for positions in options.positions:
                print(f"{truth.participant} {truth.suffix} {name} {positions}", file=sys.stderr, flush=True)
                rows += examine(truth, other, SETTINGS[name], known=positions == "known", options=sr)
                print(table(rows[-4:]), file=sys.stderr, flush=True)
    if not rows:
        print(f"no sharp scan of role {options.role} below {options.data}", file=sys.stderr)
        return 1
    print(table(rows))
    if options.out:
        with options.out.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(asdict(rows[0])), delimiter="\t")
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
