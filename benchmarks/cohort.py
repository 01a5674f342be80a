"""A cohort of thousands: how long status, group page, submission and the start of a task take.

A few participants are processed. Their outputs are copied under the names of all others. The last ones of the list are
not done: some have failed, some ran out of memory, some are missing.

    python -m benchmarks.cohort FOLDER [--participants 5000] [--slurm-minutes 20]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.app import APP
from benchmarks.phantom import Acquisition, acquire, make_truth
from benchmarks.slurm_site import jobs, slurm_site
from moesr_bids.bids.schema import inner_path
from moesr_bids.bids.status import ImageStatus, write_status
from moesr_bids.cluster.progress import read_cohort
from moesr_bids.cluster.tasks import log_folder

MOESR = [sys.executable, "-m", "moesr_bids.cli.moesr"]
OPTIONS = ["--model", "cubic", "--resolution", "3", "--sloppy", "--skip-bids-validation"]
PROCESSED = 4
FAILED, OUT_OF_MEMORY, MISSING = 10, 20, 70  # at the end of the list
_TEXTS = (".json", ".html", ".md", ".svg", ".tsv", ".toml")


def labels(participants: int) -> list[str]:
    """Return the labels of all participants."""
    return [f"{number:05d}" for number in range(1, participants + 1)]


def build_raw(root: Path, participants: int) -> None:
    """Write the raw data set: phantoms at 4 mm, the same few for all."""
    truth = make_truth(1)
    images = []
    for seed in range(PROCESSED):
        scan = Acquisition(participant="", zooms=(4.0, 4.0, 4.0), metadata={}, seed=seed + 1)
        images.append(root / "sourcedata" / f"{seed}.nii.gz")
        images[-1].parent.mkdir(parents=True, exist_ok=True)
        acquire(truth, scan).to_filename(images[-1])
    for number, label in enumerate(labels(participants)):
        anat = root / f"sub-{label}" / "anat"
        anat.mkdir(parents=True)
        os.link(images[number % PROCESSED], anat / f"sub-{label}_T1w.nii.gz")
    (root / "dataset_description.json").write_text('{"Name": "Cohort of phantoms", "BIDSVersion": "1.10.0"}')


def process(raw: Path, out: Path, work: Path, chosen: Sequence[str]) -> float:
    """Run the participant level; return its seconds."""
    command = [*APP, str(raw), str(out), "participant", "--participant-label", *chosen, "-w", str(work), *OPTIONS]
    return timed([*command, "--nprocs", "2"])


def copy_derivatives(out: Path, participants: int) -> None:
    """Copy the outputs of the processed participants under the names of the others; set the states of the last ones."""
    done = labels(participants)[: -(FAILED + OUT_OF_MEMORY + MISSING)]
    sources = [_files_of(out, label) for label in done[:PROCESSED]]
    for number, label in enumerate(done[PROCESSED:], start=PROCESSED):
        origin = done[number % PROCESSED]
        for path in sources[number % PROCESSED]:
            target = out / str(path.relative_to(out)).replace(origin, label)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in _TEXTS:
                target.write_text(path.read_text(encoding="utf-8").replace(origin, label), encoding="utf-8")
            else:
                os.link(path, target)
    last = labels(participants)[len(done) :]
    for label in last[:FAILED]:
        name = inner_path(f"sub-{label}/anat/sub-{label}_T1w.nii.gz")
        reason = f"/data/{name}: the image is constant"
        status = ImageStatus(participant_id=f"sub-{label}", image=name, state="failed", step="conform", reason=reason)
        write_status(out, status)
    log_folder(out).mkdir(parents=True, exist_ok=True)
    for number, label in enumerate(last[FAILED : FAILED + OUT_OF_MEMORY], start=1):
        text = f"moesr task: 4096M 90 min: {label}\nslurmstepd: error: Detected 1 oom_kill event in StepId=1.batch.\n"
        (log_folder(out) / f"1_{number}.out").write_text(text, encoding="utf-8")


def _files_of(out: Path, label: str) -> list[Path]:
    inside = [path for path in (out / f"sub-{label}").rglob("*") if path.is_file()]
    return [
        *inside,
        *out.glob(f"sub-{label}.*"),
        *(out / "logs" / "status").glob(f"sub-{label}_*"),
        *(path for path in (out / "logs" / f"sub-{label}").glob("*") if path.is_file()),
    ]


def timed(command: Sequence[str]) -> float:
    """Run a command and return its seconds; its lines go to the output of this program."""
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print("\n".join((done.stdout + done.stderr).strip().splitlines()[-12:]), flush=True)
    return time.monotonic() - start


def seconds_to_first_step(raw: Path, out: Path, work: Path, label: str) -> float:
    """Start a task of one participant and return the seconds until the first step of its image."""
    command = [*APP, str(raw), str(out), "participant", "--participant-label", label, "-w", str(work), *OPTIONS]
    start = time.monotonic()
    status = out / "logs" / "status" / f"sub-{label}_T1w.json"
    running = subprocess.Popen([*command, "--nprocs", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while '"running"' not in (status.read_text() if status.exists() else ""):
        time.sleep(0.02)
        if running.poll() is not None:
            raise RuntimeError(f"the run ended early: {' '.join(command)}")
    seconds = time.monotonic() - start
    running.terminate()
    running.wait()
    return seconds


def run_tasks(raw: Path, out: Path, minutes: float) -> str:
    """Submit those who are not done to a SLURM of this machine for some minutes; return how many images were made."""
    before = read_cohort(out).counts()
    command = [*MOESR, "slurm", str(raw), str(out), "--only-failed", "--submit", "--chunk", "1", "--nprocs", "1"]
    with slurm_site(Path(tempfile.mkdtemp()), cpus=2, memory_mb=16000) as site:
        subprocess.run([*command, "--command", " ".join(APP), *OPTIONS[:5]], env=site, check=True)
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end and jobs(site):
            time.sleep(2)
    after = read_cohort(out).counts()
    return f"{after['done'] - before['done']} images by tasks of SLURM in {minutes:g} min; then {dict(after)}"


def main() -> None:
    """Build the cohort and print the times."""
    parser = argparse.ArgumentParser(description="Measure a cohort of thousands.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--participants", type=int, default=5000)
    parser.add_argument("--slurm-minutes", type=float, default=0.0, help="then run tasks on a SLURM of this machine")
    options = parser.parse_args()
    raw, out, work = (options.folder / name for name in ("raw", "out", "work"))
    shutil.rmtree(options.folder, ignore_errors=True)
    build_raw(raw, options.participants)
    everybody = labels(options.participants)
    times = {"first submission, all participants": timed([*MOESR, "slurm", str(raw), str(out), *OPTIONS[:5]])}
    times[f"{PROCESSED} participants, two CPUs"] = process(raw, out, work, everybody[:PROCESSED])
    copy_derivatives(out, options.participants)
    times["moesr status"] = timed([*MOESR, "status", str(out)])
    times["group level"] = timed([*APP, str(raw), str(out), "group"])
    again = [*MOESR, "slurm", str(raw), str(out), "--only-failed", *OPTIONS[:5]]
    times["second submission, --only-failed"] = timed(again)
    times["a task to its first step"] = seconds_to_first_step(raw, out, work, everybody[-1])
    files = [path for path in out.rglob("*") if path.is_file()]
    print(f"{len(files)} files in {out}; group.html {(out / 'group.html').stat().st_size / 1e6:.1f} MB")
    for name, seconds in times.items():
        print(f"{seconds:8.1f} s  {name}", flush=True)
    if options.slurm_minutes:
        print(run_tasks(raw, out, options.slurm_minutes))


if __name__ == "__main__":
    main()
