"""The ``Moesr`` object of a main output's sidecar: all that is known of how the image was made.

Each class is an object of the JSON file, each attribute one of its keys (`moesr_bids.bids.schema.json_key`). A new fact
is a new attribute here; where it is made it is refused without one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from moesr_bids.bids.schema import SCHEMA_VERSION, InnerPath, RecordError, read_object, structured

Triple = tuple[float, float, float]


@attrs.frozen(kw_only=True)
class AxisProfile:
    """Point-spread function along an axis of the array: its kind, and its width in mm."""

    kind: str
    fwhm: float


@attrs.frozen(kw_only=True)
class ModelConsistency:
    """How well the model's own image agrees with the scan, in the brain, before any projection: this judges it.

    Attributes
    ----------
    residual_std, fraction_beyond3 : float
        As in `DataConsistency`.
    structure_std : float
        Root mean square of the residual averaged over 5 mm, in units of what noise alone has in it.
    structure_largest : float
        Largest absolute value of that average.
    structure_place : tuple of float
        Where it is, world position in mm.

    """

    residual_std: float
    fraction_beyond3: float
    structure_std: float
    structure_largest: float
    structure_place: Triple


@attrs.frozen(kw_only=True)
class ProjectionMove:
    """How far the projection moved the model's image in the brain.

    Attributes
    ----------
    move_noise_std, move_predicted_std : float
        Root mean square in units of the noise, and of the standard deviation that the model predicts.
    largest_move : float
        Largest absolute mean over a cube of 5 mm, in units of the noise.
    largest_move_place : tuple of float
        Where it is, world position in mm.

    """

    move_noise_std: float
    move_predicted_std: float | None = None
    largest_move: float
    largest_move_place: Triple


@attrs.frozen(kw_only=True)
class DataConsistency:
    """How well the output agrees with the scan, in the brain, in units of the noise.

    The projection brings the residual of the output to the noise, whatever the model's image was.

    Attributes
    ----------
    residual_std : float
        Root mean square of input minus A(output), of what the output grid can hold; noise alone gives 1.
    fraction_beyond3 : float
        Share of voxels whose residual is beyond 3; noise alone gives 0.0027.
    beyond_grid_std : float
        Root mean square of what the input holds and the output grid cannot.
    noise_alone_std : float
        What noise alone has in the residual map: below 1 in zero-filled scans.
    model : ModelConsistency
        The same of the model's own image, before the projection.
    projection : ProjectionMove
        What the projection did to it.

    """

    residual_std: float
    fraction_beyond3: float
    model: ModelConsistency
    projection: ProjectionMove
    beyond_grid_std: float = 0.0
    noise_alone_std: float = 1.0


@attrs.frozen(kw_only=True)
class SamplingRecord:
    """How a diffusion model was sampled; see `moesr_bids.sr.sampling.Sampling`."""

    estimate: str
    samples: int
    flips: int
    steps: int = 1
    rule: str | None = None
    noise_temperature: float | None = None
    detail_share: float | None = None
    detail_gain: float | None = None
    detail_noise_share: float | None = None


@attrs.frozen(kw_only=True)
class UncertaintyCalibration:
    """Factor of the predicted standard deviation, the contrasts it is from, and how often intervals held (share)."""

    temperature: float
    contrasts: tuple[str, ...] = ()
    coverage: dict[str, float] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Uncertainty:
    """Median standard deviation of the error in the brain, in % of the 99th percentile."""

    median_percent: float


@attrs.frozen(kw_only=True)
class Stage:
    """A part of super-resolution: time in s, and peak memory in GiB."""

    stage: str
    seconds: float
    peak_memory_gb: float


@attrs.frozen(kw_only=True)
class SRRecord:
    """What ``moesr sr --record`` writes: voxel sizes in mm, times in s, memory in GiB.

    The noise is the median over eight parts of the brain, its range their 10th and 90th percentile.
    """

    version: str
    model: str
    weights_sha256: str
    random_seed: int
    device: str
    precision: str
    threads: int
    psf: tuple[AxisProfile, AxisProfile, AxisProfile]
    psf_reason: str
    input_zooms: Triple
    input_shape: tuple[int, int, int]
    output_zooms: Triple
    output_shape: tuple[int, int, int]
    noise_std: float
    noise_range: tuple[float, float] | None = None
    noise_percent: float
    outlier_voxels: int = 0
    background_offset: float = 0.0
    lambda_: float
    data_consistency: DataConsistency
    warnings: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()
    seconds: float
    peak_memory_gb: float
    memory_limit_gb: float | None = None
    runtime: str | None = None
    windows: int | None = None
    network_voxels: int | None = None
    network_seconds: float | None = None
    conditioning_seconds: float | None = None
    experts_evaluated: float | None = None
    gate_shares: dict[str, float] | None = None
    guidance: tuple[str, ...] | None = None
    flips: int | None = None
    sampling: SamplingRecord | None = None
    uncertainty: Uncertainty | None = None
    uncertainty_calibration: UncertaintyCalibration | None = None
    synthesis: bool | None = None


@attrs.frozen(kw_only=True)
class GradientNonlinearity:
    """What was decided about gradient nonlinearity, and what the correction did."""

    action: str
    reason: str
    file: str | None = None
    patient_position: str | None = None
    slice_axis: str | None = None
    largest_displacement_mm: float | None = None
    intensity_corrected: bool | None = None


@attrs.frozen(kw_only=True)
class BrainMask:
    """The brain mask: volume in ml, Dice coefficient, mutual information and likeness with the template.

    Attributes
    ----------
    source, source_sha256 : str
        The mask that the user gave: its data set, and its path there.
    in_view : float
        Share of the brain inside the field of view.
    doubts : tuple of str
        Why it should be looked at.

    """

    method: str
    skull_stripped: bool
    volume_ml: float
    dice: float | None = None
    mutual_information: float | None = None
    likeness: float | None = None
    source: str | None = None
    source_sha256: str | None = None
    in_view: float | None = None
    attempts: int | None = None
    doubts: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class BiasField:
    """Bias field: 1st and 99th percentile in the brain in % of its geometric mean, and the settings of N4."""

    range_percent: tuple[float, float]
    magnetic_field_strength: Any = None
    settings: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Coregistration:
    """Rigid alignment to the reference of the session: movement of the brain's centre, and agreement of the masks."""

    reference: str
    transform: str
    rotation_degrees: float
    translation_mm: float
    dice: float
    mutual_information: float


