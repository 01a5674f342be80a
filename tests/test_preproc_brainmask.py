"""Brain mask: known brains are found, however they are stored; images without a brain are refused; real scans."""

from __future__ import annotations

from pathlib import Path

import attrs
import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from benchmarks.preproc import closed_labels
from moesr_bids.errors import ImageError
from moesr_bids.interfaces.ants import BrainMask, N4BiasField
from moesr_bids.preproc import brainmask
from moesr_bids.preproc.atlas import load_atlas
from moesr_bids.preproc.brainmask import BrainMaskError, dice, extract_brain
from moesr_bids.preproc.foreground import find_foreground, starting_positions
from moesr_bids.preproc.images import resample_to
from moesr_bids.preproc.likeness import HEAD, SURE, likeness
from moesr_bids.preproc.refine import refine_surface
from moesr_bids.preproc.template import load_template


def test_stripped_oblique_left_handed_brain(tmp_path: Path) -> None:
    template = load_template(resolution=2.0)
    assert template.mask is not None
    data, truth = (np.asarray(part.dataobj, dtype=np.float32)[::-1] for part in (template.image, template.mask))
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = data.shape[0] - 1
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", (-12, 4, 8), degrees=True).as_matrix()
    turn[:3, 3] = (15, -25, 30)
    affine = turn @ template.image.affine @ flip
    found = extract_brain(nib.Nifti1Image(data * (truth > 0), affine), work_dir=tmp_path)
    assert found.stripped
    assert found.attempts == 1
    np.testing.assert_allclose(found.mask.affine, affine, atol=1e-5)
    assert found.mask.get_data_dtype() == np.uint8
    assert dice(np.asarray(found.mask.dataobj) > 0, truth > 0) > 0.98
    # The transform undoes the turn.
    np.testing.assert_allclose(found.to_template @ turn, np.eye(4), atol=1.5)
    assert not list(tmp_path.iterdir())


def test_noise_is_refused_with_a_reason(tmp_path: Path) -> None:
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = -90
    noise = np.abs(np.random.default_rng(0).normal(0, 30, (60, 60, 60))).astype(np.float32)
    with pytest.raises(BrainMaskError, match=r"no head was found .*little in common with a brain"):
        extract_brain(nib.Nifti1Image(noise, affine), work_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def flat_flair() -> tuple[nib.Nifti1Image, np.ndarray]:
    """Return a FLAIR-like head in slices of 4 mm, tilted by 22 degrees, with little contrast; and its brain."""
    atlas, shape = load_atlas(2.0), (150, 170, 50)
    inside = atlas.mask >= 0.5
    distance = ndimage.distance_transform_edt(~inside) * 2.0
    head = np.where(inside, np.tensordot((0.60, 0.65, 0.55), atlas.tissues, 1), 0.0)
    head[(distance > 0) & (distance <= 4)] = 0.4
    head[(distance > 9) & (distance <= 15)] = 0.9
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("x", 22, degrees=True).as_matrix() @ np.diag([1.5, 1.5, 4.0])
    affine[:3, 3] = (0, -18, 8) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    fine = affine @ np.diag([1, 1, 0.25, 1])
    fine[:3, 3] -= 1.5 * fine[:3, 2]
    sharp = resample_to(head.astype(np.float32), atlas.affine, (*shape[:2], 4 * shape[2]), fine)
    slices = sharp.reshape(*shape, 4).mean(axis=3)
    noise = np.random.default_rng(0).normal(0, 0.12, (2, *shape))
    image = np.hypot(slices + noise[0], noise[1]).astype(np.float32)
    return nib.Nifti1Image(image, affine), resample_to(inside.astype(np.float32), atlas.affine, shape, affine) >= 0.5


def test_a_head_with_little_contrast_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = brainmask._attempts
    monkeypatch.setattr(brainmask, "_attempts", lambda scene: [next(iter(first(scene)))])
    image, truth = flat_flair()
    found = extract_brain(image, work_dir=tmp_path, sure=attrs.evolve(SURE, likeness=0.2))
    assert found.mutual_information < 0.1
    assert not SURE.problems(found.figures())
    assert dice(np.asarray(found.mask.dataobj) > 0, truth) > 0.9
    # It is taken with its doubts, whatever is held to be sure.
    (doubt,) = found.doubts
    assert "little in common with a brain" in doubt
    assert found.facts()["Doubts"] == [doubt]


@pytest.mark.parametrize("blur", [0, 1, 3, 8])
def test_noise_has_no_likeness(blur: float) -> None:
    atlas = load_atlas(3.0)
    inside = atlas.mask >= 0.5
    within = ndimage.binary_erosion(inside, iterations=2)
    noise = ndimage.gaussian_filter(np.random.default_rng(2).normal(size=inside.shape), blur).astype(np.float32)
    noise /= noise.std()
    depth = ndimage.distance_transform_edt(inside).astype(np.float32)
    for image in (noise, depth + noise):
        assert likeness(atlas.brain, image, inside, within, 3.0) < HEAD.likeness
    # A brain of unknown contrast under as much noise has it.
    brain = np.choose(np.argmax(atlas.tissues, axis=0), (1.0, 0.0, 3.0)) * inside
    assert likeness(atlas.brain, (brain + 0.5 * noise).astype(np.float32), inside, within, 3.0) > SURE.likeness


def test_unusable_images_are_refused_at_once(tmp_path: Path) -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    constant = np.full((40, 40, 40), 7.0, np.float32)
    with pytest.raises(ImageError, match="constant"):
        extract_brain(nib.Nifti1Image(constant, affine), work_dir=tmp_path)
    constant[0, 0, 0] = np.nan
    with pytest.raises(ImageError, match="NaN"):
        extract_brain(nib.Nifti1Image(constant, affine), work_dir=tmp_path)
    with pytest.raises(ImageError, match="3-D"):
        extract_brain(nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.float32), affine), work_dir=tmp_path)
    dot = np.zeros((40, 40, 40), np.float32)
    dot[15:25, 15:25, 15:25] = 1
    with pytest.raises(ImageError, match="size of a brain"):
        extract_brain(nib.Nifti1Image(dot, affine), work_dir=tmp_path)


