"""The image that agrees with several scans: linear least squares by conjugate gradients.

    min_x  |x - x0|^2 / tau^2  +  |grad (x - x0)|^2 / rho^2  +  sum_s |w_s^(1/2) (A_s x - y_s)|^2 / sigma_s^2

The first two terms describe the expected error of the image x0: its size in each voxel (tau) and its roughness (rho).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from attrs import frozen

from .operator import Scan


@frozen
class Prior:
    """Expected error of the image that the data correct.

    Parameters
    ----------
    tau
        Standard deviation in each voxel, in units of the image.
    rho
        Standard deviation of the difference of the error between neighbouring voxels; infinite leaves this term out.
    """

    tau: float
    rho: float = float("inf")

    def precision(self, volume: torch.Tensor) -> torch.Tensor:
        """Return the inverse covariance times a volume."""
        out = volume / self.tau**2
        if self.rho != float("inf"):
            for axis in range(3):
                step = torch.diff(volume, dim=axis) / self.rho**2
                n = volume.shape[axis]
                out.narrow(axis, 0, n - 1).sub_(step)
                out.narrow(axis, 1, n - 1).add_(step)
        return out


def conjugate_gradients(
    apply: Callable[[torch.Tensor], torch.Tensor],
    right: torch.Tensor,
    *,
    iterations: int,
    tolerance: float = 1e-3,
    progress: Callable[[float], None] | None = None,
) -> tuple[torch.Tensor, int]:
    """Solve a symmetric positive definite system from 0.

    Parameters
    ----------
    apply
        Multiplies the matrix with a vector.
    right
        Right-hand side.
    iterations
        Most iterations.
    tolerance
        The iterations stop when the norm of the residual is this share of that of the right-hand side.
    progress
        Called with the share of the iterations that is done.

    Returns
    -------
    solution, count
        Solution, and number of iterations.
    """
    x = torch.zeros_like(right)
    residual, direction = right.clone(), right.clone()
    square = float(residual.double().square().sum())
    wanted = tolerance**2 * square
    count = 0
    while count < iterations and square > wanted:
        along = apply(direction)
        step = square / float((direction.double() * along).sum())
        x.add_(direction, alpha=step)
        residual.sub_(along, alpha=step)
        before, square = square, float(residual.double().square().sum())
        direction.mul_(square / before).add_(residual)
        count += 1
        if progress is not None:
            progress(count / iterations)
    return x, count


def agree_with_scans(
    start: torch.Tensor,
    scans: Sequence[Scan],
    prior: Prior,
    *,
    iterations: int = 15,
    tolerance: float = 0.02,
    progress: Callable[[float], None] | None = None,
) -> torch.Tensor:
    """Correct an image by the data of all scans: the minimisation in the docstring of this module.

    Parameters
    ----------
    start
        x0 on the target grid.
    scans
        Scans whose operators share the target grid.
    prior
        Expected error of ``start``.
    iterations, tolerance
        When the conjugate gradients end, see :func:`conjugate_gradients`.
    progress
        Called with the share of the iterations that is done.

    Returns
    -------
    image
        float32 on the target grid.
    """
    right = torch.zeros_like(start)
    for scan in scans:
        missing = (scan.acquired - scan.predicted(start)) * (scan.weight / scan.sigma**2)
        right.add_(scan.back(missing))

    def apply(volume: torch.Tensor) -> torch.Tensor:
        out = prior.precision(volume)
        for scan in scans:
            out.add_(scan.back(scan.predicted(volume) * (scan.weight / scan.sigma**2)))
        return out

    change, _ = conjugate_gradients(apply, right, iterations=iterations, tolerance=tolerance, progress=progress)
    return change.add_(start)
