"""One tiny model or more for every operator that has a rule, between layers that prune."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto
from strategies import BATCH, Net, attention, computed_shape, shuffle, windows


@dataclass(frozen=True)
class Case:
    """A model for a rule, and whether some of its channels must be prunable."""

    name: str
    build: Callable[[], ModelProto]
    prunable: bool = True


CASES: dict[str, list[Case]] = {}


def add(op_type: str, variant: str, build: Callable[[], ModelProto], prunable: bool) -> None:
    """Register a case."""
    CASES.setdefault(op_type, []).append(Case(f"{op_type}-{variant}", build, prunable))


Body = Callable[[Net, str], str]


def layer(
    op_type: str, variant: str, body: Body, *, opset: int = 17, c: int = 4, out: int = 4,
    size: Sequence[int] = (4, 4), prunable: bool = True,
) -> None:  # fmt: skip
    """Register a case between convolutions: ``c`` channels in, ``out`` out of ``body``."""

    def build() -> ModelProto:
        net = Net(opset)
        x = net.conv(net.input(BATCH, 2, *size), 2, c, dims=len(size))
        return net.model(net.conv(body(net, x), out, 3, dims=len(size)))

    add(op_type, variant, build, prunable)


def tokens(
    op_type: str, variant: str, body: Body, *, opset: int = 17, c: int = 4, out: int = 4,
    length: int = 4, prunable: bool = True,
) -> None:  # fmt: skip
    """Register a case between matrix products: ``[N, length, c]`` in, ``[..., out]`` out."""

    def build() -> ModelProto:
        net = Net(opset)
        x = net.dense(net.input(BATCH, length, 3), 3, c)
        return net.model(net.dense(body(net, x), out, 2))

    add(op_type, variant, build, prunable)


def rows(
    op_type: str, variant: str, body: Body, *, opset: int = 17, c: int = 4, out: int = 4,
    prunable: bool = True,
) -> None:  # fmt: skip
    """Register a case between Conv and Gemm: maps in, ``[N, out]`` out of ``body``."""

    def build() -> ModelProto:
        net = Net(opset)
        x = net.conv(net.input(BATCH, 2, 2, 2), 2, c)
        return net.model(net.gemm(body(net, x), out, 2))

    add(op_type, variant, build, prunable)


# -- element-wise: one table -----------------------------------------------------------------


def enter(n: Net, x: str, domain: str) -> str:
    """Bring float activations into the domain of an operator."""
    if domain == "unit":
        return n.op("Mul", n.op("Tanh", x), n.const(0.9))
    if domain in ("positive", "above 1"):
        return n.op("Add", n.op("Abs", x), n.const(1.1 if domain == "above 1" else 0.5))
    if domain == "wide":
        return n.op("Mul", x, n.const(3.0))
    if domain == "bool":
        return n.op("Greater", x, n.const(0.0))
    if domain in ("int32", "uint32"):
        whole = n.op("Mul", n.op("Abs", x), n.const(8.0))
        return n.op("Cast", whole, to=getattr(TensorProto, domain.upper()))
    return n.op("Round", x) if domain == "whole" else x


def leave(n: Net, x: str) -> str:
    """Go back to float."""
    return n.op("Cast", x, to=TensorProto.FLOAT)


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
    layer(
        _op, "map",
        lambda n, x, o=_op: leave(n, n.op(o, enter(n, x, DOMAINS.get(o, "")))),
        opset=OPSETS.get(_op, 17),
    )  # fmt: skip

layer("Cast", "double", lambda n, x: leave(n, n.op("Cast", x, to=TensorProto.DOUBLE)))
layer("CastLike", "double", lambda n, x: leave(n, n.op("CastLike", x, n.const(1, np.float64))))
layer("Clip", "inputs", lambda n, x: n.op("Clip", x, n.const(-0.5), n.const(0.7)))
layer("Clip", "attributes", lambda n, x: n.op("Clip", x, min=-0.5, max=0.7), opset=10)
layer("Dropout", "inference", lambda n, x: n.op("Dropout", x, n.const(0.5)))
layer("Dropout", "mask", lambda n, x: n.op("Where", *n.ops("Dropout", 2, x)[::-1], x))
layer("IsNaN", "log", lambda n, x: leave(n, n.op("IsNaN", n.op("Log", x))))
layer("IsInf", "zero", lambda n, x: leave(n, n.op("IsInf", n.op("Reciprocal", n.op("Relu", x)))))

# -- broadcasting: one table, four ways to meet ------------------------------------------------

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


def meet(op_type: str, other: str, *, swap: bool = False) -> Body:
    """A broadcasting operator: ``other`` says what meets the activations."""
    domain, attributes, _ = MEETINGS[op_type]

    def body(n: Net, x: str) -> str:
        shapes = {"channels": (4, 1, 1), "full": (1, 4, 4, 4), "scalar": (), "width": (4,)}
        a = enter(n, x, domain)
        if other == "layer":
            operands = [a, enter(n, n.conv(x, 4, 4), domain)]
        elif other == "pooled":
            operands = [a, enter(n, n.op("GlobalAveragePool", n.conv(x, 4, 4)), domain)]
        else:
            operands = [a, constant(n, domain, *shapes[other])]
        if op_type in ("Max", "Mean", "Min", "Sum"):
            operands.append(x)
        return leave(n, n.op(op_type, *operands[:: -1 if swap else 1], **attributes))

    return body


for _op, (_, _, _opset) in MEETINGS.items():
    for _other in ("layer", "pooled", "channels", "full", "scalar", "width"):
        layer(_op, _other, meet(_op, _other), opset=_opset)
for _op in ("Sub", "Div", "Pow", "Less"):
    layer(_op, "swapped", meet(_op, "channels", swap=True))


def _where(other: str) -> Body:
    def body(n: Net, x: str) -> str:
        picks = n.op("Greater", x, n.const(0.0)) if other == "layer" else constant(n, "bool", 4, 1, 1)
        return n.op("Where", picks, n.conv(x, 4, 4), n.const(n.positive(4, 1, 1)))

    return body


layer("Where", "layer", _where("layer"))
layer("Where", "channels", _where("channels"))

# -- layers with weights ---------------------------------------------------------------------

layer("Conv", "plain", lambda n, x: n.conv(x, 4, 4, 3))
layer("Conv", "no bias", lambda n, x: n.conv(x, 4, 4, 3, bias=False))
layer("Conv", "strided", lambda n, x: n.conv(x, 4, 4, 3, strides=[2, 2]))
layer("Conv", "grouped", lambda n, x: n.conv(x, 6, 9, 3, group=3), c=6, out=9)
layer("Conv", "twice grouped", lambda n, x: n.conv(n.conv(x, 8, 8, group=4), 8, 8, group=2),
      c=8, out=8)  # fmt: skip
layer("Conv", "depthwise", lambda n, x: n.conv(x, 4, 4, 3, group=4))
layer("Conv", "depthwise, two each", lambda n, x: n.conv(x, 4, 8, 3, group=4), out=8)
layer("Conv", "grouped to one each", lambda n, x: n.conv(x, 6, 3, group=3), c=6, out=3)
layer("Conv", "1d", lambda n, x: n.conv(x, 4, 4, 3, dims=1), size=(5,))
layer("Conv", "3d", lambda n, x: n.conv(x, 4, 4, 3, dims=3), size=(3, 2, 2))
layer("Conv", "to one channel", lambda n, x: n.conv(x, 4, 1), out=1)


def transposed(n: Net, x: str, c: int, out: int, group: int = 1, *, bias: bool = True) -> str:
    """Upsample by two."""
    weights = [n.weight(c, out // group, 2, 2)] + ([n.weight(out)] if bias else [])
    return n.op("ConvTranspose", x, *weights, group=group, strides=[2, 2])


layer("ConvTranspose", "plain", lambda n, x: transposed(n, x, 4, 6), out=6)
layer("ConvTranspose", "no bias", lambda n, x: transposed(n, x, 4, 4, bias=False))
layer("ConvTranspose", "grouped", lambda n, x: transposed(n, x, 6, 9, 3), c=6, out=9)
layer("ConvTranspose", "depthwise", lambda n, x: transposed(n, x, 4, 4, 4))
layer("ConvTranspose", "depthwise, two each", lambda n, x: transposed(n, x, 4, 8, 4), out=8)


def flat_gemm(*c_shape: int, **attributes: int) -> Body:
    """Flatten, then a Gemm 16 -> 4 with a bias of this shape."""

    def body(n: Net, x: str) -> str:
        flat = n.op("Transpose" if "transA" in attributes else "Identity", n.op("Flatten", x))
        weight = n.weight(4, 16) if "transB" in attributes else n.weight(16, 4)
        return n.op("Gemm", flat, weight, n.weight(*c_shape), **attributes)

    return body


rows("Gemm", "plain", flat_gemm(4))
rows("Gemm", "bias of two axes", flat_gemm(1, 4, alpha=0.5, beta=2.0))
rows("Gemm", "scalar bias", flat_gemm())
rows("Gemm", "bias of one", flat_gemm(1))
rows("Gemm", "transposed A", flat_gemm(4, transA=1))
rows("Gemm", "transposed B", flat_gemm(4, transB=1))
rows("Gemm", "no bias", lambda n, x: n.op("Gemm", n.op("Flatten", x), n.weight(16, 4)))
rows("Gemm", "addend", lambda n, x: n.op(
    "Gemm", f := n.op("Flatten", x), n.weight(16, 4), n.gemm(f, 16, 4)))  # fmt: skip
rows("Gemm", "left weight", lambda n, x: n.op("Transpose", n.op(
    "Gemm", n.weight(3, 16), n.op("Flatten", x), transB=1)), out=3)  # fmt: skip


def gram(n: Net, x: str) -> str:
    """A Gemm of two activations that sums over the batch."""
    flat = n.op("Flatten", x)
    product = n.op("Gemm", n.gemm(flat, 16, 3), n.gemm(flat, 16, 4), transA=1)
    return n.op("ReduceSum", product, n.const([0]))


rows("Gemm", "two activations", gram)
tokens("MatMul", "right weight", lambda n, x: n.dense(x, 4, 5), out=5)
tokens("MatMul", "left weight", lambda n, x: n.op(
    "MatMul", n.weight(5, 4), n.op("MatMul", n.weight(4, 4), x)))  # fmt: skip
tokens("MatMul", "two activations", lambda n, x: n.op(
    "MatMul", n.dense(x, 4, 6), n.op("Transpose", n.dense(x, 4, 6), perm=[0, 2, 1])))  # fmt: skip
tokens("MatMul", "stacked weight", lambda n, x: n.op("MatMul", x, n.weight(1, 4, 4)))
tokens("MatMul", "weight of every head", lambda n, x: n.op("ReduceSum", n.op(
    "MatMul", n.op("Unsqueeze", x, n.const([1])), n.weight(1, 3, 4, 4)), n.const([1])))  # fmt: skip

# -- normalisation and reductions ------------------------------------------------------------


def batch_norm(n: Net, x: str, c: int = 4) -> str:
    """Normalise with statistics far from 0 and 1."""
    scale, shift, mean = (n.weight(c) for _ in range(3))
    return n.op("BatchNormalization", x, scale, shift, mean, n.const(n.positive(c)))


layer("BatchNormalization", "maps", batch_norm)
layer("BatchNormalization", "3d", batch_norm, size=(2, 3, 2))
rows("BatchNormalization", "rows", lambda n, x: batch_norm(n, n.gemm(n.op("Flatten", x), 16, 4)))
for _op in ("Softmax", "LogSoftmax", "Hardmax"):
    layer(_op, "over a map axis", lambda n, x, o=_op: n.op(o, x, axis=2))
    layer(_op, "over the rest", lambda n, x, o=_op: n.op(o, x, axis=2), opset=11)
    layer(_op, "over channels", lambda n, x, o=_op: n.op(o, x, axis=1), prunable=False)
    layer(_op, "over all", lambda n, x, o=_op: n.op(o, x), opset=11, prunable=False)
    tokens(_op, "last axis", lambda n, x, o=_op: n.op("Transpose", n.op(
        o, n.op("Transpose", x, perm=[0, 2, 1])), perm=[0, 2, 1]))  # fmt: skip

REDUCTIONS = ["ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum"]
SUMS = ["ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"]
for _op in [*REDUCTIONS, *SUMS, "ReduceLogSumExp"]:
    _op13 = 11 if _op == "ReduceSum" else 17

    def _reduced(n: Net, x: str, o: str = _op, **how: Any) -> str:
        x = enter(n, x, "positive" if o == "ReduceLogSum" else "")
        if n.opset < 18 and (o != "ReduceSum" or n.opset < 13):
            return n.op(o, x, **how)
        axes = [n.const(how.pop("axes"))] if "axes" in how else []
        return n.op(o, x, *axes, **how)

    layer(_op, "attribute", lambda n, x, f=_reduced: f(n, x, axes=[2, -1]), opset=_op13)
    layer(_op, "input", lambda n, x, f=_reduced: f(n, x, axes=[2, -1]), opset=18)
    rows(_op, "dropped", lambda n, x, f=_reduced: f(n, x, axes=[3, 2], keepdims=0))
    layer(_op, "nothing", lambda n, x, f=_reduced: f(n, x, noop_with_empty_axes=1), opset=18)
    layer(_op, "channels", lambda n, x, f=_reduced: f(n, x, axes=[1]), out=1,
          prunable=_op in SUMS)  # fmt: skip
    layer(_op, "everything", lambda n, x, f=_reduced: f(n, x), out=1, prunable=_op in SUMS)

# -- spatial ---------------------------------------------------------------------------------

for _op in ("AveragePool", "MaxPool", "LpPool"):
    layer(_op, "2d", lambda n, x, o=_op: n.op(o, x, kernel_shape=[2, 2], strides=[2, 2]))
    layer(_op, "1d", lambda n, x, o=_op: n.op(o, x, kernel_shape=[2]), size=(5,))
layer("MaxPool", "positions", lambda n, x: leave(n, n.ops(
    "MaxPool", 2, x, kernel_shape=[2, 2])[1]), prunable=False)  # fmt: skip
for _op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
    layer(_op, "map", lambda n, x, o=_op: n.op(o, x))
layer("Resize", "scales", lambda n, x: n.op("Resize", x, "", n.const([1.0, 1.0, 2.0, 2.0])))
layer("Resize", "opset 10", lambda n, x: n.op("Resize", x, n.const([1.0, 1.0, 2.0, 2.0])), opset=10)
layer("Resize", "axes", lambda n, x: n.op(
    "Resize", x, "", "", n.const([4, 6]), axes=[1, 3]), opset=18)  # fmt: skip
layer("Resize", "computed sizes", lambda n, x: n.op(
    "Resize", x, "", "", computed_shape(n, x, 4, 6, 6), mode="nearest"))  # fmt: skip
layer("Upsample", "scales", lambda n, x: n.op("Upsample", x, n.const([1.0, 1.0, 2.0, 2.0])), opset=9)

# -- layout ----------------------------------------------------------------------------------

tokens("Transpose", "to maps and back", lambda n, x: n.op("Transpose", n.conv(
    n.op("Transpose", x, perm=[0, 2, 1]), 4, 4, dims=1), perm=[0, 2, 1]))  # fmt: skip
rows("Transpose", "reversed", lambda n, x: n.op("Transpose", n.op(
    "MatMul", n.weight(4, 16), n.op("Transpose", n.op("Flatten", x)))))  # fmt: skip
rows("Flatten", "plain", lambda n, x: n.op("Flatten", x), out=16)
rows("Flatten", "one pixel", lambda n, x: n.op("Flatten", n.op("GlobalMaxPool", x), axis=-3))
rows("Squeeze", "axes input", lambda n, x: n.op(
    "Squeeze", n.op("GlobalMaxPool", x), n.const([2, -1])))  # fmt: skip
rows("Squeeze", "attribute", lambda n, x: n.op(
    "Squeeze", n.op("GlobalMaxPool", x), axes=[2, 3]), opset=11)  # fmt: skip
rows("Unsqueeze", "axes input", lambda n, x: n.op("Flatten", n.op("Unsqueeze", x, n.const([2]))),
     out=16)  # fmt: skip
rows("Unsqueeze", "attribute", lambda n, x: n.op("Flatten", n.op("Unsqueeze", x, axes=[1])),
     out=16, opset=11)  # fmt: skip


def reshaped(*shape: int) -> Body:
    """Reshape to constants."""
    return lambda n, x: n.op("Reshape", x, n.const(shape))


rows("Reshape", "flatten", reshaped(-1, 16), out=16)
rows("Reshape", "flatten, copied batch", reshaped(0, -1), out=16)
rows("Reshape", "flatten, computed", lambda n, x: n.op("Reshape", x, computed_shape(n, x, 16)), out=16)
rows("Reshape", "flatten, computed batch", lambda n, x: n.op(
    "Reshape", x, computed_shape(n, x, -1)), out=16)  # fmt: skip
layer("Reshape", "pixels", lambda n, x: n.op(
    "Reshape", n.op("Reshape", x, n.const([0, 4, 16])), n.const([0, 0, 4, 4])))  # fmt: skip
layer("Reshape", "shuffle", lambda n, x: shuffle(n, n.conv(x, 6, 6, group=2), 6, 2, 4), c=6, out=6)
layer("Reshape", "shuffle by 3 of 2 groups", lambda n, x: shuffle(
    n, n.conv(x, 12, 12, group=2), 12, 3, 4), c=12, out=12)  # fmt: skip
for _how in ("slices", "split", "gather"):
    tokens("Reshape", f"attention, {_how}", lambda n, x, h=_how: attention(n, x, 4, 2, 3, 4, h), out=4)
tokens("Reshape", "windows", windows, length=16)


def pieces(n: Net, x: str, *sizes: int, axis: int = 1) -> list[str]:
    """Split with sizes."""
    return n.ops("Split", len(sizes), x, n.const(sizes), axis=axis)


layer("Concat", "dense", lambda n, x: n.op("Concat", n.conv(x, 4, 3), x, axis=1), out=7)
layer("Concat", "with itself", lambda n, x: n.op("Concat", x, x, axis=-3), out=8)
layer("Concat", "along a map axis", lambda n, x: n.op("Concat", n.conv(x, 4, 4), x, axis=3))
layer("Concat", "with the input", lambda n, x: n.op("Concat", "x0", x, axis=1), out=6)
rows("Concat", "flat maps", lambda n, x: n.op(
    "Concat", n.op("Flatten", x), n.gemm(n.op("Flatten", x), 16, 3), axis=1), out=19)  # fmt: skip
layer("Split", "with sizes", lambda n, x: n.op(
    "Concat", *pieces(n, n.conv(x, 4, 7), 3, 4)[::-1], axis=1), out=7)  # fmt: skip
layer("Split", "equal", lambda n, x: n.op("Mul", *n.ops("Split", 2, x, axis=1)), out=2)
layer("Split", "num_outputs", lambda n, x: n.op(
    "Concat", *n.ops("Split", 3, x, axis=-3, num_outputs=3)[::-1], axis=1),
    c=8, out=8, opset=18)  # fmt: skip
layer("Split", "attribute", lambda n, x: n.op(
    "Concat", *n.ops("Split", 2, x, axis=1, split=[1, 3])[::-1], axis=1), opset=11)  # fmt: skip
layer("Split", "along a map axis", lambda n, x: n.op("Add", *pieces(n, x, 2, 2, axis=2)))


def cut(starts: list[int], ends: list[int], axes: list[int], *steps: int) -> Body:
    """Slice by inputs."""
    return lambda n, x: n.op("Slice", x, *(n.const(v) for v in (starts, ends, axes, steps) if v))


layer("Slice", "channels", cut([1], [3], [1]), c=6, out=2)
layer("Slice", "last channels", cut([-3], [2**31], [-3]), c=6, out=3)
layer("Slice", "strided map", cut([0, 1], [9, 4], [2, 3], 2, 2))
layer("Slice", "all axes", lambda n, x: n.op(
    "Slice", x, n.const([0, 1, 0, 1]), n.const([2**31, 4, 4, 3])), out=3)  # fmt: skip
layer("Slice", "attributes", lambda n, x: n.op(
    "Slice", x, starts=[0, 1], ends=[2, 9], axes=[1, 2]), opset=9, out=2)  # fmt: skip
layer("Slice", "reversed", cut([-1], [-99], [1], -1), prunable=False)
layer("Pad", "channels", lambda n, x: n.op(
    "Pad", n.conv(x, 4, 4), n.const([0, 1, 0, 0, 0, 2, 1, 1])), out=7)  # fmt: skip
layer("Pad", "attribute", lambda n, x: n.op("Pad", x, pads=[0, 1, 0, 0, 0, 2, 1, 1]),
      opset=9, out=7)  # fmt: skip
layer("Pad", "value", lambda n, x: n.op(
    "Pad", x, n.const([0, 2, 0, 0, 0, 0, 1, 1]), n.const(0.5)), out=6)  # fmt: skip
layer("Pad", "axes", lambda n, x: n.op(
    "Pad", x, n.const([1, 1, 0, 2]), "", n.const([3, 1])), opset=18, out=7)  # fmt: skip
layer("Pad", "reflected map", lambda n, x: n.op(
    "Pad", x, n.const([0, 0, 1, 1, 0, 0, 1, 1]), mode="reflect"))  # fmt: skip
layer("Pad", "reflected channels", lambda n, x: n.op(
    "Pad", x, n.const([0, 1, 0, 0, 0, 1, 0, 0]), mode="reflect"), out=6, prunable=False)
layer("Gather", "shuffled", lambda n, x: n.op("Gather", x, n.const([2, 0, -1, 1]), axis=1))
layer("Gather", "repeated", lambda n, x: n.op("Gather", x, n.const([3, 0, 3]), axis=-3), out=3)
tokens("Gather", "one channel", lambda n, x: n.op("Mul", x, n.op("Unsqueeze", n.op(
    "Gather", n.dense(x, 4, 4), n.const(2), axis=2), n.const([2]))))  # fmt: skip
tokens("Gather", "one token", lambda n, x: n.op("Gather", x, n.const(1), axis=1))
layer("Expand", "constant", lambda n, x: n.op(
    "Expand", n.op("GlobalMaxPool", x), n.const([1, 4, 3, 3])))  # fmt: skip
layer("Expand", "short", lambda n, x: n.op("Expand", n.op("GlobalMaxPool", x), n.const([3, 1])))
layer("Expand", "computed", lambda n, x: n.op(
    "Expand", n.op("GlobalMaxPool", n.conv(x, 4, 4)), n.op("Shape", x)))  # fmt: skip
layer("Tile", "maps", lambda n, x: n.op("Tile", x, n.const([1, 1, 2, 1])))
layer("Tile", "channels", lambda n, x: n.op("Tile", x, n.const([1, 3, 1, 1])), out=12)
layer("Shape", "as a number", lambda n, x: n.op("Div", x, leave(n, n.op(
    "ReduceProd", n.op("Shape", x)))))  # fmt: skip
layer("Shape", "of some axes", lambda n, x: n.op("Div", x, leave(n, n.op(
    "ReduceSum", n.op("Shape", x, start=0, end=2)))))  # fmt: skip
layer("Shape", "head width", lambda n, x: n.op("Div", x, n.op("Sqrt", leave(n, n.op(
    "Gather", n.op("Shape", x), n.const(1))))))  # fmt: skip
