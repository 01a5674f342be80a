"""Image quality against known truth: degrade real scans, restore them, compare inside the brain.

    python -m benchmarks.quality --data BIDS_DIR --splits splits.tsv [--models NAME ...] [--external NAME=FOLDER]

Scans of one role of ``splits.tsv`` are degraded with the forward models of :mod:`benchmarks.degrade` (k-space crop x2;
slices of 3, 4 and 5 mm with a Gaussian profile along each axis) and Rician noise, then restored by interpolation
(linear, cubic, windowed sinc), by the models of moesr-bids, and by whoever left results in an external folder. Models
get the degraded image alone: they choose the point-spread function from the voxel size and estimate the noise.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from attrs import asdict, evolve, field, filters, frozen
from numpy.typing import NDArray
from scipy import ndimage

from moesr_bids.atomic import temporary_beside
from moesr_bids.sr.calibration import LEVELS, ErrorRatios
from moesr_bids.sr.engine import Result, super_resolve
from moesr_bids.sr.metrics import contrast_to_noise, lesion_contrasts, lesion_geometry, psnr, ssim
from moesr_bids.sr.models import get_model, weights_path
from moesr_bids.sr.models.detail import detail_energy, needed_share
from moesr_bids.sr.options import SROptions
from moesr_bids.sr.weights import Weights

from .degrade import Case, all_cases, degrade, mismatched_cases

_MARGIN_VOXELS = 10
_LCM = 60  # of all factors, so that every degraded image has the truth's field of view
_BASELINE = "cubic"
_LANCZOS_RADIUS = 5
_RIM_VOXELS = (1, 4)  # from and to this many voxels around a lesion
_LESION_SIZES = (0, 100, 1000, np.inf)  # voxels


@frozen(eq=False)
class Truth:
    """A sharp scan, cropped to the head and padded, and where the metrics look.

    ``lesions`` is None where there is no lesion mask.
    """

    participant: str
    suffix: str
    image: nib.Nifti1Image
    mask: NDArray[np.bool_]
    level: float
    lesions: NDArray[np.bool_] | None = None

    @property
    def rim(self) -> NDArray[np.bool_]:
        """Brain around the lesions: their nearest voxels, which they share, left out."""
        near, far = (ndimage.binary_dilation(self.lesions, iterations=n) for n in _RIM_VOXELS)
        return far & ~near & self.mask

    def name(self, case: Case) -> str:
        """File name of the degraded image and of external results."""
        return f"{self.participant}_{case.name}_{self.suffix}.nii.gz"


@frozen
class Row:
    """One line of the result."""

    participant: str
    suffix: str
    case: str
    method: str
    psnr: float
    ssim: float
    gain_psnr: float
    gain_ssim: float
    seconds: float
    ratios: ErrorRatios | None = field(default=None, repr=False)
    temperature: float = 1.0
    detail_share: float = float("nan")
    sample_gain: float = float("nan")
    sample_sharpness: float = float("nan")
    lesion_ratio: float = float("nan")
    lesion_shift: float = float("nan")
    lesion_volume: float = float("nan")
    contrast_small: float = float("nan")
    contrast_medium: float = float("nan")
    contrast_large: float = float("nan")
    noise_ratio: float = float("nan")
    residual_ratio: float = float("nan")

    @property
    def contrasts(self) -> tuple[float, float, float]:
        """Contrast of lesions of less than 100, less than 1000, and more voxels, over the truth's."""
        return self.contrast_small, self.contrast_medium, self.contrast_large


def load_truths(data: Path, splits: Path, role: str, participants: Sequence[str]) -> Iterator[Truth]:
    """Isotropic scans of about 1 mm of the participants of a role.

    The mask is the FreeSurfer segmentation (``aparcaseg``) of a ``labels`` folder beside the data where there is one,
    otherwise the scan's foreground with its holes filled (most such scans are skull-stripped). Lesion masks
    (``lesions``) come from there too.
    """
    with splits.open(encoding="utf-8") as lines:
        chosen = [row["participant_id"] for row in csv.DictReader(lines, delimiter="\t") if row["role"] == role]
    if participants:
        wanted = {name.removeprefix("sub-") for name in participants}
        chosen = [name for name in chosen if name.removeprefix("sub-") in wanted]
    for participant in chosen:
        for path in sorted((data / participant).glob("**/anat/*.nii.gz")):
            source = nib.load(path)
            if np.ptp(source.header.get_zooms()[:3]) > 0.01:
                continue
            yield _prepare(source, participant, path, data.parent / "labels")


