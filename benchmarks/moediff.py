"""The mixture of experts against the one-step model, and the gain by each of its parts.

    python -m benchmarks.moediff --data BIDS_DIR --splits splits.tsv --models student FILE [--tables ...]

Scans of one role of ``splits.tsv`` are degraded as in :mod:`benchmarks.quality`. The tables:

- ``side``: gain over cubic interpolation, sharpness (energy of the finest band over the truth's), coverage of the
  intervals, size, operations of a 0.7 mm head of 20 million voxels, time;
- ``ablation``: the mean on simulated patches without the gate, without an expert, without a guidance map;
- ``gate``: mean weight of each expert in the cortical ribbon and in deep white matter, and how far the image would be
  off with it alone;
- ``threshold``: time and PSNR if experts of little weight are left out.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from attrs import evolve
from numpy.typing import NDArray
from scipy import ndimage
from torch.utils.flop_counter import FlopCounterMode

from moesr_bids.sr import windows
from moesr_bids.sr.calibration import LEVELS, ErrorRatios
from moesr_bids.sr.engine import super_resolve
from moesr_bids.sr.metrics import psnr, ssim
from moesr_bids.sr.models import EXPERTS, get_model, moediff, weights_path
from moesr_bids.sr.models.acquisition import CONDITIONS, GUIDANCE
from moesr_bids.sr.models.context import context_flops
from moesr_bids.sr.models.detail import detail_energy
from moesr_bids.sr.models.inputs import FLIPS
from moesr_bids.sr.models.mixture import MixtureNetwork, context_channels, parameters
from moesr_bids.sr.models.network import INPUTS, ResidualNetwork
from moesr_bids.sr.options import SROptions
from moesr_bids.sr.sampling import Sampling
from moesr_bids.sr.weights import Weights
from moesr_bids.training.acquisition import Scan, SmoothField
from moesr_bids.training.validation import plain_scan, validate
from moesr_bids.training.volumes import load_volume

from .degrade import Case, all_cases
from .interpolation import interpolate
from .truths import Truth, load_truths

TABLES = ("side", "ablation", "gate", "threshold")
_DEEP_VOXELS = 4
_FIELD = SmoothField([0.12, -0.1, 0.08, 0.1, *[0.05, -0.05] * 7, 0.05], True)
_WAYS = {
    "mean": Sampling(),
    "one sample": Sampling(estimate="sample"),
    "mean of 8": Sampling(samples=8),
}
_AVERAGED = "over all flips"  # of a one-step model: --test-time-averaging
_SMALL_WINDOW = 700_000  # voxels: windows that an expert can be missing from
_COUNTED = 64  # voxels per side of the volume whose operations are counted
_HEAD_VOXELS = 20e6
_THRESHOLDS = (-1.0, 0.02, 0.1, 0.2, 0.3)


def sharpness(image: NDArray[np.floating], truth: NDArray[np.floating], mask: NDArray[np.bool_]) -> float:
    """Return the energy of detail over the truth's, inside the mask.

    Detail is what a Gaussian with a standard deviation of 1 voxel removes.
    """
    return detail_energy(image, mask) / detail_energy(truth, mask)


def teraflops(network: ResidualNetwork | MixtureNetwork, sampling: Sampling, averaged: bool) -> float:
    """Count the floating-point operations of a head of 20 million voxels, in 10^12; all experts are evaluated.

    The context is evaluated once. ``averaged`` means that a one-step network is evaluated in all eight flips.
    """
    channels = torch.zeros((1, INPUTS + len(GUIDANCE), *(_COUNTED,) * 3))
    acquisition = torch.zeros((1, CONDITIONS))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        one_step = network if isinstance(network, ResidualNetwork) else network.trunk
        one_step(channels, acquisition)
        each_flip = counter.get_total_flops()
        flips, steps, context, step = len(FLIPS) if averaged else 1, 0, 0.0, 0
        if isinstance(network, MixtureNetwork):
            scene = network.look(channels, acquisition)
            looked = counter.get_total_flops()
            network.mean(scene, acquisition)
            step = counter.get_total_flops() - looked
            flips, steps = sampling.evaluations(len(FLIPS), network.shape.schedule.steps)
            # The context was given one patch here; those of a head overlap.
            context = context_flops(network.shape.context, context_channels(network.shape.trunk))
    return (context + (flips * each_flip + steps * step) / _COUNTED**3) * _HEAD_VOXELS / 1e12


def side_table(truths: Sequence[Truth], cases: Sequence[Case], models: Sequence[str], threads: int) -> Iterator[str]:
    """Yield a line per model and way of sampling: mean over scans and cases, worst in brackets."""
    ways: dict[str, tuple[str, Sampling, bool]] = {}
    for model in models:
        card = get_model(model).card
        if card.experts:
            ways |= {f"{model} {name}": (model, sampling, False) for name, sampling in _WAYS.items()}
            continue
        ways[model] = model, Sampling(), False
        if card.one_step:
            ways[f"{model} {_AVERAGED}"] = model, Sampling(), True
    found: dict[str, list[list[float]]] = {name: [] for name in ways}
    for truth in truths:
        sharp = truth.known(np.asanyarray(truth.image.dataobj))
        for case in filter(None, map(truth.degradation, cases)):
            low = truth.degraded(case)
            base = psnr(sharp, truth.known(interpolate(low, truth.image, 3)), truth.mask)
            for name, (model, sampling, averaged) in ways.items():
                result = super_resolve(
                    low,
                    SROptions(
                        resolution=truth.zoom,
                        model=model,
                        contrast=truth.suffix,
                        averaged=averaged,
                        samples=sampling.samples,
                        estimate=sampling.estimate,
                        rule=sampling.rule,
                        threads=threads,
                    ),
                )
                image = truth.known(np.asanyarray(result.image.dataobj))
                inside = [float("nan")] * len(LEVELS)
                if result.uncertainty is not None:
                    std = np.asanyarray(result.uncertainty.dataobj)
                    inside = list(ErrorRatios.of(image - sharp, std, truth.mask).coverage(1.0).values())
                gain = psnr(sharp, image, truth.mask) - base
                fine = sharpness(image, sharp, truth.mask)
                found[name].append([gain, ssim(sharp, image, truth.mask), fine, result.record["Seconds"], *inside])
                print(f"{truth.participant} {case.name} {name} {gain:+.2f}", file=sys.stderr, flush=True)
    yield (
        "| model | gain, dB [worst] | SSIM | sharpness [least, most] | in 50, 80, 90, 95 % intervals, calibrated on "
        "them | million parameters | 10^12 operations per head | seconds |"
    )
    yield "|---" * 8 + "|"
    for name, rows in found.items():
        gain, similarity, fine, seconds, *inside = np.mean(rows, axis=0)
        low_high = ", ".join(f"{chosen(row[2] for row in rows):.2f}" for chosen in (min, max))
        path = weights_path(ways[name][0])
        network = Weights.read(path).network(torch.device("cpu")) if path else None
        size = f"{parameters(network) / 1e6:.2f}" if network else "none"
        work = f"{teraflops(network, *ways[name][1:]):.1f}" if network else "n/a"
        worst = min(row[0] for row in rows)
        yield (
            f"| {name} | {gain:+.2f} [{worst:+.2f}] | {similarity:.3f} | {fine:.2f} [{low_high}] | "
            f"{', '.join(f'{100 * share:.0f}' for share in inside)} | {size} | {work} | {seconds:.0f} |"
        )


def ablation_table(paths: Sequence[Path], weights: Weights, patches: int) -> Iterator[str]:
    """Yield a line per part: what the mean estimate gains over interpolation on simulated patches without it."""
    volumes = [load_volume(path) for path in paths]
    plain = plain_scan()

    def run(change: Callable[[MixtureNetwork], None], scan: Scan = plain) -> float:
        network = weights.network(torch.device("cpu"))
        assert isinstance(network, MixtureNetwork)
        change(network)
        gains = validate(
            lambda channels, acquisition: network.mean(network.look(channels, acquisition), acquisition),
            volumes,
            patch=64,
            margin=14,
            patches=patches,
            device=torch.device("cpu"),
            scan=scan,
        )
        return float(np.mean(list(gains.values())))

    whole = run(lambda network: None)
    yield f"whole                     {whole:+.3f} dB over interpolation"
    yield f"trunk alone               {run(_silent) - whole:+.3f}"
    yield f"without gate (all alike)  {run(_even) - whole:+.3f}"
    for k, name in enumerate(EXPERTS):
        yield f"without {name:17} {run(_without(k)) - whole:+.3f}"
    for part in ("bias", "jacobian"):
        told, untold = (run(lambda network: None, _with_field(plain, part, known=known)) for known in (True, False))
        yield f"without {'log_' + part:17} {untold - told:+.3f} where there is such a field"


def _zero(layer: torch.nn.Module) -> None:
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)


def _silent(network: MixtureNetwork) -> None:
    for expert in network.experts:
        _zero(expert.get_submodule("tail"))


def _with_field(scan: Scan, part: str, *, known: bool) -> Scan:
    field = evolve(_FIELD, known=known)
    return evolve(scan, bias=field) if part == "bias" else evolve(scan, jacobian=field)


def _even(network: MixtureNetwork) -> None:
    _zero(network.context.gate[-1])


def _without(k: int) -> Callable[[MixtureNetwork], None]:
    def change(network: MixtureNetwork) -> None:
        network.context.gate[-1].get_parameter("bias")[k] -= 1e4

    return change


def gate_table(data: Path, participants: Sequence[str], model: str, threads: int) -> Iterator[str]:
    """Yield a line per participant with an aparc+aseg map: mean gates in ribbon and deep white matter."""
    for participant in participants:
        maps = sorted((data.parent / "labels" / "aparcaseg" / participant).glob("**/*_dseg.nii.gz"))
        if not maps:
            continue
        labels = np.asanyarray(nib.load(maps[0]).dataobj)
        ribbon = (labels >= 1000) & (labels < 3000)
        white = ndimage.binary_erosion(np.isin(labels, (2, 41)), iterations=_DEEP_VOXELS)
        path = sorted((data / participant).glob("**/anat/*_T1w.nii.gz"))[0]
        image = nib.load(path)
        zoom = float(image.header.get_zooms()[0])
        result = super_resolve(
            image, SROptions(resolution=zoom, model=model, contrast="T1w", maps=True, threads=threads)
        )
        brightest = np.percentile(np.asanyarray(image.dataobj)[labels > 0], 99)
        for name in EXPERTS:
            gate = np.asanyarray(result.maps[f"gate-{name}"].dataobj)
            here, there = float(gate[ribbon].mean()), float(gate[white].mean())
            apart = np.asanyarray(result.maps[f"difference-{name}"].dataobj) / brightest
            off = " and ".join(f"{100 * np.sqrt(np.mean(apart[where] ** 2)):.2f} %" for where in (ribbon, white))
            yield (
                f"{participant} {name:9} ribbon {here:.3f}, deep white matter {there:.3f}: ratio {here / there:.2f}; "
                f"alone {off} of the brightest off"
            )


def threshold_table(truth: Truth, case: Case, model: str, threads: int) -> Iterator[str]:
    """Yield a line per threshold of the gate, in small windows, on one scan."""
    sharp = np.asanyarray(truth.image.dataobj)
    low = truth.degraded(case)
    before = moediff.GATE_THRESHOLD, windows.CPU_WINDOW_VOXELS
    try:
        windows.CPU_WINDOW_VOXELS = _SMALL_WINDOW
        for threshold in _THRESHOLDS:
            moediff.GATE_THRESHOLD = threshold
            result = super_resolve(low, SROptions(resolution=truth.zoom, model=model, threads=threads))
            record, value = result.record, psnr(sharp, np.asanyarray(result.image.dataobj), truth.mask)
            yield (
                f"threshold {threshold:5.2f}: {100 * record['ExpertsEvaluated']:.0f} % of the experts in "
                f"{record['Windows']} windows, {record['NetworkSeconds']:.0f} s, {value:.3f} dB"
            )
    finally:
        moediff.GATE_THRESHOLD, windows.CPU_WINDOW_VOXELS = before


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.moediff", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="BIDS_DIR", help="sharp scans")
    parser.add_argument("--splits", type=Path, required=True, help="TSV with participant_id and role")
    parser.add_argument("--role", default="validation", help="(default: validation)")
    parser.add_argument("--models", nargs="+", required=True, help="models; the last is the weights of a mixture")
    parser.add_argument("--cases", nargs="+", default=["kspace2", "slices4k"], help="(default: kspace2 slices4k)")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES, help="(default: all)")
    parser.add_argument("--crop", type=int, default=0, metavar="N", help="only N^3 voxels in the middle of each scan")
    parser.add_argument("--patches", type=int, default=1, metavar="N", help="of each scan and case, for the ablation")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="CPU threads (default: 2)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    cases = [case for case in all_cases() if case.name in options.cases]
    truths = list(load_truths(options.data, options.splits, options.role, []))
    if options.crop:
        truths = [truth.cropped(options.crop) for truth in truths]
    with options.splits.open(encoding="utf-8") as lines:
        chosen = [row["participant_id"] for row in csv.DictReader(lines, delimiter="\t") if row["role"] == options.role]
    mixture = options.models[-1]
    path = weights_path(mixture)
    if path is None:
        parser.error(f"{mixture} is no learned model")
    scans = [p for name in chosen for p in sorted((options.data / name).glob("**/anat/*.nii.gz"))]
    tables: dict[str, Callable[[], Iterator[str]]] = {
        "side": lambda: side_table(truths, cases, options.models, options.threads),
        "ablation": lambda: ablation_table(scans, Weights.read(path), options.patches),
        "gate": lambda: gate_table(options.data, chosen, mixture, options.threads),
        "threshold": lambda: threshold_table(truths[0], cases[0], mixture, options.threads),
    }
    for table in options.tables:
        for line in tables[table]():
            print(line, flush=True)
        print(flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
