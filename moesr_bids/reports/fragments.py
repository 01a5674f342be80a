"""HTML fragments made from recorded facts: summary, times, errors, methods text. No image is opened here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
from markdown_it import MarkdownIt

from moesr_bids.bids.record import Record, SRRecord, Stage, Step
from moesr_bids.bids.schema import RecordError
from moesr_bids.reports.derivatives import ImageRecord, crash_file_of, crash_files
from moesr_bids.reports.metrics import quality_rows
from moesr_bids.reports.templates import render
from moesr_bids.reports.values import NOT_AVAILABLE, duration, number, percent, psf, stated, triple
from moesr_bids.reports.verdict import reasons, verdict

CRASH_CHARACTERS = 100_000

_STATE_WORDS = {
    "done": "done",
    "skipped": "done (by an earlier run, with the same settings)",
    "failed": "failed",
    "waiting": "not begun: the run goes on, or was stopped; start it again in that case",
    "running": "not finished: the run goes on, or was stopped; start it again in that case",
    "missing": "the main output is missing, run the image again",
}


def _registration(record: Record) -> str:
    parts = [f"{template}: {number(facts.dice, 3)}" for template, facts in record.registration.items()]
    return "; ".join(parts) or NOT_AVAILABLE


def _coregistration(record: Record) -> str:
    facts = record.coregistration
    if facts is None:
        return "this image is the reference, or alone in its session"
    return (
        f"to {facts.reference}: moved by {number(facts.translation_mm, 3)} mm and "
        f"{number(facts.rotation_degrees, 3)} degrees, Dice coefficient of the masks {number(facts.dice, 3)}"
    )


def _gradients(record: Record) -> str:
    facts = record.gradient_nonlinearity
    if facts.action == "none":
        return f"not corrected here: {facts.reason}"
    where = "through the slices" if facts.action == "through-plane" else "in three dimensions"
    return (
        f"corrected {where}, by up to {number(facts.largest_displacement_mm, 3)} mm, with {stated(facts.file)}: "
        f"{facts.reason}"
    )


def _finest(record: Record) -> str:
    sizes = record.image_quality.effective_resolution_mm if record.image_quality else None
    return (
        f"input {triple(sizes and sizes.input)} mm, output {triple(sizes and sizes.output)} mm (left-right, "
        "back-front, foot-head); what is finer than the input was acquired is inferred"
    )


def _sampling_words(record: Record) -> str:
    how = record.sampling
    if how and how.estimate == "sample":
        return (
            f"one sample; its detail was amplified by {number(how.detail_gain, 3)} on average, and "
            f"{percent(how.detail_noise_share)} of the energy of its detail is drawn noise"
        )
    if how and how.samples:
        return f"mean of {how.samples} samples"
    flips = how.flips if how else record.flips
    return NOT_AVAILABLE if flips is None else f"mean over {flips} flips" if flips > 1 else "one evaluation"


def uncertainty_words(record: SRRecord) -> str:
    """Say how large the error is expected to be, and on what that was checked."""
    if record.uncertainty is None:
        return "this model states none"
    calibration = record.uncertainty_calibration
    contrasts = " and ".join(calibration.contrasts if calibration else ()) or "no"
    brightest = f"median standard deviation in the brain {number(record.uncertainty.median_percent, 3)} %"
    text = f"{brightest} of the brightest, calibrated on {contrasts} scans"
    coverage = calibration.coverage if calibration else {}
    if not coverage and record.sampling and record.sampling.samples:
        return f"{text} for the mean that the model estimates; not checked for its samples"
    if not coverage:
        return f"{text}; not checked on others of this contrast"
    levels = sorted(coverage, key=int)
    held = ", ".join(percent(coverage[level]) for level in levels)
    return f"{text}; on others of this contrast the {', '.join(levels)} % intervals held {held} of the voxels"


def _consistency(record: Record) -> list[tuple[str, str]]:
    """Residual of the model's own image, which judges it, the way of the projection, and the residual of the output."""
    after, model = record.data_consistency, record.data_consistency.model
    return [
        (
            "Data consistency of the model's own image: residual in noise units",
            f"root mean square {number(model.residual_std, 3)} (noise alone would give 1); "
            f"{percent(model.fraction_beyond3)} beyond 3 (noise alone: 0.27 %); averaged over 5 mm, in units of what "
            f"noise leaves: {number(model.structure_std, 3)}, at most {number(model.structure_largest, 3)} "
            f"at {_place(model.structure_place)}",
        ),
        ("Projection onto the scan", _projection(record)),
        (
            "Data consistency of the output, which the projection forces",
            f"root mean square {number(after.residual_std, 3)} of what the output grid can hold; "
            f"{percent(after.fraction_beyond3)} beyond 3",
        ),
    ]


