"""Detail of samples: amplify it, and fill up with noise, until it has the expected energy."""

from __future__ import annotations

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray

from ..smoothing import smoothed

_FINE = 2.355  # FWHM in voxels (standard deviation 1): detail is what this Gaussian removes
_NEIGHBOURHOOD = 14.0  # FWHM in voxels
_LARGEST_NOISE = 0.25  # of the variance of the error: it alone costs at most 10 log10(1.25) = 1 dB
_LARGEST_GAIN = 2.0  # more gives edges bright and dark rims that are not in the scan
_TINY = 1e-12


@frozen(eq=False)
class Detailed:
    """An image whose detail has the expected energy, or as much of it as the limits allow.

    Parameters
    ----------
    image
        The image, (i, j, k).
    gain
        Factor that its own detail was multiplied by, from 1 to 2, same shape.
    noise_share
        Energy of the added noise over the expected energy of detail.
    """

    image: torch.Tensor
    gain: torch.Tensor
    noise_share: float


def with_detail(
    sample: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, share: float, *, head: torch.Tensor, seed: int
) -> Detailed:
    """Give a sample the energy of detail that the truth is expected to have, where the sample has less.

    Detail d is the image minus its Gaussian mean; its energy is the mean of d^2 over a neighbourhood. By the law of
    total variance, E[d^2] = E[d]^2 + Var[d], the expected energy is that of the mean image's detail, plus a share of
    the variance of its error. Among images of one energy, an amplified one is nearer to the truth than one with added
    noise (Freirich et al. 2021, arXiv 2107.02555). So the sample x becomes x + (g - 1) d. Its detail is then
    d + (g - 1) d', where d' is the detail of d, and the gain g is chosen such that this has the expected energy. The
    gain is at most 2. What is still lacking, in nearly flat tissue, is filled with the detail of white noise, up to a
    quarter of the variance of the error.

    Parameters
    ----------
    sample, mean
        A sample of the image, and the mean of all, (i, j, k).
    std
        Standard deviation of the error of the mean, same shape and units.
    share
        Share of the variance of the error that counts as energy of detail; :func:`needed_share` finds it.
    head
        Weight of each voxel in ``noise_share``, same shape.
    seed
        Seed of the noise. It is drawn on the CPU for the whole volume, so the device does not matter.
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
    noise_energy = _detail(noise).square_().mean()  # the image's detail will hold only the detail of this noise
    noise_share = float((lacking * head).sum() / (expected * head).sum().clamp(min=_TINY))
    image = torch.addcmul(sample, added, detail).addcmul_(noise, lacking.div_(noise_energy).sqrt_())
    return Detailed(image, added.add_(1), noise_share)


def needed_share(share: float, sample: float, mean: float, truth: float) -> float:
    """Return the share for which samples have the energy of the truth's detail, from a sample made with another share.

    The energies are measured after the projection onto the data, which removes some detail again. The energy beyond the
    mean's is taken as proportional to the share.

    Parameters
    ----------
    share
        Share that the sample was made with.
    sample, mean, truth
        :func:`detail_energy` of the finished images.
    """
    if sample <= mean:
        return share
    return share * max(0.0, truth - mean) / (sample - mean)


def detail_energy(volume: NDArray[np.floating], mask: NDArray[np.bool_]) -> float:
    """Mean square of the detail inside the mask: of the volume minus its Gaussian mean (standard deviation 1 voxel)."""
    detail = _detail(torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32)))
    return float(detail.square_().double()[torch.from_numpy(np.ascontiguousarray(mask))].mean())


def _detail(volume: torch.Tensor) -> torch.Tensor:
    return volume - smoothed(volume[None, None], _FINE)[0, 0]


def _nearby(energy: torch.Tensor) -> torch.Tensor:
    return smoothed(energy[None, None], _NEIGHBOURHOOD)[0, 0]
