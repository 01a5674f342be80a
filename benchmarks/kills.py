"""Runs that are killed at random times and started again until they are done.

A small phantom data set (two participants, three images, 4 mm voxels) is processed once without a kill. Its outputs are
the reference. A round starts with an empty output folder, and with the work folder of that run less a few steps. Then
runs are killed: a worker (or what it runs), the run alone, or all at once. After each run all output files have to be
whole, images that were done have to be there, and no image may have failed of which no process was killed. At the end
of a round everything has to be as in the reference.

    python -m benchmarks.kills FOLDER --kills 200

FOLDER keeps the preparation, and a row per killed run in kills.tsv: a later call goes on there.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import attrs
import nibabel as nib
import numpy as np
import psutil

from benchmarks.app import APP
from benchmarks.phantom import Acquisition, build
from moesr_bids.cli.main import main as moesr_bids
from moesr_bids.interfaces.processes import end_with

OPTIONS = ("--skip-bids-validation", "--sloppy", "--resolution", "3", "--model", "cubic", "--device", "cpu")
KINDS = ("worker", "run", "both")
# Steps of each image that a round does again, with their odds. Publication is always done again.
STEPS = {None: 9, "warp_MNI152NLin2009aSym": 18, "super_resolve": 1}
_IMPORTED = (
    *("ants", "pandas", "torch", "niworkflows.engine.workflows", "nipype.pipeline.plugins", "bids.layout"),
    *("moesr_bids.workflows.base", "moesr_bids.workflows.plugin", "moesr_bids.interfaces.publish"),
    *("moesr_bids.interfaces.registration", "moesr_bids.interfaces.reportlets", "moesr_bids.reports.individual"),
)
COLUMNS = ("round", "kind", "seconds", "victims", "half_written", "lost", "innocent_failed")
_STEP_FOLDER = re.compile(r"/moesr_wf/\w+?_wf/(\w+?_wf)/(?:\w+_wf/)?(\w+)")


@attrs.frozen
class Folders:
    """Folders of the benchmark."""

    root: Path

    @property
    def bids(self) -> Path:
        """The phantom."""
        return self.root / "bids"

    @property
    def out(self) -> Path:
        """Output folder of the runs that are killed."""
        return self.root / "out"

    @property
    def work(self) -> Path:
        """Work folder of all runs: intermediate files know their own path."""
        return self.root / "work"

    @property
    def reference(self) -> Path:
        """Output folder of the run that was not killed."""
        return self.root / "reference"

    @property
    def prepared(self) -> Path:
        """Work folder of the run that was not killed."""
        return self.root / "prepared"

    def arguments(self) -> list[str]:
        """Return the arguments of a run."""
        return [str(self.bids), str(self.out), "participant", "-w", str(self.work), "--nprocs", "2", *OPTIONS]


def prepare(folders: Folders) -> None:
    """Make the data set, and run once without a kill."""
    if folders.reference.exists():
        return
    for folder in (folders.bids, folders.out, folders.work, folders.prepared):
        shutil.rmtree(folder, ignore_errors=True)
    zooms, metadata = (4.0, 4.0, 4.0), {"MRAcquisitionType": "3D"}
    scans = [Acquisition(participant=f"0{n}", zooms=zooms, metadata=metadata, seed=n) for n in (1, 2)]
    build(folders.root, tuple(scans))
    anat = folders.bids / "sub-01" / "anat"
    for extension in (".nii.gz", ".json"):
        shutil.copyfile(anat / f"sub-01_T1w{extension}", anat / f"sub-01_T2w{extension}")
    command = [*APP, *folders.arguments()]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    shutil.copytree(folders.work, folders.prepared, symlinks=True)
    folders.out.rename(folders.reference)


def start_round(folders: Folders, rng: random.Random) -> None:
    """Empty the output folder; remove a step of each image, and the steps after it, from the work folder."""
    shutil.rmtree(folders.out, ignore_errors=True)
    shutil.rmtree(folders.work, ignore_errors=True)
    shutil.copytree(folders.prepared, folders.work, symlinks=True)
    for image in (folders.work / "moesr_wf").glob("sub_*_wf/sub_*_wf"):
        step = rng.choices(list(STEPS), list(STEPS.values()))[0]
        if step is not None:
            shutil.rmtree(next(image.glob(f"*_wf/{step}")))


def half_written(out: Path) -> list[str]:
    """Return the files that have their final names but are not whole."""
    return [path.relative_to(out).as_posix() for path in _visible_files(out) if not _is_whole(path)]


def _visible_files(out: Path) -> Iterator[Path]:
    for path in out.rglob("*"):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(out).parts):
            yield path


def _is_whole(path: Path) -> bool:
    try:
        if path.name.endswith(".gz"):
            with gzip.open(path) as stream:
                while stream.read(1 << 20):
                    pass
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".html":
            return path.read_text(encoding="utf-8").rstrip().endswith(">")  # figures are parts of a page
        elif path.suffix == ".tsv":
            rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines(), delimiter="\t"))
            return len({len(row) for row in rows}) == 1
        return path.stat().st_size > 0
    except (OSError, ValueError, EOFError):
        return False


def digests(out: Path) -> dict[str, str]:
    """Return a digest of the voxels of every image of an output folder."""
    found = {}
    for path in out.glob("sub-*/**/*.nii.gz"):
        if not path.name.startswith("."):
            voxels = np.ascontiguousarray(np.asanyarray(nib.load(path).dataobj))
            found[path.relative_to(out).as_posix()] = hashlib.sha256(voxels.tobytes()).hexdigest()
    return found


def done_images(out: Path) -> set[str]:
    """Return the images whose outputs are complete: those with the sidecar of the main output, which comes last."""
    return {path.stem for path in out.glob("sub-*/anat/*_desc-moesr_T*w.json")}


def failed_images(out: Path) -> set[str]:
    """Return the images whose status is failed."""
    failed = set()
    for path in (out / "logs" / "status").glob("*.json"):
        with suppress(ValueError):
            if json.loads(path.read_text(encoding="utf-8"))["state"] == "failed":
                failed.add(path.stem)
    return failed


def working(run: psutil.Process) -> dict[psutil.Process, tuple[str, str]]:
    """Return the processes of a run that are at a step, with the image's workflow and the step."""
    found = {}
    for process in run.children(recursive=True):
        with suppress(psutil.Error):
            if place := _STEP_FOLDER.search(process.cwd()):
                found[process] = (place[1], place[2])
    return found


