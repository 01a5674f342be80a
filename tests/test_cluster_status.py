"""How far a cohort is: from statuses and the output files of SLURM tasks."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from moesr_bids.bids.source import source_fields
from moesr_bids.bids.status import ImageStatus, more_statuses_than, write_status
from moesr_bids.cli.moesr import main
from moesr_bids.cluster import tasks
from moesr_bids.cluster.progress import plan_path, plan_text, read_cohort
from moesr_bids.cluster.tasks import ENDED, OUT_OF_MEMORY, OUT_OF_TIME, RUNNING, STOPPED, last_tasks, read_task

BEGIN = "moesr task: 8192M 90 min: 01 02\n[12:00:00] 2 images of 2 participants\n"
TIME_LIMIT = "slurmstepd-node1: error: *** JOB 7 ON node1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***\n"
OOM = "slurmstepd-node1: error: Detected 1 oom_kill event in StepId=7.batch.\n"
PREEMPTED = "slurmstepd: error: *** JOB 7 ON node1 CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION ***\n"


def image(participant: str, state: str, **fields: object) -> ImageStatus:
    """Return a status of the T1w image of a participant."""
    name = f"sub-{participant}"
    told = {"step": "publish", "seconds": 60.0, "peak_memory_gb": 2.0, **fields}
    return ImageStatus(participant_id=name, image=f"{name}/anat/{name}_T1w.nii.gz", state=state, **told)


def task_file(output_dir: Path, job: str, text: str, *, age_s: float = 0.0) -> Path:
    """Write the output file of a task."""
    path = tasks.log_folder(output_dir) / f"{job}.out"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


@pytest.mark.parametrize(
    ("text", "end", "code"),
    [
        (BEGIN, RUNNING, None),
        (BEGIN + "moesr end: exit 0\n", ENDED, 0),
        (BEGIN + "moesr end: exit 1\n", ENDED, 1),
        (BEGIN + "moesr end: time 143\n", OUT_OF_TIME, 143),
        (BEGIN + "moesr end: term 143\n", STOPPED, 143),
        (BEGIN + TIME_LIMIT, OUT_OF_TIME, None),
        (BEGIN + OOM, OUT_OF_MEMORY, None),
        (BEGIN + "moesr end: exit 1\n" + OOM, OUT_OF_MEMORY, 1),
        (BEGIN + PREEMPTED, STOPPED, None),
        (BEGIN + PREEMPTED + BEGIN, RUNNING, None),  # requeued: what it says since counts
        (BEGIN + PREEMPTED + BEGIN + "moesr end: exit 0\n", ENDED, 0),
        (BEGIN + "x" * 300_000 + "\nmoesr end: exit 0\n", ENDED, 0),
    ],
)
def test_a_task_tells_how_it_ended(text: str, end: str, code: int | None, tmp_path: Path) -> None:
    task = read_task(task_file(tmp_path, "7_1", text))
    assert task is not None
    assert (task.job, task.labels, task.memory_gb, task.minutes) == ("7_1", ("01", "02"), 8, 90)
    assert (task.end, task.code) == (end, code)


def test_a_task_that_has_not_begun_is_none_and_the_last_one_counts(tmp_path: Path) -> None:
    assert read_task(task_file(tmp_path, "8_2", "")) is None
    task_file(tmp_path, "7_1", BEGIN + OOM, age_s=100)
    task_file(tmp_path, "8_1", BEGIN.replace("8192M", "12288M") + "moesr end: exit 0\n")
    found = last_tasks(tmp_path)
    assert found.keys() == {"01", "02"}
    assert found["01"].memory_gb == 12 and found["01"].end == ENDED


def answer_of_squeue(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a queue in place of SLURM's."""
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text(f"#!/bin/sh\necho '{text}'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("queue", "end"), [("7_1 RUNNING", RUNNING), ("9_9 RUNNING", STOPPED), ("", STOPPED), (None, RUNNING)]
)
def test_a_task_that_is_gone_from_the_queue_without_a_word_has_stopped(
    queue: str | None, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if queue is None:
        monkeypatch.setenv("PATH", str(tmp_path / "none"))
    else:
        answer_of_squeue(queue, tmp_path, monkeypatch)
    task_file(tmp_path, "7_1", BEGIN, age_s=3600)
    assert last_tasks(tmp_path)["01"].end == end


def test_who_waits_in_the_queue_is_not_submitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_of_squeue("7_1 PENDING\n7_3 PENDING", tmp_path, monkeypatch)
    out = tmp_path / "out"
    submission = tasks.log_folder(out) / "001"
    submission.mkdir(parents=True)
    (submission / "1-4G.txt").write_text("01 02\n03\n04\n")
    (submission / "1-4G.job").write_text("7;cluster\n")
    task_file(out, "7_1", BEGIN + PREEMPTED)  # and put back
    task_file(out, "7_2", BEGIN.replace("01 02", "03") + PREEMPTED)
    write_status(out, image("04", "failed", reason="MemoryError: before"))
    plan_path(out).write_text(plan_text((f"sub-{x}", f"sub-{x}/anat/sub-{x}_T1w.nii.gz") for x in ("01", "03", "04")))
    cohort = read_cohort(out)
    assert [state.state for state in cohort.images] == ["queued", "stopped", "queued"]
    assert cohort.to_submit().keys() == {"03"}


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Return an output folder with an image in each state, and the plan of all."""
    reasons = {
        "01": image("01", "done"),
        "02": image("02", "skipped"),
        "03": image("03", "failed", step="conform", reason="/data/sub-03/anat/sub-03_T1w.nii.gz: it is constant"),
        "04": image("04", "failed", step="super_resolve", reason="MemoryError: a worker process was killed"),
        "05": image("05", "running"),
        "06": image("06", "waiting"),
        "07": image("07", "running"),
        "08": image("08", "running"),
        "09": image("09", "failed", step="conform", reason="/data/sub-09/anat/sub-09_T1w.nii.gz: it is constant"),
    }
    for status in reasons.values():
        write_status(tmp_path, status)
    ends = {"05": OOM, "06": TIME_LIMIT, "07": PREEMPTED, "08": "", "11": "moesr end: exit 2\n"}
    ends |= {"12": "moesr end: exit 1\n"}
    for label, text in ends.items():
        task_file(tmp_path, f"7_{int(label)}", f"moesr task: 8192M 90 min: {label}\n{text}")
    labels = [*reasons, "10", "11", "12"]
    plan_path(tmp_path).write_text(plan_text((f"sub-{x}", f"sub-{x}/anat/sub-{x}_T1w.nii.gz") for x in labels))
    return tmp_path


STATES = {
    **dict.fromkeys(("01", "02"), "done"),
    **dict.fromkeys(("03", "09", "11"), "failed"),
    **dict.fromkeys(("04", "05"), "out of memory"),
    "06": "out of time",
    **dict.fromkeys(("07", "12"), "stopped"),
    "08": "running",
    "10": "missing",
}


def test_each_image_has_its_state_and_who_has_to_run_again_is_known(cohort: Path) -> None:
    found = read_cohort(cohort)
    assert {state.participant_id.removeprefix("sub-"): state.state for state in found.images} == STATES
    assert found.to_submit().keys() == {"04", "05", "06", "07", "10", "12"}
    assert found.to_submit(faulty=True).keys() == {"03", "04", "05", "06", "07", "09", "10", "11", "12"}
    assert found.to_submit()["05"] == {"out of memory"}
    assert found.reasons()["failed", "conform: <path>: it is constant"] == 2


def test_the_command_counts_lists_and_its_exit_code_tells_whether_all_are_done(
    cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(cohort)]) == 1
    told = capsys.readouterr().out
    assert told.startswith(f"{cohort}: 2 of 12 images done, 12 participants\n")
    assert "2  done: 0.0 h in all, 1.0 min an image (longest 1.0), up to 2.0 GB\n" in told
    assert "the task was killed at 8 GB" in told and "6 participants to run again" in told
    assert main(["status", str(cohort), "--list"]) == 1
    assert capsys.readouterr().out.split() == ["04", "05", "06", "07", "10", "12"]
    for label in STATES:
        write_status(cohort, image(label, "done"))
    assert main(["status", str(cohort)]) == 0
    assert main(["status", str(cohort / "logs")]) == 2


def test_without_a_plan_participants_of_the_data_set_are_missing(tmp_path: Path) -> None:
    raw, output_dir = tmp_path / "raw data", tmp_path / "out"
    for label in ("01", "02"):
        (raw / f"sub-{label}").mkdir(parents=True)
    write_status(output_dir, image("01", "done"))
    description = source_fields(raw, output_dir)
    (output_dir / "dataset_description.json").write_text(json.dumps(description))
    assert {state.participant_id: state.state for state in read_cohort(output_dir).images} == {
        "sub-01": "done",
        "sub-02": "missing",
    }


def test_statuses_are_counted_without_reading_them(tmp_path: Path) -> None:
    assert not more_statuses_than(0, tmp_path)
    for label in ("01", "02"):
        write_status(tmp_path, image(label, "done"))
    assert more_statuses_than(1, tmp_path) and not more_statuses_than(2, tmp_path)
