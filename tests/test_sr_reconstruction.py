"""Noise, prior, projection, classical model and metrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.sparse.linalg import LinearOperator, cg
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from moesr_bids.sr.grid import Grid
from moesr_bids.sr.metrics import contrast_to_noise, lesion_contrasts, lesion_geometry, psnr, ssim
from moesr_bids.sr.models import get_model, model_names
from moesr_bids.sr.models.classical import head_box
from moesr_bids.sr.models.prior import EdgePrior
from moesr_bids.sr.noise import estimate_noise, foreground
from moesr_bids.sr.operator import AcquisitionOperator
from moesr_bids.sr.projection import data_prox, project
from moesr_bids.sr.psf import PSF


def phantom(shape: tuple[int, int, int] = (48, 52, 44)) -> np.ndarray:
    """Ellipsoids with folds, values 0 to 1."""
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    folds = 0.08 * np.sin(9 * i + 3 * k) * np.cos(8 * j)
    radius = np.sqrt(i**2 + j**2 + k**2) + folds
    volume = 0.45 * (radius < 0.85) + 0.4 * (radius < 0.65) - 0.6 * (radius < 0.25)
    return ndimage.gaussian_filter(volume, 0.5).astype(np.float32)


def operator_for(truth: np.ndarray, factors: tuple[int, int, int]) -> AcquisitionOperator:
    """Operator from a grid of 1 mm to one that is coarser by whole factors."""
    shape = tuple(n // f for n, f in zip(truth.shape, factors, strict=True))
    grid = Grid(shape, np.diag([*factors, 1.0]))
    operator = AcquisitionOperator(grid, grid.isotropic(1.0), PSF.from_acquisition(grid.zooms))
    assert operator.target_grid.shape == truth.shape
    return operator


def acquire(truth: np.ndarray, operator: AcquisitionOperator, sigma: float, seed: int = 0) -> torch.Tensor:
    """Return what the operator sees of a truth, plus Gaussian noise."""
    clean = operator.forward(torch.from_numpy(truth))
    return clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))


def test_projection_equals_conjugate_gradients():
    truth = phantom((16, 20, 12))
    operator = operator_for(truth, (2, 2, 3))
    y = acquire(truth, operator, 0.02)
    start = torch.rand(truth.shape)
    lam = 37.0

    def normal(x: np.ndarray) -> np.ndarray:
        volume = torch.from_numpy(x.reshape(truth.shape).astype(np.float32))
        return x + lam * operator.adjoint(operator.forward(volume)).numpy().ravel()

    right = start + lam * operator.adjoint(y)
    exact, info = cg(LinearOperator((truth.size, truth.size), normal), right.numpy().ravel(), rtol=1e-7, maxiter=500)
    assert info == 0
    factors = operator.factors()
    ours = data_prox(start, factors.to_left(y), factors, lam)
    np.testing.assert_allclose(ours.numpy().ravel(), exact, atol=2e-4)


@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 1, 4), (4, 1, 1)])
def test_projection_brings_the_residual_to_the_noise(factors):
    truth = phantom()
    operator = operator_for(truth, factors)
    sigma = 0.03
    y = acquire(truth, operator, sigma)
    mask = y > 0.2
    wrong = torch.from_numpy(ndimage.gaussian_filter(truth, 2.0) * 0.9)
    result = project(wrong, y, operator.factors(), sigma=sigma, mask=mask)
    assert result.lam > 0
    residual = y - operator.forward(result.image)
    assert float(residual[mask].square().mean().sqrt()) == pytest.approx(sigma, rel=0.02)


def test_projection_leaves_an_image_that_agrees():
    truth = phantom()
    operator = operator_for(truth, (1, 1, 4))
    y = acquire(truth, operator, 0.02)
    good = torch.from_numpy(truth)
    result = project(good, y, operator.factors(), sigma=0.025, mask=y > 0.2)
    assert result.lam == 0
    assert torch.equal(result.image, good)


@pytest.mark.parametrize("second_order", [0.0, 0.5])
def test_prior_adjoint_over_slabs(second_order, monkeypatch):
    """<D x, p> = <x, D^T p>: the dual after one unbounded step from zero is D x itself."""
    monkeypatch.setattr("moesr_bids.sr.models.prior._SLAB_VOXELS", 200)
    x = torch.randn(11, 9, 10, generator=torch.Generator().manual_seed(1))
    prior = EdgePrior((11, 9, 10), second_order=second_order, device=x.device)
    prior.ascend(x, 1.0, 1e6)
    energy = float(prior.first.square().sum() + prior.second.square().sum())
    adjoint = torch.cat([part for _, part in prior.adjoint()])
    assert float((x * adjoint).sum()) == pytest.approx(energy, rel=1e-4)
    assert energy <= prior.squared_norm * float(x.square().sum())
    prior.ascend(x, 1.0, 0.1)
    assert float(prior.first.square().sum(0).sqrt().max()) <= 0.1 + 1e-6


@pytest.mark.parametrize("percent", [0.5, 1.0, 2.0, 4.0, 6.0])
@pytest.mark.parametrize("zooms", [(1.0, 1.0, 1.0), (1.0, 1.0, 4.0)])
def test_noise_estimate_with_zero_background(percent, zooms):
    truth = 200 * ndimage.gaussian_filter(phantom((96, 100, 90)), 1.0)
    inside = truth > 40
    sigma = percent / 100 * float(np.percentile(truth[inside], 99))
    random = np.random.default_rng(3)
    noisy = np.hypot(truth + random.normal(scale=sigma, size=truth.shape), random.normal(scale=sigma, size=truth.shape))
    noisy[~inside] = 0
    assert estimate_noise(noisy, inside, zooms=zooms).std == pytest.approx(sigma, rel=0.1)


@pytest.mark.parametrize("percent", [0.5, 2.0, 6.0])
@pytest.mark.parametrize("zooms", [(1.0, 1.0, 1.0), (1.0, 1.0, 4.0)])
@pytest.mark.parametrize("rician", [False, True])
def test_noise_of_a_flat_image_is_not_biased_by_the_choice_of_places(percent, zooms, rician):
    image = np.zeros((64, 64, 64), dtype=np.float32)
    image[8:56, 8:56, 8:56] = 1000
    inside, sigma = image > 0, 10 * percent
    noise = np.random.default_rng(5).normal(scale=sigma, size=(2, *image.shape))
    noisy = np.hypot(image + noise[0], noise[1]) if rician else image + noise[0]
    noisy[~inside] = 0
    found = estimate_noise(noisy, inside, zooms=zooms)
    assert found.std == pytest.approx(sigma, rel=0.05)
    assert found.lowest <= found.std <= found.highest


def test_noise_that_varies_in_space_is_told_by_its_median_and_range():
    image = np.zeros((80, 80, 80), dtype=np.float32)
    image[6:74, 6:74, 6:74] = 1000
    inside = image > 0
    local = np.linspace(10, 30, 80)[:, None, None]
    noisy = image + local * np.random.default_rng(6).normal(size=image.shape)
    found = estimate_noise(noisy, inside)
    assert found.std == pytest.approx(20, rel=0.05)
    assert found.lowest == pytest.approx(15, rel=0.1)
    assert found.highest == pytest.approx(25, rel=0.1)


def test_noise_of_an_image_that_was_clipped_where_it_is_bright():
    image = np.full((64, 64, 64), 600, dtype=np.float32)
    image[:32] = 1000
    noisy = np.minimum(image + np.random.default_rng(7).normal(scale=20, size=image.shape), 1000)
    assert estimate_noise(noisy, image > 0).std == pytest.approx(20, rel=0.05)
    coarse = np.rint((image + np.random.default_rng(7).normal(scale=20, size=image.shape)) / 10)
    assert estimate_noise(coarse, image > 0).std * 10 == pytest.approx(np.hypot(20, 10 / np.sqrt(12)), rel=0.05)


def test_noise_has_a_floor_and_ignores_clamped_values():
    image = np.zeros((40, 40, 40), dtype=np.float32)
    image[8:32, 8:32, 8:32] = 110
    assert estimate_noise(image, image > 0).std == pytest.approx(1 / np.sqrt(12), rel=1e-6)
    assert estimate_noise(image * 0.013, image > 0).std == pytest.approx(0.00143, rel=1e-3)
    random = np.random.default_rng(0)
    half = image + random.normal(scale=3, size=image.shape).astype(np.float32) * (image > 0)
    half[8:20] = image[8:20]
    assert estimate_noise(half, image > 0).std == pytest.approx(3, rel=0.05)
    with pytest.raises(ValueError, match="mask"):
        estimate_noise(image, np.zeros(image.shape, dtype=bool))


def test_noise_on_real_scans_grows_as_noise_is_added(shared_data):
    import nibabel as nib

    scan = nib.load(shared_data / "bids/sub-rordenc/anat/sub-rordenc_T1w.nii.gz").get_fdata(dtype=np.float32)
    mask = foreground(scan)
    level = float(np.percentile(scan[mask], 99))
    own = estimate_noise(scan, mask).std
    random = np.random.default_rng(0)
    for share in (0.02, 0.05):
        added = share * level
        noisy = np.hypot(
            scan + random.normal(scale=added, size=scan.shape), random.normal(scale=added, size=scan.shape)
        )
        assert estimate_noise(noisy, mask).std == pytest.approx(np.hypot(own, added), rel=0.1)


@pytest.mark.parametrize(("factors", "gain"), [((1, 1, 4), 0.5), ((2, 2, 2), 0.0)])
def test_classical_beats_cubic(factors, gain):
    from moesr_bids.sr.models.base import Problem

    truth = phantom((64, 64, 64))
    operator = operator_for(truth, factors)
    y = acquire(truth, operator, 0.02)
    steps: list[float] = []
    problem = Problem(y, y > 0.2, operator, 0.02, 0, lambda step, share: steps.append(share))
    inside = truth > 0.2
    results = {name: get_model(name).reconstruct(problem).image.clamp(min=0).numpy() for name in ("classical", "cubic")}
    better = psnr(truth, results["classical"], inside) - psnr(truth, results["cubic"], inside)
    assert better > gain
    assert steps[-1] == 1.0
    residual = (y - operator.forward(torch.from_numpy(results["classical"])))[y > 0.2]
    assert 0.7 < float(residual.square().mean().sqrt()) / 0.02 < 1.1


def test_head_box_ignores_empty_space():
    image = torch.zeros(60, 60, 60)
    image[20:40, 25:35, 22:50] = 1.0
    image[3, 3, 3] = 1.0
    box = head_box(image, (1.0, 1.0, 1.0))
    assert box == (slice(10, 50), slice(15, 45), slice(12, 60))


def test_models_are_registered():
    assert model_names()[0] == "student"
    assert not get_model("cubic").card.projected
    with pytest.raises(ValueError, match="one of student"):
        get_model("magic")


def test_metrics_agree_with_scikit_image_on_the_full_mask():
    truth = phantom()
    noisy = truth + np.random.default_rng(0).normal(scale=0.05, size=truth.shape).astype(np.float32)
    everywhere = np.ones(truth.shape, dtype=bool)
    _, full = structural_similarity(truth.astype(float), noisy.astype(float), data_range=1.0, full=True)
    assert ssim(truth, noisy, everywhere, peak=1.0) == pytest.approx(full.mean(), rel=1e-6)
    expected = peak_signal_noise_ratio(truth.astype(float), noisy.astype(float), data_range=1.0)
    assert psnr(truth, noisy, everywhere, peak=1.0) == pytest.approx(expected, rel=1e-6)
    brain = truth > 0.2
    assert ssim(truth, noisy, brain, peak=1.0) == pytest.approx(full[brain].mean(), rel=1e-6)
    outside = np.where(brain, noisy, 99.0)
    assert psnr(truth, outside, brain) == psnr(truth, noisy, brain)
    with pytest.raises(ValueError, match="shapes"):
        psnr(truth, noisy[1:], brain)


def test_lesions_are_found_where_they_went_and_as_large_as_they_became():
    image = np.full((40, 40, 40), 10.0)
    lesions = np.zeros(image.shape, bool)
    lesions[10:15, 10:15, 10:15] = True
    lesions[25:29, 30:34, 30:34] = True
    lesions[5, 5, 5] = True  # too small to count
    image[lesions] = 20.0
    assert lesion_geometry(image, image, lesions, 10.0) == (0.0, 1.0)
    shift, volume = lesion_geometry(image, np.roll(image, 1, axis=1), lesions, 10.0)
    assert shift == pytest.approx(1.0)
    assert volume == pytest.approx(1.0)
    shrunk = image.copy()
    shrunk[10, 10:15, 10:15] = 10.0
    shift, volume = lesion_geometry(image, shrunk, lesions, 10.0)
    assert volume == pytest.approx((100 + 64) / (125 + 64))
    assert shift == pytest.approx(0.25)  # the median of 0.5 and 0
    shift, volume = lesion_geometry(image, np.full(image.shape, 10.0), lesions, 10.0)
    assert np.isnan(shift)  # a lesion that is gone did not stay in its place
    assert volume == 0
    assert all(np.isnan(lesion_geometry(image, image, image > 99, 10.0)))


def test_contrast_to_noise_is_that_of_its_definition_and_smoothing_does_not_flatter_it():
    truth = np.array([10.0, 12.0, 1.0, 3.0, 99.0])
    inside, around = np.array([1, 1, 0, 0, 0], bool), np.array([0, 0, 1, 1, 0], bool)
    assert contrast_to_noise(truth, inside, around, reference=truth) == pytest.approx((11 - 2) / 1)
    scaled = 3 * truth + 7
    assert contrast_to_noise(scaled, inside, around, reference=scaled) == pytest.approx(9)
    smoothed = np.array([9.0, 10.0, 2.4, 2.6, 99.0])  # less contrast, a calmer rim
    assert contrast_to_noise(smoothed, inside, around, reference=truth) == pytest.approx(7)


def test_contrast_of_lesions_is_told_by_their_size():
    reference, lesions = np.full((32, 32, 32), 10.0), np.zeros((32, 32, 32), bool)
    lesions[4:6, 4:6, 4:6] = True
    lesions[16:22, 16:22, 16:22] = True
    around = np.zeros_like(lesions)
    around[:, :, 28:] = True
    reference[lesions] = 20.0
    image = reference + 3.0  # the level does not count
    image[4:6, 4:6, 4:6] = 18.0
    ratios = lesion_contrasts(reference, image, lesions, around, (0, 100, 1000, np.inf))
    assert ratios[:2] == pytest.approx((0.5, 1.0))
    assert np.isnan(ratios[2])
