"""Detail of samples: how much of it an image is expected to have."""

from __future__ import annotations

import torch

from ..smoothing import smoothed

_FINE = 2.355  # FWHM in voxels, a standard deviation of 1: what is finer counts as detail
_NEIGHBOURHOOD = 14.0  # FWHM in voxels
_LARGEST_GAIN = 2.0  # more gives edges bright and dark rims that are not in the scan
_TINY = 1e-12


def detail_gain(
    sample: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, share: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return by how much the detail of a sample falls short of what the image is expected to have, and that detail.

    By the law of total variance E[d^2] = E[d]^2 + Var[d] of the detail d, its expected energy is that of the mean
    image's detail and the variance of its error. Among the images of a given energy, the amplified one is nearer to the
    truth than one with more noise (Freirich et al. 2021, arXiv 2107.02555). The detail of d is finer than d, so the
    gain g solves E[(d + (g - 1) d')^2] = E[d^2] with d' the detail of the sample's. Energies are means over a
    neighbourhood.

    Parameters
    ----------
    sample, mean
        A sample of the image, and the mean of all, (i, j, k).
    std
        Standard deviation of the error of the mean, same shape and units.
    share
        What :func:`detail_share` has measured.

    Returns
    -------
    gain, detail
        What the detail is to be multiplied by, from 1 to 2, and the detail: same shape.
    """
    detail, of_mean = _detail(sample), _detail(mean)
    finer = _detail(detail)
    lacking = _nearby(of_mean.square_().addcmul_(std, std, value=share).addcmul_(detail, detail, value=-1))
    both, square = _nearby(detail * finer).clamp_(min=0), _nearby(finer.square_())
    lacking.clamp_(min=0)
    root = torch.addcmul(both.square(), square, lacking).sqrt_()
    return lacking.div_(root.add_(both).clamp_(min=_TINY)).add_(1).clamp_(max=_LARGEST_GAIN), detail


def detail_share(image: torch.Tensor, truth: torch.Tensor, std: torch.Tensor, mask: torch.Tensor) -> float:
    """Energy of detail that an image lacks, as a share of the variance of its error as predicted.

    Parameters
    ----------
    image, truth
        (i, j, k) in the same units.
    std
        Predicted standard deviation of the error of ``image``.
    mask
        Where the energies are counted.
    """
    lacking = _detail(truth).square_().sub_(_detail(image).square_())[mask].sum()
    return max(0.0, float(lacking / std[mask].square().sum()))


def _detail(volume: torch.Tensor) -> torch.Tensor:
    return volume - smoothed(volume[None, None], _FINE)[0, 0]


def _nearby(energy: torch.Tensor) -> torch.Tensor:
    return smoothed(energy[None, None], _NEIGHBOURHOOD)[0, 0]
