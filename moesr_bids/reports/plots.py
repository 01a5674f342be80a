"""Distributions of the cohort's figures, one dot per image: outliers, and positions in the plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from moesr_bids.reports.derivatives import ImageRecord
from moesr_bids.reports.values import number

OUTLIER_SCORE = 3.5
LEAST_IMAGES = 8
"""With fewer images there are no outliers and no plots, since the spread of so few is not known."""
_NORMAL = 0.6745  # median absolute deviation of a normal distribution, in standard deviations
_MOST_NAMED = 500  # images; with more, only outliers have a name and a link
WIDTH, HEIGHT = 300, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 6, 8, 18  # pixels around the dots
_LINE = 10  # pixels of a line of text
_CLOUD = 0.3  # half the width that the dots of a contrast spread over, as a share of its column


@attrs.frozen
class Metric:
    """A figure of the cohort table.

    Attributes
    ----------
    name, title : str
        Column of the table, and title of the plot.
    values : tuple of float or None
        One per image.
    low, high : float
        Range that the verdict accepts; infinite, or 0 for the lower end, if there is no limit.

    """

    name: str
    title: str
    values: tuple[float | None, ...]
    low: float = -math.inf
    high: float = math.inf

    @property
    def limits(self) -> list[float]:
        """The ends of the range that are limits."""
        return [limit for limit in (self.low, self.high) if math.isfinite(limit) and limit != 0]


def modified_z_scores(values: Sequence[float | None]) -> list[float | None]:
    """Return how far each value is from the median: 0.6745 (x - median) / MAD.

    MAD is the median absolute deviation from the median (Iglewicz & Hoaglin 1993, How to Detect and Handle Outliers).
    All scores are None if it is 0, because most values are the same, or if there are fewer than `LEAST_IMAGES` values.
    """
    known = np.array([value for value in values if value is not None], dtype=float)
    if known.size < LEAST_IMAGES:
        return [None] * len(values)
    centre = np.median(known)
    spread = np.median(np.abs(known - centre))
    if spread == 0:
        return [None] * len(values)
    return [None if value is None else float(_NORMAL * (value - centre) / spread) for value in values]


def outliers(records: Sequence[ImageRecord], metrics: Sequence[Metric]) -> list[list[str]]:
    """Return for each image the names of the metrics in which it is an outlier among images of its contrast."""
    found: list[list[str]] = [[] for _ in records]
    for metric in metrics:
        for suffix in {record.suffix for record in records}:
            places = [n for n, record in enumerate(records) if record.suffix == suffix]
            scores = modified_z_scores([metric.values[n] for n in places])
            for place, score in zip(places, scores, strict=True):
                if score is not None and abs(score) > OUTLIER_SCORE:
                    found[place].append(metric.name)
    return found


def distributions(
    records: Sequence[ImageRecord],
    metrics: Sequence[Metric],
    outlying: Sequence[Sequence[str]],
    links: Sequence[str | None],
) -> list[dict[str, Any]]:
    """Return the content of the plots for the template of the page, in pixels; empty below `LEAST_IMAGES` images.

    Parameters
    ----------
    records : sequence of ImageRecord
        The images.
    metrics : sequence of Metric
        Figures; those without any value are left out.
    outlying : sequence of sequence of str
        From `outliers`.
    links : sequence of str or None
        Target of a click on an image's dot.

    """
    if len(records) < LEAST_IMAGES:
        return []
    suffixes = sorted({record.suffix for record in records if record.suffix})
    shift = np.random.default_rng(0).uniform(-_CLOUD, _CLOUD, len(records))
    share = (WIDTH - _LEFT - _RIGHT) / max(1, len(suffixes))
    across = [
        _LEFT + share * (suffixes.index(record.suffix) + 0.5 + float(shift[n])) if record.suffix else None
        for n, record in enumerate(records)
    ]
    names = [{"x": round(_LEFT + share * (n + 0.5)), "text": suffix} for n, suffix in enumerate(suffixes)]
    plots = []
    for metric in metrics:
        dots = [
            {
                "x": round(x, 1),
                "value": value,
                "key": records[n].key,
                "link": links[n],
                "far": metric.name in outlying[n],
            }
            for n, (x, value) in enumerate(zip(across, metric.values, strict=True))
            if x is not None and value is not None
        ]
        if dots:
            plots.append(_plot(metric, dots, names, all_named=len(records) <= _MOST_NAMED))
    return plots


def _plot(
    metric: Metric, dots: list[dict[str, Any]], names: list[dict[str, Any]], *, all_named: bool
) -> dict[str, Any]:
    """Return one plot: marks of the axis, limits of the verdict, dots with a name, and dots without."""
    values = [dot["value"] for dot in dots]
    ends = [*values, *metric.limits]
    low, high = min(ends), max(ends)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - room, high + room

    def up(value: float) -> float:
        return round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low), 1)

    for dot in dots:
        dot |= {"y": up(dot["value"]), "text": f"{dot['key']}: {number(dot['value'], 4)}"}
    named = [dot for dot in dots if all_named or dot["far"]]
    marks = [min(values)]
    for value in (float(np.median(values)), max(values)):  # marks that would overlap are left out
        if up(marks[-1]) - up(value) >= _LINE:
            marks.append(value)
    return {
        "title": metric.title,
        "judged": bool(metric.limits),
        "marks": [{"y": up(value), "text": number(value, 3)} for value in marks],
        "limits": [{"y": up(value), "text": number(value, 3)} for value in metric.limits],
        "named": named,
        # One path of dots has a tenth of the size of single elements.
        "unnamed": "".join(f"M{dot['x']} {dot['y']}h0" for dot in dots if not (all_named or dot["far"])),
        "suffixes": names,
    }
