"""Recorded values as text: units, rounding, and ``n/a`` for values that were not recorded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from moesr_bids.bids.record import AxisProfile

NOT_AVAILABLE = "n/a"
_NOUGHT = 1e-9  # smaller values are left by rounding


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def stated(value: Any) -> str:
    """Return a value as text; ``n/a`` for None, empty text and numbers that are not finite.

    Examples
    --------
    >>> stated(None), stated(float("nan")), stated("cpu")
    ('n/a', 'n/a', 'cpu')

    """
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return NOT_AVAILABLE
    return str(value)


def number(value: Any, digits: int) -> str:
    """Return a number with ``digits`` significant digits, never with an exponent.

    Examples
    --------
    >>> number(1523.4, 3), number(0.98765, 3), number(1, 3), number(2.6e-16, 3), number(None, 3)
    ('1523', '0.988', '1', '0', 'n/a')

    """
    if not _is_number(value):
        return NOT_AVAILABLE
    if abs(value) < _NOUGHT:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(share: Any) -> str:
    """Return a share in per cent.

    Examples
    --------
    >>> percent(0.0031)
    '0.31 %'

    """
    return f"{number(100 * share, 2)} %" if _is_number(share) else NOT_AVAILABLE


def duration(seconds: Any) -> str:
    """Return a time in seconds, or in minutes and seconds from two minutes on.

    Examples
    --------
    >>> duration(9.25), duration(185.2), duration(None)
    ('9.2 s', '3 min 05 s', 'n/a')

    """
    if not _is_number(seconds):
        return NOT_AVAILABLE
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def triple(values: Any) -> str:
    """Return voxel sizes or a shape as ``1 × 1 × 5``."""
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        return NOT_AVAILABLE
    return " × ".join(str(value) if isinstance(value, int) else number(value, 3) for value in values)


def psf(axes: Sequence[AxisProfile]) -> str:
    """Return a point-spread function as ``k-space 1 mm, k-space 1 mm, gaussian 5 mm``, in the order of the axes."""
    return ", ".join(f"{axis.kind} {number(axis.fwhm, 3)} mm" for axis in axes)
