"""A cohort on a real SLURM, with the failures that happen on clusters.

It takes minutes and has to run as root: ``make test-slurm``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import attrs
import nibabel as nib
import numpy as np
import psutil
import pytest

from benchmarks.phantom import Acquisition, acquire, make_truth
from benchmarks.slurm_site import jobs, missing, slurm_site
from moesr_bids.cluster.progress import ImageState, read_cohort
from moesr_bids.cluster.tasks import OUT_OF_MEMORY, OUT_OF_TIME, STOPPED, log_folder, submitted_tasks

pytestmark = [
    pytest.mark.timeout(6000),
    pytest.mark.skipif(
        not os.environ.get("MOESR_TEST_SLURM") or bool(missing()), reason=f"make test-slurm runs it; {missing()}"
    ),
]
MOESR = [sys.executable, "-m", "moesr_bids.cli.moesr"]
LAUNCHER = f"{sys.executable} -m moesr_bids.cli.main"
LABELS = [f"{number:02d}" for number in range(1, 13)]
KILLED, REQUEUED, TOO_LONG, TOO_LARGE, BAD = "02", "03", "05", "07", "09"
RUNS = 6  # images of the participant who takes too long


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve participants at 4 mm: one with many images, one whose image is constant."""
    root = tmp_path_factory.mktemp("data") / "raw"
    truth = make_truth(1)
    for number, label in enumerate(LABELS):
        anat = root / f"sub-{label}" / "anat"
        anat.mkdir(parents=True)
        scan = Acquisition(participant=label, zooms=(4.0, 4.0, 4.0), metadata={}, seed=number)
        for run in range(RUNS if label == TOO_LONG else 1):
            image = acquire(truth, attrs.evolve(scan, seed=number + 100 * run))
            if label == BAD:
                image = nib.Nifti1Image(np.full(image.shape, 7, np.int16), image.affine)
            image.to_filename(anat / f"sub-{label}_run-{run + 1:02d}_T1w.nii.gz")
    (root / "dataset_description.json").write_text('{"Name": "phantoms", "BIDSVersion": "1.10.0"}')
    return root


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """SLURM with room for three tasks."""
    with slurm_site(tmp_path_factory.mktemp("s"), cpus=3, memory_mb=16000) as environment:
        yield environment


def submit(dataset: Path, out: Path, site: dict[str, str], *options: str) -> str:
    """Submit a cohort; return the group job."""
    command = [*MOESR, "slurm", str(dataset), str(out), "--submit", "--command", LAUNCHER, "--nprocs", "1"]
    command += ["--chunk", "1", "--model", "cubic", "--resolution", "3", "--sloppy", *options]
    done = subprocess.run(command, env=site, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()[-1].partition(",")[2]


def scontrol(site: dict[str, str], *arguments: str) -> None:
    subprocess.run(["scontrol", *arguments], env=site, check=True, capture_output=True)


def kill(task: str, site: dict[str, str]) -> None:
    """Kill all that a task runs, its script first, as a dying node does; SLURM's own signals would end it gently."""
    job, _, number = task.partition("_")
    wanted = {"SLURM_CONF": site["SLURM_CONF"], "SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": number}
    killed = 0
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if wanted.items() <= process.environ().items():
                process.kill()
                killed += 1
    assert killed


def wait_until(condition: object, *, seconds: float) -> None:
    """Wait until a function without arguments returns something true."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.5)


def states(out: Path, site: dict[str, str]) -> dict[str, set[str]]:
    """Return the states of each participant's images."""
    found: dict[str, set[str]] = {}
    for image in images(out, site):
        found.setdefault(image.participant_id.removeprefix("sub-"), set()).add(image.state)
    return found


def images(out: Path, site: dict[str, str]) -> tuple[ImageState, ...]:
    os.environ["SLURM_CONF"] = site["SLURM_CONF"]
    return read_cohort(out).images


def status(out: Path, site: dict[str, str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*MOESR, "status", str(out)], env=site, capture_output=True, text=True, check=False)
    print(done.stdout)
    return done


def test_a_cohort_in_which_everything_happens(dataset: Path, site: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    group = submit(dataset, out, site)
    index = {label: job for job, labels in submitted_tasks(out).items() for label in labels}
    assert sorted(index) == LABELS
    # As an administrator would, before they start.
    scontrol(site, "update", f"jobid={index[TOO_LONG]}", "TimeLimit=3")
    scontrol(site, "update", f"jobid={index[TOO_LARGE]}", "MinMemoryNode=500")
    begun = {label: log_folder(out) / f"{index[label]}.out" for label in LABELS}
    for label in (KILLED, REQUEUED):
        status_file = out / "logs" / "status" / f"sub-{label}_run-01_T1w.json"
        wait_until(lambda path=status_file: path.exists() and '"running"' in path.read_text(), seconds=900)
    kill(index[KILLED], site)
    scontrol(site, "requeue", index[REQUEUED])
    wait_until(lambda: group not in jobs(site), seconds=2700)
    time.sleep(60)  # only then a silent task counts as killed

    told = status(out, site)
    assert told.returncode == 1
    found = states(out, site)
    assert found.pop(KILLED) == {STOPPED}
    assert found.pop(TOO_LARGE) == {OUT_OF_MEMORY}
    assert found.pop(BAD) == {"failed"}
    assert found.pop(TOO_LONG) <= {"done", OUT_OF_TIME} and OUT_OF_TIME in told.stdout
    assert set(map(frozenset, found.values())) == {frozenset({"done"})}
    assert begun[REQUEUED].read_text().count("moesr task:") == 2
    assert "moesr end: time 143" in begun[TOO_LONG].read_text()
    assert (out / "group.html").is_file()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("sub-*/anat/*_desc-moesr_*")}

    group = submit(dataset, out, site, "--only-failed")
    folder = log_folder(out) / "002"
    again = [label for path in folder.glob("*.txt") for label in path.read_text().split()]
    assert sorted(again) == [KILLED, TOO_LONG, TOO_LARGE]
    wait_until(lambda: group not in jobs(site), seconds=1800)
    told = status(out, site)
    assert told.returncode == 1
    found = states(out, site)
    assert found.pop(BAD) == {"failed"}
    assert set(map(frozenset, found.values())) == {frozenset({"done"})}
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # what was done stayed as it was
    assert not list(out.rglob("*.part*"))
    page = (out / "group.html").read_text()
    assert f"sub-{BAD}" in page and "all voxels have the value 7" in page
