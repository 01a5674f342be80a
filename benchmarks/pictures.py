"""The pictures of docs/moediff.md: a chain of the mixture of experts, and its gate and experts, on the phantom.

python -m benchmarks.pictures --out docs/figures
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import torch
from attrs import evolve
from PIL import Image

from benchmarks.phantom import ACQUISITIONS, acquire, make_truth
from moesr_bids.reports.drawing import new_figure, save
from moesr_bids.reports.experts import plot_experts
from moesr_bids.sr.engine import super_resolve
from moesr_bids.sr.models import weights_path
from moesr_bids.sr.models.diffusion import sample
from moesr_bids.sr.models.mixture import MixtureNetwork
from moesr_bids.sr.models.moediff import SAMPLE_TEMPERATURE
from moesr_bids.sr.models.network import INPUTS
from moesr_bids.sr.options import SROptions
from moesr_bids.sr.weights import Weights
from moesr_bids.training.acquisition import RicianNoise
from moesr_bids.training.simulation import Example
from moesr_bids.training.simulation import acquire as simulate
from moesr_bids.training.validation import cases, plain_scan

_CASE = "slices4k"
_CUBE = 96  # target voxels, a multiple of 8
_MARGIN = 14
_CENTRE = (70, 120, 120)  # of the truth: frontal lobe, ventricle and sulci


def example(truth: nib.Nifti1Image) -> Example:
    """Scan a cube of the phantom in slices of 4 voxels with 2 % noise."""
    data = np.asanyarray(truth.dataobj)
    half = _CUBE // 2 + _MARGIN
    cube = data[tuple(slice(c - half, c + half) for c in _CENTRE)] / np.percentile(data[data > 0], 99)
    image = torch.from_numpy(np.ascontiguousarray(cube, np.float32))
    scan = evolve(plain_scan(), sampling=cases()[_CASE], noise=RicianNoise(0.02, 0.02, 0))
    return simulate(torch.stack([image, *[torch.zeros_like(image)] * 2]), scan, _MARGIN)


@torch.inference_mode()
def chain(network: MixtureNetwork, scanned: Example) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the states of a sampled chain and the estimates at its steps, as residuals (1, 1, i, j, k)."""
    channels, acquisition = scanned.channels[None], scanned.acquisition[None]
    denoise = network.denoiser(network.look(channels, acquisition), acquisition)
    states, estimates = [], []

    def watched(state: torch.Tensor, eta: float) -> torch.Tensor:
        states.append(state.clone())
        estimates.append(denoise(state, eta))
        return estimates[-1].clone()

    shape = (1, 1, *channels.shape[2:])
    sample(
        watched,
        shape,
        network.shape.schedule,
        rule="stochastic",
        temperature=SAMPLE_TEMPERATURE,
        seed=0,
        device=torch.device("cpu"),
    )
    return states, estimates


def draw_chain(network: MixtureNetwork, scanned: Example, out_file: Path) -> Path:
    """Draw a coronal slice of each state (above) and of the estimate at each step (below)."""
    states, estimates = chain(network, scanned)
    start = scanned.channels[None, :INPUTS].sum(dim=1, keepdim=True)
    above = {"interpolated": scanned.channels[None, :1]}
    below = {"truth": scanned.sharp[None, None]}
    steps = len(states)
    for number, (state, estimate) in enumerate(zip(states, estimates, strict=True)):
        above[f"state, step {steps - number}"] = start + state
        below[f"estimate, step {steps - number}"] = start + estimate
    figure = new_figure(2.2 * (steps + 1), 4.9)
    panels = figure.subplots(2, steps + 1)
    for row, images in zip(panels, (above, below), strict=True):
        for axes, (name, image) in zip(row, images.items(), strict=True):
            plane = image[0, 0, :, _CUBE // 2].T.flip(0)
            axes.imshow(plane, cmap="gray", vmin=0, vmax=1.05, interpolation="nearest")
            axes.set_axis_off()
            axes.set_title(name, color="white", fontsize=8, pad=2)
    return save(figure, out_file)


def draw_experts(truth: nib.Nifti1Image, model: str, out_file: Path) -> Path:
    """Draw gate and experts as the report does, for the phantom in slices of 5 mm."""
    thick = acquire(truth, ACQUISITIONS[1])
    result = super_resolve(thick, SROptions(resolution=1.0, model=model, contrast="T1w", maps=True))
    with TemporaryDirectory() as folder:
        images = {"image": result.image, **result.maps}
        images["mask"] = nib.Nifti1Image((np.asanyarray(truth.dataobj) > 0).astype(np.uint8), truth.affine)
        paths = {name: Path(folder) / f"{name}.nii.gz" for name in images}
        for name, path in paths.items():
            images[name].to_filename(path)
        return plot_experts(paths.pop("image"), paths.pop("mask"), paths, out_file)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw them all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", default="moediff", help="name or weights of a mixture (default: moediff)")
    options = parser.parse_args(argv)
    path = weights_path(options.model)
    network = Weights.read(path).network(torch.device("cpu")) if path else None
    if not isinstance(network, MixtureNetwork):
        parser.error(f"{options.model} is no mixture of experts")
    truth = make_truth(ACQUISITIONS[1].seed)
    drawn = [
        draw_chain(network, example(truth), options.out / "moediff-chain.png"),
        draw_experts(truth, options.model, options.out / "moediff-experts.png"),
    ]
    for file in drawn:
        with Image.open(file) as picture:
            small = picture.convert("RGB").quantize(256)  # a third of the bytes in the repository
        small.save(file, optimize=True)
        print(file)


if __name__ == "__main__":
    main()
