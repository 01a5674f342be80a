"""Slice thickness from the spectrum."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.degrade import rician, thick_slices
from moesr_bids.sr.noise import foreground
from moesr_bids.sr.psf import PSF
from moesr_bids.sr.thickness import spectral_profile, with_spectral_thickness


def textured_ball(size: int = 104) -> NDArray[np.float32]:
    """Ball of tissue with a power-law texture that is the same along all axes."""
    waves = np.random.default_rng(0).normal(size=(size,) * 3)
    cycles = np.meshgrid(*[np.fft.fftfreq(size)] * 3, indexing="ij", sparse=True)
    texture = np.fft.ifftn(np.fft.fftn(waves) / (0.02**2 + sum(f**2 for f in cycles)) ** 0.7).real
    places = np.meshgrid(*[np.arange(size) - size / 2] * 3, indexing="ij", sparse=True)
    ball = sum(place**2 for place in places) < (0.45 * size) ** 2
    return np.asarray(ball * (1 + 0.1 * texture / texture.std()), dtype=np.float32)


BALL = textured_ball()


def sliced(axis: int, profile: str, share: float) -> tuple[NDArray[np.float32], tuple[float, float, float]]:
    zooms = [1.0, 1.0, 1.0]
    zooms[axis] = 4.0
    low = rician(thick_slices(BALL, axis, 4, profile=profile, share=share), 0.01, 0)
    return low, (zooms[0], zooms[1], zooms[2])


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize(
    ("profile", "share", "width"),
    [
        ("gaussian", 0.6, 0.6),
        ("gaussian", 0.8, 0.8),
        ("gaussian", 1.0, 1.0),
        ("gaussian", 1.2, 1.2),
        ("rect", 1.0, 0.68),
    ],
)
def test_the_width_of_the_profile_is_found(axis: int, profile: str, share: float, width: float) -> None:
    """A rectangle has the standard deviation of a Gaussian of 0.68 times its width."""
    low, zooms = sliced(axis, profile, share)
    found = spectral_profile(low, foreground(low), zooms, axis, 0.01)
    assert found is not None
    assert found.share == pytest.approx(width, abs=0.11)
    assert found.misfit < 1


def test_what_is_told_or_cannot_be_told_stays() -> None:
    low, zooms = sliced(2, "gaussian", 0.6)
    head = foreground(low)
    guess = PSF.from_acquisition(zooms)
    assert guess.untold == 2
    told = PSF.from_acquisition(zooms, {"SliceThickness": 3.0})
    assert with_spectral_thickness(told, low, head, zooms, 0.01) is told
    assert with_spectral_thickness(PSF.parse("kspace,kspace,gaussian", zooms), low, head, zooms, 0.01).untold is None
    few = low[:, :, 8:18]
    assert with_spectral_thickness(guess, few, head[:, :, 8:18], zooms, 0.01) is guess
    implausible = PSF.from_acquisition(zooms, {"SliceThickness": 40.0})
    assert implausible.untold == 2
    noise = np.random.default_rng(0).normal(1, 0.1, size=low.shape).astype(np.float32)
    assert with_spectral_thickness(guess, noise, np.ones(noise.shape, dtype=bool), zooms, 0.1) is guess


def test_untold_slices_get_the_thickness_that_they_show() -> None:
    low, zooms = sliced(2, "gaussian", 0.6)
    found = with_spectral_thickness(PSF.from_acquisition(zooms), low, foreground(low), zooms, 0.01)
    assert 2.2 < found.axes[2].fwhm < 3.4
    assert found.axes[:2] == PSF.from_acquisition(zooms).axes[:2]
    assert "the spectrum tells" in found.reason
