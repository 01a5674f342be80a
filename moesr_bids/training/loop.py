"""The training loop: one process or several (torchrun), limited in time, resumable to the step.

A resumed training sees the same examples as an uninterrupted one. On a CPU its results are the same too; a GPU chooses
its algorithms by their speed, and its rounding differs from run to run.
"""

from __future__ import annotations

import copy
import csv
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import field, frozen
from safetensors import safe_open
from safetensors.torch import save
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter

from ..atomic import temporary_beside
from .examples import Batch, Examples
from .gradients import Gradients, gradients_of
from .head_examples import HeadExamples
from .heads import HeadMap
from .objectives import Objective, objective_of
from .pairs import PairedScan
from .recall import GateMemory
from .recipe import Recipe, recipe_from
from .segmenter import segmentation_parts
from .synthesis import LabelMap
from .team import Team
from .volumes import TrainingVolume

if TYPE_CHECKING:
    from ..sr.weights import Network

_INTERRUPTED = 2.0  # beyond any share of a run
_FINAL_RATE = 0.02  # of the learning rate
_LOG_EVERY = 100
_SAVE_SECONDS = 120.0
STATE = "state.safetensors"
LOG = "training.tsv"


@frozen(kw_only=True)
class Budget:
    """When a run ends: after ``minutes``, or at step ``steps``.

    With both, ``steps`` is the length of the whole training, and ``minutes`` that of one run, which can be resumed.
    """

    minutes: float | None = None
    steps: int | None = None

    def share(self, step: int, seconds: float) -> float:
        """Share of the training that is done, 0 to 1."""
        if self.steps:
            return min(1.0, step / self.steps)
        return min(1.0, seconds / (60 * self.minutes)) if self.minutes else 0.0

    def interrupted(self, seconds: float) -> bool:
        """Whether the minutes of this run are over before the steps of the training."""
        return bool(self.steps and self.minutes and seconds > 60 * self.minutes)


@frozen(kw_only=True)
class Origin:
    """Weights that a training starts from or learns from.

    Parameters
    ----------
    weights
        SHA-256 of their files, by the option that names them (``start``, ``teacher``); a resumed training needs the
        same.
    participants
        Participants that they were trained on.
    """

    weights: Mapping[str, str] = field(factory=dict)
    participants: Set[str] = frozenset()


@frozen(kw_only=True)
class Trained:
    """Result of a run: averaged weights and facts for their card; ``participants`` are all who were ever trained on."""

    network: Network
    recipe: Recipe
    steps: int
    minutes: float
    gains: dict[str, float]
    participants: list[str]


def learning_curve(folder: Path) -> list[dict[str, float]]:
    """Mean gain of each validation of a training, from its log: ``step``, ``minutes``, ``gain_db``."""
    found: dict[int, list[tuple[float, float]]] = {}
    with (folder / LOG).open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            if row["kind"] == "validation":
                found.setdefault(int(row["step"]), []).append((float(row["minutes"]), float(row["value"])))
    return [
        {
            "step": step,
            "minutes": round(values[0][0], 1),
            "gain_db": round(sum(gain for _, gain in values) / len(values), 3),
        }
        for step, values in found.items()
    ]


