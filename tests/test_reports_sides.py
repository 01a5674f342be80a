"""Left and right, up and down, and the position of every slice of a report, seen in voxels that encode their position.

Files are stored with unusual axes (inferior, left, posterior), so each figure has to turn them.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nb
import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from moesr_bids.reports import departures, experts, figures, residual, zooms
from moesr_bids.reports.planes import PLANES, Box, Volume, bounding_box, intensity_window
from moesr_bids.reports.slider import plot_registration, plot_slider

SHAPE = (36, 42, 33)  # right, anterior, superior
ZOOM = 3.0
AFFINE = nb.affines.from_matvec(np.diag([ZOOM] * 3), [-50, -70, -40])
BRAIN = (slice(5, 30), slice(8, 38), slice(4, 27))
WEIGHTS = np.array([1, 100, 10_000])
Array = npt.NDArray[np.float32]


def where() -> Array:
    """Return voxels that hold their own place: i + 100 j + 10000 k, from 1."""
    return (1 + np.tensordot(WEIGHTS, np.indices(SHAPE), 1)).astype(np.float32)


def stored(path: Path, data: npt.NDArray[np.generic]) -> Path:
    """Write an image of RAS axes with its axes stored in another order and direction."""
    image = nb.Nifti1Image(data.astype(np.float32), AFFINE)
    nb.save(image.as_reoriented(np.array([[1, -1], [2, -1], [0, -1]])), path)
    assert nb.aff2axcodes(nb.load(path).affine) == ("I", "L", "P")
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    brain = np.zeros(SHAPE)
    brain[BRAIN] = 1
    field = nb.Nifti1Image(np.zeros((*SHAPE, 1, 3), np.float32), AFFINE)
    nb.save(field, tmp_path / "field.nii.gz")
    spot = where()
    spot[12:15, 20:23, 18:21] += 300_000  # at R -11, A -7, S +17 mm
    labels = np.zeros(SHAPE)
    labels[BRAIN] = 2
    labels[8:27, 12:34, 8:24] = 1
    return {
        "where": stored(tmp_path / "where.nii.gz", where()),
        "spot": stored(tmp_path / "spot.nii.gz", spot),
        "mask": stored(tmp_path / "mask.nii.gz", brain),
        "labels": stored(tmp_path / "labels.nii.gz", labels),
        "zero": stored(tmp_path / "zero.nii.gz", np.zeros(SHAPE)),
        "third": stored(tmp_path / "third.nii.gz", np.full(SHAPE, 1 / 3)),
        "field": tmp_path / "field.nii.gz",
    }


def panels(figure: Figure) -> list[Axes]:
    parts = [figure, *figure.subfigs]
    return [axes for part in parts for axes in part.axes if axes.images and axes.get_title()]


def axis_shown(pixels: Array) -> int:
    """Return the axis across a slice of `where`, whose place is the same in all its pixels."""
    places = np.rint(pixels - 1).astype(int)
    digits = [places % 100, places // 100 % 100, places // 10_000]
    (axis,) = [axis for axis, digit in enumerate(digits) if np.ptp(digit) == 0]
    columns, rows = (digits[other] for other in range(3) if other != axis)
    assert (np.diff(columns, axis=1) == 1).all(), "columns go from left to right, or from back to front"
    assert (np.diff(rows, axis=0) == -1).all(), "rows go from top to bottom, or from front to back"
    return axis


def slice_number(pixels: Array, axis: int) -> int:
    return int(pixels[0, 0] - 1) // int(WEIGHTS[axis]) % 100


def check_marks(axes: Axes, axis: int) -> None:
    """Sagittal slices have no left and right; in others columns go from the patient's left to the right."""
    marks = {text.get_text(): text.get_position()[0] for text in axes.texts if text.get_text() in "LR"}
    assert set(marks) == (set() if axis == 0 else {"L", "R"})
    if axis:
        assert marks["L"] < 0.1 < 0.9 < marks["R"]
    left, right, bottom, top = axes.images[0].get_extent()
    assert left < right
    assert bottom > top
    assert axes.get_xlim()[0] < axes.get_xlim()[1]
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first row is at the top"


def drawn(monkeypatch: pytest.MonkeyPatch, module: object, plot: Callable[[Path], Path]) -> Figure:
    caught: list[Figure] = []
    monkeypatch.setattr(module, "save", lambda figure, out: caught.append(figure) or out)
    plot(Path("figure.png"))
    return caught[0]


