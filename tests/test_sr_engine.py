"""The engine and the ``moesr sr`` command end to end on a small phantom."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import attrs
import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from moesr_bids.cli.moesr import main
from moesr_bids.errors import ImageError
from moesr_bids.sr import engine
from moesr_bids.sr.cost import estimate_cost, window_voxels
from moesr_bids.sr.device import choose_device
from moesr_bids.sr.engine import super_resolve
from moesr_bids.sr.grid import Grid
from moesr_bids.sr.models import get_model
from moesr_bids.sr.models.base import Problem, Reconstruction
from moesr_bids.sr.noise import foreground
from moesr_bids.sr.operator import AcquisitionOperator
from moesr_bids.sr.options import SROptions
from moesr_bids.sr.psf import PSF
from moesr_bids.sr.windows import CPU_WINDOW_VOXELS, LEAST_CPU_WINDOW_VOXELS

ROOT = Path(__file__).resolve().parents[1]
RECORD_KEYS = {
    "Version",
    "Model",
    "WeightsSHA256",
    "RandomSeed",
    "Device",
    "Precision",
    "Threads",
    "PSF",
    "PSFReason",
    "InputZooms",
    "InputShape",
    "OutputZooms",
    "OutputShape",
    "NoiseStd",
    "NoiseRange",
    "NoisePercent",
    "OutlierVoxels",
    "BackgroundOffset",
    "Lambda",
    "DataConsistency",
    "Warnings",
    "Stages",
    "Seconds",
    "PeakMemoryGB",
}


def _image(zooms: tuple[float, float, float] = (1.0, 1.0, 3.0)) -> nib.Nifti1Image:
    shape = tuple(int(42 / z) for z in zooms)
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.sqrt(i**2 + j**2 + k**2) + 0.1 * np.sin(6 * i + 4 * j)
    random = np.random.default_rng(0)
    truth = 600 * (radius < 0.8) - 250 * (radius < 0.5)
    truth = ndimage.gaussian_filter(truth.astype(float), [0.8 / z for z in zooms])
    data = np.hypot(truth + random.normal(scale=12, size=shape), random.normal(scale=12, size=shape))
    frame = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, 0.1, -0.3) @ np.diag([-1.0, 1, 1]), [5, -7, 9])
    return nib.Nifti1Image(data.astype(np.float32), frame @ np.diag([*zooms, 1.0]))


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.nii.gz"
    nib.save(_image(), path)
    return path


def test_engine_on_thick_slices():
    image = _image()
    told: list[tuple[str, float]] = []
    result = super_resolve(
        image, SROptions(resolution=1.0, model="classical", threads=1), progress=lambda *step: told.append(step)
    )
    expected = Grid.from_image(image).isotropic(1.0)
    assert result.image.shape == expected.shape == (42, 42, 42)
    np.testing.assert_allclose(result.image.affine, expected.affine, atol=1e-4)
    assert result.image.get_data_dtype() == np.float32
    assert result.image.get_fdata().min() >= 0
    assert result.residual.shape == image.shape
    assert int(result.image.header["sform_code"]) > 0
    assert result.image.header.get_xyzt_units()[0] == "mm"
    assert set(result.record) == RECORD_KEYS
    assert result.record["PSF"][2] == {"Kind": "gaussian", "FWHM": 3.0}
    assert result.record["NoiseStd"] == pytest.approx(12, rel=0.3)
    operator = AcquisitionOperator(Grid.from_image(image), expected, PSF.from_acquisition((1.0, 1.0, 3.0)))
    seen = operator.forward(torch.from_numpy(result.image.get_fdata(dtype=np.float32))).numpy()
    left = (image.get_fdata() - seen) / result.record["NoiseStd"]
    np.testing.assert_allclose(result.residual.get_fdata(), left, atol=1e-3)
    inside = foreground(image.get_fdata(dtype=np.float32))
    facts = result.record["DataConsistency"]
    assert facts["ResidualStd"] == pytest.approx(np.sqrt(np.mean(left[inside] ** 2)), rel=1e-3)
    assert 0.8 <= facts["Model"]["ResidualStd"] <= 1.2  # any image passes after the projection
    assert [s["Stage"] for s in result.record["Stages"]] == ["prepare", "reconstruct", "project"]
    assert ("project", 1.0) in told


def test_engine_is_deterministic_and_scales_with_the_image():
    image = _image()
    first = super_resolve(image, SROptions(resolution=1.0, threads=1))
    again = super_resolve(image, SROptions(resolution=1.0, threads=1))
    np.testing.assert_array_equal(first.image.get_fdata(), again.image.get_fdata())
    larger = nib.Nifti1Image(image.get_fdata(dtype=np.float32) * 100, image.affine)
    scaled = super_resolve(larger, SROptions(resolution=1.0, threads=1))
    # In bfloat16 too the difference is far below the noise.
    difference = (scaled.image.get_fdata() / 100 - first.image.get_fdata()) / first.record["NoiseStd"]
    assert np.sqrt(np.mean(difference**2)) < 0.02
    assert np.abs(difference).max() < 0.5


def test_detail_beyond_the_output_grid_is_told_apart():
    image = _image((0.5, 0.5, 3.0))
    result = super_resolve(image, SROptions(resolution=1.0, model="classical", threads=1))
    facts = result.record["DataConsistency"]
    assert 0.8 <= facts["Model"]["ResidualStd"] <= 1.2
    assert facts["BeyondGridStd"] > 0.5  # three quarters of the noise, and the finest edges
    assert "finer than the output" in result.record["Warnings"][0]
    assert super_resolve(_image(), SROptions(resolution=1.0, threads=1)).record["DataConsistency"]["BeyondGridStd"] == 0


def test_cubic_is_a_plain_baseline_and_mask_is_used(tmp_path: Path):
    image = _image()
    mask = nib.Nifti1Image((image.get_fdata() > 100).astype(np.uint8), image.affine)
    result = super_resolve(image, SROptions(resolution=1.0, model="cubic", threads=1), mask=mask)
    assert result.record["Lambda"] == 0
    assert result.record["Warnings"] == []
    shifted = nib.Nifti1Image(mask.get_fdata(), image.affine + np.eye(4))
    with pytest.raises(ImageError, match="not on the grid"):
        super_resolve(image, mask=shifted)


def test_maps_that_are_not_finite_never_cost_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classical model, with an uncertainty and a map of its own in which voxels overflowed."""
    image, options = _image(), SROptions(resolution=1.5, model="classical", threads=1)
    sound, model = super_resolve(image, options), get_model("classical")

    def overflowing(problem: Problem) -> Reconstruction:
        found = model.reconstruct(problem)
        std = torch.full_like(found.image, 0.1)
        std[0, 0, :5] = torch.inf
        gate = torch.ones_like(std)
        gate[1, 1, 1] = torch.nan
        return attrs.evolve(found, std=std, maps={"gate-cortex": gate})

    monkeypatch.setattr(engine, "get_model", lambda name: attrs.evolve(model, reconstruct=overflowing))
    found = super_resolve(image, options)
    np.testing.assert_array_equal(found.image.get_fdata(), sound.image.get_fdata())
    assert found.uncertainty is not None
    brightest = found.record["NoiseStd"] / found.record["NoisePercent"] * 100
    np.testing.assert_allclose(found.uncertainty.get_fdata()[0, 0, :6] / brightest, [1] * 5 + [0.1], rtol=1e-5)
    assert found.maps["gate-cortex"].get_fdata()[1, 1, 1] == 0
    told = " ".join(found.record["Warnings"])
    assert "5 voxels of the map uncertainty" in told
    assert "1 voxels of the map gate-cortex" in told

    def nothing(problem: Problem) -> Reconstruction:
        return Reconstruction(torch.full_like(model.reconstruct(problem).image, torch.nan))

    monkeypatch.setattr(engine, "get_model", lambda name: attrs.evolve(model, reconstruct=nothing))
    with pytest.raises(ImageError, match="the model's image has voxels that are NaN or infinite"):
        super_resolve(image, options)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.full((8, 8, 8), np.nan), "NaN"),
        (np.full((8, 8, 8), 3.0), "all voxels have the value 3"),
        (np.zeros((8, 8, 8, 2)), "3-D image"),
        (-np.arange(512.0).reshape(8, 8, 8), "far below 0"),
    ],
)
def test_images_that_are_refused(tmp_path: Path, data: np.ndarray, message: str):
    path = tmp_path / "bad.nii.gz"
    nib.save(nib.Nifti1Image(data.astype(np.float32), np.eye(4)), path)
    with pytest.raises(ImageError, match=message) as caught:
        super_resolve(path, SROptions(resolution=1.0))
    assert "bad.nii.gz" in str(caught.value)


