"""``moesr slurm``: SLURM arrays for a cohort, with memory and time from the plans of the images."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from moesr_bids.arguments import positive_int
from moesr_bids.atomic import write_text
from moesr_bids.bids.collect import RawImage, collect_images
from moesr_bids.bids.joining import with_joined
from moesr_bids.bids.sessions import with_references
from moesr_bids.cluster import submission
from moesr_bids.cluster.progress import plan_path, plan_text, read_cohort, read_plan
from moesr_bids.cluster.tasks import Task, log_folder
from moesr_bids.config import Settings
from moesr_bids.console import counted, tell

_CPUS = 4
_UNLIMITED = "1000G"  # no limit, so that the estimate is what an image needs


def add_parser(commands: Any) -> None:
    """Add the command to those of ``moesr``."""
    parser = commands.add_parser(
        "slurm",
        help="write and submit the SLURM arrays of a cohort",
        usage="moesr slurm BIDS_DIR OUT [--submit] [--only-failed] [...] [options of moesr-bids]",
        description="Write the SLURM arrays that process a data set. Memory and time of the tasks follow from the "
        "estimates of moesr-bids --dry-run for each image. Options that are not listed here go to moesr-bids; --nprocs "
        f"is the number of CPUs of a task (default: {_CPUS}), --device cuda asks for a GPU for each task.",
        allow_abbrev=False,
    )
    parser.add_argument("bids_dir", type=Path, metavar="BIDS_DIR", help="data set")
    parser.add_argument("output_dir", type=Path, metavar="OUT", help="output folder; scripts go to OUT/logs/slurm")
    parser.add_argument("--submit", action="store_true", help="submit them (default: only write them)")
    parser.add_argument(
        "--only-failed",
        action="store_true",
        help="only participants who are neither done nor running nor queued, with more memory or time for those who "
        "ran out of it; those whose images failed for another reason are left out",
    )
    parser.add_argument("--with-faulty", action="store_true", help="with --only-failed: take those in as well")
    parser.add_argument("--chunk", type=positive_int, metavar="N", help="participants of a task (default: by time)")
    parser.add_argument("--limit", type=positive_int, default=100, metavar="N", help="tasks at once (default: 100)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--image", type=Path, metavar="FILE", help="Apptainer image to run moesr-bids from")
    start.add_argument(
        "--command", dest="launcher", metavar="COMMAND", help="what starts moesr-bids (default: moesr-bids)"
    )
    parser.add_argument("--bind", action="append", default=[], metavar="DIR", help="further folder for the container")
    parser.add_argument("--scratch", metavar="DIR", help="folder on the node's disk (default: $TMPDIR of the job)")
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="further option of sbatch: --sbatch=--partition=x",
    )


def run(options: argparse.Namespace, others: Sequence[str]) -> int:
    """Write the scripts, submit them if asked, and return the exit code.

    Parameters
    ----------
    options : argparse.Namespace
        Options of this command.
    others : sequence of str
        Options of ``moesr-bids``.

    """
    settings = _settings(options, others)
    before: dict[str, tuple[Task, set[str]]] = {}
    if options.only_failed:
        cohort = read_cohort(settings.output_dir, settings.bids_dir)
        again = cohort.to_submit(faulty=options.with_faulty)
        chosen = sorted(again.keys() & set(settings.participant_label or again))
        before = {label: (cohort.tasks[label], again[label]) for label in chosen if label in cohort.tasks}
        settings = attrs.evolve(settings, participant_label=tuple(chosen))
        if not chosen:
            print("moesr slurm: no participant is to be run again; moesr status lists those with a fault of their own")
            return 0
    images, _ = with_joined(with_references(collect_images(settings)), settings.join)
    arrays = submission.arrays(
        submission.loads(images, settings, before), chunk=options.chunk, largest=submission.largest_array()
    )
    if not arrays:
        tell("moesr slurm", "the options select no image")
        return 2
    _write_plan(settings.output_dir, images)
    earlier = [path for path in log_folder(settings.output_dir).iterdir() if path.is_dir()]
    folder = log_folder(settings.output_dir) / f"{len(earlier) + 1:03d}"
    submission.write_submission(folder, arrays, settings, _site(options, settings))
    for array in arrays:
        participants = sum(map(len, array.tasks))
        whom = f"{counted(len(array.tasks), 'task')} for {counted(participants, 'participant')}"
        print(f"{whom}: {array.memory_gb} GB, {array.minutes} min")
    if not options.submit:
        print(f"wrote {folder}; sh {folder / 'submit.sh'} submits it")
        return 0
    return subprocess.run(["sh", str(folder / "submit.sh")], check=False).returncode


def _settings(options: argparse.Namespace, others: Sequence[str]) -> Settings:
    """Return the settings of the tasks, without a memory limit, so that estimates are what images need."""
    from moesr_bids.cli.parser import parse_settings

    own = ["--dry-run", "--nprocs", str(_CPUS), "--mem", _UNLIMITED]
    settings = parse_settings([str(options.bids_dir), str(options.output_dir), "participant", *own, *others])
    if settings.sr.device == "auto":
        tell("moesr slurm", "tasks run on CPUs; --device cuda asks for a GPU each")
    return settings


def _site(options: argparse.Namespace, settings: Settings) -> submission.Site:
    given = {"scratch": options.scratch, "limit": options.limit, "chunk": options.chunk, "command": options.launcher}
    site = submission.Site(**{name: value for name, value in given.items() if value}, sbatch=tuple(options.sbatch))
    if options.image is None:
        return site
    command = submission.container_command(options.image.absolute(), settings, binds=options.bind, scratch=site.scratch)
    return attrs.evolve(site, command=command)


def _write_plan(output_dir: Path, images: Sequence[RawImage]) -> None:
    """Add images to the plan of earlier submissions; for a participant of this one, the earlier rows are replaced."""
    rows = [(f"sub-{image.participant}", image.relative) for image in images]
    participants = {participant for participant, _ in rows}
    kept = [row for row in read_plan(output_dir) if row[0] not in participants]
    path = plan_path(output_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, plan_text([*kept, *rows]))


def main(options: argparse.Namespace, others: Sequence[str]) -> int:
    """Run the command, and turn errors into a message and an exit code."""
    try:
        return run(options, others)
    except (ValueError, OSError) as error:
        tell("moesr slurm", str(error))
        return 1
