"""Draw the pictures of the documentation, all of the phantom that benchmarks/phantom.py makes from the ICBM 152 brain.

The README shows a scan before and after. docs/moediff.md shows a chain of the mixture of experts, its gate and experts.

    python -m benchmarks.pictures --out docs/figures
    python -m benchmarks.pictures --out docs/figures --only before-after
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

from benchmarks.phantom import ACQUISITIONS, acquire, bias_field, make_truth
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
_CORONAL = 118  # voxel of the truth: ventricles, basal ganglia and temporal lobes
_WHOLE = (slice(22, 178), slice(22, 186))  # of a coronal slice of the truth, with a margin
_DETAIL = (slice(28, 92), slice(62, 129))
_BRIGHTEST = 99.7  # percentile, of the grey scale
_PICTURES = ("before-after", "moediff-chain", "moediff-experts")


def example(truth: nib.Nifti1Image) -> Example:
    """Scan a cube of the phantom in slices of 4 voxels with 2 % noise."""
    data = np.asanyarray(truth.dataobj)
    half = _CUBE // 2 + _MARGIN
    cube = data[tuple(slice(c - half, c + half) for c in _CENTRE)] / np.percentile(data[data > 0], 99)
    image = torch.from_numpy(np.ascontiguousarray(cube, np.float32))
    scan = evolve(plain_scan(), sampling=cases()[_CASE], noise=RicianNoise(0.02, 0.02, 0))
    return simulate(torch.stack([image, *[torch.zeros_like(image)] * 3]), scan, _MARGIN)


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


def draw_before_after(truth: nib.Nifti1Image, out_file: Path) -> Path:
    """Draw a coronal slice of a scan in axial slices of 5 mm, of its super-resolved image, and of the truth.

    The scan is interpolated by cubic splines, since large voxels would flatter what comes next.
    """
    acquisition = ACQUISITIONS[1]
    thick = acquire(truth, acquisition)
    before, after = (
        super_resolve(thick, SROptions(resolution=1.0, model=model, contrast="T1w"), metadata=acquisition.metadata)
        for model in ("cubic", "student")
    )
    images = {
        "scan in slices of 5 mm, interpolated": before.image.get_fdata(dtype=np.float32),
        "moesr-bids": after.image.get_fdata(dtype=np.float32),
        "truth (phantom)": truth.get_fdata(dtype=np.float32) * bias_field(truth.shape, acquisition.seed),
    }
    brightest = float(np.percentile(images["truth (phantom)"], _BRIGHTEST))
    figure = new_figure(9.0, 6.2)
    panels = figure.subplots(2, len(images))
    for column, (name, image) in zip(panels.T, images.items(), strict=True):
        for axes, part in zip(column, (_WHOLE, _DETAIL), strict=True):
            pixels = image[:, _CORONAL][part].T[::-1]
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=brightest, interpolation="nearest")
            axes.set_axis_off()
        column[0].set_title(name, color="white", fontsize=10, pad=3)
    return save(figure, out_file)


def draw(names: Sequence[str], out: Path, model: str) -> list[Path]:
    """Draw the pictures of these names; return their files.

    Raises
    ------
    ValueError
        If a picture shows a mixture of experts and the model is not one.

    """
    truth = make_truth(ACQUISITIONS[1].seed)
    drawn = [draw_before_after(truth, out / "before-after.png")] if "before-after" in names else []
    if "moediff-chain" in names:
        path = weights_path(model)
        network = Weights.read(path).network(torch.device("cpu")) if path else None
        if not isinstance(network, MixtureNetwork):
            raise ValueError(f"{model} is no mixture of experts")
        drawn.append(draw_chain(network, example(truth), out / "moediff-chain.png"))
    if "moediff-experts" in names:
        drawn.append(draw_experts(truth, model, out / "moediff-experts.png"))
    return drawn


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the pictures with few colours, which makes the files three times smaller."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", default="moediff", help="name or weights of a mixture (default: moediff)")
    parser.add_argument("--only", nargs="+", choices=_PICTURES, default=_PICTURES, help="some of the pictures")
    options = parser.parse_args(argv)
    try:
        drawn = draw(options.only, options.out, options.model)
    except ValueError as error:
        parser.error(str(error))
    for file in drawn:
        with Image.open(file) as picture:
            small = picture.convert("RGB").quantize(256)
        small.save(file, optimize=True)
        print(file)


if __name__ == "__main__":
    main()
