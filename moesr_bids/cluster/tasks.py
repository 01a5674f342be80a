"""Output files of SLURM tasks: the participants of a task, and how it ended.

No accounting is needed: the scripts of ``moesr slurm`` print what they begin and how it ended, and SLURM writes into
the same file when it ends a task itself.
"""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

from attrs import evolve, frozen

QUEUED, RUNNING, ENDED = "queued", "running", "ended"
OUT_OF_MEMORY, OUT_OF_TIME, STOPPED = "out of memory", "out of time", "stopped"

_BEGIN = re.compile(r"^moesr task: (\d+)M (\d+) min: (.*)$", re.MULTILINE)
_END = re.compile(r"^moesr end: (\w+) (\d+)$", re.MULTILINE)
# Messages of SLURM; the first that is found counts.
_WORDS = (
    (re.compile(r"oom[-_]kill|exceeded (?:job|step)? ?memory limit|OUT_OF_MEMORY", re.IGNORECASE), OUT_OF_MEMORY),
    (re.compile(r"DUE TO TIME LIMIT"), OUT_OF_TIME),
    (re.compile(r"DUE TO PREEMPTION|DUE TO JOB REQUEUE|DUE TO NODE FAILURE|CANCELLED AT"), STOPPED),
)
_READ_BYTES = 1 << 16
_SILENT_S = 60.0  # a task that began a moment ago may not be in the queue's answer


@frozen
class Task:
    """A task of an array, from its output file.

    Attributes
    ----------
    job : str
        ``<array job>_<index>``.
    labels : tuple of str
        Participants, without ``sub-``.
    memory_gb, minutes : float, int
        Memory in GiB and time limit that the task asked for.
    end : str
        `QUEUED`, `RUNNING`, `ENDED`, `OUT_OF_MEMORY`, `OUT_OF_TIME` or `STOPPED`.
    code : int or None
        Exit code of ``moesr-bids``, if it ended by itself.
    written : float
        Time of the last change of the file, seconds since the epoch.

    """

    job: str
    labels: tuple[str, ...]
    memory_gb: float
    minutes: int
    end: str
    code: int | None
    written: float


def log_folder(output_dir: Path) -> Path:
    """Return the folder of SLURM's scripts and output files."""
    return output_dir / "logs" / "slurm"


def read_task(path: Path) -> Task | None:
    """Read the output file of a task; None if it has not begun. After a requeue the last try counts."""
    begins = list(_BEGIN.finditer(text := _text(path)))
    if not begins:
        return None
    memory_mb, minutes, labels = begins[-1].groups()
    text = text[begins[-1].end() :]
    told = _END.search(text)
    end = next((end for words, end in _WORDS if words.search(text)), ENDED if told else RUNNING)
    if told and end in (ENDED, STOPPED):
        end = {"time": OUT_OF_TIME, "term": STOPPED}.get(told[1], end)
    return Task(
        job=path.stem,
        labels=tuple(labels.split()),
        memory_gb=int(memory_mb) / 1024,
        minutes=int(minutes),
        end=end,
        code=int(told[2]) if told else None,
        written=path.stat().st_mtime,
    )


def _text(path: Path) -> str:
    """Return the first 64 kB of a file, and its last 64 kB; lines of steps between them are skipped."""
    with path.open("rb") as stream:
        size = path.stat().st_size
        head = stream.read(_READ_BYTES)
        if size > 2 * _READ_BYTES:
            stream.seek(size - _READ_BYTES)
        return (head + stream.read()).decode("utf-8", errors="replace")


def last_tasks(output_dir: Path) -> dict[str, Task]:
    """Return the last task of each participant, by label.

    SLURM's queue is asked if possible. A task that waits there, perhaps again, is queued. A task that has not said that
    it ended, and is not in the queue, is stopped.
    """
    tasks = [task for path in log_folder(output_dir).glob("*_*.out") if (task := read_task(path))]
    submitted = submitted_tasks(output_dir)
    queue = _queue() if tasks or submitted else None
    found: dict[str, Task] = {}
    for task in sorted(tasks, key=lambda task: task.written):
        gone = queue is not None and task.job not in queue and time.time() - task.written > _SILENT_S
        if task.end == RUNNING and gone:
            task = evolve(task, end=STOPPED)
        found |= dict.fromkeys(task.labels, task)
    for job, labels in submitted.items():
        if (queue or {}).get(job) == "PENDING":
            found |= dict.fromkeys(labels, Task(job, labels, 0.0, 0, QUEUED, None, time.time()))
    return found


def submitted_tasks(output_dir: Path) -> dict[str, tuple[str, ...]]:
    """Return the participants of each task that ``submit.sh`` submitted, by ``<array job>_<index>``."""
    found: dict[str, tuple[str, ...]] = {}
    for path in log_folder(output_dir).glob("*/*.job"):
        job = path.read_text(encoding="utf-8").strip().partition(";")[0]  # a name of the cluster may follow
        lines = path.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
        found |= {f"{job}_{index}": tuple(line.split()) for index, line in enumerate(lines, start=1)}
    return found


def _queue() -> dict[str, str] | None:
    """Return the state of each task in SLURM's queue; None if it cannot be asked."""
    command = ["squeue", "--noheader", "--array", "--format=%i %T"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(line.split() for line in asked.stdout.splitlines() if len(line.split()) == 2)
