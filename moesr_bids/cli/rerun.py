"""``moesr rerun``: repeat an image from its sidecar, and tell whether the result is the same."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

import attrs

from moesr_bids import __version__
from moesr_bids.bids.collect import RawImage
from moesr_bids.bids.dataset import other_dataset
from moesr_bids.bids.joining import joined_image
from moesr_bids.bids.names import image_key
from moesr_bids.bids.plan import ImagePlan, plan_image
from moesr_bids.bids.record import Record, read_record, record_of
from moesr_bids.bids.resume import input_digest, settings_hash
from moesr_bids.bids.schema import inner_path, json_key, read_object
from moesr_bids.bids.sidecars import read_metadata
from moesr_bids.bids.source import raw_folder
from moesr_bids.config import Settings
from moesr_bids.digests import sha256
from moesr_bids.run.ending import ended_with_its_children
from moesr_bids.sr.models import weights_sha256

_RAW = "bids:raw:"
_UNLIMITED_GB = 1024.0  # if the sidecar names no memory limit
# If these differ, equal voxels are not promised.
_MACHINE = ("device", "precision", "threads", "runtime", "windows")
# Results of the steps in their order: the first that differs shows where the two runs part.
_FINDINGS = ("gradient_nonlinearity", "brain_mask", "bias_field", "noise_std", "data_consistency")


@attrs.frozen
class Recipe:
    """How an image was made, from its sidecar.

    Attributes
    ----------
    image : RawImage
        The input, with its reference of then.
    record : Record
        The ``Moesr`` object.

    """

    image: RawImage
    record: Record

    def plan(self, output_dir: Path, work_dir: Path) -> ImagePlan:
        """Return the plan of the image in a run that repeats it."""
        device = "cuda" if self.record.device.startswith("cuda") else "cpu"
        threads = self.record.settings.get("omp-nthreads", 1)
        settings = Settings.from_recorded(
            self.record.settings,
            bids_dir=self.image.root,
            output_dir=output_dir,
            work_dir=work_dir,
            analysis_level="participant",
            participant_label=(self.image.participant,),
            device=device,
            nprocs=threads,
            mem_gb=self.record.memory_limit_gb or _UNLIMITED_GB,
        )
        return plan_image(self.image, settings)


def run(options: argparse.Namespace) -> int:
    """Repeat the image; return 0 if it is the same, else 1."""
    recipe = read_recipe(options.sidecar, options.bids_dir)
    with tempfile.TemporaryDirectory(prefix="moesr_rerun_") as folder:
        output_dir = options.output_dir or Path(folder) / "out"
        plan = recipe.plan(output_dir.absolute(), Path(folder) / "work")
        check(plan, recipe.record)
        _refuse_old_outputs(plan)
        with ended_with_its_children():  # they must end before the folder that they write to is removed
            again = _repeat(plan)
    return _compare(again, recipe.record)


def _compare(again: Record, before: Record) -> int:
    """Print whether two records are of the same image, and what differs first; return the exit code."""
    if again.output_sha256 == before.output_sha256:
        print(f"the same: SHA-256 {again.output_sha256}")
        return 0
    print(f"not the same: SHA-256 {again.output_sha256}, recorded {before.output_sha256}")
    others = [name for name in _MACHINE if getattr(again, name) != getattr(before, name)]
    for name in others:
        print(f"{json_key(name)} was {getattr(before, name)}, is {getattr(again, name)}")
    if parted := [name for name in _FINDINGS if getattr(again, name) != getattr(before, name)]:
        name = parted[0]
        print(f"the first result that differs is {json_key(name)}: {getattr(before, name)}, now {getattr(again, name)}")
    if not others:
        print("device, precision, threads and windows are those recorded: another processor or other library versions")
    return 1


def read_recipe(sidecar: Path, bids_dir: Path | None) -> Recipe:
    """Read the sidecar of a main output.

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
    content = read_object(sidecar)
    record = record_of(content, str(sidecar))
    sources = [name for text in content.get("Sources", []) if (name := str(text)).startswith(_RAW)]
    if not sources:
        raise ValueError(f"{sidecar}: no source {_RAW}... is recorded")
    root = bids_dir.absolute() if bids_dir else _raw_root(sidecar)
    scans = [_raw_image(root, source.removeprefix(_RAW)) for source in sources]
    reference = record.session_reference
    first = scans[0]
    if reference.used:
        first = attrs.evolve(first, reference=_raw_image(root, reference.used))
    if reference.instead_of:
        better = RawImage(path=root / reference.instead_of, root=root)
        first = attrs.evolve(first, instead_of=better, instead_reason=reference.reason or "")
    if record.joined is None:
        return Recipe(first, record)
    # The others have the same reference, if any; their registration is not asked for.
    return Recipe(attrs.evolve(joined_image([first, *scans[1:]]), path=_named_as(sidecar, first)), record)


