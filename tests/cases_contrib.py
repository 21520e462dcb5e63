"""Cases of the fused operators that onnxruntime's optimisers write."""

from __future__ import annotations

from typing import Any

from case import conv, dense, flat, layer, rows, same, swap, tokens
from onnx import TensorProto
from strategies import Body, Net, apply, both, chain

DOMAIN = "com.microsoft"


def fused(op_type: str, *shapes: tuple[int, ...], **attributes: Any) -> Body:
    """A fused operator with weights of these shapes."""
    return lambda n, x: n.op(op_type, x, *(n.weight(*s) for s in shapes), domain=DOMAIN,
                             **attributes)  # fmt: skip


def case(make: Any, op_type: str, variant: str, body: Body, **how: Any) -> None:
    """Register a case for an operator of the domain."""
    make(f"{DOMAIN}::{op_type}", variant, body, **how)


# -- activations -----------------------------------------------------------------------------

for _op in ("Gelu", "QuickGelu", "BiasGelu", "FastGelu"):
    if _op != "BiasGelu":
        case(layer, _op, "map", fused(_op))
    if _op in ("BiasGelu", "FastGelu"):
        case(tokens, _op, "bias", fused(_op, (4,)))
case(tokens, "QuickGelu", "alpha", fused("QuickGelu", alpha=0.7))

# -- convolutions ----------------------------------------------------------------------------