def kill(run: psutil.Process, kind: str, rng: random.Random) -> list[str]:
    """Kill, and return the steps that were hit, as workflow/step."""
    at_work = working(run)
    if kind == "worker":
        if not at_work:
            return []
        victim = rng.choice(sorted(at_work, key=lambda process: process.pid))
        with suppress(psutil.Error):
            victim.kill()
        return ["/".join(at_work[victim])]
    others = run.children(recursive=True) if kind == "both" else []
    for process in [run, *others]:
        with suppress(psutil.Error):
            process.kill()
    return sorted("/".join(place) for place in at_work.values())


def killed_run(folders: Folders, kind: str, wait: float, rng: random.Random) -> tuple[list[str], int]:
    """Run, kill after a time, and return the steps that were hit and the exit code.

    Half of the runs that lost a worker go on to their end; the others are killed some time later.
    """
    started = get_context("fork").Process(target=_run_app, args=(folders.arguments(), os.getpid()))
    started.start()
    assert started.pid is not None
    run = psutil.Process(started.pid)
    victims: list[str] = []
    due = time.monotonic() + wait
    while started.is_alive() and not victims:
        if time.monotonic() >= due:
            with suppress(psutil.Error):
                victims = kill(run, kind, rng)
            if kind != "worker":
                break
        time.sleep(0.02)
    if kind == "worker" and rng.random() < 0.5:
        started.join(rng.uniform(0, 10))
        if started.is_alive():
            with suppress(psutil.Error):
                victims += kill(run, "run", rng)
    started.join()
    assert started.exitcode is not None
    return victims, started.exitcode


