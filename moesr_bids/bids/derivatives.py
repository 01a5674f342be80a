"""The table of derivatives: one row per kind of output file.

Paths, sidecars, publishing, completeness, ``descriptions.tsv``, the table of the documentation and the file lists of
the tests come from it. In a row, words in braces are filled in by `words_of`, and by what the row has one file for
(``each``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from moesr_bids.bids.collect import RawImage
from moesr_bids.bids.names import anat_folder, entities_of, file_name, identifier, sidecar_of, with_rec
from moesr_bids.config import EMBEDDED_TEMPLATE, SUFFIXES, Settings
from moesr_bids.sr.models import EXPERTS

_TEMPLATES_URL = "https://github.com/templateflow/tpl-"  # BIDS asks for a reference to templates not in its list
_TISSUES = dict(zip(EXPERTS, ("deep white matter", "the cortex", "the grey-white junction"), strict=True))


@attrs.frozen(kw_only=True)
class Derivative:
    """A kind of output file.

    Attributes
    ----------
    key : str
        Name of the output within its image, such as ``mask`` or ``to-{template}``.
    meaning : str
        What such a file is, for the documentation and for ``descriptions.tsv``.
    source : str
        Node and output of the workflow that it comes from, as in ``n4.out_file``.
    entities : Mapping
        Entities that are added to those of the raw image.
    suffix : str
        BIDS suffix; that of the raw image by default.
    extension : str
        With its dot.
    when : str
        Condition: ``always``, ``uncertainty`` and ``experts`` (of the model), ``unwarped`` (gradient nonlinearity is
        corrected), ``aligned`` (the image has a reference), ``first`` (it is a T1w and has none), ``joined`` (it is
        made of several scans) or ``alone``.
    each : str
        What there is one file for: ``expert``, ``template``, ``space``, ``scan``; empty for a single file.
    compact : bool
        Whether publishing stores it as integers with a scale, if rounding does no harm (`moesr_bids.sr.storage`);
        otherwise it stays as the step wrote it.
    sources : tuple of str
        Keys of the outputs that it was made from, ``raw`` for all raw files, or ``raw-{scan}`` for one of them.
    stripped : bool
        Whether the sidecar has ``SkullStripped``, as BIDS asks for images.
    sidecar : Mapping
        Further content of the JSON file. Empty values are left out.

    """

    key: str
    meaning: str
    source: str
    entities: Mapping[str, str]
    suffix: str = "{suffix}"
    extension: str = ".nii.gz"
    when: str = "always"
    each: str = ""
    compact: bool = False
    sources: tuple[str, ...] = ("corrected",)
    stripped: bool = True
    sidecar: Mapping[str, str]


_TRANSFORM = {"mode": "image"}
_ITK = "ITK composite transform for antsApplyTransforms"
_FIELD = "ITK displacement field for antsApplyTransforms that brings the {} image"
_INFERRED = (
    "Detail finer than the voxels and the slice profile of the scan was not measured; it comes from model {model}. "
    "Cortical thickness, surfaces and volumes measured on this image depend on it: compare them only with those of "
    "images made in the same way from scans of one protocol."
)
_RESIDUAL = {
    "Description": "Bias-corrected input minus the acquisition operator applied to the super-resolved image",
    "Units": "noise standard deviations",
    "SpatialReference": "orig",
}

DERIVATIVES: tuple[Derivative, ...] = (
    Derivative(
        key="moesr",
        meaning="Super-resolved image",
        source="super_resolve.out_file",
        entities={"res": "{res}", "desc": "moesr"},
        sources=("raw", "corrected"),
        sidecar={
            "Description": "Image on the target grid by model {model}; Moesr.DataConsistency says how well it agrees "
            "with the acquired image",
            "InferredDetail": _INFERRED,
            "SpatialReference": "orig",
            "Resolution": "{grid}",
        },
    ),
    Derivative(
        key="preproc",
        meaning="The same image under the name that fMRIPrep and others look for",
        source="super_resolve.out_file",
        entities={"res": "{res}", "desc": "preproc"},
        when="first",
        sources=("moesr",),
        sidecar={
            "Description": "The image desc-moesr under the name that other software looks for; the mask desc-brain is "
            "on its grid",
            "InferredDetail": _INFERRED,
            "SpatialReference": "orig",
            "Resolution": "{grid}",
        },
    ),
    Derivative(
        key="uncertainty",
        meaning="Standard deviation of the error of the super-resolved image, as the model predicts it",
        source="super_resolve.uncertainty_file",
        entities={"res": "{res}", "desc": "uncertainty"},
        when="uncertainty",
        sources=("corrected", "moesr"),
        sidecar={
            "Description": "Standard deviation of the error of the super-resolved image, in its units, as the model "
            "predicts it, in steps of 2 % of its median in the brain; Moesr.UncertaintyCalibration of the image says "
            "by which factor it was multiplied, from scans of which contrasts, and how often intervals held",
            "SpatialReference": "orig",
            "Resolution": "{grid}",
        },
    ),
    Derivative(
        key="gate-{expert}",
        meaning="Weight of an expert of a mixture of experts in each voxel; the label entity names the expert",
        source="super_resolve.gate_{expert}",
        entities={"space": "{own_space}", "res": "{res}", "label": "{expert}", "desc": "gate"},
        suffix="probseg",
        when="experts",
        each="expert",
        stripped=False,
        sidecar={
            "Description": "Weight of the expert for {tissue} in each voxel; the weights of the three sum to 1",
            "SpatialReference": "{own_grid}",
            "Resolution": "{grid}",
        },
    ),
    Derivative(
        key="residual",
        meaning="The scan minus what a scanner would see of the super-resolved image, in units of the noise",
        source="super_resolve.residual_file",
        entities={"desc": "residual"},
        when="alone",
        sources=("corrected", "moesr"),
        sidecar=_RESIDUAL,
    ),
    Derivative(
        key="residual-{scan}",
        meaning="The same of each scan of a joined image",
        source="super_resolve.residual_{number}",
        entities={"desc": "residual"},
        when="joined",
        each="scan",
        sources=("raw-{scan}", "moesr"),
        sidecar=_RESIDUAL,
    ),
    Derivative(
        key="seen",
        meaning="How many scans saw each voxel, in slices that are believed",
        source="super_resolve.seen_file",
        entities={"res": "{res}", "desc": "seen"},
        when="joined",
        sources=("raw", "moesr"),
        sidecar={
            "Description": "Number of scans in whose field of view a voxel lies, between slices that are believed",
            "SpatialReference": "orig",
            "Resolution": "{grid}",
        },
    ),
    Derivative(
        key="corrected",
        meaning="The scan on its own grid, without shading (bias field) and, where corrected, gradient nonlinearity",
        source="n4.out_file",
        entities={"desc": "corrected"},
        when="alone",
        compact=True,
        sources=("raw",),
        sidecar={"Description": "Input with {corrected} removed, on its own grid", "SpatialReference": "orig"},
    ),
    Derivative(
        key="mask",
        meaning="Brain mask",
        source="target_mask.out_file",
        entities={"space": "{own_space}", "res": "{res}", "desc": "brain"},
        suffix="mask",
        stripped=False,
        sidecar={"Type": "Brain", "SpatialReference": "{own_grid}", "Resolution": "{grid}"},
    ),
    Derivative(
        key="dseg",
        meaning="Structures of the brain, by a network that works for all contrasts; desc-moesr_dseg.tsv names them",
        source="segment.out_file",
        entities={"space": "{own_space}", "res": "{res}", "desc": "moesr"},
        suffix="dseg",
        sources=("moesr", "mask"),
        stripped=False,
        sidecar={
            "Description": "Segmentation of the super-resolved image inside the brain mask; the volumes are in "
            "Moesr.Segmentation of that image",
            "InferredDetail": _INFERRED,
            "SpatialReference": "{own_grid}",
            "Resolution": "{grid}",
        },
    ),
    Derivative(
        key="from-orig",
        meaning="Displacement field that corrects gradient nonlinearity",
        source="gradunwarp.field_file",
        entities={"from": "orig", "to": "{own}", **_TRANSFORM},
        suffix="xfm",
        when="unwarped",
        sources=("raw",),
        stripped=False,
        sidecar={"Description": _FIELD.format("acquired to the corrected"), "Type": "nonlinear"},
    ),
    Derivative(
        key="to-orig",
        meaning="Displacement field back to the image as acquired",
        source="gradunwarp.inverse_file",
        entities={"from": "{own}", "to": "orig", **_TRANSFORM},
        suffix="xfm",
        when="unwarped",
        sources=("raw",),
        stripped=False,
        sidecar={"Description": _FIELD.format("corrected to the acquired"), "Type": "nonlinear"},
    ),
    Derivative(
        key="jacobian",
        meaning="Jacobian determinant of the correction of gradient nonlinearity",
        source="gradunwarp.jacobian_file",
        entities={"desc": "jacobian"},
        when="unwarped",
        sources=("raw",),
        sidecar={
            "Description": "Determinant of the Jacobian of the map from corrected to acquired positions",
            "Units": "1",
            "SpatialReference": "orig",
        },
    ),
    Derivative(
        key="to-reference",
        meaning="Rigid transform to the reference image of the session",
        source="coregister.out_to_reference",
        entities={"from": "{own}", "to": "{reference}", **_TRANSFORM},
        suffix="xfm",
        extension=".h5",
        when="aligned",
        stripped=False,
        sidecar={"Description": _ITK, "Type": "rigid", "Reference": "{reference_uri}"},
    ),
    Derivative(
        key="from-reference",
        meaning="Rigid transform from the reference image of the session",
        source="coregister.out_from_reference",
        entities={"from": "{reference}", "to": "{own}", **_TRANSFORM},
        suffix="xfm",
        extension=".h5",
        when="aligned",
        stripped=False,
        sidecar={"Description": _ITK, "Type": "rigid", "Reference": "{reference_uri}"},
    ),
    Derivative(
        key="to-{template}",
        meaning="Transform to a template",
        source="register_{template_node}.out_to_template",
        entities={"from": "{own}", "to": "{template}", **_TRANSFORM},
        suffix="xfm",
        extension=".h5",
        each="template",
        stripped=False,
        sidecar={"Description": _ITK, "Type": "affine and nonlinear", "Template": "{template}"},
    ),
    Derivative(
        key="from-{template}",
        meaning="Transform from a template",
        source="register_{template_node}.out_from_template",
        entities={"from": "{template}", "to": "{own}", **_TRANSFORM},
        suffix="xfm",
        extension=".h5",
        each="template",
        stripped=False,
        sidecar={"Description": _ITK, "Type": "affine and nonlinear", "Template": "{template}"},
    ),
    Derivative(
        key="space-{space}",
        meaning="Super-resolved image in the space of a template",
        source="warp_{space_node}.out_file",
        entities={"space": "{template}", "res": "{space_res}", "desc": "moesr"},
        each="space",
        compact=True,
        sources=("moesr", "to-{template}"),
        sidecar={
            "Description": "Super-resolved image in the space of the template",
            "InferredDetail": _INFERRED,
            "SpatialReference": "{template_url}",
            "Interpolation": "cubic B-spline, once",
            "Resolution": "{space_grid}",
        },
    ),
)


@attrs.frozen(kw_only=True)
class Output:
    """An output file of an image: a row of the table with its words filled in.

    Attributes
    ----------
    key : str
        Name within the image.
    path : str
        Path below the output folder.
    node, field : str
        Node of the image's workflow, and its output.
    compact : bool
        See `Derivative`.
    sources : tuple of str
        See `Derivative`.
    stripped : bool
        See `Derivative`.
    sidecar : dict
        Content of the JSON file without ``Sources`` and ``SkullStripped``.

    """

    key: str
    path: str
    node: str
    field: str
    compact: bool
    sources: tuple[str, ...]
    stripped: bool
    sidecar: dict[str, str]

    @property
    def sidecar_path(self) -> str:
        """Path of the JSON file below the output folder."""
        return sidecar_of(self.path)


def outputs_of(image: RawImage, settings: Settings, conditions: Mapping[str, bool]) -> tuple[Output, ...]:
    """Return the outputs of an image.

    Parameters
    ----------
    image : RawImage
        The raw image.
    settings : Settings
        Settings of the run.
    conditions : Mapping
        Which conditions (`Derivative.when`) hold; ``always`` need not be named.

    """
    words = words_of(image, settings, unwarped=conditions["unwarped"])
    found = []
    for row in DERIVATIVES:
        if row.when != "always" and not conditions[row.when]:
            continue
        for more in _each(row.each, image, settings):
            found.append(_output(row, image, {**words, **more}))
    return tuple(found)


def _path(row: Derivative, image: RawImage, words: Mapping[str, str]) -> str:
    entities = {key: value.format(**words) for key, value in row.entities.items()}
    # Of a scan of a joined image by the scan's own name, and marked as the joined image is.
    raw = with_rec(entities_of(words["scan"]), image.entities["rec"]) if row.each == "scan" else image.entities
    name = file_name({**raw, **entities}, row.suffix.format(**words), row.extension)
    return f"{anat_folder(image.participant, image.session)}/{name}"


def _output(row: Derivative, image: RawImage, words: Mapping[str, str]) -> Output:
    node, _, field = row.source.format(**words).partition(".")
    return Output(
        key=row.key.format(**words),
        path=_path(row, image, words),
        node=node,
        field=field,
        compact=row.compact,
        sources=tuple(source.format(**words) for source in row.sources),
        stripped=row.stripped,
        sidecar={key: text for key, value in row.sidecar.items() if (text := value.format(**words))},
    )


def words_of(image: RawImage, settings: Settings, *, unwarped: bool) -> dict[str, str]:
    """Return the text for each word in braces, for every row of an image."""
    # Readers expect one T1w, and take files without a space for its own; all other files name their space.
    own, plain = _own_label(image), is_first_t1w(image)
    names = {"suffix": image.suffix, "res": settings.resolution_label}
    return {
        **names,
        "model": settings.sr.model,
        "grid": f"{settings.sr.resolution:g} mm isotropic grid along the axes of the "
        + ("first scan, over the heads of all" if image.scans else "input, over its field of view"),
        "own": own,
        "own_space": "" if plain else own,
        "own_grid": "orig" if plain else f"bids::{_path(DERIVATIVES[0], image, names)}",
        "corrected": "gradient nonlinearity and the bias field" if unwarped else "the bias field",
        "reference": image.reference.suffix if image.reference else "",
        "reference_uri": f"bids:raw:{image.reference.relative}" if image.reference else "",
    }


def is_first_t1w(image: RawImage) -> bool:
    """Whether the image is the T1w of its session, or of several the one to which the others are aligned.

    A joined image is none: it is made beside that one.
    """
    return image.suffix == "T1w" and image.reference is None and not image.scans


def _own_label(image: RawImage) -> str:
    """Return the name of an image's space: its contrast, or ``other<contrast>`` if its reference has the same.

    A joined image has ``joined<contrast>``: it lies as its first scan does, but on another grid.
    """
    if image.scans:
        return f"joined{image.suffix}"
    another = image.reference is not None and image.reference.suffix == image.suffix
    return f"other{image.suffix}" if another else image.suffix


def _each(what: str, image: RawImage, settings: Settings) -> Iterator[dict[str, str]]:
    """Yield the words of each file of a row."""
    if not what:
        yield {}
    if what == "scan":
        yield from ({"scan": scan.stem, "number": str(number)} for number, scan in enumerate(image.scans, 1))
    if what == "expert":
        yield from ({"expert": name, "tissue": tissue} for name, tissue in _TISSUES.items())
    if what == "template":
        yield from ({"template": name, "template_node": identifier(name)} for name in settings.templates)
    if what == "space":
        for space in settings.output_spaces:
            isotropic = f"{settings.sr.resolution:g} mm isotropic over the template at 1 mm"
            yield {
                "space": str(space),
                "space_node": identifier(str(space)),
                "space_res": space.grid or settings.resolution_label,
                "space_grid": f"grid res-{space.grid} of the template" if space.grid else isotropic,
                "template": space.template,
                "template_url": "" if space.template == EMBEDDED_TEMPLATE else _TEMPLATES_URL + space.template,
            }


def main_sidecars(output_dir: Path, folder: str = "sub-*") -> list[Path]:
    """Return the sidecars of all main outputs of a participant's folder; copies in a template's space are none."""
    names = [f"anat/*_desc-moesr_{suffix}.json" for suffix in SUFFIXES]
    patterns = [f"{folder}/{session}{name}" for session in ("", "ses-*/") for name in names]
    return sorted(path for pattern in patterns for path in output_dir.glob(pattern) if "_space-" not in path.name)


def descriptions() -> dict[str, str]:
    """Return the meaning of each ``desc`` entity, from the first row that has it."""
    found: dict[str, str] = {}
    for row in DERIVATIVES:
        if desc := row.entities.get("desc"):
            found.setdefault(desc, row.meaning)
    return found


_WHEN = {
    "always": "",
    "uncertainty": "models that predict their error",
    "experts": "mixtures of experts",
    "unwarped": "where gradient nonlinearity was corrected",
    "aligned": "images that are not their session's reference",
    "first": "T1w that are their session's reference",
    "joined": "joined images",
    "alone": "images of one scan",
}
_NAMES: dict[str, Any] = {
    "suffix": "T1w",
    "res": "0p7mm",
    "own": "T1w",
    "own_space": "",
    "expert": "<expert>",
    "template": "<template>",
    "reference": "<reference>",
    "space_res": "0p7mm",
    "scan": "<scan>",
}
_JOINED_NAMES = {
    "joined": {"sub": "X", "rec": "joined"},
    "scan": {"sub": "X", "acq": "<scan>", "rec": "joined"},
}


def documentation() -> str:
    """Return the table of the documentation, in Markdown."""
    lines = ["| file in `sub-X[/ses-Y]/anat/` | what it is | when |", "|---|---|---|"]
    for row in DERIVATIVES:
        entities = {key: value.format(**_NAMES) for key, value in row.entities.items()}
        raw = _JOINED_NAMES.get(row.when if not row.each else row.each, {"sub": "X"})
        name = file_name({**raw, **entities}, row.suffix.format(**_NAMES), row.extension)
        lines.append(f"| `{name}` | {row.meaning} | {_WHEN[row.when]} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(documentation(), end="")
