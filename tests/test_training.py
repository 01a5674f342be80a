"""Training: simulated acquisitions, volumes, synthesis, and the loop."""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from moesr_bids.cli.moesr import main
from moesr_bids.cli.train import planners
from moesr_bids.errors import ImageError
from moesr_bids.sr.models.acquisition import GUIDANCE
from moesr_bids.sr.models.network import INPUTS, NetworkOutput
from moesr_bids.sr.noise import estimate_noise
from moesr_bids.sr.psf import PSF
from moesr_bids.sr.weights import Weights
from moesr_bids.sr.zerofilling import acquired_share, measured_shares
from moesr_bids.training import loop
from moesr_bids.training.acquisition import (
    Contrast,
    Motion,
    RandomContrast,
    RandomSampling,
    RandomScan,
    RandomSmoothField,
    RicianNoise,
    Sampling,
    Scan,
    SmoothField,
)
from moesr_bids.training.examples import Examples
from moesr_bids.training.gradients import gradients_of
from moesr_bids.training.loop import Budget, Origin, Trained, train
from moesr_bids.training.losses import LossWeights, importance, student_loss, without_border
from moesr_bids.training.objectives import objective_of
from moesr_bids.training.recipe import Recipe, read_recipe, recipe_from
from moesr_bids.training.sharpness import axis_resolution
from moesr_bids.training.simulation import acquire
from moesr_bids.training.synthesis import RandomAnatomy, load_label_map, texture
from moesr_bids.training.volumes import TrainingVolume, cut_out, load_volume
from tests.test_sr_student import brainlike

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
FLAT = SmoothField([0.0] * 19, False)
NOTHING = {"contrast": Contrast(1.0), "bias": FLAT, "jacobian": FLAT, "motion": Motion(0, 1, [0.0])}
TINY = {
    **{"network": {"channels": 8, "blocks": 1, "embedding": 8}, "patch": 16, "margin": 8, "batch": 2, "synthetic": 0.5},
    **{"reuse": 2, "learning_rate": 1e-3, "weight_decay": 0.0, "warmup": 3, "decay": 0.5, "ema": 0.9, "clip": 1.0},
    "loss": {"gradient": 0.3, "likelihood": 0.02, "epsilon": 0.02},
}


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a data set of two sharp scans, one of thick slices, and a label map."""
    root = tmp_path_factory.mktemp("bids")
    for label in ("01", "02", "03"):
        (root / f"sub-{label}" / "anat").mkdir(parents=True)
    for label in ("01", "02"):
        nib.save(brainlike(noise=1.0), root / f"sub-{label}/anat/sub-{label}_T1w.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((8, 8, 4)), np.diag([1, 1, 3, 1])), root / "sub-03/anat/sub-03_T2w.nii.gz")
    (root / "labels").mkdir()
    labels = np.select([brainlike().get_fdata() > 90, brainlike().get_fdata() > 40], [41, 3], 0)
    labels[:27][labels[:27] == 41] = 2
    nib.save(nib.Nifti1Image(labels.astype(np.int16), np.eye(4)), root / "labels/sub-09_dseg.nii.gz")
    (root / "segmentations").mkdir()
    segmentation = nib.Nifti1Image(labels.astype(np.int16), brainlike().affine)
    nib.save(segmentation, root / "segmentations/sub-01_seg-aparcaseg_dseg.nii.gz")
    return root


def patch_of(volume: torch.Tensor) -> torch.Tensor:
    """Patch of a volume of unknown tissue."""
    return torch.cat([volume[None], volume.new_zeros((3, *volume.shape))])


def every_band(size: int, count: int = 1) -> torch.Tensor:
    """Band of truths that are sharp along all axes."""
    return torch.eye(size).expand(count, 3, size, size)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_a_scan_is_replayed_from_its_record(seed: int) -> None:
    scan = RandomScan().sample(np.random.default_rng(seed))
    assert Scan.replay(json.loads(json.dumps(scan.record()))) == scan


def test_a_replayed_scan_is_the_same_example() -> None:
    volume = torch.from_numpy(brainlike((48, 48, 48)).get_fdata(dtype=np.float32) / 110)
    scan = RandomScan().sample(np.random.default_rng(4))
    one, other = (acquire(patch_of(volume), one, 8) for one in (scan, Scan.replay(scan.record())))
    torch.testing.assert_close(one.channels, other.channels, rtol=0, atol=0)
    assert one.channels.shape == (INPUTS + len(GUIDANCE), 32, 32, 32)
    assert one.sharp.shape == (32, 32, 32)


def test_grids_are_finer_than_acquired_and_profiles_are_not_always_known() -> None:
    drawn = [RandomSampling().sample(np.random.default_rng(seed)) for seed in range(400)]
    windows = [(z, p.fwhm) for s in drawn for z, p in zip(s.zooms, s.psf.axes, strict=True) if p.kind == "kspace"]
    shares = np.array([zoom / width for zoom, width in windows])
    assert 0.1 < np.mean(shares < 0.96) < 0.4
    assert shares.min() >= 0.55
    known = [s.reported.axes == s.psf.axes for s in drawn]
    widths = [all(a.fwhm == b.fwhm for a, b in zip(s.reported.axes, s.psf.axes, strict=True)) for s in drawn]
    assert 0.5 < np.mean(known) < np.mean(widths) < 0.95


def test_noise_is_told_as_it_is_estimated_under_the_profile_that_is_told() -> None:
    scans = [RandomScan().sample(np.random.default_rng(seed)) for seed in range(300)]
    unnoticed = [s for s in scans if s.sampling.reported == PSF.from_acquisition(s.sampling.zooms)]
    unnoticed = [s for s in unnoticed if min(measured_shares(s.sampling.psf, s.sampling.zooms)) < 1]
    assert len(unnoticed) > 10
    for scan in unnoticed[:8]:
        zooms, mask = scan.sampling.zooms, np.ones((64, 64, 64), dtype=bool)
        shares, assumed = (measured_shares(psf, zooms) for psf in (scan.sampling.psf, scan.sampling.reported))
        noisy = scan.noise.apply(torch.ones(mask.shape), shares).numpy()
        estimate = estimate_noise(noisy, mask, zooms=zooms, shares=assumed).std
        assert abs(math.log(estimate / scan.noise.reported)) < 0.5
    assert max(s.noise.sigma / s.noise.reported for s in unnoticed) > 2


@pytest.mark.parametrize("zooms", [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (1.0, 1.0, 4.3)])
@pytest.mark.parametrize("offset", [-0.4, 0.0, 0.5])
def test_simulation_has_no_shift(zooms: tuple[float, float, float], offset: float) -> None:
    """A linear ramp comes back as it was, whatever the factor and the position of the samples."""
    ramp = np.add.outer(np.add.outer(np.arange(64.0), 2 * np.arange(64.0)), -np.arange(64.0)) / 400 + 0.6
    psf = PSF.parse(",".join(f"gaussian:{z}" for z in zooms), zooms)
    sampling = Sampling(zooms, [offset] * 3, psf, psf)
    scan = Scan(sampling=sampling, noise=RicianNoise(1e-6, 1e-6, 0), **NOTHING)
    example = acquire(patch_of(torch.from_numpy(ramp.astype(np.float32))), scan, 20)
    torch.testing.assert_close(example.channels[0], example.sharp, rtol=0, atol=4e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_example_has_its_slices_along_the_last_axis(axis: int) -> None:
    volume = torch.from_numpy(brainlike((48, 48, 48)).get_fdata(dtype=np.float32) / 110)
    zooms = [1.0, 1.0, 1.0]
    zooms[axis] = 4.0
    psf = PSF.from_acquisition(zooms)
    scan = Scan(sampling=Sampling(zooms, [0.5] * 3, psf, psf), noise=RicianNoise(1e-6, 1e-6, 0), **NOTHING)
    example = acquire(patch_of(volume), scan, 8)
    order = [*(a for a in range(3) if a != axis), axis]
    torch.testing.assert_close(example.sharp, volume[8:-8, 8:-8, 8:-8].permute(order))
    assert example.acquisition[:9:3].tolist() == [0.0, 0.0, 2.0]
    error = example.channels[0] - example.sharp
    coarse = [float(torch.diff(example.channels[0], dim=a).square().mean()) for a in range(3)]
    assert float(error.square().mean()) > 1e-5
    assert coarse[2] < min(coarse[:2])


def test_noise_is_rician_and_contrast_keeps_the_background() -> None:
    noisy = RicianNoise(0.05, 0.05, 1).apply(torch.full((40, 40, 40), 1.0))
    assert float(noisy.std()) == pytest.approx(0.05, rel=0.05)
    assert float(RicianNoise(0.05, 0.05, 1).apply(torch.zeros(40, 40, 40)).mean()) == pytest.approx(0.0627, rel=0.02)
    volume = torch.full((64, 160, 64), 1.0)
    cut_off = RicianNoise(0.05, 0.05, 1).apply(volume, (1.0, 0.6, 1.0))
    assert float(cut_off.std()) == pytest.approx(0.05 * math.sqrt(0.6), rel=0.05)
    assert [
        acquired_share(cut_off.numpy(), axis, np.ones(cut_off.shape, dtype=bool)) for axis in range(3)
    ] == pytest.approx([1.0, 0.6, 1.0], abs=0.04)
    for seed in range(20):
        contrast = RandomContrast(probability=1.0).sample(np.random.default_rng(seed))
        mapped = contrast.apply(torch.tensor([0.0, 0.5, 1.0, 3.0]))
        assert float(mapped[0]) == 0
        assert torch.isfinite(mapped).all()


def test_a_map_that_the_recipe_leaves_out_is_never_given() -> None:
    families = RandomScan(), RandomScan().told(["log_jacobian"])
    for seed in range(20):
        plain, told = (family.sample(np.random.default_rng(seed)) for family in families)
        assert not told.bias.known
        # Nothing else changes: an ablation compares like with like.
        assert evolve(told, bias=plain.bias) == plain
        assert told.bias.coefficients == plain.bias.coefficients


@pytest.mark.parametrize("part", ["bias", "jacobian"])
def test_field_is_corrected_and_given_to_the_network_if_known(part: str) -> None:
    volume = torch.full((40, 40, 40), 0.8)
    field = evolve(RandomSmoothField(strength=0.3, probability=1.0).sample(np.random.default_rng(3)), known=True)
    psf = PSF.parse("kspace:1,kspace:1,kspace:1", (1, 1, 1))
    sampling = Sampling((1.0, 1.0, 1.0), (0.5, 0.5, 0.5), psf, psf)
    scan = Scan(sampling=sampling, noise=RicianNoise(1e-6, 1e-6, 0), **{**NOTHING, part: field})
    channel = INPUTS + GUIDANCE.index(f"log_{part}")
    example = acquire(patch_of(volume), scan, 8)
    torch.testing.assert_close(example.channels[0], example.sharp, rtol=0, atol=0.02)
    assert float(example.channels[channel].std()) > 0.01
    unknown = acquire(patch_of(volume), evolve(scan, **{part: evolve(field, known=False)}), 8)
    assert float(unknown.channels[INPUTS:].abs().max()) == 0
    assert unknown.acquisition[-2:].tolist() == [-1, -1]
    assert example.acquisition[-2:].tolist() == [1 if name == f"log_{part}" else -1 for name in GUIDANCE]


@pytest.mark.parametrize(("part", "sign"), [("bias", -1), ("jacobian", 1)])
def test_noise_follows_the_corrections(part: str, sign: int) -> None:
    volume = torch.full((48, 48, 48), 0.8)
    field = SmoothField([0.5, *[0.0] * 18], True)
    psf = PSF.parse("kspace:1,kspace:1,kspace:1", (1, 1, 1))
    sampling = Sampling((1.0, 1.0, 1.0), (0.5, 0.5, 0.5), psf, psf)
    scan = Scan(sampling=sampling, noise=RicianNoise(0.02, 0.02, 0), **{**NOTHING, part: field})
    example = acquire(patch_of(volume), scan, 8)
    error = example.channels[0] - example.sharp
    field_map = example.channels[INPUTS + GUIDANCE.index(f"log_{part}")]
    high, low = (float(error[where].std()) for where in (field_map > 0.2, field_map < -0.2))
    assert math.copysign(1, high - low) == sign
    assert abs(math.log(high / low)) > 0.3


def test_motion_moves_and_still_heads_stay() -> None:
    volume = torch.rand(24, 26, 28)
    for axis, phase in ((0, 1), (2, 0), (1, 2)):
        assert torch.equal(Motion(axis, phase, [0.0] * 4).apply(volume), volume)
        together = Motion(axis, phase, [1.0] * 4).apply(volume)  # all segments alike: no motion
        torch.testing.assert_close(together, volume, rtol=0, atol=1e-4)
        assert float((Motion(axis, phase, [1.0, 0, 0, 0]).apply(volume) - volume).abs().max()) > 0.01


def textured(detail: tuple[float, float, float], zooms: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> np.ndarray:
    """Ball of tissue with a power-law texture whose k-space ends at detail of this size, in voxels."""
    waves = np.random.default_rng(0).normal(size=(96, 96, 96))
    cycles = np.meshgrid(*(np.fft.fftfreq(96, zoom) for zoom in zooms), indexing="ij", sparse=True)
    texture = np.fft.ifftn(np.fft.fftn(waves) / (0.02 + sum(f**2 for f in cycles)) ** 0.6).real
    ball = sum(x**2 for x in np.ogrid[-48:48, -48:48, -48:48]) < 44**2
    window = math.prod(np.abs(f * z) <= 0.5 / d for f, z, d in zip(cycles, zooms, detail, strict=True))
    return np.fft.ifftn(np.fft.fftn(ball * (100 + 10 * texture / texture.std())) * window).real.astype(np.float32)


@pytest.mark.parametrize(
    ("detail", "zooms"),
    [
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
        ((1.0, 1.0, 2.0), (1.0, 1.0, 1.0)),
        ((1.5, 1.0, 1.0), (1.0, 1.0, 1.0)),
        ((1.33, 1.0, 1.0), (1.0, 1.33, 1.33)),
    ],
)
def test_axes_that_were_acquired_coarser_are_found(
    detail: tuple[float, float, float], zooms: tuple[float, float, float]
) -> None:
    volume = textured(detail, zooms)
    assert axis_resolution(volume, volume > 50, zooms) == pytest.approx(detail, rel=0.08)


def test_scans_are_targets_along_their_sharp_axes_alone(bids: Path, tmp_path: Path) -> None:
    path = tmp_path / "sub-01_T1w.nii.gz"
    nib.save(nib.Nifti1Image(textured((1.0, 1.0, 2.0)), np.eye(4)), path)
    volume = load_volume(path)
    recipe = recipe_from({**TINY, "patch": 32, "batch": 1, "border": 4, "synthetic": 0.0})
    examples = Examples([volume], [], recipe, seed=0, device=CPU)
    coarse = np.zeros(3)
    for number in range(24):
        scan = examples.plan(number).scan
        assert sorted(scan.detail)[:2] == [1, 1] and max(scan.detail) > 1.4
        unsharp = int(np.argmax(scan.detail))
        assert scan.sampling.zooms[unsharp] == scan.sampling.psf.axes[unsharp].fwhm == 1
        coarse += np.array(scan.sampling.zooms) > 1.01
    assert coarse.sum() > 24
    batch = examples.batch(0)
    # The truth lies within what it knows; finer detail along that axis neither helps nor hurts.
    truth, kept = (without_border(part, 4) for part in (batch.sharp, batch.known(batch.sharp)))
    assert float((kept - truth).square().mean() / truth.var()) < 0.005
    axis = 2 + next(a for a in range(3) if not torch.equal(batch.band[0, a], torch.eye(32)))
    objective = objective_of(recipe)
    losses = []
    for along, height in ((axis, 0.0), (axis, 0.1), (2 + (axis - 1) % 3, 0.1)):
        stripes = torch.tensor([height, -height]).repeat(16).view([32 if a == along else 1 for a in range(5)])

        def network(
            channels: torch.Tensor, acquisition: torch.Tensor, stripes: torch.Tensor = stripes
        ) -> NetworkOutput:
            del acquisition
            return NetworkOutput(stripes.expand_as(channels[:, :1]), torch.zeros_like(channels[:, :1]))

        losses.append(float(objective.loss(network, batch, (), objective.stage(0))[0]))
    plain, unknown, known = losses
    assert abs(unknown - plain) < 0.02 * (known - plain)


def test_thick_slices_are_no_sharp_target(bids: Path) -> None:
    assert load_volume(bids / "sub-01/anat/sub-01_T1w.nii.gz").spacings[0] == 1.0
    with pytest.raises(ImageError, match="no sharp target"):
        load_volume(bids / "sub-03/anat/sub-03_T2w.nii.gz")


def _cut(volume: TrainingVolume, seed: int) -> torch.Tensor:
    cut = volume.draw(40, np.random.default_rng(seed))
    return cut_out(volume.tensors(CPU), cut, cut.matrix(40))


def test_patches_are_drawn_inside_and_scaled(bids: Path) -> None:
    volume = load_volume(bids / "sub-01/anat/sub-01_T1w.nii.gz")
    for seed in range(6):
        patch = _cut(volume, seed)
        assert patch.shape == (4, 40, 40, 40)
        assert 0.7 < float(patch[0].max()) < 2.0
        assert float(patch[1:].abs().max()) == 0  # no segmentation


def test_patches_carry_the_tissue_of_a_segmentation(bids: Path) -> None:
    volume = load_volume(bids / "sub-01/anat/sub-01_T1w.nii.gz", [bids / "segmentations"])
    truth = brainlike().get_fdata()
    white, cortex, lesions = volume.tissue
    assert not lesions.any()
    assert np.array_equal(white > 0, truth > 90)
    assert np.array_equal(cortex > 0, (truth > 40) & (truth <= 90))
    assert load_volume(bids / "sub-02/anat/sub-02_T1w.nii.gz", [bids / "segmentations"]).tissue is None
    for seed in range(4):  # turned and resampled with the image
        image, white, cortex, _ = _cut(volume, seed)
        assert float(image[white > 0.99].min()) > float(image[cortex > 0.99].max()) - 0.15
        assert 0 <= float(torch.minimum(white, cortex).min()) <= float(torch.maximum(white, cortex).max()) <= 1


def test_synthesis_draws_lesions_in_white_matter_and_partial_volume(bids: Path) -> None:
    labels = load_label_map(bids / "labels/sub-09_dseg.nii.gz")
    assert labels.values.tolist() == [0, 2, 3]  # background, cortex, and white matter of both sides as one
    anatomy = RandomAnatomy(lesions=1.0, bare=0.0)
    with_lesions = anatomy.draw(labels, 32, np.random.default_rng(3), CPU)
    without = RandomAnatomy(lesions=0.0, bare=0.0).draw(labels, 32, np.random.default_rng(3), CPU)
    lesion = with_lesions.fine == 255
    assert 0 < int(lesion.sum()) < lesion.numel() / 2
    assert torch.isin(without.fine[lesion], torch.tensor(labels.indices([2]), dtype=torch.uint8)).all()
    assert torch.equal(with_lesions.fine[~lesion], without.fine[~lesion])
    assert float(with_lesions.tissue[2].mean()) == pytest.approx(float(lesion.float().mean()))
    torch.testing.assert_close(with_lesions.tissue[:2], without.tissue[:2])  # they count as white matter
    palette = RandomAnatomy(texture=(1e-6, 2e-6)).palette(labels, np.random.default_rng(0))
    image = palette.paint(without, torch.from_numpy(palette.tables))
    assert image.shape == (4, 32, 32, 32)
    assert float(image[1:3].sum(dim=0).max()) == 1.0
    assert not image[3].any()
    image = image[0]
    levels, counts = np.unique(np.round(image.numpy(), 4), return_counts=True)
    assert len(levels) > 3  # mixed voxels
    assert np.sort(counts)[-3:].sum() > 0.5 * image.numel()  # most are pure
    with pytest.raises(ImageError, match="white matter"):
        load_label_map(bids / "sub-01/anat/sub-01_T1w.nii.gz")


def test_synthesis_has_the_contrasts_of_brain_scans(bids: Path) -> None:
    labels = load_label_map(bids / "labels/sub-09_dseg.nii.gz")
    drawn = RandomAnatomy(lesions=0.0, bare=0.0).draw(labels, 32, np.random.default_rng(2), CPU)
    whiter = set()
    for seed in range(12):
        anatomy = RandomAnatomy(texture=(1e-6, 2e-6), natural=1.0)
        palette = anatomy.palette(labels, np.random.default_rng(seed))
        image, white, cortex, _ = palette.paint(drawn, torch.from_numpy(palette.tables))
        levels = float(image[white == 1].mean()), float(image[cortex == 1].mean())
        assert 0.2 < levels[1] < 0.95 and abs(levels[0] - levels[1]) < 0.8
        whiter.add(levels[0] > levels[1] + 0.02)
    assert whiter == {True, False}  # T1w, and T2w or FLAIR


def test_texture_has_the_spectrum_it_says() -> None:
    field = texture(48, torch.Generator().manual_seed(0), CPU)
    assert float(field.std()) == pytest.approx(1.0, abs=1e-4)
    power = torch.fft.fftn(field).abs()[0, 0].square()
    assert float(power[2:5].mean() / power[16:22].mean()) > 5


def test_examples_are_the_same_by_number(bids: Path) -> None:
    volumes, labels = (
        [load_volume(bids / "sub-01/anat/sub-01_T1w.nii.gz")],
        [load_label_map(bids / "labels/sub-09_dseg.nii.gz")],
    )
    recipe = recipe_from(TINY)
    one, other = (Examples(volumes, labels, recipe, seed=3, device=CPU) for _ in range(2))
    later = other.batch(17)  # whatever was asked for before
    for number in range(3):
        one.batch(number)
    torch.testing.assert_close(one.batch(17).channels, later.channels, rtol=0, atol=0)
    assert not torch.equal(later.channels[0], later.channels[1])
    planned = one.batches(13, 4, workers=2)  # by other processes
    for _ in range(2):
        batch = next(planned)
    assert batch.first == 17
    for name in ("channels", "acquisition", "sharp", "tissue"):
        torch.testing.assert_close(getattr(batch, name), getattr(later, name), rtol=0, atol=0)
    with pytest.raises(ValueError, match="volumes, label maps or pairs"):
        Examples([], [], recipe, seed=0, device=CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_captured_step_has_the_gradients_of_a_direct_one(bids: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device, recipe = torch.device("cuda"), recipe_from(TINY)
    volumes = [load_volume(bids / "sub-01/anat/sub-01_T1w.nii.gz")]
    examples = Examples(volumes, [load_label_map(bids / "labels/sub-09_dseg.nii.gz")], recipe, seed=3, device=device)
    objective = objective_of(recipe)
    network = objective.build(None).to(device)
    found = []
    for capturable in (False, True):
        monkeypatch.setattr(type(objective), "capturable", capturable)
        gradients = gradients_of(objective, network, device)
        for first in (0, 2):
            terms = gradients(examples.batch(first), (), objective.stage(0.0))
            grads = [p.grad.clone() for p in network.parameters() if p.grad is not None]
            found.append([*terms.values(), *grads])
    direct, captured = found[:2], found[2:]
    for one, other in zip([*direct[0], *direct[1]], [*captured[0], *captured[1]], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert not torch.equal(captured[0][0], captured[1][0])


def test_loss_is_least_for_the_truth_and_the_right_scale() -> None:
    truth = torch.rand(2, 1, 12, 12, 12)
    start = truth + 0.1 * torch.randn(truth.shape)
    weights = LossWeights()

    def loss(residual: torch.Tensor, log_scale: float) -> float:
        output = NetworkOutput(residual, torch.full_like(truth, log_scale))
        return float(student_loss(output, start, truth, weights, torch.ones_like(truth))[0])

    scale = float(np.log(0.1 * np.sqrt(2 / np.pi)))  # of the absolute error
    nothing = torch.zeros_like(truth)
    assert loss(truth - start, -5.0) < loss(nothing, scale)
    assert loss(nothing, scale) < min(loss(nothing, scale - 0.5), loss(nothing, scale + 0.5))


def test_errors_in_lesions_count_more() -> None:
    """In lesions and two voxels around them, and only there."""
    truth, tissue = torch.rand(1, 1, 16, 16, 16), torch.zeros(1, 3, 16, 16, 16)
    tissue[:, 2, 4:6, 4:6, 4:6] = 1

    def losses(place: slice, weights: LossWeights) -> tuple[float, float]:
        residual = torch.zeros_like(truth)
        residual[..., place, place, place] = 0.1
        output = NetworkOutput(residual - 0.2, torch.zeros_like(truth))
        terms = student_loss(output, truth + 0.2, truth, weights, importance(tissue, weights))[1]
        return float(terms["reconstruction"]), float(terms["gradient"])

    near, far, plain, heavy = slice(2, 4), slice(12, 14), LossWeights(), LossWeights(lesions=9.0)
    counts = importance(tissue, heavy)
    assert torch.equal(counts[..., 2:8, 2:8, 2:8], torch.full((1, 1, 6, 6, 6), 10.0))
    assert float(counts.sum()) == 16**3 + 9 * 6**3
    assert losses(near, plain) == pytest.approx(losses(far, plain))
    for wrong_near, wrong_far in zip(losses(near, heavy), losses(far, heavy), strict=True):
        assert wrong_near > wrong_far
    tissue = torch.zeros_like(tissue)  # without lesions all counts alike
    assert losses(far, heavy) == pytest.approx(losses(far, plain))


def _train(
    bids: Path, folder: Path, steps: int, say=lambda line: None, recipe: Recipe | None = None, **options: Any
) -> Trained:
    folder.mkdir(exist_ok=True)
    return train(
        recipe or recipe_from(TINY),
        folder,
        volumes=[load_volume(bids / "sub-01/anat/sub-01_T1w.nii.gz")],
        labels=[load_label_map(bids / "labels/sub-09_dseg.nii.gz")],
        held_out=[],
        budget=Budget(steps=steps),
        device=CPU,
        say=say,
        **options,
    )


def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    bids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(multiprocessing.active_children())
    whole = _train(bids, tmp_path / "whole", 8).network.state_dict()
    monkeypatch.setattr(loop, "_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(loop, "_LOG_EVERY", 1)

    def killed(line: str) -> None:
        if line.startswith("step 5"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(bids, tmp_path / "cut", 8, killed)
    resumed = _train(bids, tmp_path / "cut", 8, workers=2)  # planned by others, the examples are the same
    assert resumed.steps == 8
    assert set(multiprocessing.active_children()) <= before
    for name, value in resumed.network.state_dict().items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=0)


def test_sittings_are_one_training(bids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that several sittings take, two batches each in the last half, are those of one."""
    recipe = recipe_from({**TINY, "accumulate": 2, "accumulate_from": 0.5, "decay": 1.0})
    options = {"recipe": recipe, "steps": 6}
    whole = _train(bids, tmp_path / "whole", **options).network.state_dict()
    monkeypatch.setattr(Budget, "interrupted", lambda self, seconds: seconds > 0)
    monkeypatch.setattr(loop, "_SAVE_SECONDS", 0.0)
    ended = [_train(bids, tmp_path / "cut", **options).steps]
    assert ended == [0]  # a sitting that is over at once leaves all as it was
    for limit in range(1, 7):
        clock = iter([False] * limit + [True] * 100)
        monkeypatch.setattr(Budget, "interrupted", lambda self, seconds, clock=clock: next(clock))
        trained = _train(bids, tmp_path / "cut", **options)
        ended.append(trained.steps)
    assert ended == [0, 1, 3, 6, 6, 6, 6]
    for name, value in trained.network.state_dict().items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=0)


