"""``moesr train`` with a recipe of the segmentation: label maps in, weights and card out."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import ImageError
from .scans import find_scans, label_of

if TYPE_CHECKING:
    import torch

    from ..training.heads import HeadMap
    from ..training.loop import Trained
    from ..training.recipe import Recipe


def train_segmentation(options: argparse.Namespace, recipe: Recipe, device: torch.device) -> int:
    """Train; return the exit code.

    Raises
    ------
    ValueError
        If an option has no use here, or a map that is to be kept out is not there.
    ImageError
        If a label map cannot be used.
    """
    from ..segmentation.weights import read_segmenter
    from ..sr.device import full_memory_told
    from ..sr.weights import write_weights
    from ..training.loop import Budget, Origin, train
    from .train import WAY_OUT, WEIGHTS, planners
    from .training_data import say

    if options.data is None:
        raise ValueError("a segmentation needs --data, the scans that label maps may have")
    for name in ("trunk", "teacher", "pairs"):
        if getattr(options, name):
            raise ValueError(f"a segmentation has no use for --{name}; leave it out")
    heads, held_out = _heads(options, recipe.kept_out)
    say(f"{len(heads)} label maps to train on, {len(held_out)} kept out")
    start, origin = None, Origin()
    if options.start:
        start, weights = read_segmenter(options.start)
        origin = Origin(weights={"start": weights.sha256}, participants=weights.participants)
    options.out.mkdir(parents=True, exist_ok=True)
    with full_memory_told(WAY_OUT):
        trained = train(
            recipe,
            options.out,
            volumes=[],
            labels=heads,
            held_out=held_out,
            budget=Budget(minutes=options.minutes, steps=options.steps),
            device=device,
            seed=options.random_seed,
            start=start,
            origin=origin,
            workers=planners(device.type, options.omp_nthreads),
            validate_minutes=min(20.0, options.minutes / 5) if options.minutes else 20.0,
            say=say,
        )
    if os.environ.get("RANK", "0") == "0":
        card = _card(trained, heads, held_out, device, options, version=__version__)
        say(f"wrote {write_weights(options.out / WEIGHTS, trained.network, card).path}")
    return 0


def _heads(options: argparse.Namespace, kept_out: Sequence[str]) -> tuple[list[HeadMap], list[HeadMap]]:
    """Load the label maps to train on, and those kept out: named by the recipe, or by --validation-label."""
    from ..training.heads import load_head_map
    from .training_data import say

    aside = {label_of(name) for name in (*kept_out, *options.validation_label)}
    chosen = set(map(label_of, options.participant_label))
    scans = list(find_scans(options.data, lambda _: True))
    heads: list[HeadMap] = []
    held_out: list[HeadMap] = []
    for path in (path for folder in options.labels for path in sorted(folder.rglob("*_dseg.nii.gz"))):
        participant = label_of(path.name.split("_", 1)[0])
        if chosen and participant not in chosen | aside:
            continue
        scan = next((s for s in scans if _of_scan(path, s)), None)
        head = load_head_map(path, scan)
        (held_out if participant in aside else heads).append(head)
        say(f"{head.name}: {'kept out' if participant in aside else 'trained on'}{', with its scan' if scan else ''}")
    there = {label_of(head.name.split("_", 1)[0]) for head in held_out}
    if missing := sorted(aside - there):
        raise ValueError(f"there is no label map of {', '.join(missing)}, to be kept out, in --labels")
    if not heads:
        raise ImageError("there is no label map to train on: name folders with *_dseg.nii.gz as --labels")
    return heads, held_out


def _of_scan(labels: Path, scan: Path) -> bool:
    """Return whether a scan is of the participant of a label map, and on its grid."""
    import nibabel as nib
    import numpy as np

    if labels.name.split("_", 1)[0] != scan.name.split("_", 1)[0]:
        return False
    one, other = nib.load(labels), nib.load(scan)
    return one.shape == other.shape and np.allclose(one.affine, other.affine, atol=1e-3)


def _card(
    trained: Trained,
    heads: Sequence[HeadMap],
    held_out: Sequence[HeadMap],
    device: torch.device,
    options: argparse.Namespace,
    version: str,
) -> dict[str, Any]:
    from ..segmentation.landmarks import Landmarks
    from ..segmentation.network import Segmenter
    from ..segmentation.structures import STRUCTURES
    from ..training.loop import LOG
    from ..training.segmenter import dice_curve
    from .train import commit, training_facts

    network = trained.network
    assert isinstance(network, Segmenter)
    return {
        "name": Path(options.recipe).stem,
        "kind": trained.recipe.kind,
        "version": version,
        "commit": commit(),
        "classes": [structure.name for structure in STRUCTURES],
        "data": {
            "participants": trained.participants,
            "label_maps": [head.name for head in heads],
            "scans": [head.name for head in heads if head.image is not None],
            "kept_out": [head.name for head in held_out],
            "licence": options.licence,
        },
        "training": training_facts(trained, device, options),
        "landmarks": Landmarks.of_template(network.eval()).record(),
        "dice": {name: round(value, 4) for name, value in trained.gains.items()},
        "learning_curve": dice_curve(options.out / LOG),
    }
