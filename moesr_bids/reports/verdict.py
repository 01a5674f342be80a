"""Verdict on an image, from thresholds on the recorded figures: ok, look, failed, apart, or unfinished.

The thresholds are wide: they say where to look first, not whether an image is good. Those on the agreement with the
scan were chosen mostly on training people; docs/trust.md shows what they see on others, and names an exception.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs

from moesr_bids.bids.names import stem_of
from moesr_bids.bids.record import Record
from moesr_bids.bids.steps import step_words
from moesr_bids.reports.derivatives import ImageRecord
from moesr_bids.reports.values import NOT_AVAILABLE, number


@attrs.frozen
class Rule:
    """A figure, and the range in which it is accepted.

    Attributes
    ----------
    name : str
        The figure in words.
    value : Callable
        Function that returns the figure of an image, or None.
    low, high : float
        Range, ends included.
    meaning : str
        Possible meaning of a figure outside of the range.
    column : str
        Column of the cohort tables that holds the figure.
    title : str
        Short name, the title of its plot.

    """

    name: str
    value: Callable[[Record], float | None]
    low: float
    high: float
    meaning: str
    column: str
    title: str

    def problem(self, record: Record) -> str | None:
        """Return a sentence if the figure is outside of its range; None if it is inside or unknown."""
        value = self.value(record)
        if value is None or self.low <= value <= self.high:
            return None
        limit = f"at most {self.high:g}" if value > self.high else f"at least {self.low:g}"
        return f"{self.name} is {number(value, 3)} (expected: {limit}): {self.meaning}"


MODEL_ERROR_PERCENT = 1.0
"""Error that is tolerated beside the noise, in % of the brain's 99th percentile, however little noise a scan has."""


def tolerated(record: Record, noise_units: float) -> float | None:
    """Return a residual in units of what is tolerated: sqrt(noise^2 + 1 %^2). None for a synthesis."""
    if record.synthesis:
        return None
    return noise_units * record.noise_percent / math.hypot(record.noise_percent, MODEL_ERROR_PERCENT)


def _departure(record: Record, figure: str) -> float:
    """Return a figure of the departure of the model's own image from the scan.

    Of a joined image it is the output's from the scan that agrees least: the data of several scans force no image to
    agree with one that contradicts the others, and the mean of their images is blurred.
    """
    if record.joined is None:
        return float(getattr(record.data_consistency.model, figure))
    return max(float(getattr(scan.output, figure)) for scan in record.joined.scans if scan.used)


RULES: tuple[Rule, ...] = (
    Rule(
        "the difference between the scan and the model's own image, over what is tolerated,",
        lambda record: tolerated(record, _departure(record, "residual_std")),
        0.0,
        1.5,
        "the model's image departs from what was measured, or the slice profile is wrong",
        "model_residual_over_tolerated",
        "Model's residual, over what is tolerated",
    ),
    Rule(
        "the difference between the scan and the model's own image, averaged over 5 mm, over what is tolerated,",
        lambda record: tolerated(record, _departure(record, "structure_std")),
        0.0,
        2.7,
        "anatomy of the scan is left out of the model's image or moved, or the slice profile is wrong",
        "model_structure_over_tolerated",
        "Model's residual over 5 mm, over what is tolerated",
    ),
    Rule(
        "the largest difference between the scan and the model's own image over 5 mm, over what is tolerated,",
        lambda record: tolerated(record, _departure(record, "structure_largest")),
        0.0,
        26.0,
        "something small may be added or missing; Numbers tells where to look",
        "model_largest_over_tolerated",
        "Largest over 5 mm, over what is tolerated",
    ),
    Rule(
        "the noise, in % of the brain's brightest,",
        lambda record: record.noise_percent,
        0.0,
        8.0,
        "motion or artefacts, or a scan too noisy to gain from",
        "noise_percent",
        "Noise, %",
    ),
    Rule(
        "the volume of the brain mask, in ml,",
        lambda record: record.brain_mask.volume_ml,
        850.0,
        2000.0,  # brains in the space of the MNI templates have 1900 ml
        "the mask may leave out or add tissue; see the brain mask",
        "mask_volume_ml",
        "Brain mask, ml",
    ),
    Rule(
        "the Dice coefficient of brain and template",
        lambda record: min((block.dice for block in record.registration.values()), default=None),
        0.9,
        math.inf,
        "mask or registration may be wrong; see the registration",
        "registration_dice",
        "Dice coefficient after registration",
    ),
    Rule(
        "the mutual information of brain and template, in nats,",
        lambda record: min((block.mutual_information for block in record.registration.values()), default=None),
        0.06,
        math.inf,
        "the registration may be wrong, or the contrast is weak; see the registration",
        "registration_mutual_information",
        "Mutual information after registration, nats",
    ),
    Rule(
        "the largest bias in the brain, in %,",
        lambda record: max(map(abs, record.bias_field.range_percent)),
        0.0,
        80.0,
        "a strong surface coil, or a mask that holds other tissue; see the bias field",
        "bias_largest_percent",
        "Largest bias, %",
    ),
    Rule(
        "the median uncertainty in the brain, in % of the brightest,",
        lambda record: record.uncertainty.median_percent if record.uncertainty else None,
        0.0,
        12.0,
        "fine detail is hardly more than a guess; see the uncertainty",
        "uncertainty_percent",
        "Uncertainty in the brain, %",
    ),
    Rule(
        "the coarsest input voxel over the output voxel",
        lambda record: max(record.input_zooms) / min(record.output_zooms),
        0.0,
        9.0,
        "most of the detail along this axis is inferred; see the uncertainty",
        "coarsest_over_output",
        "Coarsest input voxel over output voxel",
    ),
)


def doubts(record: Record) -> list[str]:
    """Return the doubts of the brain mask step, a sentence on a synthesis, and the scans that a joined image lacks."""
    translated = ["the contrast was translated by the model: a synthesis cannot be held against the scan"]
    found = [*(translated if record.synthesis else []), *(f"{d}; see the brain mask" for d in record.brain_mask.doubts)]
    if record.joined is None:
        return found
    lacking = [(scan.source, scan.reason) for scan in record.joined.scans if not scan.used]
    lacking += [(scan.source, scan.reason) for scan in record.joined.failed]
    return found + [f"{stem_of(source)} is not in the image: {reason}" for source, reason in lacking]


def reasons(record: ImageRecord) -> list[str]:
    """Return the reasons of the verdict: figures outside of their range and doubts, or why there is no output."""
    if record.complete and record.moesr is not None:
        return doubts(record.moesr) + [problem for rule in RULES if (problem := rule.problem(record.moesr))]
    status = record.status
    if status is None or status.reason == NOT_AVAILABLE:
        return ["there is no finished output"]
    return [status.reason if status.step == NOT_AVAILABLE else f"at step {step_words(status.step)}: {status.reason}"]


def verdict(record: ImageRecord) -> str:
    """Return ``ok``, ``look``, ``failed``, ``apart``, or ``unfinished`` (the image waits or runs)."""
    if record.state == "apart":
        return "apart"
    if record.state in ("waiting", "running"):
        return "unfinished"
    if not record.complete:
        return "failed"
    return "look" if reasons(record) else "ok"