def _prepare(source: nib.Nifti1Image, participant: str, path: Path, labels: Path) -> Truth:
    volume = np.clip(source.get_fdata(dtype=np.float32), 0, None)
    segmentations = sorted((labels / "aparcaseg" / participant).glob("**/*_dseg.nii.gz"))
    if segmentations:
        mask = np.asanyarray(nib.load(segmentations[0]).dataobj) > 0
    else:
        solid = ndimage.binary_opening(volume > 0.12 * np.percentile(volume, 99), iterations=2)
        mask = ndimage.binary_fill_holes(ndimage.binary_closing(solid, iterations=2))
    masks = [mask]
    for path_of_lesions in sorted((labels / "lesions" / participant).glob("**/*_mask.nii.gz")):
        drawn = nib.load(path_of_lesions)
        if drawn.shape == source.shape and np.allclose(drawn.affine, source.affine, atol=1e-3):
            masks.append(np.asanyarray(drawn.dataobj) > 0)
    box, padding = [], []
    for axis, n in enumerate(volume.shape):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = max(0, hit[0] - _MARGIN_VOXELS), min(n, hit[-1] + 1 + _MARGIN_VOXELS)
        box.append(slice(low, high))
        padding.append((0, -(high - low) % _LCM))
    affine = source.affine.copy()
    affine[:3, 3] = nib.affines.apply_affine(affine, [b.start for b in box])
    volume, mask, *lesions = (np.pad(array[tuple(box)], padding) for array in (volume, *masks))
    suffix = path.name.removesuffix(".nii.gz").rpartition("_")[2]
    level = float(np.percentile(volume[mask], 99))
    return Truth(participant, suffix, nib.Nifti1Image(volume, affine), mask, level, *lesions)


def interpolate(image: nib.Nifti1Image, grid: nib.Nifti1Image, order: int) -> NDArray[np.float32]:
    """Spline interpolation by SciPy onto the grid of another image."""
    to_source = np.linalg.inv(image.affine) @ grid.affine
    volume = np.asanyarray(image.dataobj, dtype=np.float32)
    return ndimage.affine_transform(volume, to_source, output_shape=grid.shape, order=order, mode="nearest")


def windowed_sinc(image: nib.Nifti1Image, grid: nib.Nifti1Image) -> NDArray[np.float32]:
    """Lanczos-windowed sinc of radius 5 onto the grid of another image with the same axes; edges are repeated."""
    to_source = np.linalg.inv(image.affine) @ grid.affine
    volume = np.asanyarray(image.dataobj, dtype=np.float32)
    for axis in range(3):
        n = volume.shape[axis]
        positions = to_source[axis, axis] * np.arange(grid.shape[axis]) + to_source[axis, 3]
        taps = np.floor(positions).astype(int)[:, None] + np.arange(1 - _LANCZOS_RADIUS, _LANCZOS_RADIUS + 1)
        distance = positions[:, None] - taps
        weights = np.sinc(distance) * np.sinc(distance / _LANCZOS_RADIUS) * (np.abs(distance) < _LANCZOS_RADIUS)
        matrix = np.zeros((len(positions), n))
        np.add.at(matrix, (np.arange(len(positions))[:, None], np.clip(taps, 0, n - 1)), weights)
        matrix /= matrix.sum(axis=1, keepdims=True)
        volume = np.moveaxis(np.tensordot(matrix.astype(np.float32), volume, axes=(1, axis)), 0, axis)
    return volume


INTERPOLATORS: dict[str, Callable[[nib.Nifti1Image, nib.Nifti1Image], NDArray[np.float32]]] = {
    "linear": lambda image, grid: interpolate(image, grid, 1),
    _BASELINE: lambda image, grid: interpolate(image, grid, 3),
    "sinc": windowed_sinc,
}


