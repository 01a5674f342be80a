"""The raw data set of super-resolved images: it is valid, and its voxels lie where those of the outputs lie."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from nibabel.affines import from_matvec
from scipy.spatial.transform import Rotation

from moesr_bids.cli.moesr import main as moesr
from moesr_bids.run.export import LARGEST_MM, export_raw, raw_name
from moesr_bids.sr.storage import compact
from tests.app import validation_errors
from tests.reports_data import add_finished

SCAN = {"MagneticFieldStrength": 3, "EchoTime": 0.003, "SliceThickness": 5, "InstitutionName": "somewhere"}


def affine_of(zoom: float, shape: tuple[int, ...], angles: tuple[float, float, float]) -> np.ndarray:
    """Return axes stored left-handed, turned by angles in degrees, about the centre of a head that is not at 0."""
    axes = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag([-zoom, zoom, zoom])
    return from_matvec(axes, np.array([3.0, -20.0, 15.0]) - axes @ (np.array(shape) - 1) / 2)


def add_output(out: Path, key: str, shape: tuple[int, int, int], brain: tuple[slice, ...], zoom: float = 8.0) -> Path:
    """Write an output whose voxels are all different, its mask and its sidecar; return the image."""
    stem, _, suffix = key.rpartition("_")
    label = "" if suffix == "T1w" else f"_space-{suffix}"
    sub = key.split("_")[0]
    parts = [part for part in key.split("_") if part.startswith("ses-")]
    anat = "/".join([sub, *parts, "anat"])
    mask_name = f"{anat}/{stem}{label}_res-0p7mm_desc-brain_mask.nii.gz"
    zooms = [zoom] * 3
    sidecar = add_finished(out, key, Outputs=[mask_name], OutputZooms=zooms, OutputShape=list(shape))
    content = json.loads(sidecar.read_text())
    sidecar.write_text(
        json.dumps({**content, "Sources": [f"bids:raw:{anat}/{key}.nii.gz"], "InferredDetail": "Not measured."})
    )
    affine = affine_of(zoom, shape, (10, -5, 8))
    data = np.random.default_rng(1).random(shape, np.float32) * 800
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    path = sidecar.with_suffix(".nii.gz")
    compact(image, 10.0).to_filename(path)
    mask = np.zeros(shape, np.uint8)
    mask[brain] = 1
    nib.Nifti1Image(mask, affine).to_filename(out / mask_name)
    return path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Return an output folder beside the scans that it was made from."""
    raw, out = tmp_path / "bids", tmp_path / "out"
    (raw / "sub-1" / "ses-a" / "anat").mkdir(parents=True)
    (raw / "sub-1" / "ses-a" / "anat" / "sub-1_ses-a_T1w.json").write_text(json.dumps(SCAN))
    out.mkdir()
    sources = [{"URL": "../bids", "Name": "Study"}]
    maker = [{"Name": "moesr-bids", "Version": "x"}]
    told = {"Name": "x", "BIDSVersion": "1.10.0", "DatasetType": "derivative", "GeneratedBy": maker}
    (out / "dataset_description.json").write_text(json.dumps({**told, "SourceDatasets": sources}))
    return out


def assert_same_in_the_world(exported: Path, output: Path) -> None:
    """Each voxel has the value that the output has at its position in mm, to the last bit."""
    image, before = nib.load(exported), nib.load(output)
    index = np.linalg.inv(before.affine) @ image.affine  # voxels of the one to voxels of the other
    np.testing.assert_allclose(index[:3, :3], np.eye(3), atol=1e-5)
    np.testing.assert_allclose(index[:3, 3], np.rint(index[:3, 3]), atol=1e-3)
    start = np.rint(index[:3, 3]).astype(int)
    box = tuple(slice(first, first + n) for first, n in zip(start, image.shape, strict=True))
    np.testing.assert_array_equal(image.get_fdata(), before.get_fdata()[box])


@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(shape=st.tuples(*[st.integers(8, 44)] * 3), at=st.tuples(*[st.floats(0, 1)] * 3))
def test_every_voxel_keeps_its_value_and_its_place(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int, int], at: tuple[float, float, float]
) -> None:
    folder = tmp_path_factory.mktemp("export")
    (folder / "out").mkdir()
    corner = [int(share * (n - 7)) for share, n in zip(at, shape, strict=True)]
    brain = tuple(slice(start, start + 6) for start in corner)
    path = add_output(folder / "out", "sub-1_T1w", shape, brain)
    (exported,) = export_raw(folder / "out", folder / "raw")
    image, before = nib.load(exported), nib.load(path)
    assert image.shape == tuple(min(n, 32) for n in shape), "32 voxels of 8 mm are 256 mm"
    assert all(n * zoom <= LARGEST_MM for n, zoom in zip(image.shape, image.header.get_zooms(), strict=True))
    assert_same_in_the_world(exported, path)
    assert [int(image.header[code]) for code in ("sform_code", "qform_code")] == [1, 1]
    np.testing.assert_allclose(image.get_qform(), image.affine, atol=1e-4)
    assert image.get_data_dtype() == before.get_data_dtype() == np.int16
    mask = nib.load(folder / "out/sub-1/anat/sub-1_res-0p7mm_desc-brain_mask.nii.gz")
    seen = np.linalg.inv(image.affine) @ mask.affine @ np.vstack([np.argwhere(mask.get_fdata()).T, np.ones(6**3)])
    assert (seen[:3] > -0.01).all() and (np.array(image.shape) - 0.99 > seen[:3].T).all(), "the brain is inside"


