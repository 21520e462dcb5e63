"""Channels: which channels of a tensor carry the same values, and which are constant. Numpy only.

Every channel has a number. Two channels of one number carry the same values, whatever the input
is. Negative numbers are those of constants, :data:`ZERO` is that of zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from onnxprune.arrays import F64, I64, Array, Bool

ZERO = -1
"""Number of the constant zero."""
UNREAD = int(np.iinfo(np.int64).min)
"""Number of a constant whose value was not looked up yet."""


@dataclass(frozen=True)
class Channels:
    """The channels along one axis of a tensor.

    Attributes:
        axis: the axis, counted from the first.
        numbers: ``int64 [channels]``.
    """

    axis: int
    numbers: I64

    @property
    def constant(self) -> Bool:
        """``bool [channels]``: those that have one value everywhere."""
        return np.asarray(self.numbers < 0, dtype=np.bool_)


class Numbers:
    """Gives numbers to channels: what is computed alike from the same gets the same number."""

    def __init__(self) -> None:
        self._next = 0
        self._values = [0.0]
        self._places = {0.0: ZERO}

    def fresh(self, count: int) -> I64:
        """Return numbers that nothing else bears, ``int64 [count]``."""
        self._next += count
        return np.arange(self._next - count, self._next, dtype=np.int64)

    def of(self, *vectors: I64) -> I64:
        """Number channels by what they are computed from.

        Args:
            vectors: vectors ``int64 [channels]``.

        Returns:
            ``int64 [channels]``, fresh but equal where all vectors agree.
        """
        return self.rows(np.stack(vectors, axis=1))

    def rows(self, rows: Array) -> I64:
        """Number the rows of an array ``[channels, n]``: fresh, but equal where rows are equal."""
        places: dict[bytes, int] = {}
        plus = rows + rows.dtype.type(0)  # of zeros the sign does not count
        found = [places.setdefault(row.tobytes(), len(places)) for row in plus]
        return self.fresh(len(places))[np.asarray(found, dtype=np.int64)]

    def constants(self, values: Iterable[float]) -> I64:
        """Return the numbers of constants ``[channels]``; fresh ones where they are not finite."""
        result = []
        for value in np.asarray(values, dtype=np.float64).tolist():
            if not np.isfinite(value):
                result.append(int(self.fresh(1)[0]))
                continue
            if value not in self._places:
                self._values.append(value)
                self._places[value] = -len(self._values)
            result.append(self._places[value])
        return np.asarray(result, dtype=np.int64)

    def values(self, numbers: I64) -> F64:
        """Return the values of constants, ``float64 [channels]``; zero for other channels."""
        constant = numbers < 0
        return np.where(
            constant, np.asarray(self._values)[np.where(constant, -1 - numbers, 0)], 0.0
        )

    def mapped(self, numbers: I64, *, padded: bool = False) -> I64:
        """Number what one function makes of each channel, which a constant passes.

        Args:
            numbers: ``int64 [channels]``.
            padded: whether it reads zeros around the maps: then zero alone stays constant.
        """
        kept = numbers == ZERO if padded else numbers < 0
        return np.where(kept, numbers, self.of(numbers))
