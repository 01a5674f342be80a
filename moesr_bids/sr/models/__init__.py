"""Registry of the models: each turns an acquired image into an image on the target grid.

A model is a function of a :class:`.base.Problem`, registered under its name together with its card. A new model adds an
entry here and nothing elsewhere. The path of a ``.safetensors`` file is a model as well, of the kind that its card
names. PyTorch is imported when a model is looked up, not with this package: command lines and scheduler workers need
only names.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtimes import RUNTIMES
from ..sampling import ESTIMATES, RULES, Sampling
from ..weights import PACKAGED, SUFFIX, Weights

if TYPE_CHECKING:
    from .base import Model

DEFAULT_MODEL = "student"
_LEARNED = (DEFAULT_MODEL, "moediff")
_KINDS = ("student", "moediff")
_PLAIN = ("classical", "cubic")
EXPERTS = ("centrum", "cortex", "junction")
"""Experts of a mixture in the order of its gate: deep white matter (centrum semiovale), cortex, grey-white junction."""
EXPERT_MAPS = ("gate", "difference")
"""Maps of each expert, see :attr:`.base.Reconstruction.maps`."""


def model_names() -> tuple[str, ...]:
    """Names of the registered models, the default first."""
    return tuple(sorted(_LEARNED + _PLAIN, key=lambda name: name != DEFAULT_MODEL))


def weights_path(name: str) -> Path | None:
    """Path of the weights of a model; None for models without weights.

    Raises
    ------
    ValueError
        If no model has this name.
    """
    if name.endswith(SUFFIX):
        return Path(name)
    if name in _LEARNED:
        return PACKAGED / f"{name}{SUFFIX}"
    if name in _PLAIN:
        return None
    raise ValueError(
        f"unknown model {name!r}: one of {', '.join(model_names())}, or the path of a {SUFFIX} file of moesr train"
    )


def weights_sha256(name: str) -> str:
    """SHA-256 of the weights of a model; ``n/a`` for models without weights.

    Raises
    ------
    ValueError
        If no model has this name, or its weights cannot be used.
    """
    path = weights_path(name)
    return Weights.read(path).sha256 if path else "n/a"


def refuse_unused(
    name: str,
    *,
    averaged: bool = False,
    runtime: str = RUNTIMES[0],
    sampling: Sampling | None = None,
    maps: bool = False,
    uncertainty: bool = False,
) -> None:
    """Refuse options that a model has no use for.

    Raises
    ------
    ValueError
        If such an option is given; the message names it as on the command line.
    """
    sampling = sampling or Sampling()
    given = {
        "--uncertainty": uncertainty,
        "--test-time-averaging": averaged,
        "--runtime": runtime != RUNTIMES[0],
        "--samples": sampling.samples > 1,
        "--estimate": sampling.estimate != ESTIMATES[0],
        "--maps": maps,
    }
    if sampling.rule != RULES[0] and not sampling.drawn:
        raise ValueError(f"no sample is drawn, so rule {sampling.rule!r} has no use; leave it out or ask for samples")
    if not any(given.values()):
        return
    card = get_model(name).card
    useful = {"--uncertainty": card.uncertainty, "--test-time-averaging": card.one_step, "--runtime": card.one_step}
    for option, asked in given.items():
        if asked and not useful.get(option, bool(card.experts)):
            raise ValueError(f"model {name} has no use for {option}; take another model or leave it out")


def get_model(name: str) -> Model:
    """Look up a model by its name, or by the path of its weights.

    Raises
    ------
    ValueError
        If no model has this name, or its weights cannot be used.
    """
    path = weights_path(name)
    if path is None:
        model: Model = import_module(f"{__name__}.{name}").MODEL
        return model
    kind = Weights.read(path).kind
    if kind not in _KINDS:
        raise ValueError(f"weights {path}: of an unknown kind {kind!r}; one of {', '.join(_KINDS)}")
    build: Callable[[str, Path], Model] = getattr(import_module(f"{__name__}.{kind}"), kind)
    return build(path.name.removesuffix(SUFFIX), path)
