"""Products: the inputs and targets of a layer as rows of matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.arrays import F64, I64, Array
from onnxprune.linear.matrix_form import MatrixForm


def channels_last(values: Array, axis: int) -> Array:
    """Arrange an array with samples on axis 0 as ``[samples, positions, channels]``."""
    moved = np.moveaxis(values, axis, -1)
    return np.ascontiguousarray(moved.reshape(len(moved), -1, moved.shape[-1]))


class Product:
    """A layer without its bias as a linear map between all positions, and what derives from it.

    Inputs and outputs are ``[samples, positions, channels]``. What each output sums over is
    gathered once, by :meth:`unfold`; all else is products of matrices.

    Args:
        form: the layer.
        inside: shape of its input, ``[samples, ...]``; the samples may be others.
        outside: shape of its output, likewise.
    """

    def __init__(self, form: MatrixForm, inside: Sequence[int], outside: Sequence[int]) -> None:
        self._groups, self._offsets = form.groups, form.offsets
        self._outside = form.positions(outside)
        self._reads = self._read_by = None
        if form.spatial:
            self._reads = form.table(inside[2:], outside[2:])
            self._read_by = _inverted(self._reads, int(np.prod(inside[2:], dtype=np.int64)))

    def unfold(self, x: Array) -> Array:
        """Return what every output position sums over, ``[groups, rows, width]``."""
        return self._gathered(x, self._reads)

    def forward(self, unfolded: Array, weights: F64) -> Array:
        """Return the outputs.

        Args:
            unfolded: see :meth:`unfold`.
            weights: ``float64 [groups, outputs, width]``.
        """
        return self._multiplied(unfolded, weights, self._outside)

    def backward(self, y: Array, weights: F64) -> Array:
        """Return the adjoint of :meth:`unfold` and :meth:`forward`.

        Args:
            y: of the shape of the outputs.
            weights: ``float64 [groups, outputs, width]``.

        Returns:
            An array of the shape of the inputs.
        """
        groups, outputs, _ = weights.shape
        split = weights.reshape(groups, outputs, self._offsets, -1).transpose(0, 3, 2, 1)
        swapped = split.reshape(groups, -1, self._offsets * outputs)
        inside = self._outside if self._read_by is None else len(self._read_by)
        return self._multiplied(self._gathered(y, self._read_by), swapped, inside)

    def correlation(self, y: Array, unfolded: Array) -> F64:
        """Return the sum of ``y x^T`` over all rows, ``float64 [groups, outputs, width]``.

        Args:
            y: of the shape of the outputs.
            unfolded: see :meth:`unfold`.
        """
        left = y.reshape(-1, self._groups, y.shape[2] // self._groups).transpose(1, 2, 0)
        return np.asarray(left @ unfolded, dtype=np.float64)

    def _gathered(self, values: Array, table: I64 | None) -> Array:
        """Return what the rows of a table name, ``[groups, rows, offsets * channels]``."""
        samples, _, channels = values.shape
        if table is None:
            return values.reshape(1, -1, channels)
        padded = np.concatenate([values, np.zeros_like(values[:, :1])], axis=1)
        found = padded.take(table, axis=1, mode="wrap")  # -1 is the zeros at the end
        if self._groups == 1:
            return found.reshape(1, samples * len(table), -1)
        split = found.reshape(samples * len(table), self._offsets, self._groups, -1)
        return split.transpose(2, 0, 1, 3).reshape(self._groups, len(split), -1)

    def _multiplied(self, rows: Array, weights: F64, positions: int) -> Array:
        found: Array = (rows @ weights.astype(rows.dtype).swapaxes(1, 2)).swapaxes(0, 1)
        return found.reshape(-1, positions, weights.shape[0] * weights.shape[1])


def _inverted(table: I64, inside: int) -> I64:
    """Return which output position reads each input position with each offset; -1 for none.

    Args:
        table: which input position each output position reads with each offset, -1 for none.
        inside: the number of input positions.
    """
    result = np.full((inside + 1, table.shape[1]), -1)
    for k, reads in enumerate(table.T):  # two positions never read the same with one offset
        result[reads, k] = np.arange(len(table))
    return result[:-1]
