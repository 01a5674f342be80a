"""Image quality against known truth: degrade real scans, restore them, compare inside the brain.

    python -m benchmarks.quality --data BIDS_DIR --splits splits.tsv [--models NAME ...] [--external NAME=FOLDER]

Whole scans of one role of ``splits.tsv`` are degraded with the forward models of :mod:`benchmarks.degrade` (k-space
x1.5, x2 and x3; slices of 3, 4 and 5 mm along each axis; slice profiles unlike the app's guess; noise of 1, 2 and 4 %).
They are restored by interpolation (linear, cubic, windowed sinc), by the models of moesr-bids, and by other methods
whose results lie in an external folder. Models get the degraded image alone: they choose the point-spread function from
the voxel size and estimate the noise. Figures are of the brain's voxels, less those whose intensity was cut off.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from attrs import asdict, evolve, filters
from numpy.typing import NDArray

from moesr_bids.sr.calibration import ErrorRatios
from moesr_bids.sr.engine import Result, super_resolve
from moesr_bids.sr.metrics import contrast_to_noise, lesion_contrasts, lesion_geometry, psnr, ssim
from moesr_bids.sr.models import get_model, weights_path
from moesr_bids.sr.models.detail import detail_energy, needed_share
from moesr_bids.sr.options import SROptions
from moesr_bids.sr.weights import Weights

from .calibrate import coverage_table, write_calibration
from .degrade import Case, all_cases, other_cases
from .interpolation import BASELINE, INTERPOLATORS
from .tables import Row, lesion_table, sample_table, summary
from .truths import Truth, load_truths

_LESION_SIZES = (0, 100, 1000, np.inf)  # voxels


def compare(
    truth: Truth,
    case: Case,
    *,
    interpolators: Sequence[str],
    models: Sequence[str],
    external: dict[str, Path],
    save_to: Path | None,
    threads: int,
) -> list[Row]:
    """Return a row of each method for one degraded scan."""
    sharp, sigma = truth.known(np.asanyarray(truth.image.dataobj)), case.noise * truth.level
    low = truth.degraded(case)
    if save_to is not None:
        nib.save(low, save_to / truth.name(case))
    rows: list[Row] = []
    rim = None if truth.lesions is None else truth.rim

    def add(method: str, restored: NDArray[np.floating], seconds: float, **facts: Any) -> None:
        restored = truth.known(restored)
        p, s = psnr(sharp, restored, truth.mask), ssim(sharp, restored, truth.mask)
        base = next((row for row in rows if row.method == BASELINE), None)
        gains = (p - base.psnr, s - base.ssim) if base else (0.0, 0.0)
        if truth.lesions is not None and rim is not None:
            here, there = (contrast_to_noise(x, truth.lesions, rim, reference=sharp) for x in (restored, sharp))
            facts["lesion_ratio"] = here / there
            shift, volume = lesion_geometry(sharp, restored, truth.lesions, float(sharp[rim].mean()))
            small, medium, large = lesion_contrasts(sharp, restored, truth.lesions, rim, _LESION_SIZES)
            facts |= {"lesion_shift": shift, "lesion_volume": volume}
            facts |= {"contrast_small": small, "contrast_medium": medium, "contrast_large": large}
        rows.append(Row(truth.participant, truth.suffix, case.name, method, p, s, *gains, round(seconds, 1), **facts))

    for method in (BASELINE, *(name for name in interpolators if name != BASELINE)):
        start = time.monotonic()
        restored = INTERPOLATORS[method](low, truth.image)
        add(method, restored, time.monotonic() - start)
    for model in models:
        options = SROptions(resolution=truth.zoom, model=model, contrast=truth.suffix, threads=threads)
        result = super_resolve(low, options)
        record = result.record
        restored, facts = _on_grid(result.image, truth, f"model {model}"), {}
        if result.uncertainty is not None:
            std = _on_grid(result.uncertainty, truth, f"model {model}")
            temperature = record["UncertaintyCalibration"]["Temperature"]
            ratios = ErrorRatios.of(sharp - truth.known(restored), std, truth.mask, temperature=temperature)
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
    volumes = (_on_grid(result.image, truth, "sample"), mean, np.asanyarray(truth.image.dataobj))
    sample, mean, sharp = (truth.known(volume) for volume in volumes)
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
    known = {case.name: case for case in (*all_cases(), *other_cases())}
    parser.add_argument(
        "--cases",
        nargs="*",
        choices=list(known),
        metavar="CASE",
        help="such as kspace2 and slices5k (default: all)",
    )
    parser.add_argument("--interpolators", nargs="*", choices=list(INTERPOLATORS), default=list(INTERPOLATORS))
    parser.add_argument("--models", nargs="*", default=["classical", "student"], help="models of moesr-bids")
    parser.add_argument("--external", nargs="*", default=[], metavar="NAME=FOLDER", help="results of other methods")
    parser.add_argument("--save-inputs", type=Path, metavar="DIR", help="write the degraded images for other methods")
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
    cases = [known[name] for name in options.cases] if options.cases else list(known.values())
    if options.save_inputs:
        options.save_inputs.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    trained_on = Weights.read(options.calibrate).participants if options.calibrate else set()
    for truth in load_truths(options.data, options.splits, options.role, options.participants):
        if truth.participant in trained_on:
            parser.error(f"--calibrate {options.calibrate}: {truth.participant} was trained on")
        for case in filter(None, map(truth.degradation, cases)):
            print(f"{truth.participant} {truth.suffix} {case.name}", file=sys.stderr, flush=True)
            rows += compare(
                truth,
                case,
                interpolators=options.interpolators,
                models=options.models,
                external=external,
                save_to=options.save_inputs,
                threads=options.threads,
            )
    if not rows:
        print(f"no sharp scan of role {options.role} below {options.data}", file=sys.stderr)
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
