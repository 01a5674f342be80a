"""The brain is found in heads and brains however they are stored; images without a head are refused; real scans."""

from __future__ import annotations

from pathlib import Path

import attrs
import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from moesr_bids.errors import ImageError
from moesr_bids.interfaces.ants import BrainMask, N4BiasField
from moesr_bids.interfaces.segmentation import Segment
from moesr_bids.preproc.images import resample_to
from moesr_bids.preproc.template import load_template
from moesr_bids.segmentation.brain import SURE, dice, find_brain
from moesr_bids.segmentation.inference import NoBrainError, Shares, label
from moesr_bids.segmentation.labels import from_freesurfer
from moesr_bids.segmentation.landmarks import Landmarks
from moesr_bids.segmentation.structures import BRAIN, STRUCTURES
from moesr_bids.segmentation.surface import brain_surface, without_rim, without_shading
from moesr_bids.segmentation.weights import packaged_segmenter
from tests.brains import template_tissues


def test_stripped_oblique_left_handed_brain() -> None:
    template = load_template(resolution=2.0)
    assert template.mask is not None
    data, truth = (np.asarray(part.dataobj, dtype=np.float32)[::-1] for part in (template.image, template.mask))
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = data.shape[0] - 1
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", (-12, 4, 8), degrees=True).as_matrix()
    turn[:3, 3] = (15, -25, 30)
    affine = turn @ template.image.affine @ flip
    found = find_brain(nib.Nifti1Image(data * (truth > 0), affine))
    assert found.stripped
    assert not found.doubts
    np.testing.assert_allclose(found.mask.affine, affine, atol=1e-5)
    assert found.mask.get_data_dtype() == np.uint8
    assert dice(np.asarray(found.mask.dataobj) > 0, truth > 0) > 0.96
    # The transform undoes the turn.
    corners = np.array(np.meshgrid(*[(-60.0, 60.0)] * 3)).reshape(3, -1).T
    moved = nib.affines.apply_affine(found.to_template @ turn, corners)
    assert np.abs(moved - corners).max() < 6
    assert found.volume_ml == pytest.approx(truth.sum() * 8 / 1000, rel=0.05)
    # Sides are those of the world, not of the array.
    labels = label(nib.Nifti1Image(data, affine), packaged_segmenter()[0], truth > 0)
    assert np.array_equal(labels > 0, truth > 0)
    for structure in STRUCTURES:
        if structure.side and (labels == structure.index).any():
            x = nib.affines.apply_affine(found.to_template @ affine, np.argwhere(labels == structure.index))[:, 0]
            assert (x.mean() < 0) == (structure.side == "left")


@pytest.mark.parametrize("blur", [0, 1, 3])
def test_noise_is_refused_with_a_reason(blur: float) -> None:
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = -90
    noise = ndimage.gaussian_filter(np.abs(np.random.default_rng(0).normal(0, 30, (60, 60, 60))), blur)
    with pytest.raises(NoBrainError, match=r"no (head with a )?brain was found"):
        find_brain(nib.Nifti1Image(noise.astype(np.float32), affine))


def flat_flair() -> tuple[nib.Nifti1Image, np.ndarray]:
    """Return a FLAIR-like head in slices of 4 mm, tilted by 22 degrees, with little contrast; and its brain."""
    tissues, shape = template_tissues(2.0), (150, 170, 50)
    head = tissues.head((0.60, 0.65, 0.55), scalp=0.9)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("x", 22, degrees=True).as_matrix() @ np.diag([1.5, 1.5, 4.0])
    affine[:3, 3] = (0, -18, 8) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    fine = affine @ np.diag([1, 1, 0.25, 1])
    fine[:3, 3] -= 1.5 * fine[:3, 2]
    sharp = resample_to(head, tissues.affine, (*shape[:2], 4 * shape[2]), fine)
    slices = sharp.reshape(*shape, 4).mean(axis=3)
    noise = np.random.default_rng(0).normal(0, 0.12, (2, *shape))
    image = np.hypot(slices + noise[0], noise[1]).astype(np.float32)
    return nib.Nifti1Image(image, affine), resample_to(
        tissues.mask.astype(np.float32), tissues.affine, shape, affine
    ) >= 0.5