def test_geometry_and_numbers_that_are_refused() -> None:
    data = np.random.default_rng(0).uniform(1, 100, (12, 12, 12)).astype(np.float32)
    sheared = np.eye(4)
    sheared[0, 1] = 0.2
    metres = nib.Nifti1Image(data, np.eye(4))
    metres.header.set_xyzt_units("meter")
    for image, message in (
        (nib.Nifti1Image(data, sheared), "not at right angles"),
        (nib.Nifti1Image(data.astype(np.complex64), np.eye(4)), "complex"),
        (metres, "not in mm"),
    ):
        with pytest.raises(ImageError, match=message):
            super_resolve(image, SROptions(resolution=1.0, model="cubic"))


def test_an_undefined_unit_is_taken_for_millimetres() -> None:
    image = _image()
    image.header["xyzt_units"] = 7
    assert (
        super_resolve(image, SROptions(resolution=2.0, model="cubic", threads=1)).image.header.get_xyzt_units()[0]
        == "mm"
    )


def test_a_damaged_mask_is_named(tmp_path: Path) -> None:
    image, path = _image(), tmp_path / "mask.nii.gz"
    noise = np.random.default_rng(0).integers(0, 255, image.shape).astype(np.uint8)
    nib.Nifti1Image(noise, image.affine).to_filename(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=r"mask\.nii\.gz: the voxel data is truncated or damaged"):
        super_resolve(image, SROptions(resolution=1.0, model="cubic"), mask=path)


