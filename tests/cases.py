"""One tiny model or more for every operator that has a rule, between layers that prune.

Here are the common operators; families with more to say have files of their own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import cases_attention
import cases_contrib
import cases_edges
import cases_indexing
import cases_normalization
import cases_quantization
import cases_recurrent
import numpy as np
from case import (
    CASES,
    Case,
    conv,
    dense,
    enter,
    flat,
    layer,
    leave,
    left,
    pooled,
    rows,
    same,
    sized,
    swap,
    tokens,
    total,
)
from onnx import TensorProto
from strategies import Body, Net, apply, attention, both, chain, shuffle, windows

__all__ = [
    "CASES",
    "Case",
    "cases_attention",
    "cases_contrib",
    "cases_edges",
    "cases_indexing",
    "cases_normalization",
    "cases_quantization",
    "cases_recurrent",
]

# -- element-wise: one table -----------------------------------------------------------------


def constant(n: Net, domain: str, *shape: int) -> str:
    """A constant operand in the domain of an operator."""
    if domain == "bool":
        return n.const(np.arange(int(np.prod(shape))).reshape(shape) != 1, bool)
    if domain in ("whole", "int32", "uint32"):
        kind = np.float32 if domain == "whole" else domain
        return n.const(n.rng.integers(1, 4, size=shape), kind)
    return n.const(n.positive(*shape))


DOMAINS = {
    "Acos": "unit", "Asin": "unit", "Atanh": "unit", "Acosh": "above 1", "Log": "positive",
    "Sqrt": "positive", "Reciprocal": "positive", "Ceil": "wide", "Floor": "wide",
    "Round": "wide", "Not": "bool", "BitwiseNot": "int32",
}  # fmt: skip
OPSETS = {"BitwiseNot": 18, "Mish": 18, "Gelu": 20, "Swish": 24}
PLAIN = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu "
    "HardSigmoid HardSwish Identity LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink "
    "Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
).split()
for _op in PLAIN:
    _enter = partial(enter, domain=DOMAINS.get(_op, ""))
    layer(_op, "map", chain(_enter, apply(_op), leave), opset=OPSETS.get(_op, 17))
layer("Cast", "double", chain(apply("Cast", to=TensorProto.DOUBLE), leave))
layer("CastLike", "double", chain(lambda n, x: n.op("CastLike", x, n.const(1, np.float64)), leave))
layer("Clip", "inputs", apply("Clip", -0.5, 0.7))
layer("Clip", "attributes", apply("Clip", min=-0.5, max=0.7), opset=10)
layer("Dropout", "inference", apply("Dropout", 0.5))
layer("Dropout", "mask", lambda n, x: n.op("Where", *n.ops("Dropout", 2, x)[::-1], x))
layer("IsNaN", "log", chain(apply("Log"), apply("IsNaN"), leave))
layer("IsInf", "zero", chain(apply("Relu"), apply("Reciprocal"), apply("IsInf"), leave))

# -- broadcasting: one table, six ways to meet -----------------------------------------------

MEETINGS: dict[str, tuple[str, dict[str, Any], int]] = {
    **{op: ("", {}, 17) for op in "Add Max Mean Min Mul Sub Sum PRelu".split()},
    **{op: ("positive", {}, 17) for op in ("Div", "Pow")},
    **{op: ("", {}, 17) for op in "Greater GreaterOrEqual Less LessOrEqual".split()},
    **{op: ("bool", {}, 17) for op in ("And", "Or", "Xor")},
    **{f"Bitwise{op}": ("int32", {}, 18) for op in ("And", "Or", "Xor")},
    "BitShift": ("uint32", {"direction": "LEFT"}, 17),
    "Equal": ("whole", {}, 17),
    "Mod": ("positive", {"fmod": 1}, 17),
}
SHAPES = {"channels": (4, 1, 1), "full": (1, 4, 4, 4), "scalar": (), "width": (4,)}


def meet(op_type: str, other: str, *, swap: bool = False) -> Body:
    """A broadcasting operator: ``other`` says what meets the activations."""
    domain, attributes, _ = MEETINGS[op_type]

    def body(n: Net, x: str) -> str:
        if other in SHAPES:
            second = constant(n, domain, *SHAPES[other])
        else:
            y = n.conv(x, 4, 4)
            second = enter(n, n.op("GlobalMaxPool", y) if other == "pooled" else y, domain)
        operands = [enter(n, x, domain), second]
        if op_type in ("Max", "Mean", "Min", "Sum"):
            operands.append(x)
        return leave(n, n.op(op_type, *operands[:: -1 if swap else 1], **attributes))

    return body


def where(other: str) -> Body:
    """Choose by activations or by channel."""

    def body(n: Net, x: str) -> str:
        picks = enter(n, x, "bool") if other == "layer" else constant(n, "bool", 4, 1, 1)
        return n.op("Where", picks, n.conv(x, 4, 4), n.const(n.positive(4, 1, 1)))

    return body


for _op, (_, _, _opset) in MEETINGS.items():
    for _other in ("layer", "pooled", *SHAPES):
        layer(_op, _other, meet(_op, _other), opset=_opset)
for _op in ("Sub", "Div", "Pow", "Less"):
    layer(_op, "swapped", meet(_op, "channels", swap=True))
for _other in ("layer", "channels"):
    layer("Where", _other, where(_other))

# -- layers with weights ---------------------------------------------------------------------


def transposed(c: int, out: int, group: int = 1, *, bias: bool = True) -> Body:
    """Upsample by two."""

    def body(n: Net, x: str) -> str:
        weights = [n.weight(c, out // group, 2, 2)] + ([n.weight(out)] if bias else [])
        return n.op("ConvTranspose", x, *weights, group=group, strides=[2, 2])

    return body


def gemm(*bias: int, **attributes: Any) -> Body:
    """Flatten, then a Gemm 16 -> 4 with a bias of this shape."""

    def body(n: Net, x: str) -> str:
        flat = n.op("Transpose" if "transA" in attributes else "Identity", n.op("Flatten", x))
        weight = n.weight(4, 16) if "transB" in attributes else n.weight(16, 4)
        return n.op("Gemm", flat, weight, n.weight(*bias), **attributes)

    return body


layer("Conv", "plain", conv(4, 4))
layer("Conv", "no bias", conv(4, 4, bias=False))
layer("Conv", "strided", conv(4, 4, strides=[2, 2]))
layer("Conv", "grouped", conv(6, 9, group=3), c=6, out=9)
layer("Conv", "twice grouped", chain(conv(8, 8, group=4), conv(8, 8, group=2)), c=8, out=8)
layer("Conv", "depthwise", conv(4, 4, group=4))
layer("Conv", "depthwise, two each", conv(4, 8, group=4), out=8)
layer("Conv", "grouped to one each", conv(6, 3, group=3), c=6, out=3)
layer("Conv", "1d", conv(4, 4, dims=1), size=(5,))
layer("Conv", "3d", conv(4, 4, dims=3), size=(3, 2, 2))
layer("Conv", "to one channel", conv(4, 1), out=1)
layer("ConvTranspose", "plain", transposed(4, 6), out=6)
layer("ConvTranspose", "no bias", transposed(4, 4, bias=False))
layer("ConvTranspose", "grouped", transposed(6, 9, 3), c=6, out=9)
layer("ConvTranspose", "depthwise", transposed(4, 4, 4))
layer("ConvTranspose", "depthwise, two each", transposed(4, 8, 4), out=8)
rows("Gemm", "plain", gemm(4))
rows("Gemm", "bias of two axes", gemm(1, 4, alpha=0.5, beta=2.0))
rows("Gemm", "scalar bias", gemm())
rows("Gemm", "bias of one", gemm(1))
rows("Gemm", "transposed A", gemm(4, transA=1))
rows("Gemm", "transposed B", gemm(4, transB=1))
rows("Gemm", "no bias", lambda n, x: n.op("Gemm", flat(n, x), n.weight(16, 4)))
rows("Gemm", "addend", both("Gemm", flat, lambda n, _: n.weight(16, 4), gemm(4)))
rows("Gemm", "left weight", chain(flat, left("Gemm", 3, 16, transB=1), apply("Transpose")), out=3)
rows("Gemm", "two activations", chain(both("Gemm", gemm(4), gemm(4), transA=1), total))
tokens("MatMul", "right weight", dense(4, 4, 5), out=5)
tokens("MatMul", "left weight", chain(left("MatMul", 4, 4), left("MatMul", 5, 4)))
tokens("MatMul", "two activations", both("MatMul", dense(4, 6), chain(dense(4, 6), swap)))
tokens("MatMul", "stacked weight", lambda n, x: n.op("MatMul", x, n.weight(1, 4, 4)))


def stack(*shape: int, at: int = 1) -> Body:
    """A product with a stack of matrices."""
    return lambda n, x: n.op("MatMul", *([x, n.weight(*shape)] if at else [n.weight(*shape), x]))


def peak(n: Net, _: str) -> str:
    """A vector: the largest values of all tokens of all samples."""
    return n.op("ReduceMax", n.dense("x0", 3, 4), axes=[0, 1], keepdims=0)


_added = chain(apply("ReduceSum", [1], keepdims=0), apply("Tanh"))
_experts = chain(apply("Unsqueeze", [1]), stack(3, 4, 6), apply("Tanh"), stack(3, 6, 5), _added)
tokens("MatMul", "experts", _experts, out=5)
_added = chain(apply("ReduceSum", [0], keepdims=0), apply("Tanh"))
_biased = chain(stack(3, 16, 6), lambda n, x: n.op("Add", x, n.weight(3, 1, 6)), apply("Relu"))
rows("MatMul", "experts of rows", chain(flat, _biased, stack(3, 6, 5), _added), out=5)
_split = chain(apply("Reshape", [0, 0, 2, 3]), apply("Transpose", perm=[0, 2, 1, 3]))
_joined = chain(apply("Transpose", perm=[0, 2, 1, 3]), apply("Reshape", [0, 0, 10]))
tokens("MatMul", "heads", chain(_split, stack(2, 3, 5), _joined), c=6, out=10)
_left = chain(apply("Unsqueeze", [1]), stack(3, 5, 4, at=0), apply("Tanh"))
tokens("MatMul", "stack in front", chain(_left, apply("ReduceSum", [1], keepdims=0)))
tokens("MatMul", "vector behind", chain(stack(4), apply("Unsqueeze", [2])), out=1)
tokens("MatMul", "vector in front", chain(stack(4, at=0), apply("Unsqueeze", [1])))
tokens("MatMul", "vector of activations", chain(both("MatMul", same, peak),
                                                 apply("Unsqueeze", [2])), out=1)  # fmt: skip

# -- normalisation and reductions ------------------------------------------------------------


def batch_norm(n: Net, x: str) -> str:
    """Normalise with statistics far from 0 and 1."""
    scale, shift, mean = (n.weight(4) for _ in range(3))
    return n.op("BatchNormalization", x, scale, shift, mean, n.const(n.positive(4)))


layer("BatchNormalization", "maps", batch_norm)
layer("BatchNormalization", "3d", batch_norm, size=(2, 3, 2))
rows("BatchNormalization", "rows", chain(gemm(4), batch_norm))


def batch_statistics(n: Net, x: str, *used: int) -> str:
    """Normalise in training mode, and use some of the statistics too."""
    operands = [n.weight(4), n.weight(4), n.weight(4), n.const(n.positive(4))]
    attributes = {"training_mode": 1} if n.opset >= 14 else {}
    y, *others = n.ops("BatchNormalization", 3 if n.opset >= 14 else 5, x, *operands, **attributes)
    for k in used:
        mixed = n.dense(n.op("Reshape", others[k], n.const([1, -1])), 4, 4)
        y = n.op("Add", y, n.op("Reshape", mixed, n.const([1, -1, 1, 1])))
    return y


def computed_parameters(n: Net, x: str) -> str:
    """The scale and the variance come from other layers."""
    scale, variance = (
        n.op("ReduceMax", n.conv("x0", 2, 4), axes=[0, 2, 3], keepdims=0) for _ in range(2)
    )
    variance = n.op("Add", n.op("Abs", variance), n.const(0.5))
    return n.op("BatchNormalization", x, scale, n.weight(4), n.weight(4), variance)


layer("BatchNormalization", "batch statistics", batch_statistics, opset=15)
layer("BatchNormalization", "batch statistics, five outputs", batch_statistics, opset=9)
layer("BatchNormalization", "running mean", lambda n, x: batch_statistics(n, x, 0), opset=15)
layer("BatchNormalization", "running variance", lambda n, x: batch_statistics(n, x, 1), opset=15)
layer("BatchNormalization", "computed parameters", computed_parameters)
for _op in ("Softmax", "LogSoftmax", "Hardmax"):
    layer(_op, "over a map axis", apply(_op, axis=2))
    layer(_op, "over the rest", apply(_op, axis=2), opset=11)
    layer(_op, "over channels", apply(_op, axis=1), prunable=False)
    layer(_op, "over all", apply(_op), opset=11, prunable=False)
    tokens(_op, "last axis", chain(swap, apply(_op), swap))

SUMS = ["ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"]
MEANS = ["ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp"]
for _op in [*SUMS, *MEANS]:
    _enter = partial(enter, domain="positive" if _op == "ReduceLogSum" else "")
    _old, _sums = 11 if _op == "ReduceSum" else 17, _op in SUMS
    layer(_op, "attribute", chain(_enter, apply(_op, axes=[2, -1])), opset=_old)
    layer(_op, "input", chain(_enter, apply(_op, [2, -1])), opset=18)
    rows(_op, "dropped", chain(_enter, apply(_op, axes=[3, 2], keepdims=0)), opset=_old)
    layer(_op, "nothing", chain(_enter, apply(_op, noop_with_empty_axes=1)), opset=18)
    layer(_op, "channels", chain(_enter, apply(_op, [1])), opset=18, out=1, prunable=_sums)
    layer(_op, "everything", chain(_enter, apply(_op)), out=1, prunable=_sums)

# -- spatial ---------------------------------------------------------------------------------


def positions(n: Net, x: str) -> str:
    """Where the largest values are."""
    return leave(n, n.ops("MaxPool", 2, x, kernel_shape=[2, 2])[1])


for _op in ("AveragePool", "MaxPool", "LpPool"):
    layer(_op, "2d", apply(_op, kernel_shape=[2, 2], strides=[2, 2]))
    layer(_op, "1d", apply(_op, kernel_shape=[2]), size=(5,))
layer("MaxPool", "positions", positions, prunable=False)
for _op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
    layer(_op, "map", apply(_op))
layer("Resize", "scales", apply("Resize", "", [1.0, 1.0, 2.0, 2.0]))
layer("Resize", "opset 10", apply("Resize", [1.0, 1.0, 2.0, 2.0]), opset=10)
layer("Resize", "axes", apply("Resize", "", "", [4, 6], axes=[1, 3]), opset=18)
layer("Resize", "computed sizes", sized("Resize", "", "", shape=(4, 6, 6)))
layer("Upsample", "scales", apply("Upsample", [1.0, 1.0, 2.0, 2.0]), opset=9)

# -- layout ----------------------------------------------------------------------------------

tokens("Transpose", "to maps and back", chain(swap, conv(4, 4, dims=1), swap))
tokens("Transpose", "token mixer", chain(swap, dense(4, 4), swap))
rows(
    "Transpose",
    "reversed",
    chain(flat, apply("Transpose"), left("MatMul", 4, 16), apply("Transpose")),
)


def tied_table(n: Net, x: str) -> str:
    """A matrix that one layer uses as it is and another transposed."""
    table = n.weight(96, 96)  # too large to be stored twice
    y = n.op("Tanh", n.op("MatMul", n.dense(x, 4, 96), table))
    return n.op("MatMul", n.dense(y, 96, 96), n.op("Transpose", table))


tokens("Transpose", "tied table", tied_table, out=96)
rows("Flatten", "plain", flat, out=16)
rows("Flatten", "one pixel", chain(pooled, apply("Flatten", axis=-3)))
rows("Squeeze", "axes input", chain(pooled, apply("Squeeze", [2, -1])))
rows("Squeeze", "attribute", chain(pooled, apply("Squeeze", axes=[2, 3])), opset=11)
rows("Unsqueeze", "axes input", chain(apply("Unsqueeze", [2]), flat), out=16)
rows("Unsqueeze", "attribute", chain(apply("Unsqueeze", axes=[1]), flat), out=16, opset=11)
rows("Reshape", "flatten", apply("Reshape", [-1, 16]), out=16)
rows("Reshape", "flatten, copied batch", apply("Reshape", [0, -1]), out=16)
rows("Reshape", "flatten, computed", sized("Reshape", shape=(16,)), out=16)
rows("Reshape", "flatten, computed batch", sized("Reshape", shape=(-1,)), out=16)
layer("Reshape", "pixels", chain(apply("Reshape", [0, 4, 16]), apply("Reshape", [0, 0, 4, 4])))
for _c, _groups in ((6, 2), (12, 3)):
    _shuffle = partial(shuffle, c=_c, groups=_groups, size=4)
    layer("Reshape", f"shuffle by {_groups}", chain(conv(_c, _c, group=2), _shuffle), c=_c, out=_c)
for _how in ("slices", "split", "gather"):
    _block = partial(attention, c=4, heads=2, width=3, length=4, how=_how)
    tokens("Reshape", f"attention, {_how}", _block)
tokens("Reshape", "windows", windows, size=(16,))


def rows_as_batch(n: Net, x: str) -> str:
    """Half of the channels joins the batch; the other size is read off, as it is dynamic."""
    rows = n.op("Reshape", x, n.const([0, 2, 2, -1]))
    length = n.op("Slice", n.op("Shape", rows), n.const([2]), n.const([4]))
    return n.op("Reshape", rows, n.op("Concat", n.const([-1]), length, axis=0))


layer("Reshape", "joins the dynamic batch", rows_as_batch, size=("W",), out=2)


def swapped(outputs: int, *sizes: list[int], c: int = 4, **attributes: Any) -> Body:
    """Split what a convolution returns, and concatenate the parts in the other order."""

    def body(n: Net, x: str) -> str:
        operands = [n.conv(x, 4, c), *(n.const(v) for v in sizes)]
        return n.op("Concat", *n.ops("Split", outputs, *operands, **attributes)[::-1], axis=1)

    return body


def parts(op_type: str, **attributes: Any) -> Body:
    """Let the two halves of an axis meet."""
    return lambda n, x: n.op(op_type, *n.ops("Split", 2, x, **attributes))


layer("Concat", "dense", both("Concat", conv(4, 3), same, axis=1), out=7)
layer("Concat", "with itself", both("Concat", same, same, axis=-3), out=8)
layer("Concat", "along a map axis", both("Concat", conv(4, 4), same, axis=3))
layer("Concat", "with the input", both("Concat", lambda *_: "x0", same, axis=1), out=6)
rows("Concat", "flat maps", both("Concat", flat, gemm(4), axis=1), out=20)
layer("Split", "with sizes", swapped(2, [3, 4], c=7, axis=1), out=7)
layer("Split", "three parts", swapped(3, c=8, axis=-3, num_outputs=3), opset=18, out=8)
layer("Split", "attribute", swapped(2, axis=1, split=[1, 3]), opset=11)
layer("Split", "equal", parts("Mul", axis=1), out=2)
layer("Split", "along a map axis", parts("Add", axis=2))
layer("Slice", "channels", apply("Slice", [1], [3], [1]), c=6, out=2)
layer("Slice", "last channels", apply("Slice", [-3], [2**31], [-3]), c=6, out=3)
layer("Slice", "strided map", apply("Slice", [0, 1], [9, 4], [2, 3], [2, 2]))
layer("Slice", "all axes", apply("Slice", [0, 1, 0, 1], [2**31, 4, 4, 3]), out=3)
layer("Slice", "attributes", apply("Slice", starts=[1], ends=[3], axes=[1]), opset=9, out=2)
layer("Slice", "reversed", apply("Slice", [-1], [-99], [1], [-1]), prunable=False)


AROUND = [0, 1, 0, 0, 0, 2, 0, 0]
layer("Pad", "shortcut", both("Add", apply("Pad", AROUND), conv(4, 7)), out=7)
layer("Pad", "attribute", both("Add", apply("Pad", pads=AROUND), conv(4, 7)), opset=9, out=7)
_pad = apply("Pad", [0, 1, 0, 2], "", [3, 1])
layer("Pad", "axes", both("Add", _pad, conv(4, 7)), opset=18, out=7)
layer("Pad", "channels and map", apply("Pad", [0, 1, 0, 0, 0, 2, 1, 1]), out=7)
layer("Pad", "value", apply("Pad", [0, 2, 0, 0, 0, 0, 1, 1], 0.5), out=6)
layer("Pad", "reflected map", apply("Pad", [0, 0, 1, 1, 0, 0, 1, 1], mode="reflect"))
layer("Pad", "reflected channels", apply("Pad", AROUND, mode="reflect"), out=7, prunable=False)


layer("Gather", "shuffled", apply("Gather", [2, 0, -1, 1], axis=1))
layer("Gather", "repeated", apply("Gather", [3, 0, 3], axis=-3), out=3)
_one = chain(conv(4, 4), apply("Gather", 2, axis=1), apply("Unsqueeze", [1]))
layer("Gather", "one channel", both("Mul", same, _one))
tokens("Gather", "one token", chain(apply("Gather", 1, axis=1), apply("Unsqueeze", [1])))
layer("Expand", "constant", chain(pooled, apply("Expand", [1, 4, 3, 3])))
layer("Expand", "short", chain(pooled, apply("Expand", [3, 1])))
layer("Expand", "computed", both("Expand", chain(conv(4, 4), pooled), apply("Shape")))
layer("Tile", "maps", apply("Tile", [1, 1, 2, 1]))
layer("Tile", "channels", apply("Tile", [1, 3, 1, 1]), out=12)
_size = chain(apply("Shape"), apply("ReduceProd"), leave)
_some = chain(apply("Shape", start=0, end=2), apply("ReduceSum"), leave)
_width = chain(apply("Shape"), apply("Gather", 1), leave)
layer("Shape", "as a number", both("Div", same, _size))
layer("Shape", "of some axes", both("Div", same, _some))
layer("Shape", "width", both("Div", same, _width))
