"""``moesr status``: progress of a cohort, reasons of failures, and participants to run again."""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

from moesr_bids.cluster.progress import DONE, STATES, Cohort, read_cohort
from moesr_bids.console import counted, tell

_AGAIN = "moesr slurm BIDS_DIR {} --only-failed --submit"


def add_parser(commands: Any) -> None:
    """Add the command to those of ``moesr``."""
    parser = commands.add_parser(
        "status",
        help="show the progress of a cohort, and who has to be run again",
        description="Count the images of an output folder of moesr-bids: done, running, queued, failed, out of memory, "
        "out of time, stopped, missing, with the reasons. Exit code 0: all are done; 1: some are not; 2: no output "
        "folder.",
    )
    parser.add_argument("output_dir", type=Path, metavar="OUT", help="output folder of moesr-bids")
    parser.add_argument(
        "--bids-dir",
        type=Path,
        metavar="DIR",
        help="raw data set, to find participants not begun (default: the one that OUT names)",
    )
    parser.add_argument(
        *("--list",),
        action="store_true",
        help="print only the labels of the participants to run again, one per line: all that are neither done nor "
        "running nor queued, without those whose images failed for another reason than time, memory or a stop",
    )
    parser.add_argument("--with-faulty", action="store_true", help="with --list: list those as well")


def run(options: argparse.Namespace) -> int:
    """Print the state of the cohort; return 0 if all images are done, 1 if not, 2 if there is no output folder."""
    if not (options.output_dir / "logs").is_dir():
        tell("moesr status", f"{options.output_dir} is no output folder of moesr-bids (no logs/)")
        return 2
    cohort = read_cohort(options.output_dir, options.bids_dir)
    if options.list:
        print("".join(f"{label}\n" for label in sorted(cohort.to_submit(faulty=options.with_faulty))), end="")
    else:
        _tell(cohort, options.output_dir)
    return 0 if cohort.images and all(image.state == DONE for image in cohort.images) else 1


def _tell(cohort: Cohort, output_dir: Path) -> None:
    counts = cohort.counts()
    participants = len({image.participant_id for image in cohort.images})
    done = f"{counts[DONE]} of {counted(len(cohort.images), 'image')} done"
    print(f"{output_dir}: {done}, {counted(participants, 'participant')}")
    for state in STATES:
        if not counts[state]:
            continue
        print(f"{counts[state]:8}  {state}{_figures(cohort) if state == DONE else ''}")
        for (of_state, reason), count in cohort.reasons().most_common():
            if of_state == state:
                print(f"{count:14}  {reason}")
    if again := cohort.to_submit():
        print(f"{counted(len(again), 'participant')} to run again: {_AGAIN.format(output_dir)}")


def _figures(cohort: Cohort) -> str:
    seconds = [image.seconds for image in cohort.images if image.state == DONE and image.seconds]
    memory = [image.peak_memory_gb for image in cohort.images if image.state == DONE and image.peak_memory_gb]
    if not seconds or not memory:
        return ""
    return (
        f": {sum(seconds) / 3600:.1f} h in all, {median(seconds) / 60:.1f} min an image (longest "
        f"{max(seconds) / 60:.1f}), up to {max(memory):.1f} GB"
    )
