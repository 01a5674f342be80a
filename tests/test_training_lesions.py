"""Lesions in the training: found, focused on, planted."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from moesr_bids.cli.moesr import main
from moesr_bids.errors import ImageError
from moesr_bids.sr.weights import Weights
from moesr_bids.training.examples import CutVolume, Examples
from moesr_bids.training.lesions import PlantedLesion, RoughBall, draw_lesions, plant
from moesr_bids.training.recipe import read_recipe, recipe_from
from moesr_bids.training.tissue import find_lesions, find_segmentation
from moesr_bids.training.volumes import load_volume
from tests.test_sr_student import brainlike
from tests.test_training import CPU, TINY

MASK = "sub-01_label-lesion_mask.nii.gz"


def lesion_mask() -> np.ndarray:
    """Three lesions of one voxel, 27 voxels and a long one."""
    mask = np.zeros(brainlike().shape, np.uint8)
    mask[12, 30, 24] = 1
    mask[39:42, 29:32, 23:26] = 1
    mask[27, 44:49, 24] = 1
    return mask


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a data set of a T1w and a FLAIR scan, with a mask of lesions and the tissue of the first."""
    root = tmp_path_factory.mktemp("bids")
    truth = brainlike()
    for name in ("sub-01_T1w", "sub-02_FLAIR"):
        nib.save(brainlike(noise=1.0), root / f"{name}.nii.gz")
    labels = np.select([truth.get_fdata() > 90, truth.get_fdata() > 40], [2, 3], 0).astype(np.int16)
    for name in ("sub-01_desc-T1w", "sub-02_desc-FLAIR"):
        nib.save(nib.Nifti1Image(labels, truth.affine), root / f"{name}_dseg.nii.gz")
    (root / "lesions").mkdir()
    nib.save(nib.Nifti1Image(lesion_mask(), truth.affine), root / "lesions" / MASK)
    return root


def test_lesions_are_found_by_participant_and_grid(bids: Path, tmp_path: Path) -> None:
    folders = [bids / "lesions"]
    volume = load_volume(bids / "sub-01_T1w.nii.gz", folders)
    assert volume.tissue is not None
    assert np.array_equal(volume.tissue[2], lesion_mask())
    assert not volume.tissue[:2].any()  # unknown
    assert not volume.segmented
    assert sorted(map(len, volume.lesions)) == [1, 5, 27]
    assert all(volume.tissue[2][tuple(place)] for lesion in volume.lesions for place in lesion)
    other = load_volume(bids / "sub-02_FLAIR.nii.gz", folders)
    assert other.tissue is None and not other.lesions
    named = "sub-01_space-T1w_label-lesion_desc-manual_mask.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros_like(lesion_mask()), brainlike().affine), tmp_path / named)
    without = load_volume(bids / "sub-01_T1w.nii.gz", [tmp_path, bids / "lesions"])  # the first mask counts
    assert without.tissue is not None and not without.lesions
    without.draw(16, np.random.default_rng(0), focus=1.0)
    (tmp_path / named).unlink()
    nib.save(nib.Nifti1Image(lesion_mask(), np.diag([2.0, 2, 2, 1])), tmp_path / MASK)
    assert load_volume(bids / "sub-01_T1w.nii.gz", [tmp_path]).tissue is None
    (tmp_path / MASK).write_bytes(b"no image")
    with pytest.raises(ImageError, match=MASK):
        load_volume(bids / "sub-01_T1w.nii.gz", [tmp_path])


def test_lesions_of_another_session_are_not_taken(bids: Path, tmp_path: Path) -> None:
    scan = tmp_path / "sub-01_ses-1_T1w.nii.gz"
    nib.save(brainlike(noise=1.0), scan)
    for session in ("2", "1"):
        assert find_lesions(scan, brainlike(), [tmp_path]) is None
        mask = nib.Nifti1Image(lesion_mask(), brainlike().affine)
        nib.save(mask, tmp_path / f"sub-01_ses-{session}_label-lesion_mask.nii.gz")
    assert find_lesions(scan, brainlike(), [tmp_path]) is not None
    mask = nib.Nifti1Image(2 * lesion_mask(), brainlike().affine)
    nib.save(mask, tmp_path / "sub-01_seg-all_dseg.nii.gz")  # of no session
    assert find_segmentation(scan, brainlike(), [tmp_path]) is not None


