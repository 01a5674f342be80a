"""The residual-shifting chain: its marginals, its step rules, and samples of a known distribution."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesr_bids.sr.models.diffusion import STEP_RULES, ShiftSchedule, deterministic_step, noisy_state, sample
from moesr_bids.sr.sampling import RULES, Sampling

CPU = torch.device("cpu")


@given(steps=st.integers(1, 60), kappa=st.floats(0.01, 3.0), power=st.floats(0.1, 3.0))
@settings(max_examples=60, deadline=None)
def test_schedule_rises_from_the_sharp_to_the_blurred_image(steps: int, kappa: float, power: float) -> None:
    etas = ShiftSchedule(steps, kappa, power).etas
    assert len(etas) == steps + 1
    assert etas[0] == 0
    assert etas[-1] == pytest.approx(0.999)
    assert all(low < high for low, high in itertools.pairwise(etas))


@pytest.mark.parametrize("rule", RULES)
def test_steps_keep_the_marginals(rule: str) -> None:
    """Knowing the residual, a step from z_t gives what the definition of z_{t-1} says."""
    torch.manual_seed(0)
    residual, kappa = torch.full((400_000,), 0.3), 0.5
    for eta, following in ((0.999, 0.4), (0.4, 0.05)):
        state = noisy_state(residual, torch.tensor(eta), kappa, torch.randn(len(residual)))
        moved = STEP_RULES[rule](state, residual, eta, following, kappa, torch.randn(len(residual)))
        assert float(moved.mean()) == pytest.approx((1 - following) * 0.3, abs=3e-3)
        assert float(moved.std()) == pytest.approx(kappa * math.sqrt(following), rel=0.01)


def test_the_deterministic_rule_keeps_the_noise() -> None:
    residual, noise = torch.randn(50), torch.randn(50)
    state = noisy_state(residual, torch.tensor(0.7), 0.2, noise)
    moved = deterministic_step(state, residual, 0.7, 0.1, 0.2, torch.full((50,), torch.nan))
    torch.testing.assert_close(moved, noisy_state(residual, torch.tensor(0.1), 0.2, noise))


@pytest.mark.parametrize("rule", RULES)
def test_a_denoiser_that_knows_the_answer_gives_it(rule: str) -> None:
    truth = torch.randn(6, 5, 4)
    found = sample(lambda state, eta: truth, (6, 5, 4), ShiftSchedule(), rule=rule, temperature=1.0, seed=3, device=CPU)
    torch.testing.assert_close(found, truth)


@pytest.mark.parametrize("rule", RULES)
def test_samples_of_a_normal_law_have_its_spread(rule: str) -> None:
    """With the exact posterior mean of N(0, s^2) as denoiser, long chains sample that law; without noise its mean."""
    spread, schedule = 0.2, ShiftSchedule(steps=200, kappa=0.5)

    def denoise(state: torch.Tensor, eta: float) -> torch.Tensor:
        signal = (1 - eta) * spread**2
        return state * signal / ((1 - eta) * signal + schedule.kappa**2 * eta)

    def draw(temperature: float, seed: int) -> torch.Tensor:
        return sample(denoise, (20_000,), schedule, rule=rule, temperature=temperature, seed=seed, device=CPU)

    assert float(draw(1.0, 1).std()) == pytest.approx(spread, rel=0.05)
    assert float(draw(0.5, 1).std()) < 0.6 * spread
    assert float(draw(0.0, 1).abs().max()) == 0
    assert torch.equal(draw(1.0, 1), draw(1.0, 1))
    assert not torch.equal(draw(1.0, 1), draw(1.0, 2))


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"steps": 0}, {"kappa": 0.0}, {"power": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ShiftSchedule(**wrong)
    for wrong in ({"samples": 0}, {"estimate": "best"}, {"rule": "magic"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Sampling(**wrong)
