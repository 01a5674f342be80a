"""Plain cubic-spline interpolation as a model: the baseline."""

from __future__ import annotations

from ..interpolation import cubic_spline
from .base import Model, ModelCard, Problem, Reconstruction


def _reconstruct(problem: Problem) -> Reconstruction:
    operator = problem.operator
    return Reconstruction(cubic_spline(problem.acquired, operator.input_grid, operator.target_grid))


MODEL = Model(
    "cubic",
    ModelCard(
        "cubic-spline interpolation: the baseline, not projected",
        methods="Cubic-spline interpolation was used.",
        projected=False,
    ),
    _reconstruct,
)