def test_it_is_valid_raw_data_with_what_is_known_of_the_scan(output: Path, tmp_path: Path) -> None:
    middle = (slice(5, 15),) * 3
    keys = ["sub-1_ses-a_T1w", "sub-1_ses-a_T2w", "sub-1_ses-a_acq-x_rec-norm_run-02_FLAIR", "sub-1_ses-a_rec-dis_T1w"]
    for key in keys:
        add_output(output, key, (20, 24, 20), middle)
    assert moesr(["export", str(output), str(tmp_path / "raw")]) == 0
    names = sorted(path.name for path in (tmp_path / "raw").rglob("*.nii.gz"))
    assert names == [
        "sub-1_ses-a_acq-x_rec-normmoesr_run-02_FLAIR.nii.gz",
        "sub-1_ses-a_rec-dismoesr_T1w.nii.gz",
        "sub-1_ses-a_rec-moesr_T1w.nii.gz",
        "sub-1_ses-a_rec-moesr_T2w.nii.gz",
    ]
    assert validation_errors(tmp_path / "raw") == []
    told = json.loads((tmp_path / "raw/sub-1/ses-a/anat/sub-1_ses-a_rec-moesr_T1w.json").read_text())
    assert (told["MagneticFieldStrength"], told["EchoTime"]) == (3, 0.003)
    assert {"SliceThickness", "InstitutionName"}.isdisjoint(told), "no longer true, or nobody's business"
    assert "from voxels of 1 x 1 x 5 mm to 8 x 8 x 8 mm. Not measured." in told["InferredDetail"]


def test_what_is_there_stays_and_what_was_made_again_is_replaced(output: Path, tmp_path: Path) -> None:
    path = add_output(output, "sub-1_T1w", (20, 20, 20), (slice(5, 15),) * 3)
    (exported,) = export_raw(output, tmp_path / "raw")
    before = exported.stat().st_mtime_ns
    assert export_raw(output, tmp_path / "raw") == [exported]
    assert exported.stat().st_mtime_ns == before
    sidecar = path.with_name("sub-1_res-0p7mm_desc-moesr_T1w.json")
    sidecar.write_text(sidecar.read_text().replace("2" * 64, "3" * 64))
    export_raw(output, tmp_path / "raw")
    assert exported.stat().st_mtime_ns > before


def test_spm_gets_files_that_are_not_compressed(output: Path, tmp_path: Path) -> None:
    path = add_output(output, "sub-1_T1w", (20, 20, 20), (slice(5, 15),) * 3)
    assert moesr(["export", str(output), str(tmp_path / "raw"), "--extension", ".nii"]) == 0
    exported = tmp_path / "raw/sub-1/anat/sub-1_rec-moesr_T1w.nii"
    assert_same_in_the_world(exported, path)
    assert nib.load(exported).shape == (20, 20, 20)
    assert validation_errors(tmp_path / "raw") == []


def test_a_damaged_output_is_told_and_the_others_are_exported(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_output(output, "sub-1_T1w", (20, 20, 20), (slice(5, 15),) * 3)
    add_output(output, "sub-2_T1w", (20, 20, 20), (slice(5, 15),) * 3).write_bytes(b"")
    assert [path.name for path in export_raw(output, tmp_path / "raw")] == ["sub-1_rec-moesr_T1w.nii.gz"]
    assert "WARNING: not exported: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("out/raw", "cannot be apart from the outputs"),
        (".", "cannot be apart from the outputs"),
        ("bids", "holds another data set (Study)"),
        ("other", "is an output folder of moesr-bids"),
        ("file", "is a file"),
    ],
)
def test_folders_that_cannot_take_it_are_refused(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, words: str
) -> None:
    (tmp_path / "bids/dataset_description.json").write_text('{"Name": "Study"}')
    (tmp_path / "other").mkdir()
    (tmp_path / "other/dataset_description.json").write_bytes((output / "dataset_description.json").read_bytes())
    (tmp_path / "file").touch()
    assert moesr(["export", str(output), str(tmp_path / target)]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_without_outputs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert moesr(["export", str(tmp_path), str(tmp_path.with_name("raw"))]) == 2
    assert "no output folder of moesr-bids" in capsys.readouterr().err


def test_names_have_the_order_of_bids() -> None:
    assert raw_name("sub-1_ses-2_ce-gd_echo-1_res-1mm_desc-moesr_T2w.json", ".nii") == (
        "sub-1_ses-2_ce-gd_rec-moesr_echo-1_T2w.nii"
    )
