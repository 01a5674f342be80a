"""Forward models of the benchmark. They share no code with the app, so no model is judged by the operator it inverts.

The truth is padded so that every factor divides its shape. Degraded images have the edges of its field of view.
"""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
FWHM_TO_SIGMA = 1 / np.sqrt(8 * np.log(2))


@frozen
class Case:
    """A degradation: ``kspace`` lowers the resolution of all axes, the other profiles make thick slices along one.

    Parameters
    ----------
    name
        Name, which ends with the axis of the slices.
    factors
        Ratio of the voxel sizes, per axis.
    profile
        ``kspace``, or that of the slices, ``gaussian`` or ``rect``.
    share
        Thickness of the slices over their spacing.
    noise
        Standard deviation of the noise as a share of the brain's 99th percentile.
    """

    name: str
    factors: tuple[float, float, float]
    profile: str
    share: float = 1.0
    noise: float = 0.02

    @property
    def group(self) -> str:
        """Name of the case without the axis."""
        return self.name.rstrip("ijk")

    def along(self, axes: Sequence[bool]) -> Case | None:
        """Return the case that degrades only the axes marked True; None if it degrades none of them."""
        i, j, k = (factor if wanted else 1 for factor, wanted in zip(self.factors, axes, strict=True))
        return None if max(i, j, k) == 1 else evolve(self, factors=(i, j, k))


def all_cases() -> list[Case]:
    """Return the main cases: k-space x2, and slices of 3, 4 and 5 mm along each axis."""
    cases = [Case("kspace2", (2, 2, 2), "kspace")]
    for thickness in (3, 4, 5):
        cases += _slices(f"slices{thickness}", thickness, "gaussian")
    return cases


def other_cases() -> list[Case]:
    """Return further cases: k-space x1.5 and x3; noise of 1 and 4 % instead of 2; profiles unlike the app's guess.

    The last are slices every 4 mm with a rectangular profile, or 3 mm thick with gaps.
    """
    cases = [Case("kspace1.5", (1.5, 1.5, 1.5), "kspace"), Case("kspace3", (3, 3, 3), "kspace")]
    for percent in (1, 4):
        cases.append(Case(f"kspace2noise{percent}", (2, 2, 2), "kspace", noise=percent / 100))
        cases.append(Case(f"slices4noise{percent}j", (1, 4, 1), "gaussian", noise=percent / 100))
    return [*cases, *_slices("slices4rect", 4, "rect"), *_slices("slices4gap", 4, "gaussian", share=0.75)]


def _slices(name: str, spacing: int, profile: str, share: float = 1.0) -> list[Case]:
    """Return a case of slices along each axis."""
    factors = ((spacing, 1, 1), (1, spacing, 1), (1, 1, spacing))
    return [Case(f"{name}{axis}", along, profile, share) for axis, along in zip("ijk", factors, strict=True)]


def crop_kspace(volume: FloatArray, axis: int, factor: float) -> FloatArray:
    """Keep the middle ``1 / factor`` of k-space along an axis; samples lie at the centres of ``factor`` voxels."""
    n = volume.shape[axis]
    m = round(n / factor)
    spectrum = np.moveaxis(np.fft.fft(volume.astype(np.float64), axis=axis), axis, -1)
    k = np.fft.fftfreq(n, 1 / n)
    # Centre of the first block of voxels lies (factor - 1) / 2 voxels after the first voxel.
    spectrum = spectrum * np.exp(2j * np.pi * k * (factor - 1) / 2 / n)
    kept = np.zeros((*spectrum.shape[:-1], m), dtype=complex)
    order = np.fft.fftfreq(m, 1 / m).astype(int)
    for index, frequency in enumerate(order):
        if 2 * abs(frequency) == m:  # the edge of the window is shared by both signs
            kept[..., index] = (spectrum[..., frequency % n] + spectrum[..., -frequency % n]) / 2
        else:
            kept[..., index] = spectrum[..., frequency % n]
    return np.moveaxis(np.fft.ifft(kept, axis=-1).real / factor, -1, axis).astype(np.float32)


def thick_slices(
    volume: FloatArray, axis: int, spacing: int, *, profile: str = "gaussian", share: float = 1.0
) -> FloatArray:
    """Return slices every ``spacing`` voxels, ``share`` times as thick, with a Gaussian or rectangular profile.

    The volume is zero outside its grid.
    """
    moved = np.moveaxis(volume, axis, -1)
    n, width = moved.shape[-1], share * spacing
    centres = np.arange(n // spacing) * spacing + (spacing - 1) / 2
    distance = np.arange(n)[:, None] - centres[None, :]
    if profile == "rect":
        weights = (np.abs(distance) <= width / 2) / width
    else:
        sigma = width * FWHM_TO_SIGMA
        weights = np.exp(-0.5 * (distance / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma)
    return np.moveaxis(moved.astype(np.float64) @ weights, -1, axis).astype(np.float32)


def rician(volume: FloatArray, sigma: float, seed: int) -> FloatArray:
    """Return the magnitude of the image with Gaussian noise of ``sigma`` in both channels."""
    rng = np.random.default_rng(seed)
    real, imaginary = (rng.normal(scale=sigma, size=volume.shape) for _ in range(2))
    return np.hypot(volume + real, imaginary).astype(np.float32)


def degrade(truth: nib.Nifti1Image, case: Case, sigma: float, seed: int) -> nib.Nifti1Image:
    """Return the degraded image of a case, with Rician noise and the field of view of ``truth``."""
    volume = np.asanyarray(truth.dataobj, dtype=np.float32)
    for axis, factor in enumerate(case.factors):
        if factor > 1:
            if case.profile == "kspace":
                volume = crop_kspace(volume, axis, factor)
            else:
                volume = thick_slices(volume, axis, round(factor), profile=case.profile, share=case.share)
    scale = np.diag([*case.factors, 1.0])
    scale[:3, 3] = (np.array(case.factors) - 1) / 2
    return nib.Nifti1Image(rician(volume, sigma, seed), truth.affine @ scale)
