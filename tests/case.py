"""What cases are made of: a body between layers that prune, and bodies that many share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from onnx import ModelProto, TensorProto
from strategies import BATCH, Body, Dim, Net, apply, chain, computed_shape


@dataclass(frozen=True)
class Case:
    """A model for a rule, and whether some of its channels must be prunable."""

    name: str
    build: Callable[[], ModelProto]
    prunable: bool = True


CASES: dict[str, list[Case]] = {}


def layer(
    op_type: str, variant: str, body: Body, *, opset: int = 17, c: int = 4, out: int = 4,
    size: tuple[Dim, ...] = (4, 4), prunable: bool = True, kind: str = "maps",
    batch: Dim = BATCH,
) -> None:  # fmt: skip
    """Register a case: ``body`` takes ``c`` channels from a layer and gives ``out`` to one."""

    def build() -> ModelProto:
        n = Net(opset)
        if kind == "tokens":
            y = body(n, n.dense(n.input(batch, *size, 3), 3, c))
            return n.model(n.dense(y, out, 2), rank=3)
        y = body(n, n.conv(n.input(batch, 2, *size), 2, c, dims=len(size)))
        if kind == "rows":
            return n.model(n.gemm(y, out, 2), rank=2)
        return n.model(n.conv(y, out, 3, dims=len(size)), rank=2 + len(size))

    CASES.setdefault(op_type, []).append(Case(f"{op_type}-{variant}", build, prunable))


tokens = partial(layer, kind="tokens", size=(4,))
rows = partial(layer, kind="rows", size=(2, 2))


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


def conv(c: int, out: int, kernel: int = 3, **how: Any) -> Body:
    """A convolution."""
    return lambda n, x: n.conv(x, c, out, kernel, **how)


def left(op_type: str, rows: int, c: int, **attributes: Any) -> Body:
    """A product with the weight on the left."""
    return lambda n, x: n.op(op_type, n.weight(rows, c), x, **attributes)


def dense(*widths: int) -> Body:
    """Matrix products."""
    return chain(*(partial(Net.dense, c=c, out=out) for c, out in pairwise(widths)))


def sized(op_type: str, *operands: str, shape: tuple[int, ...]) -> Body:
    """Give a shape made of a computed batch and constants."""
    return lambda n, x: n.op(op_type, x, *operands, computed_shape(n, x, *shape))


swap, flat, same = apply("Transpose", perm=[0, 2, 1]), apply("Flatten"), apply("Identity")
total, pooled = apply("ReduceSum", [0]), apply("GlobalMaxPool")