def test_minutes_beside_steps_end_a_sitting_and_not_the_training() -> None:
    both, minutes = Budget(minutes=2, steps=100), Budget(minutes=2)
    assert both.share(30, 1e6) == 0.3
    assert both.interrupted(121) and not both.interrupted(119)
    assert minutes.share(30, 60) == 0.5
    assert not minutes.interrupted(1e6)


def test_accumulated_gradients_are_those_of_one_batch(bids: Path, tmp_path: Path) -> None:
    """Two batches of one example in a step are one batch of two."""
    one = recipe_from({**TINY, "batch": 1, "accumulate": 2})
    both = recipe_from({**TINY, "batch": 2})
    first, second = (
        _train(bids, tmp_path / name, 1, recipe=recipe).network.state_dict()
        for name, recipe in (("one", one), ("both", both))
    )
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-3, atol=2e-4)


def test_the_gradient_of_the_image_counts_until_its_share_of_the_run() -> None:
    recipe = recipe_from({**TINY, "loss": {"gradient": 0.3, "gradient_until": 0.8}})
    objective = objective_of(recipe)
    assert objective.stage(0.79) != objective.stage(0.8)
    assert objective.stage(0.0) == objective.stage(0.79)


def test_nobody_validates_who_was_trained_on(bids: Path, tmp_path: Path) -> None:
    _train(bids, tmp_path / "run", 1)
    first, other = (load_volume(bids / f"sub-{label}/anat/sub-{label}_T1w.nii.gz") for label in ("01", "02"))
    with pytest.raises(ValueError, match="sub-01 was trained on"):
        train(
            recipe_from(TINY),
            tmp_path / "run",
            volumes=[other],
            labels=[],
            held_out=[first],
            budget=Budget(steps=2),
            device=CPU,
        )


