"""Training data of ``moesr train`` for super-resolution: sharp scans, label maps, pairs of scans."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from attrs import frozen

from ..console import tell
from ..errors import ImageError
from .scans import are_folders, find_scans, label_of

if TYPE_CHECKING:
    from ..training.pairs import PairedScan
    from ..training.recipe import Recipe
    from ..training.synthesis import LabelMap
    from ..training.volumes import TrainingVolume


@frozen(eq=False)
class TrainingData:
    """Scans, label maps and pairs of the participants to train on, and the sources held out for validation."""

    volumes: list[TrainingVolume]
    labels: list[LabelMap]
    pairs: list[PairedScan]
    held_out: list[TrainingVolume | PairedScan]

    def facts(self) -> dict[str, object]:
        """Return the facts for the card."""
        return {
            "scans": [volume.name for volume in self.volumes],
            "segmented_scans": [volume.name for volume in self.volumes if volume.segmented],
            "lesion_scans": [volume.name for volume in self.volumes if volume.lesions],
            "label_maps": [labels.name for labels in self.labels],
            "pairs": [pair.facts for pair in self.pairs],
            "validation_scans": [source.name for source in self.held_out],
        }


def load_training_data(options: argparse.Namespace, recipe: Recipe) -> TrainingData:
    """Load the data that the options name; scans and pairs that cannot be used are left out, with a message.

    Raises
    ------
    ImageError
        If nothing is left to train on, a label map cannot be used, or a scan could belong to several pairs.
    ValueError
        If the recipe needs lesions or white matter, and they are not known.
    """
    held_out = set(map(label_of, options.validation_label))
    chosen = set(map(label_of, options.participant_label))

    def to_train(label: str) -> bool:
        return label in chosen if chosen else label not in held_out

    data = TrainingData(
        volumes=list(_volumes(options, to_train)),
        labels=_labels(options, to_train),
        pairs=list(_pairs(options, to_train)),
        held_out=[*_volumes(options, held_out.__contains__), *_pairs(options, held_out.__contains__)],
    )
    if not data.volumes and not data.labels and not data.pairs:
        raise ImageError(f"{options.data or options.pairs[0]}: no scan is of use to train on")
    _require_lesions(options.recipe, recipe, data)
    return data


def _volumes(options: argparse.Namespace, wanted: Callable[[str], bool]) -> Iterator[TrainingVolume]:
    from ..training.volumes import load_volume

    # If pairs are entities of the data set, its other scans are not trained on.
    if options.data is None or (options.pairs and not are_folders(options.pairs)):
        return
    for path in find_scans(options.data, wanted):
        try:
            volume = load_volume(path, options.segmentations)
        except ImageError as error:
            say(f"left out: {error}")
            continue
        say(f"{volume.name}: spacing {volume.spacings[0]:.2f} to {volume.spacings[1]:.2f} of its voxels")
        yield volume


def _labels(options: argparse.Namespace, wanted: Callable[[str], bool]) -> list[LabelMap]:
    """Load the label maps of participants to train on; maps of people outside the data set count, unless held out."""
    from ..training.synthesis import load_label_map

    known = {label_of(folder.name) for folder in options.data.glob("sub-*")} if options.data else set()
    held_out = set(map(label_of, options.validation_label))
    maps = [path for folder in options.labels for path in sorted(folder.rglob("*_dseg.nii.gz"))]
    people = [(label_of(path.name.split("_", 1)[0]), path) for path in maps]
    return [load_label_map(p) for label, p in people if label not in held_out and (label not in known or wanted(label))]


def _pairs(options: argparse.Namespace, wanted: Callable[[str], bool]) -> Iterator[PairedScan]:
    if not options.pairs:
        return
    from ..training.pairs import find_pairs, load_pair

    low, high = options.pairs
    for files in find_pairs(None if are_folders((low, high)) else options.data, low, high, wanted):
        try:
            pair = load_pair(files, synthesis=options.synthesis, seed=options.random_seed)
        except ImageError as error:
            say(f"left out: {error}")
            continue
        facts = [f"{key.lower()} {pair.facts[key]:.3g}" for key in ("Agreement", "Misfit") if key in pair.facts]
        say(f"{pair.name}: pair with {', '.join([files.high.name, *facts])}")
        yield pair


def _require_lesions(name: str, recipe: Recipe, data: TrainingData) -> None:
    if recipe.lesion_focus and not any(volume.lesions for volume in data.volumes):
        raise ValueError(
            f"recipe {name} has a lesion_focus, and no scan has a mask of lesions; name a folder with "
            "*_label-lesion_mask.nii.gz as --segmentations, or leave lesion_focus out"
        )
    if recipe.lesions_planted and not any(volume.segmented for volume in data.volumes):
        raise ValueError(
            f"recipe {name} plants lesions into white matter, and of no scan it is known; name a folder of "
            "moesr segment as --segmentations, or leave lesions_planted out"
        )


def say(line: str) -> None:
    """Print a line."""
    tell("moesr train", line)
