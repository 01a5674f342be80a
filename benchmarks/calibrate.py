"""Calibration: how often the predicted intervals hold the truth, and the factor in the card that corrects this."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moesr_bids.atomic import temporary_beside
from moesr_bids.sr.calibration import LEVELS, ErrorRatios

from .tables import Row, groups, sample_figures


def coverage_table(model: str, rows: Sequence[Row]) -> str:
    """Return a table: share of the brain's voxels inside the predicted intervals, per contrast.

    The rows "left out" take for each participant the factor of the standard deviation of the other participants with
    this contrast.
    """
    if not rows:
        return f"\n{model}: no uncertainty"
    lines = ["", f"{model}: share of voxels inside the interval, %", ""]
    lines += ["| | " + " | ".join(f"{p} %" for p in LEVELS) + " |", "|---" * (len(LEVELS) + 1) + "|"]
    for suffix in dict.fromkeys(row.suffix for row in rows):
        held = _mean_coverage([_ratios(row).coverage(row.temperature) for row in rows if row.suffix == suffix])
        lines.append(f"| {suffix} | " + " | ".join(f"{100 * held[str(p)]:.1f}" for p in LEVELS) + " |")
    for suffix, left_out in _left_out_coverage(rows).items():
        lines.append(f"| {suffix}, left out | " + " | ".join(f"{100 * left_out[str(p)]:.1f}" for p in LEVELS) + " |")
    return "\n".join(lines)


def _ratios(row: Row) -> ErrorRatios:
    assert row.ratios is not None
    return row.ratios


def _mean_coverage(some: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([one[key] for one in some])) for key in some[0]}


def _left_out_coverage(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return the coverage of scans with the factor of the other participants, per contrast with two or more of them."""
    found: dict[str, list[dict[str, float]]] = {}
    for participant, suffix in dict.fromkeys((row.participant, row.suffix) for row in rows):
        same = [row for row in rows if row.suffix == suffix]
        others = [_ratios(row) for row in same if row.participant != participant]
        if others:
            temperature = ErrorRatios.pooled(others).temperature()
            held = [_ratios(row).coverage(temperature) for row in same if row.participant == participant]
            found.setdefault(suffix, []).extend(held)
    return {suffix: _mean_coverage(some) for suffix, some in found.items()}


def detail_of(rows: Sequence[Row], temperature: float) -> float:
    """Return the share of the error's variance that a sample gets as detail.

    ``temperature`` is the factor of the predicted standard deviation. The share is the lower fifth over scans and
    acquisitions, so four of five images get no more detail than they lack.
    """
    names = groups()
    found: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        share = row.detail_share * (row.temperature / temperature) ** 2
        found.setdefault((row.participant, row.suffix, names[row.case]), []).append(share)
    return round(float(np.percentile([np.mean(shares) for shares in found.values()], 20)), 4)


def write_calibration(weights: Path, rows: Sequence[Row]) -> None:
    """Write the factors of the standard deviation, the coverage and the gains over cubic into a card.

    The card of a mixture also gets the share of the predicted variance that samples have as detail.
    """
    path = weights.with_suffix(".json")
    card = json.loads(path.read_text(encoding="utf-8"))
    suffixes = dict.fromkeys(row.suffix for row in rows)
    pools = {"all": rows, **{suffix: [row for row in rows if row.suffix == suffix] for suffix in suffixes}}
    card["temperature"] = {
        name: round(ErrorRatios.pooled([_ratios(row) for row in some]).temperature(), 4) for name, some in pools.items()
    }
    card["coverage"] = {
        suffix: {level: round(share, 4) for level, share in held.items()}
        for suffix, held in _left_out_coverage(rows).items()
    }
    if card["kind"] == "moediff":
        # The samples had the shares of the former calibration, which stand beside their figures.
        card["sample"] = {"images": len(rows), "detail": card.get("detail", {}), **sample_figures(rows)}
        card["detail"] = {name: detail_of(some, card["temperature"][name]) for name, some in pools.items()}
    names = groups()
    card["validation"] = {
        group: {
            "gain_psnr_db": round(float(np.mean([r.gain_psnr for r in rows if names[r.case] == group])), 2),
            "gain_ssim": round(float(np.mean([r.gain_ssim for r in rows if names[r.case] == group])), 4),
            "worst_gain_psnr_db": round(min(r.gain_psnr for r in rows if names[r.case] == group), 2),
            "cases": sorted({r.case for r in rows if names[r.case] == group}),
        }
        for group in dict.fromkeys(names[row.case] for row in rows)
    }
    with temporary_beside(path) as temporary:
        temporary.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