def _projection(record: Record) -> str:
    """How far the projection moved the image; where it did not, no place is the farthest."""
    if record.lambda_ == 0:
        return "did not change the image (lambda 0)"
    move = record.data_consistency.projection
    predicted = (
        "" if move.move_predicted_std is None else f", {number(move.move_predicted_std, 3)} predicted deviations"
    )
    return (
        f"moved the image by {number(move.move_noise_std, 3)} noise units{predicted} (root mean square); lambda "
        f"{number(record.lambda_, 3)}; farthest at {_place(move.largest_move_place)}"
    )


def _place(place: tuple[float, float, float]) -> str:
    return f"({', '.join(f'{value:.0f}' for value in place)}) mm"


def summary_rows(record: Record) -> list[tuple[str, str]]:
    """Return what a reader should know of one image, as pairs of name and value."""
    consistency, mask, bias = record.data_consistency, record.brain_mask, record.bias_field
    return [
        ("Input voxels", f"{triple(record.input_zooms)} mm, {triple(record.input_shape)} voxels"),
        ("Output voxels", f"{triple(record.output_zooms)} mm, {triple(record.output_shape)} voxels"),
        ("Point-spread function per axis", psf(record.psf)),
        ("Why this function", stated(record.psf_reason)),
        ("Model", f"{record.model} (weights {record.weights_sha256[:12]})"),
        ("Estimate", _sampling_words(record)),
        ("Noise", f"{number(record.noise_percent, 3)} % of the brain's brightest (99th percentile)"),
        *_consistency(record),
        (
            "Input detail finer than the output grid",
            f"root mean square {number(consistency.beyond_grid_std, 3)} noise units, kept in the residual map",
        ),
        ("Finest detail that is as strong as the input's noise", _finest(record)),
        ("Uncertainty", uncertainty_words(record)),
        (
            "Brain mask",
            f"{number(mask.volume_ml, 4)} ml, Dice coefficient with the template {number(mask.dice, 3)}, {mask.method}",
        ),
        ("Registration, Dice coefficient of the masks", _registration(record)),
        ("Alignment to the reference of the session", _coregistration(record)),
        ("Gradient nonlinearity", _gradients(record)),
        (
            "Bias field in the brain, 1st to 99th percentile",
            f"{number(bias.range_percent[0], 3)} to {number(bias.range_percent[1], 3)} %",
        ),
        ("Device", f"{record.device}, {record.precision}, seed {record.random_seed}"),
        ("Version", record.version),
        ("Software", ", ".join(f"{name} {v}" for name, v in record.software.items()) or NOT_AVAILABLE),
        ("Time and peak memory", f"{duration(record.seconds)}, {number(record.peak_memory_gb, 3)} GiB"),
    ]


def state_words(record: ImageRecord) -> str:
    """Return the state of an image in words, with step and reason where it failed."""
    words = _STATE_WORDS.get(record.state, record.state)
    if record.state == "failed" and record.status:
        words += f" at step {record.status.step}: {record.status.reason}"
    return words


def warnings_of(record: ImageRecord) -> list[str]:
    """Return the warnings recorded for an image and what of its record could not be read."""
    return [*record.problems, *(record.moesr.warnings if record.moesr else ())]


def summary_html(record: ImageRecord) -> str:
    """Return the summary of one image as an HTML fragment.

    Parameters
    ----------
    record : ImageRecord
        Facts of the image. Without an output the fragment says what happened instead.

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


def numbers_html(record: Record) -> str:
    """Return figures and image quality metrics of one image as HTML tables."""
    return render("numbers.html.j2", rows=summary_rows(record), quality=quality_rows(record.image_quality))


def _bar(name: str, part: Step | Stage, parent: str = "") -> dict[str, Any]:
    return {
        "name": name,
        "parent": parent,
        "seconds": part.seconds or 0.0,
        "time": duration(part.seconds),
        "memory": number(part.peak_memory_gb, 3),
    }


def times_html(record: Record) -> str:
    """Return time and peak memory per step, and per stage of super-resolution, as an HTML table with bars."""
    rows = [_bar(step.step, step) for step in record.steps]
    rows += [_bar(stage.stage, stage, "super-resolution") for stage in record.stages]
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
    """Return what went wrong for a participant: status and crash file text of each image, escaped.

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
        if record.complete:
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
    # the page has its own first two levels of headings
    html = re.sub(r"(</?h)([1-4])>", lambda found: f"{found[1]}{int(found[2]) + 2}>", html)
    return html.encode("ascii", "xmlcharrefreplace").decode("ascii")