STILLS = {
    "mask": (figures, lambda f: lambda out: figures.plot_mask(f["where"], f["mask"], out)),
    "bias": (figures, lambda f: lambda out: figures.plot_bias(f["where"], f["zero"], out, mask_path=f["mask"])),
    "gradunwarp": (figures, lambda f: lambda out: figures.plot_gradunwarp(f["where"], f["where"], f["field"], out)),
    "uncertainty": (
        figures,
        lambda f: lambda out: figures.plot_uncertainty(f["where"], f["where"], out, mask_path=f["mask"]),
    ),
    "residual": (residual, lambda f: lambda out: residual.plot_residual(f["where"], f["mask"], out)),
    "experts": (
        experts,
        lambda f: (
            lambda out: experts.plot_experts(
                f["where"],
                f["mask"],
                {
                    f"{kind}-{name}": f[file]
                    for kind, file in (("gate", "third"), ("difference", "zero"))
                    for name in "abc"
                },
                out,
            )
        ),
    ),
}


@pytest.mark.filterwarnings("ignore:No contour levels")
@pytest.mark.parametrize("name", STILLS)
def test_still_figures_show_the_slice_that_they_name_with_left_on_the_left(
    name: str, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, make = STILLS[name]
    figure = drawn(monkeypatch, module, make(files))
    named = set()
    for axes in panels(figure):
        pixels = np.asarray(axes.images[0].get_array())
        title = re.search(rf"({'|'.join(PLANES)}), ([RAS]) ([+-]\d+) mm", axes.get_title())
        if title is None or pixels.ndim != 2 or np.ptp(pixels) == 0:
            continue  # a map beside the slice: below
        axis = axis_shown(pixels)
        position = AFFINE[axis, 3] + ZOOM * slice_number(pixels, axis)
        assert title.groups() == (PLANES[axis], "RAS"[axis], f"{position:+.0f}")
        check_marks(axes, axis)
        named.add(axis)
    assert named == {0, 1, 2}
    # Maps have no slice number of their own: they lie as the named slice of their column or row does.
    for axes in panels(figure):
        assert {text.get_text() for text in axes.texts} & {"L", "R"} in (set(), {"L", "R"})
    marked = [axes for axes in panels(figure) if any(text.get_text() == "L" for text in axes.texts)]
    assert len(marked) * 3 == len(panels(figure)) * 2, "two of three planes have a left and a right"


def test_maps_lie_as_the_image_does(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bright block in the left, front, top of the brain is there in every map."""
    block = np.zeros(SHAPE)
    block[BRAIN] = 1.0
    block[5:17, 23:38, 15:27] = 3.0
    corner = stored(tmp_path / "corner.nii.gz", block)
    gate = stored(tmp_path / "gate.nii.gz", block / 4)
    mask = files["mask"]
    made = [
        drawn(monkeypatch, figures, lambda out: figures.plot_uncertainty(corner, corner, out, mask_path=mask)),
        drawn(monkeypatch, figures, lambda out: figures.plot_bias(corner, corner, out, mask_path=mask)),
        drawn(monkeypatch, residual, lambda out: residual.plot_residual(corner, mask, out)),
        drawn(
            monkeypatch,
            experts,
            lambda out: experts.plot_experts(
                corner,
                mask,
                {f"{kind}-{name}": file for kind, file in (("gate", gate), ("difference", corner)) for name in "abc"},
                out,
            ),
        ),
    ]
    seen = 0
    for figure in made:
        for axes in panels(figure):
            for shown in axes.images:
                pixels = np.asarray(shown.get_array(), dtype=float)
                pixels = pixels.sum(-1) if pixels.ndim == 3 else pixels
                if np.ptp(pixels) < 1e-6:
                    continue
                sagittal = not any(text.get_text() == "L" for text in axes.texts)
                block = pixels > pixels.min() + 0.9 * np.ptp(pixels)
                if block.mean() > 0.4:
                    continue  # the slice beside the block: all of the brain is as bright
                bright = np.argwhere(block).mean(axis=0) / np.array(pixels.shape)
                assert bright[0] < 0.5, "the block is at the top, or in front"
                assert bright[1] > 0.5 if sagittal else bright[1] < 0.5, "in front, or on the left"
                seen += 1
    assert seen > 30


def test_departures_are_where_they_are_said_to_be(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn(
        monkeypatch,
        departures,
        lambda out: departures.plot_departures(files["where"], files["spot"], files["mask"], out),
    )
    shown = panels(figure)
    interpolated = next(axes for axes in shown if axes.get_title() == "input, interpolated")
    pixels = np.rint(np.asarray(interpolated.images[0].get_array()))
    assert axis_shown(pixels) == 2
    assert slice_number(pixels, 2) == 19
    check_marks(interpolated, 2)
    places = [axes for axes in shown if axes.get_title().endswith("mm")]
    assert places[0].get_title() == "R -11, A -7, S +17 mm"
    for axes in places:
        check_marks(axes, 2)


def ramp(path: Path, axis: int) -> Path:
    """Write an image whose brightness is its place along one axis of the world."""
    data = np.broadcast_to((10 + np.arange(SHAPE[axis])).reshape([-1 if a == axis else 1 for a in range(3)]), SHAPE)
    return stored(path, data)


def slider_panels(html: str) -> list[tuple[str, float, bool, list[Array]]]:
    """Return of each picture: the letter of its axis, the position in mm, whether left is marked, and both sides."""
    found = []
    for part in html.split('<div class="panel">')[1:]:
        letter, position = re.search(r"\b([RAS]) ([+-]\d+) mm</span>", part).groups()
        codes = re.findall(r'src="data:image/\w+;base64,([^"]+)"', part)
        sides = [np.asarray(Image.open(io.BytesIO(base64.b64decode(code))).convert("L"), np.float32) for code in codes]
        marks = re.findall(r'<span class="tag orientation">([^<]*)</span>', part)
        assert marks in ([], ["L left"])
        found.append((letter, float(position), bool(marks), sides))
    return found


SLIDERS = {
    "slider": lambda image, f, out: plot_slider(image, image, out, mask_path=f["mask"]),
    "registration": lambda image, f, out: plot_registration(image, image, out),
    "zooms": lambda image, f, out: zooms.plot_zooms(image, image, f["labels"], out),
}


@pytest.mark.parametrize("name", SLIDERS)
@pytest.mark.parametrize("along", [0, 1, 2])
def test_sliders_show_the_slice_that_they_name_with_left_on_the_left(
    name: str, along: int, files: dict[str, Path], tmp_path: Path
) -> None:
    image = ramp(tmp_path / "ramp.nii.gz", along)
    html = SLIDERS[name](image, files, tmp_path / "slider.html").read_text(encoding="utf-8")
    greys: list[tuple[float, float]] = []
    found = slider_panels(html)
    assert {letter for letter, *_ in found} == set("RAS")
    for letter, position, marked, sides in found:
        axis = "RAS".index(letter)
        assert marked == (axis != 0)
        assert len(sides) >= 2
        for picture in sides:
            height, width = (n // 3 for n in picture.shape)
            rightwards = picture[:, -width:].mean() - picture[:, :width].mean()
            upwards = picture[:height].mean() - picture[-height:].mean()
            columns, rows = (other for other in range(3) if other != axis)
            assert (rightwards > 20) == (along == columns)
            assert (upwards > 20) == (along == rows)
            if along == axis:
                greys.append((position, float(picture.mean())))
    # Along the axis of the slices, brightness is the position: one line for all pictures.
    lowest, highest = (AFFINE[along, 3] + ZOOM * edge for edge in (0, SHAPE[along] - 1))
    places = np.array([position for position, _ in greys])
    assert ((lowest <= places) & (places <= highest)).all()
    volume = Volume.load(image)
    if name == "zooms":
        low, high = zooms._grey_scale(volume, Volume.load(files["labels"]))
    elif name == "slider":
        mask = Volume.load(files["mask"])
        low, high = intensity_window(volume, bounding_box(mask), mask)
    else:
        low, high = intensity_window(volume, Box((0, 0, 0), SHAPE))
    values = 10 + (places - AFFINE[along, 3]) / ZOOM
    expected = np.clip((values - low) / (high - low) * 255, 0, 255)
    # A position is rounded to a millimetre, a third of a voxel.
    np.testing.assert_allclose([grey for _, grey in greys], expected, atol=255 / (high - low) * 0.5)
