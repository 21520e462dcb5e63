"""Quantisation: integers with a scale and a zero point, for a tensor, a channel or a block."""

from __future__ import annotations

import numpy as np

from onnxprune.arrays import I64
from onnxprune.structure.op import Op
from onnxprune.structure.rules.registry import rule


@rule("QuantizeLinear", "DequantizeLinear")
@rule("com.microsoft::QuantizeLinear", "com.microsoft::DequantizeLinear")
def quantize(op: Op) -> None:
    """Values change one by one; scales and zero points of single channels are sliced.

    A constant that is quantised or dequantised remains a parameter: it can shrink with what
    it meets, whole blocks at a time where they share a scale.
    """
    shape, block = op.shape(0), int(op.attribute("block_size", 0))
    axis = int(op.attribute("axis", 1)) % max(len(shape), 1)
    if block:
        return _blocked(op, axis, block)
    if len(op.shape(1)) > 1:
        return None
    if op.is_constant(0):
        op.unpack()
    for k, size in enumerate(shape):
        if not op.is_constant(0):
            op.give(k, op.take(0, k))
        for i in (1, 2):
            if k == axis and op.has(i) and op.shape(i) == (size,) and size > 1:
                op.site(i, 0, op.given(k))
    return None


def _blocked(op: Op, axis: int, block: int) -> None:
    """Each scale serves so many neighbours along an axis of a constant."""
    if not op.is_constant(0) or not op.all_constant(1, 2):
        return
    shape, count = op.shape(0), op.shape(1)[axis]
    one: I64 | None = None
    if count > 1:
        one = op.fresh(count)
        spread = _neighbours(one, block, shape[axis])
    else:
        spread = op.fixed(shape[axis], "is read by weights of which all inputs share a scale")
    op.unpack({axis: spread})
    for k in range(len(shape)):
        for i in (1, 2):
            op.site(i, k, one if k == axis else op.given(k))


def _neighbours(labels: I64, block: int, size: int) -> I64:
    """Give each label to so many neighbours; the last may have fewer."""
    return np.repeat(labels, block)[:size]
