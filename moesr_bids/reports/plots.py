"""Distributions of the cohort's figures, one dot per image, drawn by plotly in the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from moesr_bids.reports.derivatives import ImageRecord

OUTLIER_SCORE = 3.5
LEAST_IMAGES = 8
"""Fewer images have no outliers: the spread of so few is not known."""
_NORMAL = 0.6745  # median absolute deviation of a normal distribution, in standard deviations
_WIDTH = 0.3  # of the cloud of dots of a contrast
_ROW_PIXELS, _COLUMNS = 300, 3
_MOST_AS_SVG = 500  # images; more are drawn by WebGL, which not every browser has


@attrs.frozen
class Metric:
    """A figure of the cohort table.

    Attributes
    ----------
    name, title : str
        Column of the table, and what stands over the plot.
    values : tuple of float or None
        One per image.

    """

    name: str
    title: str
    values: tuple[float | None, ...]


def modified_z_scores(values: Sequence[float | None]) -> list[float | None]:
    """Return how far each value is from the median: 0.6745 (x - median) / MAD.

    MAD is the median absolute deviation from the median (Iglewicz & Hoaglin 1993, How to Detect and Handle Outliers);
    where it is 0, since most values are the same, or there are fewer than `LEAST_IMAGES`, there is no score.
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
) -> str:
    """Return the figure as JSON for ``Plotly.newPlot``.

    Parameters
    ----------
    records : sequence of ImageRecord
    metrics : sequence of Metric
        Those without any value are left out.
    outlying : sequence of sequence of str
        Of `outliers`.
    links : sequence of str or None
        Where a click on an image's dot leads.

    """
    from plotly.subplots import make_subplots

    shown = [metric for metric in metrics if any(value is not None for value in metric.values)]
    if not shown:
        return ""
    suffixes = sorted({record.suffix for record in records if record.suffix})
    rows = -(-len(shown) // _COLUMNS)
    titles = [metric.title for metric in shown]
    figure = make_subplots(rows=rows, cols=_COLUMNS, subplot_titles=titles, vertical_spacing=0.25 / rows)
    add = figure.add_scatter if len(records) <= _MOST_AS_SVG else figure.add_scattergl
    shift = np.random.default_rng(0).uniform(-_WIDTH, _WIDTH, len(records))
    for number, metric in enumerate(shown):
        for place, suffix in enumerate(suffixes):
            chosen = [n for n, record in enumerate(records) if record.suffix == suffix and metric.values[n] is not None]
            far = [metric.name in outlying[n] for n in chosen]
            add(
                x=[round(place + float(shift[n]), 3) for n in chosen],
                y=[metric.values[n] for n in chosen],
                text=[records[n].key for n in chosen],
                customdata=[links[n] for n in chosen],
                mode="markers",
                marker={
                    "size": [10 if out else 5 for out in far],
                    "symbol": ["diamond" if out else "circle" for out in far],
                    "color": ["#b3141d" if out else "#4a7fb5" for out in far],
                },
                hovertemplate="%{text}<br>%{y:.4g}<extra></extra>",
                row=number // _COLUMNS + 1,
                col=number % _COLUMNS + 1,
            )
    ticks: dict[str, Any] = {"tickvals": list(range(len(suffixes))), "ticktext": suffixes}
    figure.update_xaxes(range=[-0.6, len(suffixes) - 0.4], **ticks)
    figure.update_layout(
        height=rows * _ROW_PIXELS,
        showlegend=False,
        margin={"l": 50, "r": 10, "t": 40, "b": 30},
        template="plotly_white",
    )
    return ascii_script(str(figure.to_json()))


def plotly_script() -> str:
    """Return plotly's script, to stand in the page: it asks no other host for anything."""
    from plotly.offline import get_plotlyjs

    return ascii_script(get_plotlyjs())


def ascii_script(text: str) -> str:
    """Return JavaScript or JSON with other characters as escapes, and nothing that would end a script element."""
    escaped = "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in text)
    return escaped.replace("</", "<\\/")
