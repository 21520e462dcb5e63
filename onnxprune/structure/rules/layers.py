"""Operators with weights: where labels begin, and where channels are summed over."""

from __future__ import annotations

import numpy as np

from onnxprune.arrays import I64
from onnxprune.structure.op import Op
from onnxprune.structure.rules.registry import rule


@rule("Conv")
def conv(op: Op) -> None:
    """Fresh output channels; the input channels slice the weight's axis 1."""
    _convolve(op, bias=2)


def _convolve(op: Op, *, bias: int) -> None:
    outputs = op.out_shape()[1]
    groups, per_group = int(op.attribute("group", 1)), op.shape(1)[1]
    index = np.arange(outputs, dtype=np.int64)
    spatial = (1,) * (len(op.shape(1)) - 2)
    first = index[:, None] // (outputs // groups) * per_group
    _convolution(
        op,
        groups=groups,
        inside=(1, per_group),
        outside=(0, outputs // groups),
        bias=bias,
        channel_of=(first + np.arange(per_group)).reshape(outputs, per_group, *spatial),
        output_of=index.reshape(outputs, 1, *spatial),
    )


@rule("DeformConv")
def deformable_conv(op: Op) -> None:
    """A convolution whose every channel is read at the same computed positions."""
    if op.attribute("offset_group", 1) == 1:
        _convolve(op, bias=3)


@rule("ConvTranspose")
def conv_transpose(op: Op) -> None:
    """Like Conv, with the weight's first two axes in the other order."""
    inputs, per_group = op.shape(1)[:2]
    groups = int(op.attribute("group", 1))
    index = np.arange(inputs, dtype=np.int64)
    spatial = (1,) * (len(op.shape(1)) - 2)
    first = index[:, None] // (inputs // groups) * per_group
    _convolution(
        op,
        groups=groups,
        inside=(0, inputs // groups),
        outside=(1, per_group),
        bias=2,
        channel_of=index.reshape(inputs, 1, *spatial),
        output_of=(first + np.arange(per_group)).reshape(inputs, per_group, *spatial),
    )


def _convolution(
    op: Op,
    *,
    groups: int,
    inside: tuple[int, int],
    outside: tuple[int, int],
    bias: int,
    channel_of: I64,
    output_of: I64,
) -> None:
    """Channels are (convolution group, place in the group) on both sides of the operator.

    ``inside`` and ``outside`` name the weight axis that holds the input and the output
    channels, and their number per group. The full channel axis lies on weight axis 0.
    """
    op.give(0, op.take(0, 0))
    if not op.is_parameter(1):
        return op.close("its weights are computed in the graph")
    labels = op.sink(0, 1) if inside[1] > 1 else op.take(0, 1)
    group, within = op.factor(labels, groups, inside[1])
    if groups == 1:
        group = None
    fresh = op.fresh(outside[1]) if outside[1] > 1 else None
    merged = op.merge([group, fresh], (groups, outside[1]))
    if fresh is None:
        op.give(1, merged)
    else:
        op.origin(1, merged)
    for axis, own, whole in ((inside[0], within, labels), (outside[0], fresh, merged)):
        op.site(1, axis, whole if axis == 0 else own)
    op.site(bias, 0, merged)
    if group is not None:
        op.sizes({0: group}, "group")
    op.weight(
        1,
        data=(op.tensor(0), 1, labels),
        channel_of=channel_of,
        output_of=output_of,
        output_axis=1,
    )
    return None


@rule("Gemm")
def gemm(op: Op) -> None:
    """``A B + C`` of matrices, either of them stored transposed."""
    a, b = int(op.attribute("transA", 0)), int(op.attribute("transB", 0))
    if not op.is_parameter(1) or op.is_parameter(0):
        _contract(op, (0, 1 - a), (1, b))
        op.give(0, op.take(0, a))
        op.give(1, op.take(1, 1 - b))
    else:
        op.give(0, op.take(0, a))
        op.site(1, b, op.sink(0, 1 - a))
        op.site(1, 1 - b, op.origin(1))
        _record_matrix(op, weight=1, weight_axis=b, data=0, data_axis=1 - a, output_axis=1)
    out = op.out_shape()
    for axis in range(2):
        labels = op.given(axis)
        own = axis - (2 - len(op.shape(2))) if op.has(2) else -1
        if own < 0:
            continue
        addend = op.take(2, own)
        if op.shape(2)[own] != out[axis]:
            op.freeze(addend, "is spread over another axis by broadcasting")
        elif op.is_parameter(2):
            op.site(2, own, labels)
        else:
            op.tie(labels, addend)


def _contract(op: Op, left: tuple[int, int], right: tuple[int, int]) -> None:
    """Sum over an axis of two operands; a constant one is sliced along."""
    if op.is_parameter(left[0]) or op.is_parameter(right[0]):
        constant, other = (left, right) if op.is_parameter(left[0]) else (right, left)
        op.site(*constant, op.sink(*other))
    else:
        op.tie(op.sink(*left), op.sink(*right))


def _record_matrix(
    op: Op, *, weight: int, weight_axis: int, data: int, data_axis: int, output_axis: int
) -> None:
    shape = op.shape(weight)
    inside = np.arange(shape[weight_axis], dtype=np.int64)
    outside = np.arange(shape[1 - weight_axis], dtype=np.int64)
    view = (-1, 1) if weight_axis == 0 else (1, -1)
    op.weight(
        weight,
        data=(op.tensor(data), data_axis, op.labelled(data).get(data_axis)),
        channel_of=inside.reshape(view),
        output_of=outside.reshape(view[::-1]),
        output_axis=output_axis,
    )
