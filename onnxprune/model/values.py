"""Values: compare what models return, tensors of any type, sequences and maps."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune.arrays import Array

Value = Any
"""An output: an array, a list for a sequence, a dict for a map, or None for an empty optional."""


def leaves(value: Value) -> list[Array]:
    """Return the arrays that an output is made of, in order; the keys of a map are one of them."""
    if value is None:
        return []
    if isinstance(value, dict):
        return [np.asarray(list(value)), np.asarray(list(value.values()))]
    if isinstance(value, list):
        return [leaf for element in value for leaf in leaves(element)]
    return [np.asarray(value)]


def is_number(leaf: Array) -> bool:
    """Whether an array holds numbers or booleans: no strings."""
    return leaf.dtype.kind not in "OUS"


def is_finite(value: Value) -> bool:
    """Whether all numbers in an output are finite."""
    numbers = filter(is_number, leaves(value))
    return all(bool(np.isfinite(leaf.astype(np.float64)).all()) for leaf in numbers)


def is_empty(value: Value) -> bool:
    """Whether an output holds nothing that could be compared."""
    return not any(leaf.size for leaf in leaves(value))


def difference(expected: Value, got: Value) -> tuple[float, float]:
    """Return the largest difference and the largest magnitude; infinite where not finite.

    Strings, keys and the structure have to be equal: where they are not, the difference is
    infinite, too.
    """
    ours, theirs = leaves(expected), leaves(got)
    if type(expected) is not type(got) or len(ours) != len(theirs):
        return float("inf"), 1.0
    pairs = [_difference(a, b) for a, b in zip(ours, theirs, strict=True)]
    return max((e for e, _ in pairs), default=0.0), max((s for _, s in pairs), default=1.0)


def _difference(expected: Array, got: Array) -> tuple[float, float]:
    if expected.shape != got.shape or is_number(expected) != is_number(got):
        return float("inf"), 1.0
    if not is_number(expected):
        return (0.0, 0.0) if np.array_equal(expected, got) else (float("inf"), 1.0)
    a, b = expected.astype(np.float64), got.astype(np.float64)
    if not a.size:
        return 0.0, 0.0
    if not np.isfinite(b).all():
        return float("inf"), 1.0
    return float(np.abs(a - b).max()), max(float(np.abs(a).max()), 1e-30)
