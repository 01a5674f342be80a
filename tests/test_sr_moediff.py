"""The mixture-of-experts diffusion model: gate, experts, samples, windows, and the command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import attrs
import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.processing import resample_from_to
from scipy import ndimage

from benchmarks.calibrate import detail_of, write_calibration
from benchmarks.degrade import all_cases, degrade
from benchmarks.tables import Row
from benchmarks.truths import load_truths
from moesr_bids.bids.record import SRRecord
from moesr_bids.bids.schema import make
from moesr_bids.cli.moesr import main
from moesr_bids.interfaces.sr import SuperResolve
from moesr_bids.reports.numbers import uncertainty_words
from moesr_bids.segmentation.weights import PACKAGED_SEGMENTER
from moesr_bids.sr import windows
from moesr_bids.sr.calibration import ErrorRatios
from moesr_bids.sr.cost import estimate_cost
from moesr_bids.sr.engine import super_resolve
from moesr_bids.sr.metrics import psnr
from moesr_bids.sr.models import EXPERTS, get_model
from moesr_bids.sr.models import moediff as module
from moesr_bids.sr.models.acquisition import CONDITIONS
from moesr_bids.sr.models.context import Context, ContextShape, context_in_patches, gate_weights
from moesr_bids.sr.models.experts import Expert, expert_halo
from moesr_bids.sr.models.mixture import MixtureNetwork, MixtureShape
from moesr_bids.sr.models.network import NetworkShape, ResidualNetwork
from moesr_bids.sr.options import SROptions
from moesr_bids.sr.precision import network_flops
from moesr_bids.sr.sampling import Sampling
from moesr_bids.sr.weights import PACKAGED, Weights, write_weights
from tests.test_sr_student import brainlike, thick

TRUNK = NetworkShape(channels=8, blocks=1, embedding=8, kernels=2)
SHAPE = MixtureShape(trunk=TRUNK, context=ContextShape(channels=16, depth=2, heads=2, window=2, patch=32), blocks=1)
SMALL = (40, 44, 32)  # where many images are made
CARD = {"kind": "moediff", "temperature": {"all": 1.5}, "guidance": ["log_bias"]}


def random_mixture(seed: int = 0) -> MixtureNetwork:
    """Build a network in which everything that starts at zero is random."""
    torch.manual_seed(seed)
    network = MixtureNetwork(SHAPE).eval()
    for layer in (
        network.trunk.tail,
        network.context.to_features,
        *(expert.tail for expert in network.experts),
    ):
        torch.nn.init.normal_(layer.weight, std=0.05)
    torch.nn.init.normal_(network.context.gate[-1].weight, std=2.0)
    return network


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    """Weights of a small network with random output: whatever it says must not depend on windows."""
    path = tmp_path / "mixture.safetensors"
    write_weights(path, random_mixture(), CARD)
    return path


@given(seed=st.integers(0, 1000), scale=st.floats(0.0, 50.0))
@settings(max_examples=25, deadline=None)
def test_gate_weights_sum_to_one_everywhere(seed: int, scale: float) -> None:
    logits = scale * torch.randn((1, 3, 3, 4, 2), generator=torch.Generator().manual_seed(seed))
    gate = gate_weights(logits)
    assert gate.shape == (1, 3, 12, 16, 8)
    assert float(gate.min()) >= 0
    torch.testing.assert_close(gate.sum(dim=1), torch.ones(1, 12, 16, 8))
    # Smooth: between tokens of 4 voxels it changes by no more than a quarter per voxel.
    assert max(float(torch.diff(gate, dim=a).abs().max()) for a in (2, 3, 4)) <= 0.25 + 1e-5


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_see_no_further_than_they_say(name: str) -> None:
    torch.manual_seed(0)
    expert = Expert(name, width=8, blocks=1, embedding=8, kernels=2)
    torch.nn.init.normal_(expert.tail.weight)
    reach = expert_halo(1)
    n = 2 * reach  # at half resolution
    features, state, embedding = torch.zeros(1, 8, n, n, n), torch.zeros(1, 16, n, n, n), torch.zeros(1, 8)
    changed = features.clone()
    changed[..., n // 2, n // 2, n // 2] = 1.0
    shares = [torch.tensor([[0.3, 0.7]])] * 4  # head, tail, and two of the block
    with torch.no_grad():
        before, after = (expert(volume, state, embedding, shares) for volume in (features, changed))
    moved = (after - before)[0, 0].abs() > 0
    touched = torch.nonzero(moved)
    assert len(touched) > 0
    assert int((touched - n).abs().max()) <= reach


def test_an_untrained_mixture_says_what_its_trunk_says(tmp_path: Path) -> None:
    """Experts start from nothing, so the mean is that of the one-step model over all flips."""
    network = random_mixture()
    for expert in network.experts:
        torch.nn.init.zeros_(expert.tail.weight)
    paths = tmp_path / "mixture.safetensors", tmp_path / "trunk.safetensors"
    write_weights(paths[0], network, CARD)
    stored = Weights.read(paths[0]).network(torch.device("cpu"))
    assert isinstance(stored, MixtureNetwork)
    write_weights(paths[1], stored.trunk, {**CARD, "kind": "student"})
    image = thick(shape=(56, 64, 48))  # whole tokens: nothing is padded
    one = super_resolve(image, SROptions(model=str(paths[0]), resolution=1.0))
    other = super_resolve(image, SROptions(model=str(paths[1]), resolution=1.0, averaged=True))
    level = np.percentile(other.image.get_fdata(), 99)
    assert np.abs(one.image.get_fdata() - other.image.get_fdata()).max() < 1e-4 * level
    assert np.abs(one.uncertainty.get_fdata() - other.uncertainty.get_fdata()).max() < 1e-4 * level
    sampled = super_resolve(image, SROptions(model=str(paths[0]), resolution=1.0, estimate="sample"))
    assert np.abs(sampled.image.get_fdata() - other.image.get_fdata()).max() > 1e-3 * level


@pytest.mark.parametrize("axes", [(0,), (1, 2)])
def test_a_flipped_scan_gives_the_flipped_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axes: tuple[int, ...]
) -> None:
    """Where the context says nothing: it looks at the image once, and trunk and experts in each flip."""
    network, mixture = random_mixture(), tmp_path / "mixture.safetensors"
    for last in (network.context.to_features, network.context.gate[-1]):
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
    write_weights(mixture, network, CARD)
    looks, see = [], MixtureNetwork.see
    monkeypatch.setattr(MixtureNetwork, "see", lambda *told: looks.append(1) or see(*told))
    image = thick(shape=(56, 64, 48))  # whole tokens: nothing is padded
    flipped = nib.Nifti1Image(np.flip(np.asanyarray(image.dataobj), axes), image.affine)
    one, other = (super_resolve(scan, SROptions(model=str(mixture), resolution=1.0)) for scan in (image, flipped))
    assert len(looks) == 2
    for here, there in ((one.image, other.image), (one.uncertainty, other.uncertainty)):
        level = np.percentile(here.get_fdata(), 99)
        np.testing.assert_allclose(np.flip(there.get_fdata(), axes), here.get_fdata(), atol=2e-3 * level, rtol=0)
    # One sample is drawn in one flip.
    sampled = super_resolve(image, SROptions(model=str(mixture), resolution=1.0, estimate="sample"))
    assert (one.record["Sampling"]["Flips"], sampled.record["Sampling"]["Flips"]) == (8, 1)


@pytest.mark.parametrize("estimate", ["mean", "sample"])
def test_result_does_not_depend_on_the_windows(mixture: Path, monkeypatch: pytest.MonkeyPatch, estimate: str) -> None:
    image = thick(shape=(84, 60, 48))

    def run() -> tuple[np.ndarray, np.ndarray, dict]:
        options = SROptions(model=str(mixture), resolution=1.0, samples=2, estimate=estimate, random_seed=5)
        result = super_resolve(image, options)
        return result.image.get_fdata(), result.uncertainty.get_fdata(), result.record

    whole = run()
    monkeypatch.setattr(windows, "CPU_WINDOW_VOXELS", 200_000)
    parts = run()
    assert whole[2]["Windows"] == 1
    assert parts[2]["Windows"] > 1
    level = np.percentile(whole[0], 99)
    for a, b in zip(whole[:2], parts[:2], strict=True):
        assert np.abs(a - b).max() < 1e-3 * level


def test_gate_does_not_depend_on_the_air_around_the_head(mixture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = thick(shape=(56, 64, 48))

    def in_air(width: int) -> nib.Nifti1Image:
        """Add as many voxels of noise on each side, whole tokens of 8: others would give another, as good gate."""
        added = [round(width / zoom) for zoom in image.header.get_zooms()]
        shape = [n + 2 * extra for n, extra in zip(image.shape, added, strict=True)]
        wide = np.hypot(*np.random.default_rng(0).normal(scale=2.0, size=(2, *shape))).astype(np.float32)
        wide[tuple(slice(n, -n) for n in added)] = np.asanyarray(image.dataobj)
        affine = image.affine.copy()
        affine[:3, 3] -= affine[:3, :3] @ added
        return nib.Nifti1Image(wide, affine)

    def gates(width: int) -> np.ndarray:
        one_flip = SROptions(model=str(mixture), resolution=1.0, estimate="sample", maps=True)
        maps = super_resolve(in_air(width), one_flip).maps
        inner = (slice(width, -width),) * 3
        return np.stack([maps[f"gate-{name}"].get_fdata()[inner] for name in EXPERTS])

    seen = []
    look = Context.forward

    def watched(self: Context, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(cells.shape)
        return look(self, cells)

    monkeypatch.setattr(Context, "forward", watched)
    some, more = gates(40), gates(56)
    half = len(seen) // 2
    assert half > 1  # several patches
    assert seen[:half] == seen[half:]
    assert some.shape == (3, 56, 64, 48)
    assert some.std() > 0.05
    assert np.abs(some - more).mean() < 0.1 * some.std()


def test_methods_text_says_what_was_done(mixture: Path) -> None:
    ways = [Sampling(samples=n, estimate=estimate) for n in (1, 3) for estimate in ("mean", "sample")]
    texts = [get_model(str(mixture)).card.methods_text(way) for way in ways]
    said = (
        "mean image over its eight flips",
        "drew a sample, which is",
        "drew 3 samples, the mean",
        "the first of which",
    )
    for text, words in zip(texts, said, strict=True):
        assert words in text
        assert "{" not in text


@pytest.mark.parametrize(
    ("model", "options", "name"),
    [
        ("cubic", {"samples": 2}, "--samples"),
        ("student", {"maps": True}, "--maps"),
        ("moediff", {"averaged": True}, "--test-time-averaging"),
        ("moediff", {"runtime": "openvino"}, "--runtime"),
    ],
)
def test_options_without_use_are_refused_in_python_too(model: str, options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"model {model} has no use for {name}; take another model"):
        super_resolve(thick(), SROptions(model=model, **options))


def test_report_of_samples_does_not_claim_the_coverage_of_the_mean(mixture: Path) -> None:
    card = {**CARD, "coverage": {"T1w": {"90": 0.9}}, "temperature": {"T1w": 1.0}}
    write_weights(mixture.with_name("checked.safetensors"), Weights.read(mixture).network(torch.device("cpu")), card)
    told = []
    for samples in (1, 2):
        path = str(mixture.with_name("checked.safetensors"))
        options = SROptions(model=path, resolution=2.0, contrast="T1w", samples=samples, threads=1)
        told.append(uncertainty_words(make(SRRecord, super_resolve(thick(), options).record)))
    assert "the 90 % intervals held 90 %" in told[0]
    assert "not checked for its samples" in told[1] and "held" not in told[1]


def test_a_sample_has_the_detail_of_its_contrast(mixture: Path) -> None:
    network = Weights.read(mixture).network(torch.device("cpu"))
    path = mixture.with_name("detail.safetensors")
    write_weights(path, network, {**CARD, "detail": {"all": 0.2, "T1w": 4.0}})
    found = {}
    for contrast in ("T1w", "T2w"):
        options = SROptions(model=str(path), resolution=2.0, contrast=contrast, estimate="sample")
        found[contrast] = super_resolve(thick(), options).record["Sampling"]
    assert [one["DetailShare"] for one in found.values()] == [4.0, 0.2]
    assert found["T1w"]["DetailGain"] > found["T2w"]["DetailGain"]
    assert Weights.read(mixture).detail_share("T1w") == 0.5  # no calibration


def test_calibration_writes_shares_of_the_variance_that_will_be_predicted(mixture: Path) -> None:
    ratios = ErrorRatios.of(np.random.default_rng(0).normal(size=10**5), np.ones(10**5), np.ones(10**5, bool))
    rows = [
        Row(f"sub-{n}", suffix, case, "m", 30, 0.9, gain, 0.1, 1, ratios, temperature, share)
        for n, suffix, case, gain, temperature, share in (
            (1, "T1w", "kspace2", 1.0, 2.0, 0.1),
            (2, "T1w", "kspace2", 2.0, 2.0, 0.2),
            (3, "FLAIR", "slices4k", 3.0, 1.0, 0.6),
        )
    ]
    write_calibration(mixture, rows)
    card = json.loads(mixture.with_suffix(".json").read_text())
    assert card["temperature"] == pytest.approx(dict.fromkeys(("all", "T1w", "FLAIR"), 1.0), abs=0.02)
    expected = {"T1w": 0.4 + 0.2 * 0.4, "FLAIR": 0.6, "all": 0.4 + 0.4 * 0.2}  # the lower fifth
    assert card["detail"] == pytest.approx(expected, rel=0.04)
    assert card["validation"]["kspace2"] | {"gain_psnr_db": 1.5, "cases": ["kspace2"]} == card["validation"]["kspace2"]
    assert card["validation"]["slices4"]["cases"] == ["slices4k"]
    # An acquisition counts once, in however many directions it is.
    shares = {"slices3i": 0.0, "slices3j": 1.0, "slices3k": 5.0}
    many = [attrs.evolve(rows[1], case=case, detail_share=share) for case, share in shares.items()]
    assert detail_of([rows[0], *many], 2.0) == pytest.approx(0.1 + 0.2 * 1.9)


def test_context_in_another_flip_is_the_flipped_context() -> None:
    network, vector = random_mixture(), torch.zeros(1, CONDITIONS)
    channels = torch.rand((1, 4, 16, 24, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        scene = network.look(channels, vector)
        turned = channels.flip(2, 4)
        seen = module._Seen(scene.tokens, gate_weights(scene.logits)).flipped((0, 2))
        there = network.look(turned, vector, (seen.tokens, scene.logits.flip(2, 4)))
        added = scene.features - network.trunk.features(channels, vector)
        added_there = there.features - network.trunk.features(turned, vector)
    torch.testing.assert_close(added_there.flip(2, 4), added, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen.gate, gate_weights(there.logits))
    assert float(added.std()) > 1e-3


def test_a_thin_slab_is_super_resolved(mixture: Path) -> None:
    """Two slices: thinner than a token of the context, beside axes that take several patches."""
    image = brainlike()
    slab = nib.Nifti1Image(image.get_fdata(dtype=np.float32)[:, :, 23:25], image.affine)
    result = super_resolve(slab, SROptions(model=str(mixture), resolution=0.6, estimate="sample", threads=1))
    assert result.image.shape[2] <= 4
    assert np.isfinite(result.image.get_fdata()).all()


def test_context_of_a_large_volume_is_that_of_its_patches() -> None:
    context, generator = random_mixture().context, torch.Generator().manual_seed(0)
    channels = context.cell.get_submodule("conv").in_channels
    cells = torch.randn((1, channels, 24, 16, 16), generator=generator)  # two patches of 16 that share 8 cells
    with torch.no_grad():
        found = context_in_patches(context, cells, 16)
        first, last = context(cells[:, :, :16]), context(cells[:, :, 8:])
    for whole, one, other, side in zip(found, first, last, (4, 2), strict=True):  # cells per token
        assert whole.shape[2] == 24 // side
        torch.testing.assert_close(whole[:, :, : 8 // side], one[:, :, : 8 // side])
        torch.testing.assert_close(whole[:, :, 16 // side :], other[:, :, 8 // side :])
        shared = whole[:, :, 8 // side : 16 // side]
        parts = one[:, :, 8 // side :], other[:, :, : 8 // side]
        low, high = torch.minimum(*parts), torch.maximum(*parts)
        assert ((shared >= low - 1e-5) & (shared <= high + 1e-5)).all()
    small = cells[:, :, :12]  # less than a patch
    with torch.no_grad():
        for whole, one in zip(context_in_patches(context, small, 16), context(small), strict=True):
            assert torch.equal(whole, one)
        thin = context_in_patches(context, cells[:, :, :, :12], 16)
    assert [tuple(part.shape[2:]) for part in thin] == [(6, 3, 4), (12, 6, 8)]
    with pytest.raises(ValueError, match="multiple of 32"):
        ContextShape(patch=40)


def test_seed_and_number_of_samples(mixture: Path) -> None:
    def run(seed: int = 0, **options: object) -> tuple[np.ndarray, np.ndarray, dict]:
        options = {"model": str(mixture), "resolution": 1.0, "random_seed": seed, **options}
        result = super_resolve(thick(shape=SMALL), SROptions(**options))
        return result.image.get_fdata(), result.uncertainty.get_fdata(), result.record

    sample, again, other = run(estimate="sample"), run(estimate="sample"), run(seed=1, estimate="sample")
    assert np.array_equal(sample[0], again[0])
    assert not np.array_equal(sample[0], other[0])
    several = run(estimate="sample", samples=3)  # the image is the first of them, whatever the others find
    assert np.array_equal(several[0], sample[0])
    assert not np.array_equal(several[1], sample[1])
    mean, many = run(), run(samples=10)  # two flips are drawn in twice
    assert np.array_equal(mean[0], run(seed=1)[0])  # the mean is estimated, nothing is drawn
    # Samples scatter around the mean, and their spread widens the intervals.
    assert np.abs(many[0] - mean[0]).mean() < np.abs(sample[0] - mean[0]).mean()
    assert (many[1] >= mean[1] * 0.999).all()
    assert many[1].mean() > 1.01 * mean[1].mean()
    assert many[2]["Sampling"] | {"Samples": 10, "Flips": 8} == many[2]["Sampling"]
    assert mean[2]["Sampling"] == {"Estimate": "mean", "Samples": 0, "Flips": 8, "Steps": 1}


def test_calibration_is_of_the_predicted_error_and_not_of_the_spread(tmp_path: Path) -> None:
    """The spread of samples is in the units of the image already."""
    network, variances = random_mixture(), []
    for factor in (1.0, 2.0):
        path = tmp_path / f"{factor:g}.safetensors"
        write_weights(path, network, {**CARD, "temperature": {"all": factor}})
        stds = [
            super_resolve(thick(shape=SMALL), SROptions(model=str(path), resolution=1.0, samples=n)).uncertainty
            for n in (1, 8)  # in the same flips
        ]
        # Where the network's part is blended out, the noise takes its place.
        mean, many = (np.square(std.get_fdata())[brainlike(shape=SMALL).get_fdata() > 20] for std in stds)
        variances.append((mean, many - mean))
    (mean, spread), (twice, same) = variances
    np.testing.assert_allclose(same, spread, atol=1e-4 * float(mean.max()))
    assert spread.max() > 0.01 * mean.max()
    assert np.median(twice / mean) > 2


def test_a_rule_without_a_sample_is_refused(mixture: Path) -> None:
    with pytest.raises(ValueError, match="rule 'deterministic' has no use"):
        super_resolve(thick(), SROptions(model=str(mixture), rule="deterministic"))

    def run(seed: int) -> np.ndarray:
        options = SROptions(
            model=str(mixture), resolution=1.0, rule="deterministic", estimate="sample", random_seed=seed
        )
        return super_resolve(thick(), options).image.get_fdata()

    assert np.array_equal(run(3), run(3))
    assert not np.array_equal(run(3), run(4))  # the noise that the chain starts from is drawn


def test_experts_without_weight_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = random_mixture()
    last = network.context.gate[-1]
    torch.nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.tensor([3.0, -30.0, 2.0]))
    path = tmp_path / "mixture.safetensors"
    write_weights(path, network, CARD)
    few = super_resolve(thick(), SROptions(model=str(path), resolution=1.0))
    assert few.record["ExpertsEvaluated"] == pytest.approx(2 / 3, abs=1e-3)
    assert few.record["GateShares"]["cortex"] < 1e-6
    # An expert that is evaluated for its map alone does not change the image.
    mapped = super_resolve(thick(), SROptions(model=str(path), resolution=1.0, maps=True))
    assert mapped.record["ExpertsEvaluated"] > few.record["ExpertsEvaluated"]
    assert np.array_equal(mapped.image.get_fdata(), few.image.get_fdata())
    monkeypatch.setattr(module, "GATE_THRESHOLD", -1.0)
    every = super_resolve(thick(), SROptions(model=str(path), resolution=1.0))
    assert every.record["ExpertsEvaluated"] == 1
    np.testing.assert_allclose(few.image.get_fdata(), every.image.get_fdata(), atol=1e-3)


def test_a_map_that_is_given_changes_the_image(mixture: Path) -> None:
    image = thick()
    log_bias = nib.Nifti1Image(np.full(image.shape, 0.2, np.float32), image.affine)
    plain, told = (
        super_resolve(image, SROptions(model=str(mixture), resolution=1.0), guidance=guidance)
        for guidance in ({}, {"log_bias": log_bias})
    )
    assert plain.record["Guidance"] == []
    assert told.record["Guidance"] == ["log_bias"]
    assert not np.array_equal(plain.image.get_fdata(), told.image.get_fdata())
    with pytest.raises(ValueError, match="not trained with the guidance map 'log_jacobian'"):
        super_resolve(image, SROptions(model=str(mixture)), guidance={"log_jacobian": log_bias})


def test_node_passes_on_what_was_asked_and_returns_the_maps(mixture: Path, tmp_path: Path) -> None:
    nib.save(thick(), tmp_path / "scan.nii.gz")
    node = SuperResolve(
        in_file=str(tmp_path / "scan.nii.gz"),
        options=SROptions(model=str(mixture), resolution=1.0, samples=2, estimate="sample", device="cpu"),
        experts=list(EXPERTS),
        memory_gb=0.1,
    )
    outputs = node.run(cwd=str(tmp_path)).outputs
    assert outputs.record["Sampling"] | {"Samples": 2, "Estimate": "sample"} == outputs.record["Sampling"]
    assert [Path(file).name for file in outputs.map_files] == [
        f"{kind}-{name}.nii.gz" for kind in ("gate", "difference") for name in EXPERTS
    ]
    gates = [nib.load(getattr(outputs, f"gate_{name}")).get_fdata() for name in EXPERTS]
    assert gates[0].shape == nib.load(outputs.out_file).shape
    np.testing.assert_allclose(sum(gates), 1, atol=0.01)
    assert "has 0.1 GB" in (tmp_path / "moesr_sr.log").read_text()


def test_cost_of_the_command_is_told_before_it_starts(
    mixture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nib.save(thick(), tmp_path / "scan.nii.gz")
    arguments = ["sr", str(tmp_path / "scan.nii.gz"), str(tmp_path / "out.nii.gz"), "--device", "cpu"]
    assert main([*arguments, "--model", str(mixture), "--resolution", "1"]) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert re.fullmatch(
        r"moesr sr: note: .*mixture.safetensors needs about [\d.]+ GB and about \d+ min on \d+ .*", first
    )
    assert main([*arguments, "--resolution", "1"]) == 0
    assert "needs about" not in capsys.readouterr().err
    assert main([*arguments, "--resolution", "1", "--mem", "100M"]) == 0
    assert re.search(
        r"student may need [\d.]+ GB even in the smallest windows, and has 0.1 GB", capsys.readouterr().err
    )


def test_cost_counts_flips_and_steps(mixture: Path) -> None:
    def seconds(**options: object) -> float:
        return estimate_cost((96, 128, 128), (192, 256, 256), str(mixture), sampling=Sampling(**options))[1]

    one, mean, few, many = seconds(estimate="sample"), seconds(), seconds(samples=8), seconds(samples=16)
    assert one < mean < few < many
    card = get_model(str(mixture)).card
    # Seven flips more for the mean, and as many steps as flips instead of those of a sample and its mean.
    steps = 8 - card.steps_per_sample - 1
    each = 7 * card.flops_per_flip + steps * card.flops_per_step
    assert mean - one == pytest.approx(each * 192 * 256**2 / network_flops(), abs=0.2)
    # Twice the samples need twice the steps, but no flip more.
    steps = 8 * card.steps_per_sample
    assert many - few == pytest.approx(steps * card.flops_per_step * 192 * 256**2 / network_flops(), abs=0.2)


def test_command_writes_gates_and_differences(mixture: Path, tmp_path: Path) -> None:
    nib.save(thick(), tmp_path / "scan.nii.gz")
    (tmp_path / "maps").mkdir()
    arguments = [
        *("sr", str(tmp_path / "scan.nii.gz"), str(tmp_path / "out.nii.gz"), "--model", str(mixture)),
        *("--resolution", "1", "--maps", str(tmp_path / "maps"), "--record", str(tmp_path / "record.json")),
    ]
    assert main(arguments) == 0
    gates, differences = (
        [nib.load(tmp_path / f"maps/{kind}-{name}.nii.gz").get_fdata() for name in EXPERTS]
        for kind in ("gate", "difference")
    )
    np.testing.assert_allclose(sum(gates), 1, atol=0.01)
    # The gated sum of the differences to the gated sum is nothing.
    assert max(np.abs(d).max() for d in differences) > 0.1
    assert np.abs(sum(g * d for g, d in zip(gates, differences, strict=True))).max() < 0.3
    assert json.loads((tmp_path / "record.json").read_text())["GateShares"]


@pytest.mark.parametrize(
    ("model", "option", "value"),
    [
        ("classical", "--samples", "2"),
        ("student", "--estimate", "sample"),
        ("student", "--maps", "."),
        ("MIXTURE", "--test-time-averaging", None),
        ("MIXTURE", "--runtime", "openvino"),
    ],
)
def test_options_that_a_model_has_no_use_for(
    mixture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, option: str, value: str | None
) -> None:
    nib.save(thick(), tmp_path / "scan.nii.gz")
    name = str(mixture) if model == "MIXTURE" else model
    arguments = ["sr", str(tmp_path / "scan.nii.gz"), str(tmp_path / "out.nii.gz"), "--model", name, option]
    assert main([*arguments, *([value] if value else [])]) == 2
    assert f"has no use for {option}" in capsys.readouterr().err
    assert not (tmp_path / "out.nii.gz").exists()


def test_weights_are_half_precision_and_of_their_kind(mixture: Path, tmp_path: Path) -> None:
    weights = Weights.read(mixture)
    assert weights.kind == "moediff"
    size = sum(p.numel() for p in weights.network(torch.device("cpu")).parameters())
    assert mixture.stat().st_size < 2.6 * size + 20_000
    assert get_model(str(mixture)).card.experts == EXPERTS
    facts = json.loads(mixture.with_suffix(".json").read_text())
    mixture.with_suffix(".json").write_text(json.dumps({**facts, "kind": "oracle"}))
    with pytest.raises(ValueError, match="unknown kind 'oracle'"):
        get_model(str(mixture))
    trunk = tmp_path / "trunk.safetensors"
    write_weights(trunk, ResidualNetwork(TRUNK), {})
    assert get_model(str(trunk)).card.experts == ()


def test_steps_are_told_apart() -> None:
    network = random_mixture()
    vector = torch.zeros(1, CONDITIONS)
    early, late = (network.told(vector, torch.tensor([eta])).embedding for eta in (0.999, 0.001))
    assert torch.isfinite(early).all()
    assert float((early - late).detach().abs().max()) > 0.01


def test_packaged_mixture_beats_the_student_and_its_gate_knows_the_tissue(shared_data: Path) -> None:
    truth = next(load_truths(shared_data / "bids", shared_data / "splits.tsv", "validation", ["bert"])).cropped(64)
    case = next(case for case in all_cases() if case.name == "slices4k")
    low = degrade(truth.image, case, 0.02 * truth.level, seed=0)
    student, mixture = (
        super_resolve(low, SROptions(resolution=1.0, model=model, contrast="T1w", threads=1, maps=model == "moediff"))
        for model in ("student", "moediff")
    )
    sharp = truth.image.get_fdata()
    gains = [psnr(sharp, result.image.get_fdata(), truth.mask) for result in (student, mixture)]
    assert gains[1] > gains[0] + 0.02
    path = next((shared_data / "labels" / "aparcaseg" / "sub-bert").glob("**/*_dseg.nii.gz"))
    labels = resample_from_to(nib.load(path), truth.image, order=0).get_fdata()
    ribbon = (labels >= 1000) & (labels < 3000)
    white = ndimage.binary_erosion(np.isin(labels, (2, 41)), iterations=4)
    assert ribbon.sum() > 1000
    assert white.sum() > 1000
    gates = {name: mixture.maps[f"gate-{name}"].get_fdata() for name in EXPERTS}
    assert gates["cortex"][ribbon].mean() > 2 * gates["cortex"][white].mean()
    assert gates["centrum"][white].mean() > 2 * gates["centrum"][ribbon].mean()


def test_packaged_weights_of_models_are_at_most_40_mb() -> None:
    models = [path for path in PACKAGED.iterdir() if path.stem != PACKAGED_SEGMENTER.stem]
    assert sum(path.stat().st_size for path in models) < 40e6
    assert PACKAGED_SEGMENTER.stat().st_size < 8 * 2**20
