"""What runs the convolutions of a network: PyTorch, or OpenVINO on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from .models.network import FoldedNetwork

RUNTIMES = ("torch", "openvino")
"""The default first."""

Features = Callable[["torch.Tensor"], "torch.Tensor"]
"""From the channels of a window at half resolution to the features before the last convolution."""


def features_of(runtime: str, network: FoldedNetwork, dtype: torch.dtype, device: torch.device) -> Features:
    """Return a function that computes the features of a network.

    Parameters
    ----------
    runtime
        One of :data:`RUNTIMES`.
    network
        Network for one acquisition.
    dtype
        float32 or bfloat16, of the convolutions; input is float32, output is float32 or bfloat16.
    device
        Where the network is.

    Raises
    ------
    ValueError
        If the runtime is unknown, not installed, or not for this device.
    """
    if runtime == "torch":
        return _torch(network, dtype, device)
    if runtime != "openvino":
        raise ValueError(f"unknown runtime {runtime!r}: one of {', '.join(RUNTIMES)}")
    if device.type != "cpu":
        raise ValueError("--runtime openvino is for the CPU; use --device cpu, or --runtime torch")
    return _openvino(network, dtype)


def _torch(network: FoldedNetwork, dtype: torch.dtype, device: torch.device) -> Features:
    import torch

    def features(cells: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return network(cells)

    return features


def _openvino(network: FoldedNetwork, dtype: torch.dtype) -> Features:
    import torch

    try:
        import openvino
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name} is not installed; --runtime openvino needs: pip install 'moesr-bids[openvino]'"
        ) from error
    core = openvino.Core()
    example = torch.zeros((1, network.head.in_channels, 8, 10, 12))
    any_size = {0: torch.export.Dim.STATIC, **dict.fromkeys((2, 3, 4), torch.export.Dim.DYNAMIC)}
    with torch.no_grad():
        exported = torch.export.export(network, (example,), dynamic_shapes=(any_size,))
    model = openvino.convert_model(exported)
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
    }
    compiled = core.compile_model(model, "CPU", options)

    def features(cells: torch.Tensor) -> torch.Tensor:
        found = compiled(cells.contiguous().numpy())
        return torch.from_numpy(found[compiled.output(0)])

    return features
