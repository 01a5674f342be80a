"""Smoothing, and the detail of samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moesr_bids.sr.models.detail import Detailed, detail_energy, needed_share, with_detail
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


def detailed(sample: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> Detailed:
    return with_detail(sample, mean, std, SHARE, head=torch.ones_like(mean), seed=3)


def inner_energy(volume: torch.Tensor) -> float:
    mask = np.zeros((SIZE,) * 3, dtype=bool)
    mask[8:-8, 8:-8, 8:-8] = True
    return detail_energy(volume.numpy(), mask)


def noise(std: float, seed: int) -> torch.Tensor:
    return std * torch.randn((SIZE,) * 3, generator=torch.Generator().manual_seed(seed))


def test_detail_gets_the_energy_that_is_expected() -> None:
    """That of the mean and that of its error, which white noise has in detail by nine tenths."""
    mean, error = 1 + noise(0.04, 0), noise(0.03, 1)
    found = detailed(mean, mean, torch.full_like(mean, 0.03)).image
    assert inner_energy(mean) < inner_energy(found) < inner_energy(mean + error)
    assert inner_energy(found) == pytest.approx(inner_energy(mean) + SHARE * 0.03**2, rel=0.02)
    # The mean intensity and what is coarse stay.
    torch.testing.assert_close(smoothed(found[None, None], 6.0), smoothed(mean[None, None], 6.0), atol=5e-3, rtol=0)


def test_a_sample_with_enough_detail_stays_as_it_is() -> None:
    mean = 1 + noise(0.02, 0)
    rich = mean + noise(0.05, 1)
    assert torch.equal(detailed(rich, mean, torch.full_like(mean, 0.02)).image, rich)
    flat = torch.ones_like(mean)
    assert torch.equal(detailed(flat, flat, torch.zeros_like(flat)).image, flat)


def test_needed_share_is_the_one_that_gives_the_energy_of_the_truth() -> None:
    mean, error = 1 + noise(0.04, 0), noise(0.03, 1)
    std, head = torch.full_like(mean, 0.03), torch.ones_like(mean)
    of_truth, of_mean = inner_energy(mean + error), inner_energy(mean)
    of_sample = inner_energy(detailed(mean, mean, std).image)
    needed = needed_share(SHARE, of_sample, of_mean, of_truth)
    right = with_detail(mean, mean, std, needed, head=head, seed=3).image
    assert of_sample < 0.95 * of_truth
    assert inner_energy(right) == pytest.approx(of_truth, rel=0.01)
    assert needed_share(SHARE, of_sample, of_mean, 0.9 * of_mean) == 0  # the truth is smoother
    assert needed_share(SHARE, of_mean, of_mean, of_truth) == SHARE  # no detail was added: nothing is known


def test_what_is_hardly_there_is_doubled_and_the_rest_is_noise() -> None:
    """The seed decides the noise, its energy follows the standard deviation, and nothing that is coarse changes."""
    faint = noise(0.001, 0)
    std = torch.full_like(faint, 0.02)
    std[: SIZE // 2] = 0.04
    found = detailed(faint, faint, std)
    assert float(found.gain.min()) == float(found.gain.max()) == 2
    assert found.noise_share == pytest.approx(0.25 / SHARE, rel=0.02)  # a quarter of the variance
    fine = found.image - smoothed(found.image[None, None], 2.355)[0, 0]
    for there, predicted in ((slice(6), 0.04), (slice(34, None), 0.02)):
        assert float(fine[there].square().mean()) == pytest.approx(0.25 * predicted**2, rel=0.1)
    assert float(smoothed(found.image[None, None], 6.0).std()) < 0.05 * 0.04
    assert torch.equal(detailed(faint, faint, std).image, found.image)
    other = with_detail(faint, faint, std, SHARE, head=torch.ones_like(std), seed=4).image - faint
    assert abs(float(torch.corrcoef(torch.stack([other.flatten(), (found.image - faint).flatten()]))[0, 1])) < 0.05


def test_noise_is_added_only_where_doubling_does_not_suffice() -> None:
    mean = 1 + noise(0.04, 0)
    found = detailed(mean, mean, torch.full_like(mean, 0.03))
    fine = mean - smoothed(mean[None, None], 2.355)[0, 0]
    assert 1 < float(found.gain.max()) < 2
    assert found.noise_share < 1e-6
    torch.testing.assert_close(found.image - mean, (found.gain - 1) * fine, atol=1e-4, rtol=0)
