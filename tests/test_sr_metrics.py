"""Spectra, and the finest detail that stands out of the noise."""

from __future__ import annotations

import numpy as np
import pytest

from moesr_bids.sr.metrics import axis_spectrum, effective_resolution


@pytest.mark.parametrize("cutoff", [0.2, 0.3])
def test_effective_resolution_is_where_the_signal_sinks_into_the_noise(cutoff: float) -> None:
    random = np.random.default_rng(0)
    signal = random.normal(scale=10, size=(60, 60, 60))
    spectrum = np.fft.rfft(signal, axis=2)
    spectrum[..., np.fft.rfftfreq(60, 1.0) > cutoff] = 0  # along the last axis nothing is finer
    image = np.fft.irfft(spectrum, 60, axis=2) + random.normal(scale=1, size=signal.shape)
    zooms, twice_the_noise = (1.0, 1.0, 1.0), (2.0, 2.0, 2.0)
    sizes = effective_resolution(image.astype(np.float32), zooms, twice_the_noise)
    assert sizes[:2] == pytest.approx((1, 1))  # at most the voxels
    assert sizes[2] == pytest.approx(0.5 / cutoff, rel=0.1)
    noise = random.normal(size=signal.shape).astype(np.float32)
    assert all(np.isnan(effective_resolution(noise, zooms, twice_the_noise)))


def test_spectrum_of_a_wave_lies_at_its_frequency_and_keeps_its_power() -> None:
    zoom, period, count = 1.25, 8.0, 96
    place = zoom * np.arange(count)
    random = np.random.default_rng(0)
    data = np.broadcast_to(np.sin(2 * np.pi * place / period), (6, 7, count)) * 3
    data = data + random.normal(size=data.shape)
    data = data.astype(np.float32)
    frequency, power = axis_spectrum(data, zoom, 2)
    assert frequency[-1] == pytest.approx(0.5 / zoom)
    assert frequency[np.argmax(power)] == pytest.approx(1 / period, abs=frequency[1])
    # Parseval: the integral over both signs of the frequency is the variance.
    assert 2 * np.trapezoid(power, frequency) == pytest.approx(data.var(), rel=0.1)
    # Another sampling of the same field has the same density.
    other, there = axis_spectrum(data[..., ::2], 2 * zoom, 2)
    assert there[np.argmax(there)] == pytest.approx(power.max(), rel=0.15)
    assert other[np.argmax(there)] == pytest.approx(1 / period, abs=frequency[1])
