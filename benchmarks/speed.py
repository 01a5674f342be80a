"""Speed of a learned model: time per stage of a whole head, and the network against this machine's convolution peak.

    python -m benchmarks.speed [--image FILE] [--model student] [--resolution 0.7] [--runtime torch] [--threads 2]

Without an image, the MNI head that nilearn packages is used. The peak is the speed of a 3 x 3 x 3 convolution of 64
channels on 64^3 voxels, in the precision and memory layout of the model, measured in the same run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import torch
from torch import nn

from moesr_bids.resources import cpu_name
from moesr_bids.sr.device import choose_device
from moesr_bids.sr.engine import super_resolve
from moesr_bids.sr.models import weights_path
from moesr_bids.sr.models.network import NetworkShape
from moesr_bids.sr.models.student import flops_per_voxel
from moesr_bids.sr.options import SROptions
from moesr_bids.sr.precision import fast_dtype
from moesr_bids.sr.runtimes import RUNTIMES
from moesr_bids.sr.weights import Weights

_PEAK_CHANNELS, _PEAK_SIZE, _REPEATS = 64, 64, 5


def convolution_peak(device: torch.device) -> float:
    """Return the operations per second of one large convolution, the fastest of some repetitions."""
    dtype, n = fast_dtype(device), _PEAK_CHANNELS
    layer = nn.Conv3d(n, n, 3, padding=1).to(device, dtype).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    volume = torch.randn((1, n, *[_PEAK_SIZE] * 3), device=device, dtype=dtype)
    volume = volume.contiguous(memory_format=torch.channels_last_3d)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(_REPEATS):
            start = time.perf_counter()
            layer(volume)
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
    return 2 * 27 * n * n * _PEAK_SIZE**3 / best


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.split("\n")[0])
    parser.add_argument("--image", type=Path, help="a scan; by default the MNI head of nilearn")
    parser.add_argument("--model", default="student")
    parser.add_argument("--resolution", type=float, default=0.7)
    parser.add_argument("--runtime", choices=RUNTIMES, default=RUNTIMES[0])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(argv)
    path = weights_path(options.model)
    if path is None:
        print(f"{options.model}: not a learned model", file=sys.stderr)
        return 2
    device = choose_device(options.device)
    torch.set_num_threads(options.threads)
    result = super_resolve(
        options.image or _head(),
        SROptions(
            resolution=options.resolution,
            model=options.model,
            runtime=options.runtime,
            device=options.device,
            threads=options.threads,
        ),
    )
    record = result.record
    print(f"{record['Device']} {cpu_name() if device.type == 'cpu' else ''}, {options.threads} threads")
    print(f"output {record['OutputShape']}, {record['Precision']}")
    for stage in record["Stages"]:
        print(f"{stage['Stage']:12} {stage['Seconds']:7.1f} s {stage['PeakMemoryGB']:6.2f} GiB")
    print(f"all          {record['Seconds']:7.1f} s {record['PeakMemoryGB']:6.2f} GiB")
    weights, seconds = Weights.read(path), record["NetworkSeconds"]
    if weights.kind != "student":
        print(f"network      {seconds:7.1f} s")
        return 0
    peak, voxels = convolution_peak(device), record["NetworkVoxels"]
    speed = flops_per_voxel(weights.shape(NetworkShape)) * voxels / seconds
    print(f"network      {seconds:7.1f} s with {record['Runtime']}, {voxels / 1e6:.1f} million voxels")
    print(f"of the peak  {speed / peak:7.0%}   ({speed / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s)")
    return 0


def _head() -> nib.Nifti1Image:
    from nilearn.datasets import load_mni152_template

    return load_mni152_template(resolution=1)


if __name__ == "__main__":
    sys.exit(main())
