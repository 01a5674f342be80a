"""Lines for the person who waits: what runs, what is done, what failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from moesr_bids.console import say

if TYPE_CHECKING:
    from moesr_bids.bids.plan import ImagePlan

# Steps too short to be worth a line.
_QUIET_STEPS = frozenset({"files", "records"})


class Progress:
    """Nipype status callback that prints a line per step.

    Parameters
    ----------
    plans : sequence of ImagePlan
        Images of the run; the references that they are aligned to have lines too.
    began : callable
        Called with the plan of each image of which a step starts for the first time.
    ended : callable
        Called with the plan of each image whose outputs are in place, and, once Nipype has written why, with that of
        each of which a step failed.

    """

    def __init__(
        self,
        plans: Sequence[ImagePlan],
        *,
        began: Callable[[ImagePlan], None],
        ended: Callable[[ImagePlan], None],
    ) -> None:
        self._plans = {plan.image.workflow_name: plan for plan in plans}
        references = {plan.reference.image for plan in plans if plan.reference is not None}
        self._stems = {image.workflow_name: image.stem for image in (*references, *(plan.image for plan in plans))}
        self._began, self._ended = began, ended
        self._started: dict[str, float] = {}
        self._begun: set[str] = set()
        self._failed: list[ImagePlan] = []

    def tell_of_failures(self) -> None:
        """Tell of the images that failed before: Nipype tells of a failure before it writes the crash file."""
        while self._failed:
            self._ended(self._failed.pop())

    def __call__(self, node: Any, status: str) -> None:
        """Take note of ``start``, ``end`` or ``exception`` of a node."""
        self.tell_of_failures()
        if node.name in _QUIET_STEPS:
            return
        name = next(part for part in node.fullname.split(".") if part in self._stems)
        plan = self._plans.get(name)
        if status == "start":
            self._started[node.fullname] = time.monotonic()
            if plan is not None and name not in self._begun:
                self._begun.add(name)
                self._began(plan)
            return
        begun = self._started.pop(node.fullname, None)
        took = "from an earlier run" if begun is None else f"{time.monotonic() - begun:.0f} s"
        say(f"{self._stems[name]}: {node.name} {'failed' if status == 'exception' else 'done'} ({took})")
        if plan is None:
            return
        if node.name == "publish" and status == "end":
            self._ended(plan)
        if status == "exception":
            self._failed.append(plan)
