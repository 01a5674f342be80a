"""Positions, gains and slice weights of scans: each scan against the image of the others, in turns.

The image of the others (Tikhonov, on a grid of 2 mm) never holds the scan that is compared with it. Otherwise a scan
would stay where it was, and a slice that moved would agree with its own traces. Turns end when no scan moves by 0.05 mm
or more, or after four; with two scans after the first, since the image of the other scan stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from attrs import define, field, frozen
from nibabel.affines import apply_affine
from numpy.typing import NDArray

from ..grid import Grid
from ..noise import foreground
from ..psf import PSF
from .operator import Scan, ScanOperator
from .positions import Array, Movable, centre_of, distance, refine
from .robust import agreement, gain_field, overall_gain, slice_weights
from .solve import Prior, agree_with_scans

WORKING_MM = 2.0
TURNS = 4
STILL_MM = 0.05
LEAST_AGREEMENT = 0.4
"""Least correlation of the detail of a scan with that of the others; below it the scan is left out."""
_PRIOR = Prior(0.5, 0.1)
_BELIEVED = 0.5  # weight of slices that say what the gain is
_LEAST_SIGMA = 0.03  # what a grid of 2 mm cannot hold counts like noise
_ITERATIONS = (10, 5)  # of the first image, and of those that start from the one before


@frozen(eq=False)
class Given:
    """A scan as it is given, before its position is known.

    Parameters
    ----------
    data
        float32 on ``grid``. The scans of a head that are joined are divided by one number.
    grid, psf
        Its grid and point-spread function.
    inside
        Brain or foreground, boolean on ``grid``.
    sigma
        Standard deviation of the noise, in the units of ``data``.
    """

    data: NDArray[np.float32]
    grid: Grid
    psf: PSF
    inside: NDArray[np.bool_]
    sigma: float

    @property
    def slice_axis(self) -> int:
        """Axis across the slices, or that of the largest voxels."""
        return int(np.argmax(self.grid.zooms))


@define(eq=False)
class Placed:
    """Position, gain and slice weights that were found for a scan.

    Attributes
    ----------
    position
        4 x 4 rigid matrix from world mm of the reference to world mm of the scan.
    gain
        Factor by which the scan is brighter than the joint image, float32 on the scan's grid.
    weights, excess
        One value per slice, see :func:`.robust.slice_weights`.
    agreement
        Correlation of detail, see :func:`.robust.agreement`.
    moved
        How far the scan moved in the last turn, mm.
    reason
        Why the scan is left out; empty if it is used.
    """

    position: Array
    gain: NDArray[np.float32]
    weights: NDArray[np.float32]
    excess: NDArray[np.float64]
    agreement: float = 1.0
    moved: float = 0.0
    reason: str = ""


@define(eq=False)
class Alternation:
    """Scans of a head and what was found of them so far.

    Attributes
    ----------
    given
        The scans.
    reference
        Index of the scan that does not move.
    placed
        What was found of each scan.
    turns
        Number of turns so far.
    target
        Isotropic working grid of 2 mm on the axes of the reference.
    centre
        Centre of the head in the reference, world mm.
    """

    given: Sequence[Given]
    reference: int = 0
    placed: list[Placed] = field(init=False)
    turns: int = field(init=False, default=0)
    target: Grid = field(init=False)
    centre: Array = field(init=False)
    _images: dict[int, torch.Tensor] = field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        own = self.given[self.reference]
        self.target = own.grid.isotropic(WORKING_MM)
        self.centre = centre_of(own.inside, own.grid.affine)
        self.placed = [
            Placed(
                np.eye(4),
                np.ones(scan.grid.shape, dtype=np.float32),
                np.ones(scan.grid.shape[scan.slice_axis], dtype=np.float32),
                np.zeros(scan.grid.shape[scan.slice_axis]),
            )
            for scan in self.given
        ]

    @property
    def used(self) -> list[int]:
        """Indices of the scans that are not left out."""
        return [s for s, placed in enumerate(self.placed) if not placed.reason]

    def run(self) -> None:
        """Place all scans, and leave out those that do not fit."""
        alone = self._image([self.reference], self.reference)
        for s in range(len(self.given)):
            if s != self.reference:
                self._start(s, alone)
        for turn in range(TURNS):
            self.turns = turn + 1
            if len(self.used) < 2:
                return
            for s in self.used:
                self._place(s, others=[o for o in self.used if o != s])
            # With two scans the image of the other one stays as it is.
            if len(self.used) == 2 or max(self.placed[s].moved for s in self.used) < STILL_MM:
                return

    def lie_as(self, s: int) -> None:
        """Take another scan as the one that does not move, and whose brightness is that of the image."""
        if s == self.reference:
            return
        own = self.placed[s]
        to_own, gain = np.linalg.inv(own.position), np.float32(np.median(own.gain[self.given[s].inside]))
        self.centre = np.asarray(apply_affine(own.position, self.centre))
        for placed in self.placed:
            placed.position, placed.gain = placed.position @ to_own, placed.gain / gain
        self.reference = s

    def _start(self, s: int, image: torch.Tensor) -> None:
        """Align a scan with the reference alone. Two starts are tried: the header's, and the centres of the heads."""
        given, placed = self.given[s], self.placed[s]
        apart = np.eye(4)
        apart[:3, 3] = centre_of(given.inside, given.grid.affine) - self.centre
        tried = []
        for start in (np.eye(4), apart):
            try:
                position, correlation = refine(image, self.target, self._movable(s), start, self.centre, (8.0,))
            except ValueError:
                continue
            tried.append((correlation, position))
        if not tried:
            placed.reason = "it lies outside of the reference scan"
            return
        position = max(tried, key=lambda found: found[0])[1]
        try:
            placed.position, _ = refine(image, self.target, self._movable(s), position, self.centre, (4.0, 2.0))
        except ValueError:
            placed.reason = "it could not be aligned to the reference scan"
            return
        self._compare(s, image)

    def _place(self, s: int, others: Sequence[int]) -> None:
        image, placed = self._image(others, s), self.placed[s]
        if s != self.reference:
            before = placed.position
            placed.position, _ = refine(image, self.target, self._movable(s), before, self.centre, (3.0, 1.5))
            placed.moved = distance(before, placed.position, self.centre)
        self._compare(s, image)

    def _compare(self, s: int, image: torch.Tensor) -> None:
        """Find gain and weights of a scan against an image; leave it out if its detail does not agree."""
        given, placed = self.given[s], self.placed[s]
        operator = ScanOperator(given.grid, self.target, given.psf, placed.position)
        predicted = operator.forward(image).numpy()
        inside = given.inside & operator.seen().numpy()
        zooms = given.grid.zooms
        # A slice without signal would lower the gain field around it. So slices are judged first, by one overall gain.
        expected = predicted * np.float32(overall_gain(given.data, predicted, inside))
        # Also where the others see a head: a slice without signal has no foreground of its own.
        head = (given.inside | foreground(predicted)) & operator.seen().numpy()
        weights, excess = slice_weights(given.data, expected, head, given.slice_axis, max(given.sigma, _LEAST_SIGMA))
        believed = np.broadcast_to(_along(weights, given.slice_axis) > _BELIEVED, inside.shape)
        placed.agreement = agreement(given.data, predicted, inside, believed, zooms)
        if placed.agreement < LEAST_AGREEMENT and s != self.reference:
            placed.reason = (
                f"its detail does not agree with the other scans (correlation {placed.agreement:.2f}, at least "
                f"{LEAST_AGREEMENT}): another contrast or head, or not aligned"
            )
            return
        placed.weights, placed.excess = weights, excess
        if s != self.reference:
            placed.gain = gain_field(given.data, predicted, inside & believed, zooms)

    def _movable(self, s: int) -> Movable:
        given, placed = self.given[s], self.placed[s]
        scan = self._scan(s)
        balanced = torch.from_numpy(given.data / placed.gain)
        return Movable(balanced, given.grid, given.psf, torch.from_numpy(given.inside), scan.weight)

    def _scan(self, s: int) -> Scan:
        given = self.given[s]
        operator = ScanOperator(given.grid, self.target, given.psf, self.placed[s].position)
        return placed_scan(given, self.placed[s], operator, max(given.sigma, _LEAST_SIGMA))

    def _image(self, some: Sequence[int], without: int) -> torch.Tensor:
        """Return the image of some scans; it starts from that of the turn before."""
        start = self._images.get(without)
        again = start is not None and self.turns > 1
        image = agree_with_scans(
            torch.zeros(self.target.shape) if start is None or not again else start,
            [self._scan(s) for s in some],
            _PRIOR,
            iterations=_ITERATIONS[again],
        )
        self._images[without] = image
        return image


