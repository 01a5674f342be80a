"""Names of the derivatives of an image, and whether they are there."""

from __future__ import annotations

import logging
from pathlib import Path

import attrs

from moesr_bids.bids.collect import RawImage
from moesr_bids.bids.gradients import plan_gradunwarp
from moesr_bids.bids.record import Record, SessionReference, read_record
from moesr_bids.bids.schema import RecordError, inner_path, inside
from moesr_bids.bids.sidecars import read_metadata
from moesr_bids.config import Settings
from moesr_bids.digests import sha256
from moesr_bids.sr.models import EXPERTS, weights_sha256

_LOG = logging.getLogger(__name__)

# Order of entities in file names by the BIDS schema; raw entities not listed here come before all of these.
_LATE_ENTITIES = ("space", "split", "recording", "chunk", "seg", "res", "den", "label", "desc", "from", "to", "mode")


def derivative_path(
    image: RawImage, *, suffix: str | None = None, extension: str = ".nii.gz", **entities: str | None
) -> str:
    """Return the path of a derivative below the output root.

    All entities of the raw image are kept, so that two images never share a name.

    Parameters
    ----------
    image : RawImage
        Image that the derivative comes from.
    suffix : str, optional
        BIDS suffix; the image's own by default.
    extension : str
        File extension with its dot.
    **entities : str or None
        Further entities by short key, such as ``res="0p7mm"``; None leaves one out.

    """
    merged = {**image.entities, **{key: value for key, value in entities.items() if value is not None}}
    early = [key for key in merged if key not in _LATE_ENTITIES]
    late = [key for key in _LATE_ENTITIES if key in merged]
    name = "_".join([f"{key}-{merged[key]}" for key in (*early, *late)] + [suffix or image.suffix]) + extension
    folder = f"sub-{image.participant}" + (f"/ses-{image.session}" if image.session else "")
    return f"{folder}/anat/{name}"


def figure_path(image: RawImage, desc: str, extension: str) -> str:
    """Return the path of a reportlet below the output root."""
    name = Path(derivative_path(image, desc=desc, extension=extension)).name
    return f"sub-{image.participant}/figures/{name}"


def output_paths(image: RawImage, settings: Settings) -> dict[str, str]:
    """Return the NIfTI and transform derivatives of an image.

    Returns
    -------
    dict
        ``moesr``, ``uncertainty`` (of models that know one), ``gate-<expert>`` (of a mixture of experts), ``residual``,
        ``preproc``, ``mask``; ``to-orig``, ``from-orig`` and ``jacobian`` of a correction of gradient nonlinearity;
        ``to-reference`` and ``from-reference`` of an image that is not its session's reference; per template
        ``to-<template>`` and ``from-<template>``; and per output space ``space-<space>``; each with its path below the
        output root.

    """
    res = settings.resolution_label
    # The T1w has the plain mask name; other contrasts have grids of their own and say so.
    space = None if image.suffix == "T1w" else image.suffix
    paths = {
        "moesr": derivative_path(image, res=res, desc="moesr"),
        "uncertainty": derivative_path(image, res=res, desc="uncertainty"),
        **{
            f"gate-{name}": derivative_path(image, res=res, label=name, desc="gate", space=space, suffix="probseg")
            for name in EXPERTS
        },
        "residual": derivative_path(image, desc="residual"),
        "preproc": derivative_path(image, desc="preproc"),
        "mask": derivative_path(image, space=space, res=res, desc="brain", suffix="mask"),
    }
    if plan_gradunwarp(image, settings).corrects:
        common = {"mode": "image", "suffix": "xfm"}
        paths["from-orig"] = derivative_path(image, **{"from": "orig", "to": image.suffix}, **common)
        paths["to-orig"] = derivative_path(image, **{"from": image.suffix, "to": "orig"}, **common)
        paths["jacobian"] = derivative_path(image, desc="jacobian")
    common = {"mode": "image", "suffix": "xfm", "extension": ".h5"}
    if image.reference is not None:
        there = reference_label(image)
        paths["to-reference"] = derivative_path(image, **{"from": image.suffix, "to": there}, **common)
        paths["from-reference"] = derivative_path(image, **{"from": there, "to": image.suffix}, **common)
    for template in settings.templates:
        paths[f"to-{template}"] = derivative_path(image, **{"from": image.suffix, "to": template}, **common)
        paths[f"from-{template}"] = derivative_path(image, **{"from": template, "to": image.suffix}, **common)
    for output in settings.output_spaces:
        paths[f"space-{output}"] = derivative_path(image, space=output.template, res=output.grid or res, desc="moesr")
    return paths


