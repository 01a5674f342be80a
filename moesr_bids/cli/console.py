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
    published : callable
        Called with each image whose outputs are in place.

    """

    def __init__(self, images: Sequence[RawImage], published: Callable[[RawImage], None]) -> None:
        self._images = {image.workflow_name: image for image in images}
        self._published = published
        self._started: dict[str, float] = {}

    def __call__(self, node: Any, status: str) -> None:
        """Take note of ``start``, ``end`` or ``exception`` of a node."""
        if node.name in _QUIET_STEPS:
            return
        if status == "start":
            self._started[node.fullname] = time.monotonic()
            return
        image = next(self._images[part] for part in node.fullname.split(".") if part in self._images)
        begun = self._started.pop(node.fullname, None)
        took = "from an earlier run" if begun is None else f"{time.monotonic() - begun:.0f} s"
        say(f"{image.stem}: {node.name} {'failed' if status == 'exception' else 'done'} ({took})")
        if node.name == "publish" and status == "end":
            self._published(image)