def _named_as(sidecar: Path, scan: RawImage) -> Path:
    """Return the path of a joined image by the name of its sidecar."""
    return scan.path.with_name(f"{image_key(sidecar.name)}.nii.gz")


def check(plan: ImagePlan, record: Record) -> None:
    """Refuse to repeat an image if its version, input, reference, weights or metadata have changed.

    Raises
    ------
    ValueError
        If something has changed; the message names it.

    """
    if record.version != __version__:
        raise ValueError(f"made by moesr-bids {record.version}, this is {__version__}; install that version")
    pairs = [(plan.image.path, input_digest(plan), record.input_sha256)]
    if plan.reference is not None:
        used = plan.reference.image.path
        pairs.append((used, sha256(used), str(record.session_reference.used_sha256)))
    for path, found, recorded in pairs:
        if found != recorded:
            raise ValueError(
                f"{path}: SHA-256 {found[:12]}..., recorded {recorded[:12]}...; it has changed since, give the "
                "data set of then by --bids-dir"
            )
    model = plan.settings.sr.model
    weights = weights_sha256(model)
    if weights != record.weights_sha256:
        raise ValueError(
            f"weights of model {model}: SHA-256 {weights[:12]}..., recorded "
            f"{record.weights_sha256[:12]}...; install the weights of then"
        )
    if settings_hash(plan, record.input_sha256) != record.settings_hash:
        raise ValueError(f"{plan.image.path}: its metadata or the gradient coefficients have changed since")


def _repeat(plan: ImagePlan) -> Record:
    from moesr_bids.bids.crashes import crash_files, crashes_by_image
    from moesr_bids.bids.dataset import prepare_output_folder
    from moesr_bids.run.workflow import run_workflow

    os.environ.setdefault("NO_ET", "1")
    os.environ.setdefault("TEMPLATEFLOW_AUTOUPDATE", "off")
    image, output_dir = plan.image, plan.settings.output_dir
    prepare_output_folder(plan.settings)
    earlier = crash_files(output_dir / "logs", [image])
    error = run_workflow([plan], plan.settings)
    sidecar = output_dir / plan.main.sidecar_path
    if sidecar.exists():
        return read_record(sidecar)
    crash = crashes_by_image(output_dir / "logs", [image], earlier=earlier).get(image)
    reason = f"{crash.step}: {crash.reason}" if crash else str(error)
    raise ValueError(f"{image.path}: failed at {reason}")


def _refuse_old_outputs(plan: ImagePlan) -> None:
    there = plan.settings.output_dir / plan.main.path
    if there.exists():
        raise ValueError(f"{there} exists; give another --output-dir")
    if name := other_dataset(plan.settings.output_dir):
        raise ValueError(f"{plan.settings.output_dir} holds another data set ({name}); give another --output-dir")


def _raw_root(sidecar: Path) -> Path:
    for folder in sidecar.absolute().parents:
        if root := raw_folder(folder):
            return root
    raise ValueError(f"{sidecar}: no dataset_description.json above it names the input; give --bids-dir")


def _raw_image(root: Path, relative: str) -> RawImage:
    path = root / inner_path(relative)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the data set of the input by --bids-dir")
    metadata, warnings = read_metadata(path, root)
    return RawImage(path=path, root=root, metadata=metadata, warnings=warnings)


def main(options: argparse.Namespace) -> int:
    """Run the command, and turn errors into a message and an exit code."""
    try:
        return run(options)
    except KeyboardInterrupt:
        print("moesr rerun: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except (ValueError, OSError) as error:
        print(f"moesr rerun: {error}", file=sys.stderr)
        return 1