@attrs.frozen(kw_only=True)
class Registration:
    """Registration to a template, and the agreement of the masks."""

    template: str
    transform: str
    dice: float
    mutual_information: float
    jacobian_range: tuple[float, float] | None = None
    attempts: int | None = None


@attrs.frozen(kw_only=True)
class EffectiveResolution:
    """Finest detail along right, anterior and superior that is as strong as the input's noise, in mm."""

    input: tuple[float | None, ...]
    output: tuple[float | None, ...]


@attrs.frozen(kw_only=True)
class ImageQuality:
    """MRIQC's metrics of input and output by their names."""

    definitions: str
    input: dict[str, float | None]
    output: dict[str, float | None]
    effective_resolution_mm: EffectiveResolution


@attrs.frozen(kw_only=True)
class SessionReference:
    """Which image of the session this one was aligned to, and of a better one that was no use.

    Attributes
    ----------
    used, instead_of : InnerPath or None
        Paths below the raw data set.
    used_sha256 : str or None
        Digest of the file that was used.
    instead_of_digest : list or None
        All that decides what others get of the better one.
    instead_of_finished : bool or None
        Whether its own outputs were complete.
    reason : str or None
        Why it was no use.

    """

    used: InnerPath | None = None
    used_sha256: str | None = None
    instead_of: InnerPath | None = None
    instead_of_digest: Any = None
    instead_of_finished: bool | None = None
    reason: str | None = None


@attrs.frozen(kw_only=True)
class Step:
    """A step of the workflow: time in s, and peak memory in GiB."""

    step: str
    seconds: float | None = None
    peak_memory_gb: float | None = None


@attrs.frozen(kw_only=True)
class Record(SRRecord):
    """The ``Moesr`` object: what super-resolution recorded, what every other step did, and the digests.

    Attributes
    ----------
    registration : dict
        By template.
    settings : dict
        `moesr_bids.config.Settings.recorded`.
    settings_hash, input_sha256 : str
        They tell whether the outputs are still what a new run would make.
    output_sha256 : str
        Of the main output's file.
    outputs : tuple of InnerPath
        All outputs of the image below the output folder.

    """

    schema_version: int = attrs.field(validator=attrs.validators.in_((SCHEMA_VERSION,)))
    software: dict[str, str]
    gradient_nonlinearity: GradientNonlinearity
    brain_mask: BrainMask
    bias_field: BiasField
    coregistration: Coregistration | None = None
    image_quality: ImageQuality | None = None
    session_reference: SessionReference
    registration: dict[str, Registration]
    steps: tuple[Step, ...] = ()
    settings: dict[str, Any]
    settings_hash: str
    input_sha256: str
    output_sha256: str
    outputs: tuple[InnerPath, ...]


def record_of(content: Any, where: str) -> Record:
    """Return the record in a sidecar's content.

    Raises
    ------
    RecordError
        If it has none, or one that is damaged or of another version.

    """
    block = content.get("Moesr")
    if not isinstance(block, dict):
        raise RecordError(f"{where}: not the sidecar of a super-resolved image (..._desc-moesr_....json)")
    if (version := block.get("SchemaVersion")) != SCHEMA_VERSION:
        raise RecordError(f"{where}: its record has schema version {version}, this version reads {SCHEMA_VERSION}")
    return structured(Record, block, where)


def read_record(sidecar: Path) -> Record:
    """Read the record of a main output.

    Raises
    ------
    RecordError
        If there is none that can be read.

    """
    return record_of(read_object(sidecar), str(sidecar))
