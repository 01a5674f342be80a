"""How a diffusion model is sampled: what a user may choose."""

from __future__ import annotations

from attrs import field, frozen, validators

ESTIMATES = ("mean", "sample")
RULES = ("stochastic", "deterministic")
"""The defaults first."""
MOST_SAMPLES = 9_999
"""Each has a seed of its own between those of two seeds of the user's."""


@frozen
class Sampling:
    """How a diffusion model is sampled.

    Parameters
    ----------
    samples
        Number of samples. One sample of the mean estimate is none: the mean is estimated without drawing.
    estimate
        ``mean`` of the samples as the image, or the first ``sample``.
    rule
        Step rule, see :data:`.models.diffusion.STEP_RULES`.
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
        """What is done, for the methods section of a paper."""
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
        """Count the flips of an image that are looked at, of so many, and the steps of the chain in all of them.

        The mean takes one step in each flip, a sample takes ``steps``. A sample that is the image takes one more, of
        the mean that its detail is compared with.
        """
        if not self.drawn:
            return flips, flips
        return min(flips, self.drawn), self.drawn * steps + (self.estimate == "sample")
