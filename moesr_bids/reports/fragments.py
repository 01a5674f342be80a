"""HTML fragments made from recorded facts: summary, times, errors, methods text. No image is opened here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
from markdown_it import MarkdownIt

from moesr_bids.bids.record import Record, Stage, Step
from moesr_bids.bids.schema import RecordError
from moesr_bids.bids.steps import SUPER_RESOLUTION, stage_words, step_words
from moesr_bids.reports.derivatives import ImageRecord, crash_file_of, crash_files
from moesr_bids.reports.templates import render
from moesr_bids.reports.values import NOT_AVAILABLE, duration, number, stated
from moesr_bids.reports.verdict import reasons, verdict

CRASH_CHARACTERS = 100_000

_STATE_WORDS = {
    "done": "done",
    "skipped": "done (by an earlier run, with the same settings)",
    "failed": "failed",
    "waiting": "not begun: the run goes on, or was stopped; start it again in that case",
    "running": "not finished: the run goes on, or was stopped; start it again in that case",
    "apart": "not made: its scans do not fit together",
    "missing": "the main output is missing, run the image again",
}


def state_words(record: ImageRecord) -> str:
    """Return the state of an image in words, with step and reason if it failed."""
    words = _STATE_WORDS.get(record.state, record.state)
    if record.state in ("failed", "apart") and record.status:
        words += f" at step {step_words(record.status.step)}: {record.status.reason}"
    return words


def warnings_of(record: ImageRecord) -> list[str]:
    """Return the recorded warnings of an image, and sentences about files that could not be read."""
    return [*record.problems, *(record.moesr.warnings if record.moesr else ())]


def summary_html(record: ImageRecord) -> str:
    """Return the summary of one image as an HTML fragment.

    Parameters
    ----------
    record : ImageRecord
        Facts of the image. Without an output, the fragment says what happened instead.

    """
    return render(
        "summary.html.j2",
        key=record.key,
        source=record.status.image if record.status else record.key,
        state=record.state,
        words=state_words(record),
        warnings=warnings_of(record),
        verdict=verdict(record),
        reasons=reasons(record) if record.complete else [],
        stale=record.moesr is not None and not record.complete,
        record=record,
        settings=record.moesr and record.moesr.settings_hash,
    )


def _bar(name: str, part: Step | Stage, *, stage: bool = False) -> dict[str, Any]:
    return {
        "name": name,
        "stage": stage,
        "seconds": part.seconds or 0.0,
        "time": duration(part.seconds),
        "memory": number(part.peak_memory_gb, 3),
    }


def times_html(record: Record) -> str:
    """Return time and peak memory per step, and of super-resolution per stage, as an HTML table with bars."""
    rows = []
    for step in record.steps:
        rows.append(_bar(step_words(step.step), step))
        if step.step == SUPER_RESOLUTION:
            rows += [_bar(stage_words(stage.stage), stage, stage=True) for stage in record.stages]
    longest = max((row["seconds"] for row in rows), default=0.0)
    for row in rows:
        row["share"] = round(100 * row["seconds"] / longest, 1) if longest else 0.0
    return render(
        "times.html.j2",
        rows=rows,
        total=duration(record.seconds),
        memory=number(record.peak_memory_gb, 3),
    )


def _crash_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"{path.name} could not be read: {error}"
    if len(text) > CRASH_CHARACTERS:
        return f"[only the last {CRASH_CHARACTERS} characters of {path.name} are shown]\n{text[-CRASH_CHARACTERS:]}"
    return text


def errors_html(out_dir: Path, participant: str, records: Sequence[ImageRecord]) -> str:
    """Return the failures of a participant as HTML: status and text of the crash file of each image, escaped.

    Parameters
    ----------
    out_dir : pathlib.Path
        Output folder of the app.
    participant : str
        As in ``sub-01``.
    records : sequence of ImageRecord
        All images of the participant.

    """
    told: set[Path] = set()
    failures = []
    for record in records:
        if record.complete or record.state == "apart":
            continue
        problems = record.problems
        try:
            crash = crash_file_of(out_dir, record)
        except RecordError as error:
            crash, problems = None, (*problems, str(error))
        if crash is not None:
            told.add(crash.resolve())
        status = attrs.asdict(record.status) if record.status else {}
        failures.append(
            {
                "key": record.key,
                "words": state_words(record),
                "status": {name: text for name, value in status.items() if (text := stated(value)) != NOT_AVAILABLE},
                "problems": problems,
                "failed": record.state == "failed",
                "crash_name": crash.name if crash else None,
                "crash_text": _crash_text(crash) if crash else "",
            }
        )
    others = [
        {"name": path.name, "text": _crash_text(path)}
        for path in crash_files(out_dir, participant)
        if path.resolve() not in told
    ]
    return render("errors.html.j2", failures=failures, others=others)


def methods_html(out_dir: Path, participant: str) -> str:
    """Return ``CITATION.md`` of a participant as HTML; raw HTML in it is escaped and images are not loaded."""
    path = out_dir / "logs" / participant / "CITATION.md"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return f"<p>No methods text: logs/{participant}/CITATION.md is not there.</p>"
    text = re.sub(r"\A# Methods\n", "", text)  # the section has that heading already
    html = MarkdownIt("commonmark", {"html": False}).disable("image").render(text)
    # The page uses the first two levels of headings itself.
    html = re.sub(r"(</?h)([1-4])>", lambda found: f"{found[1]}{int(found[2]) + 2}>", html)
    html = f"<details><summary>Text for your paper, with its references</summary>{html}</details>"
    return html.encode("ascii", "xmlcharrefreplace").decode("ascii")
