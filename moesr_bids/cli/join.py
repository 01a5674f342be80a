"""``moesr join``: one image from several scans of one contrast of a head."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bids.schema import read_object
from ..console import StepProgress
from ..sr.options import SROptions
from .outputs import contrast_of, output_problem, resources, stored_uncertainty, write_outputs
from .sr import read_metadata

if TYPE_CHECKING:
    from ..sr.joint.engine import Alone

LEFT = "nothing was written"  # end of the message about an error of the file system
WAY_OUT = "a coarser --resolution"  # what the message about full memory advises
_COMMAND = "moesr join"
_OF_EACH = ("masks", "metadata", "estimates", "estimate_records", "estimate_uncertainties")


def add_parser(commands: Any) -> None:
    """Add the command to those of ``moesr``."""
    parser = commands.add_parser(
        "join",
        help="make one image from several scans of one contrast of a head",
        description="Super-resolve several scans of one contrast of a head (thick slices in several orientations, "
        "repeats) into one image that agrees with all of them. The scans are aligned. Scans that do not fit are left "
        "out, with a message. Never join scans of different dates: changes between them would be averaged.",
    )
    parser.add_argument(
        "images",
        type=Path,
        nargs="+",
        metavar="IN1 IN2 [...] OUT",
        help="two or more 3-D magnitude images, and the image to write; its axes are those of the first",
    )
    SROptions.add_arguments(parser)
    parser.add_argument("--masks", type=Path, nargs="+", metavar="FILE", help="brain mask of each IN, on its grid")
    parser.add_argument("--metadata", type=Path, nargs="+", metavar="JSON", help="BIDS sidecar of each IN")
    parser.add_argument(
        "--estimates",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="what moesr sr made of each IN with the same options, so that it need not be made again; with "
        "--estimate-records, and --estimate-uncertainties of models that know one",
    )
    for name, what in (("records", "JSON"), ("uncertainties", "FILE")):
        parser.add_argument(f"--estimate-{name}", type=Path, nargs="+", metavar=what, help="see --estimates")
    parser.add_argument("--uncertainty", type=Path, metavar="FILE", help="write the standard deviation of the error")
    parser.add_argument("--seen", type=Path, metavar="FILE", help="write how many scans saw each voxel")
    parser.add_argument(
        "--residuals", type=Path, metavar="DIR", help="write IN minus A(OUT) in units of the noise, for each IN"
    )
    parser.add_argument(
        "--record", type=Path, metavar="JSON", help="write positions, weights and residuals of the scans"
    )


def usage_problem(options: argparse.Namespace) -> str | None:
    """Return what is wrong with the arguments; None if nothing is."""
    *inputs, output = options.images
    if len(inputs) < 2:
        return "two images at least are joined, and the last name is that of the output"
    if options.psf is not None:
        return "--psf has no use: each scan has a point-spread function of its own, from voxel size and metadata"
    for name in _OF_EACH:
        some = getattr(options, name)
        if some and len(some) != len(inputs):
            return f"--{name.replace('_', '-')}: {len(some)} files for {len(inputs)} images; give one for each"
    if bool(options.estimates) != bool(options.estimate_records):
        return "--estimates and --estimate-records go together"
    if len({path.resolve() for path in inputs}) < len(inputs):
        return "an image is named twice"
    return output_problem(
        (output, options.uncertainty, options.seen),
        (options.record, *_residual_paths(options)),
        folder=options.residuals,
        inputs=(*inputs, *(path for name in _OF_EACH for path in getattr(options, name) or ())),
    )


def _residual_paths(options: argparse.Namespace) -> list[Path]:
    """Paths of the residual maps: numbered, since scans in different folders may have the same name."""
    if options.residuals is None:
        return []
    return [options.residuals / f"residual-{number}.nii.gz" for number in range(1, len(options.images))]


def _alone(options: argparse.Namespace) -> list[Alone] | None:
    """Open what was made of each image before; None where nothing was."""
    from ..nifti import open_image
    from ..sr.joint.engine import Alone

    if not options.estimates:
        return None
    stds = options.estimate_uncertainties or [None] * len(options.estimates)
    return [
        Alone(open_image(image)[0], open_image(std)[0] if std else None, read_object(record))
        for image, std, record in zip(options.estimates, stds, options.estimate_records, strict=True)
    ]


def run(options: argparse.Namespace) -> int:
    """Join the scans, write the requested files, and return the exit code."""
    from ..sr.joint.engine import join
    from ..sr.models import refuse_unused
    from ..sr.storage import compact

    *inputs, output = options.images
    sr = SROptions.from_args(options, contrast=contrast_of(options, inputs[0]), **resources(options))
    refuse_unused(sr.model, uncertainty=options.uncertainty is not None, averaged=sr.averaged, sampling=sr.sampling)
    progress = StepProgress(_COMMAND)
    try:
        result = join(
            inputs,
            sr,
            metadata=[read_metadata(path) for path in options.metadata] if options.metadata else None,
            masks=options.masks,
            alone=_alone(options),
            progress=progress,
        )
    finally:
        progress.close()
    noise = min(scan["NoiseStd"] for scan in result.record["Joined"]["Scans"])
    outputs = {output: compact(result.image, noise)}
    if options.uncertainty and result.uncertainty is not None:
        outputs[options.uncertainty] = stored_uncertainty(result.uncertainty, result.record)
    if options.seen:
        outputs[options.seen] = result.seen
    for path, residual in zip(_residual_paths(options), result.residuals, strict=False):
        outputs[path] = compact(residual, 1.0)
    write_outputs(_COMMAND, outputs, result.record, options.record)
    return 0
