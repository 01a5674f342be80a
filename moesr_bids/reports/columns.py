"""Columns of the cohort tables: their content, and which of them are plotted with which limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from moesr_bids.bids.record import Record
from moesr_bids.reports.derivatives import ImageRecord
from moesr_bids.reports.fragments import warnings_of
from moesr_bids.reports.metrics import QUALITY_METRICS
from moesr_bids.reports.plots import LEAST_IMAGES, OUTLIER_SCORE, Metric
from moesr_bids.reports.verdict import RULES, Rule, reasons, verdict
from moesr_bids.segmentation.structures import BRAIN, STRUCTURES


@attrs.frozen
class Column:
    """A column of the cohort table.

    Attributes
    ----------
    name : str
        Column name.
    value : Callable
        Function that returns the value of an image, or None.
    description : str
        Description in the data dictionary.
    units : str or None
        Units in the data dictionary.
    heading : str or None
        Heading on the page; None keeps the column out of the page.
    title : str or None
        Title of the plot; None for the heading.

    """

    name: str
    value: Callable[[ImageRecord], Any]
    description: str
    units: str | None = None
    heading: str | None = None
    title: str | None = None


def _of(value: Callable[[Record], Any]) -> Callable[[ImageRecord], Any]:
    """Return a function from an image to a fact of its record; it returns None if there is no record."""
    return lambda image: None if image.moesr is None else value(image.moesr)


def _metric(side: str, name: str) -> Callable[[Record], Any]:
    return lambda record: getattr(record.image_quality, side).get(name) if record.image_quality else None


def _volume(name: str, key: str) -> Callable[[ImageRecord], Any]:
    return _of(lambda record: getattr(record.segmentation.volumes.get(name), key, None))


def _input_zoom(axis: int) -> Callable[[Record], Any]:
    return lambda record: record.input_zooms[axis]


def _resolution(side: str, axis: int) -> Callable[[Record], Any]:
    return lambda record: (
        getattr(record.image_quality.effective_resolution_mm, side)[axis] if record.image_quality else None
    )


def _quality_columns() -> list[Column]:
    """Return a column per metric and image: ``input_`` or ``output_``, then MRIQC's name."""
    return [
        Column(
            f"{side}_{metric.name}",
            _of(_metric(side, metric.name)),
            f"{metric.description}; of the {side}, as MRIQC defines it",
            metric.units,
            title=f"{metric.short}, {side}" + (f", {metric.units}" if metric.units else ""),
        )
        for metric in QUALITY_METRICS
        for side in ("input", "output")
        if side == "input" or metric.of_output
    ]


def _of_rule(rule: Rule) -> Callable[[Record], Any]:
    return lambda record: rule.value(record)


def _verdict_columns(others: Sequence[Column]) -> list[Column]:
    """Return columns for the figures that the verdict judges, if no other column holds them."""
    have = {column.name for column in others}
    return [
        Column(rule.column, _of(_of_rule(rule)), f"What the verdict asks: {rule.name.rstrip(',')}", title=rule.title)
        for rule in RULES
        if rule.column not in have
    ]


