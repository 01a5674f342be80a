"""Figures of an image as small tables, one per subject."""

from __future__ import annotations

import attrs

from moesr_bids.bids.names import stem_of
from moesr_bids.bids.record import JoinedScan, Record, SRRecord
from moesr_bids.reports.metrics import quality_rows
from moesr_bids.reports.templates import render
from moesr_bids.reports.values import NOT_AVAILABLE, duration, number, percent, psf, stated, triple

_SCAN_HEADS = (
    *("In the image", "From where its header puts it", "Agreement of detail", "Brightness", "Slices doubted"),
    "Residual of the output",
)


@attrs.frozen
class Table:
    """A small table.

    Attributes
    ----------
    title : str
        Subject.
    rows : tuple of tuple of str
        Name of each row, then its values.
    heads : tuple of str
        Headings of the columns of values; empty for a single column.

    """

    title: str
    rows: tuple[tuple[str, ...], ...]
    heads: tuple[str, ...] = ()


def _registration(record: Record) -> str:
    parts = [f"{template}: {number(facts.dice, 3)}" for template, facts in record.registration.items()]
    return "; ".join(parts) or NOT_AVAILABLE


def _coregistration(record: Record) -> str:
    facts = record.coregistration
    if facts is None:
        return "this image is the reference, or alone in its session"
    return (
        f"to {facts.reference}: moved by {number(facts.translation_mm, 3)} mm and "
        f"{number(facts.rotation_degrees, 3)} degrees, Dice coefficient of the masks {number(facts.dice, 3)}"
    )


def _gradients(record: Record) -> str:
    facts = record.gradient_nonlinearity
    if facts.action == "none":
        return f"not corrected here: {facts.reason}"
    where = "through the slices" if facts.action == "through-plane" else "in three dimensions"
    return (
        f"corrected {where}, by up to {number(facts.largest_displacement_mm, 3)} mm, with {stated(facts.file)}: "
        f"{facts.reason}"
    )


def _sampling_words(record: Record) -> str:
    how = record.sampling
    if how and how.estimate == "sample":
        return (
            f"one sample; its detail was amplified by {number(how.detail_gain, 3)} on average, and "
            f"{percent(how.detail_noise_share)} of the energy of its detail is drawn noise"
        )
    if how and how.samples:
        return f"mean of {how.samples} samples"
    flips = how.flips if how else record.flips
    return NOT_AVAILABLE if flips is None else f"mean over {flips} flips" if flips > 1 else "one evaluation"


def uncertainty_words(record: SRRecord) -> str:
    """Return how large the error is expected to be, and how that was checked, in words."""
    if record.uncertainty is None:
        return "this model states none"
    calibration = record.uncertainty_calibration
    contrasts = " and ".join(calibration.contrasts if calibration else ()) or "no"
    brightest = f"median standard deviation in the brain {number(record.uncertainty.median_percent, 3)} %"
    text = f"{brightest} of the brightest, calibrated on {contrasts} scans"
    coverage = calibration.coverage if calibration else {}
    if not coverage and record.sampling and record.sampling.samples:
        return f"{text} for the mean that the model estimates; not checked for its samples"
    if not coverage:
        return f"{text}; not checked on others of this contrast"
    levels = sorted(coverage, key=int)
    held = ", ".join(percent(coverage[level]) for level in levels)
    return f"{text}; on others of this contrast the {', '.join(levels)} % intervals held {held} of the voxels"


def _projection(record: Record) -> str:
    """How far the projection moved the image, and where most; without a place if it did not move it."""
    if record.lambda_ == 0:
        return "did not change the image (lambda 0)"
    move = record.data_consistency.projection
    predicted = (
        "" if move.move_predicted_std is None else f", {number(move.move_predicted_std, 3)} predicted deviations"
    )
    return (
        f"moved the image by {number(move.move_noise_std, 3)} noise units{predicted} (root mean square); lambda "
        f"{number(record.lambda_, 3)}; farthest at {_place(move.largest_move_place)}"
    )


def _place(place: tuple[float, float, float]) -> str:
    return f"({', '.join(f'{value:.0f}' for value in place)}) mm"


def _scan(record: Record) -> Table:
    return Table(
        "Scan and output",
        (
            ("Voxel size, mm", triple(record.input_zooms), triple(record.output_zooms)),
            ("Voxels", triple(record.input_shape), triple(record.output_shape)),
            *_finest(record),
        ),
        ("Input", "Output"),
    )


def _finest(record: Record) -> list[tuple[str, ...]]:
    """Return rows with the finest detail along each axis; detail finer than the input's was inferred."""
    sizes = record.image_quality.effective_resolution_mm if record.image_quality else None
    axes = ("left-right", "back-front", "foot-head")
    return [
        (
            f"Finest detail {axis} that is as strong as the input's noise, mm",
            number(sizes and sizes.input[place], 3),
            number(sizes and sizes.output[place], 3),
        )
        for place, axis in enumerate(axes)
    ]


