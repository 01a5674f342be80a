"""Types of command-line values that both commands take."""

from __future__ import annotations

import argparse
import math

RESOLUTION_MM = (0.3, 3.0)
_LEAST_MEMORY_GB = 0.05
_LEAST_BARE_MB = 512  # less is most often gigabytes without their unit
MEMORY_UNITS_GB = {"K": 1024**-2, "M": 1024**-1, "G": 1.0, "T": 1024.0}


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
        If `text` is no amount, or one that no step can run in.

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