def train(
    recipe: Recipe,
    folder: Path,
    *,
    volumes: Sequence[TrainingVolume],
    labels: Sequence[LabelMap] | Sequence[HeadMap],
    held_out: Sequence[TrainingVolume | PairedScan] | Sequence[HeadMap],
    budget: Budget,
    device: torch.device,
    pairs: Sequence[PairedScan] = (),
    seed: int = 0,
    start: nn.Module | None = None,
    teacher: nn.Module | None = None,
    origin: Origin | None = None,
    workers: int = 0,
    validate_minutes: float = 10.0,
    say: Any = print,
) -> Trained:
    """Train, or go on with what is in ``folder``.

    Parameters
    ----------
    recipe
        Settings; a resumed training needs the same.
    folder
        Existing folder of the state (``state.safetensors``), the log (``training.tsv``) and TensorBoard's events.
    volumes, labels
        Training data.
    held_out
        Volumes, pairs or heads of other participants, for validation.
    budget
        When to stop. The learning rate falls towards its end. A killed run continues where it was saved, with the time
        that it had left. After a run that ended, a new one begins, and the rate warms up again.
    device
        Device to train on; one GPU per process under torchrun.
    pairs
        Pairs of real scans that are trained on as well.
    seed
        Seed of the weights and of all examples.
    start
        Network that a new training starts from; the recipe's network may be larger.
    teacher
        Network that a distillation learns from.
    origin
        Where ``start`` and ``teacher`` come from.
    workers
        Number of processes that plan examples ahead.
    validate_minutes
        Minutes between two validations.
    say
        Called with a line of text now and then.

    Returns
    -------
    Trained
        Averaged weights and facts for their card.

    Raises
    ------
    ValueError
        If the folder holds a training with another recipe, seed or origin; if a participant of ``held_out`` was trained
        on, here or by the weights of ``origin``; if ``start`` or ``teacher`` does not fit the recipe; if a weight is
        no longer finite.
    ImageError
        If the scans of a pair share no cube of the recipe's size.
    """
    team = Team.join(device)
    try:
        examples: Examples | HeadExamples
        objective: Objective
        if recipe.kind == "segmentation":
            examples, objective = segmentation_parts(recipe, labels, seed=seed, device=team.device)
        else:
            examples, objective = _parts(recipe, volumes, labels, pairs, seed, team, teacher)
        run = _Run(recipe, folder, team, seed, start, objective, origin or Origin())
        names = [source.name for source in (*volumes, *labels, *pairs)]
        run.know(set(map(_participant, names)), {_participant(volume.name) for volume in held_out})
        with torch.backends.cudnn.flags(benchmark=True):  # all batches have one shape
            trained = run.loop(examples, held_out, budget, workers, validate_minutes, say)
        team.wait()
        return trained
    finally:
        team.leave()


def _parts(
    recipe: Recipe,
    volumes: Sequence[TrainingVolume],
    labels: Sequence[Any],
    pairs: Sequence[PairedScan],
    seed: int,
    team: Team,
    teacher: nn.Module | None,
) -> tuple[Examples, Objective]:
    """Examples and objective of a super-resolution."""
    examples = Examples(volumes, labels, recipe, seed=seed, device=team.device, pairs=pairs)
    memory = None
    if recipe.recall.count:
        first, stride = team.rank * recipe.batch, team.size * recipe.batch
        memory = GateMemory(examples, recipe.recall, border=recipe.border, first=first, stride=stride)
    return examples, objective_of(recipe, None if teacher is None else teacher.to(team.device), memory)


def _participant(name: str) -> str:
    return name.split("_", 1)[0]


