"""Sidecars of the derivatives: where each file comes from and what was done to make it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from moesr_bids.bids.collect import RawImage
from moesr_bids.bids.record import Record, SessionReference
from moesr_bids.bids.schema import SCHEMA_VERSION, make, unstructured
from moesr_bids.config import EMBEDDED_TEMPLATE, Settings
from moesr_bids.sr.models import EXPERTS

_TEMPLATES_URL = "https://github.com/templateflow/tpl-"  # BIDS asks for a reference where a template is not of its list
# Facts that become blocks of their own in the ``Moesr`` object, by the step that states them.
_BLOCKS = {"brain_mask": "BrainMask", "n4": "BiasField", "coregister": "Coregistration", "quality": "ImageQuality"}
_TISSUES = dict(zip(EXPERTS, ("deep white matter", "the cortex", "the grey-white junction"), strict=True))
# What the results depend on beside moesr-bids.
_SOFTWARE = ("antspyx", "gradunwarp", "monai", "nibabel", "nipype", "niworkflows", "numpy", "scipy", "torch")
_MEASURED = ("Seconds", "PeakMemoryGB")


def make_record(
    settings: Settings,
    steps: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    gradients: Mapping[str, Any],
    reference: SessionReference,
    settings_hash: str,
    input_sha256: str,
    output_sha256: str,
    outputs: Sequence[str],
) -> Record:
    """Return the record of an image.

    Parameters
    ----------
    settings : Settings
        Settings of the run.
    steps : sequence of (str, Mapping)
        Name of each step and the record it returned, in order. Registrations are named ``register:<template>``.
    gradients : Mapping
        What was decided about gradient nonlinearity: stated also where nothing was done.
    reference : SessionReference
        Which image of the session this one was aligned to.
    settings_hash, input_sha256 : str
        Digests that tell whether the outputs are still what a new run would make.
    output_sha256 : str
        Of the main output's file.
    outputs : sequence of str
        Paths of all outputs of the image below the output root.

    Raises
    ------
    RecordError
        If a step states what `moesr_bids.bids.record` does not know.

    """
    records = dict(steps)
    warnings = [warning for _, record in steps for warning in record.get("Warnings", [])]
    facts = dict(_facts(records["super_resolve"]))
    facts["SchemaVersion"] = SCHEMA_VERSION
    facts["Software"] = {"Python": platform.python_version(), **{name: version(name) for name in _SOFTWARE}}
    facts["RandomSeed"] = settings.sr.random_seed
    facts["GradientNonlinearity"] = _facts(records.get("gradunwarp", gradients))
    for step, name in _BLOCKS.items():
        if step in records:
            facts[name] = _facts(records[step])
    facts["SessionReference"] = unstructured(reference)
    facts["Registration"] = {
        step.partition(":")[2]: _facts(record) for step, record in steps if step.startswith("register:")
    }
    facts["Warnings"] = [*warnings, *([reference.reason] if reference.reason else [])]
    facts["Steps"] = [{"Step": step, **{key: record.get(key) for key in _MEASURED}} for step, record in steps]
    facts["Seconds"] = round(sum(float(record.get("Seconds") or 0) for _, record in steps), 1)
    facts["PeakMemoryGB"] = max((float(record.get("PeakMemoryGB") or 0) for _, record in steps), default=0.0)
    facts |= {"Settings": settings.recorded(), "SettingsHash": settings_hash}
    facts |= {"InputSHA256": input_sha256, "OutputSHA256": output_sha256, "Outputs": list(outputs)}
    return make(Record, facts)


def _facts(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ("Warnings", *_MEASURED)}


def sidecars(
    image: RawImage, settings: Settings, paths: Mapping[str, str], record: Record
) -> dict[str, dict[str, Any]]:
    """Return the JSON content for each derivative.

    Parameters
    ----------
    image : RawImage
        Image that the derivatives come from.
    settings : Settings
        Settings of the run.
    paths : Mapping
        Output key to path below the output root; see `moesr_bids.bids.outputs.output_paths`.
    record : Record
        The ``Moesr`` object.

    Returns
    -------
    dict
        Output key to sidecar content.

    """
    skull_stripped = record.brain_mask.skull_stripped
    raw = f"bids:raw:{image.relative}"
    preproc = f"bids::{paths['preproc']}"
    unwarped = "jacobian" in paths
    corrected = "gradient nonlinearity and the bias field" if unwarped else "the bias field"
    grid = f"{settings.sr.resolution:g} mm isotropic grid along the axes of the input, over its field of view"
    own_grid = "orig" if "space-" not in paths["mask"] else f"bids::{paths['moesr']}"
    contents: dict[str, dict[str, Any]] = {
        "moesr": {
            "Description": f"Image on the target grid by model {settings.sr.model}; Moesr.DataConsistency says how "
            "well it agrees with the acquired image",
            "Sources": [raw, preproc],
            "SkullStripped": skull_stripped,
            "SpatialReference": "orig",
            "Resolution": grid,
            "Moesr": unstructured(record),
        },
        "uncertainty": {
            "Description": "Standard deviation of the error of the super-resolved image, in its units, as the model "
            "predicts it, in steps of 2 % of its median in the brain; Moesr.UncertaintyCalibration of the image says "
            "by which factor it was multiplied, from scans of which contrasts, and how often intervals held",
            "Sources": [preproc, f"bids::{paths['moesr']}"],
            "SkullStripped": skull_stripped,
            "SpatialReference": "orig",
            "Resolution": grid,
        },
        "residual": {
            "Description": "Bias-corrected input minus the acquisition operator applied to the super-resolved image",
            "Units": "noise standard deviations",
            "Sources": [preproc, f"bids::{paths['moesr']}"],
            "SkullStripped": skull_stripped,
            "SpatialReference": "orig",
        },
        "preproc": {
            "Description": f"Input with {corrected} removed, on its own grid",
            "Sources": [raw],
            "SkullStripped": skull_stripped,
            "SpatialReference": "orig",
        },
        **{
            f"gate-{name}": {
                "Description": f"Weight of the expert for {tissue} in each voxel; the weights of the three sum to 1",
                "Sources": [preproc],
                "SpatialReference": own_grid,
                "Resolution": grid,
            }
            for name, tissue in _TISSUES.items()
        },
        "mask": {
            "Type": "Brain",
            "Sources": [preproc],
            "SpatialReference": own_grid,
            "Resolution": grid,
        },
    }
    if unwarped:
        for key, text in {"from-orig": "acquired to the corrected", "to-orig": "corrected to the acquired"}.items():
            contents[key] = {
                "Description": f"ITK displacement field for antsApplyTransforms that brings the {text} image",
                "Type": "nonlinear",
                "Sources": [raw],
            }
        contents["jacobian"] = {
            "Description": "Determinant of the Jacobian of the map from corrected to acquired positions",
            "Units": "1",
            "Sources": [raw],
            "SkullStripped": skull_stripped,
            "SpatialReference": "orig",
        }
    transform = "ITK composite transform for antsApplyTransforms"
    if image.reference is not None:
        for key in ("to-reference", "from-reference"):
            contents[key] = {
                "Description": transform,
                "Type": "rigid",
                "Reference": f"bids:raw:{image.reference.relative}",
                "Sources": [preproc],
            }
    for template in settings.templates:
        for key in (f"to-{template}", f"from-{template}"):
            contents[key] = {
                "Description": transform,
                "Type": "affine and nonlinear",
                "Template": template,
                "Sources": [preproc],
            }
    for space in settings.output_spaces:
        own = f"grid res-{space.grid} of the template"
        contents[f"space-{space}"] = {
            "Description": "Super-resolved image in the space of the template",
            "Sources": [f"bids::{paths['moesr']}", f"bids::{paths[f'to-{space.template}']}"],
            "SkullStripped": skull_stripped,
            **({} if space.template == EMBEDDED_TEMPLATE else {"SpatialReference": _TEMPLATES_URL + space.template}),
            "Interpolation": "cubic B-spline, once",
            "Resolution": own if space.grid else f"{settings.sr.resolution:g} mm isotropic over the template at 1 mm",
        }
    return contents
