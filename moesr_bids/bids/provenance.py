"""Sidecars of the derivatives: sources of each file, and the record of how the image was made."""

from __future__ import annotations

import platform
from collections.abc import Container, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from moesr_bids.bids.plan import ImagePlan
from moesr_bids.bids.record import Record
from moesr_bids.bids.resume import failed_scans, input_digest, session_reference, settings_hash
from moesr_bids.bids.schema import SCHEMA_VERSION, make, unstructured

# Steps whose records become blocks of their own in the ``Moesr`` object, and the names of the blocks.
_BLOCKS = {
    "brain_mask": "BrainMask",
    "n4": "BiasField",
    "coregister": "Coregistration",
    "segment": "Segmentation",
    "quality": "ImageQuality",
}
# Packages that the results depend on.
_SOFTWARE = ("antspyx", "gradunwarp", "monai", "nibabel", "nipype", "niworkflows", "numpy", "scipy", "torch")
_MEASURED = ("Seconds", "PeakMemoryGB")


def make_record(
    plan: ImagePlan,
    steps: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    output_sha256: str,
    figures: Sequence[str],
) -> Record:
    """Return the record of an image.

    Parameters
    ----------
    plan : ImagePlan
        Plan of the image.
    steps : sequence of (str, Mapping)
        Name of each step and the record it returned, in order. Registrations are named ``register:<template>``.
    output_sha256 : str
        SHA-256 of the main output's file.
    figures : sequence of str
        Paths of the figures below the output folder.

    Raises
    ------
    RecordError
        If a step states a fact that `moesr_bids.bids.record` does not know.

    """
    settings, reference = plan.settings, session_reference(plan)
    files = [path for output in plan.outputs for path in (output.path, output.sidecar_path)]
    inputs = input_digest(plan)
    records = dict(steps)
    scans = {scan.stem for scan in plan.image.scans}
    warnings = [warning for step, record in steps for warning in _told(step, record, scans)]
    # What is told of preprocessing is told of the first scan.
    own = (lambda step: f"{step}:{plan.image.scans[0].stem}") if plan.joined else (lambda step: step)
    facts = dict(_facts(records["super_resolve"]))
    facts["SchemaVersion"] = SCHEMA_VERSION
    facts["Software"] = {"Python": platform.python_version(), **{name: version(name) for name in _SOFTWARE}}
    facts["RandomSeed"] = settings.sr.random_seed
    facts["GradientNonlinearity"] = _facts(records.get(own("gradunwarp"), plan.gradients.record()))
    for step, name in _BLOCKS.items():
        if (recorded := records.get(step) or records.get(own(step))) is not None:
            facts[name] = _facts(recorded)
    facts["SessionReference"] = unstructured(reference)
    facts["Registration"] = {
        step.partition(":")[2]: _facts(record) for step, record in steps if step.startswith("register:")
    }
    failed = [f"{scan.stem} is left out: {scan.problem}" for scan in plan.image.failed]
    facts["Warnings"] = [*warnings, *failed, *([reference.reason] if reference.reason else [])]
    facts["Steps"] = [{"Step": step, **{key: record.get(key) for key in _MEASURED}} for step, record in steps]
    facts["Seconds"] = round(sum(float(record.get("Seconds") or 0) for _, record in steps), 1)
    facts["PeakMemoryGB"] = max((float(record.get("PeakMemoryGB") or 0) for _, record in steps), default=0.0)
    if plan.joined:
        facts["Joined"] = {**facts["Joined"], "Failed": [unstructured(scan) for scan in failed_scans(plan)]}
    facts |= {"Settings": settings.recorded(), "SettingsHash": settings_hash(plan, inputs)}
    facts |= {"InputSHA256": inputs, "OutputSHA256": output_sha256, "Outputs": sorted([*files, *figures])}
    return make(Record, facts)


def _told(step: str, record: Mapping[str, Any], scans: Container[str]) -> list[str]:
    """Return the warnings of a step, of one that was done for a scan of a joined image with the scan's name."""
    name = step.partition(":")[2]
    prefix = f"{name}: " if name in scans else ""
    return [prefix + warning for warning in record.get("Warnings", [])]


def _facts(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ("Warnings", *_MEASURED)}


def sidecars(plan: ImagePlan, record: Record) -> dict[str, dict[str, Any]]:
    """Return the JSON content for each output of an image, by key."""
    paths = {output.key: f"bids::{output.path}" for output in plan.outputs}
    raw = {f"raw-{scan.image.stem}": f"bids:raw:{scan.image.relative}" for scan in plan.scans}
    # The corrected scans of a joined image are outputs of their own images, if at all.
    several = {"raw": list(raw.values()), **({"corrected": list(raw.values())} if plan.joined else {})}
    known = {**paths, **raw}
    contents: dict[str, dict[str, Any]] = {}
    for output in plan.outputs:
        sources = [uri for key in output.sources for uri in several.get(key) or [known[key]]]
        contents[output.key] = {**output.sidecar, "Sources": list(dict.fromkeys(sources))}
        if output.stripped:
            contents[output.key]["SkullStripped"] = record.brain_mask.skull_stripped
    contents[plan.main.key]["Moesr"] = unstructured(record)
    return contents
