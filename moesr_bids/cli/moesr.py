"""The ``moesr`` command: ``sr`` super-resolves an image, ``train`` trains a model, ``models`` lists them.

``segment`` labels the tissues of scans to train on; ``rerun`` repeats an image of the BIDS App from its sidecar;
``check`` tells what a machine offers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .. import __version__
from ..atomic import temporary_beside
from ..config import SUFFIXES
from ..errors import ImageError
from ..sr.models import EXPERT_MAPS, EXPERTS
from ..sr.options import SROptions
from . import check, models, segment, slurm, status, train

_IMAGE_SUFFIXES = (".nii.gz", ".nii")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of ``moesr``."""
    parser = argparse.ArgumentParser(prog="moesr", description="Super-resolution of brain MRI, file by file.")
    parser.add_argument("--version", action="version", version=f"moesr {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    sr = commands.add_parser(
        "sr",
        help="super-resolve one NIfTI image",
        description="Reconstruct a 3-D brain image on an isotropic grid that agrees with what the scanner measured.",
    )
    sr.add_argument("input", type=Path, metavar="IN", help="3-D magnitude image (.nii or .nii.gz)")
    sr.add_argument("output", type=Path, metavar="OUT", help="super-resolved image to write (.nii or .nii.gz)")
    SROptions.add_arguments(sr)
    sr.add_argument("--mask", type=Path, metavar="FILE", help="brain mask on the grid of IN")
    sr.add_argument("--metadata", type=Path, metavar="JSON", help="BIDS sidecar of IN (slice thickness and so on)")
    sr.add_argument("--log-bias", "--log_bias", type=Path, metavar="FILE", help="log of the bias field removed from IN")
    sr.add_argument(
        "--log-jacobian",
        "--log_jacobian",
        type=Path,
        metavar="FILE",
        help="log of the Jacobian determinant of the gradient-nonlinearity correction of IN",
    )
    sr.add_argument(
        "--uncertainty", type=Path, metavar="FILE", help="write the standard deviation of the error (learned models)"
    )
    sr.add_argument(
        "--maps",
        type=Path,
        metavar="DIR",
        help="write gate maps and difference maps of a mixture of experts into this folder",
    )
    sr.add_argument("--residual", type=Path, metavar="FILE", help="write IN minus A(OUT) in units of the noise")
    sr.add_argument("--record", type=Path, metavar="JSON", help="write what was done, with noise and data consistency")
    train.add_parser(commands)
    segment.add_parser(commands)
    models.add_parser(commands)
    check.add_parser(commands)
    slurm.add_parser(commands)
    status.add_parser(commands)
    _add_rerun(commands)
    return parser


def _add_rerun(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "rerun",
        help="repeat an image of moesr-bids from its sidecar",
        description="Make a super-resolved image again from the JSON file beside it and compare the two. Exit code 0: "
        "the same to the last bit; 1: another, or it cannot be repeated.",
    )
    parser.add_argument("sidecar", type=Path, metavar="SIDECAR.json", help="sidecar of a desc-moesr image")
    parser.add_argument(
        "--bids-dir", "--bids_dir", type=Path, metavar="DIR", help="where the input is (default: as recorded)"
    )
    parser.add_argument(
        "--output-dir", "--output_dir", type=Path, metavar="DIR", help="keep the new outputs there (default: drop them)"
    )