_STATE = (
    "done; skipped: done by an earlier run with the same settings; failed; waiting: not begun; running: begun and not "
    "finished; missing: recorded as done, but the main output or its sidecar is not there"
)
OUTLIER_RULE = (
    f"more than {OUTLIER_SCORE:g} scaled median absolute deviations from the median of the images of its contrast "
    f"(0.6745 |x - median| / MAD, Iglewicz & Hoaglin 1993; from {LEAST_IMAGES} images on)"
)
_FACTS: tuple[Column, ...] = (
    Column("participant_id", lambda record: record.participant, "Participant", heading="Participant"),
    Column("session_id", lambda record: record.session, "Session", heading="Session"),
    Column("image", lambda record: record.key, "Name of the input image without extension", heading="Image"),
    Column("state", lambda record: record.state, _STATE, heading="State"),
    Column(
        "verdict",
        verdict,
        "ok; look: a figure is outside of the range in which it raises no question; failed: no finished output; "
        "unfinished: waiting or running; apart: scans that are not joined, as they do not fit together",
        heading="Verdict",
    ),
    Column("verdict_reasons", lambda record: "; ".join(reasons(record)), "Why the verdict is not ok"),
    Column(
        "outlier_in",
        lambda record: ", ".join(record.outlier_in),
        f"Columns in which the image is an outlier: {OUTLIER_RULE}",
        heading="Outlier in",
    ),
    Column("rating", lambda record: record.rating.get("rating"), "keep or exclude, by who looked", heading="Rating"),
    Column("comment", lambda record: record.rating.get("comment"), "What the rater wrote", heading="Comment"),
    Column(
        "joined_scans",
        _of(lambda record: sum(scan.used for scan in record.joined.scans) if record.joined else None),
        "Number of scans that a joined image is made of; n/a for an image of one scan",
    ),
    Column("model", _of(lambda record: record.model), "Super-resolution model", heading="Model"),
    *(
        Column(
            f"input_zoom_{axis}",
            _of(_input_zoom(index)),
            f"Voxel size of the input, {words} axis",
            "mm",
            f"Input {axis}, mm",
        )
        for index, (axis, words) in enumerate((("i", "first"), ("j", "second"), ("k", "third")))
    ),
    Column("output_zoom", _of(lambda record: record.output_zooms[0]), "Voxel size of the isotropic output", "mm"),
    Column(
        "noise_std",
        _of(lambda record: record.noise_std),
        "Estimated standard deviation of the input's noise, in its intensity units",
    ),
    Column(
        "noise_percent",
        _of(lambda record: record.noise_percent),
        "Noise relative to the 99th percentile in the brain",
        "%",
        "Noise, %",
    ),
    Column(
        "model_residual_std",
        _of(lambda record: record.data_consistency.model.residual_std),
        "Root mean square in the brain of input minus A(the model's own image, before the projection), of what the "
        "output grid can hold, in noise units; noise alone gives 1",
        heading="Model's residual, noise units",
    ),
    Column(
        "model_fraction_beyond_3",
        _of(lambda record: record.data_consistency.model.fraction_beyond3),
        "Share of brain voxels whose residual of the model's own image is beyond 3 noise units; noise alone: 0.0027",
        title="Model's share beyond 3",
    ),
    Column(
        "model_structure_std",
        _of(lambda record: record.data_consistency.model.structure_std),
        "Root mean square in the brain of the residual of the model's own image, averaged over 5 mm, in units of what "
        "noise leaves of it; noise alone gives 1",
        title="Model's residual over 5 mm",
    ),
    Column(
        "model_structure_largest",
        _of(lambda record: record.data_consistency.model.structure_largest),
        "Largest absolute value of that average; noise alone gives about 5",
        heading="Largest over 5 mm",
    ),
    Column(
        "projection_noise_std",
        _of(lambda record: record.data_consistency.projection.move_noise_std),
        "Root mean square in the brain of what the projection changed, in noise units",
        heading="Projected by, noise units",
    ),
    Column(
        "projection_predicted_std",
        _of(lambda record: record.data_consistency.projection.move_predicted_std),
        "Root mean square in the brain of what the projection changed, in units of the predicted standard deviation",
        title="Projected by, predicted deviations",
    ),
    Column(
        "lambda",
        _of(lambda record: record.lambda_),
        "Weight of the data in the projection; 0 where it had nothing to do",
    ),
    Column(
        "residual_std",
        _of(lambda record: record.data_consistency.residual_std),
        "Root mean square in the brain of input minus A(output), of what the output grid can hold, in noise units; "
        "the projection forces it to be about 1 or less",
        title="Residual after projection, noise units",
    ),
    Column(
        "beyond_grid_std",
        _of(lambda record: record.data_consistency.beyond_grid_std),
        "Root mean square in the brain of what the input holds and the output grid cannot, in noise units",
        heading="Finer than output",
    ),
    Column(
        "fraction_beyond_3",
        _of(lambda record: record.data_consistency.fraction_beyond3),
        "Share of brain voxels whose residual is beyond 3 noise units; noise alone gives 0.0027",
        heading="Share beyond 3",
    ),
    *(
        Column(
            f"{side}_resolution_{axis}",
            _of(_resolution(side, index)),
            f"Finest detail along the {words} axis of the {side} that is as strong as the input's noise: half "
            "the period at which the power spectrum of the signal in the brain's box falls to that of the noise",
            "mm",
            title=f"Finest detail {words}, {side}, mm",
        )
        for side in ("input", "output")
        for index, (axis, words) in enumerate(
            (("x", "left-right"), ("y", "posterior-anterior"), ("z", "inferior-superior"))
        )
    ),
    Column(
        "uncertainty_percent",
        _of(lambda record: record.uncertainty and record.uncertainty.median_percent),
        "Median standard deviation of the error in the brain, as the model predicts it, of the 99th percentile",
        "%",
        title="Uncertainty in the brain, %",
    ),
    Column(
        "mask_volume_ml", _of(lambda record: record.brain_mask.volume_ml), "Volume of the brain mask", "ml", "Mask, ml"
    ),
    Column(
        "segmentation_certainty",
        _of(lambda record: record.brain_mask.certainty),
        "Mean probability of the chosen class in the brain, segmentation of the scan",
        title="Certainty of the segmentation",
    ),
    *(
        Column(
            f"volume_{name.replace(' ', '_')}_ml{suffix}",
            _volume(name, key),
            f"{words} of the {name} in the super-resolved image",
            "ml",
        )
        for name in (*(structure.name for structure in STRUCTURES if structure.index in BRAIN), "brain")
        for suffix, key, words in (
            ("", "volume_ml", "Volume"),
            ("_std", "standard_deviation_ml", "Standard deviation, from scan and image, of the volume"),
        )
    ),
    Column(
        "registration_dice",
        lambda record: record.registration_dice,
        "Dice coefficient of brain mask and template after registration; the least over the output spaces",
        heading="Dice",
        title="Dice coefficient after registration",
    ),
    Column(
        "bias_min_percent",
        _of(lambda record: record.bias_field.range_percent[0]),
        "1st percentile of the bias field in the brain, above its geometric mean",
        "%",
        title="Least bias, %",
    ),
    Column(
        "bias_max_percent",
        _of(lambda record: record.bias_field.range_percent[1]),
        "99th percentile of the bias field in the brain, above its geometric mean",
        "%",
        title="Largest bias, %",
    ),
    *_quality_columns(),
    Column("n_warnings", lambda record: len(warnings_of(record)), "Number of recorded warnings", heading="Warnings"),
    Column("seconds", lambda record: record.seconds, "Processing time", "s", "Time, s"),
    Column(
        "peak_memory_gb",
        lambda record: record.peak_memory_gb,
        "Largest peak memory of a step",
        "GiB",
        "Memory, GiB",
    ),
    Column("step", lambda record: record.status and record.status.step, "Step that failed, or the last one finished"),
    Column("reason", lambda record: record.status and record.status.reason, "Why the image failed or was skipped"),
)

