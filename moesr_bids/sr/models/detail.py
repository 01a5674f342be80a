"""Detail of samples: an image is given as much of it as it is expected to have."""

from __future__ import annotations

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray

from ..smoothing import smoothed

_FINE = 2.355  # FWHM in voxels, a standard deviation of 1: what is finer counts as detail
_NEIGHBOURHOOD = 14.0  # FWHM in voxels
_LARGEST_NOISE = 0.25  # of the variance of the error: it alone costs at most 10 log10(1.25) = 1 dB
_LARGEST_GAIN = 2.0  # more gives edges bright and dark rims that are not in the scan
_TINY = 1e-12


@frozen(eq=False)
class Detailed:
    """An image with the detail that is expected of it.

    Parameters
    ----------
    image
        (i, j, k).
    gain
        What its own detail was multiplied by, from 1 to 2, same shape.
    noise_share
        Energy of the noise that was added, as a share of that of all detail that was expected.
    """

    image: torch.Tensor
    gain: torch.Tensor
    noise_share: float


def with_detail(
    sample: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, share: float, *, head: torch.Tensor, seed: int
) -> Detailed:
    """Give a sample the energy of detail that the image is expected to have, where it has less.

    By the law of total variance E[d^2] = E[d]^2 + Var[d] of the detail d, its expected energy is that of the mean
    image's detail and the variance of its error. Among the images of a given energy, the amplified one is nearer to the
    truth than one with more noise (Freirich et al. 2021, arXiv 2107.02555). The detail of d is finer than d, so the
    gain g solves E[(d + (g - 1) d')^2] = E[d^2] with d' the detail of the sample's. What the largest gain leaves
    lacking, where the image is nearly flat, is filled with the detail of white noise, up to a quarter of the variance
    of the error. Energies are means over a neighbourhood.

    Parameters
    ----------
    sample, mean
        A sample of the image, and the mean of all, (i, j, k).
    std
        Standard deviation of the error of the mean, same shape and units.
    share
        Of the variance of the error that is energy of detail, as :func:`needed_share` has found.
    head
        Weight of the voxels that ``noise_share`` is about, same shape.
    seed
        Of the noise. It is drawn on the CPU for the whole volume, so that the device does not matter.
    """
    detail, expected = _detail(sample), _detail(mean).square_().addcmul_(std, std, value=share)
    finer = _detail(detail)
    both, square = _nearby(detail * finer).clamp_(min=0), _nearby(finer.square_())
    lacking = _nearby(torch.addcmul(expected, detail, detail, value=-1)).clamp_(min=0)
    root = torch.addcmul(both.square(), square, lacking).sqrt_()
    added = lacking.div(root.add_(both).clamp_(min=_TINY)).clamp_(max=_LARGEST_GAIN - 1)
    lacking.addcmul_(added.square(), square, value=-1).addcmul_(added, both, value=-2).clamp_(min=0)
    lacking = torch.minimum(lacking, _nearby(std.square()).mul_(_LARGEST_NOISE))
    noise = _detail(torch.randn(sample.shape, generator=torch.Generator().manual_seed(seed)).to(sample.device))
    noise_energy = _detail(noise).square_().mean()  # of what will count as detail of the noise's
    noise_share = float((lacking * head).sum() / (expected * head).sum().clamp(min=_TINY))
    image = torch.addcmul(sample, added, detail).addcmul_(noise, lacking.div_(noise_energy).sqrt_())
    return Detailed(image, added.add_(1), noise_share)


def needed_share(share: float, sample: float, mean: float, truth: float) -> float:
    """Return the share that gives samples the energy of the truth's detail, from what another share has given them.

    The projection onto the data takes some of the detail away again, so this is measured after it (rule of three).

    Parameters
    ----------
    share
        With which the sample was made.
    sample, mean, truth
        :func:`detail_energy` of the finished images.
    """
    if sample <= mean:
        return share
    return share * max(0.0, truth - mean) / (sample - mean)


def detail_energy(volume: NDArray[np.floating], mask: NDArray[np.bool_]) -> float:
    """Mean square of what is finer than a Gaussian with a standard deviation of 1 voxel, inside the mask."""
    detail = _detail(torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32)))
    return float(detail.square_().double()[torch.from_numpy(np.ascontiguousarray(mask))].mean())


def _detail(volume: torch.Tensor) -> torch.Tensor:
    return volume - smoothed(volume[None, None], _FINE)[0, 0]


def _nearby(energy: torch.Tensor) -> torch.Tensor:
    return smoothed(energy[None, None], _NEIGHBOURHOOD)[0, 0]