_LEFT = {
    "sr": "nothing was written",
    "train": "what was saved is in --out, and the same command goes on from there",
    "segment": "the label maps that are whole are in the output folder",
}
"""What an error of the file system leaves behind."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 1 for input that cannot be used, 2 for bad usage."""
    parser = build_parser()
    options, others = parser.parse_known_args(argv)
    if options.command == "slurm":
        return slurm.main(options, others)
    if others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    command = f"moesr {options.command}"
    if options.command == "models":
        try:
            return models.run(options)
        except ValueError as error:
            print(f"{command}: {error}", file=sys.stderr)
            return 1
    if options.command in ("check", "status"):
        return {"check": check, "status": status}[options.command].run(options)
    if options.command == "rerun":
        # Imported here: it reads images and data sets, which --help need not.
        from . import rerun

        return rerun.main(options)
    training = options.command == "train"
    problems = {"train": train.usage_problem, "segment": segment.usage_problem}
    problem = problems.get(options.command, _usage_problem)(options)
    if problem:
        print(f"{command}: {problem}", file=sys.stderr)
        return 2
    # Huge pages spare the page faults of large volumes; PyTorch reads the switch when it is first imported.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if options.omp_nthreads:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(options.omp_nthreads)
    if training:
        # NumPy decomposes small matrices only: its threads would wait for each other and for PyTorch's.
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
    try:
        runs = {"train": train.run, "segment": segment.run}
        return runs.get(options.command, _super_resolve)(options)
    except ImageError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{command}: {where}{error.strerror or error}; {_LEFT[options.command]}", file=sys.stderr)
        return 1
    except MemoryError as error:
        way_out = train.WAY_OUT if training else "a coarser --resolution"
        # PyTorch's says already what to do; NumPy's names the array alone.
        told = str(error) if "; use " in str(error) else f"{error or 'not enough memory'}; use {way_out}"
        print(f"{command}: {told}", file=sys.stderr)
        return 1


def _suffix(path: Path) -> str:
    """BIDS suffix of a file name, if it is one of an image that can be used."""
    suffix = path.name.split(".", 1)[0].rpartition("_")[2]
    return suffix if suffix in SUFFIXES else ""


def _usage_problem(options: argparse.Namespace) -> str | None:
    for path in (options.output, options.residual, options.uncertainty):
        if path is not None and not path.name.endswith(_IMAGE_SUFFIXES):
            return f"{path}: an output image ends in .nii.gz or .nii"
    outputs = [p for p in (options.output, options.residual, options.uncertainty, options.record) if p is not None]
    maps = (options.log_bias, options.log_jacobian)
    inputs = [p for p in (options.input, options.mask, options.metadata, *maps) if p is not None]
    seen: set[Path] = {p.resolve() for p in inputs}
    if options.maps is not None:
        if not options.maps.is_dir():
            return f"{options.maps}: no such folder; make it first"
        outputs += [options.maps / f"{kind}-{name}.nii.gz" for kind in EXPERT_MAPS for name in EXPERTS]
    for path in outputs:
        if path.resolve() in seen:
            return f"{path}: an output may not replace another file of this command"
        seen.add(path.resolve())
        if not path.parent.is_dir():
            return f"{path.parent}: no such folder; make it first"
    return None


def _super_resolve(options: argparse.Namespace) -> int:
    # Imported here: PyTorch takes seconds, and --help shall not.
    import torch

    from ..resources import available_cpus, available_memory_gb
    from ..sr.engine import super_resolve
    from ..sr.models import refuse_unused
    from ..sr.storage import compact, compact_share, compact_std

    # PyTorch alone would take all cores of a node, whatever share of it this process may use.
    sr = SROptions.from_args(
        options,
        contrast=options.contrast or _suffix(options.input),
        maps=options.maps is not None,
        threads=options.omp_nthreads or min(available_cpus(), torch.get_num_threads()),
        memory_gb=options.mem or 0.9 * available_memory_gb(),
    )
    refuse_unused(
        sr.model,
        uncertainty=options.uncertainty is not None,
        averaged=sr.averaged,
        runtime=sr.runtime,
        sampling=sr.sampling,
        maps=sr.maps,
    )
    _tell_cost(options.input, sr)
    guidance = {"log_bias": options.log_bias, "log_jacobian": options.log_jacobian}
    progress = _Progress()
    try:
        result = super_resolve(
            options.input,
            sr,
            metadata=_read_metadata(options.metadata),
            mask=options.mask,
            guidance={name: path for name, path in guidance.items() if path is not None},
            progress=progress,
        )
    finally:
        progress.close()
    print(f"moesr sr: ran on {result.record['Device']}", file=sys.stderr)
    noise = result.record["NoiseStd"]
    outputs = {options.output: compact(result.image, noise)}
    if options.residual:
        outputs[options.residual] = compact(result.residual, 1.0)
    if options.uncertainty and result.uncertainty is not None:
        brightest = noise / result.record["NoisePercent"]
        outputs[options.uncertainty] = compact_std(
            result.uncertainty, result.record["Uncertainty"]["MedianPercent"] * brightest
        )
    for name, image in result.maps.items():
        share = name.startswith("gate")
        outputs[options.maps / f"{name}.nii.gz"] = compact_share(image) if share else compact(image, noise)
    with ExitStack() as stack:
        # Renamed only when all of them are written.
        for path, image in outputs.items():
            image.to_filename(stack.enter_context(temporary_beside(path)))
        if options.record:
            text = json.dumps(result.record, indent=2) + "\n"
            stack.enter_context(temporary_beside(options.record)).write_text(text, encoding="utf-8")
    for warning in result.record["Warnings"]:
        print(f"moesr sr: note: {warning}", file=sys.stderr)
    return 0