def _scans(record: Record) -> Table:
    """Of each scan of a joined image: where it was found, and how it fits."""
    scans = record.joined.scans if record.joined else ()
    return Table("Scans", tuple(map(_joined_scan, scans)), _SCAN_HEADS)


def _joined_scan(scan: JoinedScan) -> tuple[str, ...]:
    return (
        stem_of(scan.source),
        "yes" if scan.used else f"left out: {scan.reason}",
        f"{number(scan.translation_mm, 3)} mm, {number(scan.rotation_degrees, 3)} degrees",
        number(scan.agreement, 2),
        number(scan.gain["Median"], 3),
        f"{len(scan.slice_weights)} of {scan.slices}",
        number(scan.output.residual_std, 3),
    )


def _acquisition(record: Record) -> Table:
    return Table(
        "How the scan is taken to have been acquired",
        (
            ("Point-spread function per axis", psf(record.psf)),
            ("Why this function", stated(record.psf_reason)),
            ("Noise", f"{number(record.noise_percent, 3)} % of the brain's brightest (99th percentile)"),
            ("Gradient nonlinearity", _gradients(record)),
        ),
    )


def _consistency(record: Record) -> Table:
    """Residuals of the model's own image, which judge it, and of the output, which the projection forces."""
    after, model = record.data_consistency, record.data_consistency.model
    return Table(
        "Data consistency, in noise units",
        (
            (
                "Residual in the brain, root mean square",
                number(model.residual_std, 3),
                number(after.residual_std, 3),
                "1",
            ),
            ("Share of voxels beyond 3", percent(model.fraction_beyond3), percent(after.fraction_beyond3), "0.27 %"),
            ("Averaged over 5 mm, root mean square", number(model.structure_std, 3), "", "1"),
            (
                "Averaged over 5 mm, largest",
                f"{number(model.structure_largest, 3)} at {_place(model.structure_place)}",
                "",
                "about 5",
            ),
        ),
        ("Mean of the scans' images, worst scan", "Output, worst scan", "Noise alone")
        if record.joined
        else ("Model's own image", "Output, forced by the projection", "Noise alone"),
    )


def _model(record: Record) -> Table:
    return Table(
        "Model and projection",
        (
            ("Model", f"{record.model} (weights {record.weights_sha256[:12]})"),
            ("Estimate", _sampling_words(record)),
            ("Uncertainty", uncertainty_words(record)),
            ("Correction by the scans" if record.joined else "Projection onto the scan", _projection(record)),
            (
                "Input detail finer than the output grid",
                f"root mean square {number(record.data_consistency.beyond_grid_std, 3)} noise units, kept in the "
                "residual map",
            ),
        ),
    )


def _preprocessing(record: Record) -> Table:
    mask, bias = record.brain_mask, record.bias_field
    return Table(
        "Preprocessing",
        (
            ("Brain mask", f"{number(mask.volume_ml, 4)} ml, {mask.method}"),
            (
                "Segmentation: certainty; misfit of the structures' centres and the template's",
                f"{number(mask.certainty, 3)}; {number(mask.misfit_mm, 3)} mm",
            ),
            ("Registration, Dice coefficient of the masks", _registration(record)),
            ("Alignment to the reference of the session", _coregistration(record)),
            (
                "Bias field in the brain, 1st to 99th percentile",
                f"{number(bias.range_percent[0], 3)} to {number(bias.range_percent[1], 3)} %",
            ),
        ),
    )


def _volumes(record: Record) -> Table:
    rows = (
        (
            name,
            *(number(value, 4) for value in (volume.input_volume_ml, volume.volume_ml)),
            number(volume.standard_deviation_ml, 2),
        )
        for name, volume in record.segmentation.volumes.items()
    )
    return Table("Volumes, ml", tuple(rows), ("Input", "Output", "Standard deviation"))


def _run(record: Record) -> Table:
    return Table(
        "Run",
        (
            ("Device", f"{record.device}, {record.precision}, seed {record.random_seed}"),
            ("Time and peak memory", f"{duration(record.seconds)}, {number(record.peak_memory_gb, 3)} GiB"),
            ("moesr-bids", record.version),
            ("Software", ", ".join(f"{name} {v}" for name, v in record.software.items()) or NOT_AVAILABLE),
        ),
    )


def number_tables(record: Record) -> list[Table]:
    """Return the figures of one image, a table per subject."""
    parts = (_scan, *([_scans] if record.joined else []), _consistency, _acquisition, _model, _preprocessing)
    parts += (_volumes, _run)
    return [part(record) for part in parts]


def numbers_html(record: Record) -> str:
    """Return figures and image quality metrics of one image as HTML tables."""
    return render("numbers.html.j2", tables=number_tables(record), quality=quality_rows(record.image_quality))
