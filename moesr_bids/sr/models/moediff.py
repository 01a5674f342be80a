"""The model ``moediff``: residual-shifting diffusion with a gated mixture of three experts.

Before the chain begins, the context and the gate see the image once, and the trunk sees each flip of it. Each step of
the chain evaluates only the experts, and in a window only those whose gate exceeds a threshold there. The mean is
estimated in each of the eight flips of the image; samples are drawn in one flip after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from attrs import define

from ..precision import fast_dtype
from ..projection import bounding_box
from ..sampling import MOST_SAMPLES
from ..weights import Weights
from ..windows import CPU_WINDOW_VOXELS, Window, largest_window, plan_windows
from . import EXPERTS
from .base import Model, ModelCard, Problem, Reconstruction
from .context import FINE, TOKEN, context_flops, gate_weights
from .detail import with_detail
from .diffusion import sample
from .experts import STATE_CHANNELS, expert_halo, state_cells
from .inputs import FLIPS, Inputs
from .layers import FACTOR
from .mixture import MixtureNetwork, MixtureShape, context_cells, context_channels, with_context
from .network import FoldedNetwork, NetworkOutput, network_cells, network_output
from .student import flops_per_voxel

_METHODS = (
    "A residual-shifting diffusion model [@resshift] with a gated mixture of three experts, for deep white matter, "
    "cortex and the junction of grey and white matter [@moediff], trained on simulated acquisitions of sharp scans and "
    "told the point-spread function and the noise of this one, {estimate}. The image was then projected onto the "
    "acquired data."
)
GATE_THRESHOLD = 0.02
"""An expert whose gate stays below this everywhere in a window is not evaluated there."""
SAMPLE_TEMPERATURE = 0.25
"""Factor of the noise of samples. A sample of the packaged weights then has 0.8 dB less PSNR than their mean."""
_ACTIVATIONS = 5  # volumes of the network's hidden channels in memory at a time
_VOLUMES_BYTES = 170  # per target voxel: images, state, noise, gate, shared features
_STEP_BYTES = 24  # of these, for a step of the chain: state, noise, base, innovation, and the estimate
_COMPARISON_BYTES = 40  # further bytes for a comparison of the experts


def moediff(name: str, path: Path) -> Model:
    """Build the model of a weights file.

    Raises
    ------
    ValueError
        If the weights cannot be used.
    """
    weights = Weights.read(path)
    shape = weights.shape(MixtureShape)
    per_step = 2 * 27 / FACTOR**3 * len(EXPERTS) * _multiplications_per_cell(shape)
    context = context_flops(shape.context, context_channels(shape.trunk))
    card = ModelCard(
        "mixture-of-experts diffusion model",
        methods=_METHODS,
        projected=not weights.synthesis,
        synthesis=weights.synthesis,
        weights_sha256=weights.sha256,
        uncertainty=True,
        guidance=tuple(weights.card.get("guidance", ())),
        iterations=2,
        bytes_per_voxel=_VOLUMES_BYTES,
        window_bytes_per_voxel=_bytes_per_voxel(shape, torch.float32),
        flops_per_voxel=context,
        flops_per_flip=flops_per_voxel(shape.trunk),
        flops_per_step=per_step,
        steps_per_sample=shape.schedule.steps,
        flips=len(FLIPS),
        experts=EXPERTS,
    )
    return Model(name, card, partial(reconstruct, weights))


def _multiplications_per_cell(shape: MixtureShape) -> int:
    width = shape.trunk.channels
    return 2 * shape.blocks * width**2 + width * (STATE_CHANNELS + 1) * FACTOR**3


def _bytes_per_voxel(shape: MixtureShape, dtype: torch.dtype) -> int:
    """Peak memory of the network per voxel of a window: inner volumes, and volumes of the target grid."""
    return _ACTIVATIONS * shape.trunk.hidden * dtype.itemsize // FACTOR**3 + 8 * 4


def reconstruct(weights: Weights, problem: Problem) -> Reconstruction:
    """Estimate the mean in each flip of the scan, or draw samples in one flip after the other."""
    start = time.perf_counter()
    inputs = Inputs.of(problem, TOKEN)
    network = weights.network(inputs.image.device)
    assert isinstance(network, MixtureNetwork)
    options, schedule = problem.sampling, network.shape.schedule
    flips = FLIPS[: options.drawn or len(FLIPS)]
    averaged = len(flips) if options.estimate == "mean" else 1  # the image is the first sample then
    how: dict[str, Any] = {"Steps": 1}
    if options.drawn:
        how = {"Steps": schedule.steps, "Rule": options.rule, "NoiseTemperature": SAMPLE_TEMPERATURE}
    with torch.no_grad():  # not inference mode: the engine works on the result in place
        found = _FlipAverage.nothing(inputs, len(flips))
        for flip in range(len(flips)):
            found.add(network, problem, flip)
        count = options.drawn or len(flips)
        mean = found.total / count
        spread = torch.zeros_like(mean)
        if options.drawn > 1:
            spread = (found.square / count).addcmul_(mean, mean, value=-1).clamp_(min=0).mul_(count / (count - 1))
        calibration = weights.calibration(problem.contrast)
        if options.drawn:
            calibration["Coverage"] = {}  # that of the mean over the flips says nothing of samples
        std = _std(found.log_scale, calibration["Temperature"], inputs, problem, spread)
        if found.sample is None:
            out = inputs.image + inputs.head * (mean + inputs.correction)
        else:
            image, expected = (
                inputs.image + part + inputs.correction for part in (found.sample.residual, found.sample.mean)
            )
            # That of its flip: the image is the same whatever the number of samples.
            own_std = _std(found.sample.log_scale, calibration["Temperature"], inputs, problem)
            how["DetailShare"] = weights.detail_share(problem.contrast)
            seed = _seed(problem, MOST_SAMPLES)  # that of no sample
            detailed = with_detail(image, expected, own_std, how["DetailShare"], head=inputs.head, seed=seed)
            out = torch.lerp(inputs.image, detailed.image, inputs.head)
            of_head = inputs.head / inputs.head.sum().clamp(min=1)
            how["DetailGain"] = round(float((detailed.gain * of_head).sum()), 3)
            how["DetailNoiseShare"] = round(detailed.noise_share, 4)
    facts = {
        "Precision": str(fast_dtype(inputs.image.device)).removeprefix("torch."),
        "Sampling": {"Estimate": options.estimate, "Samples": options.drawn, "Flips": averaged, **how},
        "Windows": found.windows,
        "ExpertsEvaluated": round(found.evaluated / max(found.possible, 1), 4),
        "NetworkSeconds": round(time.perf_counter() - start, 3),
        "ConditioningSeconds": round(found.conditioning, 3),
        "Guidance": sorted(inputs.maps),
        "GateShares": found.gate_shares(),
        "UncertaintyCalibration": calibration,
    }
    maps = found.maps() if problem.maps else {}
    maps = {name: inputs.unpadded(volume) for name, volume in maps.items()}
    return Reconstruction(inputs.unpadded(out), inputs.unpadded(std), facts, maps)


def _std(
    log_scale: torch.Tensor, temperature: float, inputs: Inputs, problem: Problem, spread: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """Return the standard deviation of the error; ``log_scale``, its predicted logarithm, is overwritten.

    Outside of the head it is the noise, which the interpolated image has there.

    Parameters
    ----------
    log_scale
        Predicted logarithm of the scale of the error, (i, j, k).
    temperature
        Calibrated factor of the scale.
    inputs, problem
        Weight of the head, and noise.
    spread
        Variance of the samples, added to that of the prediction.
    """
    predicted = log_scale.exp_().mul_(temperature).square_().add_(spread).sqrt_()
    return torch.full_like(inputs.image, problem.sigma).lerp_(predicted, inputs.head)


@define(eq=False)
class _FlipAverage:
    """Results of the flips, in the orientation of the inputs.

    ``total`` and ``square`` are sums over all residuals and their squares; ``log_scale`` and ``differences`` are means
    over the flips. ``seen`` is what the context makes of the image as it is; it is flipped for the other flips, since
    the context takes longer than the trunk. ``sample`` is the first sample, if the estimate is ``sample``.
    """

    inputs: Inputs
    flips: int
    total: torch.Tensor
    square: torch.Tensor
    log_scale: torch.Tensor
    seen: _Seen | None = None
    differences: torch.Tensor | None = None
    sample: _First | None = None
    windows: int = 0
    evaluated: int = 0
    possible: int = 0
    conditioning: float = 0.0  # seconds of trunk, context and gate

    @classmethod
    def nothing(cls, inputs: Inputs, flips: int) -> _FlipAverage:
        """Start an average without any flip."""
        total, square, log_scale = (torch.zeros_like(inputs.image) for _ in range(3))
        return cls(inputs, flips, total, square, log_scale)

    def add(self, network: MixtureNetwork, problem: Problem, flip: int) -> None:
        """Add a flip: estimate the mean in it, or draw every eighth sample, starting with that of its number."""
        axes, drawn = FLIPS[flip], problem.sampling.drawn
        begun = time.perf_counter()

        def progress(share: float) -> None:
            problem.progress("reconstruct", (flip + share) / self.flips)

        seen = None if self.seen is None else self.seen.flipped(axes)
        chain = _Chain.look(network, self.inputs.flipped(axes), problem, progress, seen)
        if self.seen is None:
            self.seen = chain.seen
        if self.inputs.image.is_cuda:
            torch.cuda.synchronize(self.inputs.image.device)
        self.conditioning += time.perf_counter() - begun
        numbers = range(flip, drawn, len(FLIPS)) if drawn else range(1)
        for done, number in enumerate(numbers, 1):
            residual = _flipped(chain.draw(problem, number) if drawn else chain.mean(), axes)
            self.total.add_(residual)
            self.square.addcmul_(residual, residual)
            if number == 0 and problem.sampling.estimate == "sample":
                self.sample = _First(residual, chain.mean(), chain.trunk.log_scale[0, 0].clone())
            progress(0.2 + 0.8 * done / len(numbers))
        self.log_scale.add_(_flipped(chain.trunk.log_scale[0, 0], axes), alpha=1 / self.flips)
        # A sample that is the image was drawn in the first flip.
        shown = 1 if problem.sampling.estimate == "sample" else self.flips
        if chain.differences is not None and flip < shown:
            differences = _flipped(chain.differences, axes) / shown
            self.differences = differences if self.differences is None else self.differences.add_(differences)
        self.windows = len(chain.windows)
        self.evaluated, self.possible = self.evaluated + chain.evaluated, self.possible + chain.possible

    def gate_shares(self) -> dict[str, float]:
        """Mean weight of each expert in the head."""
        head = self.inputs.head
        shares = (self._gate() * head).sum(dim=(1, 2, 3)) / head.sum().clamp(min=1)
        return {name: round(float(share), 4) for name, share in zip(EXPERTS, shares, strict=True)}

    def maps(self) -> dict[str, torch.Tensor]:
        """Return the gate of each expert, and its difference from the gated sum at the last step of the chain."""
        found: dict[str, Any] = {f"gate-{name}": gate for name, gate in zip(EXPERTS, self._gate(), strict=True)}
        if self.differences is not None:
            found |= {f"difference-{name}": part for name, part in zip(EXPERTS, self.differences, strict=True)}
        return found

    def _gate(self) -> torch.Tensor:
        assert self.seen is not None
        return self.seen.gate[0]


class _First(NamedTuple):
    """The first sample, and the mean and the log scale of its flip."""

    residual: torch.Tensor
    mean: torch.Tensor
    log_scale: torch.Tensor


class _Seen(NamedTuple):
    """Outputs of the context for a scan: tokens of the box around the head, and the gate of all voxels."""

    tokens: torch.Tensor
    gate: torch.Tensor

    def flipped(self, axes: tuple[int, ...]) -> _Seen:
        """Reverse some axes, as in :meth:`.inputs.Inputs.flipped`."""
        return _Seen(*(_flipped(volume, axes) for volume in self))


def _flipped(volume: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    return volume.flip([volume.ndim - 3 + axis for axis in axes]) if axes else volume


@define(eq=False)
class _Chain:
    """The network applied to a whole volume, in windows, step by step of the chain.

    ``differences_at`` is the eta of the step at which the experts are compared; None if they are not.
    """

    network: MixtureNetwork
    inputs: Inputs
    features: torch.Tensor
    trunk: NetworkOutput
    seen: _Seen
    windows: list[Window]
    dtype: torch.dtype
    differences_at: float | None
    differences: torch.Tensor | None = None
    evaluated: int = 0
    possible: int = 0

    @classmethod
    def look(
        cls,
        network: MixtureNetwork,
        inputs: Inputs,
        problem: Problem,
        progress: Callable[[float], None],
        seen: _Seen | None,
    ) -> _Chain:
        """Compute everything that does not depend on the step; ``seen`` is the output of the context if it is known."""
        shape, image = network.shape, inputs.image
        device, dtype = image.device, fast_dtype(image.device)
        head = bounding_box(inputs.head > 0)
        folded = FoldedNetwork(network.trunk, inputs.acquisition)
        inner = [n // FACTOR for n in image.shape]
        features = torch.zeros((1, shape.trunk.channels, *inner), dtype=dtype, device=device)
        features = features.contiguous(memory_format=torch.channels_last_3d)
        trunk = NetworkOutput(*(torch.zeros((1, 1, *image.shape), device=device) for _ in range(2)))
        per_voxel, halo = _bytes_per_voxel(shape, dtype), shape.trunk.receptive_field
        # The experts see beyond the cores of their windows: the trunk covers that too.
        wide = _aligned(_grown(head, expert_halo(shape.blocks), image.shape), TOKEN)
        largest = largest_window(per_voxel, device, problem.window)
        windows = plan_windows(image.shape, wide, halo=halo, largest=largest, multiple=FACTOR)
        for number, window in enumerate(windows):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                found = folded(network_cells(inputs.channels(window.outer)))
            output = network_output(found, folded.tail)
            features[:, :, *_coarse(window.core)] = found[:, :, *_coarse(window.inner)].to(dtype)
            for whole, part in zip(trunk, output, strict=True):
                whole[:, :, *window.core] = part[:, :, *window.inner]
            progress(0.15 * (number + 1) / len(windows))
        inside = features[:, :, *_coarse(wide)]
        if seen is None:
            # Only the box of the head, so that the result does not depend on how much air is around it.
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                tokens, found = network.see(context_cells(network_cells(inputs.channels(wide)), inside))
            logits = torch.zeros((1, len(EXPERTS), *(n // FINE for n in image.shape)), device=device)
            logits[:, :, *_coarse(wide, FINE)] = found.float()
            seen = _Seen(tokens.float(), gate_weights(logits))
        inside.copy_(with_context(inside, seen.tokens))
        progress(0.2)
        reserved = (_STEP_BYTES + _COMPARISON_BYTES * problem.maps) * image.numel()
        largest = largest_window(per_voxel, device, problem.window, reserved)
        return cls(
            network,
            inputs,
            features,
            trunk,
            seen,
            plan_windows(
                image.shape,
                head,
                halo=expert_halo(shape.blocks),
                largest=min(largest, CPU_WINDOW_VOXELS),
                multiple=FACTOR,
            ),
            dtype,
            shape.schedule.etas[1 if problem.sampling.drawn else -1] if problem.maps else None,
        )

    def draw(self, problem: Problem, number: int) -> torch.Tensor:
        """Draw a sample of the residual."""
        return sample(
            self.denoise,
            self.inputs.image.shape,
            self.network.shape.schedule,
            rule=problem.sampling.rule,
            temperature=SAMPLE_TEMPERATURE,
            seed=_seed(problem, number),
            device=self.inputs.image.device,
        )

    def mean(self) -> torch.Tensor:
        """Estimate the mean of all samples in this flip, by the first step; its state holds no information."""
        return self.denoise(torch.zeros_like(self.inputs.image), self.network.shape.schedule.etas[-1])

    def denoise(self, state: torch.Tensor, eta: float) -> torch.Tensor:
        """Estimate the residual of the whole volume from a state of the chain."""
        etas = state.new_full((1,), eta)
        told = self.network.told(self.inputs.acquisition[None], etas)
        base, innovation = self.network.base(self.trunk, state[None, None], etas)
        out = base[0, 0].clone()
        differences = torch.zeros_like(self.seen.gate[0]) if eta == self.differences_at else None
        for window in self.windows:
            if not self.inputs.head[window.core].any():
                continue
            outer = (slice(None), slice(None), *window.outer)
            cells = state_cells(base[outer], innovation[outer])
            features = self.features[:, :, *_coarse(window.outer)]
            gate, inside = self.seen.gate[0][:, *window.core], self.inputs.head[window.core] > 0
            for k, expert in enumerate(self.network.experts):
                self.possible += 1
                weighs = float((gate[k] * inside).max()) > GATE_THRESHOLD
                if not weighs and differences is None:
                    continue
                self.evaluated += 1
                with torch.autocast(state.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    correction = expert(features, cells, told.embedding, told.shares[k])[0, 0][window.inner]
                if weighs:  # an expert that is evaluated only for its map does not change the image
                    out[window.core].addcmul_(gate[k], correction)
                if differences is not None:
                    differences[k][window.core] = correction
        if differences is not None:
            gated = (self.seen.gate[0] * differences).sum(dim=0)
            self.differences = (differences - gated) * self.inputs.head
        return out


def _seed(problem: Problem, number: int) -> int:
    return (problem.seed * (MOST_SAMPLES + 1) + number) % 2**63


def _coarse(box: tuple[slice, slice, slice], factor: int = FACTOR) -> tuple[slice, slice, slice]:
    i, j, k = (slice(b.start // factor, b.stop // factor) for b in box)
    return i, j, k


def _aligned(box: tuple[slice, slice, slice], to: int) -> tuple[slice, slice, slice]:
    i, j, k = (slice(b.start // to * to, -(-b.stop // to) * to) for b in box)
    return i, j, k


def _grown(box: tuple[slice, slice, slice], by: int, shape: tuple[int, ...] | torch.Size) -> tuple[slice, slice, slice]:
    i, j, k = (slice(max(0, b.start - by), min(n, b.stop + by)) for b, n in zip(box, shape, strict=True))
    return i, j, k
