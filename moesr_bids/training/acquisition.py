"""Parameters of simulated acquisitions: how a scanner would have seen a sharp volume.

Each part has two classes, in the manner of TorchIO (whose own RandomAnisotropy subsamples without a slice profile and
runs on the CPU only): ``RandomX`` holds ranges, and ``RandomX.sample(rng)`` draws a frozen ``X``, which does the same
every time. All parts together are a :class:`Scan`, which can be recorded as JSON and replayed; :mod:`.simulation`
applies it.

Lengths are in voxels of the target grid; intensities in units of the image's 99th percentile.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from attrs import asdict, evolve, field, frozen
from cattrs import Converter, transform_error
from cattrs.errors import BaseValidationError
from numpy.typing import NDArray

from ..sr.noise import seen_variance
from ..sr.psf import PSF, AxisPSF
from ..sr.zerofilling import measured_shares
from .volumes import log_triangular, log_uniform

Rng = np.random.Generator
Range = tuple[float, float]


def _floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


def _triple(values: Iterable[float]) -> tuple[float, float, float]:
    i, j, k = _floats(values)
    return i, j, k


@frozen
class Contrast:
    """Intensity map: a curve through (0, 0), linear between ``levels`` at equal steps of ``0 .. 1.6``, then a gamma.

    A falling curve reverses the order of the tissues, as between T1w and T2w.
    """

    gamma: float
    levels: tuple[float, ...] = field(default=(), converter=_floats)

    _TOP = 1.6

    def apply(self, volume: torch.Tensor) -> torch.Tensor:
        """Map intensities; the background stays 0."""
        volume = volume.clamp(min=0)
        if self.levels:
            knots = torch.tensor([0.0, *self.levels]).to(volume.device, non_blocking=True)
            place = (volume / self._TOP * (len(knots) - 1)).clamp(max=len(knots) - 1.0001)
            below = place.long()
            volume = torch.lerp(knots[below], knots[below + 1], place - below)
        return volume.pow(self.gamma)


@frozen
class RandomContrast:
    """Draw a :class:`Contrast`.

    Parameters
    ----------
    gamma
        Range of the exponent (log-uniform).
    probability
        Probability of a curve before the gamma.
    """

    gamma: Range = (0.7, 1.4)
    probability: float = 0.15

    def sample(self, rng: Rng) -> Contrast:
        """Draw the parameters."""
        levels: Sequence[float] = ()
        if rng.random() < self.probability:
            levels = [float(v) for v in rng.uniform(0.05, 1.1, size=4)]
        return Contrast(log_uniform(rng, *self.gamma), levels)


@frozen
class SmoothField:
    """Smooth multiplicative field exp(f), f a polynomial of third order over the volume (as TorchIO's RandomBiasField).

    The scan is corrected for it, so only noise that differs from place to place remains. ``known`` tells whether the
    network is given f.
    """

    coefficients: tuple[float, ...] = field(converter=_floats)
    known: bool

    ORDER = 3

    def cube(self) -> NDArray[np.float64]:
        """Coefficients by the powers of the three positions, (4, 4, 4); positions run from -1 to 1."""
        cube = np.zeros((self.ORDER + 1,) * 3)
        cube[tuple(zip(*_terms(self.ORDER), strict=True))] = self.coefficients
        return cube


def _terms(order: int) -> list[tuple[int, int, int]]:
    size = range(order + 1)
    return [(i, j, k) for i in size for j in size for k in size if 0 < i + j + k <= order]


@frozen
class RandomSmoothField:
    """Draw a :class:`SmoothField`.

    Parameters
    ----------
    strength
        Largest coefficient of the log field.
    probability
        Probability of a field.
    known
        Probability that the network is given the field.
    """

    strength: float = 0.15
    probability: float = 0.6
    known: float = 0.6

    def sample(self, rng: Rng) -> SmoothField:
        """Draw the parameters."""
        size = self.strength * (rng.random() < self.probability) * rng.random()
        coefficients = [float(v) for v in rng.uniform(-size, size, size=len(_terms(SmoothField.ORDER)))]
        return SmoothField(coefficients, bool(rng.random() < self.known))


@frozen
class Motion:
    """Small shifts of the head along ``axis``, one for each segment of k-space along ``phase_axis``; voxels."""

    axis: int
    phase_axis: int
    shifts: tuple[float, ...] = field(converter=_floats)

    def apply(self, volume: torch.Tensor) -> torch.Tensor:
        """Shift each segment of k-space by its own distance; return the magnitude."""
        if not any(self.shifts):
            return volume
        n = volume.shape[self.phase_axis]
        segment = torch.arange(n, device=volume.device) * len(self.shifts) // n
        # Segments follow each other in k-space; the central one is not moved, or the whole image would be.
        shifts = torch.tensor(self.shifts).to(volume.device, non_blocking=True)
        shift = torch.fft.ifftshift(shifts[segment] - self.shifts[len(self.shifts) // 2])
        frequency = torch.fft.fftfreq(volume.shape[self.axis], device=volume.device)
        turn = -2 * math.pi * torch.outer(frequency, shift)
        if self.axis > self.phase_axis:
            turn = turn.T
        shape = [1, 1, 1]
        shape[self.axis], shape[self.phase_axis] = volume.shape[self.axis], n
        ramp = torch.polar(torch.ones_like(turn), turn).reshape(shape)
        axes = (self.axis, self.phase_axis)
        return torch.fft.ifftn(torch.fft.fftn(volume, dim=axes) * ramp, dim=axes).abs()


@frozen
class RandomMotion:
    """Draw a :class:`Motion`.

    ``size`` is the standard deviation of the shifts in target voxels, ``segments`` the number of shifts,
    ``probability`` that of any motion.
    """

    size: float = 0.4
    segments: int = 6
    probability: float = 0.05

    def sample(self, rng: Rng) -> Motion:
        """Draw the parameters."""
        axis, phase_axis = (int(a) for a in rng.permutation(3)[:2])
        shifts = rng.normal(scale=self.size * (rng.random() < self.probability), size=self.segments)
        return Motion(axis, phase_axis, [float(s) for s in shifts])


@frozen
class Sampling:
    """Acquisition grid and point-spread function.

    ``zooms`` are the voxel sizes, ``offsets`` the shift of the samples, both in target voxels. ``psf`` is the true
    profile; ``reported`` is the one that the network is told, since metadata are often wrong.
    """

    zooms: tuple[float, float, float] = field(converter=_triple)
    offsets: tuple[float, float, float] = field(converter=_triple)
    psf: PSF
    reported: PSF

    def positions(self, axis: int, n: int) -> NDArray[np.float64]:
        """Sample positions along an axis of n target voxels, in target voxels from the centre of the volume."""
        zoom, offset = self.zooms[axis], self.offsets[axis]
        half = (n - 1) / 2
        first, last = math.ceil((-half - offset) / zoom), math.floor((half - offset) / zoom)
        return offset + zoom * np.arange(first, last + 1, dtype=np.float64)


@frozen
class RandomSampling:
    """Draw a :class:`Sampling`.

    Parameters
    ----------
    isotropic
        Range of the factor of isotropic acquisitions.
    usual
        Their most frequent factor; near 1 there is little to learn.
    slices
        Range of the slice spacing of 2-D acquisitions, in target voxels.
    in_plane
        Range of their in-plane factor.
    thickness
        Range of the slice thickness as a share of the spacing, for half of the 2-D acquisitions; below 1 there are
        gaps. The others are as thick as their spacing.
    slice_probability
        Share of 2-D acquisitions.
    acquired
        Range of the share of k-space that was acquired along a zero-filled axis.
    zero_filled
        Probability that an axis is zero-filled: an in-plane axis of a 2-D acquisition, and an axis of a 3-D acquisition
        with k-space windows.
    truthful
        Probability that the network is told the true profile.
    measured
        Probability that it is told the true width and the kind that voxel sizes suggest. In all other scans it is told
        the width and the kind that voxel sizes suggest.
    """

    isotropic: Range = (1.0, 3.5)
    usual: float = 2.0
    slices: Range = (1.8, 8.0)
    in_plane: Range = (1.0, 1.5)
    thickness: Range = (0.6, 1.25)
    slice_probability: float = 0.4
    acquired: Range = (0.55, 0.95)
    zero_filled: tuple[float, float] = (0.35, 0.1)
    truthful: float = 0.5
    measured: float = 0.3

    def sample(self, rng: Rng, sharp: Sequence[bool] = (True, True, True)) -> Sampling:
        """Draw the parameters; along axes that are not ``sharp`` the volume is sampled as it is."""
        if rng.random() < self.slice_probability:
            zooms, axes = self._two_dimensional(rng, sharp)
        else:
            zooms, axes = self._three_dimensional(rng)
        for axis in range(3):
            if not sharp[axis]:
                zooms[axis], axes[axis] = 1.0, AxisPSF("kspace", 1.0)
        psf = PSF((axes[0], axes[1], axes[2]), "simulated")
        offsets = [float(rng.uniform(-z / 2, z / 2)) for z in zooms]
        return Sampling(zooms, offsets, psf, self._reported(psf, zooms, rng))

    def _reported(self, psf: PSF, zooms: Sequence[float], rng: Rng) -> PSF:
        guess, luck = PSF.from_acquisition(zooms), rng.random()
        if luck < self.truthful:
            return psf
        if luck > self.truthful + self.measured:
            return guess
        i, j, k = (evolve(like, fwhm=true.fwhm) for like, true in zip(guess.axes, psf.axes, strict=True))
        return PSF((i, j, k), "measured")

    def _window(self, zoom: float, probability: float, rng: Rng) -> AxisPSF:
        """Draw the k-space window of an axis: as wide as the grid can hold, or narrower."""
        share = float(rng.uniform(*self.acquired)) if rng.random() < probability else 1.0
        return AxisPSF("kspace", zoom / share)

    def _two_dimensional(self, rng: Rng, sharp: Sequence[bool]) -> tuple[list[float], list[AxisPSF]]:
        axis = int(rng.choice(np.flatnonzero(sharp)))
        in_plane = 1.0 if rng.random() < 0.5 else log_uniform(rng, *self.in_plane)
        zooms = [in_plane] * 3
        zooms[axis] = max(in_plane, log_uniform(rng, *self.slices))
        width = zooms[axis] * (float(rng.uniform(*self.thickness)) if rng.random() < 0.5 else 1.0)
        axes = [self._window(z, self.zero_filled[0], rng) for z in zooms]
        axes[axis] = AxisPSF(str(rng.choice(["gaussian", "rect", "kspace"], p=[0.6, 0.25, 0.15])), width)  # type: ignore[arg-type]
        return zooms, axes

    def _three_dimensional(self, rng: Rng) -> tuple[list[float], list[AxisPSF]]:
        factor = log_triangular(rng, self.isotropic[0], self.usual, self.isotropic[1])
        zooms = [max(1.0, factor * float(rng.uniform(0.95, 1.05))) for _ in range(3)]
        kind = str(rng.choice(["kspace", "gaussian", "rect"], p=[0.8, 0.15, 0.05]))
        if kind == "kspace":
            return zooms, [self._window(z, self.zero_filled[1], rng) for z in zooms]
        return zooms, [AxisPSF(kind, z) for z in zooms]  # type: ignore[arg-type]


@frozen
class RicianNoise:
    """Magnitude of the image with Gaussian noise in both channels.

    ``sigma`` is the standard deviation of the noise if all of k-space was acquired; ``reported`` is the value that the
    network is told.
    """

    sigma: float
    reported: float
    seed: int

    def apply(self, volume: torch.Tensor, shares: Sequence[float] = (1.0, 1.0, 1.0)) -> torch.Tensor:
        """Add the noise; along each axis it fills the same share of the frequencies as the signal."""
        generator = torch.Generator(volume.device).manual_seed(self.seed)
        draw = torch.randn((2, *volume.shape), generator=generator, device=volume.device)
        for axis, share in enumerate(shares, start=1):
            if share < 1:
                draw = _cut_off(draw, axis, share)
        return torch.hypot(volume + self.sigma * draw[0], self.sigma * draw[1])


def _cut_off(volume: torch.Tensor, axis: int, share: float) -> torch.Tensor:
    """Remove the frequencies beyond a share of those that the axis can hold."""
    n, spectrum = volume.shape[axis], torch.fft.rfft(volume, dim=axis)
    kept = math.floor(share * n / 2) + 1
    spectrum.narrow(axis, kept, spectrum.shape[axis] - kept).zero_()
    return torch.fft.irfft(spectrum, n=n, dim=axis)


@frozen
class RandomRicianNoise:
    """Draw a :class:`RicianNoise`.

    ``sigma`` is the range of the standard deviation (log-triangular), ``usual`` its mode, ``error`` the standard
    deviation of the error of the natural logarithm of the reported value.
    """

    sigma: Range = (0.005, 0.06)
    usual: float = 0.02
    error: float = 0.12

    def sample(self, rng: Rng) -> RicianNoise:
        """Draw the parameters."""
        sigma = log_triangular(rng, self.sigma[0], self.usual, self.sigma[1])
        return RicianNoise(sigma, sigma * float(math.exp(rng.normal(scale=self.error))), int(rng.integers(2**31)))


@frozen
class Scan:
    """All parameters of one simulated acquisition.

    ``bias`` is the bias field; ``jacobian`` the Jacobian determinant of a correction of gradient nonlinearity, as in
    :data:`moesr_bids.sr.models.acquisition.GUIDANCE`. Only its effect on the intensity is simulated, not the few per
    cent by which it changes the voxel size. ``detail`` is the size of the finest detail of the volume itself along each
    axis, as :attr:`.volumes.Cut.detail`; finer detail is unknown, and does not count in the loss.
    """

    contrast: Contrast
    bias: SmoothField
    jacobian: SmoothField
    motion: Motion
    sampling: Sampling
    noise: RicianNoise
    detail: tuple[float, float, float] = field(default=(1.0, 1.0, 1.0), converter=_triple)

    def record(self) -> dict[str, Any]:
        """Return the parameters as JSON-serialisable facts."""
        return asdict(self)

    @classmethod
    def replay(cls, record: Mapping[str, Any]) -> Scan:
        """Rebuild a scan from its record."""
        sampling = dict(record["sampling"])
        for key in ("psf", "reported"):
            i, j, k = (AxisPSF(**axis) for axis in sampling[key]["axes"])
            sampling[key] = PSF((i, j, k), sampling[key]["reason"])
        return cls(
            Contrast(**record["contrast"]),
            SmoothField(**record["bias"]),
            SmoothField(**record["jacobian"]),
            Motion(**record["motion"]),
            Sampling(**sampling),
            RicianNoise(**record["noise"]),
            record["detail"],
        )


@frozen
class RandomScan:
    """Draw a :class:`Scan`; the attributes are the ranges of its parts."""

    contrast: RandomContrast = RandomContrast()
    bias: RandomSmoothField = RandomSmoothField()
    jacobian: RandomSmoothField = RandomSmoothField(strength=0.1, probability=0.3)
    motion: RandomMotion = RandomMotion()
    sampling: RandomSampling = RandomSampling()
    noise: RandomRicianNoise = RandomRicianNoise()

    def told(self, guidance: Collection[str]) -> RandomScan:
        """Return the same ranges, but never give the network a guidance map that is not named; for ablations."""
        fields = {"log_bias": self.bias, "log_jacobian": self.jacobian}
        bias, jacobian = (part if name in guidance else evolve(part, known=0.0) for name, part in fields.items())
        return evolve(self, bias=bias, jacobian=jacobian)

    def sample(self, rng: Rng, detail: Sequence[float] = (1.0, 1.0, 1.0)) -> Scan:
        """Draw the parameters of all parts; the reported noise is what would be estimated under the reported profile.

        ``detail`` is that of the volume (see :class:`Scan`); the scan is coarse only along axes where it is 1.
        """
        contrast, bias, jacobian = self.contrast.sample(rng), self.bias.sample(rng), self.jacobian.sample(rng)
        motion, noise = self.motion.sample(rng), self.noise.sample(rng)
        sampling = self.sampling.sample(rng, [size == 1 for size in detail])
        true, assumed = (
            seen_variance(sampling.zooms, measured_shares(psf, sampling.zooms))
            for psf in (sampling.psf, sampling.reported)
        )
        told = evolve(noise, reported=noise.reported * math.sqrt(true / assumed))
        return Scan(contrast, bias, jacobian, motion, sampling, told, detail)


def random_scan(settings: RandomScan | Mapping[str, Any]) -> RandomScan:
    """Build the ranges from plain settings: a mapping of the parts to the parameters that differ from the defaults.

    Raises
    ------
    ValueError
        If a part or a parameter is unknown or of another type.
    """
    if isinstance(settings, RandomScan):
        return settings
    try:
        return Converter(forbid_extra_keys=True).structure(settings, RandomScan)
    except BaseValidationError as error:
        raise ValueError(f"simulation: {'; '.join(transform_error(error))}") from error