def test_a_head_with_little_contrast_is_found() -> None:
    image, truth = flat_flair()
    found = find_brain(image, sure=attrs.evolve(SURE, certainty=0.99))
    assert not found.stripped
    assert dice(np.asarray(found.mask.dataobj) > 0, truth) > 0.9
    # It is taken with its doubts, whatever is held to be sure.
    assert any("the segmentation is unsure" in doubt for doubt in found.doubts)
    assert found.facts()["Doubts"] == list(found.doubts)
    head = np.asarray(found.head.dataobj) > 0
    assert head[truth].mean() > 0.95
    assert head.sum() > 1.2 * truth.sum()
    assert not head[:3].any()


def test_unusable_images_are_refused_at_once() -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    constant = np.full((40, 40, 40), 7.0, np.float32)
    with pytest.raises(ImageError, match="constant"):
        find_brain(nib.Nifti1Image(constant, affine))
    constant[0, 0, 0] = np.nan
    with pytest.raises(ImageError, match="NaN"):
        find_brain(nib.Nifti1Image(constant, affine))
    with pytest.raises(ImageError, match="3-D"):
        find_brain(nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.float32), affine))
    dot = np.zeros((40, 40, 40), np.float32)
    dot[15:25, 15:25, 15:25] = 1
    with pytest.raises(NoBrainError):
        find_brain(nib.Nifti1Image(dot, affine))


def test_the_surface_is_that_of_the_image_not_of_the_network() -> None:
    tissues = template_tissues(3.0)
    image = np.choose(np.argmax(tissues.shares, axis=0), (0.95, 0.65, 0.2)) * tissues.mask
    image = (image + np.random.default_rng(0).normal(0, 0.02, image.shape)).astype(np.float32)
    # The network's tissues are 3 mm too large all around; the image knows.
    large = np.stack([ndimage.grey_dilation(tissue, size=3) for tissue in tissues.shares])
    large /= np.maximum(large.sum(axis=0), 1)
    before = large.sum(axis=0) >= 0.5
    after = brain_surface(image, large, 3.0, np.ones_like(tissues.mask)) >= 0.5
    assert dice(after, tissues.mask) > dice(before, tissues.mask) + 0.02
    assert dice(after, tissues.mask) > 0.95


def test_most_of_a_bias_field_is_taken_out_before() -> None:
    tissues = template_tissues(3.0)
    even = tissues.brain((0.9, 0.6, 0.2))
    ramp = np.linspace(-0.4, 0.4, even.shape[1])[None, :, None] + np.linspace(0.2, -0.2, even.shape[2])
    found = without_shading((even * np.exp(ramp)).astype(np.float32), tissues.shares, 3.0)
    deep = ndimage.binary_erosion(tissues.mask, iterations=3)
    left = np.log(np.maximum(found, 1e-3) / np.maximum(even, 1e-3))[deep]
    assert left.std() < 0.5 * (ramp + 0 * even)[deep].std()


def test_the_empty_rim_of_a_stripped_image_is_no_brain() -> None:
    signal = np.zeros((30, 30, 30), bool)
    signal[5:25, 5:25, 5:25] = True
    signal[16:18, 14:16, 14:16] = False  # a hole
    signal[6:15, 14, 14] = False  # and another
    mask = np.zeros_like(signal)
    mask[3:27, 3:27, 3:27] = True
    found = without_rim(mask, signal)
    expected = np.zeros_like(signal)
    expected[5:25, 5:25, 5:25] = True
    assert np.array_equal(found, expected)


def test_half_a_brain_is_found_and_doubted() -> None:
    template = load_template(resolution=2.0)
    assert template.mask is not None
    data = np.asarray(template.image.dataobj, dtype=np.float32) * (np.asarray(template.mask.dataobj) > 0)
    half = data.shape[2] // 2
    affine = template.image.affine.copy()
    affine[:3, 3] = nib.affines.apply_affine(affine, (0, 0, half))
    found = find_brain(nib.Nifti1Image(data[..., half:], affine))
    assert dice(np.asarray(found.mask.dataobj) > 0, np.asarray(template.mask.dataobj)[..., half:] > 0) > 0.8
    assert any("from where a brain has them" in doubt for doubt in found.doubts)


