"""Recipes: the settings of a training, a small YAML file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from attrs import asdict, field, frozen, validators

from ..segmentation.network import FACTOR as SEGMENTER_FACTOR
from ..segmentation.network import SegmenterShape
from ..sr.models.acquisition import GUIDANCE
from ..sr.models.context import FINE, TOKEN
from ..sr.models.layers import FACTOR
from ..sr.models.mixture import MixtureShape
from ..sr.models.network import NetworkShape
from .acquisition import RandomScan, random_scan
from .distillation import DistillationLossWeights
from .losses import LossWeights, SegmentationLossWeights
from .mixture_loss import MixtureLossWeights

RECIPES = Path(__file__).resolve().parents[1] / "data" / "recipes"

KINDS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "student": (NetworkShape, LossWeights),
    "moediff": (MixtureShape, MixtureLossWeights),
    "distill": (NetworkShape, DistillationLossWeights),
    "segmentation": (SegmenterShape, SegmentationLossWeights),
}
"""Sizes of the network and weights of the loss, for each kind of recipe."""

_share = validators.and_(validators.ge(0.0), validators.le(1.0))
_positive = validators.gt(0)


def _multiple(recipe: Recipe, attribute: Any, value: int) -> None:
    multiple = {"student": FACTOR, "segmentation": SEGMENTER_FACTOR}.get(recipe.kind, TOKEN)
    least = 2 * multiple if recipe.kind == "segmentation" else multiple
    if value < least or value % multiple:
        raise ValueError(f"{attribute.name} is a multiple of {multiple}, at least {least}; got {value}")


def _border(recipe: Recipe, attribute: Any, value: int) -> None:
    if value < 0 or value % FINE or 2 * value >= recipe.patch:
        raise ValueError(f"border is a multiple of {FINE}, less than half of the patch of {recipe.patch}; got {value}")


def _recall(value: Recall | Mapping[str, Any]) -> Recall:
    return Recall(**value) if isinstance(value, Mapping) else value


@frozen
class Recall:
    """How many earlier examples the gate sees again.

    Parameters
    ----------
    count
        Number of earlier steps that are drawn for each step; examples without known tissue among them are skipped.
    memory
        Number of steps that are kept: about 5 MB for each example of 64 voxels per side with known tissue.
    """

    count: int = field(default=0, validator=validators.ge(0))
    memory: int = field(default=256, validator=validators.gt(0))


@frozen(kw_only=True)
class Recipe:
    """Settings of a training; see ``moesr_bids/data/recipes`` for what each of them means."""

    kind: str = field(default="student", validator=validators.in_(KINDS))
    network: NetworkShape | MixtureShape | SegmenterShape
    patch: int = field(validator=_multiple)
    margin: int = field(validator=validators.ge(0))
    border: int = field(default=0, validator=_border)
    batch: int = field(validator=_positive)
    synthetic: float = field(validator=_share)
    paired: float = field(default=0.7, validator=_share)
    simulation: RandomScan = field(factory=RandomScan, converter=random_scan)
    reuse: int = field(validator=_positive)
    lesion_focus: float = field(default=0.0, validator=_share)
    lesions_planted: float = field(default=0.0, validator=_share)
    learning_rate: float = field(validator=_positive)
    weight_decay: float = field(validator=validators.ge(0.0))
    warmup: int = field(validator=validators.ge(0))
    decay: float = field(validator=_share)
    ema: float = field(validator=_share)
    accumulate: int = field(default=1, validator=_positive)
    accumulate_from: float = field(default=0.0, validator=_share)
    clip: float = field(validator=_positive)
    loss: LossWeights | MixtureLossWeights | DistillationLossWeights | SegmentationLossWeights
    frozen: tuple[str, ...] = field(default=(), converter=tuple)
    kept_out: tuple[str, ...] = field(default=(), converter=tuple)
    recall: Recall = field(factory=Recall, converter=_recall)
    guidance: tuple[str, ...] = field(
        default=GUIDANCE, converter=tuple, validator=validators.deep_iterable(validators.in_(GUIDANCE))
    )

    def __attrs_post_init__(self) -> None:
        if self.frozen and self.kind != "moediff":
            raise ValueError(f"frozen names parts of a mixture, and a recipe of kind {self.kind} trains none")
        if self.kept_out and self.kind != "segmentation":
            raise ValueError(f"kept_out names maps of a segmentation, and a recipe of kind {self.kind} trains none")
        if self.recall.count and "trunk" not in self.frozen:
            raise ValueError("recall needs a frozen trunk: what the gate is given again would have changed")
        if isinstance(self.network, MixtureShape) and self.network.context.patch != self.patch:
            seen = self.network.context.patch
            raise ValueError(f"the context sees patches of {seen} voxels, so patch is {seen} too; got {self.patch}")

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON-serialisable facts."""
        return asdict(self)


def read_recipe(name: str) -> Recipe:
    """Read a recipe by its name in the package or by its path; it may name a ``base`` and hold only what differs.

    Raises
    ------
    ValueError
        If there is no such recipe, or a setting is missing, unknown or impossible.
    """
    path = Path(name) if name.endswith((".yml", ".yaml")) else RECIPES / f"{name}.yml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yml")))
        raise ValueError(f"no recipe {name!r}: one of {known}, or the path of a .yml file")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(settings, dict) and "base" in settings:
            base = read_recipe(str(settings.pop("base"))).record()
            settings = {**base, **settings}
        return recipe_from(settings)
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ValueError(f"recipe {path}: {error}") from error


def recipe_from(settings: dict[str, Any]) -> Recipe:
    """Build a recipe from plain settings, as :meth:`Recipe.record` returns them.

    Raises
    ------
    ValueError, TypeError
        If a setting is missing, unknown or impossible.
    """
    if not isinstance(settings, dict):
        raise ValueError("a recipe is a YAML mapping")
    kind = settings.get("kind", "student")
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: one of {', '.join(KINDS)}")
    network, loss = KINDS[kind]
    parts = {"network": network(**settings.get("network", {})), "loss": loss(**settings.get("loss", {}))}
    return Recipe(**{**settings, **parts})
