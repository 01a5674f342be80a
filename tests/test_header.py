"""The header check: which files are refused, with which words, and what is kept of the others."""

from __future__ import annotations

import gzip
import re
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from moesr_bids.errors import ImageError
from moesr_bids.preproc.header import conform
from moesr_bids.sr.engine import super_resolve
from moesr_bids.sr.options import SROptions


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


def test_outliers_stay_and_are_told_once_by_super_resolution(tmp_path: Path) -> None:
    data = head()
    data[0, 0, 0] = 1e5
    conformed = conform(save(tmp_path / "a.nii.gz", data))
    assert conformed.image.get_fdata()[0, 0, 0] == pytest.approx(1e5)
    assert not [warning for warning in conformed.warnings if "outlier" in warning]


def test_a_background_below_zero_is_told_once(tmp_path: Path) -> None:
    conformed = conform(save(tmp_path / "a.nii.gz", head() - 1024))
    assert [warning for warning in conformed.warnings if "1024" in warning] == [
        "the background was at -1024, not at 0; this was subtracted from all voxels"
    ]


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


@pytest.mark.parametrize("unit", ["meter", "micron"])
def test_units_other_than_millimetres_are_refused(tmp_path: Path, unit: str) -> None:
    image = nib.Nifti1Image(head(), np.diag([4.0, 4.0, 5.0, 1.0]))
    image.header.set_xyzt_units(unit)
    image.to_filename(tmp_path / "a.nii.gz")
    with pytest.raises(ImageError, match=f"given in {unit}s"):
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


def rewritten(path: Path, *, order: str = "<", tail: bytes = b"", **fields: object) -> Path:
    """Write a good image whose header says what no library would write."""
    image = nib.load(save(path, head()))
    header = image.header.as_byteswapped(order)
    header.set_sform(None, 0)
    header.set_qform(np.diag([4.0, 4.0, 5.0, 1.0]), 1)
    header["vox_offset"] = 352
    for name, value in fields.items():
        place, _, number = name.partition("__")
        if number:
            header[place][int(number)] = value
        else:
            header[place] = value
    voxels = head().astype(np.dtype(np.float32).newbyteorder(order)).tobytes(order="F")
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + voxels + tail))
    return path


SFORM = {"sform_code": 1, "srow_x": [4, 0, 0, 0], "srow_y": [0, 4, 0, 0], "srow_z": [0, 0, 5, 0]}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("fields", [{}, {"scl_slope": np.nan, "scl_inter": np.nan}, {"pixdim__0": 0}, SFORM])
def test_what_other_writers_write_is_read_without_a_word(tmp_path: Path, order: str, fields: dict[str, object]) -> None:
    conformed = conform(rewritten(tmp_path / "a.nii.gz", order=order, **fields))
    assert conformed.warnings == ()
    assert np.array_equal(conformed.image.get_fdata(dtype=np.float32), head())
    assert np.allclose(conformed.image.affine, np.diag([4.0, 4.0, 5.0, 1.0]))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"vox_offset": 0}, "begin at byte 0 .vox_offset., and they cannot before 352"),
        ({"vox_offset": 176}, "begin at byte 176"),
        ({"vox_offset": 352.5}, "begin at byte 352.5"),
        ({"vox_offset": np.nan}, "begin at byte nan"),
        ({"vox_offset": 1e30}, "are missing"),
        ({"vox_offset": 368}, "16 of .* bytes are missing"),
        ({"magic": b"ni1"}, "in another file"),
        ({"magic": b"abc"}, "not a NIfTI image"),
        ({"pixdim__2": 0}, "voxel sizes of 4, 0, 5 mm in the header .pixdim. are not possible"),
        ({"pixdim__2": -4}, "voxel sizes of 4, -4, 5 mm"),
        ({"pixdim__1": np.nan}, "voxel sizes of nan, 4, 5 mm"),
        ({"pixdim__1": np.inf}, "voxel sizes of inf, 4, 5 mm"),
        ({"dim__0": 0}, "states 0 dimensions"),
        ({"dim__0": 9}, "states 9 dimensions"),
        ({"dim__0": -1}, "states -1 dimensions"),
        ({"dim__0": 768}, "states 768 dimensions"),
        ({"dim__0": 2}, "no 3-D image"),
        ({"dim__1": 0}, "3 dimensions of .0, 44, 30. voxels"),
        ({"dim__1": -40}, "3 dimensions of .-40, 44, 30. voxels"),
        ({"dim__3": 15}, "longer than its header says"),
        ({"dim__3": 31}, "bytes are missing"),
        ({"dim__0": 4, "dim__4": 0}, "4 dimensions"),
        ({"dim__0": 4, "dim__4": 3}, "a series of 3 volumes"),
        ({"datatype": 128, "bitpix": 24}, "voxels are colours"),
        ({"datatype": 32, "bitpix": 64}, "voxels are complex64"),
        ({"datatype": 1, "bitpix": 1}, "data type .1. is none that can be read"),
        ({"datatype": 999}, "data type .999. is none that can be read"),
        ({"datatype": 4, "bitpix": 32}, "longer than its header says"),
        ({"scl_slope": np.inf}, "the scale of the voxels, inf and"),
        ({"scl_slope": 1, "scl_inter": np.nan}, "the scale of the voxels, 1 and nan"),
        ({"xyzt_units": 1}, "given in meters"),
        ({"tail": bytes(40 * 44 * 4)}, "longer than its header says, a slice or more"),
    ],
)
def test_a_header_that_would_be_repaired_in_silence_is_refused(
    tmp_path: Path, fields: dict[str, object], words: str
) -> None:
    path = rewritten(tmp_path / "a.nii.gz", **fields)
    with pytest.raises(ImageError, match=words) as caught:
        conform(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    with pytest.raises(ImageError):
        super_resolve(path, SROptions(resolution=4, model="cubic", device="cpu"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {**SFORM, "pixdim__2": 0},
            "voxel sizes of 4, 0, 5 mm in the header .* are not those of the sform, 4, 4, 5",
        ),
        ({**SFORM, "pixdim__2": 2}, "voxel sizes of 4, 2, 5 mm"),
        ({**SFORM, "qform_code": 0, "pixdim__3": np.nan}, "voxel sizes of 4, 4, nan mm"),
        ({"sform_code": 99}, "the sform_code of the header, 99, is undefined; that form was not used"),
        ({**SFORM, "qform_code": 77}, "the qform_code of the header, 77, is undefined"),
        ({"pixdim__0": 3}, "the handedness of the qform, 3, is neither 1 nor -1"),
        ({"intent_code": 1002}, "the header's intent is label .code 1002."),
        ({"intent_code": 9999}, "the header's intent is undefined .code 9999."),
        ({"scl_slope": 0, "scl_inter": 5}, "shifts the voxels by 5 without a scale"),
    ],
)
def test_what_is_odd_about_a_header_is_told(tmp_path: Path, fields: dict[str, object], words: str) -> None:
    path = rewritten(tmp_path / "a.nii.gz", **fields)
    conformed = conform(path)
    assert re.search(words, " ".join(conformed.warnings))
    assert np.array_equal(conformed.image.get_fdata(dtype=np.float32), head())
    assert np.allclose(conformed.image.affine, np.diag([4.0, 4.0, 5.0, 1.0]))
    told = super_resolve(path, SROptions(resolution=4, model="cubic", device="cpu")).record["Warnings"]
    assert re.search(words, " ".join(told))


