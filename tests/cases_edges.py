"""Cases at the edges: axes of size 1 and 0, and constants that are spread before they meet."""

from __future__ import annotations

import numpy as np
from case import conv, dense, flat, layer, left, rows, same, swap, tokens
from strategies import Body, Net, apply, both, chain, computed_shape

# -- one output ------------------------------------------------------------------------------


def to_one(*bias: int, **attributes: float) -> Body:
    """Flatten, then a Gemm 16 -> 1 with a bias of this shape."""

    def body(n: Net, x: str) -> str:
        shape = (1, 16) if attributes.get("transB") else (16, 1)
        return n.op("Gemm", flat(n, x), n.weight(*shape), n.weight(*bias), **attributes)

    return body


for _bias in ((), (1,), (1, 1)):
    rows("Gemm", f"one output, bias {_bias}", to_one(*_bias), out=1)
    rows("Gemm", f"one output, transposed, bias {_bias}", to_one(*_bias, transB=1), out=1)
rows("Gemm", "one output, bias for each sample", to_one(2, 1, beta=0.5), out=1, batch=2)
tokens("MatMul", "to one and back", dense(4, 1, 4))
tokens("MatMul", "one row on the left", left("MatMul", 1, 4))


def dotted(how: str) -> Body:
    """Scale rows by their products with a vector, constant or computed."""

    def body(n: Net, x: str) -> str:
        y = dense(4, 6)(n, x)
        if how == "on the left":
            sums = n.op("MatMul", n.weight(4), n.op("Transpose", y, perm=[0, 1, 2]))
            return n.op("Mul", y, n.op("Unsqueeze", sums, n.const([1])))
        vector = n.weight(6)
        if how == "computed":
            first = n.op("ReduceMax", n.dense("x0", 3, 6), axes=[0, 1], keepdims=0)
            vector = n.op("Mul", first, vector)
        sums = n.op("MatMul", y, vector)
        return n.op("Mul", y, n.op("Unsqueeze", sums, n.const([2])))

    return body


for _how in ("on the right", "on the left", "computed"):
    tokens("MatMul", f"vector {_how}", dotted(_how), out=6)

# -- axes of size 0 ---------------------------------------------------------------------------


def beside(part: Body) -> Body:
    """What has no channels, joined to what has."""
    return both("Concat", chain(part, apply("Neg")), same, axis=1)


def nothing(n: Net, x: str) -> str:
    """A tensor without channels, in a computed shape."""
    return n.op("Expand", n.const(np.zeros((1, 0, 1, 1))), computed_shape(n, x, 0, 4, 4))


def three_parts(n: Net, x: str) -> str:
    """Split into parts of which one is empty."""
    a, b, c = n.ops("Split", 3, x, n.const([3, 0, 1]), axis=1)
    return n.op("Concat", c, n.op("Relu", b), a, axis=1)


layer("Slice", "nothing behind", beside(apply("Slice", [4], [2**31], [1])))
layer("Slice", "nothing in front", beside(apply("Slice", [0], [0], [1])))
_all, _none = apply("Slice", [0], [4], [1]), apply("Slice", [4], [2**62], [1])
layer("Slice", "all and nothing", both("Concat", _all, _none, axis=1))
layer("Split", "an empty part", three_parts)
layer("Concat", "with nothing", both("Concat", same, nothing, axis=1))
layer("Pad", "by nothing", apply("Pad", [0] * 8))
layer("Gather", "nothing", beside(apply("Gather", np.zeros(0, np.int64), axis=1)))
_first = apply("Slice", [0], [0], [2])
tokens("MatMul", "of nothing", both("Add", same, chain(_first, dense(0, 4))))

# -- constants that are spread -----------------------------------------------------------------


def spread(op_type: str, *, swapped: bool = False) -> Body:
    """A constant of each channel meets one number for each place, and then the channels."""

    def body(n: Net, x: str) -> str:
        operands = [n.op("ReduceMax", "x0", axes=[1], keepdims=1), n.weight(4, 1, 1)]
        return n.op("Mul", x, n.op(op_type, *operands[:: -1 if swapped else 1]))

    return body


def chosen(n: Net, x: str) -> str:
    """Each place chooses between two constants for each channel."""
    picks = n.op("Greater", n.op("ReduceMax", "x0", axes=[1], keepdims=1), n.const(0.0))
    return n.op("Mul", x, n.op("Where", picks, n.weight(4, 1, 1), n.weight(4, 1, 1)))


def as_a_sum(n: Net, x: str) -> str:
    """Layer normalisation whose means are sums times a constant, as XLA writes it."""
    mean, squares = (
        n.op("Mul", n.op("ReduceSum", y, n.const([2]), keepdims=1), n.const(1 / 4))
        for y in (x, n.op("Mul", x, x))
    )
    variance = n.op("Sub", squares, n.op("Mul", mean, mean))
    inverse = n.op("Reciprocal", n.op("Sqrt", n.op("Add", n.op("Abs", variance), n.const(0.1))))
    scale = n.op("Mul", inverse, n.weight(4))
    return n.op("Add", n.op("Mul", n.op("Sub", x, mean), scale), n.weight(4))


def dequantised(n: Net, x: str) -> str:
    """The constant is stored as integers."""
    levels = n.const(n.rng.integers(-9, 9, size=(4, 1, 1)), np.int8)
    table = n.op("DequantizeLinear", levels, n.const(0.1), n.const(1, np.int8))
    places = n.op("ReduceMax", "x0", axes=[1], keepdims=1)
    return n.op("Mul", x, n.op("Add", places, table))


for _op in ("Mul", "Add", "Sub", "Max"):
    layer(_op, "spread constant", spread(_op))
layer("Sub", "spread constant, swapped", spread("Sub", swapped=True))
layer("Where", "spread constants", chosen)
tokens("ReduceSum", "means as sums", as_a_sum)
layer("DequantizeLinear", "spread constant", dequantised)


def tiled(n: Net, x: str, *values: int) -> str:
    """Repeat a constant of these sizes for every sample, as often as its shape is computed."""
    return n.op("Tile", n.weight(1, *values), computed_shape(n, x, *(4 // k for k in values)))


layer("Tile", "computed, constant", both("Mul", same, lambda n, x: tiled(n, x, 4, 1, 1)))
layer("Tile", "computed, repeated", both("Mul", same, lambda n, x: tiled(n, x, 1, 4, 1)))
_samples_too = chain(conv(4, 2), lambda n, x: n.op("Tile", x, computed_shape(n, x, 2, 1, 1)))
layer("Tile", "computed, channels", _samples_too)
tokens("Tile", "constant, turned", both("Add", same, chain(
    lambda n, _: n.op("Tile", n.weight(1, 4, 2), n.const([1, 1, 2])), swap)))  # fmt: skip