def test_nobody_validates_whom_the_start_was_trained_on(
    bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    recipe = ("--recipe", str(_recipe_file(tmp_path)), "--steps", "1", "--omp-nthreads", "1")
    command = ["train", "--data", str(bids), *recipe]
    assert main([*command, "--participant-label", "01", "--out", str(first)]) == 0
    start = ("--start", str(first / "weights.safetensors"), "--participant-label", "02", "--out", str(second))
    assert main([*command, *start, "--validation-label", "01"]) == 2
    assert "sub-01 was trained on, here or by the weights" in capsys.readouterr().err
    assert main([*command, *start]) == 0
    card = json.loads((second / "weights.json").read_text())
    assert card["data"]["participants"] == ["sub-01", "sub-02"]
    assert card["data"]["scans"] == ["sub-02_T1w"]
    assert main([*command, "--participant-label", "02", "--out", str(second)]) == 2
    assert "comes from other weights; give the same --start as then" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_not_saved(bids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _train(bids, tmp_path / "run", 1)
    good = (tmp_path / "run" / loop.STATE).read_bytes()
    plain = loop.nn.utils.clip_grad_norm_

    def spoiled(parameters: Iterable[torch.Tensor], largest: float) -> torch.Tensor:
        parameters = list(parameters)
        parameters[0].grad.fill_(float("inf"))
        return plain(parameters, largest)

    monkeypatch.setattr(loop.nn.utils, "clip_grad_norm_", spoiled)
    with pytest.raises(ValueError, match="not finite any more"):
        _train(bids, tmp_path / "run", 3)
    assert (tmp_path / "run" / loop.STATE).read_bytes() == good


def test_a_scan_with_nan_is_refused(bids: Path, tmp_path: Path) -> None:
    data = brainlike().get_fdata()
    data[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "sub-01_T1w.nii.gz")
    with pytest.raises(ImageError, match=r"sub-01_T1w\.nii\.gz: has voxels that are NaN"):
        load_volume(tmp_path / "sub-01_T1w.nii.gz")


def test_another_recipe_is_not_resumed(bids: Path, tmp_path: Path) -> None:
    _train(bids, tmp_path / "run", 1)
    with pytest.raises(ValueError, match="another recipe"):
        train(
            evolve(recipe_from(TINY), batch=1),
            tmp_path / "run",
            volumes=[load_volume(bids / "sub-01/anat/sub-01_T1w.nii.gz")],
            labels=[],
            held_out=[],
            budget=Budget(steps=2),
            device=CPU,
        )


def test_another_origin_is_not_resumed(bids: Path, tmp_path: Path) -> None:
    """What a card says of seed, start, trunk and teacher is true of all of its training."""
    _train(bids, tmp_path / "run", 1)
    with pytest.raises(ValueError, match="comes from other weights; give the same --start as then"):
        _train(bids, tmp_path / "run", 2, origin=Origin(weights={"start": "0" * 64}))
    with pytest.raises(ValueError, match="has the random seed 0"):
        _train(bids, tmp_path / "run", 2, seed=1)
    assert _train(bids, tmp_path / "run", 2).steps == 2


def _recipe_file(folder: Path) -> Path:
    path = folder / "tiny.yml"
    path.write_text(json.dumps(TINY))
    return path


def test_command_trains_validates_and_its_weights_run(bids: Path, tmp_path: Path) -> None:
    arguments = [
        *("train", "--data", str(bids), "--labels", str(bids / "labels"), "--out", str(tmp_path / "out")),
        *("--recipe", str(_recipe_file(tmp_path)), "--validation-label", "02", "--steps", "2", "--omp-nthreads", "1"),
    ]
    assert main(arguments) == 0
    weights = Weights.read(tmp_path / "out/weights.safetensors")
    assert weights.card["data"]["scans"] == ["sub-01_T1w"]
    assert weights.card["data"]["validation_scans"] == ["sub-02_T1w"]
    assert weights.card["training"]["steps"] == 2
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|n/a", weights.card["commit"])
    curve = weights.card["learning_curve"]
    assert [point["step"] for point in curve] == [2]
    assert curve[0]["gain_db"] == pytest.approx(np.mean(list(weights.card["patch_gain_db"].values())), abs=0.01)
    with (tmp_path / "out/training.tsv").open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert {row["kind"] for row in rows} == {"validation"}
    assert list((tmp_path / "out").glob("events.out.tfevents*"))
    nib.save(brainlike(noise=1.0), tmp_path / "scan.nii.gz")
    sr = ["sr", str(tmp_path / "scan.nii.gz"), str(tmp_path / "sharp.nii.gz"), "--resolution", "0.9"]
    assert main([*sr, "--model", str(weights.path), "--omp-nthreads", "1"]) == 0
    assert (tmp_path / "sharp.nii.gz").is_file()


def test_several_processes_agree(bids: Path, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "moesr_bids.cli.moesr", "train", "--data", str(bids), "--out", str(tmp_path / "out")),
        *("--recipe", str(_recipe_file(tmp_path)), "--steps", "3", "--device", "cpu", "--omp-nthreads", "1"),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    card = Weights.read(tmp_path / "out/weights.safetensors").card
    assert card["training"]["processes"] == 2
    assert card["training"]["steps"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "1", "--participant-label", "07"], "no participant 07"),
        (
            ["--steps", "1", "--participant-label", "01", "--validation-label", "sub-01"],
            "for training and for validation",
        ),
        (["--validation-label", "02"], "say when to stop"),
        (["--steps", "1", "--recipe", "magic"], "no recipe 'magic'"),
        (["--steps", "1", "--labels", "nowhere"], "no such folder"),
        (["--minutes", "-3"], "not a number above zero"),
    ],
)
def test_command_errors(
    bids: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["train", "--data", str(bids), "--out", str(tmp_path / "out"), *arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_recipes_for_a_gpu_train_the_same_networks() -> None:
    for name in ("student", "moediff", "distill"):
        assert read_recipe(f"{name}-gpu").network == read_recipe(name).network
    student, larger = read_recipe("student"), read_recipe("student-gpu")
    assert (larger.patch, larger.batch, larger.loss) == (80, 8, student.loss)
    assert (read_recipe("moediff").recall.count, read_recipe("moediff-gpu").recall.count) == (8, 0)


def test_a_gpu_has_its_examples_planned_by_the_other_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert planners("cpu", 4) == 0
    assert [planners("cuda", n) for n in (1, 2, 8)] == [1, 1, 7]
    monkeypatch.setattr("moesr_bids.resources.available_cpus", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert planners("cuda", None) == 3


def test_recipes_are_checked(tmp_path: Path) -> None:
    assert read_recipe("student").network.receptive_field > 0
    for key, value in (("patch", 15), ("synthetic", 1.5), ("surprise", 1), ("border", 6), ("border", 12)):
        path = tmp_path / "bad.yml"
        path.write_text(json.dumps({**TINY, key: value}))
        with pytest.raises(ValueError, match=r"recipe .*bad\.yml"):
            read_recipe(str(path))
