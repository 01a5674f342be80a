"""Options of sampling a diffusion model."""

from __future__ import annotations

from attrs import field, frozen, validators

ESTIMATES = ("mean", "sample")
RULES = ("stochastic", "deterministic")
"""The default comes first, here and in :data:`ESTIMATES`."""
MOST_SAMPLES = 9_999
"""Largest number of samples. Sample n of the user's seed s has the seed 10,000 s + n, so no two share one."""


@frozen
class Sampling:
    """How a diffusion model is sampled.

    Parameters
    ----------
    samples
        Number of samples, 1 to 9999. With 1 and the estimate ``mean`` none is drawn: the mean is estimated directly.
    estimate
        The image: ``mean`` of the samples, or the first ``sample``.
    rule
        Step rule: ``stochastic`` or ``deterministic``, see :data:`.models.diffusion.STEP_RULES`.

    Raises
    ------
    ValueError
        If a value is none of these.
    """

    samples: int = field(default=1, validator=validators.and_(validators.ge(1), validators.le(MOST_SAMPLES)))
    estimate: str = field(default=ESTIMATES[0], validator=validators.in_(ESTIMATES))
    rule: str = field(default=RULES[0], validator=validators.in_(RULES))

    @property
    def drawn(self) -> int:
        """Number of samples that are drawn."""
        return 0 if self.samples == 1 and self.estimate == "mean" else self.samples

    @property
    def methods(self) -> str:
        """Predicate of the sentence in the methods section of a paper."""
        if not self.drawn:
            return "estimated the mean image over its eight flips"
        drew = f"drew {self.samples} samples" if self.samples > 1 else "drew a sample"
        if self.estimate == "mean":
            return f"{drew}, the mean of which is the image"
        first = "the first of which" if self.samples > 1 else "which"
        return (
            f"{drew}, {first} is the image, with its detail amplified, at most twofold, and noise added, to the energy "
            "that is expected of it"
        )

    def evaluations(self, flips: int, steps: int) -> tuple[int, int]:
        """Count the flips of an image that are used, at most ``flips``, and the steps of the chain in all of them.

        The mean takes one step in each flip, a sample takes ``steps``. If a sample is the image, it takes one more, for
        the mean that its detail is compared with.
        """
        if not self.drawn:
            return flips, flips
        return min(flips, self.drawn), self.drawn * steps + (self.estimate == "sample")
