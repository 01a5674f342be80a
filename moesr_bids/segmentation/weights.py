"""Weights of the segmentation: safetensors with a card, as for all networks here."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..sr.weights import PACKAGED, SUFFIX, Weights
from .landmarks import Landmarks
from .network import Segmenter, SegmenterShape

PACKAGED_SEGMENTER = PACKAGED / f"segmentation{SUFFIX}"


@lru_cache(maxsize=1)
def packaged_segmenter() -> tuple[Segmenter, Landmarks]:
    """Return the network that comes with the package, and what it finds in the embedded template."""
    network, weights = read_segmenter(PACKAGED_SEGMENTER)
    return network, Landmarks.from_record(weights.card["landmarks"])


def read_segmenter(path: Path) -> tuple[Segmenter, Weights]:
    """Read a network (evaluation mode, float32) and its card.

    Raises
    ------
    ValueError
        If the file or its card is missing or damaged, or they are not of a segmentation.
    """
    weights = Weights.read(path)
    if weights.kind != "segmentation":
        raise ValueError(f"weights {path}: of a {weights.kind}, and a segmentation is needed")
    network = Segmenter(weights.shape(SegmenterShape))
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    except RuntimeError as error:
        raise ValueError(f"weights {path}: not of the network that the card names ({error})") from error
    return network.to(memory_format=torch.channels_last_3d).eval().requires_grad_(False), weights  # type: ignore[call-overload]
