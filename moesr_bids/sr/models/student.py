"""The student: one step of a residual network over the interpolated image."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from ..interpolation import spline_matrix
from ..operator import AcquisitionOperator, apply_axes, axis_matrix
from ..precision import fast_dtype
from ..projection import bounding_box
from ..psf import AxisPSF
from ..runtimes import features_of
from ..weights import Weights
from ..windows import CPU_WINDOW_VOXELS, Window, plan_windows
from .base import Model, ModelCard, Problem, Reconstruction
from .network import (
    FACTOR,
    GUIDANCE,
    INPUTS,
    FoldedNetwork,
    NetworkOutput,
    NetworkShape,
    acquisition_vector,
    data_correction,
    network_cells,
    network_output,
)

_METHODS = (
    "A three-dimensional residual network, trained on simulated acquisitions of sharp scans and told the point-spread "
    "function and the noise of this one, predicted the image and a standard deviation of its error in each voxel. The "
    "image was then projected onto the acquired data."
)
_HEAD_LEVEL = 0.05  # of the 99th percentile: below is background
_CELL = 8  # voxels per side of the cells in which the head is looked for
_GPU_SHARE = 0.7  # of the free memory
_FLOPS_PER_THREAD = 5e10  # float32 convolutions of an older server; bfloat16 is faster where the processor has it
_ACTIVATIONS = 4  # inner volumes that are alive at a time


def student(name: str, path: Path) -> Model:
    """Build the model of a weights file.

    Raises
    ------
    ValueError
        If the weights cannot be used.
    """
    weights = Weights.read(path)
    shape = NetworkShape(**weights.card["network"])
    card = ModelCard(
        "one-step residual network",
        methods=_METHODS,
        weights_sha256=weights.sha256,
        uncertainty=True,
        guidance=tuple(weights.card.get("guidance", ())),
        iterations=2,
        bytes_per_voxel=40,
        window_bytes_per_voxel=_bytes_per_voxel(shape, torch.float32),
        seconds_per_megavoxel=flops_per_voxel(shape) / _FLOPS_PER_THREAD * 1e6,
    )
    return Model(name, card, partial(reconstruct, weights))


def flops_per_voxel(shape: NetworkShape) -> float:
    """Return the floating-point operations of the network per voxel of its window."""
    cells = FACTOR**3
    body = 2 * shape.blocks * shape.channels**2
    ends = shape.channels * cells * (INPUTS + 1 + len(GUIDANCE)) + shape.channels * cells * 2
    return 2 * 27 * (body + ends) / cells


def _bytes_per_voxel(shape: NetworkShape, dtype: torch.dtype) -> int:
    """Peak memory of the network per voxel of a window: inner volumes, and volumes of the target grid."""
    return _ACTIVATIONS * shape.channels * dtype.itemsize // FACTOR**3 + 8 * 4


def reconstruct(weights: Weights, problem: Problem) -> Reconstruction:
    """Interpolate, predict the residual inside the head, and add it."""
    operator, device = problem.operator, problem.acquired.device
    target = operator.target_grid
    image = network_image(problem.acquired, operator)
    sigma = problem.sigma * _noise_kept(operator)
    correction = data_correction(image, problem.acquired, operator.factors(), problem.sigma)
    maps = {name: network_image(problem.guidance[name], operator) for name in GUIDANCE if name in problem.guidance}
    network = weights.network(device)
    vector = acquisition_vector(
        operator.psf,
        operator.input_grid.zooms,
        target.zooms,
        sigma,
        [name in maps for name in GUIDANCE],
    ).to(device)
    calibration = weights.card.get("temperature", {})
    temperature = float(calibration.get(problem.contrast, calibration.get("all", 1.0)))
    head = head_weight(image)
    padding = [n for size in reversed(image.shape) for n in (0, -size % FACTOR)]
    shape = image.shape
    image, correction, head = (_padded(volume, padding) for volume in (image, correction, head))
    maps = {name: _padded(volume, padding) for name, volume in maps.items()}
    dtype = fast_dtype(device)
    folded = FoldedNetwork(network, vector)
    features = features_of(problem.runtime, folded, dtype, device)

    def predict(channels: torch.Tensor) -> NetworkOutput:
        return network_output(features(network_cells(channels)), folded.tail)

    windows = plan_windows(
        image.shape,
        bounding_box(head > 0),
        halo=network.shape.receptive_field,
        largest=_largest_window(network.shape, dtype, device),
        multiple=FACTOR,
    )
    # Outside of the head there is nothing but noise, and the interpolated image has it.
    std = torch.full_like(image, problem.sigma)
    out = image.clone()
    seconds, voxels = 0.0, 0
    for number, window in enumerate(windows):
        weight = head[window.core]
        if weight.any():
            start = time.perf_counter()
            channels = _channels((image, correction), maps, window)
            residual, log_scale = _predict(predict, channels, averaged=problem.averaged)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds, voxels = seconds + time.perf_counter() - start, voxels + window.voxels
            out[window.core].addcmul_(residual[window.inner] + correction[window.core], weight)
            std[window.core].lerp_(temperature * log_scale[window.inner].exp(), weight)
        problem.progress("reconstruct", (number + 1) / len(windows))
    i, j, k = shape
    facts = {
        "Runtime": problem.runtime,
        "Precision": str(dtype).removeprefix("torch."),
        "Windows": len(windows),
        "NetworkVoxels": voxels,
        "NetworkSeconds": round(seconds, 3),
        "Guidance": sorted(maps),
        "TestTimeAveraging": problem.averaged,
        "UncertaintyCalibration": {"Temperature": temperature, "Coverage": weights.card.get("coverage", {})},
    }
    return Reconstruction(out[:i, :j, :k].contiguous(), std[:i, :j, :k].contiguous(), facts)


def network_image(volume: torch.Tensor, operator: AcquisitionOperator) -> torch.Tensor:
    """Bring a volume from the input to the target grid as the network expects it.

    Cubic splines; along an axis where the input is finer than the target a low-pass at the target's band limit takes
    their place, since splines would alias.
    """
    source, target = operator.input_grid, operator.target_grid
    matrices = []
    for axis in range(3):
        here, there = source.axis_positions(axis), target.axis_positions(axis)
        zoom, wanted = source.zooms[axis], target.zooms[axis]
        if zoom < 0.99 * wanted:
            matrix = axis_matrix(there, here, AxisPSF("kspace", wanted), zoom)
        else:
            matrix = spline_matrix(here, there)
        matrices.append(torch.from_numpy(matrix.astype(np.float32)).to(volume.device))
    return apply_axes(volume, tuple(matrices))


def _noise_kept(operator: AcquisitionOperator) -> float:
    """Share of the noise's standard deviation that the low-pass of :func:`network_image` keeps."""
    pairs = zip(operator.input_grid.zooms, operator.target_grid.zooms, strict=True)
    return float(np.prod([min(1.0, zoom / wanted) ** 0.5 for zoom, wanted in pairs]))


