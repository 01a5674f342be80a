"""The noise estimate against known noise: flat images, and real scans to which noise was added.

    python -m benchmarks.noise --data BIDS_DIR --splits splits.tsv [--role ROLE] [participants ...]

Noise of a known standard deviation is added to scans as in a scanner: to both channels, in the part of k-space that was
acquired. The expected noise is the root of the sum of the squares of it and of the scan's own estimated noise. Degraded
scans come from the forward models of :mod:`benchmarks.degrade`. Figures are estimated over expected noise.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import fft

from moesr_bids.sr.noise import Noise, estimate_noise, foreground
from moesr_bids.sr.psf import PSF
from moesr_bids.sr.zerofilling import measured_shares, zero_filled

from .degrade import FWHM_TO_SIGMA, FloatArray, crop_kspace, rician, thick_slices

Zooms = tuple[float, ...]
SHARES = (0.01, 0.02, 0.04)  # of the 99th percentile
_SLICES = 4
_LEAST_SIZE = 96


def add_noise(volume: FloatArray, sigma: float, shares: Sequence[float], seed: int) -> FloatArray:
    """Return the magnitude with noise that fills shares of the frequencies; a background of zeros stays zero."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(scale=sigma, size=(2, *volume.shape))
    for axis, share in enumerate(shares):
        if share < 1:
            kept = np.abs(fft.fftfreq(volume.shape[axis])) <= share / 2
            spectrum = fft.fft(noise, axis=axis + 1) * np.expand_dims(kept, [a for a in range(4) if a != axis + 1])
            noise = fft.ifft(spectrum, axis=axis + 1).real
    noisy = np.hypot(volume + noise[0], noise[1])
    return np.where(volume == 0, 0, noisy).astype(np.float32)


def estimated(volume: FloatArray, zooms: Zooms) -> tuple[Noise, list[float]]:
    """Return the noise as the engine estimates it without a mask, and the acquired share of each axis that it found."""
    inside = foreground(volume)
    shares = measured_shares(zero_filled(PSF.from_acquisition(zooms), volume, zooms, inside), zooms)
    return estimate_noise(volume, inside, zooms=zooms, shares=shares), shares


def flat_rows() -> Iterator[str]:
    """Yield a line per kind of noise: cubes of one value in a background of zeros."""
    cube = np.zeros((96, 96, 96), dtype=np.float32)
    cube[8:-8, 8:-8, 8:-8] = 1000
    inside = cube > 0
    rng = np.random.default_rng(0)
    varying = np.linspace(10, 30, 96, dtype=np.float32)[:, None, None] * rng.standard_normal(cube.shape)
    clipped = np.where(np.arange(96)[:, None, None] < 48, cube, 0.6 * cube)
    cases: dict[str, tuple[NDArray[np.floating], float]] = {
        f"{kind} {percent:g} %": (noisy(cube, 10 * percent), 10 * percent)
        for percent in (0.5, 2, 6)
        for kind, noisy in (
            ("Gaussian", lambda volume, sigma: volume + rng.normal(scale=sigma, size=volume.shape)),
            ("Rician", lambda volume, sigma: rician(volume, sigma, 1)),
        )
    }
    cases["half of it clipped at its mean"] = np.minimum(clipped + rng.normal(scale=20, size=cube.shape), 1000), 20.0
    cases["1 % to 3 % along an axis"] = cube + varying, 20.0
    for share in (0.5, 0.65, 0.8, 0.9):
        filled = add_noise(cube, 20, (share, 1, 1), 2)
        cases[f"zero-filled, {100 * share:.0f} % acquired"] = filled, 20.0
    for name, (volume, sigma) in cases.items():
        seen = np.where(inside, volume, 0).astype(np.float32)
        ratios = []
        for zooms in ((1.0, 1.0, 1.0), (1.0, 1.0, 4.0)):
            shares = measured_shares(zero_filled(PSF.from_acquisition(zooms), seen, zooms, inside), zooms)
            ratios.append(estimate_noise(seen, inside, zooms=zooms, shares=shares).std / sigma)
        yield f"| {name} | {ratios[0]:.3f} | {ratios[1]:.3f} |"


def scan_row(path: Path) -> str:
    """Return the line of the table for a scan."""
    image = nib.load(path)
    volume = np.clip(image.get_fdata(dtype=np.float32), 0, None)
    zooms: Zooms = tuple(float(z) for z in nib.affines.voxel_sizes(image.affine))
    level = float(np.percentile(volume[foreground(volume)], 99))
    own, shares = estimated(volume, zooms)
    cells = [path.name.removesuffix(".nii.gz"), f"{100 * own.std / level:.2f}"]
    cells.append(", ".join(f"{s:.2f}" for s in shares) if min(shares) < 1 else "all")
    for number, share in enumerate(SHARES):
        found, _ = estimated(add_noise(volume, share * level, shares, number), zooms)
        cells.append(f"{found.std / np.hypot(own.std, share * level):.2f}")
    if np.ptp(zooms) > 0.3 or min(volume.shape) < _LEAST_SIZE:
        return "| " + " | ".join([*cells, "", ""]) + " |"
    even = volume[tuple(slice(0, n - n % _SLICES) for n in volume.shape)]
    halved = even
    for axis in range(3):
        halved = crop_kspace(halved, axis, 2)
    slices = thick_slices(even, 2, _SLICES)
    width = _SLICES * FWHM_TO_SIGMA
    kept = 1 / np.sqrt(2 * np.sqrt(np.pi) * width)  # of the scan's own noise, if it is white
    for degraded, factors, share in ((halved, (2, 2, 2), 8**-0.5), (slices, (1, 1, _SLICES), kept)):
        sigma = 0.02 * level
        noisy = add_noise(np.clip(degraded, 0, None), sigma, (1, 1, 1), 9)
        found, _ = estimated(noisy, tuple(z * f for z, f in zip(zooms, factors, strict=True)))
        cells.append(f"{found.std / np.hypot(share * own.std, sigma):.2f}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Estimated over known noise.")
    parser.add_argument("participants", nargs="*", help="only these")
    parser.add_argument("--data", type=Path, help="BIDS data set; without it, flat images alone")
    parser.add_argument("--splits", type=Path, help="TSV with participant_id and role")
    parser.add_argument("--role", default="validation")
    options = parser.parse_args()
    print("| flat image | isotropic voxels | slices of 4 mm |\n|---|---|---|")
    print(*flat_rows(), sep="\n")
    if options.data is None:
        return
    with options.splits.open(encoding="utf-8") as lines:
        chosen = [row["participant_id"] for row in csv.DictReader(lines, delimiter="\t") if row["role"] == options.role]
    wanted = {f"sub-{name.removeprefix('sub-')}" for name in options.participants} or set(chosen)
    print("\n| scan | own noise, % | acquired share | + 1 % | + 2 % | + 4 % | 2 mm, 2 % | slices of 4 mm, 2 % |")
    print("|---|---|---|---|---|---|---|---|")
    for path in sorted(options.data.glob("sub-*/**/anat/*.nii.gz")):
        if path.name.split("_")[0] in wanted & set(chosen):
            print(scan_row(path), flush=True)


if __name__ == "__main__":
    main()
