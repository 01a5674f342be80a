"""Progress of a cohort: a state and a reason for every image, and who has to be run again."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from attrs import frozen

from moesr_bids.bids.source import raw_folder
from moesr_bids.bids.status import ImageStatus, read_statuses
from moesr_bids.cluster.tasks import (
    ENDED,
    OUT_OF_MEMORY,
    OUT_OF_TIME,
    QUEUED,
    RUNNING,
    STOPPED,
    Task,
    last_tasks,
    log_folder,
)

DONE, FAILED, MISSING = "done", "failed", "missing"
STATES = (DONE, RUNNING, QUEUED, FAILED, OUT_OF_MEMORY, OUT_OF_TIME, STOPPED, MISSING)
PLAN_COLUMNS = ("participant_id", "image")
_MEMORY = re.compile(r"MemoryError|out of memory|too little (?:memory|of the GPU's memory)", re.IGNORECASE)
_REFUSED = 2  # exit code of moesr-bids for options and input that it refuses


@frozen
class ImageState:
    """State of an image.

    Attributes
    ----------
    participant_id : str
        With ``sub-``.
    image : str
        Path below the data set; ``n/a`` if only the participant is known.
    state : str
        One of `STATES`.
    reason : str
        Why the image is not done, in words; empty if it is done, runs or is queued.
    seconds, peak_memory_gb : float or None
        Processing time in seconds and largest peak memory in GiB, if known.

    """

    participant_id: str
    image: str
    state: str
    reason: str = ""
    seconds: float | None = None
    peak_memory_gb: float | None = None


@frozen
class Cohort:
    """States of all images, and the last task of each participant, by label."""

    images: tuple[ImageState, ...]
    tasks: Mapping[str, Task]

    def counts(self) -> Counter[str]:
        """Return the number of images in each state."""
        return Counter(image.state for image in self.images)

    def reasons(self) -> Counter[tuple[str, str]]:
        """Return how often each state and reason occurs; names of images and paths are taken out of the reasons."""
        told = [image for image in self.images if image.reason]
        return Counter((image.state, _general(image.reason)) for image in told)

    def to_submit(self, *, faulty: bool = False) -> dict[str, set[str]]:
        """Return the labels of the participants to run again, with the states of their images.

        Parameters
        ----------
        faulty : bool
            Include those whose images failed; they are likely to fail again.

        """
        leave = {DONE, RUNNING, QUEUED, *(() if faulty else (FAILED,))}
        found: dict[str, set[str]] = {}
        for image in self.images:
            if image.state not in leave:
                found.setdefault(image.participant_id.removeprefix("sub-"), set()).add(image.state)
        return found


def read_cohort(output_dir: Path, bids_dir: Path | None = None) -> Cohort:
    """Read the state of a cohort from its output folder.

    Images in the plan of ``moesr slurm`` without a status or a task are missing. Without such a plan, participants of
    the raw data set without a status are missing.

    Parameters
    ----------
    output_dir : pathlib.Path
        Output folder.
    bids_dir : pathlib.Path, optional
        Raw data set; by default the one that the output folder names, if it exists.

    """
    tasks = last_tasks(output_dir)
    statuses = read_statuses(output_dir)
    states = [_state(status, tasks.get(status.participant_id.removeprefix("sub-"))) for status in statuses]
    seen = {(state.participant_id, state.image) for state in states}
    whole = {state.participant_id for state in states if state.image == "n/a"}
    expected = read_plan(output_dir) or _participants(bids_dir or raw_folder(output_dir), seen)
    for participant, image in expected:
        if (participant, image) not in seen and participant not in whole:
            states.append(_unseen(participant, image, tasks.get(participant.removeprefix("sub-"))))
    return Cohort(tuple(sorted(states, key=lambda state: (state.participant_id, state.image))), tasks)


def _state(status: ImageStatus, task: Task | None) -> ImageState:
    state, reason = FAILED, f"{status.step}: {status.reason}"
    if status.state in ("done", "skipped", "apart"):
        state, reason = DONE, ""
    elif task is not None and task.end == QUEUED:
        state, reason = QUEUED, ""
    elif status.state == "failed" and _MEMORY.search(status.reason):
        state = OUT_OF_MEMORY
    elif status.state in ("running", "waiting") or status.step == "run":
        state, reason = _unfinished(task)
        if status.step == "run" and task is None:
            state, reason = STOPPED, status.reason
    return ImageState(status.participant_id, status.image, state, reason, status.seconds, status.peak_memory_gb)


def _unfinished(task: Task | None) -> tuple[str, str]:
    """Return state and reason of an image that was begun or waits, from the end of its task."""
    if task is None or task.end in (RUNNING, QUEUED):
        return (QUEUED if task and task.end == QUEUED else RUNNING), ""
    if task.end == OUT_OF_MEMORY:
        return OUT_OF_MEMORY, f"the task was killed at {task.memory_gb:g} GB"
    if task.end == OUT_OF_TIME:
        return OUT_OF_TIME, f"the task was ended at its time limit, {task.minutes} min as submitted"
    if task.end == ENDED:
        return STOPPED, f"its task ended with code {task.code} and left it"
    return STOPPED, "the task was killed, pre-empted or cancelled"


def _unseen(participant: str, image: str, task: Task | None) -> ImageState:
    if task is None:
        return ImageState(participant, image, MISSING, "not begun")
    if task.code == _REFUSED:
        return ImageState(participant, image, FAILED, f"moesr-bids refused to start; see {task.job}.out")
    state, reason = _unfinished(task)
    return ImageState(participant, image, state, reason)


def _general(reason: str) -> str:
    """Return a reason without paths and participants, so that the same reasons are counted together."""
    text = re.sub(r"(?:/[^\s:,;]+)+", "<path>", reason)
    return re.sub(r"\bsub-[0-9A-Za-z]+\S*", "<image>", text)


def plan_path(output_dir: Path) -> Path:
    """Return the path of the table of submitted images."""
    return log_folder(output_dir) / "plan.tsv"


def read_plan(output_dir: Path) -> list[tuple[str, str]]:
    """Return participant and image of each row of the plan; empty without one."""
    path = plan_path(output_dir)
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return [(row["participant_id"], row["image"]) for row in csv.DictReader(stream, delimiter="\t")]


def plan_text(rows: Iterable[tuple[str, str]]) -> str:
    """Return the table of submitted images as text."""
    return "".join("\t".join(row) + "\n" for row in (PLAN_COLUMNS, *sorted(set(rows))))


def _participants(bids_dir: Path | None, seen: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    known = {participant for participant, _ in seen}
    if bids_dir is None or not bids_dir.is_dir():
        return []
    return [(path.name, "n/a") for path in bids_dir.glob("sub-*") if path.name not in known and path.is_dir()]
