"""Figures of the reports: the right voxels, the right way up, with all that a reader must see."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colormaps
from matplotlib.axes import Axes
from PIL import Image

from moesr_bids.bids.record import AxisProfile
from moesr_bids.interfaces.reportlets import ImageReportlets
from moesr_bids.reports import figures, residual
from moesr_bids.reports.departures import APART_MM, PLACES, largest_places, plot_departures
from moesr_bids.reports.drawing import BAR, DPI
from moesr_bids.reports.experts import COLOURS, plot_experts
from moesr_bids.reports.figures import plot_bias, plot_mask, plot_structures, plot_uncertainty
from moesr_bids.reports.planes import Volume, bounding_box, forget_volumes, plane, plane_of_other, spline_coefficients
from moesr_bids.reports.residual import plot_residual
from moesr_bids.reports.slider import plot_registration, plot_slider
from moesr_bids.reports.spectrum import measured_up_to, plot_spectrum
from moesr_bids.reports.zooms import plot_zooms
from moesr_bids.segmentation.structures import STRUCTURES
from tests.reports_data import save, sr_record, write_volumes

PSF_1_MM = (AxisProfile(kind="kspace", fwhm=1.0),) * 3


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_volumes(tmp_path_factory.mktemp("volumes"))


def pixels(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def pictures(html: str, css_class: str, kind: str = "jpeg") -> list[npt.NDArray[np.int16]]:
    found = re.findall(rf'<img class="{css_class}"[^>]*src="data:image/{kind};base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(code))).convert("L"), dtype=np.int16) for code in found]


def yellow(picture: npt.NDArray[np.uint8]) -> int:
    red, green, blue = (picture[..., channel].astype(int) for channel in range(3))
    return int(((red > 200) & (abs(green - 176) < 30) & (blue < 60)).sum())


@settings(max_examples=20, deadline=None)
@given(codes=st.permutations(range(3)), flips=st.tuples(*[st.booleans()] * 3))
def test_display_does_not_depend_on_how_the_voxels_are_stored(
    tmp_path_factory: pytest.TempPathFactory, codes: list[int], flips: tuple[bool, bool, bool]
) -> None:
    data = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    image = nb.Nifti1Image(data, np.diag([1.0, 2.0, 3.0, 1.0]))
    stored = image.as_reoriented(np.array([[code, -1 if flip else 1] for code, flip in zip(codes, flips, strict=True)]))
    path = tmp_path_factory.mktemp("stored") / "image.nii"
    nb.save(stored, path)
    volume = Volume.load(path)
    np.testing.assert_array_equal(volume.data, data)
    np.testing.assert_allclose(volume.affine, image.affine)


def test_planes_are_upright_with_left_on_the_left() -> None:
    data = np.zeros((4, 5, 6), dtype=np.float32)
    data[0, 4, 5] = 1  # the patient's left, front, top
    volume = Volume(data, np.eye(4))
    box = bounding_box(volume.with_data(np.ones_like(data)))
    assert plane(volume, 0, 0, box)[0, -1] == 1  # sagittal: top row, front in the last column
    assert plane(volume, 1, 4, box)[0, 0] == 1  # coronal: top row, left in the first column
    assert plane(volume, 2, 5, box)[0, 0] == 1  # axial: front in the top row, left in the first column


def test_largest_departures_are_found_apart_and_inside() -> None:
    data = np.zeros((60, 60, 60), dtype=np.float32)
    mask = np.zeros_like(data)
    mask[5:55, 5:55, 5:55] = 1
    for place, height in (((20, 20, 20), 9.0), ((22, 20, 20), 9.0), ((46, 20, 20), 7.0), ((20, 45, 20), -8.0)):
        data[tuple(slice(p - 1, p + 2) for p in place)] = height
    data[5, 30, 30] = 99.0  # on the rim of the mask
    data[2, 2, 2] = 99.0  # outside
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    places = largest_places(Volume(data, affine), Volume(mask, affine))
    assert len(places) <= PLACES
    assert abs(places[0][0] - 21) <= 1 and places[0][1:] == (20, 20)
    assert places[1:3] == [(20, 45, 20), (46, 20, 20)]
    world = np.array(places) @ affine[:3, :3]
    distances = np.linalg.norm(world[:, None] - world[None], axis=-1)[np.triu_indices(len(places), 1)]
    assert distances.min() >= APART_MM - 2


def test_departures_show_what_was_added(volumes: dict[str, Path], tmp_path: Path) -> None:
    names = (volumes["preproc"], volumes["sr"], volumes["mask"])
    changed = pixels(plot_departures(*names, tmp_path / "changed.png")).astype(int)
    thick, sharp = Volume.load(volumes["preproc"]), Volume.load(volumes["sr"])
    cubic = spline_coefficients(thick).on(sharp, 3).data
    same = save(tmp_path / "same.nii.gz", cubic, sharp.affine)
    unchanged = pixels(plot_departures(volumes["preproc"], same, volumes["mask"], tmp_path / "same.png")).astype(int)

    def coloured(picture: npt.NDArray[np.int_]) -> int:
        without_bar = picture[:, : -int(BAR * DPI)]
        return int((np.ptp(without_bar, axis=2) > 80).sum())

    assert coloured(changed) > 1000 > 10 * coloured(unchanged)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slice_of_another_image_is_its_own_slice_on_the_same_grid(axis: int, order: int) -> None:
    data = np.random.default_rng(1).random((6, 7, 8)).astype(np.float32)
    volume = Volume(data, np.array([[1, 0.1, 0, 3], [-0.1, 1, 0, 4], [0, 0, 2, 5], [0, 0, 0, 1]], dtype=float))
    box = bounding_box(volume)
    expected = plane(volume, axis, 3, box)
    moving = spline_coefficients(volume) if order == 3 else volume
    np.testing.assert_allclose(plane_of_other(moving, volume, axis, 3, box, order), expected, atol=1e-5)


def test_bounding_box_has_the_margin_in_millimetres() -> None:
    data = np.zeros((20, 20, 20), dtype=np.float32)
    data[8:12, 8:12, 8:12] = 1
    box = bounding_box(Volume(data, np.diag([1.0, 2.0, 4.0, 1.0])), margin_mm=4)
    assert (box.low, box.high) == ((4, 6, 7), (16, 14, 13))


def test_volume_refuses_a_series(tmp_path: Path) -> None:
    path = save(tmp_path / "series.nii.gz", np.zeros((3, 3, 3, 2), dtype=np.float32), np.eye(4))
    with pytest.raises(ValueError, match=r"series\.nii\.gz has shape \(3, 3, 3, 2\)"):
        Volume.load(path)


def test_slider_shows_both_images_on_the_same_slices(volumes: dict[str, Path], tmp_path: Path) -> None:
    out = plot_slider(volumes["preproc"], volumes["sr"], tmp_path / "slider.html", mask_path=volumes["mask"])
    html = out.read_text(encoding="ascii")
    after, before = pictures(html, "after"), pictures(html, "before")
    assert len(after) == 3 * 3
    assert len(before) == 3 * 3 * 2  # interpolated, and voxel by voxel
    assert html.count('data-display="cubic"') == html.count('data-display="nearest"') == 9
    # What is seen first is the input at its best: voxels would flatter the output.
    assert re.findall(r'data-display="(\w+)"[^>]*? hidden>', html) == ["nearest"] * 9
    for number, sharp in enumerate(after):
        cubic, nearest = before[2 * number : 2 * number + 2]
        assert nearest.shape == cubic.shape == sharp.shape
        assert np.abs(nearest - sharp).mean() > 2  # the bars are in the output alone
        assert np.corrcoef(nearest.ravel(), sharp.ravel())[0, 1] > 0.7  # of the same place
    # the middle coronal slice: three rows of the thick input are one voxel, interpolation smooths them
    cubic, nearest = before[8], before[9]
    assert np.abs(np.diff(nearest, axis=0)).max() > np.abs(np.diff(cubic, axis=0)).max()
    assert "voxels as acquired" in html
    assert "2 × 2 × 6 mm" in html.replace("&#215;", "×")


def test_grey_scale_is_that_of_the_brain(volumes: dict[str, Path], tmp_path: Path) -> None:
    """Fat that is far brighter must not leave the brain dark."""
    mask = nb.load(volumes["mask"])
    head = nb.load(volumes["preproc"]).get_fdata().astype(np.float32)
    head[:6] = 2000.0
    output = nb.load(volumes["sr"]).get_fdata().astype(np.float32)
    output[-6:] = 2000.0  # the same side, in the other direction of the axis
    fat = save(tmp_path / "fat.nii.gz", head, mask.affine)
    fat_output = save(tmp_path / "fat_output.nii.gz", output, nb.load(volumes["sr"]).affine)
    html = plot_slider(fat, fat_output, tmp_path / "slider.html", mask_path=volumes["mask"]).read_text()
    for picture in pictures(html, "after") + pictures(html, "before"):
        rows, columns = (slice(n // 3, 2 * n // 3) for n in picture.shape)
        assert np.percentile(picture[rows, columns], 90) > 150


def test_slices_of_all_figures_lie_at_the_same_places(volumes: dict[str, Path], tmp_path: Path) -> None:
    titles: list[str] = []
    html = plot_slider(volumes["sr"], volumes["sr"], tmp_path / "slider.html", mask_path=volumes["mask"]).read_text()
    told = set(re.findall(r'"tag where">(\w+) ([RAS]) ([+-]\d+) mm', html))
    assert len(told) == 9
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Axes, "set_title", lambda self, text, **_: titles.append(text))
        plot_uncertainty(volumes["sr"], volumes["sr"], tmp_path / "u.png", mask_path=volumes["mask"])
        plot_residual(volumes["residual"], volumes["mask"], tmp_path / "r.png")
    found = re.findall(r"(\w+), ([RAS]) ([+-]\d+) mm", "\n".join(titles))
    assert len(found) == 18
    thick = max(nb.load(volumes["mask"]).header.get_zooms())
    for plane_name, letter, position in found:
        near = [abs(int(position) - int(other)) for name, _, other in told if name == plane_name]
        assert min(near) <= thick / 2 + 1, (plane_name, letter, position)


def test_uncertainty_and_residual_are_large_and_inside_the_brain_alone(
    volumes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caught: list[Any] = []
    monkeypatch.setattr(figures, "save", lambda figure, out: caught.append(figure) or out)
    monkeypatch.setattr(residual, "save", lambda figure, out: caught.append(figure) or out)
    plot_uncertainty(volumes["sr"], volumes["sr"], tmp_path / "u.png", mask_path=volumes["mask"])
    plot_residual(volumes["residual"], volumes["mask"], tmp_path / "r.png")
    for figure, least in zip(caught, (2.5, 1.8), strict=True):
        panels = [axes for axes in figure.axes if axes.images]
        assert len(panels) == 9
        for axes in panels:
            size = axes.get_position().size * figure.get_size_inches()
            assert min(size) > least  # inches
            shown = axes.images[-1].get_array()
            assert np.ma.is_masked(shown)
            # The phantom is a ball: what is hidden are the corners, what is shown is the disk.
            assert shown.mask[0, 0] and not shown.mask[tuple(n // 2 for n in shown.shape)]


def test_slider_needs_nothing_from_outside(volumes: dict[str, Path], tmp_path: Path) -> None:
    html = plot_slider(volumes["preproc"], volumes["sr"], tmp_path / "slider.html").read_text(encoding="ascii")
    sources = re.findall(r'(?:src|href)="([^"]{0,20})', html)
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert "url(" not in html
    assert html.count("<img") == html.count('alt="')


def test_registration_draws_the_template_outline_on_both_sides(volumes: dict[str, Path], tmp_path: Path) -> None:
    out = plot_registration(
        volumes["template"],
        volumes["sr"],
        tmp_path / "registration.html",
        template_mask_path=volumes["template_mask"],
        template_name="MNI<1>",
    )
    html = out.read_text(encoding="ascii")
    assert "MNI&lt;1&gt;" in html
    codes = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    assert len(codes) == 3 * 3 * 2
    for code in codes:
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(code))).convert("RGB"))
        assert yellow(picture) > 20


def test_mask_outline_is_drawn(volumes: dict[str, Path], tmp_path: Path) -> None:
    mask = nb.load(volumes["mask"])
    empty = save(tmp_path / "empty.nii.gz", np.zeros(mask.shape, dtype=np.uint8), mask.affine)
    with_mask = pixels(plot_mask(volumes["preproc"], volumes["mask"], tmp_path / "with.png"))
    without = pixels(plot_mask(volumes["preproc"], empty, tmp_path / "without.png"))
    assert yellow(with_mask) > 500
    assert yellow(without) == 0
    assert np.ptp(without) == 255  # the image itself is shown


def test_bias_figure_shows_the_field(volumes: dict[str, Path], tmp_path: Path) -> None:
    field = nb.load(volumes["field"])
    flat = save(tmp_path / "flat.nii.gz", np.full(field.shape, 0.7, dtype=np.float32), field.affine)
    shown = pixels(plot_bias(volumes["preproc"], volumes["field"], tmp_path / "a.png", mask_path=volumes["mask"]))
    constant = pixels(plot_bias(volumes["preproc"], flat, tmp_path / "b.png", mask_path=volumes["mask"]))

    def colored(picture: npt.NDArray[np.uint8]) -> int:
        return int((np.ptp(picture.astype(int), axis=2) > 60).sum())

    assert colored(shown) > 3 * colored(constant)  # a constant field is no bias: only its colour bar has colour


def test_gate_has_the_colour_of_the_expert_and_the_scale_is_of_all_three(tmp_path: Path) -> None:
    shape = (20, 22, 24)
    image = np.full(shape, 100, np.float32)
    here = save(tmp_path / "image.nii", image, np.eye(4))
    mask = save(tmp_path / "mask.nii", np.ones(shape, np.float32), np.eye(4))
    names = ("centrum", "cortex", "junction")
    share = {"centrum": 0.0, "cortex": 1.0, "junction": 0.0}
    change = {"centrum": -8.0, "cortex": 0.0, "junction": 4.0}
    maps = {
        f"{kind}-{name}": save(tmp_path / f"{kind}{name}.nii", np.full(shape, values[name], np.float32), np.eye(4))
        for kind, values in (("gate", share), ("difference", change))
        for name in names
    }
    drawn = pixels(plot_experts(here, mask, maps, tmp_path / "experts.png")).astype(int)
    wanted = {n: [int(colour[k : k + 2], 16) for k in (1, 3, 5)] for n, colour in zip(names, COLOURS, strict=True)}
    counts = {n: int((np.abs(drawn - colour).max(axis=-1) < 6).sum()) for n, colour in wanted.items()}
    assert counts["cortex"] > 20 * max(counts["centrum"], counts["junction"])  # those are in the legend alone
    # 8 % is the end of the scale for all: full blue; 4 % half way to red; none white.
    blue, half_red, white = (
        int((np.abs(drawn - np.array(colour)).max(axis=-1) < 10).sum())
        for colour in (255 * np.array(colormaps["RdBu_r"](place)[:3]) for place in (0.0, 0.75, 0.5))
    )
    assert min(blue, half_red, white) > 1000


def test_uncertainty_is_shown_in_the_brain_with_its_range_of_colours(tmp_path: Path) -> None:
    shape = (40, 40, 40)
    image = save(tmp_path / "image.nii.gz", np.full(shape, 100, dtype=np.float32), np.eye(4))
    std = np.full(shape, 3, dtype=np.float32)
    std[:, :, :12] = 60  # the neck
    brain = np.zeros((20, 20, 20), dtype=np.float32)
    brain[4:16, 4:16, 8:18] = 1
    coarse = np.diag([2.0, 2.0, 2.0, 1.0])
    coarse[:3, 3] = 0.5
    std_file = save(tmp_path / "std.nii.gz", std, np.eye(4))
    mask = save(tmp_path / "mask.nii.gz", brain, coarse)

    def hue(path: Path, place: float) -> int:
        colour = 255 * np.array(colormaps["magma"](place)[:3])
        return int((np.abs(pixels(path) - colour).max(axis=-1) < 4).sum())

    inside = plot_uncertainty(image, std_file, tmp_path / "a.png", mask_path=mask)
    without = plot_uncertainty(image, std_file, tmp_path / "b.png")
    # The brain's 3 % are the end of the scale; without a mask they are a twentieth of the neck's.
    assert hue(inside, 1.0) > 20_000
    assert hue(inside, 0.05) < 1_000
    assert hue(without, 0.05) > 20_000


def test_residual_figure_tells_signal_from_noise(volumes: dict[str, Path], tmp_path: Path) -> None:
    residual = nb.load(volumes["residual"])
    structured = save(tmp_path / "structured.nii.gz", np.full(residual.shape, 4, dtype=np.float32), residual.affine)
    noise = pixels(plot_residual(volumes["residual"], volumes["mask"], tmp_path / "noise.png")).astype(int)
    signal = pixels(plot_residual(structured, volumes["mask"], tmp_path / "signal.png")).astype(int)

    def dark_red(picture: npt.NDArray[np.int_]) -> int:
        return int(((picture[..., 0] > 90) & (picture[..., 1] < 30) & (picture[..., 2] < 50)).sum())

    assert dark_red(signal) > 5 * dark_red(noise)


def test_residual_figure_says_what_noise_alone_would_give(
    volumes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = []
    monkeypatch.setattr(Axes, "set_title", lambda self, text, **_: titles.append(text) if "alone" in text else None)
    for noise_alone in (1.0, 0.7):
        plot_residual(volumes["residual"], volumes["mask"], tmp_path / "noise.png", noise_alone=noise_alone)
    assert [title.count("(noise alone: 1)") for title in titles] == [1, 0]
    assert "(noise alone: 0.27 %)" in titles[0]
    assert "(noise alone: 0.7)" in titles[1]
    assert "(noise alone: 0.0018 %)" in titles[1]


@pytest.mark.parametrize("plot", [plot_mask, plot_residual, plot_bias])
def test_files_of_different_grids_are_refused(plot: object, volumes: dict[str, Path], tmp_path: Path) -> None:
    assert callable(plot)
    with pytest.raises(ValueError, match=r"preproc\.nii\.gz is not on the grid of .*sr\.nii\.gz"):
        plot(volumes["sr"], volumes["preproc"], tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_figures_survive_a_constant_image_and_an_empty_mask(tmp_path: Path) -> None:
    constant = save(tmp_path / "constant.nii.gz", np.zeros((8, 9, 10), dtype=np.float32), np.eye(4))
    figures = [
        plot_mask(constant, constant, tmp_path / "mask.png"),
        plot_bias(constant, constant, tmp_path / "bias.png", mask_path=constant),
        plot_structures(constant, constant, tmp_path / "structures.png"),
        plot_residual(constant, constant, tmp_path / "residual.png"),
        plot_slider(constant, constant, tmp_path / "slider.html", mask_path=constant),
        plot_departures(constant, constant, constant, tmp_path / "departure.png"),
        plot_registration(constant, constant, tmp_path / "registration.html"),
        plot_spectrum(constant, constant, constant, tmp_path / "spectrum.png", PSF_1_MM),
    ]
    assert all(figure.stat().st_size > 1000 for figure in figures)


def test_what_was_measured_ends_where_the_scan_was_zero_filled(tmp_path: Path) -> None:
    turned = np.array([[0, 0, 0.5, 0], [-0.5, 0, 0, 0], [0, 4, 0, 0], [0, 0, 0, 1.0]])  # posterior, superior, right
    nb.Nifti1Image(np.ones((4, 4, 4), np.uint8), turned).to_filename(tmp_path / "scan.nii.gz")
    psf = [AxisProfile(kind=kind, fwhm=width) for kind, width in (("kspace", 1.0), ("gaussian", 5.0), ("kspace", 0.5))]
    # Right has the third axis, anterior the first, and the slices, which are thicker than their distance, superior.
    assert measured_up_to(tmp_path / "scan.nii.gz", psf) == pytest.approx((1.0, 0.5, 0.125))


def test_interface_draws_what_its_inputs_allow(
    volumes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ImageReportlets(preproc_file=str(volumes["preproc"]), mask_file=str(volumes["mask"]))
    assert [Path(file).name for file in few.run().outputs.out_files] == ["brainmask.png"]
    output = nb.load(volumes["sr"])
    dseg = save(tmp_path / "dseg.nii.gz", (np.asarray(output.dataobj) > 0).astype(np.uint8) * 8, output.affine)
    result = ImageReportlets(
        preproc_file=str(volumes["preproc"]),
        mask_file=str(volumes["mask"]),
        bias_file=str(volumes["field"]),
        sr_file=str(volumes["sr"]),
        sr_record=sr_record(),
        dseg_file=str(dseg),
        uncertainty_file=str(volumes["sr"]),
        residual_file=str(volumes["residual"]),
        warped_file=str(volumes["sr"]),
        template_file=str(volumes["template"]),
        template_mask_file=str(volumes["template_mask"]),
        template_name="MNI",
    ).run()
    names = {Path(file).name for file in result.outputs.out_files}
    pictures = {"brainmask.png", "bias.png", "registration.html", "residual.png", "slider.html", "spectrum.png"}
    pictures |= {"uncertainty.png", "departure.png", "structures.png"}
    assert names == pictures
    assert result.outputs.record["Seconds"] > 0
    assert all(Path(file).stat().st_size > 3000 for file in result.outputs.out_files)


def test_structures_have_colours_of_their_own(tmp_path: Path) -> None:
    grey = save(tmp_path / "image.nii.gz", np.full((40, 40, 40), 100, np.float32), np.eye(4))
    shares = []
    for name in ("left cortex", "right cortex", "left white matter"):
        labels = np.zeros((40, 40, 40), np.uint8)
        labels[8:32, 8:32, 8:32] = next(s.index for s in STRUCTURES if s.name == name)
        path = save(tmp_path / "labels.nii.gz", labels, np.eye(4))
        shares.append(pixels(plot_structures(grey, path, tmp_path / "structures.png")).astype(int))
        forget_volumes()
    assert np.abs(shares[0] - shares[1]).max() <= 12  # both sides alike, but for rounding
    assert np.mean(np.abs(shares[0] - shares[2]).max(axis=2) > 30) > 0.1


def labelled_head(folder: Path) -> dict[str, Path]:
    """Write a ball of white matter in a shell of grey matter, with one fold, as a thick-slice input and an output."""
    shape = (80, 80, 80)
    grid = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij"))
    radius = np.sqrt((grid**2).sum(axis=0))
    labels = np.select([radius < 24, radius < 30, radius < 33], [1, 2, 3], 0).astype(np.uint8)
    sharp = np.select([labels == 1, labels == 2, labels == 3], [100.0, 70.0, 20.0], 0.0).astype(np.float32)
    thick = np.diag([1.0, 1.0, 4.0, 1.0])
    thick[2, 3] = 1.5
    coarse = sharp.reshape(80, 80, 20, 4).mean(axis=3).astype(np.float32)
    return {
        "preproc": save(folder / "preproc.nii.gz", coarse, thick),
        "sr": save(folder / "sr.nii.gz", sharp, np.eye(4)),
        "tissues": save(folder / "tissues.nii.gz", labels, np.eye(4)),
    }


def test_zooms_show_what_they_are_named_after(tmp_path: Path) -> None:
    files = labelled_head(tmp_path)
    html = plot_zooms(files["preproc"], files["sr"], files["tissues"], tmp_path / "zooms.html").read_text()
    after = pictures(html, "after", "png")
    assert len(after) == 9  # three planes of three windows
    assert all(picture.shape == (36, 36) for picture in after)
    # Black is half of the darkest tissue, 35; white is 100.
    white, grey = 255, round((70 - 35) / (100 - 35) * 255)
    for cortex, deep, junction in zip(after[::3], after[1::3], after[2::3], strict=True):
        assert (deep == white).mean() > 0.6
        assert (cortex == grey).mean() > 0.15
        assert (junction == grey).mean() > 0.05
        assert (junction == white).mean() > 0.2
    # The plane that shows the thick slices comes first.
    assert '<option value="1" selected>coronal</option>' in html
    again = plot_zooms(files["preproc"], files["sr"], files["tissues"], tmp_path / "again.html").read_text()
    assert again == html


def test_zooms_without_tissue_show_the_middle(tmp_path: Path) -> None:
    files = labelled_head(tmp_path)
    none = save(tmp_path / "none.nii.gz", np.zeros((80, 80, 80), np.uint8), np.eye(4))
    html = plot_zooms(files["preproc"], files["sr"], none, tmp_path / "zooms.html").read_text()
    assert [picture.shape for picture in pictures(html, "after", "png")] == [(36, 36)] * 9
