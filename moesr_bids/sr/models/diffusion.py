"""Residual-shifting diffusion (ResShift, Yue et al. 2023, arXiv 2307.12348): schedule, step rules and sampling.

The chain runs between the sharp image x_0 and the blurred image y, not between an image and noise, so that a few steps
are enough. Its marginals are (eq. 2 of the paper)

    x_t = x_0 + eta_t (y - x_0) + kappa sqrt(eta_t) e,    e ~ N(0, 1),    0 = eta_0 < eta_1 < ... < eta_T ~ 1.

All functions work on the state z_t = x_t - y and on the residual r = x_0 - y, for which this reads

    z_t = (1 - eta_t) r + kappa sqrt(eta_t) e.

No library has this chain: diffusers and MONAI shift towards noise alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from attrs import field, frozen, validators

from ..sampling import RULES

Denoiser = Callable[[torch.Tensor, float], torch.Tensor]
"""Function from state z_t and eta_t to the estimated residual."""
StepRule = Callable[[torch.Tensor, torch.Tensor, float, float, float, torch.Tensor], torch.Tensor]
"""Function from state, estimated residual, eta_t, eta_{t-1}, kappa and unit noise to the next state."""

_FIRST_ETA, _LAST_ETA = 0.001, 0.999
_LEAST_NOISE = 0.04  # in the paper sqrt(eta_1) = 0.04 / kappa; here eta_1 is at most _FIRST_ETA


@frozen
class ShiftSchedule:
    """How fast the chain passes from the sharp to the blurred image.

    Parameters
    ----------
    steps
        Number of steps T, 1 to 1000.
    kappa
        Standard deviation of the noise at the blurred end, in units of the image's 99th percentile.
    power
        p of the geometric schedule (eq. 8): with smaller values eta rises earlier.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    steps: int = field(default=4, validator=validators.in_(range(1, 1001)))
    kappa: float = field(default=0.1, validator=validators.gt(0))
    power: float = field(default=0.5, validator=validators.gt(0))

    @property
    def etas(self) -> tuple[float, ...]:
        """The rising values eta_0 = 0 to eta_T = 0.999; T + 1 of them."""
        first = min((_LEAST_NOISE / self.kappa) ** 2, _FIRST_ETA)
        if self.steps == 1:
            return 0.0, _LAST_ETA
        span = self.steps - 1
        shares = [(t / span) ** self.power for t in range(self.steps)]
        return 0.0, *(first * (_LAST_ETA / first) ** share for share in shares)


def noisy_state(residual: torch.Tensor, etas: torch.Tensor, kappa: float, noise: torch.Tensor) -> torch.Tensor:
    """Return z_t for a known residual and unit noise (eq. 2); ``etas`` are broadcast."""
    return (1 - etas) * residual + kappa * etas.sqrt() * noise


def posterior_step(
    state: torch.Tensor, residual: torch.Tensor, eta: float, following: float, kappa: float, noise: torch.Tensor
) -> torch.Tensor:
    """Draw z_{t-1} from q(x_{t-1} | x_t, x_0) (eq. 7): the stochastic rule."""
    kept = following / eta
    moved = torch.lerp(residual, state, kept)
    return moved.add_(noise, alpha=kappa * math.sqrt(kept * (eta - following)))


def deterministic_step(
    state: torch.Tensor, residual: torch.Tensor, eta: float, following: float, kappa: float, noise: torch.Tensor
) -> torch.Tensor:
    """Keep the noise that the state is estimated to hold, as DDIM does (Song et al. 2021, eq. 12 with sigma = 0)."""
    del kappa, noise
    kept = math.sqrt(following / eta)
    return torch.add(kept * state, residual, alpha=(1 - following) - kept * (1 - eta))


STEP_RULES: dict[str, StepRule] = dict(zip(RULES, (posterior_step, deterministic_step), strict=True))
"""Step rules by name."""


def sample(
    denoise: Denoiser,
    shape: tuple[int, ...],
    schedule: ShiftSchedule,
    *,
    rule: str,
    temperature: float,
    seed: int,
    device: torch.device,
) -> torch.Tensor:
    """Draw a residual from the chain.

    Parameters
    ----------
    denoise
        Estimates the residual from a state.
    shape
        Shape of the residual.
    schedule
        Schedule of the chain.
    rule
        One of :data:`STEP_RULES`.
    temperature
        Factor of all noise. At 1 the sample is of the full distribution, and errs by more than its mean.
    seed
        Seed of all noise. It is drawn on the CPU for the whole volume, so neither windows nor device matter.
    device
        Device of the network.

    Returns
    -------
    residual
        The network's estimate at the last step, float32, of shape ``shape``.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw() -> torch.Tensor:
        return torch.randn(shape, generator=generator).mul_(temperature).to(device)

    etas = schedule.etas
    step = STEP_RULES[rule]
    state = draw().mul_(schedule.kappa * math.sqrt(etas[-1]))
    for eta, following in zip(etas[:0:-1], etas[-2::-1], strict=True):
        residual = denoise(state, eta)
        if following == 0:
            break
        state = step(state, residual, eta, following, schedule.kappa, draw())
    return residual
