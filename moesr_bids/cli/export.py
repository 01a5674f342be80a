"""``moesr export``: copy finished outputs into a raw data set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from moesr_bids.cli.scans import label_of
from moesr_bids.console import tell

_EXTENSIONS = (".nii.gz", ".nii")


def add_parser(commands: Any) -> None:
    """Add the command to those of ``moesr``."""
    parser = commands.add_parser(
        "export",
        help="copy super-resolved images into a raw data set for FreeSurfer, FastSurfer, SynthSeg, SPM",
        description="Copy the super-resolved images of an output folder of moesr-bids into a BIDS raw data set. They "
        "are named as their scans, with rec-moesr. Nothing is computed again. A field of view above 256 mm is cut to "
        "256 mm.",
    )
    parser.add_argument("output_dir", type=Path, metavar="OUT", help="output folder of moesr-bids")
    parser.add_argument("target", type=Path, metavar="DIR", help="folder of the raw data set; made when missing")
    parser.add_argument(
        "--participant-label",
        nargs="+",
        default=[],
        metavar="LABEL",
        help="participants, with or without sub- (default: all)",
    )
    parser.add_argument(
        "--extension", choices=_EXTENSIONS, default=_EXTENSIONS[0], help=".nii for SPM (default: .nii.gz)"
    )


def run(options: argparse.Namespace) -> int:
    """Export; return 0, 1 if there was nothing to export, 2 if a folder cannot be used."""
    from moesr_bids.run.export import export_raw, target_problem  # it reads images, which --help need not

    output_dir, target = options.output_dir.absolute(), options.target.absolute()
    problem = target_problem(target, output_dir)
    if not (output_dir / "dataset_description.json").is_file():
        problem = f"{output_dir} is no output folder of moesr-bids (no dataset_description.json)"
    if problem:
        tell("moesr export", problem)
        return 2
    labels = [label_of(label) for label in options.participant_label]
    return 0 if export_raw(output_dir, target, labels, extension=options.extension) else 1
