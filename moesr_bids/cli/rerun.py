"""``moesr rerun``: repeat an image from its sidecar alone, and tell whether it is the same."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import attrs

from moesr_bids import __version__
from moesr_bids.bids.collect import RawImage
from moesr_bids.bids.dataset import other_dataset
from moesr_bids.bids.outputs import output_paths, settings_hash, sidecar_of
from moesr_bids.bids.sidecars import read_metadata, read_sidecar
from moesr_bids.cli.ending import ended_with_its_children
from moesr_bids.config import Settings
from moesr_bids.digests import sha256
from moesr_bids.sr.models import weights_sha256

_RAW = "bids:raw:"
_UNLIMITED_GB = 1024.0  # of a run whose sidecar tells no limit of its memory
# Where these differ, equal voxels are not promised.
_MACHINE = ("Device", "Precision", "Threads", "Runtime", "Windows")
# What the steps before the model found, in their order: the first that differs is where the two runs part.
_FINDINGS = ("GradientNonlinearity", "BrainMask", "BiasField", "NoiseStd", "Faithfulness")


@attrs.frozen
class Recipe:
    """What a sidecar says of how its image was made.

    Attributes
    ----------
    image : RawImage
        The input, with the reference that it had.
    block : Mapping
        The ``Moesr`` object.

    """

    image: RawImage
    block: Mapping[str, Any]

    def settings(self, output_dir: Path, work_dir: Path) -> Settings:
        """Return the settings of the run that repeats it."""
        device = "cuda" if str(self.block.get("Device", "")).startswith("cuda") else "cpu"
        threads = self.block["Settings"].get("omp-nthreads", 1)
        return Settings.from_recorded(
            self.block["Settings"],
            bids_dir=self.image.root,
            output_dir=output_dir,
            work_dir=work_dir,
            analysis_level="participant",
            participant_label=(self.image.participant,),
            device=device,
            nprocs=threads,
            mem_gb=self.block.get("MemoryLimitGB", _UNLIMITED_GB),
        )


def run(options: argparse.Namespace) -> int:
    """Repeat the image; return 0 where it is the same."""
    recipe = read_recipe(options.sidecar, options.bids_dir)
    with tempfile.TemporaryDirectory(prefix="moesr_rerun_") as folder:
        output_dir = options.output_dir or Path(folder) / "out"
        settings = recipe.settings(output_dir.absolute(), Path(folder) / "work")
        check(recipe, settings)
        _refuse_old_outputs(recipe, settings)
        with ended_with_its_children():  # before the folder goes that they write to
            block = _repeat(recipe, settings)
    if block["OutputSHA256"] == recipe.block["OutputSHA256"]:
        print(f"the same: SHA-256 {block['OutputSHA256']}")
        return 0
    print(f"not the same: SHA-256 {block['OutputSHA256']}, recorded {recipe.block['OutputSHA256']}")
    others = [name for name in _MACHINE if block.get(name) != recipe.block.get(name)]
    for name in others:
        print(f"{name} was {recipe.block.get(name)}, is {block.get(name)}")
    if parted := [name for name in _FINDINGS if block.get(name) != recipe.block.get(name)]:
        print(
            f"the first result that differs is {parted[0]}: {recipe.block.get(parted[0])}, now {block.get(parted[0])}"
        )
    if not others:
        print("device, precision, threads and windows are those recorded: another processor or other library versions")
    return 1


def read_recipe(sidecar: Path, bids_dir: Path | None) -> Recipe:
    """Read a sidecar.

    Parameters
    ----------
    sidecar : pathlib.Path
        JSON file of a main output.
    bids_dir : pathlib.Path or None
        Data set of the input; None for the one that ``dataset_description.json`` above the sidecar links to.

    Raises
    ------
    ValueError
        If the sidecar is not of a main output, or the input is not found.

    """
    content = read_sidecar(sidecar)
    block = content.get("Moesr")
    if not isinstance(block, dict):
        raise ValueError(f"{sidecar}: not the sidecar of a super-resolved image (..._desc-moesr_....json)")
    if missing := [name for name in ("Settings", "InputSHA256", "OutputSHA256", "SettingsHash") if name not in block]:
        raise ValueError(f"{sidecar}: does not tell {missing[0]}; it was made by a version that cannot be repeated")
    source = next((str(text) for text in content.get("Sources", []) if str(text).startswith(_RAW)), None)
    if source is None:
        raise ValueError(f"{sidecar}: no source {_RAW}... is recorded")
    root = bids_dir.absolute() if bids_dir else _raw_root(sidecar)
    image = _raw_image(root, source.removeprefix(_RAW))
    reference = block.get("SessionReference") or {}
    if reference.get("Used"):
        image = attrs.evolve(image, reference=_raw_image(root, str(reference["Used"])))
    if reference.get("InsteadOf"):
        better = RawImage(path=root / str(reference["InsteadOf"]), root=root)
        image = attrs.evolve(image, instead_of=better, instead_reason=str(reference.get("Reason", "")))
    return Recipe(image, block)


def check(recipe: Recipe, settings: Settings) -> None:
    """Refuse to repeat what has changed since.

    Raises
    ------
    ValueError
        Naming what differs: version, input, reference, weights, or anything else that decides the image.

    """
    block, image = recipe.block, recipe.image
    if block.get("Version") != __version__:
        raise ValueError(f"made by moesr-bids {block.get('Version')}, this is {__version__}; install that version")
    pairs = [(image.path, block["InputSHA256"])]
    if image.reference is not None:
        pairs.append((image.reference.path, block["SessionReference"].get("UsedSHA256")))
    for path, recorded in pairs:
        if (found := sha256(path)) != recorded:
            raise ValueError(
                f"{path}: SHA-256 {found[:12]}..., recorded {str(recorded)[:12]}...; it has changed since, give the "
                "data set of then by --bids-dir"
            )
    weights = weights_sha256(settings.model)
    if weights != block.get("WeightsSHA256"):
        raise ValueError(
            f"weights of model {settings.model}: SHA-256 {weights[:12]}..., recorded "
            f"{str(block.get('WeightsSHA256'))[:12]}...; install the weights of then"
        )
    if settings_hash(image, settings, block["InputSHA256"]) != block["SettingsHash"]:
        raise ValueError(f"{image.path}: its metadata or the gradient coefficients have changed since")


def _repeat(recipe: Recipe, settings: Settings) -> Mapping[str, Any]:
    from moesr_bids.bids.crashes import crash_files, crashes_by_image
    from moesr_bids.bids.dataset import prepare_output_folder
    from moesr_bids.cli.participant import run_workflow

    os.environ.setdefault("NO_ET", "1")
    os.environ.setdefault("TEMPLATEFLOW_AUTOUPDATE", "off")
    prepare_output_folder(settings)
    earlier = crash_files(settings.output_dir / "logs", [recipe.image])
    error = run_workflow([recipe.image], settings)
    sidecar = settings.output_dir / sidecar_of(output_paths(recipe.image, settings)["moesr"])
    block = read_sidecar(sidecar).get("Moesr")
    if isinstance(block, dict):
        return block
    crash = crashes_by_image(settings.output_dir / "logs", [recipe.image], earlier=earlier).get(recipe.image)
    reason = f"{crash.step}: {crash.reason}" if crash else str(error)
    raise ValueError(f"{recipe.image.path}: failed at {reason}")


def _refuse_old_outputs(recipe: Recipe, settings: Settings) -> None:
    there = settings.output_dir / output_paths(recipe.image, settings)["moesr"]
    if there.exists():
        raise ValueError(f"{there} exists; give another --output-dir")
    if name := other_dataset(settings.output_dir):
        raise ValueError(f"{settings.output_dir} holds another data set ({name}); give another --output-dir")


def _raw_root(sidecar: Path) -> Path:
    for folder in sidecar.absolute().parents:
        description = read_sidecar(folder / "dataset_description.json")
        if link := (description.get("DatasetLinks") or {}).get("raw"):
            return Path(unquote(urlparse(str(link)).path))
    raise ValueError(f"{sidecar}: no dataset_description.json above it links to the input; give --bids-dir")


def _raw_image(root: Path, relative: str) -> RawImage:
    path = root / relative
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the data set of the input by --bids-dir")
    metadata, warnings = read_metadata(path, root)
    return RawImage(path=path, root=root, metadata=metadata, warnings=warnings)


def main(options: argparse.Namespace) -> int:
    """Run the command and turn what is wrong into a message."""
    try:
        return run(options)
    except KeyboardInterrupt:
        print("moesr rerun: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except (ValueError, OSError) as error:
        print(f"moesr rerun: {error}", file=sys.stderr)
        return 1
