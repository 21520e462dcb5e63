"""Cases of attention as one operator, and of rotary positions."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from case import layer, tokens
from strategies import Body, Net, chain

LENGTH, WIDTH, WIDE = 4, 6, 2


def split(n: Net, x: str, heads: int, width: int) -> str:
    """Rows ``[N, L, heads x width]`` to ``[N, heads, L, width]``."""
    y = n.op("Reshape", n.dense(x, 4, heads * width), n.const([0, 0, heads, width]))
    return n.op("Transpose", y, perm=[0, 2, 1, 3])


def joined(n: Net, y: str, size: int) -> str:
    """The way back."""
    return n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3]), n.const([0, 0, size]))


def mask(n: Net, kind: str, heads: int) -> list[str]:
    """What is added to the scores."""
    if kind == "heads":
        return [n.weight(heads, LENGTH, LENGTH)]
    if kind == "computed":
        scores = n.op("Transpose", n.dense("x0", 3, heads), perm=[0, 2, 1])
        return [n.op("Add", *(n.op("Unsqueeze", scores, n.const([k])) for k in (2, 3)))]
    return [n.weight(LENGTH, LENGTH)] if kind == "all" else []


def attention(heads: int, shared: int, *, rank: int, kind: str = "", **how: Any) -> Body:
    """Attention over heads that are an axis (rank 4) or a factor of one (rank 3)."""

    def body(n: Net, x: str) -> str:
        counts, widths = (heads, shared, shared), (WIDTH, WIDTH, WIDE)
        if rank == 4:
            parts = [split(n, x, c, w) for c, w in zip(counts, widths, strict=True)]
            y = n.op("Attention", *parts, *mask(n, kind, heads), **how)
            return joined(n, y, heads * WIDE)
        parts = [n.dense(x, 4, c * w) for c, w in zip(counts, widths, strict=True)]
        numbers = {"q_num_heads": heads, "kv_num_heads": shared}
        return n.op("Attention", *parts, *mask(n, kind, heads), **numbers, **how)

    return body


def cached(n: Net, x: str) -> str:
    """Attention that returns keys and values for later."""
    parts = [split(n, x, 2, WIDTH) for _ in range(3)]
    y, *kept = n.ops("Attention", 3, *parts)
    for one in kept:
        y = n.op("Add", y, one)
    return joined(n, y, 2 * WIDTH)


for _rank in (3, 4):
    for _heads, _shared in ((3, 3), (4, 2), (3, 1), (1, 1)):
        _body = attention(_heads, _shared, rank=_rank, scale=0.3)
        tokens("Attention", f"{_heads} over {_shared}, rank {_rank}", _body, opset=23,
               out=_heads * WIDE)  # fmt: skip
    _body = attention(2, 2, rank=_rank, is_causal=1)
    tokens("Attention", f"default scale, rank {_rank}", _body, opset=23, out=2 * WIDE)
    for _kind in ("heads", "computed", "all"):
        _body = attention(4, 2, rank=_rank, kind=_kind, scale=0.3)
        tokens("Attention", f"mask of {_kind}, rank {_rank}", _body, opset=23, out=4 * WIDE)
tokens("Attention", "cached", cached, opset=23, out=2 * WIDTH)


MICROSOFT = "com.microsoft"


def multi_head(*, bias: bool = False, kind: str = "", **how: Any) -> Body:
    """Three heads of onnxruntime's operator."""

    def body(n: Net, x: str) -> str:
        parts = [n.dense(x, 4, 3 * w) for w in (WIDTH, WIDTH, WIDE)]
        parts += [n.weight(3 * (2 * WIDTH + WIDE)) if bias else "", "", *mask(n, kind, 3)]
        while not parts[-1]:
            parts.pop()
        return n.op("MultiHeadAttention", *parts, num_heads=3, domain=MICROSOFT, **how)

    return body


def packed(heads: int, kind: str = "", **how: Any) -> Body:
    """One matrix for queries, keys and values (onnxruntime 1.31 crashes without a bias)."""

    def body(n: Net, x: str) -> str:
        size = 3 * heads * WIDTH
        parts = [x, n.weight(4, size), n.weight(size), "", "", *mask(n, kind, heads)]
        while not parts[-1]:
            parts.pop()
        return n.op("Attention", *parts, num_heads=heads, domain=MICROSOFT, **how)

    return body


