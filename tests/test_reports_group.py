"""Cohort tables and page, from derivatives alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from moesr_bids.reports.derivatives import find_images
from moesr_bids.reports.group import build_group
from moesr_bids.reports.individual import build_participant_report
from moesr_bids.reports.verdict import RULES
from tests.reports_data import add_failed, add_finished, add_status, moesr


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_tables_hold_every_image_once(tmp_path: Path) -> None:
    add_finished(tmp_path, "sub-01_ses-a_T1w")
    add_finished(tmp_path, "sub-01_ses-b_run-1_T1w", NoisePercent=3.5)
    add_finished(tmp_path, "sub-02_FLAIR")
    add_failed(tmp_path, "sub-03_T1w", "boom", reason="first line\tof\nthe <reason>")
    add_status(tmp_path, "sub-04_T1w", state="running", step="n4")
    add_finished(tmp_path, "sub-05_T1w").with_suffix(".nii.gz").unlink()
    build_participant_report(tmp_path, "01")
    written = [path.name for path in build_group(tmp_path)]
    assert written == ["group_FLAIR.tsv", "group_FLAIR.json", "group_T1w.tsv", "group_T1w.json", "group.html"]
    rows = rows_of(tmp_path / "group_T1w.tsv")
    assert [(row["image"], row["state"]) for row in rows] == [
        ("sub-01_ses-a_T1w", "done"),
        ("sub-01_ses-b_run-1_T1w", "done"),
        ("sub-03_T1w", "failed"),
        ("sub-04_T1w", "running"),
        ("sub-05_T1w", "missing"),
    ]
    assert rows[1]["noise_percent"] == "3.5"
    assert rows[1]["session_id"] == "ses-b"
    assert rows[0]["registration_dice"] == "0.957"
    assert rows[2]["reason"] == "first line of the <reason>"
    assert rows[2]["noise_percent"] == "n/a"
    html = (tmp_path / "group.html").read_text(encoding="utf-8")
    assert "6 images of 5 participants" in " ".join(html.split())
    assert "first line\tof\nthe &lt;reason&gt;" in html
    assert 'href="sub-01.html#image-sub-01_ses-a_T1w"' in html
    assert 'href="sub-02.html' not in html  # no such report, no link
    for key in ("sub-03_T1w", "sub-04_T1w", "sub-05_T1w"):
        assert f"<li>{key}: " in html


def test_what_an_earlier_run_has_left_is_not_of_this_one(tmp_path: Path) -> None:
    add_finished(tmp_path, "sub-01_T1w")
    for name, state in (("02", "failed"), ("03", "running"), ("04", "waiting")):
        add_finished(tmp_path, f"sub-{name}_T1w", NoisePercent=7.5)
        add_status(tmp_path, f"sub-{name}_T1w", state=state)
    build_group(tmp_path)
    rows = rows_of(tmp_path / "group_T1w.tsv")
    assert [row["verdict"] for row in rows] == ["ok", "failed", "unfinished", "unfinished"]
    assert [row["state"] for row in rows] == ["done", "failed", "running", "waiting"]
    assert [row["noise_percent"] == "n/a" for row in rows] == [False, True, True, True]
    page = " ".join((tmp_path / "group.html").read_text(encoding="utf-8").split())
    assert "1 failed</span>, 2 unfinished. Tables" in page
    build_participant_report(tmp_path, "sub-03")
    assert "No crash file was written" not in (tmp_path / "sub-03.html").read_text(encoding="utf-8")
    build_participant_report(tmp_path, "sub-02")
    assert "No crash file was written" in (tmp_path / "sub-02.html").read_text(encoding="utf-8")


def test_columns_are_those_of_the_data_dictionary(tmp_path: Path) -> None:
    add_finished(tmp_path, "sub-01_T1w")
    build_group(tmp_path)
    columns = list(rows_of(tmp_path / "group_T1w.tsv")[0])
    dictionary = json.loads((tmp_path / "group_T1w.json").read_text(encoding="utf-8"))
    assert columns == list(dictionary)
    assert all(entry["Description"] for entry in dictionary.values())


def test_quality_metrics_have_a_column_per_side(tmp_path: Path) -> None:
    add_finished(tmp_path, "sub-01_T1w")
    add_finished(tmp_path, "sub-02_T1w", ImageQuality={**moesr()["ImageQuality"], "Input": {"cnr": 3.25}, "Output": {}})
    build_group(tmp_path)
    first, second = rows_of(tmp_path / "group_T1w.tsv")
    assert (first["input_fwhm_avg"], first["output_fwhm_avg"], first["input_fber"]) == ("2.6", "6.5", "n/a")
    assert (first["input_inu_range"], "output_inu_range" in first) == ("0.31", False)
    assert (second["input_cnr"], second["output_cnr"]) == ("3.25", "n/a")
    dictionary = json.loads((tmp_path / "group_T1w.json").read_text(encoding="utf-8"))
    assert dictionary["output_fwhm_avg"]["Units"] == "voxels"


def test_broken_sidecar_does_not_stop_the_table(tmp_path: Path) -> None:
    add_finished(tmp_path, "sub-01_T1w").write_text("[1]", encoding="utf-8")
    add_finished(tmp_path, "sub-02_T1w", Registration={})
    add_finished(tmp_path, "sub-03_T1w", InputZooms="n/a")
    build_group(tmp_path)
    rows = rows_of(tmp_path / "group_T1w.tsv")
    assert [row["state"] for row in rows] == ["missing", "done", "missing"]
    assert [row["n_warnings"] for row in rows] == ["1", "1", "1"]
    assert [row["registration_dice"] for row in rows] == ["n/a"] * 3
    assert [row["input_zoom_i"] for row in rows] == ["n/a", "1", "n/a"]


def test_page_is_small_and_its_table_comes_before_the_plots(tmp_path: Path) -> None:
    sizes = []
    for count in (1, 12):
        for number in range(count):
            add_finished(tmp_path, f"sub-{number:02d}_T1w", NoisePercent=2.0 + 0.1 * number)
        build_group(tmp_path)
        sizes.append((tmp_path / "group.html").stat().st_size)
    assert sizes[0] < 100_000
    assert (sizes[1] - sizes[0]) / 11 < 100_000
    page = (tmp_path / "group.html").read_text(encoding="utf-8")
    places = [page.index(text) for text in ("Verdicts:", 'id="look"', "<tbody>", 'id="distributions"', "<svg")]
    assert places == sorted(places)
    assert page.count(">limit 8<") == 1  # that of the noise
    for number in range(5, 12):
        (tmp_path / f"sub-{number:02d}/anat/sub-{number:02d}_res-0p7mm_desc-moesr_T1w.json").unlink()
        (tmp_path / f"logs/status/sub-{number:02d}_T1w.json").unlink()
    build_group(tmp_path)
    assert "<svg" not in (tmp_path / "group.html").read_text(encoding="utf-8")


def test_the_table_holds_what_the_verdict_asks(tmp_path: Path) -> None:
    add_finished(tmp_path, "sub-01_T1w")
    build_group(tmp_path)
    (row,) = rows_of(tmp_path / "group_T1w.tsv")
    (image,) = find_images(tmp_path)
    assert image.moesr is not None
    for rule in RULES:
        value = rule.value(image.moesr)
        assert row[rule.column] == ("n/a" if value is None else f"{value:.6g}"), rule.column


def test_empty_folder_writes_nothing(tmp_path: Path) -> None:
    assert build_group(tmp_path) == ()
    assert list(tmp_path.iterdir()) == []


def rate(path: Path, *rows: tuple[str, ...]) -> None:
    header = ("participant_id", "session_id", "image", "rating", "comment", "settings_hash", "rated")
    path.write_text("\n".join("\t".join(row) for row in (header, *rows)) + "\n", encoding="utf-8")


def test_the_latest_rating_of_the_output_that_is_there_counts(tmp_path: Path) -> None:
    for key in ("sub-01_T1w", "sub-02_T1w", "sub-03_T1w"):
        add_finished(tmp_path, key)
    now = "0" * 64
    rate(
        tmp_path / "sub-01_ratings.tsv",
        ("sub-01", "n/a", "sub-01_T1w", "keep", "fine", now, "2026-01-02T00:00:00Z"),
        ("sub-02", "n/a", "sub-02_T1w", "exclude", "n/a", "of an older output", "2026-01-02T00:00:00Z"),
    )
    rate(tmp_path / "ratings (1).tsv", ("sub-01", "n/a", "sub-01_T1w", "exclude", "n/a", now, "2026-01-01T00:00:00Z"))
    build_group(tmp_path)
    rows = rows_of(tmp_path / "group_T1w.tsv")
    assert [(row["rating"], row["comment"]) for row in rows] == [("keep", "fine"), ("n/a", "n/a"), ("n/a", "n/a")]
    assert "replaced since:\nsub-02_T1w." in (tmp_path / "group.html").read_text()
    assert list(json.loads((tmp_path / "ratings (1).json").read_text())) == list(
        rows_of(tmp_path / "ratings (1).tsv")[0]
    )


def test_what_is_no_table_of_ratings_is_refused(tmp_path: Path) -> None:
    add_finished(tmp_path, "sub-01_T1w")
    (tmp_path / "ratings.tsv").write_text("image\trating\nsub-01_T1w\tkeep\n")
    with pytest.raises(ValueError, match=r"ratings\.tsv: no column participant_id"):
        build_group(tmp_path)
    assert not (tmp_path / "group.html").exists()
