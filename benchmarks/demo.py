"""The demonstration behind ``make demo``: build a phantom, run the app on it, compare with the truth.

python -m benchmarks.demo FOLDER
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to

from benchmarks.app import APP
from benchmarks.phantom import ACQUISITIONS, bias_field, build
from moesr_bids.sr.metrics import psnr, ssim


def compare(out_dir: Path, truth_dir: Path, participant: str, seed: int) -> tuple[float, float, float, float]:
    """Compare the output and cubic interpolation of the same input with the truth, inside the brain.

    Both start from the bias-corrected input. So the truth is multiplied by the true bias field and divided by the
    estimated one: only the resolution is compared.

    Returns
    -------
    tuple of float
        PSNR of the output and of cubic interpolation in dB, SSIM of both.

    """
    anat = out_dir / f"sub-{participant}" / "anat"
    output = nib.load(anat / f"sub-{participant}_res-1mm_desc-moesr_T1w.nii.gz")
    preproc = nib.load(anat / f"sub-{participant}_desc-corrected_T1w.nii.gz")
    raw = nib.load(out_dir.parent / "bids" / f"sub-{participant}" / "anat" / f"sub-{participant}_T1w.nii.gz")
    truth = nib.load(truth_dir / f"sub-{participant}_T1w.nii.gz")
    grid = (truth.shape, truth.affine)
    if output.shape != truth.shape or not np.allclose(output.affine, truth.affine, atol=1e-3):
        raise ValueError(f"{anat}: the output is not on the grid of the truth")
    cubic = resample_from_to(preproc, grid, order=3, mode="nearest").get_fdata(dtype=np.float32)
    raw_data = raw.get_fdata(dtype=np.float32)
    gain = np.where(raw_data > 0, preproc.get_fdata(dtype=np.float32) / np.maximum(raw_data, 1), 1)
    gain = resample_from_to(nib.Nifti1Image(gain, raw.affine), grid, order=1, mode="nearest").get_fdata(
        dtype=np.float32
    )
    truth_data = truth.get_fdata(dtype=np.float32)
    expected = truth_data * bias_field(truth.shape, seed) * gain
    mask = truth_data > 0
    restored = output.get_fdata(dtype=np.float32)
    return (
        psnr(expected, restored, mask),
        psnr(expected, cubic, mask),
        ssim(expected, restored, mask),
        ssim(expected, cubic, mask),
    )


def main() -> int:
    """Build, run, compare, and print where everything is."""
    parser = argparse.ArgumentParser(description="Run the app on a phantom with known truth.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.absolute()
    print("building a phantom data set from the ICBM 152 brain ...", flush=True)
    bids_dir, truth_dir = build(folder)
    out_dir = folder / "out"
    command = [
        *(*APP, str(bids_dir), str(out_dir), "participant"),
        *("--resolution", "1", "--work-dir", str(folder / "work"), "--clean-workdir"),
    ]
    print(f"$ moesr-bids {' '.join(command[3:])}", flush=True)
    code = subprocess.run(command, check=False).returncode
    if code:
        return code
    for acquisition in ACQUISITIONS:
        zooms = " x ".join(f"{zoom:g}" for zoom in acquisition.zooms)
        ours, cubic, ours_ssim, cubic_ssim = compare(out_dir, truth_dir, acquisition.participant, acquisition.seed)
        print(
            f"sub-{acquisition.participant} ({zooms} mm to 1 mm): PSNR {ours:.2f} dB, cubic interpolation "
            f"{cubic:.2f} dB ({ours - cubic:+.2f}); SSIM {ours_ssim:.3f}, cubic {cubic_ssim:.3f}"
        )
        image = (
            out_dir / f"sub-{acquisition.participant}/anat/sub-{acquisition.participant}_res-1mm_desc-moesr_T1w.nii.gz"
        )
        print(f"  image:  {image}\n  report: {out_dir / f'sub-{acquisition.participant}.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
