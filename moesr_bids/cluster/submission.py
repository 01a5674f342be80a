"""Arrays of SLURM tasks, with memory and time from the plans of the images, and their scripts."""

from __future__ import annotations

import math
import shlex
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import attrs
import jinja2
import tomli_w
from attrs import frozen

from moesr_bids.bids.collect import RawImage
from moesr_bids.cluster.tasks import OUT_OF_MEMORY, OUT_OF_TIME, Task
from moesr_bids.config import Settings

MEMORY_GB = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Amounts of memory that tasks ask for; few, so that a cohort needs few arrays."""
SHARE_PERCENT = 75  # of a task's memory for the steps; the rest is for the run itself, and a reserve
TIME_SPARE, START_MINUTES, TIME_STEP_MINUTES = 2.0, 10, 30
TASK_MINUTES = 60  # participants share a task until it takes about this long
WARNING_SECONDS = 120  # before the time limit: workers end, statuses and reports are written
LARGEST_ARRAY = 1000  # SLURM's own default
# Options that the command line of each task sets itself.
_TOLD_BY_TASK = ("participant-label", "nprocs", "mem", "work-dir", "dry-run", "skip-bids-validation", "clean-workdir")


@frozen
class Load:
    """Needs of a participant: memory in GiB, and minutes."""

    label: str
    memory_gb: float
    minutes: float


@frozen
class TaskArray:
    """Array of tasks with the same memory and time.

    Attributes
    ----------
    memory_gb, minutes : int
        Memory in GiB and time limit in minutes of a task.
    tasks : tuple of tuple of str
        Labels of the participants of each task.

    """

    memory_gb: int
    minutes: int
    tasks: tuple[tuple[str, ...], ...]


@frozen(kw_only=True)
class Site:
    """Settings of a cluster.

    Attributes
    ----------
    command : str
        Command that starts ``moesr-bids``, such as a container's command line.
    scratch : str
        Folder on the node's own disk; the shell expands variables in it.
    limit : int
        Most tasks that run at once.
    chunk : int or None
        Participants per task; None for as many as take about `TASK_MINUTES`.
    sbatch : tuple of str
        Further options of ``sbatch``.

    """

    command: str = "moesr-bids"
    scratch: str = "${SLURM_TMPDIR:-${TMPDIR:-/tmp}}"
    limit: int = 100
    chunk: int | None = None
    sbatch: tuple[str, ...] = ()


def loads(images: Sequence[RawImage], settings: Settings, before: Mapping[str, tuple[Task, set[str]]]) -> list[Load]:
    """Estimate the needs of each participant; those who ran out of memory or time get more than before.

    Parameters
    ----------
    images : sequence of RawImage
        Images to process.
    settings : Settings
        Settings of the run; its ``mem_gb`` limits the windows of a network.
    before : Mapping
        By label, the last task of a participant and the states of its images.

    """
    from moesr_bids.bids.plan import plan_image  # it reads images, which --help need not

    memory: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for image in images:
        plan = plan_image(image, settings)
        memory[image.participant] = max(memory.get(image.participant, 0.0), plan.memory_gb)
        seconds[image.participant] = seconds.get(image.participant, 0.0) + plan.seconds
    found = []
    for label, amount in memory.items():
        needed, minutes = 100 * amount / SHARE_PERCENT, seconds[label] / 60
        if label in before:
            task, states = before[label]
            if OUT_OF_MEMORY in states:
                needed = max(needed, next((size for size in MEMORY_GB if size > task.memory_gb), MEMORY_GB[-1]))
            if OUT_OF_TIME in states:
                minutes = max(minutes, task.minutes)  # `arrays` doubles all times
        found.append(Load(label, needed, minutes))
    return found


def arrays(loads: Sequence[Load], *, chunk: int | None, largest: int = LARGEST_ARRAY) -> list[TaskArray]:
    """Put participants with similar needs into arrays.

    Parameters
    ----------
    loads : sequence of Load
        Needs of each participant.
    chunk : int or None
        Participants per task; None for as many as take about `TASK_MINUTES`.
    largest : int
        Most tasks of an array.

    """
    classes: dict[tuple[int, int], list[Load]] = {}
    for load in loads:
        size = next((size for size in MEMORY_GB if size >= load.memory_gb), math.ceil(load.memory_gb))
        # Otherwise participants of very different times would share a limit.
        length = math.ceil(math.log2(max(load.minutes, 1.0)))
        classes.setdefault((size, length), []).append(load)
    found = []
    for (size, _), members in sorted(classes.items()):
        longest = max(load.minutes for load in members)
        together = chunk or max(1, int(TASK_MINUTES // longest))
        limit = START_MINUTES + TIME_SPARE * longest * together
        minutes = TIME_STEP_MINUTES * math.ceil(limit / TIME_STEP_MINUTES)
        labels = sorted(load.label for load in members)
        tasks = [tuple(labels[start : start + together]) for start in range(0, len(labels), together)]
        for start in range(0, len(tasks), largest):
            found.append(TaskArray(size, minutes, tuple(tasks[start : start + largest])))
    return found


def largest_array() -> int:
    """Return how many tasks an array may have, from SLURM's configuration if it can be read."""
    try:
        told = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, check=True, timeout=30
        ).stdout
        line = next(line for line in told.splitlines() if line.startswith("MaxArraySize"))
        return max(1, int(line.partition("=")[2]) - 1)
    except (OSError, subprocess.SubprocessError, StopIteration, ValueError):
        return LARGEST_ARRAY