def reference_label(image: RawImage) -> str:
    """Return how transforms name the reference image: by its contrast, where that is another one."""
    assert image.reference is not None
    return image.reference.suffix if image.reference.suffix != image.suffix else "reference"


def sidecar_of(path: str) -> str:
    """Return the path of the JSON file beside a derivative."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/{name.split('.', 1)[0]}.json"


def settings_hash(image: RawImage, settings: Settings, input_sha256: str) -> str:
    """Return the digest of all that decides the outputs of `image`."""
    plan = plan_gradunwarp(image, settings)
    facts = {
        "input": input_sha256,
        "metadata": dict(image.metadata),
        "weights": weights_sha256(settings.sr.model),
        "gradients": [plan.action, sha256(plan.file) if plan.corrects and plan.file else None],
        "reference": _digest(image.reference, settings),
    }
    return settings.output_hash(facts)


def _digest(reference: RawImage | None, settings: Settings) -> list[str | None] | None:
    """Return all that decides what others get of a reference: its voxels, and what is done to them."""
    if reference is None:
        return None
    plan = plan_gradunwarp(reference, settings)
    try:
        voxels = sha256(reference.path)
    except OSError:
        voxels = None  # it cannot be read, and that is what is known of it
    coefficients = sha256(plan.file) if plan.corrects and plan.file else None
    strength = reference.metadata.get("MagneticFieldStrength")  # it sets the bias field of the reference
    return [voxels, plan.action, plan.patient_position, str(plan.slice_axis), coefficients, str(strength)]


def session_reference(image: RawImage, settings: Settings) -> SessionReference:
    """Return what the record tells of the reference of the session, and of a better one that was no use."""
    used, better = image.reference, image.instead_of
    told = SessionReference()
    if used is not None:
        told = SessionReference(used=inner_path(used.relative), used_sha256=sha256(used.path))
    if better is None:
        return told
    return attrs.evolve(
        told,
        instead_of=inner_path(better.relative),
        instead_of_digest=_digest(better, settings),
        instead_of_finished=finished_record(better, settings) is not None,
        reason=image.instead_reason,
    )


def _as_it_was_made(image: RawImage, told: SessionReference, settings: Settings) -> RawImage:
    """Return the image with the reference that its outputs were made with, if the better one was no use and still is.

    Without this an image beside a broken one would be made anew by every run. One that was killed then, and is finished
    now, is of use.
    """
    planned = image.reference
    if planned is None or told.instead_of != planned.relative:
        return image
    if told.instead_of_digest != _digest(planned, settings):
        return image
    if told.instead_of_finished is False and finished_record(planned, settings) is not None:
        return image
    if told.used is None:
        return attrs.evolve(image, reference=None, instead_of=planned)
    path = image.root / told.used
    used = RawImage(path=path, root=image.root, metadata=read_metadata(path, image.root)[0])
    return attrs.evolve(image, reference=used, instead_of=planned)


def finished_record(image: RawImage, settings: Settings) -> Record | None:
    """Return the record of an image whose outputs are all there and made with the same settings.

    The sidecar of the main output is written last, so its presence says that the others were whole.

    Returns
    -------
    Record or None
        None when the image has to be processed.

    """
    sidecar = settings.output_dir / sidecar_of(output_paths(image, settings)["moesr"])
    if not sidecar.exists():
        return None
    try:
        record = read_record(sidecar)
        files = [inside(settings.output_dir, path) for path in record.outputs]
    except RecordError as error:
        _LOG.warning("%s; the image counts as not done", error)
        return None
    if not files or not all(file.is_file() for file in files):
        return None
    try:
        current = settings_hash(
            _as_it_was_made(image, record.session_reference, settings), settings, sha256(image.path)
        )
    except OSError:
        # An input that is gone or cannot be read any more: the header check says so.
        return None
    return record if record.settings_hash == current else None
