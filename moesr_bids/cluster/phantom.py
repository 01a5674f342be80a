"""A phantom with known truth. Super-resolving it takes seconds, and shows whether a machine computes correctly.

The truth is a box of the ICBM 152 brain that nilearn packages, at 1 mm. The scan is the acquisition operator applied to
it, with Rician noise of a fixed seed.
"""

from __future__ import annotations

import time

import nibabel as nib
import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from moesr_bids.sr.grid import Grid
from moesr_bids.sr.models import DEFAULT_MODEL, weights_sha256

BOX_MM = 96
FACTOR = 2  # input voxels over those of the truth
NOISE_PERCENT = 2.0
BRIGHTNESS = 1000.0

KNOWN_WEIGHTS = "27c3a5a1ff99da9a9588fde06a8529c0d803c1c1102af785c6b6ea2dd113c4bd"
"""SHA-256 of the packaged weights that the known figures were measured with; other weights need other figures."""
KNOWN_PSNR_DB = {DEFAULT_MODEL: 33.19, "cubic": 31.06}
TOLERANCE_DB = 0.1  # threads, GPUs and bfloat16 change the figure by less; faults by far more


@frozen
class PhantomResult:
    """Result for the phantom.

    Attributes
    ----------
    psnr_db : dict
        Peak signal-to-noise ratio of each model inside the brain, in dB.
    device : str
        Device of the default model.
    seconds : float
        Wall time of all models and of making the phantom's images, in seconds.

    """

    psnr_db: dict[str, float]
    device: str
    seconds: float

    @property
    def problem(self) -> str:
        """What is wrong with the figures, in words; empty if they are the known ones."""
        if weights_sha256(DEFAULT_MODEL) != KNOWN_WEIGHTS:
            return f"the weights of {DEFAULT_MODEL} are not those whose figures are known ({KNOWN_WEIGHTS[:12]})"
        for model, found in self.psnr_db.items():
            if abs(found - KNOWN_PSNR_DB[model]) > TOLERANCE_DB:
                return f"{model} reaches {found:.2f} dB, it should be {KNOWN_PSNR_DB[model]:.2f}"
        return ""


def make_phantom() -> tuple[nib.Nifti1Image, NDArray[np.float32]]:
    """Make the phantom.

    Returns
    -------
    seen : nibabel.Nifti1Image
        The simulated scan, float32, `BOX_MM` / `FACTOR` voxels of `FACTOR` mm along each axis.
    truth : numpy.ndarray
        The truth, float32, `BOX_MM` voxels of 1 mm along each axis, over the same box.

    """
    import torch
    from nilearn.datasets import load_mni152_template

    from moesr_bids.sr.operator import AcquisitionOperator
    from moesr_bids.sr.psf import PSF

    brain = np.asarray(load_mni152_template(resolution=1).dataobj, dtype=np.float32)
    corner = [(n - BOX_MM) // 2 for n in brain.shape]
    box = brain[tuple(slice(start, start + BOX_MM) for start in corner)]
    truth = np.maximum(box, 0) * np.float32(BRIGHTNESS / np.percentile(box, 99))
    fine = Grid(truth.shape, np.eye(4))
    # The centre of the first input voxel, in voxels of the truth: edges coincide.
    affine = nib.affines.from_matvec(np.eye(3) * FACTOR, np.full(3, (FACTOR - 1) / 2))
    coarse = Grid(tuple(n // FACTOR for n in truth.shape), affine)
    operator = AcquisitionOperator(coarse, fine, PSF.parse("kspace,kspace,kspace", coarse.zooms))
    seen = operator.forward(torch.from_numpy(truth)).numpy()
    rng = np.random.default_rng(0)
    sigma = NOISE_PERCENT / 100 * BRIGHTNESS
    noisy = np.hypot(seen + rng.normal(0, sigma, seen.shape), rng.normal(0, sigma, seen.shape)).astype(np.float32)
    image = nib.Nifti1Image(noisy, affine)
    image.header.set_xyzt_units("mm")
    return image, truth


def super_resolve_phantom(*, device: str, threads: int, memory_gb: float) -> PhantomResult:
    """Super-resolve the phantom with the default model and by plain interpolation.

    Parameters
    ----------
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    threads : int
        CPU threads.
    memory_gb : float
        Memory in GiB that the windows of the network must fit into.

    """
    from moesr_bids.sr.engine import super_resolve
    from moesr_bids.sr.metrics import psnr
    from moesr_bids.sr.options import SROptions

    seen, truth = make_phantom()
    inside = truth > 0
    found, devices, started = {}, [], time.monotonic()
    for model in KNOWN_PSNR_DB:
        result = super_resolve(
            seen,
            SROptions(resolution=1.0, model=model, contrast="T1w", device=device, threads=threads, memory_gb=memory_gb),
            metadata={"MRAcquisitionType": "3D"},
        )
        found[model] = psnr(truth, np.asarray(result.image.dataobj), inside)
        devices.append(str(result.record["Device"]))
    return PhantomResult(found, devices[0], time.monotonic() - started)
