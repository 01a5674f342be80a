"""Registered models: what turns an acquired image into an image of the target grid.

A model is a function of a :class:`Problem` registered under its name together with its card; adding one adds an entry
here and nothing elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from attrs import frozen

from .operator import AcquisitionOperator

Progress = Callable[[str, float], None]
"""Called with the name of the step and the share of it that is done."""


@frozen(eq=False)
class Problem:
    """All that a model may look at.

    Parameters
    ----------
    acquired
        Input image y, float32, on the input grid, divided by ``scale``.
    mask
        Boolean, on the input grid: the brain, or the foreground where no brain mask was given.
    operator
        Acquisition operator; knows both grids and the point-spread function.
    sigma
        Standard deviation of the noise, in the units of ``acquired``.
    seed
        Seed of all random numbers.
    progress
        Told how far the work is.
    """

    acquired: torch.Tensor
    mask: torch.Tensor
    operator: AcquisitionOperator
    sigma: float
    seed: int
    progress: Progress


@frozen
class ModelCard:
    """What a user, a scheduler and a sidecar need to know of a model.

    Parameters
    ----------
    summary
        One line for help texts.
    methods
        Sentences for the methods section of a paper, with citation keys such as ``[@tv]``.
    projected
        Whether the output is projected onto the data; only plain baselines are not.
    weights_sha256
        Hash of the weights, ``n/a`` without any.
    iterations
        Number of applications of A and its adjoint.
    bytes_per_voxel
        Peak memory per voxel of the target grid.
    seconds_per_megavoxel
        Time beside the products with A per million target voxels, one CPU thread.
    """

    summary: str
    methods: str
    projected: bool = True
    weights_sha256: str = "n/a"
    iterations: int = 0
    bytes_per_voxel: int = 24
    seconds_per_megavoxel: float = 0.1


@frozen
class Model:
    """A registered model."""

    name: str
    card: ModelCard
    reconstruct: Callable[[Problem], torch.Tensor]


def _registry() -> dict[str, Model]:
    from . import classical, interpolation

    models = (classical.MODEL, interpolation.MODEL)
    return {model.name: model for model in models}


def model_names() -> tuple[str, ...]:
    """Names of the registered models, the default first."""
    return tuple(_registry())


def get_model(name: str) -> Model:
    """Look up a model.

    Raises
    ------
    ValueError
        If there is none of this name.
    """
    models = _registry()
    if name not in models:
        raise ValueError(f"unknown model {name!r}: one of {', '.join(models)}")
    return models[name]