def landmarks() -> Landmarks:
    """Return centres of as many structures as there are, in no symmetrical order."""
    rng = np.random.default_rng(4)
    count = len([s for s in STRUCTURES if s.index > min(BRAIN)])
    return Landmarks(rng.normal(0, 30, (count, 3)), rng.uniform(5, 200, count))


def test_landmarks_are_laid_onto_each_other() -> None:
    template = landmarks()
    turn = np.eye(4)
    turn[:3, :3] = 0.9 * Rotation.from_euler("xyz", (40, -10, 25), degrees=True).as_matrix()
    turn[:3, 3] = (12, -30, 5)
    moved = attrs.evolve(template, centres=nib.affines.apply_affine(np.linalg.inv(turn), template.centres))
    matrix, misfit = moved.position(template)
    np.testing.assert_allclose(matrix, turn, atol=1e-6)
    assert misfit == pytest.approx(0, abs=1e-6)
    # What is hardly there does not count, and with too few structures there is a shift alone.
    volumes = moved.volumes.copy()
    volumes[3:] = 0.1
    odd = moved.centres.copy()
    odd[3:] = 500
    np.testing.assert_allclose(Landmarks(odd, volumes).position(template)[0], turn, atol=1e-6)
    volumes[2] = 0
    matrix, misfit = Landmarks(odd, volumes).position(template)
    np.testing.assert_array_equal(matrix[:3, :3], np.eye(3))
    assert misfit == float("inf")


def test_misfit_is_the_distance_of_the_centres() -> None:
    template = landmarks()
    off = template.centres + np.random.default_rng(0).normal(0, 5, template.centres.shape)
    _, misfit = Landmarks(off, template.volumes).position(template)
    assert 5 < misfit < 10


def test_landmarks_of_a_segmentation() -> None:
    shares = np.zeros((len(STRUCTURES), 10, 12, 14), np.float32)
    index = next(s.index for s in STRUCTURES if s.name == "brainstem")
    shares[index, 2:5, 3:6, 4:7] = 0.5
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-10, 5, 1)
    found = Landmarks.of(Shares(shares, affine))
    again = Landmarks.from_record(found.record())
    row = [s.name for s in STRUCTURES if s.index > min(BRAIN)].index("brainstem")
    for one in (found, again):
        np.testing.assert_allclose(one.centres[row], (-4, 13, 11))
        assert one.volumes[row] == pytest.approx(0.5 * 27 * 8 / 1000, abs=0.01)
    assert found.in_view(np.eye(4), (5, 20, 20)) == pytest.approx(0, abs=1e-3)
    assert found.in_view(np.linalg.inv(affine), (10, 12, 14)) == pytest.approx(1, abs=1e-3)


def test_the_card_has_the_landmarks_of_the_network() -> None:
    network, told = packaged_segmenter()
    found = Landmarks.of_template(network)
    np.testing.assert_allclose(found.centres, told.centres, atol=0.5)
    np.testing.assert_allclose(found.volumes, told.volumes, rtol=0.02)
    _, misfit = found.position(told)
    assert misfit < 0.5


TISSUES_OF = ("white matter", "cortex", "csf", "lateral ventricle")