def head_weight(image: torch.Tensor) -> torch.Tensor:
    """Return 1 in the head, falling to 0 within two cells of 8 voxels around it; specks of noise are no head."""
    solid = functional.avg_pool3d((image > _HEAD_LEVEL)[None, None].float(), 3, stride=1, padding=1) > 0.5
    cells = functional.max_pool3d(solid.float(), _CELL, ceil_mode=True)
    near = functional.max_pool3d(cells, 3, stride=1, padding=1)
    size = [n * _CELL for n in near.shape[2:]]
    smooth = functional.interpolate(near, size=size, mode="trilinear")[0, 0]
    i, j, k = image.shape
    return smooth[:i, :j, :k].contiguous()


def _largest_window(shape: NetworkShape, dtype: torch.dtype, device: torch.device) -> int:
    """Voxels of the largest window: a constant on the CPU, what fits into the free memory of a GPU."""
    if device.type == "cpu":
        return CPU_WINDOW_VOXELS
    free, _ = torch.cuda.mem_get_info(device)
    return int(_GPU_SHARE * free / _bytes_per_voxel(shape, dtype))


def _padded(volume: torch.Tensor, padding: list[int]) -> torch.Tensor:
    return functional.pad(volume[None, None], padding, mode="replicate")[0, 0]


def _channels(images: Sequence[torch.Tensor], maps: dict[str, torch.Tensor], window: Window) -> torch.Tensor:
    parts = [image[window.outer] for image in images]
    absent = torch.zeros_like(parts[0])
    parts += [maps[name][window.outer] if name in maps else absent for name in GUIDANCE]
    return torch.stack(parts)[None]


@torch.inference_mode()
def _predict(
    predict: Callable[[torch.Tensor], NetworkOutput], channels: torch.Tensor, *, averaged: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Residual and log scale of a window, averaged over the eight flips if asked for."""
    flips = [tuple(2 + a for a in range(3) if turn[a]) for turn in product((False, True), repeat=3)]
    sums: list[torch.Tensor] = []
    chosen = flips if averaged else flips[:1]
    for axes in chosen:
        output = predict(channels.flip(axes) if axes else channels)
        found = [(part.flip(axes) if axes else part)[0, 0] for part in output]
        sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
    return sums[0] / len(chosen), sums[1] / len(chosen)
