"""Steps of an image in plain words, for screen and pages; files and statuses keep the names of the nodes."""

from __future__ import annotations

import re

SUPER_RESOLUTION = "super_resolve"
_WORDS = {
    "collect": "search for images",
    "conform": "header check",
    "gradunwarp": "gradient nonlinearity",
    "brain_mask": "brain mask",
    "n4": "bias field",
    "coregister": "alignment to the session's reference",
    "register": "registration to {}",
    SUPER_RESOLUTION: "super-resolution",
    "target_mask": "brain mask of the output",
    "segment": "segmentation of the output",
    "warp": "output in the space of {}",
    "quality": "image quality",
    "reportlets": "figures",
    "publish": "writing of the outputs",
}
_STAGE_WORDS = {
    "prepare": "reading and preparation",
    "reconstruct": "reconstruction",
    "project": "projection onto the scan",
    "each scan": "reading of the scans",
    "positions": "alignment of the scans",
    "mean": "mean of the scans",
    "agree": "agreement with the scans",
    "join": "joining",
    "compare": "comparison with the scans",
}
# Steps with one node per template or space: "register:TEMPLATE" in records, "register_TEMPLATE" as a node.
_WITH_TEMPLATE = re.compile(r"(register|warp)[:_](.+)")


def step_kind(step: str) -> str:
    """Return the name of a step without its template, space or scan."""
    return found[1] if (found := _WITH_TEMPLATE.fullmatch(step)) else step.partition(":")[0]


def has_words(step: str) -> bool:
    """Whether a node does a step of its own; others only pass files on."""
    return step_kind(step) in _WORDS


def step_words(step: str) -> str:
    """Return a step in plain words; an unknown name stays as it is.

    Examples
    --------
    >>> step_words("n4"), step_words("register:MNI152NLin2009aSym")
    ('bias field', 'registration to MNI152NLin2009aSym')

    """
    if found := _WITH_TEMPLATE.fullmatch(step):
        return _WORDS[found[1]].format(found[2])
    name, _, scan = step.partition(":")  # of a scan of a joined image
    return f"{_WORDS.get(name, name)} of {scan}" if scan else _WORDS.get(step, step)


def stage_words(stage: str) -> str:
    """Return a stage of super-resolution in plain words; an unknown name stays as it is."""
    return _STAGE_WORDS.get(stage, stage)