def compare(
    truth: Truth,
    case: Case,
    *,
    noise: float,
    interpolators: Sequence[str],
    models: Sequence[str],
    external: dict[str, Path],
    save_to: Path | None,
    threads: int,
) -> list[Row]:
    """All methods on one degraded scan."""
    sharp = np.asanyarray(truth.image.dataobj)
    sigma = noise * truth.level
    low = degrade(truth.image, case, sigma, seed=sum(map(ord, truth.participant + case.name)))
    if save_to is not None:
        nib.save(low, save_to / truth.name(case))
    rows: list[Row] = []
    rim = None if truth.lesions is None else truth.rim

    def add(method: str, restored: NDArray[np.floating], seconds: float, **facts: Any) -> None:
        p, s = psnr(sharp, restored, truth.mask), ssim(sharp, restored, truth.mask)
        base = next((row for row in rows if row.method == _BASELINE), None)
        gains = (p - base.psnr, s - base.ssim) if base else (0.0, 0.0)
        if truth.lesions is not None and rim is not None:
            here, there = (contrast_to_noise(image, truth.lesions, rim) for image in (restored, sharp))
            facts["lesion_ratio"] = here / there
            shift, volume = lesion_geometry(sharp, restored, truth.lesions, float(sharp[rim].mean()))
            small, medium, large = lesion_contrasts(sharp, restored, truth.lesions, rim, _LESION_SIZES)
            facts |= {"lesion_shift": shift, "lesion_volume": volume}
            facts |= {"contrast_small": small, "contrast_medium": medium, "contrast_large": large}
        rows.append(Row(truth.participant, truth.suffix, case.name, method, p, s, *gains, round(seconds, 1), **facts))

    for method in (_BASELINE, *(name for name in interpolators if name != _BASELINE)):
        start = time.monotonic()
        restored = INTERPOLATORS[method](low, truth.image)
        add(method, restored, time.monotonic() - start)
    for model in models:
        zoom = float(truth.image.header.get_zooms()[0])
        options = SROptions(resolution=zoom, model=model, contrast=truth.suffix, threads=threads)
        result = super_resolve(low, options)
        record = result.record
        restored, facts = _on_grid(result.image, truth, f"model {model}"), {}
        if result.uncertainty is not None:
            std = _on_grid(result.uncertainty, truth, f"model {model}")
            temperature = record["UncertaintyCalibration"]["Temperature"]
            ratios = ErrorRatios.of(sharp - restored, std, truth.mask, temperature=temperature)
            facts = {"ratios": ratios, "temperature": temperature}
            if get_model(model).card.experts:
                drawn = super_resolve(low, evolve(options, estimate="sample"))
                facts |= _sample_facts(drawn, restored, truth, psnr_of_cubic=rows[0].psnr)
        add(
            model if model not in INTERPOLATORS else f"moesr-{model}",
            restored,
            record["Seconds"],
            **facts,
            noise_ratio=record["NoiseStd"] / sigma if sigma else float("nan"),
            residual_ratio=record["DataConsistency"]["ResidualStd"],
        )
    for method, folder in external.items():
        path = folder / truth.name(case)
        add(method, _on_grid(nib.load(path), truth, str(path)), float("nan"))
    return rows


def _sample_facts(result: Result, mean: NDArray[np.float32], truth: Truth, *, psnr_of_cubic: float) -> dict[str, float]:
    sharp, sample = np.asanyarray(truth.image.dataobj), _on_grid(result.image, truth, "sample")
    of_sample, of_mean, of_truth = (detail_energy(volume, truth.mask) for volume in (sample, mean, sharp))
    return {
        "detail_share": needed_share(result.record["Sampling"]["DetailShare"], of_sample, of_mean, of_truth),
        "sample_gain": psnr(sharp, sample, truth.mask) - psnr_of_cubic,
        "sample_sharpness": of_sample / of_truth,
    }


def _on_grid(image: nib.Nifti1Image, truth: Truth, name: str) -> NDArray[np.float32]:
    same = image.shape == truth.image.shape and np.allclose(image.affine, truth.image.affine, atol=1e-2)
    if not same:
        raise SystemExit(f"{name}: on a grid of {image.shape}, the truth has {truth.image.shape}; resample it first")
    return np.asanyarray(image.dataobj, dtype=np.float32)


