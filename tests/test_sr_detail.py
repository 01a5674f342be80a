"""Smoothing, and the detail of samples."""

from __future__ import annotations

import pytest
import torch

from moesr_bids.sr.models.detail import detail_gain, detail_share
from moesr_bids.sr.smoothing import smoothed

SIZE, SHARE = 40, 0.7


def test_smoothing_keeps_the_mean_and_has_its_width() -> None:
    point = torch.zeros(1, 1, 21, 21, 21)
    point[..., 10, 10, 10] = 1
    blurred = smoothed(point, 3.0)
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-4)
    line = blurred[0, 0, :, 10, 10] / blurred.max()
    assert float(line[9]) > 0.5 > float(line[8])  # half the height between 1 and 2 voxels: FWHM 3
    assert smoothed(point, 0.0) is point
    torch.testing.assert_close(smoothed(torch.ones(1, 1, 9, 9, 9), 2.0), torch.ones(1, 1, 9, 9, 9))


def with_full_detail(sample: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    gain, detail = detail_gain(sample, mean, std, SHARE)
    return sample + (gain - 1) * detail


def detail_energy(volume: torch.Tensor) -> float:
    fine = volume - smoothed(volume[None, None], 2.355)[0, 0]
    return float(fine[8:-8, 8:-8, 8:-8].square().mean())


def noise(std: float, seed: int) -> torch.Tensor:
    return std * torch.randn((SIZE,) * 3, generator=torch.Generator().manual_seed(seed))


def test_detail_gets_the_energy_that_is_expected() -> None:
    """That of the mean and that of its error, which white noise has in detail by nine tenths."""
    mean, error = 1 + noise(0.04, 0), noise(0.03, 1)
    found = with_full_detail(mean, mean, torch.full_like(mean, 0.03))
    assert detail_energy(mean) < detail_energy(found) < detail_energy(mean + error)
    assert detail_energy(found) == pytest.approx(detail_energy(mean) + SHARE * 0.03**2, rel=0.02)
    # The mean intensity and what is coarse stay.
    torch.testing.assert_close(smoothed(found[None, None], 6.0), smoothed(mean[None, None], 6.0), atol=5e-3, rtol=0)


def test_a_sample_with_enough_detail_stays_as_it_is() -> None:
    mean = 1 + noise(0.02, 0)
    rich = mean + noise(0.05, 1)
    assert torch.equal(with_full_detail(rich, mean, torch.full_like(mean, 0.02)), rich)
    flat = torch.ones_like(mean)
    assert torch.equal(with_full_detail(flat, flat, torch.zeros_like(flat)), flat)


def test_the_share_is_that_of_the_energy_that_the_mean_lacks() -> None:
    mean, error = 1 + noise(0.04, 0), noise(0.03, 1)
    std, mask = torch.full_like(mean, 0.03), torch.ones_like(mean, dtype=torch.bool)
    mask[:8] = False
    nine_tenths = detail_energy(error) / 0.03**2
    assert detail_share(mean, mean + error, std, mask) == pytest.approx(nine_tenths, rel=0.05)
    assert detail_share(mean + error, mean, std, mask) == 0


def test_what_is_hardly_there_is_amplified_by_no_more_than_two() -> None:
    faint = noise(0.001, 0)
    found = with_full_detail(faint, faint, torch.full_like(faint, 1.0))
    fine = faint - smoothed(faint[None, None], 2.355)[0, 0]
    torch.testing.assert_close(found - faint, fine)