def _tell_cost(path: Path, options: SROptions) -> None:
    """Say before it starts what a model that takes its time will take, and of any model that memory may not suffice."""
    from ..nifti import open_image
    from ..sr.cost import estimate_cost, estimate_memory
    from ..sr.device import choose_device
    from ..sr.grid import Grid
    from ..sr.models import get_model

    try:
        grid = Grid.from_image(open_image(path)[0])
        target = grid.isotropic(options.resolution)
    except Exception:  # whatever is wrong, the engine says it
        return
    threads, limit = options.threads or 1, options.memory_gb or math.inf
    memory = estimate_memory(grid.shape, target.shape, options.model, limit)
    on_cpu = choose_device(options.device).type == "cpu"
    notes = []
    if get_model(options.model).card.experts:
        # Asked for here alone: a convolution is timed for it.
        _, seconds = estimate_cost(grid.shape, target.shape, options.model, threads, options.sampling)
        on_this = (
            f" and about {seconds / 60:.0f} min on {threads} CPU threads" if on_cpu else ", or what the GPU has free"
        )
        notes.append(f"{options.model} needs about {memory:.1f} GB{on_this}")
    if on_cpu and memory > limit:
        notes.append(
            f"{options.model} may need {memory:.1f} GB even in the smallest windows, and has {limit:.1f} GB: it may be "
            "killed; free some, or use a coarser --resolution"
        )
    for note in notes:
        print(f"moesr sr: note: {note}", file=sys.stderr, flush=True)


def _read_metadata(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: not a readable JSON sidecar ({error}); repair it or leave out --metadata") from error
    if not isinstance(metadata, dict):
        raise ImageError(f"{path}: a sidecar is a JSON object; repair it or leave out --metadata")
    return metadata


class _Progress:
    """A bar on a terminal; otherwise a line per step and per tenth, so that logs stay short."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._step, self._tenth, self._start = "", -1, time.monotonic()

    def __call__(self, step: str, share: float) -> None:
        if self._terminal:
            self._draw(step, share)
        elif step != self._step or int(share * 10) > self._tenth:
            seconds = time.monotonic() - self._start
            print(f"moesr sr: {step} {share:4.0%} ({seconds:.0f} s)", file=sys.stderr, flush=True)
        self._step, self._tenth = step, int(share * 10)

    def _draw(self, step: str, share: float) -> None:
        from tqdm import tqdm

        if step != self._step:
            self.close()
            self._bar = tqdm(total=100, desc=step, unit="%", file=sys.stderr)
        self._bar.update(int(share * 100) - self._bar.n)

    def close(self) -> None:
        """Leave the terminal on a new line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


if __name__ == "__main__":
    sys.exit(main())
