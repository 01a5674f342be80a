"""Training on pairs of real scans: alignment, intensities, contrasts that differ, and the facts in the weights."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from moesr_bids.cli.moesr import main
from moesr_bids.errors import ImageError
from moesr_bids.sr.engine import super_resolve
from moesr_bids.sr.grid import Grid
from moesr_bids.sr.joint.operator import ScanOperator
from moesr_bids.sr.joint.positions import motion
from moesr_bids.sr.joint.resampling import Resampling
from moesr_bids.sr.options import SROptions
from moesr_bids.sr.psf import PSF
from moesr_bids.training.examples import Examples
from moesr_bids.training.pairs import PairFiles, find_pairs, load_pair
from moesr_bids.training.recipe import read_recipe, recipe_from
from tests.test_sr_joint_positions import _head

CPU = torch.device("cpu")
MOVED = motion([3, -2, 2, 0.06, -0.05, 0.03], np.zeros(3))
TINY = {"channels": 8, "blocks": 1, "embedding": 8, "kernels": 1, "expansion": 1.0}


def _write(folder: Path, name: str, data: np.ndarray, affine: np.ndarray) -> Path:
    path = folder / name.split("_", 1)[0] / "anat" / f"{name}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(1000 * data, dtype=np.float32), affine), path)
    return path


def _thick(seed: int) -> tuple[Grid, np.ndarray]:
    """Make a head in slices of 3 mm, moved, 1.2 times as bright, with noise of 1 %."""
    grid, head = _head(seed)
    own = Grid((72, 72, 24), grid.affine @ np.array(nib.affines.from_matvec(np.diag([1, 1, 3.0]), [0, 0, 1])))
    seen = ScanOperator(own, grid, PSF.from_acquisition((1, 1, 3)), MOVED).forward(torch.from_numpy(head)).numpy()
    return own, 1.2 * seen + np.random.default_rng(seed).normal(scale=0.01, size=own.shape)


def _pair(folder: Path, seed: int, *, inverted: bool = False) -> PairFiles:
    grid, head = _head(seed)
    own, seen = _thick(seed)
    sharp = np.where(head > 0.1, 1.2 - head, 0) if inverted else head
    return PairFiles(
        _write(folder / "low", f"sub-{seed}_T1w", seen, own.affine),
        _write(folder / "high", f"sub-{seed}_T1w", sharp, grid.affine),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two pairs of one contrast."""
    made = tmp_path_factory.mktemp("pairs")
    for seed in (1, 2):
        _pair(made, seed)
    return made


def _true(own: Grid, volume: np.ndarray) -> np.ndarray:
    grid, _ = _head(1)
    return Resampling(grid, own.isotropic(1.0), MOVED).forward(torch.from_numpy(volume.astype(np.float32))).numpy()


def test_a_pair_is_brought_to_the_axes_and_intensities_of_the_coarse_scan(folder):
    pair = load_pair(PairFiles(folder / "low/sub-1/anat/sub-1_T1w.nii.gz", folder / "high/sub-1/anat/sub-1_T1w.nii.gz"))
    own, seen = _thick(1)
    truth = 1.2 * _true(own, _head(1)[1]) / np.percentile(seen[seen > 0.3], 99)
    assert pair.sharp.shape == truth.shape  # the slices come last already
    error = (pair.sharp.astype(np.float32) - truth)[pair.head]
    assert np.sqrt(np.mean(error**2)) < 0.03
    interpolated = (pair.channels[0].astype(np.float32) - truth)[pair.head]
    assert np.sqrt(np.mean(error**2)) < 0.5 * np.sqrt(np.mean(interpolated**2))
    assert pair.facts["Agreement"] > 0.8
    assert pair.facts["Misfit"] < 0.03


def test_another_contrast_is_refused_unless_a_synthesis_is_asked_for(tmp_path):
    files = _pair(tmp_path, 1, inverted=True)
    with pytest.raises(ImageError, match="--synthesis"):
        load_pair(files)
    pair = load_pair(files, synthesis=True)
    own, _ = _thick(1)
    head = _head(1)[1]
    truth = _true(own, np.where(head > 0.1, 1.2 - head, 0))
    inside = pair.head & (truth > 0.2)
    assert np.corrcoef(pair.sharp.astype(np.float32)[inside], truth[inside])[0, 1] > 0.9


