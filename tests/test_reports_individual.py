"""The participant's report: made from files alone, also after a failure, and with nothing from other hosts."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesr_bids.bids.names import figure_name, image_key
from moesr_bids.reports.derivatives import find_images
from moesr_bids.reports.fragments import methods_html, times_html
from moesr_bids.reports.individual import build_participant_report
from moesr_bids.reports.numbers import number_tables
from moesr_bids.reports.values import number
from tests.reports_data import add_failed, add_finished, add_status, brain_mask, record

CRASH = """Node: moesr_wf.sub_01_wf.conform
Traceback (most recent call last):
  <script>alert("x")</script>
EOFError: Compressed file ended before the end-of-stream marker was reached
"""
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d494844520000000100000001080600000"
    "01f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


class Page(HTMLParser):
    """Collect what a browser would load, the headings and the ids."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.headings: list[str] = []
        self.ids: list[str] = []
        self.images_without_alt = 0
        self.links: list[str] = []
        self._heading = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if "id" in values:
            self.ids.append(values["id"] or "")
        if tag in ("img", "script", "iframe", "object", "link", "source"):
            self.loads += [value or "" for name, value in attrs if name in ("src", "href", "data", "srcset")]
        if tag == "img":
            self.images_without_alt += not values.get("alt")
        if tag == "a":
            self.links.append(values.get("href") or "")
        self._heading = tag in ("h1", "h2", "h3", "h4")

    def handle_data(self, data: str) -> None:
        if self._heading and data.strip():
            self.headings.append(data.strip())

    def handle_endtag(self, tag: str) -> None:
        self._heading = False


def add_figures(out_dir: Path, key: str) -> None:
    folder = out_dir / key.split("_", 1)[0] / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for desc in ("brainmask", "bias", "residual"):
        (folder / figure_name(key, desc, ".png")).write_bytes(PIXEL)
    for desc in ("slider", "registration"):
        html = f'<figure class="moesr-slider">{desc} of {key}</figure>'
        (folder / figure_name(key, desc, ".html")).write_text(html, encoding="ascii")


def report(out_dir: Path, participant: str) -> tuple[str, Page]:
    html = build_participant_report(out_dir, participant).read_text(encoding="utf-8")
    return html, Page(html)


def test_all_sections_of_a_finished_image(tmp_path: Path) -> None:
    add_finished(tmp_path, "sub-01_T1w")
    add_figures(tmp_path, "sub-01_T1w")
    citation = "# Methods\n\nMade with *moesr-bids* and <b>&</b>.\n\n# References\n\n- One\n"
    path = tmp_path / "logs" / "sub-01" / "CITATION.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(citation, encoding="utf-8")
    html, page = report(tmp_path, "01")
    for heading in (
        "Overview",
        "Summary",
        "Input and output",
        "Residual",
        "Brain mask",
        "Registration to the template",
        "Bias field",
        "Times and peak memory",
        "Methods",
        "References",
        "Errors",
    ):
        assert page.headings.count(heading) == 1
    assert "sform and qform differ by 0.3 mm" in html  # a warning
    assert "gaussian 5 mm" in html
    told = {row[0]: row[1:] for table in number_tables(record()) for row in table.rows}
    assert told["Residual in the brain, root mean square"] == ("1.04", "1.01", "1")
    assert told["Share of voxels beyond 3"] == ("0.31 %", "0.29 %", "0.27 %")
    assert all(f">{value}</td>" in html for row in told.values() for value in row if value.isalnum())
    assert "1433 ml" in html
    assert "MNI152NLin2009aSym: 0.957" in html
    assert "2 min 40 s" in html
    assert "<em>moesr-bids</em> and &lt;b&gt;" in html
    assert "No errors." in html
    assert page.images_without_alt == 0
    assert len([load for load in page.loads if load.endswith(".png")]) == 3
    assert all((tmp_path / load).is_file() for load in page.loads if load.endswith(".png"))


