"""Verdict on an image: ok, look at it, or failed; from thresholds on the recorded figures.

The thresholds are wide: on the scans of patients in slices of 3 and 4 mm and the 2 mm head that were looked at and
found good, none is crossed. They say where to look first, not whether an image is good.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from moesr_bids.reports.derivatives import ImageRecord
from moesr_bids.reports.values import NOT_AVAILABLE, number, stated


@attrs.frozen
class Rule:
    """A figure and the range in which it raises no question.

    Attributes
    ----------
    name : str
        What the figure is, in words.
    value : Callable
        Gives the figure of an image, or None.
    low, high : float
        Range, ends included.
    meaning : str
        What a figure outside may mean.

    """

    name: str
    value: Callable[[ImageRecord], Any]
    low: float
    high: float
    meaning: str

    def problem(self, record: ImageRecord) -> str | None:
        """Say that the figure is outside of its range; None where it is inside or unknown."""
        value = self.value(record)
        if not isinstance(value, int | float) or isinstance(value, bool) or self.low <= value <= self.high:
            return None
        limit = f"at most {self.high:g}" if value > self.high else f"at least {self.low:g}"
        return f"{self.name} is {number(value, 3)} (expected: {limit}): {self.meaning}"


def _largest_bias(record: ImageRecord) -> float | None:
    ends = record.fact("BiasField", "RangePercent")
    return max(map(abs, ends)) if _numbers(ends) else None


def _coarsest_factor(record: ImageRecord) -> float | None:
    before, after = record.fact("InputZooms"), record.fact("OutputZooms")
    return max(before) / min(after) if _numbers(before) and _numbers(after) else None


def _numbers(values: Any) -> bool:
    return isinstance(values, Sequence) and len(values) > 0 and all(isinstance(v, int | float) for v in values)


RULES: tuple[Rule, ...] = (
    Rule(
        "the residual in the brain, in units of the noise,",
        lambda record: record.fact("Faithfulness", "ResidualStd"),
        0.0,
        1.3,
        "the output departs from what was measured; see the residual",
    ),
    Rule(
        "the share of brain voxels whose residual is beyond 3 units of the noise",
        lambda record: record.fact("Faithfulness", "FractionBeyond3"),
        0.0,
        0.03,
        "the output departs from the scan in places; see the residual",
    ),
    Rule(
        "the noise, in % of the brain's brightest,",
        lambda record: record.fact("NoisePercent"),
        0.0,
        8.0,
        "motion or artefacts, or a scan too noisy to gain from",
    ),
    Rule(
        "the volume of the brain mask, in ml,",
        lambda record: record.fact("BrainMask", "VolumeML"),
        850.0,
        2000.0,  # brains in the space of the MNI templates have 1900 ml
        "the mask may leave out or add tissue; see the brain mask",
    ),
    Rule(
        "the overlap of brain and template",
        lambda record: record.registration_overlap,
        0.9,
        math.inf,
        "mask or registration may be wrong; see the registration",
    ),
    Rule(
        "the largest bias in the brain, in %,",
        _largest_bias,
        0.0,
        80.0,
        "a strong surface coil, or a mask that holds other tissue; see the bias field",
    ),
    Rule(
        "the median uncertainty in the brain, in % of the brightest,",
        lambda record: record.fact("Uncertainty", "MedianPercent"),
        0.0,
        12.0,
        "fine detail is hardly more than a guess; see the uncertainty",
    ),
    Rule(
        "the coarsest input voxel over the output voxel",
        _coarsest_factor,
        0.0,
        9.0,
        "most of the detail along this axis is inferred; see the uncertainty",
    ),
)


def reasons(record: ImageRecord) -> list[str]:
    """Return what asks for a look: figures outside of their range, or why an image has no output."""
    if not record.complete:
        said, step = (stated(record.status.get(name)) for name in ("reason", "step"))
        if said == NOT_AVAILABLE:
            return ["there is no finished output"]
        return [said if step == NOT_AVAILABLE else f"at step {step}: {said}"]
    return [problem for rule in RULES if (problem := rule.problem(record))]


def verdict(record: ImageRecord) -> str:
    """Return ``ok``, ``look``, ``failed``, or ``unfinished`` while nothing is decided."""
    if record.state in ("waiting", "running"):
        return "unfinished"
    if not record.complete:
        return "failed"
    return "look" if reasons(record) else "ok"
