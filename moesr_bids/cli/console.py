"""Lines for the person who waits: what runs, what is done, what failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from moesr_bids.bids.collect import RawImage

# Steps too short to be worth a line.
_QUIET_STEPS = frozenset({"files", "records"})


def say(text: str) -> None:
    """Print a line with the time of day."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


class Progress:
    """Nipype status callback that prints a line per step.

    Parameters
    ----------
    images : sequence of RawImage
        Images of the run.
    references : sequence of RawImage
        Those that others are aligned to; they have lines too.
    began : callable
        Called with each image of which a step starts for the first time.
    ended : callable
        Called with each image whose outputs are in place, and, once Nipype has written why, with each of which a step
        failed.

    """

    def __init__(
        self,
        images: Sequence[RawImage],
        *,
        references: Sequence[RawImage],
        began: Callable[[RawImage], None],
        ended: Callable[[RawImage], None],
    ) -> None:
        self._images = {image.workflow_name: image for image in (*references, *images)}
        self._own = {image.workflow_name for image in images}
        self._began, self._ended = began, ended
        self._started: dict[str, float] = {}
        self._begun: set[str] = set()
        self._failed: list[RawImage] = []

    def settle(self) -> None:
        """Tell of the images that failed before: Nipype tells of a failure before it writes the crash file."""
        while self._failed:
            self._ended(self._failed.pop())

    def __call__(self, node: Any, status: str) -> None:
        """Take note of ``start``, ``end`` or ``exception`` of a node."""
        self.settle()
        if node.name in _QUIET_STEPS:
            return
        image = next(self._images[part] for part in node.fullname.split(".") if part in self._images)
        if status == "start":
            self._started[node.fullname] = time.monotonic()
            if image.workflow_name in self._own - self._begun:
                self._begun.add(image.workflow_name)
                self._began(image)
            return
        begun = self._started.pop(node.fullname, None)
        took = "from an earlier run" if begun is None else f"{time.monotonic() - begun:.0f} s"
        say(f"{image.stem}: {node.name} {'failed' if status == 'exception' else 'done'} ({took})")
        if node.name == "publish" and status == "end":
            self._ended(image)
        if status == "exception" and image.workflow_name in self._own:
            self._failed.append(image)
