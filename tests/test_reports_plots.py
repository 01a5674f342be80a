"""Distributions of the cohort: which images are outliers, and what the page draws."""

from __future__ import annotations

import numpy as np

from moesr_bids.reports.derivatives import ImageRecord
from moesr_bids.reports.plots import HEIGHT, LEAST_IMAGES, WIDTH, Metric, distributions, modified_z_scores, outliers


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
    (plot,) = distributions(records, metrics, found, ["page.html"] * 24)  # the empty one is left out
    assert (plot["title"], len(plot["named"])) == ("Noise", 24)
    assert [dot["key"] for dot in plot["named"] if dot["far"]] == [keys[-1]]
    assert [suffix["text"] for suffix in plot["suffixes"]] == ["FLAIR", "T1w"]
    left, right = ([dot["x"] for dot in plot["named"] if dot["key"].endswith(suffix)] for suffix in ("FLAIR", "T1w"))
    assert 0 < min(left) < max(left) < min(right) < max(right) < WIDTH
    # Higher up is more, and all lie inside.
    by_value = sorted(plot["named"], key=lambda dot: dot["value"])
    heights = [dot["y"] for dot in by_value]
    assert heights == sorted(heights, reverse=True)
    assert 0 < heights[-1] < heights[0] < HEIGHT


def test_limits_of_the_verdict_are_drawn_where_there_are_some() -> None:
    records = [ImageRecord(f"sub-{n:02d}_T1w") for n in range(10)]
    values = tuple(900.0 + 100 * n for n in range(10))
    metrics = [Metric("mask", "Mask", values, 850.0, 2000.0), Metric("noise", "Noise", values, 0.0, 8.0)]
    mask, noise = distributions(records, metrics, [[]] * 10, [None] * 10)
    assert [limit["text"] for limit in mask["limits"]] == ["850", "2000"]
    assert [limit["text"] for limit in noise["limits"]] == ["8"]
    assert mask["judged"] and noise["judged"]
    assert not distributions(records, [Metric("other", "Other", values)], [[]] * 10, [None] * 10)[0]["judged"]
    lower, upper = (limit["y"] for limit in mask["limits"])
    assert upper < min(dot["y"] for dot in mask["named"]) < max(dot["y"] for dot in mask["named"]) < lower


def test_few_images_have_no_plots() -> None:
    def plots(count: int, value: float | None = 1.0) -> int:
        records = [ImageRecord(f"sub-{n:02d}_T1w") for n in range(count)]
        metrics = [Metric("noise", "Noise", (value,) * count)]
        return len(distributions(records, metrics, [[]] * count, [None] * count))

    assert [plots(LEAST_IMAGES - 1), plots(LEAST_IMAGES), plots(LEAST_IMAGES, None)] == [0, 1, 0]


def test_of_many_images_only_outliers_have_a_name() -> None:
    count = 1000
    records = [ImageRecord(f"sub-{n:04d}_T1w") for n in range(count)]
    metrics = [Metric("noise", "Noise", (*np.linspace(1, 2, count - 1).tolist(), 50.0))]
    found = outliers(records, metrics)
    (plot,) = distributions(records, metrics, found, ["page.html"] * count)
    assert [dot["key"] for dot in plot["named"]] == ["sub-0999_T1w"]
    assert plot["unnamed"].count("M") == count - 1
