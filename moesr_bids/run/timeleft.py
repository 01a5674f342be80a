"""Time left in a run: the estimates of the plans, corrected by the times of the steps so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from moesr_bids.console import duration_words

if TYPE_CHECKING:
    from moesr_bids.bids.plan import ImagePlan

_TRUSTED_SECONDS = 60.0  # weight of the estimates, in seconds of measured time


class TimeLeft:
    """Estimate of the time until all images are done.

    Parameters
    ----------
    plans : iterable of ImagePlan
        Images of the run.
    now : callable
        Clock, in seconds.

    """

    def __init__(self, plans: Iterable[ImagePlan], now: Callable[[], float] = time.monotonic) -> None:
        plans = list(plans)
        self._costs = {plan.image.workflow_name: plan.cost for plan in plans}
        self._left = {plan.image.workflow_name: plan.seconds for plan in plans}
        # Scans that are prepared for a joined image alone: their steps count as its own.
        self._image: dict[str, str] = {}
        for plan in plans:
            for name, cost in plan.costs_of_scans().items():
                self._costs.setdefault(name, cost)
                self._image.setdefault(name, plan.image.workflow_name)
        self._now, self._begun = now, now()
        self._worked = 0.0  # planned seconds of the steps that ran

    def ended(self, image: str, step: str, *, ran: bool = True) -> None:
        """Note the end of a step of an image; `ran` is False if an earlier run had done it."""
        planned = self._planned(image, step)
        whole = self._image.get(image, image)
        if whole in self._left:
            self._left[whole] = max(0.0, self._left[whole] - planned)
        if ran:
            self._worked += planned

    def image_ended(self, image: str) -> None:
        """Note that an image is finished or has failed."""
        if image in self._left:
            self._left[image] = 0.0

    def seconds(self, running: Iterable[tuple[str, str, float]] = ()) -> float:
        """Return the time left in seconds.

        Parameters
        ----------
        running : iterable of tuple
            Image, step and seconds so far of each step that runs.

        """
        part = sum(min(so_far, self._planned(image, step)) for image, step, so_far in running)
        measured = self._now() - self._begun
        pace = (measured + _TRUSTED_SECONDS) / (self._worked + part + _TRUSTED_SECONDS)
        return pace * max(0.0, sum(self._left.values()) - part)

    def words(self, running: Iterable[tuple[str, str, float]] = ()) -> str:
        """Return the time left in words."""
        seconds = self.seconds(running)
        return "less than 2 min left" if seconds < 100 else f"about {duration_words(seconds)} left"

    def _planned(self, image: str, step: str) -> float:
        cost = self._costs.get(image)
        return cost.seconds_of(step) if cost else 0.0