def fused_conv(
    c: int, out: int, *, group: int = 1, bias: bool = True, addend: Body | None = None,
    activation: str = "Relu", **attributes: Any,
) -> Body:  # fmt: skip
    """A convolution with an activation, and perhaps an addend."""

    def body(n: Net, x: str) -> str:
        operands = [x, n.weight(out, c // group, 3, 3), n.weight(out) if bias else ""]
        operands += [addend(n, x)] if addend else []
        operands = operands if operands[-1] else operands[:-1]
        return n.op(
            "FusedConv", *operands, domain=DOMAIN, group=group, activation=activation,
            pads=[1, 1, 1, 1], kernel_shape=[3, 3], **attributes,
        )  # fmt: skip

    return body


case(layer, "FusedConv", "plain", fused_conv(4, 5), out=5)
case(layer, "FusedConv", "no bias", fused_conv(4, 4, bias=False))
case(layer, "FusedConv", "grouped", fused_conv(6, 9, group=3), c=6, out=9)
case(layer, "FusedConv", "depthwise", fused_conv(4, 4, group=4))
case(layer, "FusedConv", "residual", fused_conv(4, 4, addend=same))
case(layer, "FusedConv", "addend", fused_conv(4, 5, addend=conv(4, 5)), out=5)
_addend = fused_conv(4, 6, group=2, bias=False, addend=conv(4, 6))
case(layer, "FusedConv", "grouped, addend", _addend, out=6)
_constant = fused_conv(4, 5, addend=lambda n, _: n.weight(2, 5, 4, 4))
case(layer, "FusedConv", "constant addend", _constant, out=5, batch=2)
_leaky = fused_conv(4, 4, activation="LeakyRelu", activation_params=[0.2])
case(layer, "FusedConv", "leaky", _leaky)

# -- matrices --------------------------------------------------------------------------------

_relu = {"activation": "Relu"}
case(rows, "FusedGemm", "plain", chain(flat, fused("FusedGemm", (16, 4), (4,), **_relu)))
case(rows, "FusedGemm", "no bias", chain(flat, fused("FusedGemm", (16, 4), **_relu)))
_leaky = {"activation": "LeakyRelu", "activation_alpha": 0.2, "alpha": 0.5, "beta": 2.0}
case(rows, "FusedGemm", "leaky", chain(flat, fused("FusedGemm", (16, 4), (1, 4), **_leaky)))
_turned = chain(flat, apply("Transpose"), fused("FusedGemm", (16, 4), (4,), transA=1, **_relu))
case(rows, "FusedGemm", "transposed A", _turned)
_square = chain(flat, fused("FusedGemm", (16, 16), (16,), transB=1, **_relu))
case(rows, "FusedGemm", "transposed B", chain(flat, fused("FusedGemm", (5, 16), (5,), transB=1,
                                                         **_relu)), out=5)  # fmt: skip
case(rows, "FusedGemm", "square, transposed B", _square, out=16)


def meeting(a: int, b: int) -> Body:
    """A product of two activations, each stored transposed or not."""
    parts = [chain(dense(4, 6), swap) if t else dense(4, 6) for t in (a, 1 - b)]
    return both("FusedMatMul", *parts, transA=a, transB=b, alpha=0.5, domain=DOMAIN)


def front(a: int, b: int) -> Body:
    """A product with the weight on the left."""

    def body(n: Net, x: str) -> str:
        weight = n.weight(4, 5) if a else n.weight(5, 4)
        x = swap(n, x) if b else x
        return n.op("FusedMatMul", weight, x, transA=a, transB=b, domain=DOMAIN)

    return body


def heads(n: Net, x: str) -> str:
    """Scores of two heads: the transposition is part of the product."""
    packed = [n.op("Reshape", n.dense(x, 4, 6), n.const([0, 4, 2, 3])) for _ in range(3)]
    q, k, v = (n.op("Transpose", t, perm=[0, 2, 1, 3]) for t in packed)
    scores = n.op("Softmax", n.op("FusedMatMul", q, k, transB=1, alpha=0.5, domain=DOMAIN))
    mixed = n.op("FusedMatMul", scores, v, domain=DOMAIN)
    return n.op("Reshape", n.op("Transpose", mixed, perm=[0, 2, 1, 3]), n.const([0, 0, 6]))


for _a in (0, 1):
    for _b in (0, 1):
        _weight = fused("FusedMatMul", (5, 4) if _b else (4, 5), transA=_a, transB=_b)
        _how = f"{'A' if _a else ''}{'B' if _b else ''}" or "nothing"
        case(tokens, "FusedMatMul", f"weight, {_how} transposed",
             chain(swap, _weight) if _a else _weight, out=5)  # fmt: skip
        case(tokens, "FusedMatMul", f"two activations, {_how} transposed", meeting(_a, _b))
        case(tokens, "FusedMatMul", f"left weight, {_how} transposed", front(_a, _b))
case(tokens, "FusedMatMul", "square weight", fused("FusedMatMul", (4, 4), transB=1))
case(tokens, "FusedMatMul", "heads", heads, out=6)
_weight = fused("FusedMatMul", (3, 5, 4), transB=1)
_stack = chain(apply("Unsqueeze", [1]), _weight, apply("ReduceSum", [1], keepdims=0))
case(tokens, "FusedMatMul", "stack of weights", _stack, out=5)
case(tokens, "TransposeMatMul", "weight", fused("TransposeMatMul", (5, 4), transB=1), out=5)
_batches = both("FusedMatMul", dense(4, 6), dense(4, 6), transBatchA=1, transA=1, domain=DOMAIN)
_batches = chain(apply("Reshape", [0, 2, 2, 4]), _batches, apply("Reshape", [4, -1, 4]))

# -- normalisations --------------------------------------------------------------------------


def skip(op_type: str, *, turn: bool, widths: int, total: bool = False) -> Body:
    """A residual addition with a normalisation, over channels or over tokens."""

    def body(n: Net, x: str) -> str:
        operands = [x, n.dense(x, 4, 4)]
        if turn:
            operands = [swap(n, t) for t in operands]
        operands += [n.weight(4) for _ in range(widths)]
        made = n.ops(op_type, 4 if total else 1, *operands, domain=DOMAIN)
        if total:
            n.nodes[-1].output[1:3] = ["", ""]
        y = n.op("Add", made[0], made[3]) if total else made[0]
        return swap(n, y) if turn else y

    return body


for _op, _least in (("SkipLayerNormalization", 1), ("SkipSimplifiedLayerNormalization", 1)):
    _most = 3 if _op == "SkipLayerNormalization" else 2
    case(tokens, _op, "channels", skip(_op, turn=False, widths=_most), prunable=False)
    for _widths in range(_least, _most + 1):
        case(tokens, _op, f"tokens, {_widths}", skip(_op, turn=True, widths=_widths))
    case(tokens, _op, "sum", skip(_op, turn=True, widths=_most, total=True))


def embedded(segments: bool = False, total: bool = False) -> Body:
    """Tokens beside those of a normalised embedding, or of what it normalises."""

    def body(n: Net, x: str) -> str:
        ids = n.op("Cast", n.op("ArgMax", "x0", axis=1, keepdims=0), to=TensorProto.INT32)
        tables = [n.weight(7, 4), n.weight(5, 4), n.weight(4, 4) if segments else ""]
        operands = [ids, ids if segments else "", *tables, n.weight(4), n.weight(4)]
        made = n.ops("EmbedLayerNormalization", 3 if total else 2, *operands, domain=DOMAIN)
        y = n.op("Add", made[0], made[2]) if total else made[0]
        return n.op("Concat", x, n.op("Tanh", y), axis=1)

    return body


case(tokens, "EmbedLayerNormalization", "two tables", embedded(), prunable=False)
case(tokens, "EmbedLayerNormalization", "three tables", embedded(segments=True), prunable=False)
case(tokens, "EmbedLayerNormalization", "sum", embedded(True, True), prunable=False)
case(layer, "Trilu", "maps", fused("Trilu", upper=0))
