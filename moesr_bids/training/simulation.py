"""Simulation of a :class:`.acquisition.Scan` of a sharp patch, and the inputs that the engine would make of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray

from ..sr.interpolation import spline_matrix
from ..sr.models.acquisition import acquisition_vector, axis_order
from ..sr.models.network import data_correction
from ..sr.operator import Factors, apply_axes, axis_factors, axis_matrix
from ..sr.psf import PSF, AxisPSF
from ..sr.zerofilling import measured_shares
from .acquisition import Scan, SmoothField

_TARGET = (1.0, 1.0, 1.0)


@frozen(eq=False)
class Example:
    """Inputs of the network, and the truth.

    Axes are in the order of :func:`moesr_bids.sr.models.acquisition.axis_order`.

    Parameters
    ----------
    channels
        float32 (2 + guidance, n, n, n): interpolated image, its correction by the data, guidance maps.
    acquisition
        float32 vector, see :func:`moesr_bids.sr.models.acquisition.acquisition_vector`.
    sharp
        float32 (n, n, n): the truth on the target grid.
    tissue
        float32 (3, n, n, n): shares of white matter, cortex and lesions, 0 where unknown.
    band
        float32 (3, n, n): low-pass matrix of each axis that keeps the detail of the truth; the identity along sharp
        axes.
    """

    channels: torch.Tensor
    acquisition: torch.Tensor
    sharp: torch.Tensor
    tissue: torch.Tensor
    band: torch.Tensor


class Matrices(NamedTuple):
    """Matrices that simulate a scan of a volume: small, but slow to make; float32.

    Parameters
    ----------
    blur
        Acquisition matrix of each axis.
    spline
        Interpolation from the acquired to the target grid, of each axis.
    factors
        Singular value decomposition (U, values, V) of the reported acquisition matrix of each axis; nine tensors.
    fields
        Coefficients of the logarithms of bias and Jacobian, (2, 4, 4, 4).
    powers
        Powers 0 to 3 of the positions on the target grid, then on the acquired grid along each axis, (4, n) each.
    vector
        Acquisition vector, see :func:`moesr_bids.sr.models.acquisition.acquisition_vector`.
    band
        Low-pass matrix of each axis that keeps the detail of the volume, (3, n, n).
    """

    blur: tuple[torch.Tensor, ...]
    spline: tuple[torch.Tensor, ...]
    factors: tuple[torch.Tensor, ...]
    fields: torch.Tensor
    powers: tuple[torch.Tensor, ...]
    vector: torch.Tensor
    band: torch.Tensor

    @classmethod
    def of(cls, scan: Scan, n: int) -> Matrices:
        """Make the matrices of a scan of a cube of n voxels per side."""
        sampling = scan.sampling
        target = np.arange(n, dtype=np.float64) - (n - 1) / 2
        source = [sampling.positions(axis, n) for axis in range(3)]

        def blurs(psf: PSF) -> list[NDArray[np.float64]]:
            return [axis_matrix(s, target, p, 1.0) for s, p in zip(source, psf.axes, strict=True)]

        def tensors(arrays: Iterable[NDArray[np.float64]]) -> tuple[torch.Tensor, ...]:
            return tuple(torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for a in arrays)

        powers = [(positions / (n / 2)) ** np.arange(SmoothField.ORDER + 1)[:, None] for positions in (target, *source)]
        known = scan.bias.known, scan.jacobian.known
        (fields,) = tensors([np.stack([scan.bias.cube(), scan.jacobian.cube()])])
        band = low_passes(target, scan.detail)
        true = blurs(sampling.psf)
        told = true if sampling.reported == sampling.psf else blurs(sampling.reported)
        return cls(
            tensors(true),
            tensors(spline_matrix(s, target) for s in source),
            tuple(part for matrix in told for part in axis_factors(matrix)),
            fields,
            tensors(powers),
            acquisition_vector(sampling.reported, sampling.zooms, _TARGET, scan.noise.reported, known),
            band,
        )

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Return all tensors, one after the other."""
        return (*self.blur, *self.spline, *self.factors, self.fields, *self.powers, self.vector, self.band)

    @classmethod
    def joined(cls, tensors: Sequence[torch.Tensor]) -> Matrices:
        """Rebuild the matrices from :meth:`tensors`."""
        parts = iter(tensors)
        blur, spline, factors = (tuple(islice(parts, count)) for count in (3, 3, 9))
        return cls(blur, spline, factors, next(parts), tuple(islice(parts, 4)), next(parts), next(parts))


