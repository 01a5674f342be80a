"""The ``Moesr`` object of a main output's sidecar: the record of how the image was made.

Each class is an object of the JSON file, each attribute one of its keys (`moesr_bids.bids.schema.json_key`). A new fact
needs a new attribute here; without one, making the record fails.
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
    """How well the model's own image agrees with the scan in the brain, before the projection. This judges the model.

    Attributes
    ----------
    residual_std, fraction_beyond3 : float
        As in `DataConsistency`.
    structure_std : float
        Root mean square of the residual averaged over 5 mm, in units of what noise alone leaves of it.
    structure_largest : float
        Largest absolute value of that average.
    structure_place : tuple of float
        World position of that value, in mm.

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
        Root mean square in units of the noise, and of the standard deviation that the model predicts (None if it
        predicts none).
    largest_move : float
        Largest absolute mean over a cube of about 5 mm, in units of the noise.
    largest_move_place : tuple of float
        World position of that cube, in mm.

    """

    move_noise_std: float
    move_predicted_std: float | None = None
    largest_move: float
    largest_move_place: Triple


@attrs.frozen(kw_only=True)
class DataConsistency:
    """How well the output agrees with the scan in the brain, in units of the noise.

    The projection brings the residual of the output down to the noise, whatever the model's image was.

    Attributes
    ----------
    residual_std : float
        Root mean square of input minus A(output), of the part that the output grid can represent; noise alone gives 1.
    fraction_beyond3 : float
        Share of voxels whose residual is beyond 3; noise alone gives 0.0027.
    beyond_grid_std : float
        Root mean square of the part of the input that is too fine for the output grid.
    noise_alone_std : float
        Standard deviation that noise alone has in the residual map: below 1 in zero-filled scans.
    model : ModelConsistency
        The same figures of the model's own image, before the projection.
    projection : ProjectionMove
        How far the projection moved the model's image.

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
    """Factor of the predicted standard deviation, the contrasts of its scans, and the share of voxels per interval."""

    temperature: float
    contrasts: tuple[str, ...] = ()
    coverage: dict[str, float] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Uncertainty:
    """Median standard deviation of the error in the brain, in % of the 99th percentile."""

    median_percent: float


@attrs.frozen(kw_only=True)
class Stage:
    """Part of super-resolution: time in s, and peak memory in GiB."""

    stage: str
    seconds: float
    peak_memory_gb: float


Row = tuple[float, float, float, float]


@attrs.frozen(kw_only=True)
class JoinedScan:
    """A scan of a joined image.

    Attributes
    ----------
    source : str
        Path below the raw data set; of ``moesr join`` as it was given.
    used : bool
        Whether it is in the image.
    reason : str or None
        Why it is not.
    position : tuple
        4 x 4 rigid matrix from the world of the joint image to that of the scan, mm, RAS.
    rotation_degrees, translation_mm : float
        How far the head's centre lies from where the headers put it, and by how much the head is turned.
    last_move_mm : float
        How far the last turn of the alignment moved it.
    agreement : float
        Correlation of its detail with what the other scans predict.
    psf : tuple of AxisProfile
        Along the axes of its array.
    noise_std : float
        In its units.
    gain : dict
        Its brightness over that of the first scan: median, 5th and 95th percentile in the head.
    slice_axis : str
        Axis of its array across the slices.
    slices : int
        Number of its slices.
    slice_weights : dict
        Weight of each slice that is not believed in full, by its number from 0.
    mean, output : ModelConsistency
        How well it agrees with the mean of the images of the scans alone, and with the joint image.

    """

    source: str
    used: bool
    reason: str | None = None
    position: tuple[Row, Row, Row, Row]
    rotation_degrees: float
    translation_mm: float
    last_move_mm: float
    agreement: float
    psf: tuple[AxisProfile, AxisProfile, AxisProfile]
    noise_std: float
    gain: dict[str, float]
    slice_axis: str
    slices: int
    slice_weights: dict[str, float]
    mean: ModelConsistency
    output: ModelConsistency


@attrs.frozen(kw_only=True)
class FailedScan:
    """A scan that the joined image has to do without: its path below the raw data set, why, and its file's digest."""

    source: InnerPath
    reason: str
    sha256: str | None = None


@attrs.frozen(kw_only=True)
class Joined:
    """What an image was joined from.

    Attributes
    ----------
    reference : int
        Number, from 0, of the scan in whose position the image lies.
    turns : int
        Of the alignment.
    prior : dict
        Expected error of the mean of the scans' images: ``Tau`` of each voxel, ``Rho`` of neighbours' differences,
        in units of the 99th percentile.
    scans : tuple of JoinedScan
        In the order of ``Sources``.
    failed : tuple of FailedScan
        Scans that could not be prepared.

    """

    reference: int
    turns: int
    prior: dict[str, float]
    scans: tuple[JoinedScan, ...]
    failed: tuple[FailedScan, ...] = ()


