"""Choice between bfloat16 and float32, for training and for inference, and the speed of this machine's CPU."""

from __future__ import annotations

import time
from functools import lru_cache

import torch
from torch.nn import functional

_CHANNELS, _SIDE, _TRIES = 48, 40, 3
_OF_A_BLOCK = 0.8  # measured on two cores with and without AMX: a network beside a block that lies in the cache


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the device computes convolutions in it natively, float32 elsewhere.

    A CPU without AVX-512 or AMX instructions for bfloat16 emulates them hundreds of times slower.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
    return torch.bfloat16 if native else torch.float32


@lru_cache(maxsize=1)
def network_flops() -> float:
    """Estimate the floating-point operations per second of a network on one thread of this machine's CPU.

    A convolution of the usual size and its activation are timed once in a process. Machines differ by a factor of ten.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # processes may be forked after this: a pool of threads would be lost in them
    try:
        return _timed()
    finally:
        torch.set_num_threads(before)


def _timed() -> float:
    device = torch.device("cpu")
    volume = torch.ones((1, _CHANNELS, *(_SIDE,) * 3), dtype=fast_dtype(device))
    volume = volume.contiguous(memory_format=torch.channels_last_3d)
    kernel = torch.ones((_CHANNELS, _CHANNELS, 3, 3, 3), dtype=volume.dtype)
    seconds = []
    with torch.inference_mode():
        for _ in range(1 + _TRIES):
            begun = time.perf_counter()
            functional.gelu(functional.conv3d(volume, kernel, padding=1)).add_(volume)
            seconds.append(time.perf_counter() - begun)
    return _OF_A_BLOCK * 2 * 27 * _CHANNELS**2 * _SIDE**3 / min(seconds[1:])