COLUMNS = (*_FACTS, *_verdict_columns(_FACTS))
_LIMITS = {rule.column: rule for rule in RULES}
_PLOTTED = (
    *_LIMITS,
    *("noise_percent", "model_residual_std", "model_fraction_beyond_3", "model_structure_std"),
    *("model_structure_largest", "projection_noise_std", "projection_predicted_std", "residual_std"),
    *("beyond_grid_std", "fraction_beyond_3", "uncertainty_percent"),
    *("mask_volume_ml", "segmentation_certainty", "registration_dice", "bias_min_percent", "bias_max_percent"),
    *(column.name for column in COLUMNS if column.name.startswith(("input_resolution_", "output_resolution_"))),
    *(column.name for column in _quality_columns()),
    *("seconds", "peak_memory_gb"),
)


def data_dictionary() -> dict[str, dict[str, str]]:
    """Return the data dictionary of the cohort tables, by column."""
    return {
        column.name: {"Description": column.description} | ({"Units": column.units} if column.units else {})
        for column in COLUMNS
    }


def metrics_of(records: Sequence[ImageRecord]) -> list[Metric]:
    """Return the columns that are plotted; the figures that the verdict judges come first, with its limits."""
    metrics = []
    by_name = {column.name: column for column in COLUMNS}
    for name in dict.fromkeys(_PLOTTED):
        column, rule = by_name[name], _LIMITS.get(name)
        values = [column.value(record) for record in records]
        known = [float(v) if isinstance(v, int | float) and math.isfinite(v) else None for v in values]
        title = rule.title if rule else column.title or column.heading or name
        metrics.append(Metric(name, title, tuple(known), *((rule.low, rule.high) if rule else ())))
    return metrics
