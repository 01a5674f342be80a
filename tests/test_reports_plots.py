"""Distributions of the cohort: who is an outlier, and what the page draws."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moesr_bids.reports.derivatives import ImageRecord
from moesr_bids.reports.plots import Metric, ascii_script, distributions, modified_z_scores, outliers


def test_scores_are_standard_deviations_of_a_normal_sample() -> None:
    values = np.random.default_rng(0).normal(50, 4, 20000)
    scores = np.array(modified_z_scores(list(values)), dtype=float)
    np.testing.assert_allclose(scores, (values - 50) / 4, atol=0.1)


def test_no_score_without_a_spread() -> None:
    assert modified_z_scores([1.0, 2.0, 300.0]) == [None] * 3  # too few
    assert modified_z_scores([1.0] * 20 + [9.0]) == [None] * 21  # most are the same
    assert modified_z_scores([None, *map(float, range(10))])[0] is None


def test_outliers_are_those_of_their_contrast() -> None:
    keys = [f"sub-{n:02d}_T1w" for n in range(12)] + [f"sub-{n:02d}_FLAIR" for n in range(12)]
    records = [ImageRecord(key) for key in keys]
    noise = [2.0 + 0.1 * n for n in range(12)] + [20.0 + 0.1 * n for n in range(11)] + [2.5]
    metrics = [Metric("noise", "Noise", tuple(noise)), Metric("empty", "Empty", (None,) * 24)]
    found = outliers(records, metrics)
    assert found[-1] == ["noise"]  # like the T1w images, but no FLAIR is
    assert not any(found[:-1])
    figure = json.loads(distributions(records, metrics, found, ["page.html"] * 24))
    points = [trace for trace in figure["data"] if trace["text"]]
    assert sum(len(trace["y"]) for trace in points) == 24
    assert [trace["marker"]["symbol"].count("diamond") for trace in points] == [1, 0]  # FLAIR, T1w
    assert figure["layout"]["xaxis"]["ticktext"] == ["FLAIR", "T1w"]
    assert "Empty" not in json.dumps(figure["layout"]["annotations"])


def test_no_figures_no_plot() -> None:
    assert distributions([ImageRecord("sub-01_T1w")], [Metric("noise", "Noise", (None,))], [[]], [None]) == ""


@pytest.mark.parametrize("text", ["\u00e9 \U0001f9e0", "</script>", "plain"])
def test_scripts_are_ascii_and_stay_in_their_element(text: str) -> None:
    script = ascii_script(json.dumps({"key": text}, ensure_ascii=False))
    assert script.isascii()
    assert "</script" not in script
    assert json.loads(script)["key"] == text