@attrs.frozen(kw_only=True)
class SRRecord:
    """Record that ``moesr sr --record`` and ``moesr join --record`` write: sizes in mm, times in s, memory in GiB.

    ``noise_std`` is the median over eight parts of the brain, ``noise_range`` their 10th and 90th percentile,
    ``noise_percent`` relative to the 99th percentile in the brain. ``uncertainty`` is None if the model predicts no
    error. The facts of the input of a joined image are those of the scan in whose position it lies; each figure of its
    data consistency is that of the scan that agrees least.
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
    joined: Joined | None = None


@attrs.frozen(kw_only=True)
class GradientNonlinearity:
    """Decision on gradient nonlinearity, and the result of the correction."""

    action: str
    reason: str
    file: str | None = None
    patient_position: str | None = None
    slice_axis: str | None = None
    largest_displacement_mm: float | None = None
    intensity_corrected: bool | None = None


@attrs.frozen(kw_only=True)
class BrainMask:
    """Brain mask, and the segmentation of the scan that it comes from.

    Attributes
    ----------
    certainty : float
        Mean probability of the chosen class in the brain.
    misfit_mm : float or None
        Root mean square distance of the structures' centres from those of the template, after a similarity transform.
    in_view : float
        Share of the brain inside the field of view.
    source, source_sha256 : str or None
        Mask that the user gave: name of its data set and path there, and SHA-256 of the file.
    doubts : tuple of str
        Why the mask should be looked at.

    """

    method: str
    skull_stripped: bool
    volume_ml: float
    certainty: float
    misfit_mm: float | None
    in_view: float
    source: str | None = None
    source_sha256: str | None = None
    doubts: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class BiasField:
    """Bias field: 1st and 99th percentile in the brain, in % above its geometric mean, and the settings of N4."""

    range_percent: tuple[float, float]
    magnetic_field_strength: Any = None
    settings: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Coregistration:
    """Rigid alignment to the reference of the session: motion of the brain's centre, agreement of masks and images."""

    reference: str
    transform: str
    rotation_degrees: float
    translation_mm: float
    dice: float
    mutual_information: float


@attrs.frozen(kw_only=True)
class Registration:
    """Registration to a template, and the agreement of masks and images."""

    template: str
    transform: str
    dice: float
    mutual_information: float
    jacobian_range: tuple[float, float] | None = None
    attempts: int | None = None


@attrs.frozen(kw_only=True)
class StructureVolume:
    """Volume of a structure in the super-resolved image and in the scan, mL, and the standard deviation of both."""

    volume_ml: float
    input_volume_ml: float
    standard_deviation_ml: float


@attrs.frozen(kw_only=True)
class Segmentation:
    """Segmentation of the super-resolved image: the volume of each structure, and of the brain."""

    volumes: dict[str, StructureVolume]


@attrs.frozen(kw_only=True)
class EffectiveResolution:
    """Finest detail that is as strong as the input's noise, along right, anterior and superior, in mm."""

    input: tuple[float | None, ...]
    output: tuple[float | None, ...]


@attrs.frozen(kw_only=True)
class ImageQuality:
    """MRIQC's metrics of input and output by name."""

    definitions: str
    input: dict[str, float | None]
    output: dict[str, float | None]
    effective_resolution_mm: EffectiveResolution


@attrs.frozen(kw_only=True)
class SessionReference:
    """Image of the session that this one was aligned to, and a better one that could not be used.

    Attributes
    ----------
    used, instead_of : InnerPath or None
        Paths below the raw data set: of the reference, and of the better image.
    used_sha256 : str or None
        Digest of the reference.
    instead_of_digest : list or None
        Facts that change if the better image, or its processing, changes.
    instead_of_finished : bool or None
        Whether the better image's own outputs were complete.
    reason : str or None
        Why the better image could not be used.

    """

    used: InnerPath | None = None
    used_sha256: str | None = None
    instead_of: InnerPath | None = None
    instead_of_digest: Any = None
    instead_of_finished: bool | None = None
    reason: str | None = None


@attrs.frozen(kw_only=True)
class Step:
    """Step of the workflow: time in s, and peak memory in GiB."""

    step: str
    seconds: float | None = None
    peak_memory_gb: float | None = None


@attrs.frozen(kw_only=True)
class Record(SRRecord):
    """The ``Moesr`` object: records of super-resolution and of every other step, and digests.

    Attributes
    ----------
    registration : dict
        Registrations by template.
    settings : dict
        See `moesr_bids.config.Settings.recorded`.
    settings_hash, input_sha256 : str
        Digests that tell whether a new run would make the same outputs.
    output_sha256 : str
        SHA-256 of the main output's file.
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
    segmentation: Segmentation
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
        If it has no record, or one that is damaged or of another version.

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
        If there is no record that can be read.

    """
    return record_of(read_object(sidecar), str(sidecar))
