"""Channels: what is known of the values that the channels of a tensor carry. Numpy only.

Channel ``i`` is written as ``scale[i] * f + offset[i]``, where ``f`` is the function of
everything but the channel (sample, position) that ``root[i]`` numbers. Channels with one root
are linear functions of each other; a scale of zero makes a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.arrays import F64, I64, Array, Bool

NOTHING = -1
"""Root of a constant."""
INSIDE = 0
"""Root of the map that is one inside and zero in the padding around it."""

CLOSE = 1e-6
"""Relative difference up to which numbers that rounding parted count as equal."""


@dataclass(frozen=True)
class Channels:
    """The channels along one axis of a tensor.

    Attributes:
        axis: the axis, counted from the first.
        root: ``int64 [channels]``, :data:`NOTHING` for constants.
        scale: ``float64 [channels]``.
        offset: ``float64 [channels]``.
    """

    axis: int
    root: I64
    scale: F64
    offset: F64

    def __len__(self) -> int:
        return len(self.root)

    @property
    def constant(self) -> Bool:
        """``bool [channels]``: those that have one value everywhere."""
        result: Bool = self.root == NOTHING
        return result

    @property
    def zero(self) -> Bool:
        """``bool [channels]``: those that are zero everywhere."""
        result: Bool = self.constant & (self.offset == 0)
        return result

    @property
    def plain(self) -> bool:
        """Whether nothing is known: every channel is a function of its own."""
        own = len(np.unique(self.root)) == len(self.root) and not self.constant.any()
        return own and bool((self.scale == 1).all() and (self.offset == 0).all())

    def take(self, index: Array, axis: int | None = None) -> Channels:
        """Return some of the channels, on another axis if one is given."""
        place = self.axis if axis is None else axis
        return Channels(place, self.root[index], self.scale[index], self.offset[index])

    def linear(self, factor: F64 | float, addend: F64 | float) -> Channels:
        """Return ``factor * channels + addend``."""
        with np.errstate(all="ignore"):
            return channels(
                self.axis, self.root, self.scale * factor, self.offset * factor + addend
            )

    def in_padding(self, roots: Roots) -> Channels:
        """Return the channels where zeros are put around the maps.

        There an offset is no constant any more: it is a multiple of :data:`INSIDE`.
        """
        if not self.offset.any():
            return self
        constant = self.constant
        scale = np.where(constant, self.offset, self.scale)
        mixed = roots.of([self.root], [self.offset / np.where(constant, 1.0, self.scale)])
        root = np.where(constant, INSIDE, np.where(self.offset == 0, self.root, mixed))
        return channels(self.axis, root, scale, np.zeros(len(self)))


def channels(axis: int, root: I64, scale: F64, offset: F64) -> Channels:
    """Make :class:`Channels`; a scale of zero makes a constant."""
    scale = np.broadcast_to(scale, root.shape).astype(np.float64)
    offset = np.broadcast_to(offset, root.shape).astype(np.float64)
    root = np.where(scale == 0, NOTHING, root)
    return Channels(axis, root, scale, offset)


def join(parts: Sequence[Channels], axis: int) -> Channels:
    """Put channels side by side."""
    return Channels(
        axis,
        np.concatenate([p.root for p in parts]),
        np.concatenate([p.scale for p in parts]),
        np.concatenate([p.offset for p in parts]),
    )


class Roots:
    """Numbers functions: what is computed alike from the same gets the same number."""

    def __init__(self) -> None:
        self._next = INSIDE + 1

    def fresh(self, count: int) -> I64:
        """Return numbers that nothing else bears, ``int64 [count]``."""
        result = np.arange(self._next, self._next + count, dtype=np.int64)
        self._next += count
        return result

    def of(self, exact: Sequence[I64], close: Sequence[Array]) -> I64:
        """Number channels by what they are computed from.

        Args:
            exact: vectors ``[channels]`` that have to be equal.
            close: vectors ``[channels]``, or one array ``[channels, n]`` of rows of which the
                largest number has magnitude 1 or so, that have to be nearly equal.

        Returns:
            ``int64 [channels]``, fresh but equal where all of it agrees.
        """
        whole = np.stack([np.asarray(v) for v in exact], axis=1)
        bucket = np.unique(whole, axis=0, return_inverse=True)[1].reshape(-1)
        rows = np.zeros((len(whole), 1))
        if len(close) == 1 and np.ndim(close[0]) == 2:
            rows = np.asarray(close[0])
        elif close:
            rows = np.stack([np.nan_to_num(v) for v in close], axis=1)
        inverse = alike(bucket, rows)
        return self.fresh(int(inverse.max(initial=-1)) + 1)[inverse]


def alike(bucket: I64, rows: Array) -> I64:
    """Number rows ``[n, k]`` so that nearly equal ones in one bucket get the same number.

    Neighbours in the order of a random projection are compared; equal rows are neighbours.
    """
    if not len(rows):
        return np.empty(0, dtype=np.int64)
    direction = np.asarray(np.random.default_rng(0).uniform(0.5, 1.5, rows.shape[1]), rows.dtype)
    key = np.asarray(rows @ direction, dtype=np.float64)
    most = np.asarray(np.abs(rows).max(axis=1), dtype=np.float64)
    order = np.lexsort([key, bucket])
    first, second = order[:-1], order[1:]
    reach = most[first] * (2 * CLOSE * rows.shape[1])
    same = (bucket[first] == bucket[second]) & (np.abs(key[first] - key[second]) <= reach)
    for place in np.flatnonzero(same):
        a, b = rows[first[place]], rows[second[place]]
        same[place] = bool((np.abs(a - b) <= CLOSE * np.abs(a).max()).all())
    result = np.empty(len(rows), dtype=np.int64)
    result[order] = np.cumsum([0, *~same])
    return result