def test_segmentation_of_an_output(tmp_path: Path) -> None:
    tissues = template_tissues(1.5)
    nib.Nifti1Image(tissues.brain((0.9, 0.6, 0.2)), tissues.affine).to_filename(tmp_path / "sr.nii.gz")
    mask = tissues.mask.copy()
    mask[: mask.shape[0] // 3] = False
    nib.Nifti1Image(mask.astype(np.uint8), tissues.affine).to_filename(tmp_path / "mask.nii.gz")
    coarse = template_tissues(3.0)
    nib.Nifti1Image(coarse.brain((0.9, 0.6, 0.2)), coarse.affine).to_filename(tmp_path / "scan.nii.gz")
    nib.Nifti1Image(coarse.mask.astype(np.uint8), coarse.affine).to_filename(tmp_path / "scan_mask.nii.gz")
    files = {f"{name}_file": str(tmp_path / f"{name}.nii.gz") for name in ("mask", "scan", "scan_mask")}
    done = Segment(in_file=str(tmp_path / "sr.nii.gz"), **files).run(cwd=str(tmp_path)).outputs
    image = nib.load(done.out_file)
    labels = np.asarray(image.dataobj)
    np.testing.assert_allclose(image.affine, tissues.affine)
    assert image.get_data_dtype() == np.uint8
    assert np.array_equal(labels > 0, mask)
    assert list(done.record["Volumes"]) == [*(s.name for s in STRUCTURES if s.index in BRAIN), "brain"]
    tissue, image = np.argmax(tissues.shares, axis=0), tissues.brain((0.9, 0.6, 0.2))
    found = {name: np.isin(labels, [s.index for s in STRUCTURES if s.tissue == name]) for name in TISSUES_OF}
    assert np.mean(tissue[found["white matter"]] == 0) > 0.85
    assert np.mean(tissue[found["cortex"]] == 1) > 0.9
    levels = [np.median(image[found[name]]) for name in TISSUES_OF]
    assert np.diff(levels).max() < -0.05
    white = next(s for s in STRUCTURES if s.name == "right white matter")
    told = done.record["Volumes"][white.name]
    assert told["VolumeML"] == pytest.approx((labels == white.index).sum() * 1.5**3 / 1000, abs=0.01)
    assert told["StandardDeviationML"] == pytest.approx(
        abs(told["VolumeML"] - told["InputVolumeML"]) / 2**0.5, abs=0.01
    )
    brain = done.record["Volumes"]["brain"]
    assert brain["InputVolumeML"] == pytest.approx(coarse.mask.sum() * 27 / 1000, abs=0.01)
    assert brain["VolumeML"] < 0.9 * brain["InputVolumeML"]


@pytest.mark.parametrize("who", ["bert", "seeg"])
def test_real_heads_against_freesurfer(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """Of people that the network was not trained on."""
    monkeypatch.chdir(tmp_path)
    scan = shared_data / f"bids/sub-{who}/anat/sub-{who}_T1w.nii.gz"
    labels = nib.load(shared_data / f"labels/aparcaseg/sub-{who}/anat/sub-{who}_seg-aparcaseg_dseg.nii.gz")
    masked = BrainMask(in_file=str(scan)).run(cwd=str(tmp_path)).outputs
    mask = nib.load(masked.out_mask)
    np.testing.assert_allclose(mask.affine, labels.affine, atol=1e-4)
    upright = nib.as_closest_canonical(labels)
    truth = np.isin(from_freesurfer(np.asanyarray(upright.dataobj), upright.header.get_zooms()[:3]), BRAIN)
    assert dice(np.asarray(nib.as_closest_canonical(mask).dataobj) > 0, truth) > 0.95
    assert masked.record["Doubts"] == []
    assert masked.record["Seconds"] > 0
    if who != "bert":
        return
    corrected = N4BiasField(in_file=str(scan), mask_file=masked.out_mask).run(cwd=str(tmp_path)).outputs
    before, after = (np.asarray(nib.load(path).dataobj) for path in (scan, corrected.out_file))
    assert np.isfinite(after).all()
    assert ((after == 0) == (before == 0)).all()
    low, high = corrected.record["RangePercent"]
    assert -60 < low < 0 < high < 150


def test_real_thick_slices(shared_data: Path) -> None:
    image = nib.load(shared_data / "bids/sub-fernando/anat/sub-fernando_FLAIR.nii.gz")
    found = find_brain(image)
    assert not found.stripped
    assert 1400 < found.volume_ml < 1900
    inside = np.asarray(found.mask.dataobj) > 0
    rim = ndimage.binary_dilation(inside, iterations=8) & ~ndimage.binary_dilation(inside, iterations=4)
    data = np.asarray(image.dataobj)
    assert np.median(data[rim]) < 0.5 * np.median(data[inside])
