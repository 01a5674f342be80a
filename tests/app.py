"""Run the app as a user does, for the end-to-end tests."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from moesr_bids.bids.collect import collect_images
from moesr_bids.bids.joining import with_joined
from moesr_bids.bids.plan import ImagePlan, plan_image
from moesr_bids.bids.sessions import with_references
from moesr_bids.cli.main import main
from moesr_bids.cli.parser import parse_settings

MODULE = [sys.executable, "-m", "moesr_bids.cli.main"]


def run_app(bids_dir: Path, out_dir: Path, *arguments: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run the participant level in a process of its own, on one core unless told otherwise: tests run side by side."""
    if "--nprocs" not in arguments:
        arguments = (*arguments, "--nprocs", "1")
    command = [*MODULE, str(bids_dir), str(out_dir), "participant", "-w", str(work_of(out_dir)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)


def run_here(bids_dir: Path, out_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the participant level in this process: for what runs no step, such as a dry run or a refusal."""
    command = [str(bids_dir), str(out_dir), "participant", "-w", str(work_of(out_dir)), *arguments]
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main(command)
        except SystemExit as end:  # of the parser
            code = end.code if isinstance(end.code, int) else 1
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def rerun(sidecar: Path) -> subprocess.CompletedProcess[str]:
    """Run ``moesr rerun`` in a process of its own: one that has run ITK passes its threads on to its workers."""
    command = [sys.executable, "-m", "moesr_bids.cli.moesr", "rerun", str(sidecar)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def work_of(out_dir: Path) -> Path:
    """Return the work folder that goes with an output folder."""
    return out_dir.with_name(out_dir.name + "-work")


def statuses(out_dir: Path) -> dict[str, dict[str, str]]:
    """Read ``logs/status.tsv``: image stem (or participant) to row."""
    with (out_dir / "logs" / "status.tsv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    return {
        row["participant_id"] if row["image"] == "n/a" else Path(row["image"]).name.split(".")[0]: row for row in rows
    }


def validation_errors(folder: Path) -> list[str]:
    """Run the schema validator on a data set and return its errors."""
    validator = Path(sys.executable).with_name("bids-validator-deno")
    done = subprocess.run(
        [str(validator), str(folder), "--format", "json", "--ignoreWarnings"],
        capture_output=True,
        text=True,
        check=False,
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [f"{issue['code']} {issue.get('location')}" for issue in issues if issue["severity"] == "error"]


def files_below(folder: Path) -> set[str]:
    """Return the relative paths of all files, hidden ones included."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def outputs_of(folder: Path) -> list[str]:
    """List all files below a folder, with times, users and process numbers in their names as ``*``."""
    named = re.compile(r"(logs/run-)[^/]+(\.toml|\.log)$|(crash-)\d+-\d+-[^-]+-(.+)-[0-9a-f-]{36}(\.txt)$")
    return sorted(
        named.sub(lambda found: "*".join(part for part in found.groups() if part), name) for name in files_below(folder)
    )


_ROOT_FILES = (
    *(".bidsignore", "dataset_description.json", "descriptions.json", "descriptions.tsv"),
    *("desc-moesr_dseg.json", "desc-moesr_dseg.tsv"),
    *("logs/CITATION.md", "logs/run-*.log", "logs/run-*.toml", "logs/status.json", "logs/status.tsv"),
)
_FIGURES = ("bias.png", "brainmask.png", "departure.png", "registration.html", "residual.png", "slider.html")
_FIGURES += ("spectrum.png", "structures.png", "zooms.html")


def plans_of(bids_dir: Path, out_dir: Path, *arguments: str) -> list[ImagePlan]:
    """Plan the images of a run with these options."""
    settings = parse_settings([str(bids_dir), str(out_dir), "participant", *arguments])
    images, _ = with_joined(with_references(collect_images(settings)), settings.join)
    return [plan_image(image, settings) for image in images if not image.problem]


def image_files(plan: ImagePlan) -> list[str]:
    """List the files that the record of an image names, sorted: derivatives by the table, sidecars, figures."""
    optional = {
        "uncertainty.png": plan.card.uncertainty,
        "experts.png": bool(plan.card.experts) and not plan.joined,
        "gradunwarp.png": plan.gradients.corrects and not plan.joined,
        "coregistration.html": plan.reference is not None,
        "scans.png": plan.joined,
    }
    of_one_scan = ("residual.png", "spectrum.png") if plan.joined else ()
    figures = [name for name in _FIGURES if name not in of_one_scan]
    figures += [name for name, drawn in optional.items() if drawn]
    return sorted(
        [path for output in plan.outputs for path in (output.path, output.sidecar_path)]
        + [plan.figure_path(*_parted(name)) for name in figures]
    )


def expected_files(
    plans: Iterable[ImagePlan], *, crashed: Mapping[str, str] | None = None, unnamed: Iterable[str] = ()
) -> list[str]:
    """List all files of an output folder, as `outputs_of` names them.

    Parameters
    ----------
    plans : iterable of ImagePlan
        Images that went through.
    crashed : Mapping, optional
        Participant label to the step in which its T1w failed.
    unnamed : iterable of str
        Labels of participants of whom not even an image could be used; ``+`` after those with a file.

    """
    files = set(_ROOT_FILES)
    for plan in plans:
        participant = f"sub-{plan.image.participant}"
        files |= {*image_files(plan), f"{participant}.html", f"logs/{participant}/CITATION.md"}
        files.add(f"logs/status/{plan.image.stem}.json")
        files |= {plan.figure_path(name, ".html") for name in ("numbers", "summary", "times")}
    for label, step in (crashed or {}).items():
        files |= {f"logs/sub-{label}/CITATION.md", f"logs/sub-{label}/crash-*{step}*.txt"}
    for label in (*(crashed or {}), *(label.removesuffix("+") for label in unnamed if label.endswith("+"))):
        files |= {f"sub-{label}.html", f"logs/status/sub-{label}_T1w.json"}
        files.add(f"sub-{label}/figures/sub-{label}_desc-summary_T1w.html")
    for label in (label for label in unnamed if not label.endswith("+")):
        files |= {f"sub-{label}.html", f"logs/status/sub-{label}.json"}
    return sorted(files)


def _parted(name: str) -> tuple[str, str]:
    stem, dot, extension = name.partition(".")
    return stem, dot + extension


def node_of(workflow: Any, name: str) -> Any:
    """Return a node of an image's workflow, wherever in it."""
    return workflow.get_node(next(full for full in workflow.list_node_names() if full.rpartition(".")[2] == name))


def node_folder(out_dir: Path, name: str) -> Path | None:
    """Return the folder in which a node of the only image works, once it is there."""
    return next(work_of(out_dir).glob(f"moesr_wf/sub_*_wf/sub_*_wf/**/{name}"), None)
