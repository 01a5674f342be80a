"""Data consistency tells wrong images from right ones before the projection, and not after it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from moesr_bids.sr.consistency import STRUCTURE_MM, Misfit, Move, averaged
from moesr_bids.sr.grid import Grid
from moesr_bids.sr.operator import AcquisitionOperator
from moesr_bids.sr.projection import project
from moesr_bids.sr.psf import PSF

SIGMA = 0.02


def head(shape: tuple[int, int, int] = (60, 64, 60)) -> np.ndarray:
    """Ellipsoids with folds that are not symmetric, values 0 to 1."""
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.sqrt(i**2 + j**2 + k**2) + 0.08 * np.sin(9 * i + 3 * k + 1) * np.cos(8 * j)
    volume = 0.45 * (radius < 0.85) + 0.4 * (radius < 0.65) - 0.3 * (radius < 0.25)
    return np.asarray(ndimage.gaussian_filter(volume, 0.7), dtype=np.float32)


@pytest.fixture(scope="module")
def scan() -> tuple[torch.Tensor, torch.Tensor, AcquisitionOperator, np.ndarray]:
    """Truth, scan in slices of 3 mm with noise, operator, mask."""
    truth = torch.from_numpy(head())
    grid = Grid((60, 64, 20), np.diag([-1.0, 1.0, 3.0, 1.0]))
    operator = AcquisitionOperator(grid, grid.isotropic(1.0), PSF.from_acquisition(grid.zooms))
    clean = operator.forward(truth)
    acquired = clean + SIGMA * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    return truth, acquired, operator, clean.numpy() > 0.2


def misfit(image: torch.Tensor, scan: tuple) -> Misfit:
    _, acquired, operator, mask = scan
    return Misfit.of(image, acquired, operator, sigma=SIGMA, mask=mask)


def lesion(centre: tuple[int, int, int]) -> torch.Tensor:
    i, j, k = np.indices((60, 64, 60))
    distance = np.sqrt((i - centre[0]) ** 2 + (j - centre[1]) ** 2 + (k - centre[2]) ** 2)
    return torch.from_numpy((0.3 * np.clip(3.0 - distance, 0, 1)).astype(np.float32))


def test_the_truth_leaves_noise_alone(scan) -> None:
    found = misfit(scan[0], scan)
    assert found.std == pytest.approx(1, abs=0.02)
    assert found.fraction_beyond3 == pytest.approx(0.0027, abs=0.002)
    assert found.structure_std == pytest.approx(1, abs=0.1)
    assert found.structure_largest < 5.5


WRONG = {
    "zeros": lambda image: torch.zeros_like(image),
    "swapped": lambda image: image.flip(0),
    "shifted": lambda image: image.roll(1, 0),
    "shifted by a slice": lambda image: image.roll(3, 2),
    "blurred": lambda image: torch.from_numpy(ndimage.gaussian_filter(image.numpy(), 1.0)),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_image_is_seen_before_the_projection_and_not_after_it(scan, fault: str) -> None:
    truth, acquired, operator, mask = scan
    wrong = WRONG[fault](truth)
    before = misfit(wrong, scan)
    assert before.std > 1.3
    assert before.structure_std > 2
    forced = project(wrong, acquired, operator.factors(), sigma=SIGMA, mask=torch.from_numpy(mask)).image
    assert misfit(forced, scan).std < 1.02
    std = torch.full_like(wrong, 0.01)
    inside = operator.input_grid.nearest(mask, operator.target_grid)
    move = Move.of(wrong, forced, std, operator.target_grid, sigma=SIGMA, mask=inside)
    assert move.noise_std > 0.5
    assert move.predicted_std == pytest.approx(move.noise_std * SIGMA / 0.01, rel=1e-4)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_lesion_of_5_mm_is_seen_where_it_is(scan, sign: int) -> None:
    truth, acquired, operator, mask = scan
    centre = (20, 30, 28)
    wrong = truth + sign * lesion(centre)
    found = misfit(wrong, scan)
    assert found.std < 1.1  # which the residual alone does not see
    assert found.structure_largest > 8
    world = operator.target_grid.affine[:3, :3] @ centre + operator.target_grid.affine[:3, 3]
    assert np.linalg.norm(np.subtract(found.structure_place, world)) < 4
    forced = project(wrong, acquired, operator.factors(), sigma=SIGMA, mask=torch.from_numpy(mask)).image
    if not torch.equal(forced, wrong):
        inside = operator.input_grid.nearest(mask, operator.target_grid)
        move = Move.of(wrong, forced, None, operator.target_grid, sigma=SIGMA, mask=inside)
        assert move.predicted_std is None
        assert np.linalg.norm(np.subtract(move.place, world)) < 2 * STRUCTURE_MM


def test_averaged_noise_keeps_its_variance_at_the_border_of_the_mask() -> None:
    mask = np.zeros((40, 40, 20), dtype=bool)
    mask[5:35, 5:35, 3:17] = True
    noise = np.random.default_rng(0).standard_normal((200, *mask.shape[1:])).astype(np.float32)
    deviations = [averaged(np.roll(noise, n, 0)[:40], mask, (1.0, 1.0, 2.5)) for n in range(0, 200, 13)]
    spread = np.std(deviations, axis=0)
    assert spread[mask].mean() == pytest.approx(1, abs=0.05)
    assert spread[5, 5:35, 3:17].mean() == pytest.approx(1, abs=0.1)
    assert not np.any(spread[~mask])