def test_patches_are_drawn_around_lesions_large_and_small_alike(bids: Path) -> None:
    volume = load_volume(bids / "sub-01_T1w.nii.gz", [bids / "lesions"])
    centres = []
    for seed in range(60):
        cut = volume.draw(16, np.random.default_rng(seed), focus=1.0)
        centres.append([corner + cut.reach // 2 for corner in cut.corner])
    distance = [
        [np.abs(lesion - centre).max(axis=1).min() for lesion in volume.lesions] for centre in np.array(centres)
    ]
    assert np.min(distance, axis=1).max() <= 8
    shares = np.bincount(np.argmin(distance, axis=1), minlength=3) / 60
    assert shares.min() > 0.15
    plain = [volume.draw(16, np.random.default_rng(seed)).corner for seed in range(20)]
    elsewhere = load_volume(bids / "sub-01_T1w.nii.gz")
    assert plain == [elsewhere.draw(16, np.random.default_rng(seed)).corner for seed in range(20)]


@pytest.mark.parametrize("darker", [True, False])
def test_planted_lesions_are_in_white_matter_alone(darker: bool) -> None:
    patch = torch.zeros(4, 40, 40, 40)
    patch[0], patch[1, :20] = 0.4, 1.0
    patch[0, :20] = 0.8
    patch[2, 20:] = 1.0
    before = patch.clone()
    shares = []
    for seed in range(5):
        image, white, cortex, lesions = plant(patch, draw_lesions(40, darker, np.random.default_rng(seed)))
        assert torch.equal(patch, before)
        assert torch.equal(white, patch[1]) and torch.equal(cortex, patch[2])
        changed = (image - patch[0]).abs() > 1e-6
        assert not changed[21:].any()  # the mask is smoothed by a voxel
        assert bool((lesions[changed] > 0).all())
        inside = image[:19][lesions[:19] > 0.999]
        if darker:
            assert float(image[:20].max()) <= 0.8 + 1e-5
            assert bool((inside <= 0.95 * 0.8 + 1e-4).all())
        else:
            assert float(image[:20].min()) >= 0.8 - 1e-5
            assert bool((inside >= 1.05 * 0.8 - 1e-4).all())
        shares.append(float(changed[:20].float().mean()))
    assert 0 < max(shares) < 0.5


def test_nothing_is_planted_where_no_white_matter_is_known() -> None:
    patch = torch.rand(4, 24, 24, 24)
    patch[1:] = 0
    planted = plant(patch, draw_lesions(24, False, np.random.default_rng(0)))
    assert torch.equal(planted, patch)


def test_overlapping_lesions_do_not_add_up() -> None:
    patch = torch.zeros(4, 24, 24, 24)
    patch[0], patch[1] = 0.5, 1.0
    ball = RoughBall([12.0] * 3, [4.0] * 3, [0.0] * 3)
    both = plant(patch, [PlantedLesion(ball, intensity, 1.0) for intensity in (1.4, 2.0)])
    assert float(both[0].max()) == pytest.approx(1.0)
    alone = plant(patch, [PlantedLesion(ball, 2.0, 1.0)])
    torch.testing.assert_close(both, alone)


@pytest.mark.parametrize("seed", range(6))
def test_a_box_holds_the_whole_lesion(seed: int) -> None:
    everything = (slice(0, 48),) * 3
    for lesion in draw_lesions(48, True, np.random.default_rng(seed)):
        whole = lesion.share(everything, CPU)
        box = lesion.ball.box(48)
        torch.testing.assert_close(lesion.share(box, CPU), whole[box])
        whole[box] = 0
        assert not whole.any()


def test_examples_get_lesions_of_their_contrast(bids: Path) -> None:
    volumes = [load_volume(bids / f"{name}.nii.gz", [bids]) for name in ("sub-01_T1w", "sub-02_FLAIR")]
    settings = {**TINY, "synthetic": 0.0, "batch": 1}
    recipes = [recipe_from({**settings, "lesions_planted": share}) for share in (0.0, 1.0)]
    without, planted = (Examples(volumes, [], recipe, seed=1, device=CPU) for recipe in recipes)
    seen = set()
    for number in range(12):
        plan = planted.plan(number)
        assert isinstance(plan.source, CutVolume)
        brighter = volumes[plan.source.index].name.endswith("_FLAIR")
        assert all((lesion.intensity > 1) == brighter for lesion in plan.lesions) and plan.lesions
        plain, some, again = without.batch(number), planted.batch(number), planted.batch(number)
        assert torch.equal(some.sharp, again.sharp)
        new = some.tissue[:, 2] > plain.tissue[:, 2] + 0.2
        difference = (some.sharp - plain.sharp)[:, 0][new]
        if new.any():
            assert len(torch.sign(difference).unique()) == 1  # which sign, the random contrast of the scan says
            seen.add(brighter)
    assert seen == {True, False}


def test_the_packaged_recipe_plants_and_weighs_lesions() -> None:
    recipe = read_recipe("student-lesions")
    assert recipe.lesions_planted > 0 and recipe.lesion_focus > 0
    assert recipe.loss.lesions > 0
    assert recipe.network == read_recipe("student").network


def test_a_recipe_with_lesions_wants_to_know_where(
    bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "bids" / "sub-01" / "anat"
    data.mkdir(parents=True)
    (data / "sub-01_T1w.nii.gz").symlink_to(bids / "sub-01_T1w.nii.gz")
    base = ["train", "--data", str(tmp_path / "bids"), "--steps", "1"]
    for setting, missing in (
        ("lesion_focus", "no scan has a mask of lesions"),
        ("lesions_planted", "of no scan it is known"),
    ):
        recipe = tmp_path / f"{setting}.yml"
        recipe.write_text(yaml.safe_dump({**TINY, setting: 0.5}))
        command = [*base, "--recipe", str(recipe), "--out", str(tmp_path / setting)]
        assert main(command) == 2
        assert missing in capsys.readouterr().err
        assert main([*command, "--segmentations", str(bids)]) == 0
        card = Weights.read(tmp_path / setting / "weights.safetensors").card
        assert card["data"]["lesion_scans"] == card["data"]["segmented_scans"] == ["sub-01_T1w"]
