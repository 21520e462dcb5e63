"""Attention as one operator: heads and their width are factors of an axis, or axes."""

from __future__ import annotations

import numpy as np

from onnxprune.arrays import I64
from onnxprune.structure.op import Op
from onnxprune.structure.rules.registry import rule

DOMAIN = "com.microsoft::"

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
    _mask(op, MASK, q, heads)


def _heads(op: Op, i: int, heads: int, *, summed: bool) -> Factors:
    """Return the labels of the heads of an input and of the places in them."""
    take = op.sink if summed else op.take
    if len(op.shape(i)) == 4:
        return op.take(i, 1), take(i, 3)
    head, place = op.factor(take(i, 2), heads, op.shape(i)[2] // heads)
    return head, place


def _mask(op: Op, i: int, heads: I64 | None, count: int) -> None:
    """Let a mask of each head shrink with the heads."""
    axis = len(op.shape(i)) - 3 if op.has(i) else -1
    if axis >= 0 and op.shape(i)[axis] == count > 1:
        if op.is_parameter(i):
            op.site(i, axis, heads)
        else:
            op.tie(heads, op.take(i, axis))


@rule(f"{DOMAIN}MultiHeadAttention")
def multi_head_attention(op: Op) -> None:
    """Attention of ``[N, L, heads x width]`` queries, keys and values, with an optional bias."""
    bias, mask, past = 3, 5, 6
    parts = (QUERY, KEY, VALUE)
    if any(not op.has(i) or len(op.shape(i)) != 3 for i in parts):
        return
    if any(op.has(i) for i in range(past, len(op.inputs))) or len(op.node.outputs) > 1:
        return
    heads = int(op.attribute("num_heads"))
    if op.has(bias):
        whole = [op.labelled(i).get(2) for i in parts]
        known = [labels for labels in whole if labels is not None]
        if op.is_parameter(bias) and len(known) == len(parts):
            op.site(bias, 0, np.concatenate(known))
        else:
            for labels in known:
                op.freeze(labels, "meets a bias that cannot shrink")
    q, width = _heads(op, QUERY, heads, summed=True)
    k, other = _heads(op, KEY, heads, summed=True)
    v, wide = _heads(op, VALUE, heads, summed=False)
    op.tie(width, other)
    if not op.attribute("scale", 0) or op.has(bias):
        op.freeze(width, "scales by the width of a head, or adds a bias to it")
    head = op.tie(op.tie(q, k), v)
    op.give(2, op.merge([head, wide], (heads, op.out_shape()[2] // heads)))
    if head is not None:
        op.sizes({0: head}, "num_heads")
    _mask(op, mask, head, heads)


@rule(f"{DOMAIN}GroupQueryAttention")
def group_query_attention(op: Op) -> None:
    """Attention in which several query heads share keys and values: whole heads leave.

    A head of the keys leaves with the queries that read it, or a query of every head of the keys.
    A cache that goes in or out has the heads of the keys. Queries, keys and values may be one
    tensor. The width of a head stays: the operator takes multiples of 8 only.
    """
    past, bias, sinks, scales, scores = (3, 4), 10, 11, (12, 13), 3
    heads, shared = int(op.attribute("num_heads")), int(op.attribute("kv_num_heads"))
    if any(op.has(i) for i in scales) or len(op.node.outputs) > scores:
        return
    width = op.out_shape()[2] // heads
    if op.has(KEY):
        parts = [op.take(i, 2) for i in (QUERY, KEY, VALUE)]
    else:
        whole, ends = op.take(QUERY, 2), [heads * width, (heads + shared) * width]
        parts = [None] * 3 if whole is None else list(np.split(whole, ends))
    found = [op.factor(p, n, width) for p, n in zip(parts, (heads, shared, shared), strict=True)]
    for _, place in found:
        op.freeze(place, "needs heads whose width is a multiple of 8")
    q, k, v = (head for head, _ in found)
    key_head, _ = op.factor(q, shared, heads // shared)
    op.tie(op.tie(k, v), key_head)
    for i in past:
        if op.has(i):
            op.tie(key_head, op.take(i, 1))
    for o in (1, 2):
        op.give(1, key_head, o)
    op.give(2, op.merge([q, None], (heads, width)))
    for name, labels in (("num_heads", q), ("kv_num_heads", key_head)):
        if labels is not None:
            op.sizes({0: labels}, name)
    _mask(op, bias, q, heads)
    if op.has(sinks):
        op.site(sinks, 0, q)


@rule(f"{DOMAIN}Attention")
def packed_attention(op: Op) -> None:
    """Attention with one matrix for queries, keys and values: whole heads leave."""
    bias, past, attention_bias = 2, 4, 5
    widths = op.attribute("qkv_hidden_sizes", [op.shape(1)[1] // 3] * 3)
    if not op.is_constant(1) or not op.all_constant(bias) or len(set(widths)) > 1:
        return
    if op.has(past) or len(op.node.outputs) > 1:
        return
    heads = int(op.attribute("num_heads"))
    labels = op.sink(0, 2)
    head = op.fresh(heads) if heads > 1 else None
    merged = op.merge([head, None], (heads, widths[0] // heads))
    op.site(1, 0, labels)
    if head is not None and merged is not None:
        op.origin(2, merged)
        for i in (1, bias):
            op.site(i, -1, np.tile(merged, 3))
        op.sizes({0: head}, "num_heads")
        if "qkv_hidden_sizes" in op.node.attrs:
            op.sizes(dict.fromkeys(range(3), merged), "qkv_hidden_sizes")
    _mask(op, attention_bias, head, heads)
    rows, columns = (np.arange(n, dtype=np.int64) for n in op.shape(1))
    op.weight(
        1,
        data=(op.tensor(0), 2, labels),
        channel_of=rows.reshape(-1, 1),
        output_of=columns.reshape(1, -1),
    )


@rule("RotaryEmbedding", f"{DOMAIN}RotaryEmbedding")
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
