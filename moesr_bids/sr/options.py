"""Options of super-resolution, declared once for Python and for both commands.

An option is an attribute with a `Flag`: its name on the command line, its help text, and whether the BIDS App has it
too. Parsers, command lines, saved settings and sidecars are made from it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

from ..arguments import memory_gb, positive_int, resolution_mm
from .models import DEFAULT_MODEL
from .psf import PSF
from .runtimes import RUNTIMES
from .sampling import ESTIMATES, RULES, Sampling

CONTRASTS = ("T1w", "T2w", "FLAIR")
DEVICES = ("auto", "cpu", "cuda")


@attrs.frozen(kw_only=True)
class Flag:
    """An option on the command line.

    Attributes
    ----------
    name : str
        With its dashes.
    text : str
        Help.
    type : Callable
        Reads a value.
    write : Callable
        Writes it again.
    choices : tuple of str or None
        Possible values.
    metavar : str or None
        What stands for the value in the help.
    of_app : bool
        Whether ``moesr-bids`` has it too.
    decides : bool
        Whether it changes the voxels of an output, and not only how fast or where they are computed.

    """

    name: str
    text: str
    type: Callable[[str], Any] = str
    write: Callable[[Any], str] = str
    choices: tuple[str, ...] | None = None
    metavar: str | None = None
    of_app: bool = False
    decides: bool = True

    @property
    def key(self) -> str:
        """Name without the leading dashes, as in saved settings and sidecars."""
        return self.name.removeprefix("--")

    @property
    def destination(self) -> str:
        """Name of the parsed value."""
        return self.key.replace("-", "_")


def _option(default: Any, name: str, text: str, **others: Any) -> Any:
    return attrs.field(default=default, metadata={"flag": Flag(name=name, text=text, **others)})


@attrs.frozen(kw_only=True)
class SROptions:
    """Options of super-resolution.

    Attributes
    ----------
    resolution : float
        Voxel size of the output in mm, isotropic.
    model : str
        Name of a registered model (`moesr_bids.sr.models.model_names`), or path of the weights of one.
    psf : PSF or str
        Point-spread function, or its text form (``gaussian:5.0,kspace,kspace``, axes i, j, k of the array); by
        default from voxel size and metadata.
    contrast : str
        BIDS suffix of the image, for the calibration of the uncertainty; empty where unknown.
    averaged : bool
        Average a one-step model over the eight flips of the image: eight times the work.
    runtime : str
        What runs the convolutions of a one-step model: ``torch`` or ``openvino``.
    samples : int
        Samples of a diffusion model; their spread enters the uncertainty.
    estimate : str
        Image of a diffusion model: ``mean`` or one ``sample``.
    rule : str
        Step rule of a diffusion model, see `moesr_bids.sr.sampling.Sampling`.
    maps : bool
        Return gate maps and difference maps of a mixture of experts.
    device : str
        ``cpu``, ``cuda``, or ``auto`` for the GPU if there is one.
    threads : int, optional
        CPU threads; by default as PyTorch chooses.
    memory_gb : float, optional
        Memory in GiB that the windows of a network must fit into on a CPU; by default what is free, see
        `moesr_bids.resources.available_memory_gb`.
    random_seed : int
        Seed of models that draw random numbers.

    """

    resolution: float = _option(
        0.7,
        "--resolution",
        "voxel size of the output in mm, isotropic (default: 0.7)",
        type=resolution_mm,
        write=lambda value: f"{value:.10g}",
        metavar="MM",
        of_app=True,
    )
    model: str = _option(
        DEFAULT_MODEL,
        "--model",
        "student (one-step network that also predicts its error), moediff (mixture of experts, slower), classical "
        "(variational, without weights), cubic (plain interpolation), or the path of weights that moesr train wrote "
        f"(default: {DEFAULT_MODEL})",
        of_app=True,
    )
    psf: PSF | str | None = attrs.field(
        default=None,
        metadata={
            "flag": Flag(
                name="--psf",
                text="point-spread function along the array axes: gaussian, rect or kspace with its width in mm "
                "(default width: the voxel size), e.g. kspace,kspace,gaussian:5 (default: from voxel size and "
                "metadata)",
                metavar="KIND[:MM],KIND[:MM],KIND[:MM]",
            )
        },
    )
    contrast: str = _option(
        "",
        "--contrast",
        "what IN is, for the calibration of the uncertainty (default: what its name ends with)",
        choices=CONTRASTS,
    )
    averaged: bool = _option(
        False,
        "--test-time-averaging",
        "average a one-step model over the eight flips of the image: slightly better, eight times the work",
    )
    runtime: str = _option(
        RUNTIMES[0],
        "--runtime",
        "what runs the convolutions of a one-step model; openvino is for CPUs and an extra to install "
        f"(default: {RUNTIMES[0]})",
        choices=RUNTIMES,
    )
    samples: int = _option(
        1,
        "--samples",
        "samples of a diffusion model; their spread enters the uncertainty (default: 1, no spread)",
        type=positive_int,
        metavar="N",
        of_app=True,
    )
    estimate: str = _option(
        ESTIMATES[0],
        "--estimate",
        "image of a diffusion model: the mean (estimated over all flips, or that of several samples), or one "
        f"sample, which is sharper and errs more (default: {ESTIMATES[0]})",
        choices=ESTIMATES,
        of_app=True,
    )
    rule: str = RULES[0]
    maps: bool = False
    device: str = _option(
        DEVICES[0],
        "--device",
        "where the model runs; cuda stops without a GPU, auto says which it chose (default: auto)",
        choices=DEVICES,
        of_app=True,
        decides=False,
    )
    threads: int | None = _option(None, "--omp-nthreads", "CPU threads", type=positive_int, metavar="N", decides=False)
    memory_gb: float | None = _option(
        None,
        "--mem",
        "memory that the windows of the network shrink to fit on a CPU, e.g. 8G (units K, M, G, T; a bare number "
        "means megabytes; default: 90%% of what is free)",
        type=memory_gb,
        write=lambda value: f"{value}G",
        metavar="SIZE",
        decides=False,
    )
    random_seed: int = _option(
        0, "--random-seed", "seed of all random numbers (default: 0)", type=int, metavar="N", of_app=True
    )

    @property
    def sampling(self) -> Sampling:
        """How a diffusion model is sampled."""
        return Sampling(samples=self.samples, estimate=self.estimate, rule=self.rule)

    @classmethod
    def add_arguments(cls, group: Any, *, of_app: bool = False) -> None:
        """Add the options to a parser or one of its groups.

        Parameters
        ----------
        group : argparse.ArgumentParser or group
            Where to add them.
        of_app : bool
            Add only those of ``moesr-bids``.

        """
        for field, flag in _flags():
            if of_app and not flag.of_app:
                continue
            if isinstance(field.default, bool):
                group.add_argument(flag.name, action="store_true", help=flag.text)
                continue
            group.add_argument(
                flag.name,
                type=flag.type,
                default=field.default,
                choices=flag.choices,
                metavar=flag.metavar,
                help=flag.text,
            )

    @classmethod
    def from_args(
        cls, args: argparse.Namespace | Mapping[str, Any], *, of_app: bool = False, **others: Any
    ) -> SROptions:
        """Return the options of parsed arguments, or of a mapping of their names; absent ones have their defaults.

        Parameters
        ----------
        args : argparse.Namespace or Mapping
            Values by `Flag.destination` or `Flag.key`.
        of_app : bool
            Read only options of ``moesr-bids``.
        **others : Any
            Attributes without a flag, and attributes that replace those of ``args``.

        """
        given = args if isinstance(args, Mapping) else vars(args)
        values = {name.replace("-", "_"): value for name, value in given.items()}
        told = {
            field.name: values[flag.destination]
            for field, flag in _flags()
            if flag.destination in values and (flag.of_app or not of_app)
        }
        return cls(**{**told, **others})

    def to_argv(self) -> list[str]:
        """Return the arguments of ``moesr sr`` for these options; options at their defaults are left out."""
        argv: list[str] = []
        for field, flag in _flags():
            value = getattr(self, field.name)
            if value == field.default:
                continue
            argv += [flag.name] if value is True else [flag.name, flag.write(value)]
        return argv

    def by_flag(self, *, deciding: bool = False) -> dict[str, Any]:
        """Return the options of ``moesr-bids`` by `Flag.key`.

        Parameters
        ----------
        deciding : bool
            Return only those that change the voxels of an output.

        """
        return {
            flag.key: getattr(self, field.name)
            for field, flag in _flags()
            if flag.of_app and (flag.decides or not deciding)
        }


def _flags() -> Iterator[tuple[Any, Flag]]:
    for field in attrs.fields(SROptions):
        if flag := field.metadata.get("flag"):
            yield field, flag
