"""HTML fragments made from recorded facts: summary, times, errors, methods text. No image is opened here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

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


def _block(moesr: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    content = moesr.get(name)
    return content if isinstance(content, Mapping) else {}


def _registration(moesr: Mapping[str, Any]) -> str:
    parts = [
        f"{template}: {number(facts.get('Overlap'), 3)}"
        for template, facts in _block(moesr, "Registration").items()
        if isinstance(facts, Mapping)
    ]
    return "; ".join(parts) or NOT_AVAILABLE


def _coregistration(moesr: Mapping[str, Any]) -> str:
    facts = _block(moesr, "Coregistration")
    if not facts:
        return "this image is the reference, or alone in its session" if "SessionReference" in moesr else NOT_AVAILABLE
    return (
        f"to {stated(facts.get('Reference'))}: moved by {number(facts.get('TranslationMM'), 3)} mm and "
        f"{number(facts.get('RotationDegrees'), 3)} degrees, overlap of the masks {number(facts.get('Overlap'), 3)}"
    )


def _gradients(moesr: Mapping[str, Any]) -> str:
    facts = _block(moesr, "GradientNonlinearity")
    if not facts:
        return NOT_AVAILABLE
    if facts.get("Action") == "none":
        return f"not corrected here: {stated(facts.get('Reason'))}"
    where = "through the slices" if facts.get("Action") == "through-plane" else "in three dimensions"
    return (
        f"corrected {where}, by up to {number(facts.get('LargestDisplacementMM'), 3)} mm, with "
        f"{stated(facts.get('File'))}: {stated(facts.get('Reason'))}"
    )


def _finest(moesr: Mapping[str, Any]) -> str:
    sizes = _block(_block(moesr, "ImageQuality"), "EffectiveResolutionMM")
    return (
        f"input {triple(sizes.get('Input'))} mm, output {triple(sizes.get('Output'))} mm (left-right, back-front, "
        "foot-head); what is finer than the input was acquired is inferred"
    )


def _estimate(moesr: Mapping[str, Any]) -> str:
    how = _block(moesr, "Sampling")
    flips = how.get("Flips", moesr.get("Flips"))
    if how.get("Estimate") == "sample":
        return (
            f"one sample; its detail was amplified by {number(how.get('DetailGain'), 3)} on average, and "
            f"{percent(how.get('DetailNoiseShare'))} of the energy of its detail is drawn noise"
        )
    if how.get("Samples"):
        return f"mean of {how['Samples']} samples"
    return NOT_AVAILABLE if flips is None else f"mean over {flips} flips" if flips > 1 else "one evaluation"


def _uncertainty(moesr: Mapping[str, Any]) -> str:
    median = _block(moesr, "Uncertainty").get("MedianPercent")
    if median is None:
        return "this model states none"
    calibration = _block(moesr, "UncertaintyCalibration")
    contrasts = " and ".join(calibration.get("Contrasts", ())) or "no"
    brightest = f"median standard deviation in the brain {number(median, 3)} % of the brightest"
    text = f"{brightest}, calibrated on {contrasts} scans"
    coverage = _block(calibration, "Coverage")
    if not coverage and _block(moesr, "Sampling").get("Samples"):
        return f"{text} for the mean that the model estimates; not checked for its samples"
    if not coverage:
        return f"{text}; not checked on others of this contrast"
    levels = sorted(coverage, key=int)
    held = ", ".join(percent(coverage[level]) for level in levels)
    return f"{text}; on others of this contrast the {', '.join(levels)} % intervals held {held} of the voxels"


def summary_rows(moesr: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a reader should know of one image, as pairs of name and value.

    Parameters
    ----------
    moesr : Mapping
        ``Moesr`` block of a sidecar; what it lacks is shown as ``n/a``.

    """
    faithfulness, mask, bias = _block(moesr, "Faithfulness"), _block(moesr, "BrainMask"), _block(moesr, "BiasField")
    bias_range = bias.get("RangePercent") or (None, None)
    return [
        ("Input voxels", f"{triple(moesr.get('InputZooms'))} mm, {triple(moesr.get('InputShape'))} voxels"),
        ("Output voxels", f"{triple(moesr.get('OutputZooms'))} mm, {triple(moesr.get('OutputShape'))} voxels"),
        ("Point-spread function per axis", psf(moesr.get("PSF"))),
        ("Why this function", stated(moesr.get("PSFReason"))),
        ("Model", f"{stated(moesr.get('Model'))} (weights {stated(moesr.get('WeightsSHA256'))[:12]})"),
        ("Estimate", _estimate(moesr)),
        ("Noise", f"{number(moesr.get('NoisePercent'), 3)} % of the brain's brightest (99th percentile)"),
        (
            "Faithfulness: residual in noise units",
            f"root mean square {number(faithfulness.get('ResidualStd'), 3)} (noise alone would give 1) of what the "
            f"output grid can hold; {percent(faithfulness.get('FractionBeyond3'))} beyond 3 (noise alone: 0.27 %)",
        ),
        (
            "Input detail finer than the output grid",
            f"root mean square {number(faithfulness.get('BeyondGridStd'), 3)} noise units, kept in the residual map",
        ),
        ("Finest detail that is as strong as the input's noise", _finest(moesr)),
        ("Uncertainty", _uncertainty(moesr)),
        (
            "Brain mask",
            f"{number(mask.get('VolumeML'), 4)} ml, overlap with the template {number(mask.get('Overlap'), 3)}, "
            f"{stated(mask.get('Method'))}",
        ),
        ("Registration, overlap of the masks", _registration(moesr)),
        ("Alignment to the reference of the session", _coregistration(moesr)),
        ("Gradient nonlinearity", _gradients(moesr)),
        (
            "Bias field in the brain, 1st to 99th percentile",
            f"{number(bias_range[0], 3)} to {number(bias_range[1], 3)} %",
        ),
        (
            "Device",
            f"{stated(moesr.get('Device'))}, {stated(moesr.get('Precision'))}, seed {stated(moesr.get('RandomSeed'))}",
        ),
        ("Version", stated(moesr.get("Version"))),
        (
            "Software",
            ", ".join(f"{name} {stated(v)}" for name, v in _block(moesr, "Software").items()) or NOT_AVAILABLE,
        ),
        ("Time and peak memory", f"{duration(moesr.get('Seconds'))}, {number(moesr.get('PeakMemoryGB'), 3)} GiB"),
    ]


