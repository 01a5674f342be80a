"""Image quality metrics: values on simple volumes for which a formula gives the answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage

from moesr_bids.preproc.quality import (
    AIR,
    FRAME,
    HEAD,
    OTHER,
    Distribution,
    cnr,
    efc,
    fber,
    fwhm,
    image_quality,
    inu,
    regions,
)
from moesr_bids.preproc.tissues import tissue_labels, tissue_probabilities

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
SHAPE = (74, 80, 70)


def ball(radius: float) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in SHAPE], indexing="ij"))
    return np.asarray(np.sqrt((grid**2).sum(axis=0)) < radius)


def test_distribution_is_weighted() -> None:
    values = np.array([10, 10, 20, 40], np.float32)
    found = Distribution.of(values, np.array([1, 1, 4, 2], np.float32))
    assert (found.median, found.count) == (20, 8)
    # mean 22.5: (2 * 12.5^2 + 4 * 2.5^2 + 2 * 17.5^2) / 8
    assert found.std == pytest.approx(math.sqrt(118.75))
    assert found.snr == pytest.approx(20 / (math.sqrt(118.75) * math.sqrt(8 / 7)))
    assert math.isnan(Distribution.of(values, np.zeros(4, np.float32)).snr)


def test_cnr() -> None:
    assert cnr(Distribution(1000, 3, 9), Distribution(800, 4, 9), 12) == pytest.approx(200 / 13)
    assert math.isnan(cnr(Distribution(1000, 0, 9), Distribution(800, 0, 9), 0))


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 5000), st.floats(1e-3, 1e6))
def test_efc_is_one_for_a_constant_and_nought_for_a_single_voxel(count: int, level: float) -> None:
    single = np.zeros(count, np.float32)
    single[count // 2] = level
    assert efc(single) == pytest.approx(0, abs=1e-6)
    assert efc(np.full(count, level, np.float32)) == pytest.approx(1, rel=1e-5)


def test_fber_is_the_ratio_of_median_energies() -> None:
    assert fber(np.array([2, 3, 100], np.float32), np.array([0.5, 1, 9], np.float32)) == pytest.approx(9)
    assert math.isnan(fber(np.ones(3, np.float32), np.zeros(9, np.float32)))


@pytest.mark.parametrize("widths", [(2.0, 3.0, 4.5)])
def test_fwhm_of_smoothed_noise(widths: tuple[float, float, float]) -> None:
    noise = np.random.default_rng(1).normal(size=(80, 90, 100))
    sigma = [width / math.sqrt(8 * math.log(2)) for width in widths]
    smooth = ndimage.gaussian_filter(noise, sigma, mode="wrap").astype(np.float32)
    mask = np.ones(smooth.shape, bool)
    mask[:10] = mask[:, :, -20:] = False
    assert fwhm(smooth, mask) == pytest.approx(widths, rel=0.05)
    # Neighbours that alternate have no width.
    assert math.isnan(fwhm(np.indices((8, 8, 8)).sum(axis=0).astype(np.float32) % 2, np.ones((8, 8, 8), bool))[0])


def test_inu_is_of_the_field_not_of_its_logarithm() -> None:
    field = np.linspace(0.8, 1.2, 101)[:, None, None] * np.ones((101, 2, 2))
    found = inu(np.log(field).astype(np.float32), field > 0)
    assert found == {"inu_range": pytest.approx(0.36, abs=1e-3), "inu_med": pytest.approx(1.0, abs=1e-4)}


def phantom(noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return intensities, brain mask and labels (0 outside, 1 white, 2 grey, 3 CSF) of nested balls in a head."""
    labels = np.zeros(SHAPE, int)
    for radius, label in ((26, 3), (22, 2), (16, 1)):
        labels[ball(radius)] = label
    data = np.select([labels == 1, labels == 2, labels == 3, ball(30)], [300.0, 200.0, 60.0, 150.0], 10.0)
    # in the air half as much
    data += np.random.default_rng(0).normal(0, noise, SHAPE) * np.where(data > 10, 1, 0.5)
    data[:4] = 0  # what a defacing or a rotation filled up
    return np.maximum(data, 0).astype(np.float32), labels > 0, labels


def test_metrics_of_a_phantom() -> None:
    data, mask, labels = phantom(noise=6.0)
    head = ball(30)
    head[:4] = False
    around = regions(data, AFFINE, mask, head)
    assert (around[:4] == FRAME).all()
    assert (around[mask] == HEAD).all()
    assert (around[5:, 0, 40:] == AIR).all()
    assert (around[5:, 0, :2] == OTHER).all()  # below the brain
    shares = np.stack([(labels[mask] == label) for label in (1, 2, 3)]).astype(np.float32)
    found = image_quality(data, mask, shares, around)
    for name, level in (("wm", 300), ("gm", 200), ("csf", 60)):
        assert found[f"snr_{name}"] == pytest.approx(level / 6, rel=0.03)
    assert found["cnr"] == pytest.approx(100 / math.sqrt(36 + 36 + 9), rel=0.03)
    assert found["fber"] == pytest.approx((150 / 10) ** 2, rel=0.6)
    assert all(value is not None for value in found.values())
    # Nothing depends on the units of the intensities, as far as rounding to thousandths of white matter goes.
    assert image_quality(data * 1e-3, mask, shares, around) == pytest.approx(found, rel=1e-3)


def test_a_brain_without_background_has_no_ratio_to_it() -> None:
    data, mask, labels = phantom(noise=6.0)
    data = np.where(mask, data, 0).astype(np.float32)
    around = regions(data, AFFINE, mask, mask)
    shares = np.stack([(labels[mask] == label) for label in (1, 2, 3)]).astype(np.float32)
    found = image_quality(data, mask, shares, around)
    assert found["fber"] is None
    assert found["cnr"] == pytest.approx(100 / math.sqrt(72), rel=0.03)


def test_tissues_follow_the_intensities_whatever_the_contrast() -> None:
    data, mask, labels = phantom(noise=6.0)
    for image in (data, np.where(mask, 400 - data, 0).astype(np.float32)):
        shifted = np.stack([labels == label for label in (1, 2, 3)], axis=-1).astype(np.float32)
        prior = Nifti1Image(np.roll(shifted, 1, axis=0), AFFINE)  # the prior is 2 mm off
        shares = tissue_probabilities(image, AFFINE, mask, prior)
        assert shares.shape == (3, np.count_nonzero(mask))
        found = tissue_labels(shares, mask)
        assert (found[~mask] == 0).all()
        assert np.mean(found[mask] == labels[mask]) > 0.95
