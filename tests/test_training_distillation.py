"""Distillation: stages from smooth to sharp, hints by an adapter that is not kept, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from moesr_bids.cli.moesr import main
from moesr_bids.sr.models.acquisition import CONDITIONS
from moesr_bids.sr.models.mixture import MixtureNetwork, parameters
from moesr_bids.sr.models.network import NetworkShape, ResidualNetwork
from moesr_bids.sr.weights import Weights, write_weights
from moesr_bids.training.distillation import (
    LARGEST_SHARE,
    ONE_STAGE,
    DistillationLossWeights,
    Pupil,
    distillation_loss,
    teach,
)
from moesr_bids.training.examples import Batch
from moesr_bids.training.objectives import objective_of
from moesr_bids.training.recipe import read_recipe, recipe_from
from tests.test_sr_moediff import CARD, random_mixture
from tests.test_training import TINY, bids, every_band

__all__ = ["bids"]
STAGES = [{"name": "smooth", "until": 0.5, "blur": 3.0}, {"name": "sharp", "until": 1.0, "blur": 0.0}]
LOSS = {"teacher": 0.5, "hints": 0.1, "stages": STAGES}
NO_FLIPS = torch.zeros(3, dtype=torch.bool)
NO_TISSUE = torch.zeros(1, 3, 24, 24, 24)
STUDENT = NetworkShape(channels=4, blocks=1, embedding=4)
RECIPE = {**TINY, "kind": "distill", "network": STUDENT.record(), "loss": LOSS, "patch": 24}


def examples(channels: torch.Tensor, vector: torch.Tensor, sharp: torch.Tensor) -> Batch:
    """Batch of unknown tissue."""
    return Batch(channels, vector, sharp, NO_TISSUE, every_band(24))


def test_targets_go_from_smooth_to_sharp() -> None:
    """What is finer than a stage demands does not count there, and the whole of the teacher does in the last."""
    torch.manual_seed(0)
    teacher, student = random_mixture(), ResidualNetwork(STUDENT)
    pupil = Pupil(student, teacher)
    channels, vector = torch.rand(1, 4, 24, 24, 24), torch.zeros(1, CONDITIONS)
    start = channels[:, :2].sum(dim=1, keepdim=True)
    residual, features = teach(teacher, channels, vector, NO_FLIPS)
    assert features.shape == (1, 8, 12, 12, 12)
    weights = DistillationLossWeights(**LOSS)
    assert [weights.stage(share).name for share in (0.0, 0.49, 0.5, 1.0)] == ["smooth", "smooth", "sharp", "sharp"]

    def teacher_loss(taught: torch.Tensor, share: float) -> float:
        terms = distillation_loss(
            pupil, examples(channels, vector, start + 0.1), (taught, features), weights, weights.stage(share)
        )[1]
        return float(terms["teacher"])

    # The student is untrained and says nothing, so the loss is that of the target itself.
    assert teacher_loss(torch.zeros_like(residual), 0.0) == pytest.approx(0, abs=1e-6)
    detail = torch.zeros_like(residual)
    detail[..., ::2], detail[..., 1::2] = 0.1, -0.1
    assert teacher_loss(detail, 0.0) < 0.05 * teacher_loss(detail, 0.9)
    even = torch.full_like(residual, 0.1)
    assert teacher_loss(even, 0.0) == pytest.approx(teacher_loss(even, 0.9), rel=1e-3)


def test_teacher_sees_the_batch_flipped() -> None:
    """Its estimate of a flipped image, flipped back; its features, and what its context sees, stay as they are."""
    torch.manual_seed(0)
    teacher, channels, vector = random_mixture(), torch.rand(1, 4, 16, 16, 16), torch.zeros(1, CONDITIONS)
    flips = torch.tensor([True, False, True])
    residual, features = teach(teacher, channels, vector, flips)
    plain, plain_features = teach(teacher, channels, vector, NO_FLIPS)
    scene = teacher.look(channels, vector)
    seen = scene.tokens.flip(2, 4), scene.logits.flip(2, 4)
    other = teacher.mean(teacher.look(channels.flip(2, 4), vector, seen), vector)
    torch.testing.assert_close(residual, other.flip(2, 4))
    assert not torch.allclose(residual, plain)
    torch.testing.assert_close(features, plain_features)


@pytest.mark.parametrize("kind", ["student", "distill"])
def test_what_lies_in_the_border_of_an_example_does_not_count(kind: str) -> None:
    torch.manual_seed(0)
    teacher = random_mixture() if kind == "distill" else None
    settings = RECIPE if kind == "distill" else {**TINY, "patch": 24}
    objective = objective_of(recipe_from({**settings, "border": 4}), teacher)
    network = objective.build(None)
    channels, sharp = torch.rand(1, 4, 24, 24, 24), torch.rand(1, 1, 24, 24, 24)
    other = torch.rand_like(sharp)
    other[..., 4:20, 4:20, 4:20] = sharp[..., 4:20, 4:20, 4:20]

    def terms(truth: torch.Tensor) -> dict[str, float]:
        batch = examples(channels, torch.zeros(1, CONDITIONS), truth)
        drawn = objective.draw(batch, torch.Generator().manual_seed(0))
        return {name: float(value) for name, value in objective.loss(network, batch, drawn, ONE_STAGE)[1].items()}

    assert terms(other) == terms(sharp)
    other[..., 12, 12, 12] += 1
    assert terms(other) != terms(sharp)


def test_hints_and_teacher_reach_the_student() -> None:
    torch.manual_seed(0)
    teacher = random_mixture()
    pupil = Pupil(ResidualNetwork(STUDENT), teacher)
    channels, vector = torch.rand(1, 4, 24, 24, 24), torch.zeros(1, CONDITIONS)
    start = channels[:, :2].sum(dim=1, keepdim=True)
    taught = teach(teacher, channels, vector, NO_FLIPS)
    optimizer = torch.optim.Adam(pupil.parameters(), 1e-2)
    weights, history = DistillationLossWeights(**LOSS), []
    for _ in range(120):
        loss, terms = distillation_loss(
            pupil, examples(channels, vector, start + taught[0]), taught, weights, weights.stage(0.9)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append({name: float(value) for name, value in terms.items()})
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert history[-1]["hints"] < 0.7 * history[0]["hints"]
    assert history[-1]["teacher"] < history[0]["teacher"]


def test_the_scale_of_the_error_is_learnt_in_full_beside_a_teacher() -> None:
    torch.manual_seed(0)
    teacher, student = random_mixture(), ResidualNetwork(STUDENT)
    channels, vector = torch.rand(1, 4, 24, 24, 24), torch.zeros(1, CONDITIONS)
    taught, grown = teach(teacher, channels, vector, NO_FLIPS), []
    for share in (0.0, 1.0):
        pupil = Pupil(student, teacher)
        student.zero_grad()
        weights = DistillationLossWeights(teacher=share, hints=0.0)
        loss, _ = distillation_loss(
            pupil, examples(channels, vector, channels[:, :1] + 0.1), taught, weights, ONE_STAGE
        )
        loss.backward()
        # The second half of the last layer's outputs are the logarithms of the scale.
        outputs = student.tail.bias.grad.unflatten(0, (STUDENT.kernels, -1))
        grown.append(outputs[:, outputs.shape[1] // 2 :].clone())
    torch.testing.assert_close(*grown)
    assert float(grown[0].abs().max()) > 0


def test_a_student_as_large_as_its_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match="at most a quarter"):
        Pupil(ResidualNetwork(NetworkShape(channels=64, blocks=6, embedding=8)), random_mixture())
    for stages in ([], [{"name": "a", "until": 0.5, "blur": 0.0}], [STAGES[1], STAGES[0]]):
        with pytest.raises(ValueError, match="stages end at rising shares"):
            DistillationLossWeights(stages=stages)


def test_command_distils_and_goes_on(bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yml").write_text(json.dumps(RECIPE))
    teacher = tmp_path / "teacher.safetensors"
    write_weights(teacher, random_mixture(), CARD)
    arguments = [
        *("train", "--data", str(bids), "--out", str(tmp_path / "out"), "--omp-nthreads", "1"),
        *("--recipe", str(tmp_path / "tiny.yml"), "--validation-label", "02"),
    ]
    assert main([*arguments, "--steps", "2"]) == 2
    assert "needs --teacher" in capsys.readouterr().err
    arguments += ["--teacher", str(teacher)]
    assert main([*arguments, "--steps", "2"]) == 0
    assert main([*arguments, "--steps", "3"]) == 0
    weights = Weights.read(tmp_path / "out/weights.safetensors")
    assert weights.kind == "student"
    assert weights.card["training"]["steps"] == 3
    assert weights.card["teacher"]["sha256"] == Weights.read(teacher).sha256
    network = weights.network(torch.device("cpu"))
    assert isinstance(network, ResidualNetwork)  # no adapter
    assert network.shape == STUDENT


def test_recipe_of_the_package_is_what_it_says() -> None:
    recipe = read_recipe("distill")
    assert [stage.name for stage in recipe.loss.stages] == ["smooth", "medium", "sharp"]
    assert recipe.network == read_recipe("student").network
    teacher = MixtureNetwork(read_recipe("moediff").network)
    assert parameters(ResidualNetwork(recipe.network)) <= LARGEST_SHARE * parameters(teacher)
    assert recipe_from(json.loads(json.dumps(recipe.record()))) == recipe
    assert recipe_from(json.loads(json.dumps(read_recipe("moediff").record()))) == read_recipe("moediff")
