"""Alignment within a session: a known movement between contrasts comes back, also through thick slices."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from moesr_bids.preproc.align import inverse
from moesr_bids.preproc.coregistration import Coregistration, coregister
from moesr_bids.preproc.images import resample_to
from moesr_bids.preproc.registration import RegistrationError
from moesr_bids.preproc.template import load_template

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


def movement(angles: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


@pytest.mark.parametrize(
    ("zooms", "truth", "initial", "allowed"),
    [
        ((1.5, 1.5, 1.5), movement((4, -3, 5), (3, -5, 2)), np.eye(4), 0.3),
        ((1.0, 1.0, 4.5), movement((-3, 2, 4), (2, 4, -3)), np.eye(4), 0.5),
        # Headers that do not agree at all: the start by way of the template finds it.
        ((4.5, 1.5, 1.5), movement((25, -12, 18), (20, -35, 30)), movement((20, -8, 22), (12, -30, 25)), 0.5),
    ],
    ids=["isotropic", "axial 4.5 mm", "sagittal 4.5 mm, far away"],
)
def test_known_movement_is_recovered(
    reference: Pair,
    zooms: tuple[float, float, float],
    truth: np.ndarray,
    initial: np.ndarray,
    allowed: float,
    tmp_path: Path,
) -> None:
    found = align(moved(reference, truth, zooms), reference, tmp_path, initial)
    brain = apply_affine(reference[1].affine, np.argwhere(np.asarray(reference[1].dataobj) > 0)[::200])
    error = np.linalg.norm(apply_affine(found.matrix, brain) - apply_affine(truth, brain), axis=1)
    assert error.max() < allowed
    np.testing.assert_allclose(found.matrix[:3, :3] @ found.matrix[:3, :3].T, np.eye(3), atol=1e-5)
    expected = np.rad2deg(Rotation.from_matrix(truth[:3, :3]).magnitude())
    assert found.facts()["RotationDegrees"] == pytest.approx(expected, abs=0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["from.h5", "to.h5"]


def test_what_is_no_brain_is_refused(reference: Pair, tmp_path: Path) -> None:
    image, mask = moved(reference, np.eye(4), (3.0, 3.0, 3.0))
    noise = np.random.default_rng(1).normal(100, 10, image.shape).astype(np.float32)
    with pytest.raises(RegistrationError, match="is it the same person"):
        align((nib.Nifti1Image(noise, image.affine), mask), reference, tmp_path, np.eye(4))
    assert not list(tmp_path.iterdir())
