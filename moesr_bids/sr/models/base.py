"""What all models share: the problem they solve, what they return, and their cards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from attrs import field, frozen

from ..operator import AcquisitionOperator
from ..runtimes import RUNTIMES
from ..sampling import Sampling
from ..windows import CPU_WINDOW_VOXELS

Progress = Callable[[str, float], None]
"""Called with the name of the step and the share of it that is done."""


def silent(step: str, share: float) -> None:
    """Ignore the progress."""
    del step, share


@frozen(eq=False)
class Problem:
    """All that a model may look at.

    Parameters
    ----------
    acquired
        Input image y, float32, on the input grid, divided by its 99th percentile inside the mask.
    mask
        Boolean, on the input grid: the brain, or the foreground where no brain mask was given.
    operator
        Acquisition operator; knows both grids and the point-spread function.
    sigma
        Standard deviation of the noise, in the units of ``acquired``.
    seed
        Seed of all random numbers.
    progress
        Called with the name of the step and the share of it that is done.
    guidance
        Maps on the input grid by name (:data:`.acquisition.GUIDANCE`). An absent map is unknown, not zero.
    contrast
        BIDS suffix of the image, for the calibration of the uncertainty; empty where unknown.
    averaged
        Whether a one-step model averages over the eight flips of the image.
    runtime
        What runs the convolutions of a one-step model (:data:`..runtimes.RUNTIMES`).
    sampling
        How a diffusion model is sampled.
    maps
        Whether a mixture of experts returns its gate and difference maps.
    window
        Most voxels of a window on a CPU.
    """

    acquired: torch.Tensor
    mask: torch.Tensor
    operator: AcquisitionOperator
    sigma: float
    seed: int
    progress: Progress
    guidance: Mapping[str, torch.Tensor] = field(factory=dict)
    contrast: str = ""
    averaged: bool = False
    runtime: str = RUNTIMES[0]
    sampling: Sampling = field(factory=Sampling)
    maps: bool = False
    window: int = CPU_WINDOW_VOXELS


@frozen(eq=False)
class Reconstruction:
    """What a model returns.

    Parameters
    ----------
    image
        float32 on the target grid, in the units of :attr:`Problem.acquired`.
    std
        Standard deviation of the error of ``image``, same shape and units; None if the model predicts none.
    facts
        Facts for the sidecar, JSON-serialisable; the engine adds the model's name.
    maps
        Further volumes on the target grid by name, if they were asked for: ``gate-<expert>``, the weight of an expert;
        ``difference-<expert>``, the image that this expert alone would give, minus the image, in its units.
    """

    image: torch.Tensor
    std: torch.Tensor | None = None
    facts: Mapping[str, Any] = field(factory=dict)
    maps: Mapping[str, torch.Tensor] = field(factory=dict)


@frozen
class ModelCard:
    """Facts about a model for users, schedulers and sidecars.

    Parameters
    ----------
    summary
        One line for help texts.
    methods
        Sentences for the methods section of a paper, with citation keys such as ``[@tv]``. ``{estimate}`` in them is
        replaced by :attr:`Sampling.methods`.
    projected
        Whether the output is projected onto the data; plain baselines and syntheses are not.
    synthesis
        Whether the model translates the contrast of its input into another: its image cannot agree with the scan.
    weights_sha256
        Hash of the weights, ``n/a`` without any.
    guidance
        Guidance maps that the model was trained with; it refuses others.
    iterations
        Number of times that A and its adjoint are applied.
    uncertainty
        Whether the model returns a standard deviation.
    bytes_per_voxel
        Peak memory in bytes per voxel of the target grid.
    window_bytes_per_voxel
        Further peak memory in bytes per voxel of the window that a network works on.
    seconds_per_megavoxel
        Seconds per million target voxels on one CPU thread, without the products with A and the network.
    flops_per_voxel
        Floating-point operations of a network per target voxel, once per image.
    flops_per_flip
        The same for each flip of the image that a diffusion model works on.
    flops_per_step
        The same for each step of a diffusion model.
    steps_per_sample
        Steps that a sample takes; the mean takes one in each flip.
    flips
        Number of flips of the image that the mean is estimated in. Samples are drawn in one flip after the other.
    one_step
        Whether the network is applied once; then its runtime can be chosen, and flips can be averaged.
    experts
        Names of the experts, each with a gate map.
    """

    summary: str
    methods: str
    projected: bool = True
    synthesis: bool = False
    weights_sha256: str = "n/a"
    uncertainty: bool = False
    guidance: tuple[str, ...] = ()
    iterations: int = 0
    bytes_per_voxel: int = 24
    window_bytes_per_voxel: int = 0
    seconds_per_megavoxel: float = 0.1
    flops_per_voxel: float = 0.0
    flops_per_flip: float = 0.0
    flops_per_step: float = 0.0
    steps_per_sample: int = 1
    flips: int = 1
    one_step: bool = False
    experts: tuple[str, ...] = ()

    def methods_text(self, sampling: Sampling) -> str:
        """Return the sentences for the methods section of a paper, for a way of sampling."""
        return self.methods.replace("{estimate}", sampling.methods)


@frozen
class Model:
    """A registered model: its name, its card, and the function that reconstructs an image from a problem."""

    name: str
    card: ModelCard
    reconstruct: Callable[[Problem], Reconstruction]
