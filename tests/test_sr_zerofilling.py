"""Zero-filled k-space: it is found, and the noise is that of the acquisition."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from moesr_bids.sr.engine import super_resolve
from moesr_bids.sr.noise import estimate_noise
from moesr_bids.sr.options import SROptions
from moesr_bids.sr.psf import PSF
from moesr_bids.sr.zerofilling import acquired_share, measured_shares, zero_filled

SIGMA = 12.0
ZOOMS = (0.8, 0.8, 4.0)


def ball(shape: tuple[int, int, int] = (128, 128, 24)) -> np.ndarray:
    grids = np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in shape), indexing="ij")
    radius = np.sqrt(sum(g**2 for g in grids)) + 0.04 * np.sin(9 * grids[0] + 7 * grids[1])
    truth = 600.0 * (radius < 0.95) - 250.0 * (radius < 0.6)
    return np.asarray(ndimage.gaussian_filter(truth, (0.7, 0.7, 0.3)))


def scan(shares: tuple[float, float]) -> np.ndarray:
    """Magnitude image with white noise, of which only the middle of k-space was kept along i and j."""
    random = np.random.default_rng(0)
    image = ball()
    seen = image + SIGMA * (random.normal(size=image.shape) + 1j * random.normal(size=image.shape))
    for axis, share in enumerate(shares):
        kept = np.abs(np.fft.fftfreq(image.shape[axis])) <= share / 2
        seen = np.fft.ifft(np.fft.fft(seen, axis=axis) * np.expand_dims(kept, tuple({0, 1, 2} - {axis})), axis=axis)
    return np.abs(seen).astype(np.float32)


@pytest.mark.parametrize("share", [0.55, 0.65, 0.8])
def test_the_acquired_share_is_found(share: float) -> None:
    image, inside = scan((share, 1.0)), ball() > 100
    assert acquired_share(image, 0, inside) == pytest.approx(share, abs=0.04)
    assert acquired_share(image, 1, inside) == acquired_share(image, 2, inside) == 1.0
    profile = zero_filled(PSF.from_acquisition(ZOOMS), image, ZOOMS, inside)
    assert profile.axes[0].fwhm == pytest.approx(0.8 / share, rel=0.06)
    assert profile.axes[1:] == PSF.from_acquisition(ZOOMS).axes[1:]
    assert "zero-filled along i (acquired at" in profile.reason


@pytest.mark.parametrize("shares", [(1.0, 1.0), (0.65, 1.0), (0.65, 0.6), (0.8, 0.8)])
def test_the_noise_is_that_before_zero_filling(shares: tuple[float, float]) -> None:
    image, inside = scan(shares), ball() > 100
    profile = zero_filled(PSF.from_acquisition(ZOOMS), image, ZOOMS, inside)
    found = estimate_noise(image, inside, zooms=ZOOMS, shares=measured_shares(profile, ZOOMS))
    assert found.std == pytest.approx(SIGMA, rel=0.1)


def test_the_edge_that_skull_stripping_leaves_does_not_hide_it() -> None:
    image = scan((0.6, 1.0))
    assert acquired_share(np.where(ball() > 100, image, 0), 0, ball() > 100) == pytest.approx(0.6, abs=0.04)


def test_the_engine_tells_it() -> None:
    image = nib.Nifti1Image(scan((0.65, 0.65)), np.diag([*ZOOMS, 1.0]))
    record = super_resolve(image, SROptions(resolution=1.0, model="cubic", threads=1)).record
    assert record["NoiseStd"] == pytest.approx(SIGMA, rel=0.1)
    assert "zero-filled along i" in record["PSFReason"]
    given = super_resolve(
        image, SROptions(resolution=1.0, model="cubic", psf="kspace,kspace,gaussian", threads=1)
    ).record
    assert "zero-filled" not in given["PSFReason"]
    assert given["NoiseStd"] < 0.5 * SIGMA
