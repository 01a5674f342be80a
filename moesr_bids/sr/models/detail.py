"""Detail of samples: how much of it an image is expected to have."""

from __future__ import annotations

import torch

from ..smoothing import smoothed

_FINE = 2.355  # FWHM in voxels, a standard deviation of 1: what is finer counts as detail
_NEIGHBOURHOOD = 14.0  # FWHM in voxels
_SHARE = 0.7  # of the error's energy that is detail
_LARGEST_GAIN = 2.0
_TINY = 1e-12


def detail_gain(sample: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return by how much the detail of a sample falls short of what the image is expected to have, and that detail.

    By the law of total variance E[d^2] = E[d]^2 + Var[d] of the detail d, its expected energy is that of the mean
    image's detail and the variance of its error. Among the images of a given energy, the amplified one is nearer to the
    truth than one with more noise (Freirich et al. 2021, arXiv 2107.02555). Energies are means over a neighbourhood.

    Parameters
    ----------
    sample, mean
        A sample of the image, and the mean of all, (i, j, k).
    std
        Standard deviation of the error of the mean, same shape and units.

    Returns
    -------
    gain, detail
        What the detail is to be multiplied by, from 1 to 2, and the detail: same shape.
    """
    detail, of_mean = (volume - smoothed(volume[None, None], _FINE)[0, 0] for volume in (sample, mean))
    wanted = of_mean.square_().addcmul_(std, std, value=_SHARE)
    expected, there = (smoothed(energy[None, None], _NEIGHBOURHOOD)[0, 0] for energy in (wanted, detail.square()))
    return (expected / there.clamp_(min=_TINY)).sqrt_().clamp_(1.0, _LARGEST_GAIN), detail
