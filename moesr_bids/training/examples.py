"""Examples by number: the same number gives the same example, so that a resumed training sees what it would have."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from ..sr.models.network import INPUTS
from .acquisition import Example, RandomScan, acquire
from .recipe import Recipe
from .synthesis import LabelMap, RandomAnatomy
from .volumes import Volume

_SLOTS = 8  # drawn anatomies in use at a time
_SCALE_ERROR = 0.1  # of the 99th percentile: head and brain differ in it


class Batch(NamedTuple):
    """Examples, stacked: see :class:`.acquisition.Example`; ``sharp`` is (batch, 1, n, n, n).

    ``first`` is the number of the first of them.
    """

    channels: torch.Tensor
    acquisition: torch.Tensor
    sharp: torch.Tensor
    tissue: torch.Tensor
    first: int = 0

    @property
    def start(self) -> torch.Tensor:
        """What residuals are added to: the interpolated image and its correction by the data, (batch, 1, n, n, n)."""
        return self.channels[:, :INPUTS].sum(dim=1, keepdim=True)


class Examples:
    """Endless examples of a training.

    Parameters
    ----------
    volumes, labels
        What patches are drawn from; the recipe says in which share.
    recipe
        Sizes and shares.
    seed
        Of all random numbers.
    device
        Where patches are synthesised and degraded.
    """

    def __init__(
        self,
        volumes: Sequence[Volume],
        labels: Sequence[LabelMap],
        recipe: Recipe,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        if not volumes and not labels:
            raise ValueError("a training needs volumes or label maps")
        self.volumes, self.labels, self.recipe, self.seed, self.device = volumes, labels, recipe, seed, device
        self.synthetic = 0.0 if not labels else 1.0 if not volumes else recipe.synthetic
        self.anatomy, self.scan = RandomAnatomy(), RandomScan().told(recipe.guidance)
        self._drawn = lru_cache(maxsize=2 * _SLOTS)(self._draw)

    def __getitem__(self, number: int) -> Example:
        """Return example ``number``."""
        rng = np.random.default_rng([self.seed, 0, number])
        size = self.recipe.patch + 2 * self.recipe.margin
        if rng.random() < self.synthetic:
            labels, fine = self._drawn(*self._anatomy_of(number))
            patch = self.anatomy.paint(labels, fine, rng)
        else:
            patch = self.volumes[int(rng.integers(len(self.volumes)))].patch(size, rng, self.device)
        patch[0] *= float(np.exp(rng.normal(scale=_SCALE_ERROR)))
        return acquire(patch, self.scan.sample(rng), self.recipe.margin)

    def batch(self, first: int, count: int) -> Batch:
        """Stack examples ``first`` to ``first + count - 1``."""
        some = [self[number] for number in range(first, first + count)]
        return Batch(
            torch.stack([e.channels for e in some]),
            torch.stack([e.acquisition for e in some]),
            torch.stack([e.sharp for e in some])[:, None],
            torch.stack([e.tissue for e in some]),
            first,
        )

    def _anatomy_of(self, number: int) -> tuple[int, int]:
        """Return slot and generation of the anatomy that an example uses if it is synthetic."""
        return number % _SLOTS, int(number * self.synthetic) // (_SLOTS * self.recipe.reuse)

    def _draw(self, slot: int, generation: int) -> tuple[LabelMap, torch.Tensor]:
        rng = np.random.default_rng([self.seed, 1, slot, generation])
        labels = self.labels[int(rng.integers(len(self.labels)))]
        return labels, self.anatomy.draw(labels, self.recipe.patch + 2 * self.recipe.margin, rng, self.device)
