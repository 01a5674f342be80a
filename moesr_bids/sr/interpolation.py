"""Cubic-spline interpolation onto the target grid: the start of every model and the baseline."""

from __future__ import annotations

import numpy as np
import torch
from scipy.interpolate import make_interp_spline

from .grid import Grid
from .models import Model, ModelCard, Problem
from .operator import apply_axes


def cubic_spline(volume: torch.Tensor, input_grid: Grid, target_grid: Grid) -> torch.Tensor:
    """Interpolate with separable cubic splines (lower order where an axis has fewer than four voxels).

    Parameters
    ----------
    volume
        float32, shape of ``input_grid``.
    input_grid, target_grid
        Grids with the same axes and centre.

    Returns
    -------
    volume
        float32, shape of ``target_grid``; beyond the outermost voxel centres the image is continued as constant.
    """
    matrices = []
    for axis in range(3):
        n = input_grid.shape[axis]
        source, target = input_grid.axis_positions(axis), target_grid.axis_positions(axis)
        if n == 1:
            matrix = np.ones((len(target), 1))
        else:
            spline = make_interp_spline(source, np.eye(n), k=min(3, n - 1))
            matrix = spline(np.clip(target, source[0], source[-1]))
        matrices.append(torch.from_numpy(matrix.astype(np.float32)).to(volume.device))
    return apply_axes(volume, tuple(matrices))


def _reconstruct(problem: Problem) -> torch.Tensor:
    operator = problem.operator
    return cubic_spline(problem.acquired, operator.input_grid, operator.target_grid)


MODEL = Model(
    "cubic",
    ModelCard(
        "cubic-spline interpolation: the baseline, not projected",
        methods="Cubic-spline interpolation was used.",
        projected=False,
    ),
    _reconstruct,
)
