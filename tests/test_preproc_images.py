"""Exchange with ANTs and the working grid: positions must survive, however the image is stored."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine, from_matvec
from scipy.spatial.transform import Rotation

from moesr_bids.errors import ImageError
from moesr_bids.preproc.images import (
    ants_affine,
    from_ants,
    image_data,
    like,
    resample_isotropic,
    resample_to,
    to_ants,
)

angles = st.tuples(*[st.floats(-60, 60) for _ in range(3)])
zooms = st.tuples(*[st.floats(0.4, 6.0) for _ in range(3)])
origins = st.tuples(*[st.floats(-200, 200) for _ in range(3)])
flips = st.tuples(*[st.sampled_from([-1.0, 1.0]) for _ in range(3)])


def make_affine(degrees, sizes, signs, origin) -> np.ndarray:
    rotation = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    return from_matvec(rotation @ np.diag(np.multiply(sizes, signs)), origin)


@settings(deadline=None, max_examples=40)
@given(angles, zooms, flips, origins)
def test_round_trip_through_ants_is_exact(degrees, sizes, signs, origin) -> None:
    affine = make_affine(degrees, sizes, signs, origin)
    data = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    image = to_ants(data, affine)
    np.testing.assert_allclose(ants_affine(image), affine, atol=1e-6)
    np.testing.assert_array_equal(from_ants(image, affine), data)


def test_same_orientation_as_a_file_read_by_ants(tmp_path) -> None:
    import ants

    affine = make_affine((10, -20, 30), (1, 2, 3), (-1, 1, -1), (5, -7, 11))
    data = np.random.default_rng(1).normal(size=(5, 6, 7)).astype(np.float32)
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "a.nii.gz")
    read = ants.image_read(str(tmp_path / "a.nii.gz"))
    np.testing.assert_allclose(ants_affine(read), affine, atol=1e-4)
    np.testing.assert_array_equal(read.numpy(), data)


def test_moved_image_is_noticed() -> None:
    affine = np.diag([1.0, 1, 1, 1])
    image = to_ants(np.zeros((4, 4, 4)), affine)
    affine[0, 3] = 0.1
    with pytest.raises(ImageError, match=r"lies 0\.1 mm"):
        from_ants(image, affine)


def test_shear_is_refused() -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.2
    with pytest.raises(ImageError, match="right angles"):
        image_data(nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), affine))


@settings(deadline=None, max_examples=20)
@given(angles, flips, st.floats(1.0, 3.0))
def test_working_grid_keeps_world_positions(degrees, signs, zoom) -> None:
    affine = make_affine(degrees, (1.0, 0.8, 4.0), signs, (3, 2, 1))
    shape = (20, 24, 6)
    # A linear ramp in world space is the same on every grid, away from the edges.
    direction = np.array([0.3, -0.5, 0.2])
    world = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    low, low_affine = resample_isotropic((world @ direction).astype(np.float32), affine, zoom)
    expected = apply_affine(low_affine, np.moveaxis(np.indices(low.shape), 0, -1)) @ direction
    margin = tuple(slice(n // 2 - 1, n // 2 + 1) for n in low.shape)
    np.testing.assert_allclose(low[margin], expected[margin], atol=0.02)
    centre = apply_affine(affine, (np.array(shape) - 1) / 2)
    np.testing.assert_allclose(apply_affine(low_affine, (np.array(low.shape) - 1) / 2), centre, atol=1e-9)


def test_resample_to_own_grid_changes_nothing() -> None:
    affine = make_affine((5, 6, 7), (1, 1, 2), (1, -1, 1), (0, 0, 0))
    data = np.random.default_rng(2).normal(size=(6, 7, 8)).astype(np.float32)
    np.testing.assert_allclose(resample_to(data, affine, data.shape, affine), data, atol=1e-5)


@pytest.mark.parametrize(
    ("codes", "kept"), [((1, 4), (1, 4)), ((4, 0), (4, 4)), ((0, 2), (2, 2)), ((0, 0), (1, 1))], ids=str
)
def test_like_keeps_codes_and_drops_scaling(codes: tuple[int, int], kept: tuple[int, int]) -> None:
    affine = make_affine((20, -10, 30), (2, 2, 3), (-1, 1, 1), (5, -7, 9))
    image = nib.Nifti1Image(np.ones((3, 4, 5), np.int16), affine)
    image.header.set_slope_inter(3.0, 1.0)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    # Without a form nibabel would take another affine from the header.
    image = nib.Nifti1Image(image.dataobj, affine, image.header)
    image.header["sform_code"], image.header["qform_code"] = codes
    new = like(np.full((3, 4, 5), 0.5), image, np.float32)
    assert (int(new.header["sform_code"]), int(new.header["qform_code"])) == kept
    for form in (new.affine, new.get_sform(), new.get_qform()):
        np.testing.assert_allclose(form, affine, atol=1e-4)
    assert new.get_data_dtype() == np.float32
    assert like(np.ones((3, 4, 5)), image, np.uint8).get_data_dtype() == np.uint8
    assert float(np.asarray(new.dataobj).max()) == 0.5
