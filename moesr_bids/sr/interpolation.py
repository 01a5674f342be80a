"""Cubic-spline interpolation onto the target grid: the start of every model and the baseline."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline

from .grid import Grid
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
    matrices = (spline_matrix(input_grid.axis_positions(a), target_grid.axis_positions(a)) for a in range(3))
    return apply_axes(volume, tuple(torch.from_numpy(m.astype(np.float32)).to(volume.device) for m in matrices))


def spline_matrix(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cubic-spline interpolation along one axis as a matrix (n_target, n_source).

    Parameters
    ----------
    source, target
        Ascending positions in mm, in one frame.
    """
    n = len(source)
    if n == 1:
        return np.ones((len(target), 1))
    spline = make_interp_spline(source, np.eye(n), k=min(3, n - 1))
    return np.asarray(spline(np.clip(target, source[0], source[-1])), dtype=np.float64)
