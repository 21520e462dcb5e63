"""Quantisation: integers with a scale and a zero point, for a tensor or for each channel."""

from __future__ import annotations

from onnxprune.op import Op
from onnxprune.rules.registry import rule


@rule("QuantizeLinear", "DequantizeLinear")
def quantize(op: Op) -> None:
    """Values change one by one; scales and zero points of single channels are sliced.

    A constant that is quantised or dequantised remains a parameter: it can shrink with what
    it meets.
    """
    shape = op.shape(0)
    axis = int(op.attribute("axis", 1)) % max(len(shape), 1)
    if len(op.shape(1)) > 1 or op.attribute("block_size", 0):
        return
    if op.is_constant(0):
        op.unpack()
    for k, size in enumerate(shape):
        if not op.is_constant(0):
            op.give(k, op.take(0, k))
        for i in (1, 2):
            if k == axis and op.has(i) and op.shape(i) == (size,) and size > 1:
                op.site(i, 0, op.given(k))