for _name, _how in {
    "plain": {}, "scaled": {"scale": 0.3}, "bias": {"bias": True, "scale": 0.3},
    "mask of computed": {"kind": "computed", "scale": 0.3},
}.items():  # fmt: skip
    tokens("com.microsoft::MultiHeadAttention", _name, multi_head(**_how), out=3 * WIDE)
for _heads, _name, _how in (
    (3, "three heads", {}), (1, "one head", {}),
    (3, "sizes", {"qkv_hidden_sizes": [3 * WIDTH] * 3}), (3, "causal", {"unidirectional": 1}),
    (3, "mask", {"kind": "computed"}),
):  # fmt: skip
    tokens("com.microsoft::Attention", _name, packed(_heads, **_how), out=_heads * WIDTH)


CACHED = ("cache", "computed cache", "present")


def grouped(heads: int, shared: int, kind: str = "", **how: Any) -> Body:
    """Heads of the narrowest width that there is, and what may go beside them."""
    width = 16 if kind == "rotary" else 8

    def parts(n: Net, x: str) -> list[str]:
        if kind == "packed":
            return [n.dense(x, 4, (heads + 2 * shared) * width), "", ""]
        three = [n.dense(x, 4, count * width) for count in (heads, shared, shared)]
        return [n.op("Concat", *three, axis=2), "", ""] if kind == "joined" else three

    def cache(n: Net, x: str) -> list[str]:
        if kind == "cache":
            return [n.const(n.rng.normal(size=(1, shared, LENGTH, width))) for _ in range(2)]
        return [split(n, x, shared, width) for _ in range(2)] if "cache" in kind else ["", ""]

    def beside(n: Net) -> list[str]:
        angles = np.outer(np.arange(8), 0.5 ** np.arange(width // 2))
        return {
            "rotary": [n.const(np.cos(angles)), n.const(np.sin(angles))],
            "bias": ["", "", "", n.weight(1, heads, LENGTH, LENGTH)],
            "sinks": ["", "", "", "", n.weight(heads)],
        }.get(kind, [])

    def body(n: Net, x: str) -> str:
        seen, batch = (2 * LENGTH, 1) if "cache" in kind else (LENGTH, 2)
        lengths = [n.const([seen - 1] * batch, np.int32), n.const(seen, np.int32)]
        operands = [*parts(n, x), *cache(n, x), *lengths, *beside(n)]
        numbers = {"num_heads": heads, "kv_num_heads": shared, "domain": MICROSOFT, **how}
        if kind not in CACHED:
            return n.op("GroupQueryAttention", *operands, **numbers)
        y, *kept = n.ops("GroupQueryAttention", 3, *operands, **numbers)
        kept = [n.op("ReduceSum", t, n.const([2, 3]), keepdims=0) for t in kept]
        return n.op("Concat", y, n.op("Expand", n.op("Unsqueeze", n.op("Add", *kept), n.const([1])),
                                      n.const([1, LENGTH, 1])), axis=2)  # fmt: skip

    return body


for _heads, _shared, _kind, _how in (
    (3, 3, "", {}), (6, 3, "", {}), (6, 2, "packed", {}), (4, 2, "joined", {"scale": 0.3}),
    (3, 1, "", {}), (1, 1, "", {}), (4, 2, "rotary", {"do_rotary": 1}), (4, 2, "bias", {}),
    (4, 2, "sinks", {}), (4, 2, "cache", {}), (4, 2, "computed cache", {}), (3, 3, "present", {}),
):  # fmt: skip
    _name = f"{_heads} over {_shared}" + _kind.join((", " * bool(_kind), ""))
    tokens("com.microsoft::GroupQueryAttention", _name, grouped(_heads, _shared, _kind, **_how),
           out=_heads * (16 if _kind == "rotary" else 8) + _shared * (_kind in CACHED),
           batch=1 if "cache" in _kind else 2)  # fmt: skip


def rotary(rank: int, domain: str = "", **how: Any) -> Body:
    """Turn places in heads by angles of their positions."""

    def body(n: Net, x: str) -> str:
        angles = np.outer(np.arange(LENGTH), [1.0, 0.3, 0.1])
        tables = [n.const(np.cos(angles)), n.const(np.sin(angles))]
        place = n.const(np.tile(np.arange(LENGTH), (2, 1)))
        tables = [place, *tables] if domain else [*tables, place]
        if rank == 4:
            return joined(n, n.op("RotaryEmbedding", split(n, x, 3, WIDTH), *tables,
                                  domain=domain, **how), 3 * WIDTH)  # fmt: skip
        y = n.dense(x, 4, 3 * WIDTH)
        return n.op("RotaryEmbedding", y, *tables, domain=domain, num_heads=3, **how)

    return body


for _domain in ("", "com.microsoft"):
    _name = f"{_domain}::RotaryEmbedding".removeprefix("::")
    _how = {"opset": 17 if _domain else 23, "out": 3 * WIDTH, "batch": 2}
    for _rank in (3, 4):
        tokens(_name, f"rank {_rank}", rotary(_rank, _domain), **_how)
    tokens(_name, "interleaved", rotary(3, _domain, interleaved=1), **_how)
tokens("com.microsoft::RotaryEmbedding", "rank 4, counted", rotary(4, "com.microsoft", num_heads=3),
       out=3 * WIDTH, batch=2)  # fmt: skip

# -- maps at computed places -----------------------------------------------------------------


def places(n: Net, *shape: int) -> str:
    """Positions between -1 and 1 that depend on the data."""
    scale = n.op("Tanh", n.op("ReduceMax", "x0", n.const([1, 2, 3]), keepdims=1))
    return n.op("Mul", n.const(n.rng.uniform(-0.9, 0.9, size=shape)), scale)


def grid(n: Net, x: str, domain: str = "") -> str:
    """Sample maps on a grid."""
    return n.op("GridSample", x, places(n, 2, 3, 3, 2), domain=domain)


def regions(op_type: str) -> Body:
    """Pool two regions of the maps."""

    def body(n: Net, x: str) -> str:
        boxes = np.asarray([[0.0, 0.0, 2.0, 3.0], [1.0, 0.0, 3.0, 3.0]])
        if op_type == "RoiAlign":
            return n.op(op_type, x, n.const(boxes), n.const([0, 1]), output_height=2,
                        output_width=2)  # fmt: skip
        boxes = np.concatenate([[[0.0], [1.0]], boxes], axis=1)
        return n.op(op_type, x, n.const(boxes), pooled_shape=[2, 2])

    return body


def deformable(c: int, out: int, group: int = 1, offsets: int = 1, *, bias: bool = True) -> Body:
    """A convolution at computed places."""

    def body(n: Net, x: str) -> str:
        offset = places(n, 2, 2 * offsets, 4, 4)
        operands = [x, n.weight(out, c // group, 1, 1), offset, *[n.weight(out)] * bias]
        return n.op("DeformConv", *operands, group=group, offset_group=offsets)

    return body


def columns(channels: int) -> Body:
    """Columns of a 2 x 2 kernel to maps of 4 x 4."""

    def body(n: Net, x: str) -> str:
        columns = n.op("Reshape", x, n.const([0, 4 * channels, 4]))
        how = {"strides": [2, 2]}
        return n.op("Col2Im", columns, n.const([4, 4]), n.const([2, 2]), **how)

    return body


layer("GridSample", "maps", grid, opset=18, batch=2)
layer("com.microsoft::GridSample", "maps", partial(grid, domain=MICROSOFT), batch=2,
      opset=18)  # fmt: skip
layer("CenterCropPad", "maps", lambda n, x: n.op("CenterCropPad", x, n.const([3, 5]), axes=[2, 3]),
      opset=18)  # fmt: skip
for _op in ("RoiAlign", "MaxRoiPool"):
    layer(_op, "two regions", regions(_op), batch=2)
layer("DeformConv", "plain", deformable(4, 5), opset=19, out=5, batch=2)
layer("DeformConv", "no bias", deformable(4, 5, bias=False), opset=19, out=5, batch=2)
layer("DeformConv", "grouped", deformable(6, 9, 3), opset=19, c=6, out=9, batch=2)
layer("DeformConv", "groups of offsets", deformable(4, 4, 1, 2), opset=19, batch=2, prunable=False)
layer("Col2Im", "maps", columns(3), c=12, out=3, size=(2, 2), opset=18)
layer("Col2Im", "behind groups", chain(lambda n, x: n.conv(x, 12, 12, group=2), columns(3)), c=12,
      out=3, size=(2, 2), opset=18)  # fmt: skip
layer("Col2Im", "one map", columns(1), c=4, out=1, size=(2, 2), opset=18, prunable=False)
