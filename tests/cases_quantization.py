"""Cases of quantised activations and weights, for a tensor or for each channel."""

from __future__ import annotations

from typing import Any

import numpy as np
from case import layer, rows, tokens
from onnx import TensorProto, helper
from strategies import Body, Net, apply, both, chain


def scales(n: Net, count: int, small: float) -> str:
    """One scale, or one for each of ``count`` channels."""
    return n.const(n.positive(*[count] * (count > 0)) * small)


def points(n: Net, count: int, dtype: str) -> str:
    """One zero point, or one for each channel, far from each other."""
    low, high = (90, 160) if dtype == "uint8" else (-20, 20)
    return n.const(n.rng.integers(low, high, size=[count] * (count > 0)), dtype)


def there_and_back(count: int = 0, dtype: str = "uint8", *, zero: bool = True, **how: Any) -> Body:
    """Quantise activations and dequantise them."""

    def body(n: Net, x: str) -> str:
        operands = [scales(n, count, 0.02), *([points(n, count, dtype)] if zero else [])]
        whole = n.op("QuantizeLinear", x, *operands, **how)
        return n.op("DequantizeLinear", whole, *operands, **how)

    return body


def integers(
    n: Net, *shape: int, axis: int | None = None, zero: bool = False, dtype: str = "int8"
) -> str:
    """Weights held as integers."""
    signs = n.rng.choice([-1, 1], size=shape)
    values = n.const(signs * n.rng.integers(40, 120, size=shape), dtype)
    count = 0 if axis is None else shape[axis]
    operands = [values, scales(n, count, 0.01 / np.sqrt(shape[-1]))]
    operands += [points(n, count, dtype)] if zero else []
    how = {} if axis is None else {"axis": axis}
    return n.op("DequantizeLinear", *operands, **how)


