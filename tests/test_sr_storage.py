"""Storage: rounding to 16 bits is far below the noise, and zero stays zero."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moesr_bids.sr.storage import compact, compact_share, compact_std, write_compact

AFFINE = np.diag([-0.7, 0.7, 0.7, 1.0])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31 - 1), st.floats(1e-3, 1e6), st.floats(0.005, 0.2))
def test_rounding_loses_less_than_a_tenth_of_the_noise(seed: int, level: float, share: float) -> None:
    random = np.random.default_rng(seed)
    data = np.where(random.random((20, 20, 20)) < 0.3, 0, level * random.gamma(2, 1, (20, 20, 20))).astype(np.float32)
    stored = compact(nib.Nifti1Image(data, AFFINE), share * level)
    assert stored.get_data_dtype() == np.int16
    back = nib.Nifti1Image.from_bytes(stored.to_bytes()).get_fdata()
    assert np.sqrt(np.mean((back - data) ** 2)) < 0.1 * share * level
    assert (back[data == 0] == 0).all()


def test_files_keep_the_grid_the_header_and_the_sign(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(8, 9, 10)).astype(np.float32)
    image = nib.Nifti1Image(data, AFFINE)
    image.header["descrip"] = b"residual"
    image.set_sform(AFFINE, 1)
    write_compact(image, tmp_path / "residual.nii.gz", 1.0)
    stored = nib.load(tmp_path / "residual.nii.gz")
    np.testing.assert_allclose(stored.get_fdata(), data, atol=1e-3)
    np.testing.assert_allclose(stored.affine, AFFINE)
    assert int(stored.header["sform_code"]) == 1
    assert bytes(stored.header["descrip"]).startswith(b"residual")


@pytest.mark.parametrize(("top", "noise"), [(1e6, 1.0), (0.0, 1.0), (10.0, 0.0)])
def test_what_needs_more_stays_float(top: float, noise: float) -> None:
    data = np.zeros((4, 4, 4), np.float32)
    data[0, 0, 0], data[1, 1, 1] = top, 0.123
    data *= top > 0
    stored = compact(nib.Nifti1Image(data, AFFINE), noise)
    assert stored.get_data_dtype() == np.float32
    np.testing.assert_array_equal(nib.Nifti1Image.from_bytes(stored.to_bytes()).get_fdata(), data.astype(float))


def test_an_image_that_was_scaled_before_is_scaled_anew() -> None:
    data = np.linspace(0, 5, 64, dtype=np.float32).reshape(4, 4, 4)
    first = nib.Nifti1Image.from_bytes(compact(nib.Nifti1Image(data, AFFINE), 0.1).to_bytes())
    second = nib.Nifti1Image.from_bytes(compact(first, 0.1).to_bytes())
    np.testing.assert_allclose(second.get_fdata(), data, atol=4e-4)


def test_shares_are_bytes_that_still_sum_to_one() -> None:
    shares = np.random.default_rng(0).dirichlet((0.3, 0.3, 0.3), (6, 7, 8)).astype(np.float32)
    stored = [compact_share(nib.Nifti1Image(shares[..., k], AFFINE)) for k in range(3)]
    assert {image.get_data_dtype() for image in stored} == {np.dtype(np.uint8)}
    back = [nib.Nifti1Image.from_bytes(image.to_bytes()).get_fdata() for image in stored]
    np.testing.assert_allclose(np.stack(back, -1), shares, atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(sum(back), 1, atol=1.5 / 255 + 1e-6)


def test_voxels_that_are_no_numbers_are_refused() -> None:
    data = np.zeros((4, 4, 4), np.float32)
    data[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        compact(nib.Nifti1Image(data, AFFINE), 1.0)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31 - 1), st.floats(1e-4, 1e6), st.floats(0.1, 1.2))
@example(80893, 1.0, 1.125)  # has one more that is smaller than half a step
def test_standard_deviations_change_by_a_hundredth_of_the_typical(seed: int, level: float, spread: float) -> None:
    data = (level * np.random.default_rng(seed).lognormal(0, spread, (12, 12, 12))).astype(np.float32)
    data[0, 0, 0] = level * 1e-5
    stored = compact_std(nib.Nifti1Image(data, AFFINE), level)
    assert stored.get_data_dtype() == np.int16
    back = nib.Nifti1Image.from_bytes(stored.to_bytes()).get_fdata()
    changed = np.abs(back - data)
    small = data < 0.01 * level  # too small to be told from nought, but not nought
    assert small[0, 0, 0]
    assert changed[~small].max() <= 0.0101 * level
    assert changed[small].max() <= 0.0201 * level
    assert back.min() > 0


def test_deviations_without_bound_are_cut_and_nought_stays_nought() -> None:
    data = np.full((10, 10, 10), 1.0, np.float32)
    data[0], data[1, 1, 1] = 0, 1e6
    back = nib.Nifti1Image.from_bytes(compact_std(nib.Nifti1Image(data, AFFINE), 1.0).to_bytes()).get_fdata()
    assert (back[0] == 0).all()
    assert back.max() == pytest.approx(655.34, rel=1e-4)
    assert compact_std(nib.Nifti1Image(data, AFFINE), 0.0).get_data_dtype() == np.float32
