"""``moesr segment``: label white matter and cortex of scans, for the training of a mixture of experts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..arguments import positive_int
from ..atomic import temporary_beside
from ..config import SUFFIXES
from ..console import tell
from ..errors import ImageError
from .scans import find_scans, label_of, unknown_participant

LEFT = "the label maps that are whole are in the output folder"  # end of the message about a file system error
WAY_OUT = "a machine with more memory"  # what the message about full memory advises


def add_parser(commands: Any) -> None:
    """Add the command to those of ``moesr``."""
    parser = commands.add_parser(
        "segment",
        help="label the tissues of scans to train on",
        description="Label white matter, cortex and CSF of the sharp T1w, T2w and FLAIR scans of a BIDS folder with "
        "FreeSurfer numbers, from their intensities and a network. moesr train takes the folder as --segmentations. "
        "Existing label maps are kept. Exit code 1 if a scan could not be labelled.",
    )
    parser.add_argument("data", type=Path, metavar="BIDS_DIR", help="data set with the scans")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder to write *_dseg.nii.gz to")
    parser.add_argument(
        "--participant-label",
        nargs="+",
        default=[],
        metavar="LABEL",
        help="participants (default: all)",
    )
    parser.add_argument("--omp-nthreads", type=positive_int, metavar="N", help="CPU threads")


def usage_problem(options: argparse.Namespace) -> str | None:
    """Return what is wrong with the options; None if nothing is."""
    if not options.data.is_dir():
        return f"{options.data}: no such folder"
    if options.output.exists() and not options.output.is_dir():
        return f"{options.output}: is no folder"
    return unknown_participant(options.data, options.participant_label)


def run(options: argparse.Namespace) -> int:
    """Label all scans; return the exit code."""
    import torch

    from ..resources import available_cpus
    from ..training.tissue import segmentation_name

    chosen = set(map(label_of, options.participant_label))
    scans = list(find_scans(options.data, lambda label: label in chosen or not chosen))
    if not scans:
        raise ImageError(f"{options.data}: has no {', '.join(SUFFIXES)} scan")
    threads, failed = options.omp_nthreads or available_cpus(), 0
    torch.set_num_threads(threads)
    for scan in scans:
        out = options.output / scan.parent.relative_to(options.data) / segmentation_name(scan)
        if out.exists():
            _say(f"{out} is there already")
            continue
        try:
            _say(_segment(scan, out, threads))
        except ImageError as error:
            _say(f"failed: {error}")
            failed += 1
    return 1 if failed else 0


def _segment(scan: Path, out: Path, threads: int) -> str:
    """Label a scan; return a line about the result."""
    import nibabel as nib

    from ..training.segmentation import segment
    from ..training.volumes import read_3d, too_coarse

    data, affine = read_3d(scan)
    if coarse := too_coarse(affine):
        return f"left out: {scan}: {coarse}"
    try:
        labels = segment(nib.Nifti1Image(data, affine, nib.load(scan).header), threads=threads)
    except ImageError as error:
        raise ImageError(f"{scan}: {error}") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(out) as temporary:
        labels.to_filename(temporary)
    return f"wrote {out}"


def _say(line: str) -> None:
    tell("moesr segment", line)
