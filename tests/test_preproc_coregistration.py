"""Alignment within a session: a known movement between contrasts is found, also in thick slices."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from moesr_bids.interfaces.registration import Coregister
from moesr_bids.preproc.align import inverse, write_affine
from moesr_bids.preproc.coregistration import Coregistration, coregister
from moesr_bids.preproc.images import resample_to
from moesr_bids.preproc.registration import RegistrationError
from moesr_bids.preproc.template import load_template
from tests.scans import rigid

Pair = tuple[nib.Nifti1Image, nib.Nifti1Image]


@pytest.fixture(scope="module")
def reference() -> Pair:
    template = load_template(resolution=1.5)
    assert template.mask is not None
    return template.image, template.mask


def moved(reference: Pair, matrix: np.ndarray, zooms: tuple[float, float, float]) -> Pair:
    """Return the reference after a movement (world to world, mm), contrast turned round, averaged over thick slices."""
    fine = np.diag([*(min(z, 1.5) for z in zooms), 1.0])
    steps = [max(1, round(z / 1.5)) for z in zooms]
    shape = np.array([round(200 / z) * n for z, n in zip(zooms, steps, strict=True)])
    fine[:3, 3] = apply_affine(matrix, (0, -18, 10)) - fine[:3, :3] @ ((shape - 1) / 2)
    parts = []
    for image in reference:
        part = resample_to(np.asarray(image.dataobj, np.float32), image.affine, tuple(shape), inverse(matrix) @ fine)
        blocks = part.reshape([m for n, k in zip(shape, steps, strict=True) for m in (n // k, k)])
        parts.append(blocks.mean(axis=(1, 3, 5)))
    affine = fine @ np.diag([*steps, 1.0])
    affine[:3, 3] += fine[:3, :3] @ ((np.array(steps) - 1) / 2)
    brain = parts[1] >= 0.5
    noise = np.random.default_rng(0).normal(0, 10, brain.shape)
    data = np.where(brain, 500 * (1.3 - parts[0]), 0) + noise
    return nib.Nifti1Image(data.astype(np.float32), affine), nib.Nifti1Image(brain.astype(np.uint8), affine)


def align(image: Pair, reference: Pair, folder: Path, initial: np.ndarray) -> Coregistration:
    return coregister(*image, *reference, folder / "to.h5", folder / "from.h5", initial=initial)


def brain_points(reference: Pair) -> np.ndarray:
    return apply_affine(reference[1].affine, np.argwhere(np.asarray(reference[1].dataobj) > 0)[::200])


@pytest.mark.parametrize(
    ("zooms", "truth", "allowed"),
    [
        ((1.5, 1.5, 1.5), rigid((3, -5, 2), (4, -3, 5)), 0.3),
        ((1.0, 1.0, 4.5), rigid((2, 4, -3), (-3, 2, 4)), 0.5),
    ],
    ids=["isotropic", "axial 4.5 mm"],
)
def test_known_movement_is_recovered(
    reference: Pair, zooms: tuple[float, float, float], truth: np.ndarray, allowed: float, tmp_path: Path
) -> None:
    found = align(moved(reference, truth, zooms), reference, tmp_path, np.eye(4))
    brain = brain_points(reference)
    error = np.linalg.norm(apply_affine(found.matrix, brain) - apply_affine(truth, brain), axis=1)
    assert error.max() < allowed
    np.testing.assert_allclose(found.matrix[:3, :3] @ found.matrix[:3, :3].T, np.eye(3), atol=1e-5)
    expected = np.rad2deg(Rotation.from_matrix(truth[:3, :3]).magnitude())
    assert found.facts()["RotationDegrees"] == pytest.approx(expected, abs=0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["from.h5", "to.h5"]


def test_headers_that_do_not_agree_at_all_are_passed_by_way_of_the_template(reference: Pair, tmp_path: Path) -> None:
    import ants

    truth, rough = rigid((20, -35, 30), (25, -12, 18)), rigid((12, -30, 25), (20, -8, 22))
    of_reference = rigid((3, 6, -8), (5, -9, 4))  # from the template to the reference
    pairs = {"moving": moved(reference, truth, (4.5, 1.5, 1.5)), "fixed": reference}
    for name, (image, mask) in pairs.items():
        image.to_filename(tmp_path / f"{name}.nii")
        mask.to_filename(tmp_path / f"{name}_mask.nii")
    found = Coregister(
        in_file=str(tmp_path / "moving.nii"),
        mask_file=str(tmp_path / "moving_mask.nii"),
        reference_file=str(tmp_path / "fixed.nii"),
        reference_mask=str(tmp_path / "fixed_mask.nii"),
        initial_xfm=str(write_affine(rough @ of_reference, tmp_path / "moving.mat")),
        reference_xfm=str(write_affine(of_reference, tmp_path / "fixed.mat")),
    )
    outputs = found.run(cwd=str(tmp_path)).outputs
    there, back = (ants.read_transform(path) for path in (outputs.out_to_reference, outputs.out_from_reference))
    flip = np.array([-1.0, -1.0, 1.0])
    for point in brain_points(reference)[::50]:
        image_point = np.array(there.apply_to_point(tuple(point * flip))) * flip
        assert np.linalg.norm(image_point - apply_affine(truth, point)) < 0.5
        np.testing.assert_allclose(back.apply_to_point(tuple(image_point * flip)), point * flip, atol=0.01)
    warped = nib.load(outputs.out_warped)
    assert warped.shape == reference[0].shape
    np.testing.assert_allclose(warped.affine, reference[0].affine)


def test_what_is_no_brain_is_refused(reference: Pair, tmp_path: Path) -> None:
    image, mask = moved(reference, np.eye(4), (3.0, 3.0, 3.0))
    noise = np.random.default_rng(1).normal(100, 10, image.shape).astype(np.float32)
    with pytest.raises(RegistrationError, match="is it the same person"):
        align((nib.Nifti1Image(noise, image.affine), mask), reference, tmp_path, np.eye(4))
    assert not list(tmp_path.iterdir())
