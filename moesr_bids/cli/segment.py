"""``moesr segment``: where white matter and cortex are, for the training of a mixture of experts."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..atomic import temporary_beside
from ..config import SUFFIXES
from ..errors import ImageError
from .arguments import positive_int


def add_parser(commands: Any) -> None:
    """Add the command to those of ``moesr``."""
    parser = commands.add_parser(
        "segment",
        help="label the tissues of scans to train on",
        description="Label white matter and cortex of the T1w, T2w and FLAIR scans of a BIDS folder, from their "
        "intensities and an atlas, with FreeSurfer numbers. moesr train takes the folder as --segmentations. What is "
        "there already is kept. Exit code 1 if a scan could not be labelled.",
    )
    parser.add_argument("data", type=Path, metavar="BIDS_DIR", help="scans")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder to write *_dseg.nii.gz to")
    parser.add_argument(
        *("--participant-label", "--participant_label"),
        nargs="+",
        default=[],
        metavar="LABEL",
        help="participants (default: all)",
    )
    parser.add_argument("--omp-nthreads", "--omp_nthreads", type=positive_int, metavar="N", help="CPU threads")
    parser.add_argument("--random-seed", "--random_seed", type=int, default=1, metavar="SEED", help="(default: 1)")


def run(options: argparse.Namespace) -> int:
    """Label all scans; return the exit code."""
    from ..resources import available_cpus

    if not options.data.is_dir():
        raise ImageError(f"{options.data}: no such folder")
    chosen = {label.removeprefix("sub-") for label in options.participant_label}
    known = {folder.name.removeprefix("sub-"): folder for folder in sorted(options.data.glob("sub-*"))}
    if missing := sorted(chosen - set(known)):
        raise ImageError(f"{options.data}: there is no participant {missing[0]}")
    scans = [
        path
        for label, folder in known.items()
        if label in chosen or not chosen
        for path in sorted(path for suffix in SUFFIXES for path in folder.rglob(f"*_{suffix}.nii.gz"))
    ]
    if not scans:
        raise ImageError(f"{options.data}: has no {', '.join(SUFFIXES)} scan")
    failed = 0
    with tempfile.TemporaryDirectory(prefix="moesr_segment_") as folder:
        for scan in scans:
            stem, _, suffix = scan.name.removesuffix(".nii.gz").rpartition("_")
            out = options.output / scan.parent.relative_to(options.data) / f"{stem}_desc-{suffix}_dseg.nii.gz"
            if out.exists():
                continue
            try:
                _segment(scan, out, Path(folder), options.omp_nthreads or available_cpus(), options.random_seed)
            except ImageError as error:
                print(f"moesr segment: left out: {error}", file=sys.stderr, flush=True)
                failed += 1
            else:
                print(f"moesr segment: wrote {out}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def _segment(scan: Path, out: Path, folder: Path, threads: int, seed: int) -> None:
    import nibabel as nib

    from ..preproc.brainmask import BrainMaskError
    from ..training.segmentation import segment
    from ..training.volumes import read_3d

    data, affine = read_3d(scan)
    try:
        labels = segment(nib.Nifti1Image(data, affine), work_dir=folder, threads=threads, seed=seed)
    except BrainMaskError as error:
        raise ImageError(f"{scan}: {error}") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(out) as temporary:
        labels.to_filename(temporary)
