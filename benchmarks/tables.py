"""Rows of the benchmark of quality, and its tables.

    python -m benchmarks.tables TSV [TSV ...]

prints the tables of people that were measured one by one (``python -m benchmarks.quality ... --out TSV``).
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import cattrs
import numpy as np
from attrs import field, frozen

from moesr_bids.sr.calibration import ErrorRatios

from .degrade import all_cases, other_cases


@frozen
class Row:
    """One line of the result."""

    participant: str
    suffix: str
    case: str
    method: str
    psnr: float
    ssim: float
    gain_psnr: float
    gain_ssim: float
    seconds: float
    ratios: ErrorRatios | None = field(default=None, repr=False)
    temperature: float = 1.0
    detail_share: float = float("nan")
    sample_gain: float = float("nan")
    sample_sharpness: float = float("nan")
    lesion_ratio: float = float("nan")
    lesion_shift: float = float("nan")
    lesion_volume: float = float("nan")
    contrast_small: float = float("nan")
    contrast_medium: float = float("nan")
    contrast_large: float = float("nan")
    noise_ratio: float = float("nan")
    residual_ratio: float = float("nan")

    @property
    def contrasts(self) -> tuple[float, float, float]:
        """Contrast of lesions of less than 100, less than 1000, and more voxels, over the truth's."""
        return self.contrast_small, self.contrast_medium, self.contrast_large


def groups() -> dict[str, str]:
    """Acquisition of each case, whatever its direction."""
    return {case.name: case.group for case in (*all_cases(), *other_cases())}


def summary(rows: Sequence[Row]) -> str:
    """Return the tables: PSNR/SSIM per case, and the gain over cubic per group, mean and standard error over people."""
    methods = list(dict.fromkeys(row.method for row in rows))
    cases = groups()
    lines = table_by_image(rows, lambda row: f"{row.psnr:.2f} / {row.ssim:.3f}")
    lines += ["", "Gain against cubic: PSNR in dB, mean over people +- its standard error [worst case]; SSIM", ""]
    lines += ["| case | people | " + " | ".join(methods) + " |", "|---" * (len(methods) + 2) + "|"]
    for group in [*dict.fromkeys(cases[row.case] for row in rows), "all"]:
        here = [r for r in rows if group in (cases[r.case], "all")]
        cells = [_gains([r for r in here if r.method == method]) for method in methods]
        lines.append(f"| {group} | {len({r.participant for r in here})} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _gains(rows: Sequence[Row]) -> str:
    """Return mean gain over people (who count alike), its standard error, the worst case, and the gain of SSIM."""
    people = dict.fromkeys(row.participant for row in rows)
    means = [np.mean([r.gain_psnr for r in rows if r.participant == person]) for person in people]
    similarity = np.mean([np.mean([r.gain_ssim for r in rows if r.participant == person]) for person in people])
    error = f" +- {np.std(means, ddof=1) / np.sqrt(len(means)):.2f}" if len(means) > 1 else ""
    return f"{np.mean(means):+.2f}{error} [{min(r.gain_psnr for r in rows):+.2f}], {similarity:+.3f}"


def table_by_image(rows: Sequence[Row], cell: Callable[[Row], str]) -> list[str]:
    """Return the lines of a table with a row for each degraded image and a column for each method."""
    methods = list(dict.fromkeys(row.method for row in rows))
    lines = ["| participant | case | " + " | ".join(methods) + " |", "|---" * (len(methods) + 2) + "|"]
    for key in dict.fromkeys((row.participant, row.suffix, row.case) for row in rows):
        cells = [cell(row) for row in rows if (row.participant, row.suffix, row.case) == key]
        lines.append(f"| {key[0]} {key[1]} | {key[2]} | " + " | ".join(cells) + " |")
    return lines


def lesion_table(rows: Sequence[Row]) -> str:
    """Return the table of lesions: contrast to the rim and volume, in % of the truth's, and shift in voxels."""
    some = [row for row in rows if np.isfinite(row.lesion_ratio)]
    if not some:
        return "\nno lesion masks"

    def overall(row: Row) -> str:
        return f"{100 * row.lesion_ratio:.0f}, {100 * row.lesion_volume:.0f}, {row.lesion_shift:.2f}"

    def by_size(row: Row) -> str:
        return ", ".join("n/a" if np.isnan(c) else f"{100 * c:.0f}" for c in row.contrasts)

    lines = ["", "Lesions: contrast against their rim and volume, % of the truth's; shift in voxels", ""]
    lines += table_by_image(some, overall)
    lines += ["", "Contrast of lesions of less than 100, less than 1000, and more voxels, % of the truth's", ""]
    return "\n".join(lines + table_by_image(some, by_size))


def sample_table(model: str, rows: Sequence[Row]) -> str:
    """Return the table of samples: gain over cubic, loss against the mean, energy of detail over the truth's."""
    if not rows:
        return ""
    lines = ["", f"{model}: one sample; gain over cubic, loss against the mean, dB; sharpness", ""]
    lines += table_by_image(
        rows, lambda row: f"{row.sample_gain:+.2f}, {row.gain_psnr - row.sample_gain:.2f}; {row.sample_sharpness:.2f}"
    )
    facts = ", ".join(f"{name} {value}" for name, value in sample_figures(rows).items())
    return "\n".join([*lines, "", facts])


def sample_figures(rows: Sequence[Row]) -> dict[str, float]:
    """Return mean and worst over all images of the figures of :func:`sample_table`."""
    gains = np.array([row.sample_gain for row in rows])
    losses = np.array([row.gain_psnr for row in rows]) - gains
    sharpness = np.array([row.sample_sharpness for row in rows])
    figures = {
        "gain_psnr_db": gains.mean(),
        "worst_gain_psnr_db": gains.min(),
        "loss_psnr_db": losses.mean(),
        "worst_loss_psnr_db": losses.max(),
        "sharpness": sharpness.mean(),
        "least_sharpness": sharpness.min(),
        "greatest_sharpness": sharpness.max(),
    }
    return {name: round(float(value), 2) for name, value in figures.items()}


def read_rows(paths: Sequence[Path]) -> list[Row]:
    """Read the files of ``benchmarks.quality --out``; they do not have the ratios of the errors."""
    rows = []
    for path in paths:
        with path.open(encoding="utf-8", newline="") as stream:
            rows += cattrs.structure(list(csv.DictReader(stream, delimiter="\t")), list[Row])
    return rows


def main() -> None:
    """Print the tables of earlier measurements."""
    parser = argparse.ArgumentParser(description="Print the tables of people that were measured one by one.")
    parser.add_argument("tables", type=Path, nargs="+", metavar="TSV", help="of benchmarks.quality --out")
    rows = read_rows(parser.parse_args().tables)
    print(summary(rows))
    print(lesion_table(rows))


if __name__ == "__main__":
    main()
