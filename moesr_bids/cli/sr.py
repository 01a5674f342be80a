"""``moesr sr``: super-resolve one NIfTI image."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from ..console import StepProgress, tell
from ..errors import ImageError
from ..sr.models import EXPERT_MAPS, EXPERTS
from ..sr.options import SROptions
from .outputs import contrast_of, output_problem, resources, stored_uncertainty, write_outputs

LEFT = "nothing was written"  # end of the message about an error of the file system
WAY_OUT = "a coarser --resolution"  # what the message about full memory advises
_COMMAND = "moesr sr"


def add_parser(commands: Any) -> None:
    """Add the command to those of ``moesr``."""
    sr = commands.add_parser(
        "sr",
        help="super-resolve one NIfTI image",
        description="Super-resolve a 3-D brain image: make an image on an isotropic grid that agrees with the scan.",
    )
    sr.add_argument("input", type=Path, metavar="IN", help="3-D magnitude image (.nii or .nii.gz)")
    sr.add_argument("output", type=Path, metavar="OUT", help="super-resolved image to write (.nii or .nii.gz)")
    SROptions.add_arguments(sr)
    sr.add_argument("--mask", type=Path, metavar="FILE", help="brain mask on the grid of IN")
    sr.add_argument("--metadata", type=Path, metavar="JSON", help="BIDS sidecar of IN (slice thickness and so on)")
    sr.add_argument("--log-bias", type=Path, metavar="FILE", help="natural log of the bias field removed from IN")
    sr.add_argument(
        "--log-jacobian",
        type=Path,
        metavar="FILE",
        help="natural log of the Jacobian determinant of the gradient-nonlinearity correction of IN",
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


def usage_problem(options: argparse.Namespace) -> str | None:
    """Return what is wrong with the options; None if nothing is."""
    maps = []
    if options.maps is not None:
        maps = [options.maps / f"{kind}-{name}.nii.gz" for kind in EXPERT_MAPS for name in EXPERTS]
    return output_problem(
        (options.output, options.residual, options.uncertainty),
        (options.record, *maps),
        folder=options.maps,
        inputs=(options.input, options.mask, options.metadata, options.log_bias, options.log_jacobian),
    )


def run(options: argparse.Namespace) -> int:
    """Super-resolve the image; return the exit code."""
    # Imported here: PyTorch takes seconds, and --help must not.
    from ..sr.engine import super_resolve
    from ..sr.models import refuse_unused
    from ..sr.storage import compact, compact_share

    sr = SROptions.from_args(
        options,
        contrast=contrast_of(options, options.input),
        maps=options.maps is not None,
        **resources(options),
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
    progress = StepProgress(_COMMAND)
    try:
        result = super_resolve(
            options.input,
            sr,
            metadata=read_metadata(options.metadata),
            mask=options.mask,
            guidance={name: path for name, path in guidance.items() if path is not None},
            progress=progress,
        )
    finally:
        progress.close()
    tell(_COMMAND, f"ran on {result.record['Device']}")
    noise = result.record["NoiseStd"]
    outputs = {options.output: compact(result.image, noise)}
    if options.residual:
        outputs[options.residual] = compact(result.residual, 1.0)
    if options.uncertainty and result.uncertainty is not None:
        outputs[options.uncertainty] = stored_uncertainty(result.uncertainty, result.record)
    for name, image in result.maps.items():
        share = name.startswith("gate")
        outputs[options.maps / f"{name}.nii.gz"] = compact_share(image) if share else compact(image, noise)
    write_outputs(_COMMAND, outputs, result.record, options.record)
    return 0


def _tell_cost(path: Path, options: SROptions) -> None:
    """Print time and memory of a mixture of experts before it starts, and a note if any model may need more memory."""
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
        # Only here, since it times a convolution.
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
        tell(_COMMAND, f"note: {note}")


def read_metadata(path: Path | None) -> dict[str, Any] | None:
    """Read a BIDS sidecar; None without one.

    Raises
    ------
    ImageError
        If the file is no readable JSON object.
    """
    if path is None:
        return None
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: not a readable JSON sidecar ({error}); repair it or leave out --metadata") from error
    if not isinstance(metadata, dict):
        raise ImageError(f"{path}: a sidecar is a JSON object; repair it or leave out --metadata")
    return metadata
