"""Training of the mixture: tissue bands, losses, and that gate and experts learn their tissues."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesr_bids.cli.moesr import main
from moesr_bids.sr.models.context import gate_weights
from moesr_bids.sr.models.network import ResidualNetwork
from moesr_bids.sr.weights import Weights, write_weights
from moesr_bids.training import loop
from moesr_bids.training.examples import Batch
from moesr_bids.training.loop import Budget, Trained, train
from moesr_bids.training.mixture_loss import Mixed, MixtureLossWeights, experts_loss, gate_losses, mixture_loss
from moesr_bids.training.objectives import MixtureObjective, objective_of
from moesr_bids.training.recall import GateMemory, gate_inputs
from moesr_bids.training.recipe import Recall, read_recipe, recipe_from
from moesr_bids.training.smoothing import box_mean
from moesr_bids.training.tissue import tissue_bands, tissue_fractions
from moesr_bids.training.volumes import load_volume
from tests.test_sr_moediff import SHAPE, TRUNK, random_mixture
from tests.test_training import TINY, bids, every_band

__all__ = ["bids"]
RECIPE = {**TINY, "kind": "moediff", "network": SHAPE.record(), "loss": {}, "patch": 32, "frozen": ["trunk"]}


def test_tissue_of_freesurfer_labels() -> None:
    labels = np.array([[[0, 2, 41, 251, 3, 42, 24, 1001, 2035, 10, 77]]])
    white, cortex = tissue_fractions(labels)
    assert white.ravel().tolist() == [0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1]
    assert cortex.ravel().tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0]


def test_bands_are_pure_inside_and_junction_between() -> None:
    tissue = torch.zeros(1, 3, 32, 16, 16)
    tissue[:, 0, :14], tissue[:, 1, 14:22] = 1, 1
    bands, confidence = tissue_bands(tissue)
    torch.testing.assert_close(bands.sum(dim=1), torch.ones(1, 32, 16, 16))
    centrum, cortex, junction = bands[0, :, :, 8, 8]
    assert float(centrum[4]) > 0.99
    assert float(junction[14]) > 0.6
    assert float(cortex[18]) > float(junction[18])
    assert float(confidence[0, 0, 4, 8, 8]) > 0.99
    assert float(confidence[0, 0, 29, 8, 8]) < 0.01  # neither


@given(seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_no_loss_is_less_than_that_of_the_truth(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sharp = torch.rand((1, 1, 16, 16, 16), generator=generator)
    start = sharp + 0.05 * torch.randn(sharp.shape, generator=generator)
    place = torch.rand((1, 3, 16, 16, 16), generator=generator).softmax(dim=1)

    def loss(share: float) -> float:
        estimates = (start + share * (sharp - start)).expand(-1, 3, -1, -1, -1)
        return float(experts_loss(estimates, start, sharp, place, 0.1))

    assert loss(1.0) < loss(0.6) < loss(0.0)


def test_gate_follows_the_better_expert_and_the_tissue() -> None:
    errors = torch.full((1, 3, 16, 16, 16), 0.10)
    errors[:, 1, :8], errors[:, 2, 8:] = 0.02, 0.03
    sharp, nothing = torch.ones(1, 1, 16, 16, 16), torch.zeros(1, 1, 16, 16, 16)
    bands = torch.zeros(1, 3, 16, 16, 16)
    bands[:, 0] = 1

    def losses(logits: torch.Tensor, confidence: torch.Tensor) -> dict[str, float]:
        return {k: float(v) for k, v in gate_losses(logits, errors, sharp, bands, confidence).items()}

    right, wrong, first = torch.zeros(1, 3, 4, 4, 4), torch.zeros(1, 3, 4, 4, 4), torch.zeros(1, 3, 4, 4, 4)
    right[:, 1, :2], right[:, 2, 2:] = 3, 3
    wrong[:, 2, :2], wrong[:, 1, 2:] = 3, 3
    first[:, 0] = 3
    assert losses(right, nothing)["gate_error"] < losses(wrong, nothing)["gate_error"]
    assert losses(first, 1 + nothing)["gate_tissue"] < losses(right, 1 + nothing)["gate_tissue"]
    assert losses(right, nothing)["gate_tissue"] == 0
    assert losses(torch.zeros(1, 3, 4, 4, 4), nothing)["balance"] == pytest.approx(0, abs=0.01)
    assert losses(first, nothing)["balance"] > 0.5


def test_errors_of_the_experts_do_not_train_the_experts_by_the_gate() -> None:
    """The image of the gated sum trains experts and gate, what the gate shall learn trains the gate alone."""
    random = torch.Generator().manual_seed(0)
    corrections = torch.randn((1, 3, 16, 16, 16), generator=random)
    sharp, tissue = (torch.rand((1, n, 16, 16, 16), generator=random) for n in (1, 3))

    def gradients(**changes: float) -> tuple[torch.Tensor, torch.Tensor]:
        mixed = Mixed(
            torch.zeros(1, 1, 16, 16, 16),
            corrections.clone().requires_grad_(),
            torch.zeros(1, 3, 4, 4, 4, requires_grad=True),
            torch.zeros(1, 1, 16, 16, 16),
        )
        weights = MixtureLossWeights(**{"experts": 0.0, "diversity": 0.0, **changes})
        total, terms = mixture_loss(mixed, sharp + 0.1, sharp, tissue, weights)
        total.backward()
        assert math.isfinite(total.item())
        assert set(terms) >= {"reconstruction", "experts", "gate_error", "gate_tissue", "balance", "diversity"}
        assert mixed.corrections.grad is not None
        assert mixed.logits.grad is not None
        return mixed.corrections.grad, mixed.logits.grad

    of_experts, of_gate = gradients(gate_error=0.02)
    of_experts_more, of_gate_more = gradients(gate_error=5.0)
    assert float(of_experts.abs().max()) > 0
    assert torch.equal(of_experts_more, of_experts)
    assert not torch.allclose(of_gate_more, of_gate, rtol=0.1)
    untaught, _ = gradients(gate_error=0.0, gate_tissue=0.0, balance=0.0)
    assert torch.equal(untaught, of_experts)


def test_what_lies_in_the_border_does_not_count() -> None:
    torch.manual_seed(0)
    sharp, start, log_scale = (torch.rand(1, 1, 32, 32, 32) for _ in range(3))
    corrections, logits = torch.rand(1, 3, 32, 32, 32), torch.rand(1, 3, 8, 8, 8)
    tissue = torch.rand(1, 3, 32, 32, 32)
    mixed = Mixed(torch.zeros_like(sharp), corrections, logits, log_scale)
    weights = MixtureLossWeights()
    before, _ = mixture_loss(mixed, start, sharp, tissue, weights, border=8)
    other = torch.rand_like(sharp)
    other[..., 8:24, 8:24, 8:24] = sharp[..., 8:24, 8:24, 8:24]
    after, _ = mixture_loss(mixed, start, other, tissue, weights, border=8)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert float(mixture_loss(mixed, start, other, tissue, weights)[0]) != float(before)
    batch = Batch(torch.zeros(1, 4, 32, 32, 32), torch.zeros(1, 12), sharp, tissue, every_band(32))
    sure = gate_inputs(batch, torch.zeros(1, 2, 16, 16, 16), border=8).sure
    assert sure.shape == (1, 1, 8, 8, 8)
    assert float(sure[..., 2:6, 2:6, 2:6].min()) > 0
    assert float(sure.sum()) == pytest.approx(float(sure[..., 2:6, 2:6, 2:6].sum()))


def test_most_steps_are_the_first_that_is_sampled() -> None:
    objective = MixtureObjective(recipe_from(RECIPE))
    same = torch.rand(400, 1, 4, 4, 4)
    channels = torch.cat([same, torch.zeros(400, 3, 4, 4, 4)], dim=1)
    batch = Batch(channels, torch.zeros(400, 12), same, torch.zeros(400, 3, 4, 4, 4), every_band(4, 400))
    state, etas = objective.draw(batch, torch.Generator().manual_seed(3))
    schedule = objective.shape.schedule
    assert set(etas.tolist()) == set(torch.tensor(schedule.etas[1:]).tolist())
    assert 0.5 < float((etas == etas.max()).float().mean()) < 0.8
    for eta in etas.unique():  # nothing is left to find, so the state is noise alone
        spread = float(state[etas == eta].std())
        assert spread == pytest.approx(schedule.kappa * math.sqrt(float(eta)), rel=0.05)
    again, _ = objective.draw(batch, torch.Generator().manual_seed(3))
    torch.testing.assert_close(state, again, rtol=0, atol=0)


def test_one_example_is_learnt_by_heart_and_its_tissue_by_the_gate() -> None:
    torch.manual_seed(0)
    recipe = recipe_from({**RECIPE, "loss": {"gate_tissue": 1.0}})  # a few steps shall be enough
    objective = MixtureObjective(recipe)
    network = objective.build(ResidualNetwork(TRUNK))
    trained = [p for p in network.parameters() if p.requires_grad]
    assert not any(p.requires_grad for p in network.trunk.parameters())
    optimizer = torch.optim.Adam(trained, 3e-3)
    random = torch.Generator().manual_seed(1)
    line = torch.arange(24.0)
    sharp = (0.6 + 0.2 * torch.sin(line / 2))[None, None, :, None, None].expand(1, 1, 24, 24, 24)
    sharp = sharp + 0.02 * torch.randn(sharp.shape, generator=random)
    tissue = torch.zeros(1, 3, 24, 24, 24)
    tissue[:, 0, ..., :12], tissue[:, 1, ..., 12:] = 1, 1
    channels = torch.zeros(1, 4, 24, 24, 24)
    channels[:, 0] = sharp[:, 0] + 0.05 * torch.sin(line)
    batch = Batch(channels, torch.zeros(1, 12), sharp, tissue, every_band(sharp.shape[-1]))

    def error() -> float:
        with torch.no_grad():
            residual = objective.estimator(network)(batch.channels, batch.acquisition)
        return float((batch.start + residual - sharp).square().mean())

    def gate() -> torch.Tensor:
        with torch.no_grad():
            return gate_weights(network.look(batch.channels, batch.acquisition).logits)[0]

    def learnt() -> bool:
        centrum, cortex, junction = gate()
        return (
            error() < 0.5 * before
            and float(centrum[..., :6].mean()) > 2 * float(centrum[..., 18:].mean())
            and float(cortex[..., 18:].mean()) > 2 * float(cortex[..., :6].mean())
            and float(junction[..., 8:16].mean()) > float(junction[..., [0, 1, 22, 23]].mean())
        )

    before = error()
    assert not learnt()
    for step in range(360):
        drawn = objective.draw(batch, torch.Generator().manual_seed(step))
        loss, _ = objective.loss(network, batch, drawn, objective.stage(0.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 30 == 29 and learnt():
            break
    assert learnt()


def _train(bids: Path, folder: Path, steps: int, say: Callable[[str], None] = lambda line: None) -> Trained:
    folder.mkdir(exist_ok=True)
    return train(
        recipe_from({**RECIPE, "recall": {"count": 3, "memory": 4}}),
        folder,
        volumes=[load_volume(bids / "sub-01/anat/sub-01_T1w.nii.gz", [bids / "segmentations"])],
        labels=[],
        held_out=[],
        budget=Budget(steps=steps),
        device=torch.device("cpu"),
        say=say,
    )


def test_the_gate_sees_earlier_examples_again_also_after_a_kill(
    bids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(loop, "_LOG_EVERY", 1)
    whole = _train(bids, tmp_path / "whole", 7).network.state_dict()
    with (tmp_path / "whole/training.tsv").open() as lines:
        recalled = [float(line.split("\t")[-1]) for line in lines if "gate_recalled" in line]
    assert recalled[0] == 0.0  # there is nothing before the first
    assert min(recalled[1:]) > 0.1

    def killed(line: str) -> None:
        if line.startswith("step 4"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(bids, tmp_path / "cut", 7, killed)
    for name, value in _train(bids, tmp_path / "cut", 7).network.state_dict().items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=0)


def test_a_memory_forgets_and_counts_known_tissue_alone() -> None:
    made: list[int] = []

    class Numbered:
        device = torch.device("cpu")

        def batch(self, first: int) -> Batch:
            made.append(first)
            tissue = torch.zeros(2, 3, 8, 8, 8)
            tissue[1, :2] = 0.5 * (first % 4 == 0)
            tissue[:, 2] = 1.0  # lesions alone teach the gate nothing
            return Batch(
                torch.zeros(2, 4, 8, 8, 8),
                torch.zeros(2, 12),
                torch.zeros(2, 1, 8, 8, 8),
                tissue,
                every_band(8, 2),
                first,
            )

    network = random_mixture()
    memory = GateMemory(Numbered(), Recall(count=50, memory=3), first=0, stride=2)
    assert memory.draw(0, network) is None
    found = memory.draw(10, network)
    assert found is not None
    assert set(made) == {8, 6, 4}  # of these, 6 has no known tissue, nor has the first example of any
    assert len(made) == 3
    assert 20 < len(found.cells) < 50
    assert found.bands.shape == (len(found.cells), 3, 2, 2, 2)
    memory.keep(10, None)
    memory.draw(16, network)
    assert set(made[3:]) == {14, 12}
    with pytest.raises(ValueError, match="has no part 'trnk'; its parts are trunk, "):
        objective_of(recipe_from({**RECIPE, "frozen": ["trnk"]})).build(None)
    with pytest.raises(ValueError, match="a recipe of kind student trains none"):
        recipe_from({**TINY, "frozen": ["trunk"]})
    with pytest.raises(ValueError, match="frozen trunk"):
        recipe_from({**RECIPE, "frozen": [], "recall": {"count": 1}})


def test_command_trains_a_mixture_from_a_one_step_network(
    bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yml").write_text(json.dumps(RECIPE))
    earlier = {"sha256": "0", "training": {"minutes": 12.0, "steps": 5}}
    card = {"training": {"minutes": 30.0, "steps": 7}, "started_from": earlier}
    write_weights(tmp_path / "trunk.safetensors", ResidualNetwork(TRUNK), card)
    arguments = [
        *("train", "--data", str(bids), "--labels", str(bids / "labels"), "--out", str(tmp_path / "out")),
        *("--segmentations", str(bids / "segmentations"), "--start", str(tmp_path / "trunk.safetensors")),
        *("--recipe", str(tmp_path / "tiny.yml"), "--participant-label", "01", "--omp-nthreads", "1"),
    ]
    assert main([*arguments, "--validation-label", "02", "--steps", "2"]) == 0
    weights = Weights.read(tmp_path / "out/weights.safetensors")
    assert weights.kind == "moediff"
    assert weights.card["data"]["segmented_scans"] == ["sub-01_T1w"]
    assert weights.card["started_from"]["sha256"] == Weights.read(tmp_path / "trunk.safetensors").sha256
    assert main([*arguments, "--steps", "3"]) == 0  # resumed
    assert Weights.read(tmp_path / "out/weights.safetensors").card["training"]["steps"] == 3
    write_weights(tmp_path / "later.safetensors", ResidualNetwork(TRUNK), card)
    again = [
        *arguments,
        "--out",
        str(tmp_path / "again"),
        "--steps",
        "1",
        "--trunk",
        str(tmp_path / "later.safetensors"),
    ]
    assert main([*again, "--start", str(tmp_path / "out/weights.safetensors")]) == 0
    renewed, later = Weights.read(tmp_path / "again/weights.safetensors"), Weights.read(tmp_path / "later.safetensors")
    known = {key: card[key] for key in ("training", "started_from")}
    assert renewed.card["trunk"] == {"sha256": later.sha256, **known}
    cpu = torch.device("cpu")
    for name, tensor in later.network(cpu).state_dict().items():
        torch.testing.assert_close(renewed.network(cpu).state_dict()[f"trunk.{name}"], tensor)
    assert main([*again, "--start", str(tmp_path / "later.safetensors")]) == 2
    assert "--trunk takes the weights of a one-step network" in capsys.readouterr().err
    assert main(["models", str(tmp_path / "out/weights.safetensors")]) == 0
    assert "after 42 minutes, 12 steps of the weights that it started from" in capsys.readouterr().out
    assert main(["models", str(tmp_path / "again/weights.safetensors")]) == 0
    assert "after 72 minutes, 22 steps of the weights" in capsys.readouterr().out  # what both come from counts once


def test_recipe_of_the_package_is_what_it_says() -> None:
    recipe = read_recipe("moediff")
    assert recipe.kind == "moediff"
    network = objective_of(recipe).build(None)
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"context", "embed_step", "experts", "mix"}  # the trunk is frozen
    gate = objective_of(read_recipe("moediff-gate")).build(None)
    assert {name.split(".")[0] for name, p in gate.named_parameters() if p.requires_grad} == {"context"}
    for wrong in ({"patch": 20}, {"kind": "oracle"}, {"loss": {"magic": 1}}):
        with pytest.raises((ValueError, TypeError)):
            recipe_from({**RECIPE, **wrong})
    with pytest.raises(ValueError, match="the context sees patches of 32 voxels"):
        recipe_from({**RECIPE, "patch": 64})
    with pytest.raises(ValueError, match="starts from the weights of a one-step network"):
        objective_of(recipe_from(TINY)).build(MixtureObjective(recipe_from(RECIPE)).build(None))


def test_mean_over_a_cube_is_that_of_pooling() -> None:
    volume = torch.randn((2, 3, 9, 12, 10), generator=torch.Generator().manual_seed(0))
    pooled = torch.nn.functional.avg_pool3d(volume, 5, stride=1, padding=2, count_include_pad=False)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(box_mean(volume, 5), pooled)