def _run_app(arguments: list[str], parent: int) -> None:
    """Run the app in a process that has already imported it: starting Python would take longer than the run."""
    end_with(parent)
    with Path(os.devnull).open("w", encoding="utf-8") as quiet:
        os.dup2(quiet.fileno(), 1)
        os.dup2(quiet.fileno(), 2)
    sys.exit(moesr_bids(arguments))


def import_all() -> None:
    """Import the modules of a run and of its steps."""
    for name in _IMPORTED:
        importlib.import_module(name)


def campaign(folders: Folders, kills: int, seconds: float, rng: random.Random) -> None:
    """Kill runs until there are enough of them or the time is over; each gets a row in kills.tsv."""
    expected = digests(folders.reference)
    table = folders.root / "kills.tsv"
    rows = read_rows(table)
    deadline, span = time.monotonic() + seconds, 8.0
    number = max((int(row["round"]) for row in rows), default=0)
    while len(rows) < kills and time.monotonic() < deadline:
        number += 1
        start_round(folders, rng)
        before: set[str] = set()
        code = 1
        while code != 0:
            kind = rng.choice(KINDS) if len(rows) < kills and time.monotonic() < deadline else "none"
            wait = rng.uniform(0, span) if kind != "none" else float("inf")
            began = time.monotonic()
            victims, code = killed_run(folders, kind, wait, rng)
            if code == 0:  # the run ended before the kill, or the step of the killed worker ran again
                span = 0.8 * span + 0.2 * (time.monotonic() - began)
            faults = {
                "half_written": half_written(folders.out),
                "lost": sorted(before - done_images(folders.out)),
                "innocent_failed": innocent(failed_images(folders.out), victims),
            }
            before = done_images(folders.out)
            if code != 0 or victims:
                facts = {"round": str(number), "kind": kind, "seconds": f"{wait:.2f}", "victims": " ".join(victims)}
                rows.append(facts | {name: " ".join(found) for name, found in faults.items()})
                write_rows(table, rows)
            if kind == "none" and code != 0 and not victims:
                raise RuntimeError(f"a run that was not killed ended with exit code {code}: see {folders.out}/logs")
        if digests(folders.out) != expected or list(folders.out.rglob("*.part*")) or half_written(folders.out):
            raise RuntimeError(f"round {number} ended with other outputs than the reference: see {folders.out}")


def innocent(failed: set[str], victims: list[str]) -> list[str]:
    """Return the failed images of which no process was killed."""
    hit = {victim.split("/")[0].removesuffix("_wf").replace("_", "-", 1) for victim in victims}
    return sorted(failed - hit)


def read_rows(table: Path) -> list[dict[str, str]]:
    """Read the rows of earlier calls."""
    if not table.exists():
        return []
    with table.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def write_rows(table: Path, rows: list[dict[str, str]]) -> None:
    """Write all rows."""
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def report(rows: list[dict[str, str]]) -> str:
    """Return the figures of all rows as lines."""
    kinds = Counter(row["kind"] for row in rows)
    steps = Counter(victim.split("/")[1] for row in rows for victim in row["victims"].split())
    lines = [f"{len(rows)} runs killed in {len({row['round'] for row in rows})} rounds: {dict(kinds)}"]
    lines.append(f"steps that were hit: {dict(steps)}")
    lines += [f"{name}: {sum(bool(row[name]) for row in rows)}" for name in COLUMNS[4:]]
    return "\n".join(lines)


def main() -> int:
    """Kill runs and print the faults; exit code 1 for any fault."""
    parser = argparse.ArgumentParser(description="Kill runs at random times and repeat them until they are done.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=200, help="runs to kill, those of earlier calls included")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no kill after this time")
    parser.add_argument("--seed", type=int, default=os.getpid())
    options = parser.parse_args()
    folders = Folders(options.folder.resolve())
    folders.root.mkdir(parents=True, exist_ok=True)
    prepare(folders)
    import_all()
    campaign(folders, options.kills, options.seconds, random.Random(options.seed))
    rows = read_rows(folders.root / "kills.tsv")
    print(report(rows))
    return int(any(row[name] for row in rows for name in COLUMNS[4:]))


if __name__ == "__main__":
    sys.exit(main())
