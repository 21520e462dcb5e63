"""Matrix form: a layer with weights as a matrix product ``y = W x + b``.

Convolutions become products by gathering, for some output positions, the input values that
each of them sums over (im2col); positions in the zero padding read as zero. Everything is
arranged by convolution group: ``x`` is ``[groups, rows, width]``, ``y`` is
``[groups, rows, outputs]`` and ``W`` is ``[groups, outputs, width]``, where width runs over
(kernel offset, input channel).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.arrays import I64, Array
from onnxprune.structure.structure import Weight


@dataclass(frozen=True)
class MatrixForm:
    """How one layer reads as a matrix product.

    Attributes:
        op_type: ``Conv``, ``ConvTranspose``, ``Gemm``, ``MatMul`` or ``Einsum``.
        shape: shape of the weight tensor.
        attributes: the node's attributes.
        data_axis: axis of the input's channels.
        output_axis: axis of the output's channels, negative.
        outputs_first: for matrices, whether the weight is stored ``[outputs, inputs]``.
    """

    op_type: str
    shape: tuple[int, ...]
    attributes: Mapping[str, Any]
    data_axis: int
    output_axis: int
    outputs_first: bool

    @property
    def spatial(self) -> bool:
        """Whether the layer is a convolution."""
        return self.op_type in ("Conv", "ConvTranspose")

    @property
    def groups(self) -> int:
        """Number of convolution groups, 1 for matrices."""
        return int(self.attributes.get("group", 1)) if self.spatial else 1

    @property
    def offsets(self) -> int:
        """Number of kernel offsets, 1 for matrices."""
        return int(np.prod(self.shape[2:], dtype=np.int64))

    @property
    def outputs(self) -> int:
        """Number of outputs of each group."""
        return self.shape[0] // self.groups if self._outputs_lead else self.shape[1]

    @property
    def width(self) -> int:
        """Number of inputs of each output: channels of a group times kernel offsets."""
        return int(np.prod(self.shape, dtype=np.int64)) // (self.groups * self.outputs)

    @property
    def _outputs_lead(self) -> bool:
        """Whether axis 0 of the weight tensor holds outputs."""
        return self.op_type == "Conv" if self.spatial else self.outputs_first

    def to_matrix(self, tensor: Array) -> Array:
        """Arrange a weight tensor as ``[groups, outputs, width]``."""
        sizes = (self.outputs, -1) if self._outputs_lead else (-1, self.outputs)
        split = tensor.reshape(self.groups, *sizes, self.offsets)
        moved = split.transpose((0, 1, 3, 2) if self._outputs_lead else (0, 2, 3, 1))
        return moved.reshape(self.groups, self.outputs, self.width)

    def to_tensor(self, matrix: Array) -> Array:
        """Invert :meth:`to_matrix`."""
        split = matrix.reshape(self.groups, self.outputs, self.offsets, -1)
        moved = split.transpose((0, 1, 3, 2) if self._outputs_lead else (0, 3, 1, 2))
        return moved.reshape(self.shape)

    def positions(self, y_shape: Sequence[int]) -> int:
        """Return how many rows each index of output axis 0 has."""
        axis = self.output_axis % len(y_shape)
        return int(np.prod([n for k, n in enumerate(y_shape) if k not in (0, axis)], dtype=int))

    def rows(self, x: Array, y: Array, count: int, rng: np.random.Generator) -> list[I64]:
        """Draw at most ``count`` positions for each index of output axis 0 of a chunk.

        Returns:
            Index of axis 0 and flat position, each ``int64 [rows]``.
        """
        if not self.batched(x, y):
            total = y.size // y.shape[self.output_axis]
            size = min(total, count * len(y))
            flat = np.sort(rng.choice(total, size, replace=False))
            return [np.zeros(len(flat), dtype=np.int64), flat]
        return _drawn(len(y), self.positions(y.shape), count, rng)

    def batched(self, x: Array, y: Array) -> bool:
        """Whether axis 0 of input and output holds samples."""
        axes = (self.data_axis % x.ndim, self.output_axis % y.ndim)
        return self.spatial or (0 not in axes and len(x) == len(y))

    def inputs(self, x: Array, y_shape: Sequence[int], rows: Sequence[I64]) -> Array:
        """Return what the drawn rows of the output sum over, ``[groups, rows, width]``."""
        index, flat = rows
        if self.spatial:
            table = self.table(x.shape[2:], y_shape[2:])[flat]  # [rows, kernel]
            channels = x.reshape(*x.shape[:2], -1)
            found = channels[index[:, None], :, np.maximum(table, 0)]  # [rows, kernel, channels]
            found[table < 0] = 0
            split = found.reshape(len(flat), self.offsets, self.groups, -1)
            return split.transpose(2, 0, 1, 3).reshape(self.groups, len(flat), -1)
        return self._matrix_rows(x, self.data_axis, rows)[None]

    def targets(self, y: Array, rows: Sequence[I64]) -> Array:
        """Return the drawn rows of the output, ``[groups, rows, outputs]``."""
        index, flat = rows
        if self.spatial:
            found = y.reshape(*y.shape[:2], -1)[index, :, flat]
            return found.reshape(len(flat), self.groups, -1).swapaxes(0, 1)
        return self._matrix_rows(y, self.output_axis, rows)[None]

    @staticmethod
    def _matrix_rows(values: Array, axis: int, rows: Sequence[I64]) -> Array:
        index, flat = rows
        moved = np.moveaxis(values, axis, -1)
        per_index = int(np.prod(moved.shape[1:-1], dtype=np.int64))
        result: Array = moved.reshape(-1, moved.shape[-1])[index * per_index + flat]
        return result

    def table(self, inside: Sequence[int], outside: Sequence[int]) -> I64:
        """Return which flat input position each output position reads with each offset.

        ``int64 [output positions, kernel]``; -1 where that lies outside the input.
        """
        rank = len(inside)
        kernel = self.shape[2:]
        stride = [int(v) for v in self.attributes.get("strides", [1] * rank)]
        dilation = [int(v) for v in self.attributes.get("dilations", [1] * rank)]
        before = self._padding(inside, outside, stride, dilation)
        table = np.zeros([1, 1], dtype=np.int64)
        for a in range(rank):
            out, offset = np.arange(outside[a])[:, None], np.arange(kernel[a]) * dilation[a]
            if self.op_type == "Conv":
                at, exact = out * stride[a] + offset - before[a], np.True_
            else:
                at, remainder = np.divmod(out + before[a] - offset, stride[a])
                exact = remainder == 0
            own = np.where(exact & (at >= 0) & (at < inside[a]), at, -1)
            joined = table[:, None, :, None] * inside[a] + own[None, :, None, :]
            outer = (table[:, None, :, None] < 0) | (own[None, :, None, :] < 0)
            table = np.where(outer, -1, joined).reshape(len(table) * len(own), -1)
        return table

    def _padding(
        self, inside: Sequence[int], outside: Sequence[int], stride: list[int], dilation: list[int]
    ) -> list[int]:
        """Return the zero padding before each spatial axis."""
        rank, auto = len(inside), str(self.attributes.get("auto_pad", "NOTSET"))
        if auto in ("NOTSET", "") and "output_shape" not in self.attributes:
            return [int(v) for v in self.attributes.get("pads", [0] * 2 * rank)][:rank]
        if auto == "VALID":
            return [0] * rank
        before = []
        for a in range(rank):
            extent = (self.shape[2 + a] - 1) * dilation[a] + 1
            if self.op_type == "Conv":
                total = max((outside[a] - 1) * stride[a] + extent - inside[a], 0)
            else:
                extra = int(self.attributes.get("output_padding", [0] * rank)[a])
                total = max((inside[a] - 1) * stride[a] + extra + extent - outside[a], 0)
            before.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
        return before


@dataclass(frozen=True)
class StackForm:
    """How a node reads as a stack of matrix products, in letters.

    Letters of all three operands number the matrices, letters that the output lacks are summed
    over, letters that only the weight and the output have are outputs, and the others rows. A dot
    is an axis of size 1. What :class:`MatrixForm` says of groups holds for the matrices.

    Attributes:
        letters: those of the axes of data, weight and output.
        shape: shape of the weight tensor.
    """

    letters: tuple[str, str, str]
    shape: tuple[int, ...]

    spatial = False
    offsets = 1

    @property
    def groups(self) -> int:
        """Number of matrices."""
        return self._count(self._stacked)

    @property
    def outputs(self) -> int:
        """Number of outputs of each matrix."""
        return self._count(self._made)

    @property
    def width(self) -> int:
        """Number of inputs of each output."""
        return self._count(self._summed)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """A shape in which what the rows have in common broadcasts to the output."""
        _, weight, output = self.letters
        sizes = [self._sizes.get(c, 1) for c in output]
        first = next((k for k, c in enumerate(output) if c in weight), len(sizes) - 1)
        return tuple(sizes[first:])

    def to_matrix(self, tensor: Array) -> Array:
        """Arrange a weight tensor as ``[groups, outputs, width]``."""
        return self._arranged(tensor, self.letters[1], self._made, self._summed)

    def to_tensor(self, matrix: Array) -> Array:
        """Invert :meth:`to_matrix`."""
        order = self._stacked + self._made + self._summed
        weight = self.letters[1].replace(".", "")
        split = matrix.reshape([self._sizes[c] for c in order])
        return split.transpose([order.index(c) for c in weight]).reshape(self.shape)

    def along(self, axis: int) -> I64:
        """Return the index along an axis of the weight that each input has.

        ``int64 [groups, width]``; the axis numbers the matrices or is summed over.
        """
        view = [n if k == axis else 1 for k, n in enumerate(self.shape)]
        index = np.arange(self.shape[axis], dtype=np.int64).reshape(view)
        found: I64 = self.to_matrix(np.broadcast_to(index, self.shape))[:, 0]
        return found

    def rows(self, _: Array, y: Array, count: int, rng: np.random.Generator) -> list[I64]:
        """Draw at most ``count`` rows for each index along the first axis of the rows.

        Returns:
            Index along that axis and flat position, each ``int64 [rows]``.
        """
        samples, *sizes = self._row_sizes(y.shape)
        each = int(np.prod(sizes, dtype=np.int64))
        return _drawn(samples, each, count, rng)

    def inputs(self, x: Array, y_shape: Sequence[int], rows: Sequence[I64]) -> Array:
        """Return what the drawn rows of the output sum over, ``[groups, rows, width]``."""
        return self._rows_of(x, self.letters[0], self._summed, y_shape, rows)

    def targets(self, y: Array, rows: Sequence[I64]) -> Array:
        """Return the drawn rows of the output, ``[groups, rows, outputs]``."""
        return self._rows_of(y, self.letters[2], self._made, y.shape, rows)

    @property
    def _sizes(self) -> dict[str, int]:
        return dict(zip(self.letters[1], self.shape, strict=True))

    @property
    def _stacked(self) -> str:
        data, weight, output = self.letters
        return "".join(c for c in output if c in weight and c in data)

    @property
    def _made(self) -> str:
        data, weight, output = self.letters
        return "".join(c for c in output if c in weight and c not in data)

    @property
    def _summed(self) -> str:
        _, weight, output = self.letters
        return "".join(c for c in weight if c not in output and c != ".")

    @property
    def _rows(self) -> str:
        return "".join(c for c in self.letters[2] if c not in self.letters[1])

    def _row_sizes(self, y_shape: Sequence[int]) -> list[int]:
        return [y_shape[self.letters[2].index(c)] for c in self._rows]

    def _count(self, letters: str) -> int:
        return int(np.prod([self._sizes[c] for c in letters], dtype=np.int64))

    def _arranged(self, values: Array, own: str, middle: str, last: str) -> Array:
        """Arrange an array as ``[groups, middle, last]``."""
        kept = [n for c, n in zip(own, values.shape, strict=True) if c != "."]
        named, order = own.replace(".", ""), self._stacked + middle + last
        moved = values.reshape(kept).transpose([named.index(c) for c in order])
        rank = len(self._stacked)
        count = int(np.prod(moved.shape[rank : rank + len(middle)], dtype=np.int64))
        return moved.reshape(self.groups, count, -1)

    def _rows_of(
        self, values: Array, own: str, last: str, y_shape: Sequence[int], rows: Sequence[I64]
    ) -> Array:
        index, flat = rows
        each = int(np.prod(self._row_sizes(y_shape)[1:], dtype=np.int64))
        return self._arranged(values, own, self._rows, last)[:, index * each + flat]


def _drawn(samples: int, each: int, count: int, rng: np.random.Generator) -> list[I64]:
    """Draw at most ``count`` of ``each`` positions for each sample.

    Returns:
        The sample and the position, each ``int64 [rows]``.
    """
    drawn = np.tile(np.arange(each), (samples, 1))
    if count < each:
        drawn = rng.random((samples, each)).argpartition(count, axis=1)[:, :count]
    return [np.repeat(np.arange(samples), drawn.shape[1]), drawn.ravel()]


def matrix_form(node: gs.Node, weight: Weight, shape: tuple[int, ...]) -> MatrixForm:
    """Return how a node with weights reads as a matrix product."""
    assert weight.output_axis is not None
    return MatrixForm(
        node.op,
        shape,
        {k: v.decode() if isinstance(v, bytes) else v for k, v in node.attrs.items()},
        weight.data_axis,
        weight.output_axis,
        outputs_first=weight.outputs_first,
    )


def by_channel(form: MatrixForm, weight: Array) -> Array:
    """Arrange a weight tensor as ``[groups, outputs, offsets, channels]``."""
    return form.to_matrix(weight).reshape(form.groups, form.outputs, form.offsets, -1)


def is_padded(node: gs.Node) -> bool:
    """Whether some outputs of a layer do not read all offsets of its kernel."""
    if node.op == "ConvTranspose":
        return True
    auto = node.attrs.get("auto_pad", "NOTSET")
    auto = auto.decode() if isinstance(auto, bytes) else auto
    return auto not in ("NOTSET", "VALID", "") or any(node.attrs.get("pads", ()))
