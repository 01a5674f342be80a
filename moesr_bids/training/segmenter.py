"""Objective of the segmentation: network, loss, and validation on heads that are kept out."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import numpy as np
import torch
from monai.losses.dice import DiceLoss
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from ..segmentation.network import Segmenter, SegmenterShape
from ..segmentation.structures import BRAIN, EXTRACEREBRAL, STRUCTURES
from .distillation import Stage
from .examples import Batch
from .head_examples import HeadExamples
from .head_images import RandomImage
from .heads import HeadMap, RandomHead
from .losses import SegmentationLossWeights
from .objectives import Objective, Terms
from .recipe import Recipe

_TISSUES = ("cortex", "white matter", "lateral ventricle", "deep grey matter", "cerebellum", "brainstem")
STILL = RandomHead(size=(1.0, 1.0), stretch=0.0, tilt=0.0, turned=0.0, displacement=(1e-3, 2e-3), shift=0.0)
"""A head as its map has it."""
_PLAIN = RandomImage(
    lesions=0.0,
    cavity=0.0,
    bare=0.0,
    defaced=0.0,
    air=0.0,
    cut=0.0,
    thick=0.0,
    shading=0.0,
    natural=1.0,
    texture=(0.03, 0.04),
    in_plane=(1.0, 1.01),
    noise=(0.01, 0.02),
)
_MILD = attrs.evolve(_PLAIN, shading=0.2, noise=(0.02, 0.04))
CASES: dict[str, RandomImage] = {
    "plain": _MILD,
    "slices": attrs.evolve(_MILD, thick=1.0, slices=(4.0, 6.0)),
    "stripped": attrs.evolve(_MILD, bare=1.0),
}
"""How heads that are kept out are drawn for validation. A head with a scan is validated on the scan alone."""


class _Case(NamedTuple):
    name: str
    image: torch.Tensor
    truth: NDArray[np.uint8]
    brain: NDArray[np.bool_]


class SegmentationObjective(Objective):
    """Objective of the segmentation: the classes of synthetic heads."""

    def __init__(self, recipe: Recipe) -> None:
        assert isinstance(recipe.network, SegmenterShape) and isinstance(recipe.loss, SegmentationLossWeights)
        self.shape, self.weights, self.patch = recipe.network, recipe.loss, recipe.patch
        self.dice = DiceLoss()
        self._cases: list[_Case] | None = None

    def build(self, start: nn.Module | None) -> Segmenter:
        """Make the network, from the weights of another if one is given."""
        network = Segmenter(self.shape)
        if start is not None:
            if not isinstance(start, Segmenter) or start.shape != self.shape:
                raise ValueError("a segmentation starts from the weights of a segmentation of the same sizes")
            network.load_state_dict(start.state_dict())
        return network

    def loss(
        self, network: nn.Module, batch: Batch, drawn: Sequence[torch.Tensor], stage: Stage
    ) -> tuple[torch.Tensor, Terms]:
        """Compute the loss of the logits against the shares of the classes."""
        del drawn, stage
        logits, truth = network(batch.channels).float(), batch.sharp
        # One softmax for all terms: at full resolution each costs a tenth of a step.
        log_probability = functional.log_softmax(logits, dim=1)
        probability = log_probability.exp()
        entropy = -(truth * log_probability).sum(dim=1).mean()
        dice = self.dice(probability, truth)
        brain = self.dice(_brain(probability), _brain(truth))
        weights = self.weights
        total = weights.dice * dice + weights.cross_entropy * entropy + weights.brain * brain
        terms = {"loss": total, "dice": dice, "cross_entropy": entropy, "brain": brain}
        return total, {name: value.detach() for name, value in terms.items()}

    def product(self, network: nn.Module) -> Any:
        """Return the network."""
        assert isinstance(network, Segmenter)
        return network

    @torch.no_grad()
    def validate(
        self, network: nn.Module, held_out: Sequence[Any], *, margin: int, device: torch.device
    ) -> dict[str, float]:
        """Measure Dice coefficients of brain and tissues on fixed images of each head; both sides are averaged."""
        del margin
        if self._cases is None:
            self._cases = [case for head in held_out for case in self._draw(head)]
        found: dict[str, float] = {}
        for case in self._cases:
            logits = network(case.image.to(device))[0].float()
            probabilities = logits.softmax(dim=0)
            brain = np.asarray((probabilities[list(BRAIN)].sum(dim=0) >= 0.5).cpu())
            classes = np.asarray(probabilities.argmax(dim=0).cpu())
            found[f"{case.name}_brain"] = _dice(brain, case.brain)
            for tissue in _TISSUES:
                own = [s.index for s in STRUCTURES if s.tissue == tissue]
                each = [_dice(classes == index, case.truth == index) for index in own]
                found[f"{case.name}_{tissue.replace(' ', '-')}"] = float(np.mean(each))
        return found

    def summary(self, values: Mapping[str, float]) -> str:
        """Return the mean Dice coefficients of brain and tissues."""
        names = ("brain", *(tissue.replace(" ", "-") for tissue in _TISSUES))
        return "mean Dice " + ", ".join(f"{name} {_mean(values, name):.3f}" for name in names)

    def _draw(self, head: HeadMap) -> list[_Case]:
        cases, zoom, processor = [], self.shape.zoom, torch.device("cpu")
        drawn = STILL.draw(head, self.patch, zoom, np.random.default_rng(0), processor)
        wanted = {"scan": _PLAIN} if head.image is not None else CASES
        for number, (name, images) in enumerate(wanted.items()):
            rng = np.random.default_rng([number, len(head.name), int(head.classes.sum()) % 9973])
            example = images.draw(drawn, zoom, rng, real=float(head.image is not None))
            brain = np.asarray(example.classes[list(BRAIN)].sum(dim=0) >= 0.5)
            truth = np.asarray(example.classes.argmax(dim=0), dtype=np.uint8)
            cases.append(_Case(f"{head.name}_{name}", example.image[None], truth, brain))
        return cases


def segmentation_parts(
    recipe: Recipe, heads: Sequence[Any], *, seed: int, device: torch.device
) -> tuple[HeadExamples, SegmentationObjective]:
    """Make examples and objective for a training of the segmentation."""
    return HeadExamples(heads, recipe, seed=seed, device=device), SegmentationObjective(recipe)


def _brain(shares: torch.Tensor) -> torch.Tensor:
    """Share of the brain, (batch, 1, i, j, k), of the shares of all classes: what is neither air nor extracerebral."""
    return 1 - shares[:, : EXTRACEREBRAL + 1].sum(dim=1, keepdim=True)


def _dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


def _mean(values: Mapping[str, float], ending: str) -> float:
    some = [value for name, value in values.items() if name.endswith(f"_{ending}")]
    return sum(some) / len(some) if some else float("nan")


def dice_curve(log: Path) -> list[dict[str, float]]:
    """Mean Dice of the brain at each validation of a training, from its log: ``step``, ``minutes``, ``brain_dice``."""
    found: dict[int, list[tuple[float, float]]] = {}
    with log.open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            if row["kind"] == "validation" and row["name"].endswith("_brain"):
                found.setdefault(int(row["step"]), []).append((float(row["minutes"]), float(row["value"])))
    return [
        {
            "step": step,
            "minutes": round(values[0][0], 1),
            "brain_dice": round(sum(value for _, value in values) / len(values), 4),
        }
        for step, values in found.items()
    ]
