"""What is told of a joint image: agreement with each scan before and after the data, positions, gains, slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from attrs import frozen
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ..consistency import Misfit
from ..operator import AcquisitionOperator
from .alternate import Alternation, Given, Placed, gain_facts
from .operator import Scan

_FIGURES = ("ResidualStd", "FractionBeyond3", "StructureStd")


@frozen(eq=False)
class Agreement:
    """How an image agrees with a scan where the scan is believed; see :class:`..consistency.Misfit`."""

    mean: Misfit
    output: Misfit

    @classmethod
    def of(cls, scan: Scan, given: Given, weights: NDArray[np.float32], *images: Any) -> Agreement:
        """Compare the mean of the estimates, and the joint image, with a scan."""
        operator = scan.operator
        own = AcquisitionOperator(given.grid, given.grid.isotropic(operator.target.zooms[0]), given.psf)
        believed = np.expand_dims(weights == 1, [a for a in range(3) if a != given.slice_axis])
        mask = given.inside & operator.seen().numpy() & believed
        # A scan that was left out may not reach the image at all.
        mask = mask if mask.any() else given.inside
        first, second = (
            Misfit.of_residual((scan.acquired - scan.predicted(image)).div_(scan.sigma), own, mask) for image in images
        )
        return cls(first, second)


def consistency_facts(agreements: Sequence[tuple[Agreement, Placed]]) -> dict[str, Any]:
    """Of the scans that are used: of each figure the largest, as one that is contradicted is not made up for."""
    outputs = [agreement.output for agreement, _ in agreements]
    means = [_record(agreement.mean, placed) for agreement, placed in agreements]
    largest = max(means, key=lambda one: one["StructureLargest"])
    return {
        "ResidualStd": max(one.std for one in outputs),
        "FractionBeyond3": max(one.fraction_beyond3 for one in outputs),
        "BeyondGridStd": max(one.beyond_grid_std for one in outputs),
        "Model": {**largest, **{key: max(one[key] for one in means) for key in _FIGURES}},
    }


def _record(misfit: Misfit, placed: Placed) -> dict[str, Any]:
    """Return the figures of a scan, the place in the world of the joint image."""
    place = apply_affine(np.linalg.inv(placed.position), misfit.structure_place)
    return {**misfit.record(), "StructurePlace": [round(float(value), 1) for value in place]}


def scan_facts(
    source: str, given: Given, found: Alternation, s: int, record: Mapping[str, Any], agreement: Agreement
) -> dict[str, Any]:
    """Return what is told of a scan.

    Parameters
    ----------
    source
        Its name.
    given, found, s
        The scan, what was found of all, and its number there.
    record
        Of its image alone.
    agreement
        With the joint image.
    """
    placed = found.placed[s]
    turn = np.rad2deg(Rotation.from_matrix(placed.position[:3, :3]).magnitude())
    shift = apply_affine(placed.position, found.centre) - found.centre
    doubted = np.flatnonzero(placed.weights < 1)
    return {
        "Source": source,
        "Used": not placed.reason,
        **({"Reason": placed.reason} if placed.reason else {}),
        "Position": np.round(placed.position, 6).tolist(),
        "RotationDegrees": round(float(turn), 3),
        "TranslationMM": round(float(np.linalg.norm(shift)), 3),
        "LastMoveMM": round(placed.moved, 3),
        "Agreement": round(placed.agreement, 3),
        "PSF": record["PSF"],
        "NoiseStd": record["NoiseStd"],
        "Gain": gain_facts(placed, given),
        "SliceAxis": "ijk"[given.slice_axis],
        "Slices": len(placed.weights),
        "SliceWeights": {str(n): round(float(placed.weights[n]), 3) for n in doubted},
        "Mean": _record(agreement.mean, placed),
        "Output": _record(agreement.output, placed),
    }
