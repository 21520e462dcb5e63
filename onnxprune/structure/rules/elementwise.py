"""Operators that change values one by one, with or without broadcasting."""

from __future__ import annotations

from onnxprune.arrays import I64
from onnxprune.structure.op import Op
from onnxprune.structure.rules.registry import rule

UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot CastLike Ceil Celu Clip Cos Cosh "
    "Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log "
    "Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign "
    "Sqrt Swish Tan Tanh ThresholdedRelu"
).split()

BROADCAST = (
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less "
    "LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor"
).split()


@rule(*UNARY)
def unary(op: Op) -> None:
    """Values change one by one: every axis of input 0 passes to every output."""
    for axis in range(len(op.shape(0))):
        labels = op.take(0, axis)
        for o in range(len(op.node.outputs)):
            op.give(axis, labels, o)


@rule("Cast")
def cast(op: Op) -> None:
    """Another type; a constant that is stored in a smaller one remains a parameter."""
    if op.is_constant(0):
        op.unpack()
    else:
        unary(op)


@rule(*BROADCAST)
def broadcast(op: Op) -> None:
    """Inputs are aligned at their last axes; axes that meet are tied, constants sliced."""
    out = op.out_shape()
    for axis in range(len(out)):
        op.give(axis, join(op, axis, out, list(op.inputs)))


def join(op: Op, axis: int, out: tuple[int, ...], inputs: list[int]) -> I64 | None:
    """Tie output axis ``axis`` over all ``inputs`` (numpy broadcasting) and return its labels.

    Where constants alone have its size, all else being repeated along it, they begin labels: the
    scale of a normalisation is multiplied by the inverse deviation before it meets the channels.
    """
    met: list[I64 | None] = []
    constants: list[tuple[int, int]] = []
    repeated = True
    for i in inputs:
        own = axis - (len(out) - len(op.shape(i))) if op.has(i) else -1
        if own < 0:
            continue
        labels = op.take(i, own)
        if op.shape(i)[own] != out[axis]:
            op.freeze(labels, "is spread over another axis by broadcasting")
            repeated &= not op.varies(i, own)
        elif op.is_parameter(i):
            constants.append((i, own))
        elif out[axis] != 1:
            met.append(labels)
        else:
            op.freeze(labels, "has size 1")
    first = met[0] if met else None
    if not met and repeated and constants and out[axis] > 1:
        first = op.fresh(out[axis])
    for labels in met[1:]:
        first = op.tie(first, labels)
    for i, own in constants:
        op.site(i, own, first)
    return first