def quantised_conv(
    c: int, out: int, *, group: int = 1, axis: int | None = 0, zero: bool = False,
    bias: bool = True, op_type: str = "Conv",
) -> Body:  # fmt: skip
    """A convolution with quantised weights, and perhaps a quantised bias."""

    def body(n: Net, x: str) -> str:
        shape = (out, c // group) if op_type == "Conv" else (c, out // group)
        operands = [x, integers(n, *shape, 1, 1, axis=axis, zero=zero)]
        operands += [integers(n, out, axis=0, dtype="int32")] if bias else []
        return n.op(op_type, *operands, group=group)

    return body


def matrix(op_type: str, c: int, out: int, axis: int | None, **how: Any) -> Body:
    """A product with a quantised matrix."""

    def body(n: Net, x: str) -> str:
        shape = (out, c) if how.get("transB") else (c, out)
        x = n.op("Flatten", x) if op_type == "Gemm" else x
        return n.op(op_type, x, integers(n, *shape, axis=axis, zero=True), **how)

    return body


def scaled(n: Net, x: str) -> str:
    """A quantised factor for each channel."""
    return n.op("Mul", x, integers(n, 4, 1, 1, axis=0, zero=True))


def shared(n: Net, x: str) -> str:
    """Two convolutions with the same quantised weights."""
    weight = integers(n, 4, 4, 1, 1, axis=0)
    return n.op("Conv", n.op("Relu", n.op("Conv", x, weight)), weight)


def stored(kind: int) -> Body:
    """A convolution and a depthwise one whose parameters are stored in a shorter type."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)

    def held(n: Net, *shape: int) -> str:
        values = n.rng.choice([-1.0, 1.0], size=shape) * n.positive(*shape)
        return n.op("Cast", n.const(values, dtype), to=TensorProto.FLOAT)

    def body(n: Net, x: str) -> str:
        y = n.op("Conv", x, held(n, 4, 4, 1, 1), held(n, 4))
        return n.op("Conv", n.op("Mul", y, held(n, 4, 1, 1)), held(n, 4, 1, 1, 1), group=4)

    return body


def stored_matrix(n: Net, x: str) -> str:
    """A matrix in half precision, and one that two layers share."""
    weight = n.op("Cast", n.const(n.positive(4, 4) - 1, np.float16), to=TensorProto.FLOAT)
    return n.op("MatMul", n.op("Tanh", n.op("MatMul", x, weight)), weight)


for _op in ("QuantizeLinear", "DequantizeLinear"):
    layer(_op, "one scale", there_and_back())
    layer(_op, "no zero point", there_and_back(zero=False))
    layer(_op, "each channel", there_and_back(4, axis=1))
    layer(_op, "default axis", there_and_back(4, "int8"))
    layer(_op, "map axis", there_and_back(4, axis=-1))
    tokens(_op, "last axis", there_and_back(4, axis=-1))
_dequantised = {
    "weights": quantised_conv(4, 5),
    "weights, no bias": quantised_conv(4, 5, bias=False),
    "weights, zero points": quantised_conv(4, 5, zero=True),
    "weights, one scale": quantised_conv(4, 5, axis=None),
    "weights, input axis": quantised_conv(4, 5, axis=1, zero=True),
    "everything": chain(there_and_back(), quantised_conv(4, 5), there_and_back(dtype="int8")),
    "residual": both("Add", quantised_conv(4, 5), quantised_conv(4, 5)),
    "transposed": quantised_conv(4, 5, axis=1, op_type="ConvTranspose"),
}
for _name, _body in _dequantised.items():
    layer("DequantizeLinear", _name, _body, out=5)
layer("DequantizeLinear", "grouped", quantised_conv(6, 9, group=3, zero=True), c=6, out=9)
layer("DequantizeLinear", "depthwise", quantised_conv(4, 4, group=4))
layer("DequantizeLinear", "factor", scaled)
layer("DequantizeLinear", "shared weights", shared)
rows("DequantizeLinear", "Gemm", matrix("Gemm", 16, 5, 1), out=5)
rows("DequantizeLinear", "Gemm, transposed", matrix("Gemm", 16, 5, 0, transB=1), out=5)
tokens("DequantizeLinear", "MatMul", matrix("MatMul", 4, 5, 1), out=5)
tokens("DequantizeLinear", "MatMul, one scale", matrix("MatMul", 4, 5, None), out=5)
tokens("DequantizeLinear", "MatMul, input axis", matrix("MatMul", 4, 5, 0), out=5)
layer("Cast", "weights in half precision", stored(TensorProto.FLOAT16))
layer("Cast", "weights in bfloat16", stored(TensorProto.BFLOAT16))
tokens("Cast", "shared matrix", stored_matrix)


# -- blocks ----------------------------------------------------------------------------------


def blocks(
    n: Net, *shape: int, axis: int, block: int, dtype: str = "int8", zero: bool = False
) -> str:
    """Weights held as integers, of which so many neighbours along an axis share a scale."""
    kind = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, dtype.upper()))
    small = dtype in ("int4", "uint4", "uint2")
    low, high = (0, 4 if dtype == "uint2" else 16) if dtype[0] == "u" else (-8, 8)
    low, high = (low, high) if small else (40, 120)
    values = n.const(n.rng.integers(low, high, size=shape).astype(kind), kind)
    counts = [-(-size // block) if k == axis else size for k, size in enumerate(shape)]
    operands = [values, n.const(n.positive(*counts) * (0.1 if small else 0.01))]
    if zero:
        operands.append(n.const(n.rng.integers(low, high, size=counts).astype(kind), kind))
    return n.op("DequantizeLinear", *operands, axis=axis, block_size=block)


def blocked(axis: int, block: int, rows: int = 8, out: int = 5, **how: Any) -> Body:
    """A product with a matrix quantised in blocks."""
    return lambda n, x: n.op("MatMul", x, blocks(n, rows, out, axis=axis, block=block, **how))


def blocked_conv(n: Net, x: str) -> str:
    """A convolution whose weights are quantised in blocks of input channels."""
    return n.op("Conv", x, blocks(n, 5, 8, 1, 1, axis=1, block=4, zero=True))


_blocks = {
    "blocks of inputs": blocked(0, 2),
    "blocks of inputs, the last smaller": blocked(0, 3),
    "blocks of outputs": blocked(1, 2),
    "blocks, zero points": blocked(0, 2, dtype="uint8", zero=True),
    "blocks of 4 bits": blocked(0, 2, dtype="int4"),
    "blocks of 4 bits, zero points": blocked(0, 4, dtype="uint4", zero=True),
    "two layers in blocks": chain(blocked(0, 2, out=6), apply("Relu"), blocked(0, 3, rows=6)),
}
for _name, _body in _blocks.items():
    tokens("DequantizeLinear", _name, _body, c=8, out=5, opset=21)
tokens("DequantizeLinear", "one block", blocked(0, 8), c=8, out=5, opset=21)
tokens("DequantizeLinear", "blocks of 2 bits", blocked(0, 2, dtype="uint2"), c=8, out=5, opset=25)
layer("DequantizeLinear", "convolution in blocks", blocked_conv, c=8, out=5, opset=21)

# -- the same operators under another name ----------------------------------------------------

DOMAIN = "com.microsoft"


def fused_domain(count: int, dtype: str, **how: Any) -> Body:
    """Quantise and dequantise with the operators that take types which the standard ones lacked."""
    return there_and_back(count, dtype, domain=DOMAIN, **how)


for _op in ("QuantizeLinear", "DequantizeLinear"):
    layer(f"{DOMAIN}::{_op}", "16 bits", fused_domain(0, "uint16"))
    layer(f"{DOMAIN}::{_op}", "each channel", fused_domain(4, "int8", axis=1))
