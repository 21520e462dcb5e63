"""Normalisations and reductions: what mixes values along an axis."""

from __future__ import annotations

from onnxprune.op import Op
from onnxprune.rules.registry import rule


@rule("BatchNormalization")
def batch_normalization(op: Op) -> None:
    """Each channel has its own four parameters."""
    labels = op.take(0, 1)
    if len(op.node.outputs) > 1 and not op.node.outputs[1].is_empty():
        op.freeze(labels, "is normalised in training mode")
    for i in range(1, 5):
        if op.is_constant(i):
            op.site(i, 0, labels)
        else:
            op.freeze(labels, "is normalised with computed parameters")
    for axis in range(len(op.shape(0))):
        op.give(axis, op.take(0, axis) if axis != 1 else labels)


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(op: Op) -> None:
    """Normalises over one axis (before opset 13 over all from ``axis`` on)."""
    rank = len(op.shape(0))
    axis = int(op.attribute("axis", -1 if op.opset >= 13 else 1)) % rank
    over = {axis} if op.opset >= 13 else set(range(axis, rank))
    for k in set(range(rank)) - over:
        op.give(k, op.take(0, k))


SUMS = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")


@rule(*SUMS, "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum")
@rule("ReduceLogSumExp")
def reduce(op: Op) -> None:
    """Reduced axes vanish; sums read a removed channel as zero, other reductions freeze it."""
    rank = len(op.shape(0))
    axes = op.ints(1, "axes")
    if axes is None and op.has(1):
        return
    if not axes:
        axes = [] if op.attribute("noop_with_empty_axes", 0) else list(range(rank))
    over = {k % rank for k in axes}
    left = [k for k in range(rank) if k not in over]
    for place, k in enumerate(left):
        op.give(k if op.attribute("keepdims", 1) else place, op.take(0, k))
    if op.type in SUMS:
        for k in over:
            op.sink(0, k)