def test_no_request_to_another_host(tmp_path: Path) -> None:
    add_finished(tmp_path, "sub-01_T1w")
    add_figures(tmp_path, "sub-01_T1w")
    citation = "![tracker](https://example.org/x.png) [link](https://example.org)\n"
    path = tmp_path / "logs" / "sub-01" / "CITATION.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(citation, encoding="utf-8")
    html, page = report(tmp_path, "01")
    assert page.loads
    assert not [load for load in page.loads if re.match(r"(?:https?:)?//", load)]
    assert not re.search(r"url\(|@import", html)


def test_participant_that_failed_at_the_first_step(tmp_path: Path) -> None:
    add_failed(tmp_path, "sub-01_T1w", CRASH)
    html, page = report(tmp_path, "sub-01")
    assert "failed at step header check: the file is cut short" in html
    assert "EOFError: Compressed file ended" in html
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html
    assert page.headings.index("Errors") < page.headings.index("Images")  # what failed is read first
    assert [path.name for path in tmp_path.glob("*.html")] == ["sub-01.html"]  # no temporary file is left


def test_participant_without_any_record(tmp_path: Path) -> None:
    html, _ = report(tmp_path, "09")
    assert "No image of this participant was found" in html


def test_status_of_a_whole_participant(tmp_path: Path) -> None:
    add_status(tmp_path, "sub-01", image="n/a", state="failed", step="collect", reason="no T1w, T2w or FLAIR")
    html, page = report(tmp_path, "01")
    assert "failed at step search for images: no T1w, T2w or FLAIR" in html
    assert "#Errors" in page.links


def test_crash_file_that_no_image_names(tmp_path: Path) -> None:
    add_finished(tmp_path, "sub-01_T1w")
    crash = tmp_path / "logs" / "sub-01" / "crash-old.txt"
    crash.parent.mkdir(parents=True)
    crash.write_text("x" * 200_000 + "the end", encoding="utf-8")
    html, _ = report(tmp_path, "01")
    assert "Other crash files" in html
    assert "the end" in html
    assert len(html) < 150_000  # a huge crash file is cut, and the page says so
    assert "only the last 100000 characters" in html


