"""The SLURM arrays of a cohort: their sizes, and that the shell reads the scripts as meant."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesr_bids.cli.moesr import main
from moesr_bids.cli.parser import parse_settings
from moesr_bids.cluster.submission import MEMORY_GB, Load, arrays
from moesr_bids.cluster.tasks import OUT_OF_MEMORY, log_folder, read_task

needs = st.tuples(st.floats(0.1, 300), st.floats(0.1, 600))


@given(st.lists(needs, min_size=1, max_size=40), st.sampled_from([None, 1, 3]), st.integers(1, 10))
def test_everybody_is_in_one_task_that_has_what_they_need(
    needed: list[tuple[float, float]], chunk: int | None, largest: int
) -> None:
    loads = {f"{number:03d}": Load(f"{number:03d}", *need) for number, need in enumerate(needed)}
    found = arrays(list(loads.values()), chunk=chunk, largest=largest)
    assert sorted(label for array in found for task in array.tasks for label in task) == sorted(loads)
    for array in found:
        assert len(array.tasks) <= largest
        for task in array.tasks:
            assert chunk is None or len(task) <= chunk
            assert max(loads[label].memory_gb for label in task) <= array.memory_gb
            assert sum(loads[label].minutes for label in task) < array.minutes


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Return a data set of three participants, one with a much larger image; a path with a space."""
    root = tmp_path / "raw data"
    for label, size in {"01": 32, "02": 32, "03": 400}.items():
        anat = root / f"sub-{label}" / "anat"
        anat.mkdir(parents=True)
        image = nib.Nifti1Image(np.zeros((size, size, 32), np.uint8), np.diag([4, 4, 4, 1]) * (0.5 if size > 32 else 1))
        image.to_filename(anat / f"sub-{label}_T1w.nii.gz")
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    return root


def submission_of(output_dir: Path) -> Path:
    """Return the folder of the last submission."""
    return max(path for path in log_folder(output_dir).iterdir() if path.is_dir())