def state_words(record: ImageRecord) -> str:
    """Return the state of an image in words, with step and reason where it failed."""
    words = _STATE_WORDS.get(record.state, record.state)
    if record.state == "failed":
        words += f" at step {stated(record.status.get('step'))}: {stated(record.status.get('reason'))}"
    return words


def warnings_of(record: ImageRecord) -> list[str]:
    """Return the warnings recorded for an image and what of its record could not be read."""
    recorded = record.moesr.get("Warnings") or []
    return [*record.problems, *(str(text) for text in recorded)]


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
        source=stated(record.status.get("image", record.key)),
        state=record.state,
        words=state_words(record),
        warnings=warnings_of(record),
        verdict=verdict(record),
        reasons=reasons(record) if record.complete else [],
        stale=bool(record.moesr) and not record.complete,
        record=record,
        settings=record.moesr.get("SettingsHash"),
    )


def numbers_html(moesr: Mapping[str, Any]) -> str:
    """Return figures and image quality metrics of one image as HTML tables.

    Parameters
    ----------
    moesr : Mapping
        ``Moesr`` block of a sidecar.

    """
    return render("numbers.html.j2", rows=summary_rows(moesr), quality=quality_rows(moesr))


def _bars(steps: Sequence[Any], parent: str = "") -> list[dict[str, Any]]:
    rows = []
    for step in steps:
        if isinstance(step, Mapping):
            seconds = step.get("Seconds")
            rows.append(
                {
                    "name": stated(step.get("Step", step.get("Stage"))),
                    "parent": parent,
                    "seconds": float(seconds) if isinstance(seconds, int | float) else 0.0,
                    "time": duration(seconds),
                    "memory": number(step.get("PeakMemoryGB"), 3),
                }
            )
    return rows


def times_html(moesr: Mapping[str, Any]) -> str:
    """Return time and peak memory per step as an HTML table with bars.

    Parameters
    ----------
    moesr : Mapping
        ``Moesr`` block of a sidecar: ``Steps`` and, where recorded, the ``Stages`` inside super-resolution.

    """
    rows = _bars(moesr.get("Steps") or []) + _bars(moesr.get("Stages") or [], parent="super-resolution")
    longest = max((row["seconds"] for row in rows), default=0.0)
    for row in rows:
        row["share"] = round(100 * row["seconds"] / longest, 1) if longest else 0.0
    return render(
        "times.html.j2",
        rows=rows,
        total=duration(moesr.get("Seconds")),
        memory=number(moesr.get("PeakMemoryGB"), 3),
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
        crash = crash_file_of(out_dir, record)
        if crash is not None:
            told.add(crash.resolve())
        failures.append(
            {
                "key": record.key,
                "words": state_words(record),
                "status": {
                    name: text for name, value in record.status.items() if (text := stated(value)) != NOT_AVAILABLE
                },
                "problems": record.problems,
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