def summary(rows: Sequence[Row]) -> str:
    """Tables: PSNR/SSIM per case, and the gain against cubic per group, mean and spread over subjects."""
    methods = list(dict.fromkeys(row.method for row in rows))
    cases = {case.name: case.group for case in (*all_cases(), *mismatched_cases())}
    lines = _table_by_image(rows, lambda row: f"{row.psnr:.2f} / {row.ssim:.3f}")
    lines += ["", "Gain against cubic: PSNR in dB and SSIM, mean +- standard deviation over subjects [worst case]", ""]
    lines += ["| case | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for group in [*dict.fromkeys(cases[row.case] for row in rows), "all"]:
        cells = []
        for method in methods:
            chosen = [r for r in rows if r.method == method and group in (cases[r.case], "all")]
            subjects = dict.fromkeys(r.participant for r in chosen)
            means = [np.mean([r.gain_psnr for r in chosen if r.participant == s]) for s in subjects]
            worst, similarity = min(r.gain_psnr for r in chosen), np.mean([r.gain_ssim for r in chosen])
            spread = f" +- {np.std(means, ddof=1):.2f}" if len(means) > 1 else ""
            cells.append(f"{np.mean(means):+.2f}{spread} [{worst:+.2f}], {similarity:+.3f}")
        lines.append(f"| {group} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _table_by_image(rows: Sequence[Row], cell: Callable[[Row], str]) -> list[str]:
    """Lines of a table with a row for each degraded image and a column for each method."""
    methods = list(dict.fromkeys(row.method for row in rows))
    lines = ["| participant | case | " + " | ".join(methods) + " |", "|---" * (len(methods) + 2) + "|"]
    for key in dict.fromkeys((row.participant, row.suffix, row.case) for row in rows):
        cells = [cell(row) for row in rows if (row.participant, row.suffix, row.case) == key]
        lines.append(f"| {key[0]} {key[1]} | {key[2]} | " + " | ".join(cells) + " |")
    return lines


def lesion_table(rows: Sequence[Row]) -> str:
    """Contrast-to-noise ratio against their rim and volume of the lesions, in % of the truth's, and their shift."""
    some = [row for row in rows if np.isfinite(row.lesion_ratio)]
    if not some:
        return "\nno lesion masks"

    def overall(row: Row) -> str:
        return f"{100 * row.lesion_ratio:.0f}, {100 * row.lesion_volume:.0f}, {row.lesion_shift:.2f}"

    def by_size(row: Row) -> str:
        return ", ".join("n/a" if np.isnan(c) else f"{100 * c:.0f}" for c in row.contrasts)

    lines = ["", "Lesions: contrast-to-noise against their rim and volume, % of the truth's; shift in voxels", ""]
    lines += _table_by_image(some, overall)
    lines += ["", "Contrast of lesions of less than 100, less than 1000, and more voxels, % of the truth's", ""]
    return "\n".join(lines + _table_by_image(some, by_size))


def coverage_table(model: str, rows: Sequence[Row]) -> str:
    """Share of the brain's voxels inside the predicted intervals, per contrast: as calibrated, and left out.

    Left out means that the factor of the standard deviation is that of the other participants with this contrast.
    """
    if not rows:
        return f"\n{model}: no uncertainty"
    lines = ["", f"{model}: share of voxels inside the interval, %", ""]
    lines += ["| | " + " | ".join(f"{p} %" for p in LEVELS) + " |", "|---" * (len(LEVELS) + 1) + "|"]
    for suffix in dict.fromkeys(row.suffix for row in rows):
        held = _mean_coverage([_ratios(row).coverage(row.temperature) for row in rows if row.suffix == suffix])
        lines.append(f"| {suffix} | " + " | ".join(f"{100 * held[str(p)]:.1f}" for p in LEVELS) + " |")
    for suffix, left_out in _left_out_coverage(rows).items():
        lines.append(f"| {suffix}, left out | " + " | ".join(f"{100 * left_out[str(p)]:.1f}" for p in LEVELS) + " |")
    return "\n".join(lines)


def _ratios(row: Row) -> ErrorRatios:
    assert row.ratios is not None
    return row.ratios


def _mean_coverage(some: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([one[key] for one in some])) for key in some[0]}


def _left_out_coverage(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Coverage per contrast of scans with the factor of the other participants: of one alone nothing can be said."""
    found: dict[str, list[dict[str, float]]] = {}
    for participant, suffix in dict.fromkeys((row.participant, row.suffix) for row in rows):
        same = [row for row in rows if row.suffix == suffix]
        others = [_ratios(row) for row in same if row.participant != participant]
        if others:
            temperature = ErrorRatios.pooled(others).temperature()
            held = [_ratios(row).coverage(temperature) for row in same if row.participant == participant]
            found.setdefault(suffix, []).extend(held)
    return {suffix: _mean_coverage(some) for suffix, some in found.items()}


def sample_table(model: str, rows: Sequence[Row]) -> str:
    """Gain of one sample over cubic, what it loses against the mean, and its energy of detail over the truth's."""
    if not rows:
        return ""
    lines = ["", f"{model}: one sample; gain over cubic, loss against the mean, dB; sharpness", ""]
    lines += _table_by_image(
        rows, lambda row: f"{row.sample_gain:+.2f}, {row.gain_psnr - row.sample_gain:.2f}; {row.sample_sharpness:.2f}"
    )
    facts = ", ".join(f"{name} {value}" for name, value in sample_figures(rows).items())
    return "\n".join([*lines, "", facts])


def sample_figures(rows: Sequence[Row]) -> dict[str, float]:
    """Mean and worst over all images of what :func:`sample_table` lists."""
    gains = np.array([row.sample_gain for row in rows])
    losses = np.array([row.gain_psnr for row in rows]) - gains
    sharpness = np.array([row.sample_sharpness for row in rows])
    figures = {
        "gain_psnr_db": gains.mean(),
        "worst_gain_psnr_db": gains.min(),
        "loss_psnr_db": losses.mean(),
        "worst_loss_psnr_db": losses.max(),
        "sharpness": sharpness.mean(),
        "least_sharpness": sharpness.min(),
        "greatest_sharpness": sharpness.max(),
    }
    return {name: round(float(value), 2) for name, value in figures.items()}


def _groups() -> dict[str, str]:
    """Acquisition of each case, whatever its direction."""
    return {case.name: case.group for case in all_cases()}


def detail_of(rows: Sequence[Row], temperature: float) -> float:
    """Share of the variance, as predicted with this factor of the standard deviation, that a sample gets as detail.

    The lower fifth of the scans, in each acquisition that there is of them: four of five images get no more detail than
    they lack.
    """
    groups = _groups()
    found: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        share = row.detail_share * (row.temperature / temperature) ** 2
        found.setdefault((row.participant, row.suffix, groups[row.case]), []).append(share)
    return round(float(np.percentile([np.mean(shares) for shares in found.values()], 20)), 4)


def write_calibration(weights: Path, rows: Sequence[Row]) -> None:
    """Write the factors of the standard deviation, the coverage and the gains over cubic into a card.

    Into that of a mixture also the share of the variance, as it will be predicted, that samples have as detail.
    """
    path = weights.with_suffix(".json")
    card = json.loads(path.read_text(encoding="utf-8"))
    suffixes = dict.fromkeys(row.suffix for row in rows)
    pools = {"all": rows, **{suffix: [row for row in rows if row.suffix == suffix] for suffix in suffixes}}
    card["temperature"] = {
        name: round(ErrorRatios.pooled([_ratios(row) for row in some]).temperature(), 4) for name, some in pools.items()
    }
    card["coverage"] = {
        suffix: {level: round(share, 4) for level, share in held.items()}
        for suffix, held in _left_out_coverage(rows).items()
    }
    if card["kind"] == "moediff":
        # The samples had the shares of the former calibration, which are told beside their figures.
        card["sample"] = {"images": len(rows), "detail": card.get("detail", {}), **sample_figures(rows)}
        card["detail"] = {name: detail_of(some, card["temperature"][name]) for name, some in pools.items()}
    groups = _groups()
    card["validation"] = {
        group: {
            "gain_psnr_db": round(float(np.mean([r.gain_psnr for r in rows if groups[r.case] == group])), 2),
            "gain_ssim": round(float(np.mean([r.gain_ssim for r in rows if groups[r.case] == group])), 4),
            "worst_gain_psnr_db": round(min(r.gain_psnr for r in rows if groups[r.case] == group), 2),
            "cases": sorted({r.case for r in rows if groups[r.case] == group}),
        }
        for group in dict.fromkeys(groups[row.case] for row in rows)
    }
    with temporary_beside(path) as temporary:
        temporary.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def _model_of(weights: Path, models: Sequence[str]) -> str | None:
    paths = {name: weights_path(name) for name in models}
    return next((name for name, path in paths.items() if path and path.resolve() == weights.resolve()), None)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="BIDS folder of sharp scans")
    parser.add_argument("--splits", type=Path, required=True, help="TSV with participant_id and role")
    parser.add_argument("--role", default="validation", help="(default: validation)")
    parser.add_argument("--participants", nargs="*", default=[], help="only these participants of the role")
    known = {case.name: case for case in (*all_cases(), *mismatched_cases())}
    parser.add_argument(
        "--cases", nargs="*", choices=list(known), metavar="CASE", help="e.g. kspace2 slices5k slices4rectk"
    )
    parser.add_argument("--interpolators", nargs="*", choices=list(INTERPOLATORS), default=list(INTERPOLATORS))
    parser.add_argument("--models", nargs="*", default=["classical", "student"], help="models of moesr-bids")
    parser.add_argument("--external", nargs="*", default=[], metavar="NAME=FOLDER", help="results of other methods")
    parser.add_argument("--save-inputs", type=Path, metavar="DIR", help="write the degraded images for other methods")
    parser.add_argument("--noise", type=float, default=0.02, help="share of the brain's 99th percentile (default 0.02)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="CPU threads of the models (default: 2)")
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="WEIGHTS",
        help="write calibration and coverage into the card of these weights, of one of the models",
    )
    parser.add_argument("--out", type=Path, metavar="TSV", help="write all figures")
    options = parser.parse_args(argv)
    calibrated = _model_of(options.calibrate, options.models) if options.calibrate else None
    if options.calibrate and calibrated is None:
        parser.error(
            f"--calibrate {options.calibrate}: none of the models {', '.join(options.models)} has these weights"
        )
    external = {name: Path(folder) for name, _, folder in (item.partition("=") for item in options.external)}
    cases = [known[name] for name in options.cases] if options.cases else all_cases()
    if options.save_inputs:
        options.save_inputs.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    trained_on = Weights.read(options.calibrate).participants if options.calibrate else set()
    for truth in load_truths(options.data, options.splits, options.role, options.participants):
        if truth.participant in trained_on:
            parser.error(f"--calibrate {options.calibrate}: {truth.participant} was trained on")
        for case in cases:
            print(f"{truth.participant} {truth.suffix} {case.name}", file=sys.stderr, flush=True)
            rows += compare(
                truth,
                case,
                noise=options.noise,
                interpolators=options.interpolators,
                models=options.models,
                external=external,
                save_to=options.save_inputs,
                threads=options.threads,
            )
    if not rows:
        print(f"no isotropic scan of role {options.role} below {options.data}", file=sys.stderr)
        return 1
    print(summary(rows))
    print(lesion_table(rows))
    for model in options.models:
        print(coverage_table(model, [row for row in rows if row.method == model and row.ratios is not None]))
        print(sample_table(model, [row for row in rows if row.method == model and np.isfinite(row.sample_gain)]))
    if options.calibrate:
        write_calibration(options.calibrate, [row for row in rows if row.method == calibrated])
    if options.out:
        with options.out.open("w", encoding="utf-8", newline="") as stream:
            table = [asdict(row, filter=filters.exclude("ratios")) for row in rows]
            writer = csv.DictWriter(stream, list(table[0]), delimiter="\t")
            writer.writeheader()
            writer.writerows(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
