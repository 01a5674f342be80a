"""The header check: what is refused, with which words, and what is kept."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from moesr_bids.errors import ImageError
from moesr_bids.preproc.header import conform


def head(shape: tuple[int, ...] = (40, 44, 30)) -> np.ndarray:
    rng = np.random.default_rng(0)
    data = np.zeros(shape, dtype=np.float32)
    data[8:-8, 8:-8, 6:-6] = 100 + rng.normal(0, 5, data[8:-8, 8:-8, 6:-6].shape)
    return data


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    image = nib.Nifti1Image(data, np.diag([4.0, 4.0, 5.0, 1.0]) if affine is None else affine)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    return path


def test_good_image_keeps_voxels_and_affine(tmp_path: Path) -> None:
    affine = nib.affines.from_matvec(np.diag([-4.0, 4.0, 5.0]), [70, -80, -60])
    conformed = conform(save(tmp_path / "a.nii.gz", head(), affine))
    assert conformed.warnings == ()
    assert np.array_equal(conformed.image.get_fdata(dtype=np.float32), head())
    assert np.allclose(conformed.image.affine, affine)


@pytest.mark.parametrize(("codes", "expected"), [((1, 1), 1), ((4, 0), 4), ((0, 1), 1), ((0, 0), 2)])
def test_what_the_affine_refers_to_is_kept(tmp_path: Path, codes: tuple[int, int], expected: int) -> None:
    affine = np.diag([4.0, 4.0, 5.0, 1.0])
    image = nib.load(save(tmp_path / "a.nii.gz", head(), affine))
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    nib.save(image, tmp_path / "b.nii.gz")
    conformed = conform(tmp_path / "b.nii.gz").image
    assert conformed.get_sform(coded=True)[1] == conformed.get_qform(coded=True)[1] == expected


def test_a_quaternion_too_long_by_a_rounding_costs_only_the_qform(tmp_path: Path) -> None:
    affine = np.diag([-4.0, -4.0, 5.0, 1.0])
    image = nib.load(save(tmp_path / "a.nii.gz", head(), affine))
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header["quatern_d"] = 1 + 1e-6
    nib.save(image, tmp_path / "b.nii.gz")
    conformed = conform(tmp_path / "b.nii.gz")
    assert np.allclose(conformed.image.affine, affine)
    assert "the qform is no rotation" in conformed.warnings[0]


def test_oblique_affine_is_kept(tmp_path: Path) -> None:
    angle = np.deg2rad(20)
    rotation = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = nib.affines.from_matvec(rotation @ np.diag([4.0, 4.0, 5.0]), [-70, -80, -60])
    conformed = conform(save(tmp_path / "a.nii.gz", head(), affine))
    assert np.allclose(conformed.image.affine, affine, atol=1e-4)


def test_scaled_integers_are_read_as_values(tmp_path: Path) -> None:
    stored = np.rint(head()).astype(np.int16)
    image = nib.Nifti1Image(stored, np.diag([4.0, 4.0, 5.0, 1.0]))
    image.header.set_slope_inter(0.5, 3.0)
    image.to_filename(tmp_path / "a.nii.gz")
    assert np.allclose(conform(tmp_path / "a.nii.gz").image.get_fdata(), 0.5 * stored + 3)


def test_single_volume_series_is_taken_and_told(tmp_path: Path) -> None:
    conformed = conform(save(tmp_path / "a.nii.gz", head()[..., None]))
    assert conformed.image.shape == (40, 44, 30)
    assert "one volume" in conformed.warnings[0]


def test_nan_background_becomes_zero_and_is_told(tmp_path: Path) -> None:
    data = head()
    data[:3] = np.nan
    conformed = conform(save(tmp_path / "a.nii.gz", data))
    assert np.isfinite(conformed.image.get_fdata()).all()
    assert "background voxels were NaN" in conformed.warnings[0]


def test_disagreeing_forms_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    affine = np.diag([4.0, 4.0, 5.0, 1.0])
    image = nib.Nifti1Image(head(), affine)
    image.set_qform(affine, code=1)
    image.set_sform(nib.affines.from_matvec(affine[:3, :3], [7, 0, 0]), code=1)
    image.to_filename(path)
    conformed = conform(path)
    assert any("differ by up to 7.00 mm" in warning for warning in conformed.warnings)


def test_unset_forms_are_told(tmp_path: Path) -> None:
    image = nib.Nifti1Image(head(), None)
    image.header.set_zooms((4, 4, 5))
    image.to_filename(tmp_path / "a.nii.gz")
    assert any("left and right" in warning for warning in conform(tmp_path / "a.nii.gz").warnings)


def test_slight_shear_is_removed_and_told(tmp_path: Path) -> None:
    affine = np.diag([4.0, 4.0, 5.0, 1.0])
    affine[0, 1] = 0.04
    conformed = conform(save(tmp_path / "a.nii.gz", head(), affine))
    directions = conformed.image.affine[:3, :3] / np.linalg.norm(conformed.image.affine[:3, :3], axis=0)
    assert np.allclose(directions.T @ directions, np.eye(3), atol=1e-6)
    assert any("shear" in warning for warning in conformed.warnings)


def test_a_shear_is_removed_about_the_centre_and_the_shift_is_told(tmp_path: Path) -> None:
    shape = (176, 64, 256)
    affine = nib.affines.from_matvec(np.diag([1.0, 4.0, 1.0]), [-88, -128, -128])
    affine[0, 2] = 0.06
    conformed = conform(save(tmp_path / "a.nii.gz", head(shape), affine))
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1)
    apart = nib.affines.apply_affine(conformed.image.affine - affine, corners)
    # Opposite corners move as far, the opposite way: the centre stays. About voxel (0, 0, 0) one would move 9 mm.
    np.testing.assert_allclose(apart, -apart[::-1], atol=1e-4)
    farthest = np.linalg.norm(apart, axis=1).max()
    assert 4 < farthest < 5
    assert f"moves its farthest corner by {farthest:.1f} mm" in conformed.warnings[0]


def nan_inside() -> np.ndarray:
    data = head()
    data[20, 20, 15] = np.nan
    return data


@pytest.mark.parametrize(
    ("data", "affine", "words"),
    [
        (np.zeros((40, 44, 30), np.float32), None, "all voxels have the value 0"),
        (np.full((40, 44, 30), np.nan, np.float32), None, "no voxel is a finite number"),
        (nan_inside(), None, "inside the image are NaN"),
        (np.stack([head()] * 3, axis=-1), None, "a series of 3 volumes"),
        (head()[..., 0], None, "no 3-D image"),
        (head(), np.diag([0.04, 4, 5, 1.0]), "voxel sizes"),
        (head(), np.diag([1.0, 1, 1, 1]), "field of view"),
        (head(), nib.affines.from_matvec([[4, 1.5, 0], [0, 4, 0], [0, 0, 5]]), "right angles"),
    ],
)
def test_what_cannot_be_a_head_is_refused(
    tmp_path: Path, data: np.ndarray, affine: np.ndarray | None, words: str
) -> None:
    path = save(tmp_path / "bad.nii.gz", data, affine)
    with pytest.raises(ImageError, match=words) as caught:
        conform(path)
    assert str(path) in str(caught.value)


def test_units_other_than_millimetres_are_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(head(), np.diag([4.0, 4.0, 5.0, 1.0]))
    image.header.set_xyzt_units("meter")
    image.to_filename(tmp_path / "a.nii.gz")
    with pytest.raises(ImageError, match="meter"):
        conform(tmp_path / "a.nii.gz")


def with_unit_code(path: Path, code: int) -> Path:
    image = nib.load(save(path, head()))
    image.header["xyzt_units"] = code
    nib.save(nib.Nifti1Image(head(), image.affine, image.header), path)
    assert int(nib.load(path).header["xyzt_units"]) == code
    return path


@pytest.mark.parametrize("code", [7, 66])
def test_an_undefined_unit_is_taken_for_millimetres_and_told(tmp_path: Path, code: int) -> None:
    conformed = conform(with_unit_code(tmp_path / "a.nii.gz", code))
    assert conformed.warnings == (f"the unit code {code} of the header is undefined; taken for mm",)
    assert conformed.image.header.get_xyzt_units()[0] == "mm"


def test_an_undefined_unit_of_time_hides_no_metres(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="in meters"):
        conform(with_unit_code(tmp_path / "a.nii.gz", 65))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.nii.gz", head())
    truncated = tmp_path / "truncated.nii.gz"
    truncated.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    text = tmp_path / "text.nii.gz"
    text.write_text("this is no image")
    zipped_text = tmp_path / "zipped.nii.gz"
    zipped_text.write_bytes(gzip.compress(b"neither is this" * 100))
    empty = tmp_path / "empty.nii.gz"
    empty.touch()
    dangling = tmp_path / "dangling.nii.gz"
    dangling.symlink_to(tmp_path / ".git/annex/objects/x")
    expected = {
        truncated: "truncated or damaged",
        text: "not a NIfTI image",
        zipped_text: "not a NIfTI image",
        empty: "the file is empty",
        dangling: "content was not fetched",
        tmp_path / "none.nii.gz": "no such file",
    }
    for path, words in expected.items():
        with pytest.raises(ImageError, match=words):
            conform(path)
