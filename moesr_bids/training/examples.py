"""Examples by number: the same number gives the same example, so a resumed training sees the same examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from attrs import evolve, frozen
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader, Dataset

from ..sr.models.network import INPUTS
from .acquisition import Scan
from .lesions import PlantedLesion, draw_lesions, plant
from .pairs import PairCut, PairedScan
from .recipe import Recipe
from .simulation import Example, Matrices, acquire
from .synthesis import Anatomy, LabelMap, Palette, RandomAnatomy
from .volumes import Cut, TrainingVolume, cut_out

_SLOTS = 8  # drawn anatomies in use at a time
_LONGEST_WAIT = 300.0  # seconds for a plan: a process that takes longer hangs
_SCALE_ERROR = 0.1  # of the 99th percentile: head and brain differ in it


class Batch(NamedTuple):
    """Stacked examples, see :class:`.simulation.Example`; ``sharp`` is (batch, 1, n, n, n).

    ``first`` is the number of the first example.
    """

    channels: torch.Tensor
    acquisition: torch.Tensor
    sharp: torch.Tensor
    tissue: torch.Tensor
    band: torch.Tensor
    first: int = 0

    @classmethod
    def of(cls, some: Sequence[Example], first: int = 0) -> Batch:
        """Stack examples."""
        return cls(
            torch.stack([e.channels for e in some]),
            torch.stack([e.acquisition for e in some]),
            torch.stack([e.sharp for e in some])[:, None],
            torch.stack([e.tissue for e in some]),
            torch.stack([e.band for e in some]),
            first,
        )

    @property
    def start(self) -> torch.Tensor:
        """Sum of the interpolated image and its correction by the data, (batch, 1, n, n, n); residuals add to it."""
        return self.channels[:, :INPUTS].sum(dim=1, keepdim=True)

    def known(self, volumes: torch.Tensor) -> torch.Tensor:
        """Remove detail that is too fine for the truth, along each axis, from volumes (batch, c, n, n, n)."""
        with torch.autocast(volumes.device.type, enabled=False):
            return torch.einsum("bcijk,bai,bdj,bek->bcade", volumes.float(), *self.band.unbind(dim=1))


@frozen(eq=False)
class CutVolume:
    """Index of a volume, and where a cube is cut out of it."""

    index: int
    cut: Cut


@frozen(eq=False)
class PaintedAnatomy:
    """Slot and generation of an anatomy, and the palette that it is painted with."""

    slot: int
    generation: int
    palette: Palette


@frozen(eq=False)
class Plan:
    """Everything that is drawn at random for an example.

    ``scale`` is a factor of the intensities; ``lesions`` are planted into a real volume.
    """

    source: CutVolume | PaintedAnatomy
    scale: float
    scan: Scan
    lesions: Sequence[PlantedLesion] = ()

    def tensors(self, size: int) -> list[torch.Tensor]:
        """Make the table that resamples or paints a cube of ``size`` voxels, and the matrices of its scan."""
        if isinstance(self.source, CutVolume):
            table = self.source.cut.matrix(size)
        else:
            table = torch.from_numpy(self.source.palette.tables)
        return [table, *Matrices.of(self.scan, size).tensors()]


@frozen(eq=False)
class Plans:
    """Plans of a batch, with their matrices in one tensor: many small ones travel slowly between processes."""

    first: int
    plans: Sequence[Plan | PairCut]
    shapes: Sequence[Sequence[torch.Size]]
    flat: torch.Tensor

    @classmethod
    def of(cls, first: int, plans: Sequence[Plan | PairCut], size: int) -> Plans:
        """Join plans, and make the matrices of their cubes of ``size`` voxels per side; pairs need none."""
        tensors = [[] if isinstance(plan, PairCut) else plan.tensors(size) for plan in plans]
        flat = torch.cat([torch.empty(0), *(part.flatten() for some in tensors for part in some)])
        return cls(first, plans, [[part.shape for part in some] for some in tensors], flat)

    def pin_memory(self) -> Plans:
        """Return a copy in pinned memory, for a GPU; the data loader calls this."""
        return evolve(self, flat=self.flat.pin_memory())

    def on(self, device: torch.device) -> Iterator[tuple[Plan | PairCut, list[torch.Tensor]]]:
        """Yield each plan and its tensors, on a device."""
        flat, start = self.flat.to(device, non_blocking=True), 0
        for plan, shapes in zip(self.plans, self.shapes, strict=True):
            tensors = []
            for shape in shapes:
                tensors.append(flat[start : start + shape.numel()].view(shape))
                start += shape.numel()
            yield plan, tensors


class Examples:
    """Endless examples of a training.

    Parameters
    ----------
    volumes, labels
        Sources of the patches; the recipe says in which shares.
    recipe
        Sizes and shares.
    seed
        Seed of all random numbers.
    device
        Device that patches are synthesised and degraded on, and that keeps the volumes.
    pairs
        Real scans with their sharper ones; the recipe says in which share.

    Raises
    ------
    ValueError
        If there are no volumes, label maps or pairs.
    """

    def __init__(
        self,
        volumes: Sequence[TrainingVolume],
        labels: Sequence[LabelMap],
        recipe: Recipe,
        *,
        seed: int,
        device: torch.device,
        pairs: Sequence[PairedScan] = (),
    ) -> None:
        if not volumes and not labels and not pairs:
            raise ValueError("a training needs volumes, label maps or pairs")
        self.volumes, self.labels, self.pairs = volumes, labels, pairs
        self.recipe, self.seed, self.device = recipe, seed, device
        self.paired = 0.0 if not pairs else recipe.paired if volumes or labels else 1.0
        self.synthetic = 0.0 if not labels else 1.0 if not volumes else recipe.synthetic
        self.anatomy, self.scan = RandomAnatomy(), recipe.simulation.told(recipe.guidance)
        self._drawn = lru_cache(maxsize=2 * _SLOTS)(self._draw)
        self._kept = cache(self._keep)

    @property
    def _size(self) -> int:
        return self.recipe.patch + 2 * self.recipe.margin

    def plan(self, number: int) -> Plan | PairCut:
        """Draw the parameters of example ``number``; this works on the CPU.

        Raises
        ------
        ImageError
            If the scans of a pair share no cube of the recipe's size.
        """
        rng = np.random.default_rng([self.seed, 0, number])
        if self.paired and rng.random() < self.paired:
            index = int(rng.integers(len(self.pairs)))
            return self.pairs[index].draw(index, self.recipe.patch, rng)
        source: CutVolume | PaintedAnatomy
        if rng.random() < self.synthetic:
            slot, generation = self._anatomy_of(number)
            labels, _ = self._labels_of(slot, generation)
            source = PaintedAnatomy(slot, generation, self.anatomy.palette(labels, rng))
        else:
            index = int(rng.integers(len(self.volumes)))
            source = CutVolume(index, self.volumes[index].draw(self._size, rng, self.recipe.lesion_focus))
        detail = source.cut.detail if isinstance(source, CutVolume) else (1.0, 1.0, 1.0)
        plan = Plan(source, float(np.exp(rng.normal(scale=_SCALE_ERROR))), self.scan.sample(rng, detail))
        if isinstance(source, CutVolume) and rng.random() < self.recipe.lesions_planted:
            darker = self.volumes[source.index].name.endswith("_T1w")
            plan = evolve(plan, lesions=draw_lesions(self._size, darker, rng))
        return plan

    def make(self, plan: Plan | PairCut, tensors: list[torch.Tensor]) -> Example:
        """Make a planned example from what :meth:`Plans.on` yields."""
        if isinstance(plan, PairCut):
            return self.pairs[plan.index].example(plan, self.recipe.patch, self.device)
        source, table = plan.source, tensors[0]
        if isinstance(source, CutVolume):
            patch = cut_out(self._kept(source.index), source.cut, table)
            if plan.lesions:
                patch = plant(patch, plan.lesions)
        else:
            patch = source.palette.paint(self._drawn(source.slot, source.generation), table)
        patch[0] *= plan.scale
        return acquire(patch, plan.scan, self.recipe.margin, Matrices.joined(tensors[1:]))

    def plans(self, first: int) -> Plans:
        """Plan the batch whose first example has this number."""
        return Plans.of(first, [self.plan(first + n) for n in range(self.recipe.batch)], self._size)

    def batch(self, first: int) -> Batch:
        """Plan and make the batch whose first example has this number."""
        return self.made(self.plans(first))

    def made(self, plans: Plans) -> Batch:
        """Make a planned batch."""
        return Batch.of([self.make(*planned) for planned in plans.on(self.device)], plans.first)

    def batches(self, first: int, stride: int, workers: int = 0) -> Iterator[Batch]:
        """Yield the batches that begin with the examples ``first``, ``first + stride``, ..., without end.

        Parameters
        ----------
        first, stride
            Number of the first example, and its distance from batch to batch.
        workers
            Number of processes that plan batches ahead, so that a GPU does not wait for the plans.
        """
        loader = DataLoader(
            _Plans(self),
            batch_size=None,
            sampler=count(first, stride),
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=_one_thread,
            timeout=_LONGEST_WAIT if workers else 0,
            pin_memory=self.device.type == "cuda",
        )
        yield from map(self.made, loader)

    def _anatomy_of(self, number: int) -> tuple[int, int]:
        """Return slot and generation of the anatomy of an example, for synthetic examples."""
        return number % _SLOTS, int(number * self.synthetic) // (_SLOTS * self.recipe.reuse)

    def _labels_of(self, slot: int, generation: int) -> tuple[LabelMap, np.random.Generator]:
        """Return the label map of an anatomy, and the random generator to draw it with."""
        rng = np.random.default_rng([self.seed, 1, slot, generation])
        return self.labels[int(rng.integers(len(self.labels)))], rng

    def _draw(self, slot: int, generation: int) -> Anatomy:
        labels, rng = self._labels_of(slot, generation)
        return self.anatomy.draw(labels, self._size, rng, self.device)

    def _keep(self, index: int) -> tuple[torch.Tensor, ...]:
        return self.volumes[index].tensors(self.device)


def _one_thread(worker: int) -> None:
    """Keep NumPy from using all processors in each of many workers."""
    del worker
    threadpool_limits(1, user_api="blas")


class _Plans(Dataset[Plans]):
    """Plans of batches by the number of their first example."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __getitem__(self, first: int) -> Plans:
        return self.examples.plans(first)
