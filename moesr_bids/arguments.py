"""Command line of both commands: the parser, its messages, and types of values."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

RESOLUTION_MM = (0.3, 3.0)
_LEAST_MEMORY_GB = 0.05
_LEAST_BARE_MB = 512  # less is most often gigabytes without their unit
MEMORY_UNITS_GB = {"K": 1024**-2, "M": 1024**-1, "G": 1.0, "T": 1024.0}


def with_dashes(argument: str) -> str:
    """Turn ``--work_dir`` into ``--work-dir``, so that both spellings are accepted; values stay as they are."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


class _Help(argparse.HelpFormatter):
    """Help that lists all names of an option and then its value once."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class Parser(argparse.ArgumentParser):
    """Parser that accepts dashes and underscores alike, and says in one sentence what is wrong with a command line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": _Help, **settings})

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse the arguments that are known; see `argparse.ArgumentParser`."""
        given = sys.argv[1:] if args is None else args
        return super().parse_known_args([with_dashes(argument) for argument in given], namespace)

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and exit with code 2."""
        from moesr_bids.console import tell

        tell(self.prog, f"error: {message}; {self.prog} --help lists all options")
        raise SystemExit(2)


def positive_int(text: str) -> int:
    """Read a whole number above zero."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return int(text)


def positive_float(text: str) -> float:
    """Read a finite number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above zero")
    return value


def memory_gb(text: str) -> float:
    """Read an amount of memory such as ``8G`` or ``16000M``; a bare number means megabytes, as in fMRIPrep.

    Returns
    -------
    float
        Memory in GiB.

    Raises
    ------
    argparse.ArgumentTypeError
        If `text` is no amount, or too little for any step.

    """
    number, unit = text.strip().upper().removesuffix("B").removesuffix("I"), "M"
    if number and number[-1] in MEMORY_UNITS_GB:
        number, unit = number[:-1], number[-1]
    try:
        amount = float(number) * MEMORY_UNITS_GB[unit]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory; write for example 8G or 16000M") from None
    without_unit = text.strip() == number and float(number) < _LEAST_BARE_MB
    if without_unit or not amount >= _LEAST_MEMORY_GB:
        meant = f"; write {number}G for gigabytes" if without_unit and amount > 0 else ""
        raise argparse.ArgumentTypeError(f"{text!r} is {amount:.3g} GiB, too little{meant}")
    return amount


def resolution_mm(text: str) -> float:
    """Read the voxel size of the output in mm."""
    low, high = RESOLUTION_MM
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not a voxel size between {low:g} and {high:g} mm")
    return value