def test_nifti_2_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    nib.Nifti2Image(head(), np.diag([4.0, 4.0, 5.0, 1.0])).to_filename(path)
    assert np.array_equal(conform(path).image.get_fdata(dtype=np.float32), head())


def test_a_changed_byte_in_a_compressed_file_is_found(tmp_path: Path) -> None:
    """Readers stop at the last voxel, and the checksum comes after it."""
    path = save(tmp_path / "a.nii.gz", head())
    whole = bytearray(path.read_bytes())
    whole[-8] ^= 1  # of the checksum itself: the voxels are right, but who can know
    path.write_bytes(whole)
    with pytest.raises(ImageError, match="CRC"):
        conform(path)


def test_a_series_is_refused_from_its_header(tmp_path: Path) -> None:
    """A file of few bytes may unfold to more than the memory."""
    path = tmp_path / "a.nii.gz"
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((96, 96, 60, 100))
    header["vox_offset"], header["magic"] = 352, b"n+1"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(header.binaryblock + bytes(4))
        for _ in range(100):
            stream.write(bytes(96 * 96 * 60 * 2))
    assert path.stat().st_size < 2e6
    for read in (conform, lambda path: super_resolve(path, SROptions(resolution=2, model="cubic", device="cpu"))):
        tracemalloc.start()
        with pytest.raises(ImageError, match=r"100 volumes|3-D image"):
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10e6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/annex/objects/MD5E-s5663237--1bd6e6a1f8c4a5c9a0e6a9e1b0f0c0d1.nii.gz\n", "git-annex.* `datalad get`"),
        ("../../.git/annex/objects/xx/yy/MD5E-s56--1b.nii.gz/MD5E-s56--1b.nii.gz", "git-annex.* `datalad get`"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "Git LFS.* `git lfs pull`"),
    ],
)
def test_pointers_get_the_sentence_of_a_dangling_link(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_text(text)
    for read in (conform, super_resolve):
        with pytest.raises(ImageError, match=f"the file's content was not fetched .a pointer of {words}"):
            read(path)


def test_names_that_hide_the_compression_are_told(tmp_path: Path) -> None:
    zipped = save(tmp_path / "a.nii.gz", head()).rename(tmp_path / "a.nii")
    with pytest.raises(ImageError, match=r"rename it to a\.nii\.gz"):
        conform(zipped)
    plain = save(tmp_path / "b.nii", head()).rename(tmp_path / "b.nii.gz")
    with pytest.raises(ImageError, match="not compressed, though its name ends in"):
        conform(plain)


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
