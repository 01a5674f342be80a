"""Progress of a run in lines: what runs, what is done, what failed, and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from moesr_bids.bids.steps import SUPER_RESOLUTION, has_words, stage_words, step_words
from moesr_bids.console import StandingLine, duration_words, last_share, say
from moesr_bids.run.timeleft import TimeLeft

if TYPE_CHECKING:
    from moesr_bids.bids.plan import ImagePlan


@attrs.frozen
class _Running:
    image: str
    step: str
    began: float
    log: Path | None


class Progress:
    """Nipype status callback that prints a line when a step begins and ends, and lines in between.

    Parameters
    ----------
    plans : sequence of ImagePlan
        Images of the run; their references have lines too.
    began : callable
        Called with the plan of an image when its first step starts.
    ended : callable
        Called with the plan of an image when its outputs are published; and when one of its steps failed, after Nipype
        has written the crash file.

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
        others = {scan for plan in plans for scan in plan.image.scans}
        others |= {scan.reference for scan in others if scan.reference is not None}
        known = (*references, *others, *(plan.image for plan in plans))
        self._stems = {image.workflow_name: image.stem for image in known}
        self._began, self._ended = began, ended
        self._running: dict[str, _Running] = {}
        self._numbers: dict[str, int] = {}
        self._begun: set[str] = set()
        self._failed: list[ImagePlan] = []
        self._left, self._line = TimeLeft(plans), StandingLine()

    def close(self) -> None:
        """Report the images that failed last, and leave the terminal as it was."""
        self._line.close()
        self._tell_of_failures()

    def beat(self) -> None:
        """Print what goes on, after a while of silence; call this repeatedly while steps run."""
        if self._running:
            self._line.tell(self._now)

    def __call__(self, node: Any, status: str) -> None:
        """Handle ``start``, ``end`` or ``exception`` of a node."""
        self._tell_of_failures()
        if not has_words(node.name):  # it only passes files on
            return
        image = next(part for part in node.fullname.split(".") if part in self._stems)
        plan = self._plans.get(image)
        if plan is not None:
            self._numbers.setdefault(image, len(self._numbers) + 1)
        if status == "start":
            self._begin(node, image, plan)
            return
        self._end(self._running.pop(node.fullname, None), image, node.name, status)
        if plan is None:
            return
        if node.name == "publish" and status == "end":
            self._ended(plan)
        if status == "exception":
            self._failed.append(plan)

    def _begin(self, node: Any, image: str, plan: ImagePlan | None) -> None:
        """Print that a step begins."""
        if plan is not None and image not in self._begun:
            self._begun.add(image)
            self._began(plan)
        self._running[node.fullname] = _Running(image, node.name, time.time(), _log_of(node))
        self._say(image, f"{step_words(node.name)} started")

    def _tell_of_failures(self) -> None:
        """Report the images that failed before this call; Nipype calls back before it writes the crash file."""
        while self._failed:
            self._ended(self._failed.pop())

    def _end(self, running: _Running | None, image: str, step: str, status: str) -> None:
        """Print that a step ended, failed, or was done by an earlier run."""
        self._left.ended(image, step, ran=running is not None)
        if status == "exception" or step == "publish":
            self._left.image_ended(image)
        word = "failed" if status == "exception" else "done"
        if running is None:
            self._say(image, f"{step_words(step)} {word} by an earlier run")
            return
        took = duration_words(time.time() - running.began)
        self._say(image, f"{step_words(step)} {word} in {took}; {self._left.words(self._so_far())}")

    def _say(self, image: str, text: str) -> None:
        say(f"{self._name(image)}: {text}")
        self._line.said()

    def _name(self, image: str) -> str:
        number = self._numbers.get(image)
        return f"{self._stems[image]}, " + (f"image {number} of {len(self._plans)}" if number else "for the others")

    def _so_far(self) -> Iterator[tuple[str, str, float]]:
        now = time.time()
        return ((one.image, one.step, now - one.began) for one in self._running.values())

    def _now(self) -> str:
        """Return what runs, in one line."""
        parts = [self._of_step(running) for running in self._running.values()]
        return f"{'; '.join(parts)}; {self._left.words(self._so_far())}"

    def _of_step(self, running: _Running) -> str:
        told = f"{self._name(running.image)}: {step_words(running.step)}"
        if running.log is not None and (share := last_share(running.log, running.began)):
            told += f", {stage_words(share[0])} {share[1]:.0%}"
        return f"{told}, {duration_words(time.time() - running.began)} so far"


def _log_of(node: Any) -> Path | None:
    """Return the file with the progress of a step, if it writes one."""
    from moesr_bids.interfaces.sr import SR_LOG  # with Nipype, which takes a second to import

    return Path(node.output_dir()) / SR_LOG if node.name == SUPER_RESOLUTION else None