def test_a_crash_file_outside_of_the_output_folder_is_not_shown(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("not to be shown", encoding="utf-8")
    out = tmp_path / "out"
    for crash_file in (str(secret), "../secret.txt", "logs/link/secret.txt"):
        add_status(out, "sub-01_T1w", state="failed", crash_file=crash_file)
        (out / "logs" / "link").unlink(missing_ok=True)
        (out / "logs" / "link").symlink_to(tmp_path)
        html, _ = report(out, "01")
        assert "not to be shown" not in html
        assert "out of the folder" in html or "leaves its folder" in html


def test_two_sessions_with_acquisitions_and_runs(tmp_path: Path) -> None:
    keys = [
        "sub-01_ses-post_acq-mprage_run-02_T1w",
        "sub-01_ses-pre_FLAIR",
        "sub-01_ses-pre_acq-mprage_run-01_T1w",
        "sub-01_ses-pre_acq-mprage_run-02_T1w",
    ]
    for number_, key in enumerate(keys):
        add_finished(tmp_path, key, NoisePercent=1.11 * (number_ + 1), BrainMask=brain_mask(VolumeML=1400 + number_))
        add_figures(tmp_path, key)
    add_finished(tmp_path, "sub-010_T1w", Warnings=["of another participant"])
    html, page = report(tmp_path, "01")
    for number_, key in enumerate(keys):
        block = html.split(f'id="image-{key}"')[1].split('id="image-')[0]
        assert f"{1400 + number_} ml" in block  # each image's numbers stand in its own block
        assert html.count(f"slider of {key}<") == 1
        assert f"#image-{key}" in page.links
    assert len(page.ids) == len(set(page.ids))
    assert "of another participant" not in html
    sliders = re.findall(r"slider of (\S+)<", html)
    assert sorted(sliders) == sorted(keys)
    # a block keeps to one image: its still figures follow its own slider
    for key, block in zip(sliders, html.split("slider of ")[1:], strict=True):
        assert set(re.findall(r"figures/(\S+?)_desc-\w+_(\w+)\.png", block)) == {tuple(key.rsplit("_", 1))}


def test_stale_output_of_a_failed_image_is_called_stale(tmp_path: Path) -> None:
    add_finished(tmp_path, "sub-01_T1w")
    add_failed(tmp_path, "sub-01_T1w", CRASH)
    assert "those of an earlier run" in report(tmp_path, "01")[0]


def test_missing_and_unreadable_outputs_are_told(tmp_path: Path) -> None:
    add_finished(tmp_path, "sub-01_T1w").with_suffix(".nii.gz").unlink()
    add_finished(tmp_path, "sub-01_T2w").write_text("{", encoding="utf-8")
    html, _ = report(tmp_path, "01")
    assert [record.state for record in find_images(tmp_path, "sub-01")] == ["missing", "missing"]
    assert "desc-moesr_T2w.json could not be read" in html
    assert html.count("the main output is missing") >= 2


def test_facts_that_a_model_does_not_state_are_shown_as_not_available(tmp_path: Path) -> None:
    add_finished(tmp_path, "sub-01_T1w", BrainMask=brain_mask(MisfitMM=None), Registration={}, Steps=[])
    html, _ = report(tmp_path, "01")
    assert "misfit of the structures' centres and the template's</th><td>0.912; n/a mm</td>" in unescape(html)
    assert "this model states none" in html


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"NoiseStd": "12.5"}, "noise_std"),
        ({"InputZooms": [1.0, 1.0]}, "input_zooms"),
        ({"BrainMask": {}}, "brain_mask"),
        ({"Outputs": ["../../etc/passwd"]}, "leaves its folder"),
        ({"SchemaVersion": 0}, "schema version 0"),
    ],
)
def test_a_damaged_record_counts_as_missing_and_is_told(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    add_finished(tmp_path, "sub-01_T1w", **changes)
    html, _ = report(tmp_path, "01")
    (found,) = find_images(tmp_path, "sub-01")
    assert found.state == "missing"
    assert words in html


def test_report_is_made_again_over_an_old_one(tmp_path: Path) -> None:
    add_failed(tmp_path, "sub-01_T1w", CRASH)
    report(tmp_path, "01")
    add_finished(tmp_path, "sub-01_T1w")
    html, _ = report(tmp_path, "01")
    assert "failed at step" not in html


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    add_finished(tmp_path, "sub-01_T1w", Warnings=["<img src=x onerror=alert(1)>"], Model="<i>m</i>")
    html, page = report(tmp_path, "01")
    assert "x" not in page.loads
    assert "<i>m</i>" not in html


def test_output_folder_with_odd_characters(tmp_path: Path) -> None:
    folder = tmp_path / "it's {odd}: #1 Å"
    add_finished(folder, "sub-01_T1w")
    html, _ = report(folder, "01")
    assert ">1.04</td>" in html


def test_bars_are_in_proportion_to_time() -> None:
    html = times_html(record(Steps=[{"Step": "a", "Seconds": 10.0}, {"Step": "b", "Seconds": 40.0}], Stages=[]))
    assert [float(width) for width in re.findall(r"width: ([\d.]+)%", html)] == [25.0, 100.0]


def test_methods_text_is_optional(tmp_path: Path) -> None:
    assert "No methods text" in methods_html(tmp_path, "sub-01")


_LABEL = st.text("abcXYZ019", min_size=1, max_size=6)


@given(st.dictionaries(st.sampled_from(["ses", "acq", "run", "rec"]), _LABEL), st.sampled_from(["T1w", "T2w", "FLAIR"]))
def test_a_figure_belongs_to_its_image(entities: dict[str, str], suffix: str) -> None:
    key = "_".join(["sub-01", *(f"{name}-{value}" for name, value in entities.items()), suffix])
    assert image_key(figure_name(key, "slider", ".html")) == key
    assert image_key(f"sub-01/anat/{key}.nii.gz") == key


@given(st.floats(-1e6, 1e6, allow_nan=False))
def test_rounding_keeps_three_digits(value: float) -> None:
    assert "e" not in number(value, 3)
    assert float(number(value, 3)) == pytest.approx(value, rel=5.1e-3, abs=1e-9)  # smaller is told as 0


def rows_of(**changes: Any) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for table in number_tables(record(**changes)) for row in table.rows}