def test_device_is_never_replaced_in_silence():
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="unknown device"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA GPU"):
            choose_device("cuda")
        assert choose_device("auto").type == "cpu"


def test_cost_grows_with_the_grid_and_the_model():
    small = estimate_cost((96, 128, 128), (192, 256, 256))
    large = estimate_cost((176, 256, 256), (252, 366, 366))
    baseline = estimate_cost((176, 256, 256), (252, 366, 366), "cubic")
    assert small[0] < large[0] < 6
    assert small[1] < large[1]
    assert baseline[0] < large[0]
    assert baseline[1] < large[1]
    assert estimate_cost((176, 256, 256), (252, 366, 366), threads=2)[1] < large[1]


def test_windows_shrink_to_fit_the_memory():
    shapes = (176, 256, 256), (252, 366, 366)
    card = get_model("moediff").card
    amounts = (100.0, 8.0, 0.1)
    needed = [estimate_cost(*shapes, "moediff", memory_gb=gb)[0] for gb in amounts]
    windows = [window_voxels(card, *shapes, gb) for gb in amounts]
    assert windows[0] == CPU_WINDOW_VOXELS > windows[1] > windows[2] == LEAST_CPU_WINDOW_VOXELS
    assert needed[0] > needed[1] == pytest.approx(8.0, abs=0.01)
    assert needed[1] > needed[2]
    assert window_voxels(get_model("cubic").card, *shapes, 0.1) == CPU_WINDOW_VOXELS