def test_cubes_lie_where_both_scans_are_known_and_repeat_themselves(folder):
    pair = load_pair(PairFiles(folder / "low/sub-1/anat/sub-1_T1w.nii.gz", folder / "high/sub-1/anat/sub-1_T1w.nii.gz"))
    recipe = recipe_from({**read_recipe("student").record(), "patch": 24, "network": TINY})
    examples = Examples([], [], recipe, seed=3, device=CPU, pairs=[pair])
    cuts = [examples.plan(number) for number in range(12)]
    for cut in cuts:
        box = tuple(slice(c, c + 24) for c in cut.corner)
        assert pair.known[box].mean() > 0.99
    assert len({(cut.corner, cut.flips) for cut in cuts}) > 6
    first, again = examples.batch(5), Examples([], [], recipe, seed=3, device=CPU, pairs=[pair]).batch(5)
    assert torch.equal(first.channels, again.channels)
    assert torch.equal(first.sharp, again.sharp)
    box = tuple(slice(c, c + 24) for c in cuts[5].corner)
    expected = torch.from_numpy(pair.sharp[box].astype(np.float32)).flip(cuts[5].flips)
    assert torch.equal(first.sharp[0, 0], expected)
    with pytest.raises(ImageError, match="smaller patch"):
        pair.draw(0, 80, np.random.default_rng(0))


def test_pairs_are_found_in_folders_and_by_entities(tmp_path):
    image = np.ones((4, 4, 4))
    for name in ("sub-1_ses-a_acq-low_T1w", "sub-1_ses-a_acq-high_T1w", "sub-1_ses-b_acq-low_T1w", "sub-2_acq-low_T2w"):
        _write(tmp_path, name, image, np.eye(4))
    (found,) = find_pairs(tmp_path, "acq-low", "acq-high", lambda label: True)
    assert (found.low.name, found.high.name) == (
        "sub-1_ses-a_acq-low_T1w.nii.gz",
        "sub-1_ses-a_acq-high_T1w.nii.gz",
    )
    assert find_pairs(tmp_path, "acq-low", "acq-high", lambda label: label == "2") == []
    assert len(find_pairs(None, str(tmp_path / "sub-2"), str(tmp_path / "sub-2"), lambda label: True)) == 1
    _write(tmp_path, "sub-1_ses-a_acq-high_run-2_T1w", image, np.eye(4))
    with pytest.raises(ImageError, match="several scans could be its pair"):
        find_pairs(tmp_path, "acq-low", "acq-high", lambda label: True)


def test_a_training_on_pairs_writes_weights_that_know_what_they_are(folder, tmp_path, capsys):
    recipe = tmp_path / "tiny.yml"
    recipe.write_text(f"base: student-lowfield\npatch: 32\nmargin: 8\nnetwork: {json.dumps(TINY)}\n", encoding="utf-8")
    pairs = ["--pairs", str(folder / "low"), str(folder / "high"), "--validation-label", "2"]
    command = ["train", *pairs, "--recipe", str(recipe), "--steps", "3"]
    assert main([*command, "--out", str(tmp_path / "same")]) == 0
    told = capsys.readouterr()
    assert "sub-1_T1w: pair with sub-1_T1w.nii.gz, agreement" in told.out + told.err
    card = json.loads((tmp_path / "same" / "weights.json").read_text(encoding="utf-8"))
    assert [pair["Low"] for pair in card["data"]["pairs"]] == ["sub-1_T1w.nii.gz"]
    assert card["data"]["participants"] == ["sub-1"]
    assert set(card["patch_gain_db"]) == {"sub-2_T1w"}
    assert "synthesis" not in card
    assert card["training"]["recipe"]["simulation"]["noise"]["sigma"] == [0.01, 0.15]

    assert main([*command, "--synthesis", "--out", str(tmp_path / "other")]) == 0
    own, seen = _thick(1)
    image = nib.Nifti1Image(np.asarray(1000 * seen, dtype=np.float32), own.affine)
    translated = super_resolve(
        image, SROptions(resolution=1.0, model=str(tmp_path / "other" / "weights.safetensors"))
    ).record
    projected = super_resolve(
        image, SROptions(resolution=1.0, model=str(tmp_path / "same" / "weights.safetensors"))
    ).record
    assert translated["Synthesis"] is True
    assert translated["Lambda"] == 0
    assert any("synthesis" in warning for warning in translated["Warnings"])
    assert "Synthesis" not in projected
    assert not any("synthesis" in warning for warning in projected["Warnings"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "1"], "say what to train on"),
        (["--pairs", "acq-a", "acq-b", "--steps", "1"], "neither two folders"),
        (["--synthesis", "--data", ".", "--steps", "1"], "--synthesis is of pairs"),
    ],
)
def test_wrong_sources_are_one_sentence(tmp_path, caplog, arguments, message):
    assert main(["train", "--out", str(tmp_path), *arguments]) == 2
    assert message in caplog.text


def test_ranges_of_simulated_scans_are_keys_of_a_recipe():
    usual = read_recipe("student").record()
    wide = recipe_from({**usual, "simulation": {"sampling": {"isotropic": [1, 6]}}})
    assert wide.simulation.sampling.isotropic == (1.0, 6.0)
    assert wide.simulation.noise == read_recipe("student").simulation.noise
    assert recipe_from(json.loads(json.dumps(wide.record()))) == wide
    with pytest.raises(ValueError, match="noize"):
        recipe_from({**usual, "simulation": {"noize": {}}})
