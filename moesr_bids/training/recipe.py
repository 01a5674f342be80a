"""Recipes: the settings of a training, a small YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from attrs import asdict, field, frozen, validators

from ..sr.models.network import FACTOR, GUIDANCE, NetworkShape
from .losses import LossWeights

RECIPES = Path(__file__).resolve().parents[1] / "data" / "recipes"

_share = validators.and_(validators.ge(0.0), validators.le(1.0))
_positive = validators.gt(0)


def _multiple(_: Any, attribute: Any, value: int) -> None:
    if value < FACTOR or value % FACTOR:
        raise ValueError(f"{attribute.name} is a positive multiple of {FACTOR}, got {value}")


@frozen(kw_only=True)
class Recipe:
    """Settings of a training; see ``moesr_bids/data/recipes/student.yml`` for what each of them means."""

    network: NetworkShape
    patch: int = field(validator=_multiple)
    margin: int = field(validator=validators.ge(0))
    batch: int = field(validator=_positive)
    synthetic: float = field(validator=_share)
    reuse: int = field(validator=_positive)
    learning_rate: float = field(validator=_positive)
    weight_decay: float = field(validator=validators.ge(0.0))
    warmup: int = field(validator=validators.ge(0))
    decay: float = field(validator=_share)
    ema: float = field(validator=_share)
    clip: float = field(validator=_positive)
    loss: LossWeights
    guidance: tuple[str, ...] = field(
        default=GUIDANCE, converter=tuple, validator=validators.deep_iterable(validators.in_(GUIDANCE))
    )

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON-serialisable facts."""
        return asdict(self)


def read_recipe(name: str) -> Recipe:
    """Read a recipe by its name in the package or by its path.

    Raises
    ------
    ValueError
        If there is none, or a setting is missing, unknown or impossible.
    """
    path = Path(name) if name.endswith((".yml", ".yaml")) else RECIPES / f"{name}.yml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yml")))
        raise ValueError(f"no recipe {name!r}: one of {known}, or the path of a .yml file")
    try:
        return recipe_from(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ValueError(f"recipe {path}: {error}") from error


def recipe_from(settings: dict[str, Any]) -> Recipe:
    """Build a recipe from plain settings, as :meth:`Recipe.record` returns them."""
    if not isinstance(settings, dict):
        raise ValueError("a recipe is a YAML mapping")
    parts = {"network": NetworkShape(**settings.get("network", {})), "loss": LossWeights(**settings.get("loss", {}))}
    return Recipe(**{**settings, **parts})
