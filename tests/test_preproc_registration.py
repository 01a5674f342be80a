"""Registration: a known transform is found, files hold what their names say, and nonsense is refused."""

from __future__ import annotations

from pathlib import Path

import attrs
import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy import ndimage
from scipy.spatial.transform import Rotation

from moesr_bids.preproc.align import (
    Start,
    inverse,
    join_composites,
    mutual_information,
    read_affine,
    write_affine,
    write_composite,
)
from moesr_bids.preproc.images import resample_to, to_ants
from moesr_bids.preproc.registration import (
    SLOPPY,
    SURE,
    THOROUGH,
    Registration,
    RegistrationError,
    register,
    warp_to_template,
)
from moesr_bids.preproc.template import Template, load_template
from moesr_bids.preproc.template_mask import with_mask
from moesr_bids.sr.grid import Grid

RESOLUTION = 2.5


@pytest.fixture(scope="module")
def template() -> Template:
    return load_template(resolution=RESOLUTION)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """World transform from the image to the template: turned, shifted and 8 to 12 % smaller in the image."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", (14, -6, 9), degrees=True).as_matrix() @ np.diag([1.12, 1.08, 1.1])
    matrix[:3, 3] = (12, -20, 15)
    return matrix


def make_image(template: Template, truth: np.ndarray) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Return the template as seen through `truth`, contrast turned around, on a left-handed oblique grid."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("z", 12, degrees=True).as_matrix() @ np.diag([-2.5, 2.5, 3.0])
    shape = (76, 86, 64)
    centre = apply_affine(inverse(truth), (0, -18, 10))
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    assert template.mask is not None
    data, mask = (
        resample_to(np.asarray(part.dataobj, dtype=np.float32), template.image.affine, shape, truth @ affine)
        for part in (template.image, template.mask)
    )
    inside = mask >= 0.5
    contrast = np.where(inside, 500 * (1.2 - data), 0) + np.random.default_rng(0).normal(0, 5, shape)
    return nib.Nifti1Image(contrast.astype(np.float32), affine), nib.Nifti1Image(inside.astype(np.uint8), affine)


@pytest.fixture(scope="module")
def image(template: Template, truth: np.ndarray) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    return make_image(template, truth)


@pytest.fixture(scope="module")
def found(template: Template, image, tmp_path_factory: pytest.TempPathFactory) -> Registration:
    folder = tmp_path_factory.mktemp("xfm")
    return register(*image, template, folder / "to.h5", folder / "from.h5")


def test_known_affine_is_recovered(template: Template, truth: np.ndarray, found: Registration) -> None:
    assert template.mask is not None
    brain = apply_affine(template.image.affine, np.argwhere(np.asarray(template.mask.dataobj) > 0)[::50])
    seen = apply_affine(inverse(truth), brain)
    error = np.linalg.norm(apply_affine(found.matrix, seen) - brain, axis=1)
    assert error.max() < 1.0
    assert found.dice > 0.97
    assert found.attempts == 1


def test_files_warp_both_ways(template: Template, image, found: Registration) -> None:
    import ants

    warped = warp_to_template(image[0], Grid.from_image(template.image), found.to_template)
    assert warped.shape == template.image.shape
    np.testing.assert_allclose(warped.affine, template.image.affine)
    assert template.mask is not None
    # Away from the surface, where the turned contrast has a cliff.
    inside = ndimage.binary_erosion(np.asarray(template.mask.dataobj) > 0, iterations=2)
    expected = np.asarray(template.image.dataobj)[inside]
    assert np.corrcoef(np.asarray(warped.dataobj)[inside], expected)[0, 1] < -0.9
    mask = to_ants(np.asarray(template.mask.dataobj), template.image.affine)
    own = to_ants(np.asarray(image[1].dataobj), image[1].affine)
    back = ants.apply_transforms(own, mask, [str(found.from_template)]).numpy() >= 0.5
    truth_mask = np.asarray(image[1].dataobj) > 0
    assert 2 * (back & truth_mask).sum() / (back.sum() + truth_mask.sum()) > 0.96


def test_deformation_has_no_folds_and_is_undone_by_its_inverse(template: Template, image, found: Registration) -> None:
    import ants
    import pandas as pd

    assert 0 < found.jacobian[0] < 1 < found.jacobian[1]
    assert "Warnings" not in found.facts()
    folded = attrs.evolve(found, jacobian=(-0.1, 3.0)).facts()
    assert folded["Warnings"] == [f"the deformation to {found.template} folds (Jacobian -0.1): look at it"]
    assert template.mask is not None
    inner = ndimage.binary_erosion(np.asarray(template.mask.dataobj) > 0, iterations=3)
    points = apply_affine(template.image.affine, np.argwhere(inner)[::97]) * [-1, -1, 1]
    there = ants.apply_transforms_to_points(3, pd.DataFrame(points, columns=list("xyz")), [str(found.to_template)])
    back = ants.apply_transforms_to_points(3, there, [str(found.from_template)])
    assert np.linalg.norm(back.to_numpy() - points, axis=1).max() < 0.3


def test_joined_transforms_are_the_one_after_the_other(found: Registration, truth: np.ndarray, tmp_path: Path) -> None:
    import ants

    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("zyx", (20, 10, 5), degrees=True).as_matrix()
    turn[:3, 3] = (3, -7, 11)
    second = write_composite([turn], tmp_path / "turn.h5")
    joined = ants.read_transform(str(join_composites([found.to_template, second], tmp_path / "joined.h5")))
    first, second = (ants.read_transform(str(path)) for path in (found.to_template, second))
    for point in ((0.0, 0.0, 0.0), (30.0, 20.0, 40.0), (-25.0, 60.0, -10.0)):
        expected = second.apply_to_point(first.apply_to_point(point))
        np.testing.assert_allclose(joined.apply_to_point(point), expected, atol=1e-4)


def test_nothing_but_the_two_files_is_left(found: Registration) -> None:
    assert sorted(path.name for path in found.to_template.parent.iterdir()) == ["from.h5", "to.h5"]


def test_start_from_the_brain_mask_transform(
    template: Template, truth: np.ndarray, image, found: Registration, tmp_path: Path
) -> None:
    near = truth.copy()
    near[:3, 3] += 6
    rough = attrs.evolve(THOROUGH, deformation=SLOPPY.deformation)  # it comes after the affine transform
    again = register(*image, template, tmp_path / "to.h5", tmp_path / "from.h5", initial=near, settings=rough)
    np.testing.assert_allclose(again.matrix, found.matrix, atol=1.0)


def test_a_doubtful_registration_is_used_and_told(truth: np.ndarray, tmp_path: Path) -> None:
    """What is short of sure takes the best round; below the least nothing is written."""
    template = load_template(resolution=4.0)
    image = make_image(template, truth)
    never = attrs.evolve(SURE, mutual_information=9.0)
    # Without deformation: its levels have no part in it.
    settings = attrs.evolve(SLOPPY, affine=((5, 4, 2),), deformation=((0, 1, 0),))
    paths = tmp_path / "to.h5", tmp_path / "from.h5"
    doubtful = register(*image, template, *paths, settings=settings, sure=never)
    assert doubtful.attempts > 1
    assert "at least 9.0" in doubtful.doubt
    assert "is doubtful (masks overlap by" in doubtful.facts()["Warnings"][0]
    for path in paths:
        path.unlink()
    with pytest.raises(RegistrationError, match=r"attempt 1: masks overlap .* \(at least 9\.0\)"):
        register(*image, template, *paths, settings=settings, sure=never, least=never)
    assert not list(tmp_path.iterdir())


def test_image_that_is_no_brain_is_refused(template: Template, tmp_path: Path) -> None:
    shape, affine = (60, 60, 60), np.diag([3.0, 3, 3, 1])
    bar = np.zeros(shape, np.uint8)
    bar[5:55, 25:35, 25:35] = 1
    noise = np.random.default_rng(0).normal(100, 10, shape).astype(np.float32)
    with pytest.raises(RegistrationError, match=r"152 mL, 0\.08 times"):
        register(
            nib.Nifti1Image(noise, affine),
            nib.Nifti1Image(bar, affine),
            template,
            tmp_path / "to.h5",
            tmp_path / "from.h5",
        )
    assert not list(tmp_path.iterdir())


def test_template_without_mask_gets_one(template: Template, tmp_path: Path) -> None:
    bare = attrs.evolve(template, mask=None, content="head")
    filled = with_mask(bare, template, tmp_path)
    assert filled.mask is not None
    assert template.mask is not None
    first, second = (np.asarray(part.dataobj) > 0 for part in (filled.mask, template.mask))
    assert 2 * (first & second).sum() / (first.sum() + second.sum()) > 0.98


def test_affine_files_keep_the_matrix(tmp_path: Path, truth: np.ndarray) -> None:
    np.testing.assert_allclose(read_affine(write_affine(truth, tmp_path / "a.mat")), truth, atol=1e-6)


def test_start_lays_points_onto_each_other() -> None:
    start = Start((0.0, -18.0, 8.0), (3.0, 4.0, 5.0), pitch=20.0, scale=0.9)
    np.testing.assert_allclose(apply_affine(start.matrix(), (0, -18, 8)), (3, 4, 5), atol=1e-12)
    assert np.linalg.det(start.matrix()[:3, :3]) == pytest.approx(0.9**3)


def test_mutual_information_knows_dependence() -> None:
    rng = np.random.default_rng(0)
    first, other = rng.normal(size=(2, 20000))
    assert mutual_information(first, -2 * first) > 2
    assert mutual_information(first, other) < 0.05
    assert mutual_information(first, np.ones_like(first)) == 0