def test_every_number_stands_in_one_small_table() -> None:
    tables = number_tables(record())
    names = [row[0] for table in tables for row in table.rows]
    assert len(names) == len(set(names))
    for table in tables:
        assert len(table.rows) <= 8
        assert {len(row) - 1 for row in table.rows} == {len(table.heads) or 1}


def test_finest_detail_of_both_sides_is_told() -> None:
    def told(**changes: Any) -> list[tuple[str, ...]]:
        return [values for name, values in rows_of(**changes).items() if name.startswith("Finest detail")]

    assert told() == [("1", "0.7"), ("1.1", "0.7"), ("5", "n/a")]
    assert told(ImageQuality=None) == [("n/a", "n/a")] * 3


def test_the_way_of_the_projection_is_told_where_it_went_one() -> None:
    assert "lambda 0.01; farthest at (" in rows_of()["Projection onto the scan"][0]
    assert rows_of(Lambda=0)["Projection onto the scan"] == ("did not change the image (lambda 0)",)


def test_slider_comes_before_rating_and_tables_and_all_else_is_folded(tmp_path: Path) -> None:
    add_finished(tmp_path, "sub-01_T1w")
    add_figures(tmp_path, "sub-01_T1w")
    html, page = report(tmp_path, "01")
    block = html[html.index('id="image-sub-01_T1w"') : html.index("</article>")]
    assert block.index("slider of sub-01_T1w") < min(block.index('class="rating"'), block.index("<table"))
    outside = re.sub(r"<details.*?</details>", "", block, flags=re.DOTALL)
    assert "<table" not in outside
    assert ".png" not in outside
    folded = re.findall(r"<summary><h4>(.*?)</h4></summary>", block)
    assert folded == [
        *("Residual", "Numbers", "Brain mask", "Registration to the template", "Bias field"),
        "Times and peak memory",
    ]
    assert page.headings.count("Input and output") == 1


def test_stages_stand_under_their_step() -> None:
    steps = [{"Step": name, "Seconds": 1.0} for name in ("n4", "super_resolve", "quality")]
    html = times_html(
        record(
            Steps=steps,
            Stages=[{"Stage": name, "Seconds": 0.5, "PeakMemoryGB": 1.0} for name in ("prepare", "project")],
        )
    )
    assert re.findall(r'<th scope="row">(.*?)</th>', html)[:-1] == [
        *("bias field", "super-resolution", "reading and preparation", "projection onto the scan", "image quality"),
    ]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"Flips": 1}, "one evaluation"),
        ({"Flips": 8}, "mean over 8 flips"),
        ({"Sampling": {"Estimate": "mean", "Samples": 0, "Flips": 8}}, "mean over 8 flips"),
        ({"Sampling": {"Estimate": "mean", "Samples": 12, "Flips": 8}}, "mean of 12 samples"),
        (
            {"Sampling": {"Estimate": "sample", "Samples": 1, "Flips": 1, "DetailGain": 1.5, "DetailNoiseShare": 0.07}},
            "its detail was amplified by 1.5 on average, and 7 % of the energy of its detail is drawn noise",
        ),
    ],
)
def test_it_is_told_what_the_image_is_the_estimate_of(tmp_path: Path, facts: dict[str, Any], words: str) -> None:
    add_finished(tmp_path, "sub-01_T1w", **facts)
    html, _ = report(tmp_path, "01")
    assert words in html


def test_a_brain_in_doubt_is_shown_first(tmp_path: Path) -> None:
    add_finished(tmp_path, "sub-01_T1w")
    add_finished(tmp_path, "sub-01_FLAIR", BrainMask=brain_mask(Doubts=["only 55% of <it>"]))
    for key in ("sub-01_T1w", "sub-01_FLAIR"):
        add_figures(tmp_path, key)
    html, page = report(tmp_path, "01")
    first = page.headings.index("Brain in doubt")
    assert first < page.headings.index("Brain mask")
    shown = html[html.index("only 55% of &lt;it&gt;. Does the outline") :]
    assert shown.index("sub-01/figures/sub-01_desc-brainmask_FLAIR.png") < shown.index("T1w")
