"""Types of command-line values that both commands take."""

from __future__ import annotations

import argparse
import math

RESOLUTION_MM = (0.3, 3.0)


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
