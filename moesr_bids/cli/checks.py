"""Checks of the command line against the machine: folders, participants, models, templates."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moesr_bids.bids.dataset import other_dataset
from moesr_bids.bids.sidecars import read_sidecar
from moesr_bids.config import EMBEDDED_TEMPLATE, GRADIENT_EXTENSIONS, SUFFIXES, OutputSpace, Settings
from moesr_bids.console import say
from moesr_bids.errors import UsageError
from moesr_bids.resources import semaphore_problem


def read_filters(path: Path | None) -> Mapping[str, Mapping[str, Any]]:
    """Read a BIDS filter file: suffix (or ``anat`` for all) to PyBIDS filters.

    Filters of other data (``bold``, ``fmap``, ...), such as fMRIPrep's files hold, are ignored, with a message.

    Raises
    ------
    UsageError
        If the file cannot be read, is no JSON object of objects, names an unknown suffix, or asks for other data.

    """
    if path is None:
        return {}
    try:
        filters = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"BIDS filter file {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"BIDS filter file {path} is not valid JSON: {error}") from None
    if not isinstance(filters, dict) or not all(isinstance(value, dict) for value in filters.values()):
        raise UsageError(f'BIDS filter file {path} must look like {{"T1w": {{"acquisition": "mprage"}}}}')
    own = {"anat": "anat", **{suffix.lower(): suffix for suffix in SUFFIXES}}
    if others := [name for name in filters if name.lower() not in own]:
        known = _names_of_data()
        if unknown := [name for name in others if name.lower() not in known]:
            raise UsageError(f"BIDS filter file {path}: {unknown[0]} is none of {', '.join(SUFFIXES)}, anat")
        say(f"{path}: filters of other data are left aside: {', '.join(others)}")
    return {
        own[name.lower()]: _plain_filter(path, own[name.lower()], chosen)
        for name, chosen in filters.items()
        if name not in others
    }


def _names_of_data() -> set[str]:
    """Return the names of kinds of data in filter files, in small letters: BIDS suffixes, data types, fMRIPrep's."""
    from bidsschematools.schema import load_schema

    objects = load_schema().objects
    return {name.lower() for name in (*objects.suffixes, *objects.datatypes, "roi", "petref")}


