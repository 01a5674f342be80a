"""The device that a model runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_GPU_IS_FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""Messages of CUDA and its libraries when another process has filled the GPU."""


def choose_device(device: str) -> torch.device:
    """Device of a name: ``cpu``, ``cuda`` or ``auto``.

    Raises
    ------
    ValueError
        For any other name, and for ``cuda`` where PyTorch finds no GPU: never a silent fallback.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"unknown device {device!r}: one of auto, cpu, cuda")
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ValueError("--device cuda was asked for, but PyTorch finds no CUDA GPU here; use cpu or auto")
    return torch.device("cuda" if available and device != "cpu" else "cpu")


def device_name(device: torch.device) -> str:
    """Name of a device for the record of a run."""
    return f"cuda: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "cpu"


@contextmanager
def full_memory_told(way_out: str) -> Iterator[None]:
    """Turn PyTorch's errors about full memory, of the GPU or of the machine, into one that says what to do.

    Parameters
    ----------
    way_out
        What the message tells the user to use instead.

    Raises
    ------
    MemoryError
        If memory is full.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        first = str(error).partition(". ")[0]
        raise MemoryError(f"{first}: too little of the GPU's memory is free; use {way_out}, or --device cpu") from error
    except RuntimeError as error:
        # PyTorch has no class of its own for these.
        if "DefaultCPUAllocator" in str(error):
            raise MemoryError(f"too little memory is free on this machine; use {way_out}") from error
        if any(sign in str(error) for sign in _GPU_IS_FULL):
            raise MemoryError(f"too little of the GPU's memory is free; use {way_out}, or --device cpu") from error
        raise
