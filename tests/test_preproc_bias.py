"""N4: a known field is found again, and outside the mask the field stays moderate."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from moesr_bids.errors import ImageError
from moesr_bids.interfaces.ants import N4BiasField
from moesr_bids.preproc.bias import BiasCorrection, BiasSettings, continue_outside, correct_bias
from tests.brains import template_tissues

QUICK = BiasSettings(zoom=5.0, iterations=(30, 30, 20))


class Phantom:
    """A brain of three even tissues under a known field, 3 mm voxels."""

    def __init__(self) -> None:
        tissues = template_tissues(3.0)
        self.affine, self.inside = tissues.affine, tissues.mask
        tissue = np.choose(np.argmax(tissues.shares, axis=0), (0.95, 0.65, 0.2))
        world = apply_affine(self.affine, np.moveaxis(np.indices(self.inside.shape), 0, -1))
        x, y, z = np.moveaxis((world - world[self.inside].mean(axis=0)) / 80, -1, 0)
        field = 0.15 * x - 0.2 * y + 0.12 * z**2 + 0.08 * x * z
        self.field = field - field[self.inside].mean()
        noise = np.random.default_rng(0).normal(0, 0.01, tissue.shape)
        self.data = (800 * np.where(self.inside, tissue * np.exp(self.field) + noise, 0)).astype(np.float32)

    def images(self, affine: np.ndarray) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
        return nib.Nifti1Image(self.data, affine), nib.Nifti1Image(self.inside.astype(np.uint8), affine)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return Phantom()


@pytest.fixture(scope="module")
def corrected(phantom: Phantom) -> BiasCorrection:
    return correct_bias(*phantom.images(phantom.affine), QUICK)


def test_known_field_is_recovered(phantom: Phantom, corrected: BiasCorrection) -> None:
    found = np.asarray(corrected.log_field.dataobj)
    error = (found - phantom.field)[phantom.inside]
    assert phantom.field[phantom.inside].std() > 0.12
    assert error.std() < 0.045
    assert np.corrcoef(found[phantom.inside], phantom.field[phantom.inside])[0, 1] > 0.94
    assert corrected.range_percent[0] < -10
    assert corrected.range_percent[1] > 10


def test_corrected_is_the_quotient(phantom: Phantom, corrected: BiasCorrection) -> None:
    data = np.asarray(corrected.corrected.dataobj)
    field = np.asarray(corrected.log_field.dataobj)
    assert corrected.corrected.get_data_dtype() == np.float32
    np.testing.assert_allclose(data * np.exp(field), phantom.data, rtol=1e-5, atol=1e-3)
    assert (data[phantom.data == 0] == 0).all()
    assert abs(field[phantom.inside].mean()) < 1e-6


def test_field_is_bounded_and_smooth_outside(phantom: Phantom, corrected: BiasCorrection) -> None:
    field = np.asarray(corrected.log_field.dataobj)
    assert np.isfinite(field).all()
    span = np.ptp(field[phantom.inside])
    assert field.min() >= field[phantom.inside].min() - 0.05 * span
    assert field.max() <= field[phantom.inside].max() + 0.05 * span
    assert max(np.abs(np.diff(field, axis=axis)).max() for axis in range(3)) < 0.1


def test_same_field_however_stored(phantom: Phantom, corrected: BiasCorrection) -> None:
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("xyz", (20, -10, 15), degrees=True).as_matrix()
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = phantom.data.shape[0] - 1
    affine = turned @ phantom.affine @ flip
    image, mask = (nib.Nifti1Image(np.asarray(part.dataobj)[::-1], affine) for part in phantom.images(phantom.affine))
    found = correct_bias(image, mask, QUICK).log_field
    np.testing.assert_allclose(found.affine, affine)
    difference = (np.asarray(found.dataobj)[::-1] - np.asarray(corrected.log_field.dataobj))[phantom.inside]
    assert difference.std() < 0.01


def test_continuation_stays_within_the_range_inside() -> None:
    rng = np.random.default_rng(1)
    inside = np.zeros((20, 20, 20), bool)
    inside[8:12, 8:12, 8:12] = True
    wild = rng.normal(0, 50, inside.shape)
    wild[inside] = rng.uniform(0.1, 0.3, inside.sum())
    tame = continue_outside(wild, inside, 4.0, BiasSettings())
    np.testing.assert_allclose(tame[inside], wild[inside])
    assert tame.min() >= 0.1 - 1e-9
    assert tame.max() <= 0.3 + 1e-9


@pytest.mark.parametrize(
    ("metadata", "strength", "distance"),
    [
        ({"MagneticFieldStrength": 3}, 3.0, 120),
        ({"MagneticFieldStrength": 1.5}, 1.5, 200),
        ({}, "n/a", 200),
        ({"MagneticFieldStrength": "three"}, "n/a", 200),
        ({"MagneticFieldStrength": 30000}, "n/a", 200),
    ],
)
def test_knots_follow_the_field_strength(
    metadata: dict,
    strength: float | str,
    distance: int,
    phantom: Phantom,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if strength == "n/a":  # what N4 would make of it is beside the point
        monkeypatch.setattr("ants.n4_bias_field_correction", lambda image, **_: image * 0 + 1)
    paths = tmp_path / "image.nii.gz", tmp_path / "mask.nii.gz"
    for image, path in zip(phantom.images(phantom.affine), paths, strict=True):
        image.to_filename(path)
    sidecar = tmp_path / "metadata.json"
    sidecar.write_text(json.dumps(metadata))
    interface = N4BiasField(in_file=str(paths[0]), mask_file=str(paths[1]), metadata_file=str(sidecar))
    record = interface.run(cwd=str(tmp_path)).outputs.record
    assert record["MagneticFieldStrength"] == strength
    assert record["Settings"]["spline_distance"] == distance


def test_bad_masks_are_refused(phantom: Phantom) -> None:
    image, mask = phantom.images(phantom.affine)
    with pytest.raises(ImageError, match="not on the grid"):
        correct_bias(image, nib.Nifti1Image(mask.get_fdata()[1:], phantom.affine))
    with pytest.raises(ImageError, match="no voxel of positive intensity"):
        correct_bias(image, nib.Nifti1Image(np.zeros(image.shape, np.uint8), phantom.affine))