def test_command_writes_all_outputs(scan: Path):
    sidecar = scan.with_name("scan.json")
    sidecar.write_text(json.dumps({"SliceThickness": 2.7, "MRAcquisitionType": "2D"}))
    outputs = [scan.with_name(n) for n in ("out.nii.gz", "residual.nii.gz", "record.json")]
    done = _run(
        "sr", scan, outputs[0], "--resolution", "1", "--residual", outputs[1], "--record", outputs[2],
        "--metadata", sidecar, "--omp-nthreads", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert nib.load(outputs[0]).shape == (42, 42, 42)
    residual = nib.load(outputs[1]).get_fdata()
    record = json.loads(outputs[2].read_text())
    assert record["PSF"][2]["FWHM"] == 2.7
    assert residual.shape == (42, 42, 14)
    assert "reconstruct 100%" in done.stderr
    assert sorted(p.name for p in scan.parent.iterdir()) == sorted(
        [scan.name, sidecar.name, *(p.name for p in outputs)]
    )


def test_help_and_version_load_no_library_that_takes_seconds():
    code = (
        "import sys\n"
        "from moesr_bids.cli.moesr import main\n"
        "try:\n    main([sys.argv[1]])\nexcept SystemExit as end:\n    assert not end.code\n"
        "slow = {'torch', 'scipy', 'nibabel', 'nipype', 'ants', 'matplotlib', 'pandas', 'skimage', 'monai'}\n"
        "print('loaded:', sorted(slow & set(sys.modules)))"
    )
    for option in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", code, option], capture_output=True, text=True, check=True)
        assert "moesr" in done.stdout
        assert done.stdout.rstrip().endswith("loaded: []")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.nii.gz", "out.nii.gz"], 1, "no such file"),
        (["text.nii.gz", "out.nii.gz"], 1, "not a NIfTI image"),
        (["cut.nii.gz", "out.nii.gz"], 1, "truncated"),
        (["scan.nii.gz", "out.nii.gz", "--metadata", "text.nii.gz"], 1, "JSON"),
        (["scan.nii.gz", "out.txt"], 2, "ends in"),
        (["scan.nii.gz", "scan.nii.gz"], 2, "may not replace"),
        (["scan.nii.gz", "nowhere/out.nii.gz"], 2, "no such folder"),
        (["scan.nii.gz", "out.nii.gz", "--model", "magic"], 2, "unknown model"),
        (["scan.nii.gz", "out.nii.gz", "--psf", "kspace"], 2, "three axes"),
        (["scan.nii.gz", "out.nii.gz", "--resolution", "0"], 2, "between 0.3 and 3"),
        (["scan.nii.gz", "out.nii.gz", "--omp-nthreads", "0"], 2, "whole number above zero"),
    ],
)
def test_command_errors(scan: Path, arguments, code, message, monkeypatch, capsys):
    monkeypatch.chdir(scan.parent)
    Path("text.nii.gz").write_text("not an image")
    Path("cut.nii.gz").write_bytes(scan.read_bytes()[:-3000])
    before = sorted(p.name for p in scan.parent.iterdir())
    try:
        result = main(["sr", *arguments])
    except SystemExit as stop:
        result = stop.code
    assert result == code
    error = capsys.readouterr().err.strip()
    assert any(part in error for part in message.split("|")), error
    assert sorted(p.name for p in scan.parent.iterdir()) == before


def test_failed_write_leaves_the_old_output(scan: Path, monkeypatch, capsys):
    output = scan.with_name("out.nii.gz")
    output.write_bytes(b"old")

    def full(self: nib.Nifti1Image, filename: Path) -> None:
        Path(filename).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(filename))

    monkeypatch.setattr(nib.Nifti1Image, "to_filename", full)
    assert main(["sr", str(scan), str(output), "--resolution", "1.5", "--model", "cubic"]) == 1
    assert "No space left" in capsys.readouterr().err
    assert output.read_bytes() == b"old"
    assert len(list(scan.parent.iterdir())) == 2


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "moesr_bids.cli.moesr", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
