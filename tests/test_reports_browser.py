"""The pages in a real browser: slider, sorting, no console error, no request to any host."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
import pytest

from moesr_bids.bids.names import figure_name
from moesr_bids.interfaces.reportlets import ImageReportlets
from moesr_bids.reports.figures import plot_mask
from moesr_bids.reports.group import build_group
from moesr_bids.reports.individual import build_participant_report
from moesr_bids.reports.slider import plot_slider
from moesr_bids.reports.zooms import plot_zooms
from tests.reports_data import add_failed, add_finished, save, sr_record, write_volumes

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


class Watched:
    """A page with what it logged and asked for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self._note(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url[:80]}"))
        page.on("request", lambda request: self.requests.append(request.url))

    def _note(self, text: str) -> None:
        # Without a GPU the browser says that WebGL is slow.
        if "GL Driver Message" not in text:
            self.complaints.append(text)

    @property
    def hosts(self) -> list[str]:
        return [url for url in self.requests if not url.startswith(("file://", "data:"))]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not there: install Debian's chromium to test the pages in a browser")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield running
        running.close()


def write_tissues(folder: Path, image: Path) -> Path:
    """Write labels of the bright and the half bright voxels of an image."""
    grid = nb.load(image)
    labels = np.select([grid.get_fdata() > 120, grid.get_fdata() > 60], [1, 2], 0).astype(np.uint8)
    return save(folder / "tissues.nii.gz", labels, grid.affine)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output folder of a participant of three images with all their figures."""
    folder = tmp_path_factory.mktemp("three")
    volumes = write_volumes(folder / "work")
    tissues = write_tissues(folder / "work", volumes["sr"])
    given = {
        "preproc_file": volumes["preproc"],
        "mask_file": volumes["mask"],
        "bias_file": volumes["field"],
        "sr_file": volumes["sr"],
        "tissue_file": tissues,
        "uncertainty_file": volumes["sr"],
        "residual_file": volumes["residual"],
        "warped_file": volumes["sr"],
        "template_file": volumes["template"],
        "template_mask_file": volumes["template_mask"],
        "reference_file": volumes["sr"],
        "coregistered_file": volumes["sr"],
    }
    interface = ImageReportlets(**{name: str(path) for name, path in given.items()}, sr_record=sr_record())
    here = Path.cwd()
    (folder / "drawn").mkdir()
    os.chdir(folder / "drawn")
    try:
        drawn = [Path(file) for file in interface.run().outputs.out_files]
    finally:
        os.chdir(here)
    figures = folder / "sub-01" / "figures"
    figures.mkdir(parents=True)
    for suffix in ("T1w", "T2w", "FLAIR"):
        key = f"sub-01_{suffix}"
        # One of them with all that a page says of an image.
        add_finished(folder, key, **({"NoisePercent": 12.0, "Warnings": ["w" * 200] * 4} if suffix == "T2w" else {}))
        for file in drawn:
            shutil.copy(file, figures / figure_name(key, file.stem, file.suffix))
    build_participant_report(folder, "01", single_file=True)
    return folder


@pytest.fixture(scope="module")
def out_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    volumes = write_volumes(folder / "work")
    tissues = write_tissues(folder / "work", volumes["sr"])
    for key, noise in (("sub-01_ses-a_T1w", 10.5), ("sub-01_ses-b_T1w", 9.25)):
        add_finished(folder, key, NoisePercent=noise)
        figures = folder / "sub-01" / "figures"
        slider = figures / figure_name(key, "slider", ".html")
        plot_slider(volumes["preproc"], volumes["sr"], slider, mask_path=volumes["mask"])
        plot_zooms(volumes["preproc"], volumes["sr"], tissues, figures / figure_name(key, "zooms", ".html"))
        plot_mask(volumes["preproc"], volumes["mask"], figures / figure_name(key, "brainmask", ".png"))
    add_failed(folder, "sub-02_T1w", "Traceback\n<script>document.title = 'hacked'</script>")
    for participant in ("01", "02"):
        build_participant_report(folder, participant)
    return folder


def screenshot(element: Any) -> np.ndarray:
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("L"), dtype=int)


def open_page(browser: Any, path: Path, width: int = 1280) -> Watched:
    watched = Watched(browser.new_page(viewport={"width": width, "height": 900}))
    watched.page.goto(path.as_uri())
    return watched


def test_slider_follows_keyboard_mouse_and_choices(browser: Any, out_dir: Path) -> None:
    watched = open_page(browser, out_dir / "sub-01.html")
    first, second = (watched.page.locator(".moesr-slider").nth(number) for number in (0, 1))
    divider = first.locator(".divider")
    panel = first.locator(".level:not([hidden]) .panel").nth(1)
    divider.focus()
    watched.page.keyboard.press("Home")
    all_output = screenshot(panel)
    watched.page.keyboard.press("End")
    all_input = screenshot(panel)
    assert np.abs(all_output - all_input).mean() > 2
    watched.page.keyboard.press("ArrowLeft")
    assert divider.input_value() == "99"
    assert second.locator(".divider").input_value() == "50"  # sliders do not touch each other

    box = panel.bounding_box()
    watched.page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 20)
    watched.page.mouse.down()
    watched.page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 30)
    watched.page.mouse.up()
    assert abs(int(divider.input_value()) - 25) <= 1
    mixed = screenshot(panel)
    left, right = slice(40, int(0.2 * mixed.shape[1])), slice(int(0.3 * mixed.shape[1]), -40)
    rows = slice(30, -30)  # without the labels
    assert np.abs(mixed - all_input)[rows, left].mean() < 1
    assert np.abs(mixed - all_output)[rows, right].mean() < 1

    divider.fill("100")
    first.locator(".choose-display").select_option("nearest")
    assert np.abs(screenshot(panel) - all_input).mean() > 0.5
    first.locator(".choose-level").select_option("0")
    assert first.locator(".level:not([hidden])").count() == 1
    assert watched.complaints == []
    assert watched.hosts == []


def test_a_single_file_needs_no_other(browser: Any, out_dir: Path, tmp_path: Path) -> None:
    page = build_participant_report(out_dir, "01", single_file=True)
    alone = tmp_path / "mailed.html"
    alone.write_bytes(page.read_bytes())
    build_participant_report(out_dir, "01")
    watched = open_page(browser, alone)
    pictures = watched.page.locator("img")
    assert pictures.count() > 2
    widths = pictures.evaluate_all("pictures => pictures.filter(p => p.checkVisibility()).map(p => p.naturalWidth)")
    assert min(widths, default=0) > 0  # 0 is a picture that was not found
    assert watched.complaints == []
    assert [url for url in watched.requests if url.startswith("file:")] == [alone.as_uri()]
    assert watched.hosts == []
    assert watched.page.locator("text=Get figure file").count() == 0


def test_slider_follows_a_finger(browser: Any, out_dir: Path) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    page = context.new_page()
    page.goto((out_dir / "sub-01.html").as_uri())
    panel = page.locator(".moesr-slider .level:not([hidden]) .panel").first
    panel.scroll_into_view_if_needed()
    box = panel.bounding_box()
    page.touchscreen.tap(box["x"] + 0.8 * box["width"], box["y"] + 0.5 * box["height"])
    assert abs(int(page.locator(".divider").first.input_value()) - 80) <= 1
    context.close()


def test_zooms_follow_keyboard_and_finger_by_themselves(browser: Any, out_dir: Path) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    watched = Watched(context.new_page())
    page = watched.page
    page.goto((out_dir / "sub-01.html").as_uri())
    zooms = page.locator(".moesr-slider.magnified").first
    names = zooms.locator(".level:not([hidden]) .tag.where").all_text_contents()
    assert [name.split(",")[0] for name in names] == ["cortex", "deep white matter", "grey-white junction"]
    divider, panel = zooms.locator(".divider"), zooms.locator(".level:not([hidden]) .panel").nth(2)
    divider.focus()
    page.keyboard.press("Home")
    all_output = screenshot(panel)
    page.keyboard.press("End")
    assert np.abs(all_output - screenshot(panel)).mean() > 2
    box = panel.bounding_box()
    page.touchscreen.tap(box["x"] + 0.3 * box["width"], box["y"] + 0.5 * box["height"])
    assert abs(int(divider.input_value()) - 30) <= 1
    assert page.locator(".moesr-slider:not(.magnified) .divider").first.input_value() == "50"
    zooms.get_by_label("Plane").select_option("sagittal")
    assert zooms.locator(".level:not([hidden]) img.after").first.get_attribute("alt").endswith("mm")
    assert "sagittal slice" in zooms.locator(".level:not([hidden]) img.after").first.get_attribute("alt")
    # What is magnified fills the picture: no wider than the page, and not as small as its voxels.
    assert 250 < panel.bounding_box()["width"] <= 390
    assert watched.complaints == []
    context.close()


def test_quality_metrics_stand_on_the_page(browser: Any, out_dir: Path) -> None:
    watched = open_page(browser, out_dir / "sub-01.html")
    watched.page.locator("details", has_text="Numbers").first.locator("> summary").click()
    row = watched.page.locator(".quality tr:visible", has_text="fwhm_avg").first
    assert row.locator("td.number").all_text_contents() == ["2.6", "6.5"]


def test_cohort_page_names_what_to_look_at(browser: Any, tmp_path: Path) -> None:
    add_finished(tmp_path, "sub-01_T1w")
    add_finished(tmp_path, "sub-02_T1w", NoisePercent=40.0)
    add_failed(tmp_path, "sub-03_T1w", "boom")
    build_participant_report(tmp_path, "02")
    build_group(tmp_path)
    watched = open_page(browser, tmp_path / "group.html", width=390)
    assert "1 ok, 1 look, 1 failed" in " ".join(watched.page.locator("main > p").first.text_content().split())
    watched.page.locator("nav a", has_text="To look at").click()
    assert "the noise" in watched.page.locator("#look + details li").text_content()
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 390
    watched.page.locator("#look + details a").click()
    watched.page.wait_for_url("**/sub-02.html#image-sub-02_T1w")
    assert watched.complaints == []


def test_ratings_are_kept_saved_and_read_back(browser: Any, out_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "out"
    shutil.copytree(out_dir, copy)
    context = browser.new_context(accept_downloads=True)
    watched = Watched(context.new_page())
    page, address = watched.page, (copy / "sub-01.html").as_uri()
    page.goto(address)
    form = page.locator("form.rating[data-rated-image='sub-01_ses-b_T1w']")
    assert form.locator("input:checked").get_attribute("value") == ""
    form.get_by_label("exclude").check()
    form.locator("textarea").fill("ghost\tin <b>front</b>\nof it")
    page.goto("about:blank")
    page.goto(address)
    assert form.locator("input:checked").get_attribute("value") == "exclude"
    assert page.locator("form.rating[data-rated-image='sub-01_ses-a_T1w'] input:checked").get_attribute("value") == ""
    build_group(copy)
    page.goto((copy / "group.html").as_uri())
    # What this browser keeps is shown before it is saved.
    assert page.locator(".rating-cell").all_text_contents() == ["n/a", "exclude", "n/a"]
    with page.expect_download() as download:
        page.locator(".save-ratings").click()
    assert download.value.suggested_filename == "ratings.tsv"
    download.value.save_as(copy / "ratings.tsv")
    context.close()
    lines = (copy / "ratings.tsv").read_text().splitlines()
    assert [line.split("\t")[:5] for line in lines] == [
        ["participant_id", "session_id", "image", "rating", "comment"],
        ["sub-01", "ses-b", "sub-01_ses-b_T1w", "exclude", "ghost in <b>front</b> of it"],
    ]
    build_group(copy)
    assert "\texclude\tghost in <b>front</b> of it\t" in (copy / "group_T1w.tsv").read_text()
    other = open_page(browser, copy / "group.html")
    assert other.page.locator(".rating-cell").all_text_contents() == ["n/a", "exclude", "n/a"]
    assert watched.complaints == other.complaints == []


def test_dots_of_the_cohort_lead_to_the_reports(browser: Any, tmp_path: Path) -> None:
    for number in range(12):
        key = f"sub-{number:02d}_T1w"
        add_finished(tmp_path, key, NoisePercent=60.0 if number == 7 else 2.0 + 0.1 * number)
    build_participant_report(tmp_path, "07")
    build_group(tmp_path)
    assert "\tnoise_percent\t" in (tmp_path / "group_T1w.tsv").read_text()
    watched = open_page(browser, tmp_path / "group.html")
    plot = watched.page.locator(".distributions figure", has_text="Noise, %")
    assert plot.locator(".dot").count() == 12
    assert plot.locator(".limit").count() == 1
    far = plot.locator(".dot.far")
    assert far.locator("title").text_content() == "sub-07_T1w: 60"
    # The dots lie inside of their plot.
    box, dot = plot.locator("svg").bounding_box(), far.bounding_box()
    assert box["x"] < dot["x"] < box["x"] + box["width"] and box["y"] < dot["y"] < box["y"] + box["height"]
    far.click()
    watched.page.wait_for_url("**/sub-07.html#image-sub-07_T1w")
    assert watched.hosts == []
    assert watched.complaints == []


def test_group_page_shows_the_rows_that_are_looked_for(browser: Any, out_dir: Path) -> None:
    build_group(out_dir)
    watched = open_page(browser, out_dir / "group.html")
    watched.page.locator(".filter").fill("SES-A")
    assert watched.page.locator(".cohort tbody tr:visible").count() == 1
    assert watched.page.locator(".shown").text_content() == "1 of 3"
    watched.page.locator(".filter").fill("")
    assert watched.page.locator(".cohort tbody tr:visible").count() == 3
    assert watched.complaints == []


def test_three_images_fit_ten_screens_and_nothing_is_lost(browser: Any, three: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto((three / "sub-01.html").as_uri())
    assert page.evaluate("document.documentElement.scrollHeight") <= 10 * 800
    image = page.locator("article.image").nth(1)
    slider, rating = image.locator(".moesr-slider").first.bounding_box(), image.locator(".rating").bounding_box()
    assert slider["y"] + slider["height"] <= rating["y"]
    assert slider["y"] - image.bounding_box()["y"] < 120  # nothing but the heading above it
    assert image.locator("table:visible, .png-reportlet:visible").count() == 0
    # Every part is there, by mouse and by keyboard.
    parts = image.locator("details.reportlet-block")
    assert parts.count() >= 9
    for number in range(parts.count()):
        part = parts.nth(number)
        part.locator("> summary").focus()
        page.keyboard.press("Enter")
        assert part.get_attribute("open") is not None
        assert part.bounding_box()["height"] > 100
    assert image.locator(".unfold").text_content() == "Fold all"
    image.locator(".unfold").click()
    assert image.locator("details[open]").count() == 0
    image.locator(".unfold").click()
    pictures = image.locator("img.png-reportlet")
    assert pictures.count() >= 5
    assert pictures.evaluate_all("all => all.every(one => one.checkVisibility() && one.naturalWidth > 0)")
    assert image.locator("table:visible").count() >= 7
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.close()


def test_the_page_of_an_image_can_be_mailed(three: Path) -> None:
    size = (three / "sub-01.html").stat().st_size
    assert size / 3 < 2_000_000
    for picture in (three / "sub-01" / "figures").glob("*.png"):
        assert picture.stat().st_size < 400_000, picture.name


def test_planes_of_a_slider_have_one_scale(browser: Any, three: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto((three / "sub-01.html").as_uri())
    stages = page.locator(".moesr-slider").first.locator(".level:not([hidden]) .stage")
    scales = stages.evaluate_all(
        "all => all.map(one => one.getBoundingClientRect().width / Number(one.style.aspectRatio.split('/')[0]))"
    )
    assert len(scales) == 3
    assert max(scales) < 1.03 * min(scales)
    page.close()


@pytest.mark.parametrize("name", ["sub-01.html", "sub-02.html"])
def test_pages_fit_a_phone(browser: Any, out_dir: Path, name: str) -> None:
    watched = open_page(browser, out_dir / name, width=390)
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert watched.page.title() == f"moesr-bids: {name.removesuffix('.html')}"
    assert watched.page.evaluate("Array.from(document.images).every(image => image.naturalWidth > 0)")
    assert watched.complaints == []
    assert watched.hosts == []


def test_group_page_sorts_and_links(browser: Any, out_dir: Path) -> None:
    build_group(out_dir)
    watched = open_page(browser, out_dir / "group.html")
    heading = watched.page.locator("thead button", has_text="Noise,")
    noise = "Array.from(document.querySelectorAll('.cohort tbody tr')).map(row => row.cells[12].textContent)"
    heading.click()
    assert watched.page.evaluate(noise) == ["9.25", "10.5", "n/a"]  # by value, not by digit
    heading.click()
    assert watched.page.evaluate(noise) == ["10.5", "9.25", "n/a"]  # n/a stays last
    assert watched.page.locator("th[aria-sort=descending]").count() == 1
    watched.page.locator(".cohort a", has_text="sub-01_ses-b_T1w").click()
    watched.page.wait_for_url("**/sub-01.html#image-sub-01_ses-b_T1w")
    assert watched.complaints == []
    assert watched.hosts == []


def test_group_page_with_five_thousand_images(browser: Any, tmp_path: Path) -> None:
    for number in range(5000):
        add_finished(tmp_path, f"sub-{number:04d}_T1w", NoisePercent=float((number * 7919) % 5000))
    build_group(tmp_path)
    watched = open_page(browser, tmp_path / "group.html")
    start = time.monotonic()
    watched.page.locator("thead button", has_text="Noise,").click()
    first = watched.page.evaluate("document.querySelector('.cohort tbody tr').cells[12].textContent")
    assert first == "0"
    assert time.monotonic() - start < 10  # seconds on a slow machine; about one on a laptop
    assert watched.complaints == []
