"""Kinds of the values that come from files and configs."""

import math
from numbers import Integral, Real
from typing import Any

__all__ = ["is_finite", "is_whole"]


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether a value is a number that a float holds; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        # A whole number that no float holds.
        return False