def write_submission(folder: Path, arrays: Sequence[TaskArray], settings: Settings, site: Site) -> list[Path]:
    """Write the scripts of a submission.

    Parameters
    ----------
    folder : pathlib.Path
        New folder for the scripts.
    arrays : sequence of TaskArray
        Arrays to submit.
    settings : Settings
        Settings of the run.
    site : Site
        Settings of the cluster.

    Returns
    -------
    list of pathlib.Path
        Scripts of the arrays; ``group.sbatch`` and ``submit.sh`` are written beside them.

    """
    folder.mkdir(parents=True)
    gpu = settings.sr.device == "cuda"
    (folder / "options.toml").write_text(options_text(settings), encoding="utf-8")
    common = {
        "bids_dir": str(settings.bids_dir),
        "output_dir": str(settings.output_dir),
        "config": str(folder / "options.toml"),
        "logs": str(folder.parent),
        "command": site.command,
        "sbatch": site.sbatch,
        "gpu": gpu,
    }
    scripts = []
    for number, array in enumerate(arrays, start=1):
        name = f"{number}-{array.memory_gb}G"
        (folder / f"{name}.txt").write_text("".join(" ".join(task) + "\n" for task in array.tasks), encoding="utf-8")
        scripts.append(folder / f"{name}.sbatch")
        text = _template("task.sbatch.j2").render(
            **common,
            tasks=len(array.tasks),
            participants=max(map(len, array.tasks)),
            limit=site.limit,
            cpus=settings.nprocs,
            memory_gb=array.memory_gb,
            share=SHARE_PERCENT,
            minutes=array.minutes,
            time=f"{array.minutes // 60:02d}:{array.minutes % 60:02d}:00",
            warning_s=WARNING_SECONDS,
            list=str(folder / f"{name}.txt"),
            scratch=site.scratch,
        )
        scripts[-1].write_text(text, encoding="utf-8")
    (folder / "group.sbatch").write_text(_template("group.sbatch.j2").render(**common), encoding="utf-8")
    submit = _template("submit.sh.j2").render(folder=str(folder), scripts=[script.stem for script in scripts])
    (folder / "submit.sh").write_text(submit, encoding="utf-8")
    return scripts


def options_text(settings: Settings) -> str:
    """Return the options of every task as TOML, without those that its command line sets."""
    device = "cuda" if settings.sr.device == "cuda" else "cpu"
    plain = attrs.evolve(settings, sr=attrs.evolve(settings.sr, device=device))
    table = tomllib.loads(plain.to_toml())
    return tomli_w.dumps({name: value for name, value in table.items() if name not in _TOLD_BY_TASK})


def container_command(image: Path, settings: Settings, *, binds: Sequence[str] = (), scratch: str) -> str:
    """Return the command that starts ``moesr-bids`` in an Apptainer image, with folders bound at their own paths."""
    folders = [f"{settings.bids_dir}:{settings.bids_dir}:ro", str(settings.output_dir), *binds]
    others = (
        settings.gradient_coefficients,
        settings.bids_filter_file,
        settings.bids_database_dir,
        settings.export_raw,
    )
    for path in (*settings.derivatives, *others):
        folders += [str(path)] if path else []
    nv = " --nv" if settings.sr.device == "cuda" else ""
    told = " ".join(f"--bind {shlex.quote(folder)}" for folder in folders)
    return f'apptainer run --cleanenv{nv} {told} --bind "{scratch}" {shlex.quote(str(image))}'


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined, autoescape=False
    )
    environment.filters["quote"] = shlex.quote
    return environment.from_string((files("moesr_bids") / "data" / "slurm" / name).read_text(encoding="utf-8"))
