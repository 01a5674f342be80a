"""The cost of an image: CPU time, files and disk of a run of the app on real scans, and of a thousand like it.

    python -m benchmarks.cost FOLDER --data BIDS_DIR --participants native2mm fernando [--options ...]

Each participant is a run of its own, with the app's defaults and the options given. CPU time is that of the run and
of all processes that it started. FOLDER must be new. Work folders are removed once they are measured.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

from .app import APP, children_seconds

_THOUSAND = 1000
_SECONDS_PER_HOUR = 3600


@frozen
class Cost:
    """Time, files and disk of a run.

    Parameters
    ----------
    images
        Images that were made.
    cpu_seconds
        Of the run and all processes that it started, user and system.
    output_files, output_bytes
        Of these images and their participant, without files that a data set has once.
    work_bytes
        Of intermediate files, which may be deleted after the run.
    """

    images: int
    cpu_seconds: float
    output_files: int
    output_bytes: int
    work_bytes: int

    def line(self, name: str) -> str:
        """Return a row of the table, for a thousand participants like this one."""
        hours = self.cpu_seconds * _THOUSAND / _SECONDS_PER_HOUR
        disk, work = (size * _THOUSAND / 1e9 for size in (self.output_bytes, self.work_bytes))
        files = _THOUSAND * self.output_files
        figures = f"{self.images} | {hours:.0f} | {disk:.0f} GB | {files:,} | {work:.0f} GB"
        return f"| {name} | {figures} |"


def measure(folder: Path, data: Path, label: str, options: Sequence[str]) -> Cost:
    """Run the app on one participant."""
    out, work = folder / f"out-{label}", folder / f"work-{label}"
    before = children_seconds()
    command = [*APP, str(data), str(out), "participant", "--participant-label", label, "-w", str(work), *options]
    subprocess.run(command, check=True)
    seconds = children_seconds() - before
    own = _files(out, f"sub-{label}")
    images = sum("_desc-moesr_" in path.name and "_space-" not in path.name for path in own if path.suffix == ".json")
    cost = Cost(images, seconds, len(own), _size(own), _size(_files(work, "")))
    shutil.rmtree(work)
    return cost


def _files(folder: Path, part: str) -> list[Path]:
    """Return the files of a folder with a word in their path below it."""
    return [path for path in folder.rglob("*") if path.is_file() and part in str(path.relative_to(folder))]


def _size(files: Sequence[Path]) -> int:
    """Return the bytes that files take on the disk; a file with two names counts once."""
    found = {(found.st_dev, found.st_ino): found.st_blocks for found in map(os.lstat, files)}
    return 512 * sum(found.values())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure the cost of images.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="BIDS data set")
    parser.add_argument("--participants", nargs="+", required=True, metavar="LABEL")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="options of moesr-bids, at the end")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    costs = {label: measure(options.folder, options.data, label, options.options) for label in options.participants}
    print("| participant | images | CPU-hours of 1,000 | disk | files | disk of the work folders |")
    print("|---|---|---|---|---|---|")
    for label, cost in costs.items():
        print(cost.line(label))


if __name__ == "__main__":
    main()
