"""Attention as one operator: heads and their width are factors of an axis, or axes."""

from __future__ import annotations

from onnxprune.labels import I64
from onnxprune.op import Op
from onnxprune.rules.registry import rule

Factors = tuple[I64 | None, I64 | None]

QUERY, KEY, VALUE, MASK = range(4)


@rule("Attention")
def attention(op: Op) -> None:
    """Queries ``[N, heads, L, width]`` or ``[N, L, heads x width]``; keys and values likewise.

    Several query heads may share one of the keys and values: they are (key head, place) pairs.
    The width of the scores shrinks only where their scale is given, since it is the default.
    """
    if any(op.has(i) for i in range(MASK + 1, len(op.inputs))) or len(op.node.outputs) > 1:
        return  # a cache would have to shrink as well
    split = len(op.shape(0)) == 4
    names = ("q_num_heads", "kv_num_heads")
    heads, shared = (op.shape(i)[1] if split else int(op.attribute(names[i])) for i in (0, 1))
    q, width = _heads(op, QUERY, heads, summed=True)
    k, other = _heads(op, KEY, shared, summed=True)
    v, wide = _heads(op, VALUE, shared, summed=False)
    op.tie(width, other)
    if "scale" not in op.node.attrs:
        op.freeze(width, "scales by the width of a head, which it takes from the shape")
    op.tie(k, v)
    key_head, _ = op.factor(q, shared, heads // shared)
    op.tie(key_head, k)
    if split:
        op.give(1, q)
        op.give(3, wide)
    else:
        op.give(2, op.merge([q, wide], (heads, op.out_shape()[2] // heads)))
        for name, labels in zip(names, (q, key_head), strict=True):
            if labels is not None:
                op.sizes({0: labels}, name)
    _mask(op, q, heads)


def _heads(op: Op, i: int, heads: int, *, summed: bool) -> Factors:
    """Return the labels of the heads of an input and of the places in them."""
    take = op.sink if summed else op.take
    if len(op.shape(i)) == 4:
        return op.take(i, 1), take(i, 3)
    head, place = op.factor(take(i, 2), heads, op.shape(i)[2] // heads)
    return head, place


def _mask(op: Op, heads: I64 | None, count: int) -> None:
    """Let a mask of each head shrink with the heads."""
    axis = len(op.shape(MASK)) - 3 if op.has(MASK) else -1
    if axis >= 0 and op.shape(MASK)[axis] == count > 1:
        if op.is_parameter(MASK):
            op.site(MASK, axis, heads)
        else:
            op.tie(heads, op.take(MASK, axis))


@rule("RotaryEmbedding", "com.microsoft::RotaryEmbedding")
def rotary_embedding(op: Op) -> None:
    """Places inside a head are turned in pairs: whole heads leave."""
    heads = int(op.attribute("num_heads", 0))
    if len(op.shape(0)) == 4:
        head = op.take(0, 1)
        op.give(1, head)
    elif heads:
        labels = op.take(0, 2)
        head, place = op.factor(labels, heads, op.shape(0)[2] // heads)
        op.freeze(place, "is turned together with another place")
        op.give(2, labels)
    else:
        return
    if heads and head is not None:
        op.sizes({0: head}, "num_heads")
