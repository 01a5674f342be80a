"""MRIQC's image quality metrics in the reports: names, meanings, values of input and output."""

from __future__ import annotations

import attrs

from moesr_bids.bids.record import ImageQuality
from moesr_bids.reports.values import NOT_AVAILABLE, number


@attrs.frozen
class QualityMetric:
    """A metric under MRIQC's name.

    Attributes
    ----------
    name : str
        MRIQC's name.
    words : str
        Name on pages.
    description : str
        Description in the data dictionary.
    units : str or None
        Units; None for a number without.
    of_output : bool
        Whether it is measured on the output too.

    """

    name: str
    words: str
    description: str
    units: str | None = None
    of_output: bool = True

    @property
    def short(self) -> str:
        """MRIQC's name with abbreviations in capitals."""
        head, _, tail = self.name.partition("_")
        return f"{head.upper()} {tail}".strip()


_SNR = "Signal-to-noise ratio within {} (median / standard deviation)"
_WIDTH = "Smoothness in the brain along the {} axis: full width at half maximum from first differences"
_WIDTH_WORDS = "Smoothness (FWHM), {}"
QUALITY_METRICS: tuple[QualityMetric, ...] = (
    QualityMetric(
        "cnr",
        "Contrast-to-noise ratio (CNR)",
        "Contrast-to-noise ratio: difference of the medians of white and grey matter over the root of the summed "
        "variances of white matter, grey matter and air",
    ),
    QualityMetric("snr_csf", "Signal-to-noise ratio (SNR), CSF", _SNR.format("cerebrospinal fluid")),
    QualityMetric("snr_gm", "SNR, grey matter", _SNR.format("grey matter")),
    QualityMetric("snr_wm", "SNR, white matter", _SNR.format("white matter")),
    QualityMetric("snr_total", "SNR, mean of the three", "Mean of snr_csf, snr_gm and snr_wm"),
    QualityMetric(
        "efc",
        "Entropy focus criterion (EFC)",
        "Entropy focus criterion: Shannon entropy of the intensities over that of a constant image; lower is better",
    ),
    QualityMetric(
        "fber",
        "Foreground to background energy (FBER)",
        "Foreground-background energy ratio: median squared intensity in the head over that outside; n/a without "
        "signal outside the head (where MRIQC says -1)",
    ),
    QualityMetric("fwhm_x", _WIDTH_WORDS.format("left to right"), _WIDTH.format("left-right"), "voxels"),
    QualityMetric("fwhm_y", _WIDTH_WORDS.format("back to front"), _WIDTH.format("posterior-anterior"), "voxels"),
    QualityMetric("fwhm_z", _WIDTH_WORDS.format("foot to head"), _WIDTH.format("inferior-superior"), "voxels"),
    QualityMetric("fwhm_avg", _WIDTH_WORDS.format("mean"), "Mean of fwhm_x, fwhm_y and fwhm_z", "voxels"),
    QualityMetric(
        "inu_range",
        "Bias field: 95th minus 5th percentile",
        "Intensity non-uniformity: 95th minus 5th percentile of the bias field in the brain",
        of_output=False,
    ),
    QualityMetric(
        "inu_med",
        "Bias field: median",
        "Intensity non-uniformity: median of the bias field in the brain",
        of_output=False,
    ),
)


def quality_rows(quality: ImageQuality | None) -> list[dict[str, str]]:
    """Return the metrics of one image for its page: ``name``, ``words``, ``input``, ``output``; empty if unknown."""
    if quality is None:
        return []
    return [
        {
            "name": metric.name,
            "words": metric.words + (f", {metric.units}" if metric.units else ""),
            "input": number(quality.input.get(metric.name), 3),
            "output": number(quality.output.get(metric.name), 3) if metric.of_output else NOT_AVAILABLE,
        }
        for metric in QUALITY_METRICS
    ]
