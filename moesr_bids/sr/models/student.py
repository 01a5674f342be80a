"""The model ``student``: one step of a residual network over the interpolated image."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from ..precision import fast_dtype
from ..projection import bounding_box
from ..runtimes import features_of
from ..weights import Weights
from ..windows import largest_window, plan_windows
from .acquisition import GUIDANCE
from .base import Model, ModelCard, Problem, Reconstruction
from .inputs import FLIPS, Inputs
from .layers import FACTOR
from .network import INPUTS, FoldedNetwork, NetworkOutput, NetworkShape, ResidualNetwork, network_cells, network_output

_METHODS = (
    "A three-dimensional residual network, trained on simulated acquisitions of sharp scans and told the point-spread "
    "function and the noise of this one, predicted the image and a standard deviation of its error in each voxel. The "
    "image was then projected onto the acquired data."
)
_TRANSLATED = (
    "A three-dimensional residual network, trained on pairs of real scans of the same heads by two protocols, "
    "translated the image into the contrast and resolution of the other protocol: the result is a synthesis, and was "
    "not projected onto the acquired data."
)
_ACTIVATIONS = 2.7  # volumes of the network's hidden channels in memory at a time; measured, as the next two
_BYTES_PER_VOXEL = 22  # of the target grid
_BYTES_PER_WINDOW_VOXEL = 38  # beside them, in whatever precision


def student(name: str, path: Path) -> Model:
    """Build the model of a weights file.

    Raises
    ------
    ValueError
        If the weights cannot be used.
    """
    weights = Weights.read(path)
    shape = weights.shape(NetworkShape)
    card = ModelCard(
        "one-step residual network",
        methods=_TRANSLATED if weights.synthesis else _METHODS,
        projected=not weights.synthesis,
        synthesis=weights.synthesis,
        weights_sha256=weights.sha256,
        uncertainty=True,
        one_step=True,
        guidance=tuple(weights.card.get("guidance", ())),
        iterations=2,
        bytes_per_voxel=_BYTES_PER_VOXEL,
        window_bytes_per_voxel=_bytes_per_voxel(shape, fast_dtype(torch.device("cpu"))),
        flops_per_voxel=flops_per_voxel(shape),
    )
    return Model(name, card, partial(reconstruct, weights))


def flops_per_voxel(shape: NetworkShape) -> float:
    """Return the floating-point operations of the network per voxel of its window."""
    cells = FACTOR**3
    body = 2 * shape.blocks * shape.channels * shape.hidden
    ends = shape.channels * cells * (INPUTS + 1 + len(GUIDANCE)) + shape.channels * cells * 2
    return 2 * 27 * (body + ends) / cells


def _bytes_per_voxel(shape: NetworkShape, dtype: torch.dtype) -> int:
    """Peak memory of the network per voxel of a window: inner volumes, and volumes of the target grid."""
    return round(_ACTIVATIONS * shape.hidden * dtype.itemsize / FACTOR**3 + _BYTES_PER_WINDOW_VOXEL)


def reconstruct(weights: Weights, problem: Problem) -> Reconstruction:
    """Interpolate the scan, predict the residual inside the head, and add it with the correction by the data."""
    device = problem.acquired.device
    inputs = Inputs.of(problem, FACTOR)
    network = weights.network(device)
    assert isinstance(network, ResidualNetwork)
    calibration = weights.calibration(problem.contrast)
    dtype = fast_dtype(device)
    folded = FoldedNetwork(network, inputs.acquisition)
    features = features_of(problem.runtime, folded, dtype, device)

    def predict(channels: torch.Tensor) -> NetworkOutput:
        return network_output(features(network_cells(channels)), folded.tail)

    windows = plan_windows(
        inputs.image.shape,
        bounding_box(inputs.head > 0),
        halo=network.shape.receptive_field,
        largest=largest_window(_bytes_per_voxel(network.shape, dtype), device, problem.window),
        multiple=FACTOR,
    )
    # Outside of the head the error is the noise, which the interpolated image has there.
    std = torch.full_like(inputs.image, problem.sigma)
    out = inputs.image.clone()
    seconds, voxels = 0.0, 0
    for number, window in enumerate(windows):
        weight = inputs.head[window.core]
        if weight.any():
            start = time.perf_counter()
            residual, log_scale = _predict(predict, inputs.channels(window.outer), averaged=problem.averaged)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds, voxels = seconds + time.perf_counter() - start, voxels + window.voxels
            out[window.core].addcmul_(residual[window.inner] + inputs.correction[window.core], weight)
            std[window.core].lerp_(calibration["Temperature"] * log_scale[window.inner].exp(), weight)
        problem.progress("reconstruct", (number + 1) / len(windows))
    facts = {
        "Runtime": problem.runtime,
        "Precision": str(dtype).removeprefix("torch."),
        "Windows": len(windows),
        "NetworkVoxels": voxels,
        "NetworkSeconds": round(seconds, 3),
        "Guidance": sorted(inputs.maps),
        "Flips": len(FLIPS) if problem.averaged else 1,
        "UncertaintyCalibration": calibration,
    }
    return Reconstruction(inputs.unpadded(out), inputs.unpadded(std), facts)


@torch.inference_mode()
def _predict(
    predict: Callable[[torch.Tensor], NetworkOutput], channels: torch.Tensor, *, averaged: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Residual and log scale of a window, averaged over the eight flips if asked for."""
    sums: list[torch.Tensor] = []
    chosen = FLIPS if averaged else FLIPS[:1]
    for flip in chosen:
        axes = tuple(2 + axis for axis in flip)
        output = predict(channels.flip(axes) if axes else channels)
        found = [(part.flip(axes) if axes else part)[0, 0] for part in output]
        sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
    return sums[0] / len(chosen), sums[1] / len(chosen)
