"""A small BIDS data set with known truth, made from the MNI brain that nilearn packages.

The truth is the ICBM 2009a brain at 1 mm, deformed a little for each participant. Its scan is the acquisition operator
applied to it, under a smooth bias field, with Rician noise.

    python -m benchmarks.phantom FOLDER
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from moesr_bids.sr.grid import Grid
from moesr_bids.sr.operator import AcquisitionOperator
from moesr_bids.sr.psf import PSF

FloatArray = NDArray[np.float32]

# A multiple of 2 and 5 along each axis, so that both acquisitions cover the truth's field of view exactly.
TRUTH_SHAPE = (200, 240, 200)
BRIGHTNESS = 1000.0


@attrs.frozen(kw_only=True)
class Acquisition:
    """How a phantom participant is scanned.

    Attributes
    ----------
    participant : str
        Label without ``sub-``.
    zooms : tuple of float
        Voxel size in mm along (i, j, k).
    metadata : Mapping
        Sidecar.
    seed : int
        Seed of anatomy, bias field and noise.
    noise_percent : float
        Standard deviation of the noise in percent of the brightest tissue.

    """

    participant: str
    zooms: tuple[float, float, float]
    metadata: Mapping[str, Any]
    seed: int
    noise_percent: float = 2.0


ACQUISITIONS = (
    Acquisition(participant="01", zooms=(2.0, 2.0, 2.0), metadata={"MRAcquisitionType": "3D"}, seed=1),
    Acquisition(
        participant="02", zooms=(1.0, 1.0, 5.0), metadata={"MRAcquisitionType": "2D", "SliceThickness": 5.0}, seed=2
    ),
)


def _smooth_noise(shape: tuple[int, ...], width: float, rng: np.random.Generator) -> FloatArray:
    smooth = rng.standard_normal([max(4, round(n / width)) for n in shape])
    # An axis at a time: zooming all at once takes seconds.
    for axis, n in enumerate(shape):
        m = smooth.shape[axis]
        weights = ndimage.zoom(np.eye(m), (n / m, 1), order=3, mode="nearest", grid_mode=True)
        smooth = np.moveaxis(np.tensordot(weights, smooth, axes=(1, axis)), 0, axis)
    return (smooth / smooth.std()).astype(np.float32)


def make_truth(seed: int) -> nib.Nifti1Image:
    """Return a brain at 1 mm, different for each seed.

    Parameters
    ----------
    seed : int
        Seed of the deformation (about 2 mm).

    Returns
    -------
    nibabel.Nifti1Image
        Shape `TRUTH_SHAPE`, float32, background 0, brightest tissue at about 1000.

    """
    from nilearn.datasets import load_mni152_template

    template = load_mni152_template(resolution=1)
    data = np.asarray(template.dataobj, dtype=np.float32)
    before = [(wanted - n) // 2 for wanted, n in zip(TRUTH_SHAPE, data.shape, strict=True)]
    after = [wanted - n - b for wanted, n, b in zip(TRUTH_SHAPE, data.shape, before, strict=True)]
    data = np.pad(data, list(zip(before, after, strict=True)))
    affine = template.affine @ nib.affines.from_matvec(np.eye(3), -np.array(before))
    rng = np.random.default_rng(seed)
    shifts = [2.0 * _smooth_noise(data.shape, 50, rng) for _ in range(3)]
    reach = math.ceil(max(np.abs(shift).max() for shift in shifts)) + 1
    brain = ndimage.find_objects((data > 0).astype(np.uint8))[0]
    box = tuple(slice(max(0, b.start - reach), b.stop + reach) for b in brain)  # the deformed brain is within
    moved = [axis[box] + shift[box] for axis, shift in zip(np.indices(data.shape, np.float32), shifts, strict=True)]
    inside = ndimage.map_coordinates((data > 0).astype(np.float32), moved, order=1) > 0.5
    inner = np.where(inside, np.maximum(ndimage.map_coordinates(data, moved, order=3), 0), 0)
    deformed = np.zeros_like(data)
    deformed[box] = inner * (BRIGHTNESS / np.percentile(inner[inside], 99))
    image = nib.Nifti1Image(deformed, affine)
    image.header.set_xyzt_units("mm")
    return image


def bias_field(shape: tuple[int, ...], seed: int) -> FloatArray:
    """Return a smooth multiplicative field with a mean of about 1 and a spread of about 10 percent."""
    return np.exp(0.1 * _smooth_noise(shape, 80, np.random.default_rng([seed, 1]))).astype(np.float32)


def acquire(truth: nib.Nifti1Image, acquisition: Acquisition) -> nib.Nifti1Image:
    """Return the scan of a truth: A(truth times bias), with Rician noise, as int16."""
    target = Grid.from_image(truth)
    input_grid = _input_grid(target, acquisition.zooms)
    psf = PSF.from_acquisition(input_grid.zooms, acquisition.metadata)
    biased = np.asarray(truth.dataobj) * bias_field(truth.shape, acquisition.seed)
    seen = AcquisitionOperator(input_grid, target, psf).forward(torch.from_numpy(biased.astype(np.float32))).numpy()
    rng = np.random.default_rng([acquisition.seed, 2])
    sigma = acquisition.noise_percent / 100 * BRIGHTNESS
    noisy = np.hypot(seen + rng.normal(0, sigma, seen.shape), rng.normal(0, sigma, seen.shape))
    image = nib.Nifti1Image(np.rint(noisy).astype(np.int16), input_grid.affine)
    image.set_sform(input_grid.affine, code=1)
    image.set_qform(input_grid.affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    return image


def _input_grid(target: Grid, zooms: tuple[float, float, float]) -> Grid:
    scale = np.array(zooms) / np.array(target.zooms)
    shape = np.array(target.shape) / scale
    # The centre of the first input voxel, in target voxels: edges coincide.
    affine = target.affine @ nib.affines.from_matvec(np.diag(scale), (scale - 1) / 2)
    return Grid(tuple(np.rint(shape).astype(int)), affine)


def build(folder: Path, acquisitions: tuple[Acquisition, ...] = ACQUISITIONS) -> tuple[Path, Path]:
    """Write the data set and its truth.

    Parameters
    ----------
    folder : pathlib.Path
        Gets ``bids/`` and ``truth/``.
    acquisitions : tuple of Acquisition
        Participants.

    Returns
    -------
    bids_dir, truth_dir : pathlib.Path
        The raw data set, and a folder with ``sub-<label>_T1w.nii.gz`` at 1 mm.

    """
    bids_dir, truth_dir = folder / "bids", folder / "truth"
    truth_dir.mkdir(parents=True, exist_ok=True)
    bids_dir.mkdir(exist_ok=True)
    description = {"Name": "Phantom from the ICBM 152 brain", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    (bids_dir / "dataset_description.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    (bids_dir / "README").write_text(f"{__doc__}\n", encoding="utf-8")
    rows = "\n".join(["participant_id", *(f"sub-{acquisition.participant}" for acquisition in acquisitions)])
    (bids_dir / "participants.tsv").write_text(f"{rows}\n", encoding="utf-8")
    for acquisition in acquisitions:
        name = f"sub-{acquisition.participant}_T1w"
        anat = bids_dir / f"sub-{acquisition.participant}" / "anat"
        anat.mkdir(parents=True, exist_ok=True)
        truth = make_truth(acquisition.seed)
        truth.to_filename(truth_dir / f"{name}.nii.gz")
        acquire(truth, acquisition).to_filename(anat / f"{name}.nii.gz")
        (anat / f"{name}.json").write_text(json.dumps(dict(acquisition.metadata), indent=2) + "\n", encoding="utf-8")
    return bids_dir, truth_dir


def main() -> None:
    """Build the phantom in the folder given."""
    parser = argparse.ArgumentParser(description="Build a small BIDS data set with known truth.")
    parser.add_argument("folder", type=Path)
    bids_dir, truth_dir = build(parser.parse_args().folder)
    print(f"data set: {bids_dir}\ntruth: {truth_dir}")


if __name__ == "__main__":
    main()
