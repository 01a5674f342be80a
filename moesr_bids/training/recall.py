"""Earlier examples that the gate sees again: it learns slowly, and they cost a tenth of new ones.

The inputs of the context are kept by the number of the example. Inputs that are missing, such as after a resumption,
are made again, so a resumed training sees the same as an uninterrupted one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

from ..sr.models.context import FINE
from ..sr.models.mixture import MixtureNetwork, context_cells
from ..sr.models.network import network_cells
from .losses import without_border
from .tissue import tissue_bands

if TYPE_CHECKING:
    from .examples import Batch, Examples
    from .recipe import Recall


class GateInputs(NamedTuple):
    """Inputs and targets of the gate.

    ``cells`` are from :func:`moesr_bids.sr.models.mixture.context_cells`; the tissue ``bands`` and their weight
    (``sure``) are per token of 4 voxels.
    """

    cells: torch.Tensor
    bands: torch.Tensor
    sure: torch.Tensor


class GateMemory:
    """Inputs of the gate at earlier steps.

    Parameters
    ----------
    examples
        Source of examples that are missing.
    recall
        How many steps are kept, and how many are drawn.
    border
        Voxels at each side of an example that do not count.
    first, stride
        Number of the first example of this process, and its distance from step to step.
    """

    def __init__(self, examples: Examples, recall: Recall, *, border: int = 0, first: int, stride: int) -> None:
        self._examples, self._recall = examples, recall
        self._border = border
        self._first, self._stride = first, stride
        self._kept: dict[int, GateInputs | None] = {}

    def keep(self, number: int, inputs: GateInputs | None) -> None:
        """Keep the inputs of the step whose first example has this number; forget those of the oldest step."""
        self._kept[number] = inputs
        self._kept.pop(number - (self._recall.memory + 1) * self._stride, None)

    def draw(self, number: int, network: MixtureNetwork) -> GateInputs | None:
        """Draw steps before the one with this number, stacked; None if no tissue is known in any of them."""
        reach = min(self._recall.memory, (number - self._first) // self._stride)
        if reach < 1:
            return None
        generator = torch.Generator().manual_seed(number)
        back = torch.randint(1, reach + 1, (self._recall.count,), generator=generator).tolist()
        found = [inputs for n in back if (inputs := self._of(number - n * self._stride, network)) is not None]
        return GateInputs(*(torch.cat(parts) for parts in zip(*found, strict=True))) if found else None

    def _of(self, number: int, network: MixtureNetwork) -> GateInputs | None:
        if number not in self._kept:
            with torch.autocast(self._examples.device.type, enabled=False):  # scans are simulated in float32
                batch = self._examples.batch(number)
            with torch.no_grad():
                features = network.trunk.features(batch.channels, batch.acquisition)
                self._kept[number] = gate_inputs(
                    batch, context_cells(network_cells(batch.channels), features), self._border
                )
        return self._kept[number]


def gate_inputs(batch: Batch, cells: torch.Tensor, border: int = 0) -> GateInputs | None:
    """Return the inputs of the examples with known tissue, the cells in bfloat16; None if there are none.

    Within ``border`` voxels of the sides the weight is 0.
    """
    known = batch.tissue[:, :2].flatten(1).any(dim=1)
    if not known.any():
        return None
    bands, confidence = (functional.avg_pool3d(part, FINE) for part in tissue_bands(batch.tissue[known]))
    margin = border // FINE
    confidence = functional.pad(without_border(confidence, margin), [margin] * 6)
    return GateInputs(cells.detach()[known].to(torch.bfloat16), bands, confidence)