def _plain_filter(path: Path, name: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Remove ``datatype`` and ``suffix`` from a filter, as fMRIPrep's have them; refuse other values than its own."""
    of_itself = {"datatype": "anat"} if name == "anat" else {"datatype": "anat", "suffix": name}
    for key, expected in of_itself.items():
        told = chosen.get(key, expected)
        if expected.lower() not in (str(one).lower() for one in (told if isinstance(told, list) else [told])):
            raise UsageError(f"BIDS filter file {path}: the {key} of {name} is {expected}, not {told}")
    return {key: value for key, value in chosen.items() if key not in ("datatype", "suffix")}


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean ...?)`` with the known word nearest to `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f" (did you mean {close[0]}?)" if close else ""


def _is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _check_folders(settings: Settings) -> None:
    bids_dir, output_dir = settings.bids_dir, settings.output_dir
    if not bids_dir.is_dir():
        raise UsageError(f"input folder {bids_dir} does not exist")
    if _is_inside(output_dir, bids_dir):
        raise UsageError(f"output folder {output_dir} lies inside the input {bids_dir}; choose one outside it")
    if _is_inside(bids_dir, output_dir):
        raise UsageError(f"input {bids_dir} lies inside the output folder {output_dir}; choose another output folder")
    if name := other_dataset(output_dir):
        raise UsageError(f"{output_dir} holds another data set ({name}); choose another output folder")
    if output_dir.exists() and not output_dir.is_dir():
        raise UsageError(f"{output_dir}, given as the output folder, is a file")


def _check_work_folder(settings: Settings) -> None:
    bids_dir, work_dir = settings.bids_dir, settings.work_dir
    if _is_inside(work_dir, bids_dir):
        raise UsageError(f"work folder {work_dir} lies inside the input {bids_dir}; choose another with --work-dir")
    if work_dir.resolve() == settings.output_dir.resolve():
        raise UsageError(f"work folder and output folder are both {work_dir}; choose another with --work-dir")
    if work_dir.exists() and not work_dir.is_dir():
        raise UsageError(f"{work_dir}, given as --work-dir, is a file")
    if found := [character for character in ",[]" if character in str(work_dir)]:
        raise UsageError(f"ANTs cannot use the {found[0]!r} of {work_dir}; choose another folder with --work-dir")


def _check_group(settings: Settings) -> None:
    if not settings.output_dir.is_dir():
        raise UsageError(f"output folder {settings.output_dir} does not exist; run the participant level first")
    no_use = {
        "--dry-run": settings.dry_run,
        "--reports-only": settings.reports_only,
        "--boilerplate-only": settings.boilerplate_only,
        "--participant-label": settings.participant_label,
        "--session-label": settings.session_label,
        "--bids-filter-file": settings.bids_filter_file,
        "--export-raw": settings.export_raw,
    }
    if given := [option for option, value in no_use.items() if value]:
        raise UsageError(
            f"the group level takes all images and has no use for {given[0]}; leave it out, also of --config-file"
        )


def _check_raw(settings: Settings) -> None:
    description = read_sidecar(settings.bids_dir / "dataset_description.json")
    if str(description.get("DatasetType")).lower() == "derivative":
        raise UsageError(
            f"{settings.bids_dir} is a derivative data set ({description.get('Name') or 'without a name'}): its images "
            "are no longer as acquired; give the raw data set that it was made from"
        )
    if any(maker.get("Name") == "moesr-bids" for maker in description.get("GeneratedBy") or ()):
        raise UsageError(f"{settings.bids_dir} holds super-resolved images (--export-raw); give the scans")


def _check_export(settings: Settings) -> None:
    if settings.export_raw is None:
        return
    from moesr_bids.run.export import target_problem  # it reads images

    if problem := target_problem(settings.export_raw, settings.output_dir, settings.bids_dir):
        raise UsageError(f"--export-raw: {problem}")


def _check_participants(settings: Settings) -> None:
    # A cluster task names its participants; then the others are not listed.
    missing = [label for label in settings.participant_label if not (settings.bids_dir / f"sub-{label}").is_dir()]
    folders = settings.participant_label
    if missing or not folders:
        folders = tuple(sorted(path.name.removeprefix("sub-") for path in settings.bids_dir.glob("sub-*/")))
    if not folders:
        raise UsageError(f"{settings.bids_dir} holds no participant (no folder sub-*); is it a BIDS data set?")
    for label in missing:
        raise UsageError(f"participant {label} is not in {settings.bids_dir}{nearest(label, folders)}")
    chosen = folders
    sessions = {
        path.name.removeprefix("ses-") for label in chosen for path in settings.bids_dir.glob(f"sub-{label}/ses-*")
    }
    for label in settings.session_label:
        if label not in sessions:
            raise UsageError(f"session {label} is not in {settings.bids_dir}{nearest(label, sorted(sessions))}")


def _check_choices(settings: Settings) -> None:
    from moesr_bids.sr.models import model_names, weights_sha256

    names = model_names()
    try:
        weights_sha256(settings.sr.model)
    except ValueError as error:
        raise UsageError(f"{error}{nearest(settings.sr.model, names)}") from None
    _check_sampling(settings)
    if settings.use_plugin:
        from moesr_bids.workflows.execution import read_plugin

        try:
            read_plugin(settings.use_plugin)
        except ValueError as error:
            raise UsageError(str(error)) from None
    # With a plugin, or in a dry run, the GPUs may be on other machines.
    if settings.sr.device == "cuda" and not settings.use_plugin and not settings.dry_run:
        from moesr_bids.interfaces.gpus import gpu_problem

        if problem := gpu_problem():
            raise UsageError(f"--device cuda: {problem}; use --device cpu")


def _check_sampling(settings: Settings) -> None:
    from moesr_bids.sr.models import refuse_unused

    try:
        refuse_unused(settings.sr.model, sampling=settings.sr.sampling)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _check_derivatives(settings: Settings) -> None:
    for root in settings.derivatives:
        if not root.is_dir():
            raise UsageError(f"--derivatives {root}: no such folder")
        if not any(root.glob("sub-*")):
            raise UsageError(f"--derivatives {root}: has no sub-* folder; name the root of BIDS derivatives")


def _check_gradients(settings: Settings) -> None:
    source = settings.gradient_coefficients
    if source is None:
        if settings.gradunwarp == "force":
            raise UsageError("--gradunwarp force needs --gradient-coefficients")
        return
    if not source.exists():
        raise UsageError(f"--gradient-coefficients {source}: no such file or folder")
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    files = [path for path in files if path.name.lower().endswith(GRADIENT_EXTENSIONS)]
    if not files:
        raise UsageError(f"--gradient-coefficients {source}: neither .grad nor .nii.gz; other formats are not read")
    from moesr_bids.bids.gradients import is_coefficients
    from moesr_bids.errors import ImageError
    from moesr_bids.preproc.gradients import load_field, read_coefficients

    for path in files:
        try:
            _ = read_coefficients(path) if is_coefficients(path) else load_field(path)
        except ImageError as error:
            raise UsageError(f"--gradient-coefficients: {error}") from None


def _check_templates(settings: Settings) -> None:
    if settings.output_spaces == (OutputSpace(EMBEDDED_TEMPLATE),):
        return
    from moesr_bids.preproc.template import TemplateNotFoundError, load_template, template_grid

    for space in settings.output_spaces:
        try:
            load_template(space.template)  # images are registered to it at 1 mm
            template_grid(space, settings.sr.resolution)
        except TemplateNotFoundError as error:
            raise UsageError(str(error)) from None


def _check_writable(settings: Settings) -> None:
    for folder in (settings.output_dir, settings.work_dir):
        parent = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            raise UsageError(f"no permission to write to {folder}")


def _check_semaphores() -> None:
    """Refuse a machine without semaphores, which parallel processes need; Python keeps them in /dev/shm."""
    if problem := semaphore_problem():
        raise UsageError(problem)


def check_settings(settings: Settings) -> None:
    """Refuse settings that cannot work.

    Raises
    ------
    UsageError
        With one sentence that says what is wrong and, where that is not plain, what to do.

    """
    _check_folders(settings)
    if settings.analysis_level == "group":
        _check_group(settings)
        return
    _check_work_folder(settings)
    _check_raw(settings)
    _check_participants(settings)
    _check_choices(settings)
    _check_gradients(settings)
    _check_derivatives(settings)
    _check_export(settings)
    _check_templates(settings)
    if not settings.dry_run:
        _check_writable(settings)
        _check_semaphores()