def test_scripts_are_valid_shell_with_classes_of_memory_and_the_options_of_the_run(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["slurm", str(dataset), str(out), "--limit", "7", "--sbatch=--partition=long", "--model", "student"]
    assert main([*command, "--nprocs", "2", "--random-seed", "5"]) == 0
    assert "1 task for 2 participants" in capsys.readouterr().out
    folder = submission_of(out)
    scripts = sorted(folder.glob("[0-9]*.sbatch"))
    assert [path.with_suffix(".txt").read_text() for path in scripts] == ["01 02\n", "03\n"]
    small, large = (path.read_text() for path in scripts)
    assert "#SBATCH --array=1-1%7\n" in small and "#SBATCH --partition=long\n" in small
    assert "#SBATCH --cpus-per-task=2\n" in small and "--gres" not in small
    amounts = [next(int(line[14:-1]) for line in text.splitlines() if "--mem=" in line) for text in (small, large)]
    assert amounts[0] < amounts[1] and set(amounts) <= set(MEMORY_GB)
    for path in (*scripts, folder / "submit.sh", folder / "group.sbatch"):
        subprocess.run(["bash", "-n", str(path)], check=True)
    arguments = [str(dataset), str(out), "participant", "--config-file", str(folder / "options.toml"), "--mem", "3G"]
    read = parse_settings([*arguments, "--dry-run"])
    assert (read.sr.model, read.sr.random_seed, read.sr.device) == ("student", 5, "cpu")
    assert main(["status", str(out), "--list"]) == 1
    assert capsys.readouterr().out.split() == ["01", "02", "03"]


def run_task(output_dir: Path, launcher: str, tmp_path: Path) -> subprocess.Popen[str]:
    """Run the first task of a submission as SLURM would."""
    script = min(submission_of(output_dir).glob("[0-9]*.sbatch"))
    script.write_text(script.read_text().replace("LAUNCHER", launcher))
    variables = {
        "SLURM_ARRAY_TASK_ID": "1",
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_MEM_PER_NODE": "4096",
    }
    log = (log_folder(output_dir) / "7_1.out").open("a")
    return subprocess.Popen(
        ["bash", str(script)], env={**os.environ, **variables, "TMPDIR": str(tmp_path)}, stdout=log, stderr=log
    )


@pytest.mark.parametrize(
    ("sent", "end", "code", "kept"),
    [(None, "ended", 3, False), (signal.SIGUSR1, "out of time", 143, False), (signal.SIGTERM, "stopped", 143, True)],
)
def test_a_task_ends_the_run_before_its_limit_and_says_how(
    sent: signal.Signals | None, end: str, code: int, kept: bool, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert main(["slurm", str(dataset), str(out), "--command", "LAUNCHER", "--model", "cubic"]) == 0
    started = tmp_path / "started"
    # In place of moesr-bids: what the script does with it is looked at, not what it does.
    wait = f"touch {started}; " + ("exit 3" if sent is None else "trap 'exit 143' TERM; while :; do sleep 0.05; done")
    launcher = tmp_path / "launcher"
    launcher.write_text(f"#!/bin/bash\nprintf '%s\\n' \"$@\"\n{wait}\n")
    launcher.chmod(0o755)
    running = run_task(out, str(launcher), tmp_path)
    if sent is not None:
        while not started.exists():
            time.sleep(0.01)
        running.send_signal(sent)
    assert running.wait(timeout=20) == code
    task = read_task(log_folder(out) / "7_1.out")
    assert task is not None and (task.end, task.code, task.labels) == (end, code, ("01", "02"))
    assert (tmp_path / "moesr-7-1").is_dir() is kept
    told = (log_folder(out) / "7_1.out").read_text()
    assert f"{dataset}\n{out}\nparticipant\n--participant-label\n01\n02\n--config-file\n" in told


def test_who_ran_out_of_memory_gets_more_and_who_is_done_is_left_out(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["slurm", str(dataset), str(out), "--model", "cubic", "--chunk", "1"]) == 0
    log = log_folder(out) / "7_1.out"
    log.write_text("moesr task: 16384M 90 min: 02\nslurmstepd: error: Detected 1 oom_kill event in StepId=7.batch.\n")
    capsys.readouterr()
    only = ["--only-failed", "--participant-label", "02"]
    assert main(["slurm", str(dataset), str(out), "--model", "cubic", *only]) == 0
    assert "1 task for 1 participant: 24 GB" in capsys.readouterr().out
    assert read_task(log).end == OUT_OF_MEMORY  # type: ignore[union-attr]


def test_submission_keeps_the_jobs_and_chains_the_group_level(
    dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    # In place of SLURM's: it tells how it was called. The real one is used by make test-slurm.
    sbatch.write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/calls\nwc -l < {tmp_path}/calls\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    assert main(["slurm", str(dataset), str(tmp_path / "out"), "--submit"]) == 0
    assert capfd.readouterr().out.endswith("submitted: 1:2,3\n")
    folder = submission_of(tmp_path / "out")
    assert sorted(path.read_text().strip() for path in folder.glob("*.job")) == ["1", "2"]
    assert (tmp_path / "calls").read_text().splitlines()[-1] == "--parsable --dependency=afterany:1:2 group.sbatch"


def test_a_cohort_on_gpus_is_planned_where_there_is_none(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    image = tmp_path / "moesr bids.sif"
    assert main(["slurm", str(dataset), str(out), "--device", "cuda", "--image", str(image), "--bind", "/disk2"]) == 0
    script = min(submission_of(out).glob("[0-9]*.sbatch")).read_text()
    assert "#SBATCH --gres=gpu:1\n" in script
    assert f"apptainer run --cleanenv --nv --bind '{dataset}:{dataset}:ro' --bind {out} --bind /disk2 " in script
    assert f"'{image}' \\\n" in script
    assert 'device = "cuda"' in (submission_of(out) / "options.toml").read_text()
