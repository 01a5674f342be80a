"""Reading Nipype's crash files: step and reason of each failure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

import attrs

from moesr_bids.bids.collect import RawImage

_ERROR_LINE = re.compile(r"^\s*(?:[\w.]+\.)?(\w*(?:Error|Exception|Interrupt|Exit)\w*): (.+)$")


@attrs.frozen
class Crash:
    """A failed step.

    Attributes
    ----------
    node : str
        Full name of the Nipype node.
    reason : str
        Message of the error.
    path : pathlib.Path
        The crash file.

    """

    node: str
    reason: str
    path: Path

    @property
    def step(self) -> str:
        """Name of the step within its image."""
        return self.node.rsplit(".", 1)[-1]


def read_crash(path: Path) -> Crash:
    """Read a Nipype crash file in text format."""
    text = path.read_text(encoding="utf-8", errors="replace")
    node = re.search(r"^Node: (\S+)", text, re.MULTILINE)
    reasons = [match[2] for line in text.splitlines() if (match := _ERROR_LINE.match(line))]
    # Nipype puts its own NodeExecutionError around the error; the step's own comes last.
    # A full disk can leave an empty crash file.
    reason = [*(text.strip().splitlines() or ["no reason was written"]), *reasons][-1]
    return Crash(node=node[1] if node else "unknown", reason=reason.strip(), path=path)


def crash_files(folder: Path, images: Iterable[RawImage]) -> frozenset[Path]:
    """Return the crash files of the images' participants in the ``logs`` folder; names are never used twice."""
    participants = {image.participant for image in images}
    return frozenset(path for participant in participants for path in folder.glob(f"sub-{participant}/crash-*.txt"))


def crashes_by_image(folder: Path, images: Iterable[RawImage], *, earlier: Collection[Path]) -> dict[RawImage, Crash]:
    """Find the first crash of each image.

    Parameters
    ----------
    folder : pathlib.Path
        The ``logs`` folder, with a folder of crash files per participant.
    images : iterable of RawImage
        Images of the run.
    earlier : collection of pathlib.Path
        Crash files that were there before the run. File times cannot tell this: the clock of a file server may differ.

    """
    by_workflow = {image.workflow_name: image for image in images}
    found: dict[RawImage, Crash] = {}
    new = crash_files(folder, by_workflow.values()).difference(earlier)
    for path in sorted(new, key=lambda path: path.stat().st_mtime):
        crash = read_crash(path)
        for part in crash.node.split("."):
            if part in by_workflow:
                found.setdefault(by_workflow[part], crash)
    return found
