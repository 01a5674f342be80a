"""Running the app as a user does, for the end-to-end tests."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

MODULE = [sys.executable, "-m", "moesr_bids.cli.main"]


def run_app(bids_dir: Path, out_dir: Path, *arguments: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run the participant level in a process of its own, on one core unless told otherwise: tests run side by side."""
    if "--nprocs" not in arguments:
        arguments = (*arguments, "--nprocs", "1")
    command = [*MODULE, str(bids_dir), str(out_dir), "participant", "-w", str(work_of(out_dir)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)


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
    named = re.compile(r"(logs/run-)[^/]+(\.toml)$|(crash-)\d+-\d+-[^-]+-(.+)-[0-9a-f-]{36}(\.txt)$")
    return sorted(
        named.sub(lambda found: "*".join(part for part in found.groups() if part), name) for name in files_below(folder)
    )


def expected_outputs(name: str) -> list[str]:
    """Read ``tests/expected/<name>.txt``: the outputs of a run, a line each."""
    return (Path(__file__).with_name("expected") / f"{name}.txt").read_text(encoding="utf-8").splitlines()