def test_head_and_brain_are_told_apart() -> None:
    atlas = load_atlas(3.0)
    brain = find_foreground(atlas.brain, atlas.affine)
    head = find_foreground(atlas.head * atlas.head_region, atlas.affine)
    assert brain.stripped
    assert not head.stripped
    assert head.volume_ml > brain.volume_ml + 500
    centres = [np.array(start.moving) for start in starting_positions(head, atlas.affine)]
    assert min(np.linalg.norm(centre - (0, -18, 8)) for centre in centres) < 25


def test_refinement_follows_the_image_not_the_atlas() -> None:
    atlas = load_atlas(3.0)
    truth = atlas.mask >= 0.5
    # The atlas is 3 mm too large all around; the image knows.
    image = np.choose(np.argmax(atlas.tissues, axis=0), (0.95, 0.65, 0.2)) * truth
    image = (image + np.random.default_rng(0).normal(0, 0.02, image.shape)).astype(np.float32)
    large = np.stack([ndimage.grey_dilation(tissue, size=3) for tissue in atlas.tissues])
    large /= np.maximum(large.sum(axis=0), 1)
    before = large.sum(axis=0) >= 0.5
    after = refine_surface(image, large, 3.0, np.ones_like(truth)) >= 0.5
    assert dice(after, truth) > dice(before, truth) + 0.02
    assert dice(after, truth) > 0.95


def test_real_head_against_freesurfer(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scan = shared_data / "bids/sub-ecog/anat/sub-ecog_T1w.nii.gz"
    labels = nib.load(shared_data / "labels/aparcaseg/sub-ecog/anat/sub-ecog_seg-aparcaseg_dseg.nii.gz")
    masked = BrainMask(in_file=str(scan)).run(cwd=str(tmp_path)).outputs
    mask = nib.load(masked.out_mask)
    np.testing.assert_allclose(mask.affine, labels.affine, atol=1e-4)
    assert dice(np.asarray(mask.dataobj) > 0, closed_labels(np.asarray(labels.dataobj))) > 0.95
    assert masked.record["Attempts"] == 1
    assert masked.record["Seconds"] > 0
    corrected = N4BiasField(in_file=str(scan), mask_file=masked.out_mask).run(cwd=str(tmp_path)).outputs
    before, after = (np.asarray(nib.load(path).dataobj) for path in (scan, corrected.out_file))
    assert np.isfinite(after).all()
    assert ((after == 0) == (before == 0)).all()
    low, high = corrected.record["RangePercent"]
    assert -60 < low < 0 < high < 150


def test_real_thick_slices(shared_data: Path, tmp_path: Path) -> None:
    image = nib.load(shared_data / "bids/sub-fernando/anat/sub-fernando_FLAIR.nii.gz")
    found = extract_brain(image, work_dir=tmp_path)
    assert not found.stripped
    assert 1500 < found.volume_ml < 1900
    assert found.dice > 0.9
    inside = np.asarray(found.mask.dataobj) > 0
    rim = ndimage.binary_dilation(inside, iterations=8) & ~ndimage.binary_dilation(inside, iterations=4)
    data = np.asarray(image.dataobj)
    assert np.median(data[rim]) < 0.5 * np.median(data[inside])
