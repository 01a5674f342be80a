"""``moesr train``: train a model on your own scans."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..arguments import positive_float, positive_int
from .scans import are_folders, label_of, unknown_participant
from .training_data import load_training_data, say

if TYPE_CHECKING:
    from ..sr.weights import Network, Weights
    from ..training.loop import Trained

WEIGHTS = "weights.safetensors"
_SOURCES = ("start", "trunk", "teacher")
# End of the message about an error of the file system, and what the message about full memory advises.
LEFT = "what was saved is in --out, and the same command goes on from there"
WAY_OUT = "a smaller patch or batch in the recipe, or fewer scans, which a GPU holds"


def add_parser(commands: Any) -> None:
    """Add the command to those of ``moesr``."""
    parser = commands.add_parser(
        "train",
        help="train a model",
        description="Train a model on the sharp T1w, T2w and FLAIR scans of a BIDS folder. The same command with the "
        "same --out continues it. Under torchrun it uses one process per GPU.",
    )
    parser.add_argument("--data", type=Path, metavar="BIDS_DIR", help="scans to train on")
    parser.add_argument(
        "--pairs",
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="coarse and sharp scans of the same heads, to train on as well: two BIDS folders, or two entities of "
        "--data such as acq-64mT and acq-3T",
    )
    parser.add_argument(
        "--synthesis",
        action="store_true",
        help="the contrasts of the pairs differ: train a model that translates one into the other",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders with label maps (*_dseg.nii.gz, FreeSurfer numbers) for synthetic volumes",
    )
    parser.add_argument(
        "--segmentations",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders with segmentations of the scans on their grids (*_dseg.nii.gz, FreeSurfer numbers), such as "
        "moesr segment makes, and with lesion masks (*_label-lesion_mask.nii.gz). The gate of a mixture of experts "
        "learns the tissues from them; recipes with lesions need them to find lesions and white matter",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for weights, state and log")
    parser.add_argument("--recipe", default="student", help="name of a recipe, or a .yml file (default: student)")
    parser.add_argument(
        "--participant-label",
        nargs="+",
        default=[],
        metavar="LABEL",
        help="participants to train on (default: all that are not for validation)",
    )
    parser.add_argument(
        "--validation-label",
        nargs="+",
        default=[],
        metavar="LABEL",
        help="participants for validation; they are never trained on",
    )
    parser.add_argument("--minutes", type=positive_float, metavar="N", help="stop after this time")
    parser.add_argument("--steps", type=positive_int, metavar="N", help="stop at this step")
    parser.add_argument("--start", type=Path, metavar="FILE", help="weights to start a new training from")
    parser.add_argument(
        "--trunk", type=Path, metavar="FILE", help="one-step weights that replace the trunk of the mixture of --start"
    )
    parser.add_argument("--teacher", type=Path, metavar="FILE", help="weights to learn from, for distillation recipes")
    parser.add_argument("--licence", default="", help="terms of the data, for the card")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    parser.add_argument("--omp-nthreads", type=positive_int, metavar="N", help="CPU threads")
    parser.add_argument("--random-seed", type=int, default=0, metavar="SEED", help="(default: 0)")


def usage_problem(options: argparse.Namespace) -> str | None:
    """Return what is wrong with the options; None if nothing is."""
    if problem := _source_problem(options):
        return problem
    if options.trunk and not options.start:
        return "--trunk replaces that of a mixture: name it with --start"
    if options.minutes is None and options.steps is None:
        return "say when to stop: --minutes or --steps"
    both = set(map(label_of, options.participant_label)) & set(map(label_of, options.validation_label))
    if both:
        return f"participant {sorted(both)[0]} is named for training and for validation"
    folder = options.data or Path(options.pairs[0])
    return unknown_participant(folder, (*options.participant_label, *options.validation_label))


def _source_problem(options: argparse.Namespace) -> str | None:
    """Return what is wrong with the training data that the options name; None if nothing is."""
    for folder in filter(None, (options.data, *options.labels, *options.segmentations)):
        if not folder.is_dir():
            return f"{folder}: no such folder"
    if options.synthesis and not options.pairs:
        return "--synthesis is of pairs: name them with --pairs LOW HIGH"
    if options.pairs and not options.data and not are_folders(options.pairs):
        return f"--pairs {' '.join(options.pairs)}: neither two folders, nor entities of a data set that --data names"
    if not options.data and not options.pairs:
        return "say what to train on: --data BIDS_DIR, or --pairs LOW HIGH"
    return None


def run(options: argparse.Namespace) -> int:
    """Train; return the exit code."""
    import torch

    from ..sr.device import choose_device, full_memory_told
    from ..sr.weights import Weights, write_weights
    from ..training.recipe import read_recipe

    try:
        from ..training.loop import Budget, Origin, train
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; training needs: pip install 'moesr-bids[train]'") from error
    if options.omp_nthreads:
        torch.set_num_threads(options.omp_nthreads)
    device, recipe = choose_device(options.device), read_recipe(options.recipe)
    if recipe.kind == "segmentation":
        from .train_segmentation import train_segmentation

        return train_segmentation(options, recipe, device)
    data = load_training_data(options, recipe)
    named = {name: Weights.read(path) for name in _SOURCES if (path := getattr(options, name))}
    origin = Origin(
        weights={name: weights.sha256 for name, weights in named.items()},
        participants=set().union(*(weights.participants for weights in named.values())),
    )
    options.out.mkdir(parents=True, exist_ok=True)
    with full_memory_told(WAY_OUT):
        trained = train(
            recipe,
            options.out,
            volumes=data.volumes,
            labels=data.labels,
            held_out=data.held_out,
            pairs=data.pairs,
            budget=Budget(minutes=options.minutes, steps=options.steps),
            device=device,
            seed=options.random_seed,
            start=_start(named),
            teacher=named["teacher"].network(torch.device("cpu")) if "teacher" in named else None,
            origin=origin,
            workers=planners(device.type, options.omp_nthreads),
            validate_minutes=min(10.0, options.minutes / 4) if options.minutes and device.type == "cuda" else 10.0,
            say=say,
        )
    if os.environ.get("RANK", "0") == "0":
        facts = {"participants": trained.participants, **data.facts(), "licence": options.licence}
        weights = write_weights(options.out / WEIGHTS, trained.network, _card(trained, facts, device, options, named))
        say(f"wrote {weights.path}")
    return 0


def _start(named: Mapping[str, Weights]) -> Network | None:
    """Read the network to start from, if one is named."""
    import torch

    from ..sr.models.mixture import MixtureNetwork
    from ..sr.models.network import ResidualNetwork

    if "start" not in named:
        return None
    start = named["start"].network(torch.device("cpu"))
    if "trunk" in named:
        trunk = named["trunk"].network(torch.device("cpu"))
        if not isinstance(start, MixtureNetwork) or not isinstance(trunk, ResidualNetwork):
            raise ValueError("--trunk takes the weights of a one-step network, for the mixture of experts of --start")
        start.trunk.load_state_dict(trunk.grown(start.shape.trunk).state_dict())
    return start


def planners(device: str, threads: int | None) -> int:
    """Return the number of processes that plan examples for a GPU, one CPU less than there are; 0 on a CPU."""
    from ..resources import available_cpus

    if device == "cpu":
        return 0
    return max(1, (threads or available_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) - 1)


def _card(
    trained: Trained, data: dict[str, Any], device: Any, options: argparse.Namespace, named: Mapping[str, Weights]
) -> dict[str, Any]:
    from ..training.loop import learning_curve

    card: dict[str, Any] = {
        "name": options.recipe if not options.recipe.endswith((".yml", ".yaml")) else Path(options.recipe).stem,
        "kind": "student" if trained.recipe.kind == "distill" else trained.recipe.kind,
        "version": __version__,
        "commit": commit(),
        "guidance": list(trained.recipe.guidance),
        "data": data,
        **({"synthesis": True} if options.synthesis else {}),
        "training": training_facts(trained, device, options),
        "patch_gain_db": {name: round(gain, 2) for name, gain in trained.gains.items()},
        "learning_curve": learning_curve(options.out),
    }
    kept = ("training", "learning_curve", "started_from", "trunk", "teacher")
    for name, key in (("start", "started_from"), ("trunk", "trunk"), ("teacher", "teacher")):
        if weights := named.get(name):
            before = {fact: weights.card[fact] for fact in kept if fact in weights.card}
            card[key] = {"sha256": weights.sha256, **before}
    return card


def training_facts(trained: Trained, device: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Return the facts of a training for the card."""
    import torch

    return {
        "steps": trained.steps,
        "minutes": trained.minutes,
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu(torch.get_num_threads()),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "random_seed": options.random_seed,
        "recipe": trained.recipe.record(),
    }


def commit() -> str:
    """Return the commit of this source, ending in -dirty if it was changed; n/a for an installed package."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
    try:
        # The package may lie in a repository that does not hold it.
        subprocess.run(
            [*command[:3], "ls-files", "--error-unmatch", Path(__file__).name], check=True, capture_output=True
        )
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "n/a"


def _cpu(threads: int) -> str:
    from ..resources import cpu_name

    return f"{cpu_name()}, {threads} threads, {platform.machine()}"
