"""Data consistency: what an image leaves of the scan, in units of the noise, and how far the projection moves it.

The projection makes the output agree with the scan, whatever the image was before. The agreement of the output
therefore says nothing of the model. Two other figures do: how well the model's own image agreed before the projection,
and how far the projection moved it.

Noise is independent from voxel to voxel. The errors of an image are not: a shift leaves edges, a missing lesion leaves
a spot. The residual is therefore measured twice: as it is, and averaged over the size of a small lesion, which removes
noise and keeps structure. Both are in units of what noise alone would leave.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from attrs import frozen
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

from .grid import Grid, bounding_box
from .operator import AcquisitionOperator

STRUCTURE_MM = 5.0
"""Full width at half maximum of the average."""
_SQRT_8_LN_2 = math.sqrt(8 * math.log(2))
Point = tuple[float, float, float]


@frozen(eq=False)
class Misfit:
    """Residual: input minus A(image), in units of the noise. All figures are taken inside a mask.

    Parameters
    ----------
    residual
        The residual on the whole input grid, also outside of the mask; float32.
    std
        Root mean square of the part that the target grid can represent; 1 for noise alone.
    fraction_beyond3
        Share of the voxels whose residual is beyond 3; 0.0027 for noise alone.
    beyond_grid_std
        Root mean square of the part that is too fine for the target grid; 0 if the grid can represent all.
    structure_std
        Root mean square of the average over :data:`STRUCTURE_MM`; 1 for noise alone.
    structure_largest
        Largest absolute value of this average; about 5 for noise alone.
    structure_place
        World position of this value, in mm.
    """

    residual: torch.Tensor
    std: float
    fraction_beyond3: float
    beyond_grid_std: float
    structure_std: float
    structure_largest: float
    structure_place: Point

    @classmethod
    def of(
        cls,
        image: torch.Tensor,
        acquired: torch.Tensor,
        operator: AcquisitionOperator,
        *,
        sigma: float,
        mask: NDArray[np.bool_],
    ) -> Misfit:
        """Compare an image with the scan.

        Parameters
        ----------
        image
            On the target grid, float32.
        acquired
            The scan on the input grid, float32.
        operator
            Acquisition operator A.
        sigma
            Standard deviation of the noise of ``acquired``.
        mask
            Voxels of the input grid that the figures are of.
        """
        residual = (acquired - operator.forward(image)).div_(sigma)
        return cls.of_residual(residual, operator, mask)

    @classmethod
    def of_residual(cls, residual: torch.Tensor, operator: AcquisitionOperator, mask: NDArray[np.bool_]) -> Misfit:
        """Judge a residual in units of the noise on the input grid of an operator."""
        factors = operator.factors()
        within = residual if factors.share == 1 else factors.from_left(factors.to_left(residual))
        representable = within.cpu().numpy()
        inner = representable[mask] / math.sqrt(factors.share)
        structure = averaged(representable, mask, operator.input_grid.zooms)
        place = tuple(int(n) for n in np.unravel_index(int(np.abs(structure).argmax()), structure.shape))
        return cls(
            residual,
            _rms(inner),
            float(np.mean(np.abs(inner) > 3)),
            _rms((residual - within).cpu().numpy()[mask]) if factors.share < 1 else 0.0,
            _rms(structure[mask]),
            float(np.abs(structure[place])),
            _world(operator.input_grid, place),
        )

    def record(self) -> dict[str, Any]:
        """Return the figures as JSON-serialisable facts."""
        return {
            "ResidualStd": self.std,
            "FractionBeyond3": self.fraction_beyond3,
            "StructureStd": self.structure_std,
            "StructureLargest": self.structure_largest,
            "StructurePlace": list(self.structure_place),
        }


@frozen
class Move:
    """How far the projection moved an image inside a mask.

    Parameters
    ----------
    noise_std
        Root mean square in units of the noise of the scan.
    predicted_std
        Root mean square in units of the standard deviation that the model predicts; None for models that predict none.
    largest
        Largest absolute mean over a cube of about :data:`STRUCTURE_MM`, in units of the noise.
    place
        World position of this value, in mm.
    """

    noise_std: float
    predicted_std: float | None
    largest: float
    place: Point

    @classmethod
    def of(
        cls,
        before: torch.Tensor,
        after: torch.Tensor,
        std: torch.Tensor | None,
        grid: Grid,
        *,
        sigma: float,
        mask: NDArray[np.bool_],
    ) -> Move:
        """Compare two images.

        Parameters
        ----------
        before, after
            Images on ``grid``.
        std
            Predicted standard deviation of the error on ``grid``; None for models that predict none.
        grid
            Target grid.
        sigma
            Standard deviation of the noise, in the units of the images.
        mask
            Voxels of ``grid`` that count.
        """
        inside = torch.from_numpy(mask).to(before.device)
        change = (after - before).mul_(inside)
        size = [min(n, max(1, round(STRUCTURE_MM / zoom))) for n, zoom in zip(grid.shape, grid.zooms, strict=True)]
        means = functional.avg_pool3d(change[None, None], size, ceil_mode=True)[0, 0].abs().cpu().numpy()
        cell = np.unravel_index(int(means.argmax()), means.shape)
        middle = [min((c + 0.5) * n - 0.5, m - 1) for c, n, m in zip(cell, size, grid.shape, strict=True)]
        predicted = None
        if std is not None:
            predicted = _torch_rms(change[inside] / std[inside])
        return cls(_torch_rms(change[inside]) / sigma, predicted, float(means[cell]) / sigma, _world(grid, middle))

    def record(self) -> dict[str, Any]:
        """Return the figures as JSON-serialisable facts."""
        return {
            "MoveNoiseStd": self.noise_std,
            "MovePredictedStd": self.predicted_std,
            "LargestMove": self.largest,
            "LargestMovePlace": list(self.place),
        }


def averaged(residual: NDArray[np.float32], mask: NDArray[np.bool_], zooms: Sequence[float]) -> NDArray[np.float32]:
    """Average a residual over :data:`STRUCTURE_MM` inside a mask, scaled so that unit noise keeps its variance.

    Parameters
    ----------
    residual
        In units of the noise.
    mask
        Same shape; outside of it the result is 0.
    zooms
        Voxel sizes in mm.
    """
    result = np.zeros(residual.shape, dtype=np.float32)
    if not mask.any():
        return result
    box = bounding_box(mask)
    inside = mask[box].astype(np.float32)
    sums, variance = residual[box] * inside, inside.copy()
    for axis, zoom in enumerate(zooms):
        width = STRUCTURE_MM / _SQRT_8_LN_2 / zoom
        reach = math.ceil(3 * width)
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
        sums = ndimage.convolve1d(sums, kernel, axis=axis, mode="constant")
        variance = ndimage.convolve1d(variance, kernel**2, axis=axis, mode="constant")
    result[box] = np.where(mask[box], sums / np.sqrt(np.maximum(variance, np.finfo(np.float32).tiny)), 0)
    return result


def _world(grid: Grid, place: Sequence[float]) -> Point:
    x, y, z = (round(float(value), 1) for value in apply_affine(grid.affine, np.asarray(place, dtype=float)))
    return x, y, z


def _rms(values: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(values), dtype=np.float64))) if values.size else math.nan


def _torch_rms(values: torch.Tensor) -> float:
    return float(values.square().mean(dtype=torch.float64).sqrt()) if values.numel() else math.nan
