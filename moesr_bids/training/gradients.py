"""Loss and gradients of a step.

On a GPU they are one CUDA graph, because there the CPU needs longer to launch an operation than the GPU to do it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..sr.precision import fast_dtype
from .distillation import Stage
from .examples import Batch
from .objectives import Objective, Terms

Gradients = Callable[[Batch, Sequence[torch.Tensor], Stage], Terms]
"""Function from a batch, what was drawn for it, and the stage to the terms of the loss.

It leaves the gradients at the parameters.
"""
_WARM_UP = 3  # steps before the capture, in which libraries choose their algorithms


def gradients_of(objective: Objective, network: nn.Module, device: torch.device) -> Gradients:
    """Return a function that computes the gradients of a network on a device."""
    direct = _Direct(objective, network)
    return _Captured(direct) if device.type == "cuda" and objective.capturable else direct


class _Direct:
    """Gradients by one operation after the other."""

    def __init__(self, objective: Objective, network: nn.Module) -> None:
        self.objective, self.network = objective, network

    def __call__(self, batch: Batch, drawn: Sequence[torch.Tensor], stage: Stage) -> Terms:
        device = batch.channels.device
        dtype = fast_dtype(device)
        # No cache: nothing is cast twice, and a graph must not depend on a cast outside of it.
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False):
            loss, terms = self.objective.loss(self.network, batch, drawn, stage)
        self.network.zero_grad(set_to_none=True)
        loss.backward()
        return terms


class _Captured:
    """Gradients by a CUDA graph of a stage; its inputs, results and gradients keep their places in memory."""

    def __init__(self, direct: _Direct) -> None:
        self.direct = direct
        self.stage: Stage | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[torch.Tensor] = []
        self.terms: Terms = {}

    def __call__(self, batch: Batch, drawn: Sequence[torch.Tensor], stage: Stage) -> Terms:
        given = [*batch[:-1], *drawn]
        if self.graph is None or stage != self.stage:
            self._capture(given, stage)
        assert self.graph is not None
        for kept, new in zip(self.inputs, given, strict=True):
            kept.copy_(new)
        self.graph.replay()
        return {name: value.clone() for name, value in self.terms.items()}

    def _capture(self, given: Sequence[torch.Tensor], stage: Stage) -> None:
        # The graph of another stage and its gradients would double the memory.
        self.graph, self.terms = None, {}
        self.direct.network.zero_grad(set_to_none=True)
        self.stage, self.inputs = stage, [tensor.clone() for tensor in given]
        channels, acquisition, sharp, tissue, band, *drawn = self.inputs
        batch = Batch(channels, acquisition, sharp, tissue, band)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                self.direct(batch, drawn, stage)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        # Without gradients here, the graph makes its own, and overwrites them at each replay.
        self.direct.network.zero_grad(set_to_none=True)
        # Other threads fetch batches meanwhile.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.terms = self.direct(batch, drawn, stage)