def acquire(patch: torch.Tensor, scan: Scan, margin: int, matrices: Matrices | None = None) -> Example:
    """Simulate a scan of a volume, and interpolate it back as the engine does.

    Parameters
    ----------
    patch
        float32 (4, m, m, m): sharp volume and its tissue (see :class:`Example`), with ``margin`` voxels more on each
        side than the example will have.
    scan
        Parameters of the scan.
    margin
        Voxels that are cut off each side after the simulation, because the profile reaches beyond the volume there.
    matrices
        Matrices of the scan on the device of the patch; by default they are made here.
    """
    volume, tissue = patch[0], patch[1:]
    n = volume.shape[0]
    if matrices is None:
        matrices = Matrices.joined([part.to(volume.device) for part in Matrices.of(scan, n).tensors()])
    sharp = scan.contrast.apply(volume)
    log_bias, log_jacobian = _polynomials(matrices.fields, matrices.powers[:1] * 3)
    # The corrections divide by the bias and multiply by the Jacobian: without noise they restore the image.
    distorted = scan.motion.apply(sharp * (log_bias - log_jacobian).exp())
    sampled = apply_axes(distorted, matrices.blur)
    (gain,) = _polynomials(matrices.fields[1:] - matrices.fields[:1], matrices.powers[1:])
    shares = measured_shares(scan.sampling.psf, scan.sampling.zooms)
    acquired = scan.noise.apply(sampled.clamp(min=0), shares) * gain.exp()
    image = apply_axes(acquired, matrices.spline)
    factors = Factors.joined([matrices.factors[3 * axis : 3 * axis + 3] for axis in range(3)])
    correction = data_correction(image, acquired, factors, scan.noise.reported)
    inner = (slice(margin, n - margin),) * 3
    known = scan.bias.known, scan.jacobian.known
    maps = [
        field if there else torch.zeros_like(image)
        for field, there in zip((log_bias, log_jacobian), known, strict=True)
    ]
    order = axis_order(scan.sampling.zooms, _TARGET)
    channels, truth = (
        stack[:, *inner].permute(0, *(1 + axis for axis in order)).contiguous()
        for stack in (torch.stack([image, correction, *maps]), torch.cat([sharp[None], tissue]))
    )
    band = matrices.band[list(order), *inner[:2]]
    band = band / band.sum(dim=2, keepdim=True)  # rows sum to 1 again without the margin
    return Example(channels, matrices.vector, truth[0], truth[1:], band)


def low_passes(positions: NDArray[np.float64], detail: Sequence[float]) -> torch.Tensor:
    """Make the low-pass matrix of each axis that keeps detail of this size (voxels) and larger, float32 (3, n, n)."""
    matrices = [
        np.eye(len(positions)) if size == 1 else axis_matrix(positions, positions, AxisPSF("kspace", size), 1.0)
        for size in detail
    ]
    return torch.from_numpy(np.stack(matrices).astype(np.float32))


def _polynomials(fields: torch.Tensor, powers: Sequence[torch.Tensor]) -> torch.Tensor:
    """Evaluate polynomials of third order, (f, 4, 4, 4), at positions given by their powers."""
    i, j, k = powers
    return torch.einsum("fabc,ai,bj,ck->fijk", fields, i, j, k)