def placed_scan(given: Given, placed: Placed, operator: ScanOperator, sigma: float) -> Scan:
    """Return a scan for :func:`.solve.agree_with_scans`, with its gain and weights."""
    weight = torch.from_numpy(_along(placed.weights, given.slice_axis)) * operator.seen().float()
    return Scan(torch.from_numpy(given.data), operator, sigma, torch.from_numpy(placed.gain), weight)


def _along(values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Values along an axis, to be broadcast to a volume."""
    return np.expand_dims(values, [a for a in range(3) if a != axis])


def place(given: Sequence[Given]) -> Alternation:
    """Place scans of a head. The image lies as the first scan that is used.

    A scan with bad slices finds fewer of the others than these find each other. So the scans are tried, one after the
    other, as the one that does not move, until all fit, or two that fit together leave out the same.

    Raises
    ------
    ValueError
        If there is no scan.
    """
    if not given:
        raise ValueError("there is no scan to place")
    tried: list[Alternation] = []
    for reference in range(len(given)):
        tried.append(Alternation(given, reference))
        tried[-1].run()
        best = max(tried, key=lambda one: len(one.used))
        lacking = set(range(len(given))) - set(best.used)
        fitting = [one for one in tried if one is not best and one.reference in best.used]
        if any(lacking.isdisjoint(one.used) for one in fitting) or not lacking:
            break
    best.lie_as(best.used[0])
    return best


def gain_facts(placed: Placed, given: Given) -> dict[str, float]:
    """Median and range of the gain inside the head."""
    inside = placed.gain[given.inside]
    low, middle, high = (round(float(v), 3) for v in np.percentile(inside, (5, 50, 95)))
    return {"Median": middle, "Low": low, "High": high}