class _Run:
    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        team: Team,
        seed: int,
        start: nn.Module | None,
        objective: Objective,
        origin: Origin,
    ) -> None:
        self.recipe, self.folder, self.team = recipe, folder, team
        torch.manual_seed(seed)
        self.seed, self.objective, self.origin = seed, objective, origin
        self.network = self.objective.build(start).to(team.device)
        self.network = self.network.to(memory_format=torch.channels_last_3d).train()  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        trained = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
        self.step, self.seconds, self.first_step = 0, 0.0, 0
        self.batches = 0  # that were drawn: some steps take several
        self.spent = 0.0  # seconds of the run that is under way
        self.trained_on = set(origin.participants)
        self.reached = 0.0  # share of the longest run: what is resumed does not go back
        self.board: SummaryWriter | None = None
        if (folder / STATE).is_file():
            self._load()

    def know(self, trained_on: set[str], held_out: set[str]) -> None:
        """Record the participants that are trained on; refuse to validate on them, or on those of the first weights."""
        self.trained_on |= trained_on
        if both := sorted(self.trained_on & held_out):
            raise ValueError(
                f"{self.folder}: {both[0]} was trained on, here or by the weights that this training starts or learns "
                "from, so it cannot tell how good the model is"
            )

    def loop(
        self,
        examples: Examples | HeadExamples,
        held_out: Sequence[TrainingVolume | PairedScan] | Sequence[HeadMap],
        budget: Budget,
        workers: int,
        validate_minutes: float,
        say: Any,
    ) -> Trained:
        recipe, team, begun = self.recipe, self.team, time.monotonic()
        gradients = gradients_of(self.objective, self.network, team.device)
        per_step = recipe.batch * team.size
        batches = examples.batches(self.batches * per_step + team.rank * recipe.batch, per_step, workers)
        before, earlier, saved, validated = self.seconds, self.spent, begun, begun
        sums: dict[str, torch.Tensor] = {}
        counted = 0
        while True:
            self.spent = earlier + time.monotonic() - begun
            share = budget.share(self.step, self.spent)
            share = team.agree(_INTERRUPTED if budget.interrupted(time.monotonic() - begun) else share)
            if share >= 1:
                break
            self._set_rate(share)
            self.reached = max(self.reached, share)
            terms = self._accumulate(gradients, batches)
            team.average_gradients(self.network)
            norm = nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip)
            self.optimizer.step()
            self.step += 1
            counted += 1
            self._average()
            _add_up(sums, {**terms, "gradient_norm": norm})
            self.seconds = before + time.monotonic() - begun
            if team.rank:
                continue
            if self.step % _LOG_EVERY == 0:
                self._log("train", {name: float(total) / counted for name, total in sums.items()}, say)
                sums, counted = {}, 0
            if held_out and time.monotonic() - validated > 60 * validate_minutes:
                self._log("validation", self._validate(held_out), say)
                validated = time.monotonic()
            if time.monotonic() - saved > _SAVE_SECONDS:
                self._require_finite()
                self._save()
                saved = time.monotonic()
        gains: dict[str, float] = {}
        if not team.rank:
            self._require_finite()
            if share != _INTERRUPTED:
                self.first_step, self.spent = self.step, 0.0  # the next run warms up again
            self._save()
            gains = self._validate(held_out)
            self._log("validation", gains, say)
        if self.board is not None:
            self.board.close()
        return Trained(
            network=self.objective.product(self.average),
            recipe=recipe,
            steps=self.step,
            minutes=round(self.seconds / 60, 1),
            gains=gains,
            participants=sorted(self.trained_on),
        )

    def _accumulate(self, gradients: Gradients, batches: Iterator[Batch]) -> dict[str, torch.Tensor]:
        """Leave the gradients of a step at the parameters: the mean over its batches."""
        count = self.recipe.accumulate if self.reached >= self.recipe.accumulate_from else 1
        kept: list[torch.Tensor] = []
        for number in range(count):
            batch = next(batches)
            self.batches += 1
            generator = torch.Generator().manual_seed(self.seed * 2**32 + batch.first)
            drawn = self.objective.draw(batch, generator)
            terms = gradients(batch, drawn, self.objective.stage(self.reached))
            if count == 1:
                return terms
            found = [p.grad for p in self.network.parameters() if p.grad is not None]
            if not kept:
                kept = [torch.zeros_like(part) for part in found]
            torch._foreach_add_(kept, found, alpha=1 / count)
            if number == count - 1:
                torch._foreach_copy_(found, kept)
        return terms

    def _require_finite(self) -> None:
        """Stop before a state is saved whose weights are not finite: they would never become finite again."""
        # Only before saving: a check at each step would make the CPU wait for the GPU.
        if not all(bool(p.isfinite().all()) for p in self.network.parameters()):
            raise ValueError(
                f"step {self.step}: the weights are not finite any more; {self.folder / STATE} is as it was saved "
                "before. Train with a smaller learning_rate"
            )

    def _set_rate(self, share: float) -> None:
        recipe = self.recipe
        warm = min(1.0, (self.step - self.first_step + 1) / max(1, recipe.warmup))
        left = 1.0 if recipe.decay == 0 else min(1.0, (1 - share) / recipe.decay)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * warm * max((1 - math.cos(math.pi * left)) / 2, _FINAL_RATE)

    @torch.no_grad()
    def _average(self) -> None:
        # Shorter memory at the start, so that the first weights are forgotten.
        keep = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        both = (list(network.parameters()) for network in (self.average, self.network))
        get_ema_multi_avg_fn(keep)(*both, None)

    def _validate(self, held_out: Sequence[Any]) -> dict[str, float]:
        return self.objective.validate(self.average, held_out, margin=self.recipe.margin, device=self.team.device)

    def _log(self, kind: str, values: dict[str, float], say: Any) -> None:
        path = self.folder / LOG
        new = not path.exists()
        with path.open("a", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, delimiter="\t")
            if new:
                writer.writerow(["step", "minutes", "kind", "name", "value"])
            for name, value in values.items():
                writer.writerow([self.step, f"{self.seconds / 60:.2f}", kind, name, f"{value:.5g}"])
        if self.board is None:
            self.board = SummaryWriter(self.folder)
        for name, value in values.items():
            self.board.add_scalar(f"{kind}/{name}", value, self.step)
        if kind == "validation" and values:
            shown = self.objective.summary(values)
        else:
            shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        say(f"step {self.step}, {self.seconds / 60:.1f} min, {kind}: {shown}")

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": torch.as_tensor(value) for key, value in state.items()}
        return {name: tensor.contiguous() for name, tensor in tensors.items()}

    def _save(self) -> None:
        facts = {
            "step": self.step,
            "batches": self.batches,
            "first_step": self.first_step,
            "reached": self.reached,
            "seconds": self.seconds,
            "spent": self.spent,
            "trained_on": sorted(self.trained_on),
            "seed": self.seed,
            "origin": dict(self.origin.weights),
            "recipe": self.recipe.record(),
        }
        with temporary_beside(self.folder / STATE) as path:
            path.write_bytes(save(self._tensors(), metadata={"training": json.dumps(facts)}))

    def _load(self) -> None:
        path = self.folder / STATE
        with safe_open(path, "pt", device=str(self.team.device)) as stored:
            facts = json.loads(stored.metadata()["training"])
            if recipe_from(facts["recipe"]) != self.recipe:
                raise ValueError(f"{path}: was trained with another recipe; use that one or another folder")
            if facts["seed"] != self.seed:
                raise ValueError(f"{path}: has the random seed {facts['seed']}; use that one or another folder")
            if facts["origin"] != self.origin.weights:
                options = sorted({f"--{name}" for name in {**facts["origin"], **self.origin.weights}})
                raise ValueError(
                    f"{path}: comes from other weights; give the same {', '.join(options)} as then, or another folder"
                )
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.network.load_state_dict(part("network."))
        self.average.load_state_dict(part("average."))
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in part("optimizer.").items():
            number, key = name.split(".")
            state.setdefault(int(number), {})[key] = value
        for place, parameter in enumerate(self.optimizer.param_groups[0]["params"]):
            for key, value in state.get(place, {}).items():
                if value.shape == parameter.shape:
                    # A fused step takes parameters and moments as they lie in memory.
                    state[place][key] = torch.empty_like(parameter).copy_(value)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.step, self.first_step, self.seconds = facts["step"], facts["first_step"], facts["seconds"]
        self.batches = facts["batches"]
        self.reached, self.spent = facts["reached"], facts["spent"]
        self.trained_on |= set(facts["trained_on"])


def _add_up(sums: dict[str, torch.Tensor], terms: dict[str, torch.Tensor]) -> None:
    """Add terms to their sums on their device: reading them would make the CPU wait for the GPU."""
    for name, value in terms.items():
        sums[name] = sums[name] + value.detach() if name in sums else value.detach()
