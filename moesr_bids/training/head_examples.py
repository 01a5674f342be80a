"""Examples of heads by number, as :mod:`.examples` has them for super-resolution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..segmentation.network import SegmenterShape
from .examples import Batch
from .head_images import HeadExample, RandomImage
from .heads import Head, HeadMap, RandomHead
from .recipe import Recipe

_SLOTS = 4  # deformed heads in use at a time
_LONGEST_WAIT = 300.0  # seconds for a batch: a process that takes longer hangs


class HeadExamples:
    """Endless examples of a training; the same number gives the same example.

    Parameters
    ----------
    heads
        Label maps that examples are drawn from.
    recipe
        Sizes and shares; a share ``1 - synthetic`` of the examples of a map with a scan has the scan's intensities.
    seed
        Seed of all random numbers.
    device
        Device that examples are drawn on.

    Raises
    ------
    ValueError
        If there are no label maps.
    """

    def __init__(self, heads: Sequence[HeadMap], recipe: Recipe, *, seed: int, device: torch.device) -> None:
        if not heads:
            raise ValueError("a segmentation is trained on label maps: name folders with --labels")
        assert isinstance(recipe.network, SegmenterShape)
        self.heads, self.recipe, self.seed, self.device = heads, recipe, seed, device
        self.zoom = recipe.network.zoom
        self.anatomy, self.image = RandomHead(), RandomImage()
        self._drawn = lru_cache(maxsize=_SLOTS)(self._draw)

    def example(self, number: int) -> HeadExample:
        """Draw an example; several examples share a deformed head, and each has intensities of its own."""
        generation = number // (_SLOTS * self.recipe.reuse)
        head = self._drawn(number % _SLOTS, generation)
        rng = np.random.default_rng([self.seed, 0, number])
        return self.image.draw(head, self.zoom, rng, real=1 - self.recipe.synthetic)

    def _draw(self, slot: int, generation: int) -> Head:
        rng = np.random.default_rng([self.seed, 1, slot, generation])
        head = self.heads[int(rng.integers(len(self.heads)))]
        return self.anatomy.draw(head, self.recipe.patch, self.zoom, rng, self.device)

    def batch(self, first: int) -> Batch:
        """Draw the batch whose first example has this number: images as ``channels``, class shares as ``sharp``."""
        some = [self.example(first + n) for n in range(self.recipe.batch)]
        nothing = torch.zeros((len(some), 0), device=self.device)
        images, classes = (torch.stack(parts) for parts in zip(*some, strict=True))
        return Batch(images, nothing, classes, nothing, nothing, first)

    def batches(self, first: int, stride: int, workers: int = 0) -> Iterator[Batch]:
        """Yield the batches that begin with the examples ``first``, ``first + stride``, ..., without end."""
        loader = DataLoader(
            _Batches(self),
            batch_size=None,
            sampler=count(first, stride),
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
            timeout=_LONGEST_WAIT if workers else 0,
        )
        yield from loader


class _Batches(Dataset[Batch]):
    """Batches by the number of their first example."""

    def __init__(self, examples: HeadExamples) -> None:
        self.examples = examples

    def __getitem__(self, first: int) -> Batch:
        return self.examples.batch(first)
