"""Random networks with what :mod:`strategies` leaves out.

Dynamic axes of all kinds, several outputs, a Gemm with one output, Split read at different
depths, sizes that depend on the data, and subgraphs that capture weights. No block needs to know
the size of an axis; every size works from 4 up.
"""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
from onnx import GraphProto, ModelProto, TensorProto, helper
from strategies import BATCH, BLOCKS, WIDTHS, Maps, Net, even, gated

FITTING = (
    "convolution depthwise grouped batch_norm activation residual dense_concat split_concat pool "
    "affine"
).split()
"""Blocks of :mod:`strategies` that do not read the size."""


# -- helpers that write shapes as exporters do ------------------------------------------------


def size_of(n: Net, x: str, axis: int) -> str:
    """The size of one axis, as a vector."""
    return n.op("Slice", n.op("Shape", x), n.const([axis]), n.const([axis + 1]), n.const([0]))


def reshaped(n: Net, x: str, *dims: int | str) -> str:
    """Reshape; names of tensors among the sizes are vectors that hold them."""
    parts = [d if isinstance(d, str) else n.const([d]) for d in dims]
    return n.op("Reshape", x, n.op("Concat", *parts, axis=0))


def subgraph(name: str, nodes: list[helper.NodeProto], *outputs: str) -> GraphProto:
    """A branch: it takes nothing, and captures what it reads."""
    made = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
    return helper.make_graph(nodes, name, [], made)


# -- maps ------------------------------------------------------------------------------------

Block = Callable[[st.DrawFn, Net, Maps], Maps]
MAPS: dict[str, Block] = {name: BLOCKS[name] for name in FITTING}


def block(function: Block) -> Block:
    """Register a block for maps ``[N, c, H, W]`` of any size."""
    MAPS[function.__name__] = function
    return function


block(gated)


@block
def shuffled(draw: st.DrawFn, n: Net, m: Maps) -> Maps:
    """Shuffle channels with sizes that are read off."""
    g = even(m.c)
    h, w = (size_of(n, m.tensor, k) for k in (2, 3))
    first = size_of(n, m.tensor, 0) if draw(st.booleans()) else -1
    x = reshaped(n, m.tensor, first, g, m.c // g, h, w)
    x = n.op("Transpose", x, perm=[0, 2, 1, 3, 4])
    return Maps(reshaped(n, x, first, m.c, h, w), m.c, 0)


@block
def split_at_depths(draw: st.DrawFn, n: Net, m: Maps) -> Maps:
    """One half of a Split is read at once, the other only after a convolution or two."""
    if m.c < 3:
        return m
    first = draw(st.integers(1, m.c - 2))
    sizes = [first, m.c - first]
    a, b = n.ops("Split", 2, m.tensor, n.const(sizes), axis=1)
    deep = n.op("Relu", n.conv(a, first, sizes[1], 3))
    if draw(st.booleans()):
        deep = n.conv(deep, sizes[1], sizes[1])
    mixed = n.op(draw(st.sampled_from(["Add", "Mul"])), deep, b)
    return Maps(n.op("Concat", b, mixed, a, axis=1), m.c + sizes[1], 0)


@block
def rows_in_batch(draw: st.DrawFn, n: Net, m: Maps) -> Maps:
    """Rows of the channels join the batch, meet a convolution there, and come back."""
    g = even(m.c)
    inner = draw(st.sampled_from([2, 3]))
    batch, h, w = (size_of(n, m.tensor, k) for k in (0, 2, 3))
    x = reshaped(n, m.tensor, -1, m.c // g, h, w)
    x = n.conv(n.op("Tanh", x), m.c // g, inner)
    return Maps(reshaped(n, x, batch, g * inner, h, w), g * inner, 0)


@block
def resized_to(draw: st.DrawFn, n: Net, m: Maps) -> Maps:
    """Halve the size and return to that of another tensor."""
    down = n.op("AveragePool", m.tensor, kernel_shape=[2, 2], strides=[2, 2])
    c = draw(WIDTHS)
    y = n.conv(down, m.c, c)
    target = n.op("Concat", size_of(n, y, 0), size_of(n, y, 1), size_of(n, m.tensor, 2),
                  size_of(n, m.tensor, 3), axis=0)  # fmt: skip
    up = n.op("Resize", y, "", "", target, mode="nearest")
    return Maps(n.op("Concat", up, m.tensor, axis=1), c + m.c, 0)


@block
def pixel_attention(draw: st.DrawFn, n: Net, m: Maps) -> Maps:
    """Attention of one head over all pixels."""
    width = draw(st.integers(2, 3))
    flat = n.op("Reshape", m.tensor, n.const([0, m.c, -1]))
    rows = n.op("Tanh", n.op("Transpose", flat, perm=[0, 2, 1]))
    q, k = (n.dense(rows, m.c, width) for _ in range(2))
    weights = n.op("Softmax", n.op("MatMul", q, n.op("Transpose", k, perm=[0, 2, 1])))
    mixed = n.op("Transpose", n.op("MatMul", weights, n.dense(rows, m.c, m.c)), perm=[0, 2, 1])
    h, w = (size_of(n, m.tensor, k) for k in (2, 3))
    back = reshaped(n, mixed, size_of(n, m.tensor, 0), m.c, h, w)
    return Maps(n.op("Add", back, m.tensor) if draw(st.booleans()) else back, m.c, 0)


@block
def either(draw: st.DrawFn, n: Net, m: Maps) -> Maps:
    """An If whose branches capture the tensor and a weight, the same one or two."""
    total = n.op("ReduceSum", m.tensor, keepdims=0)
    weights = [n.weight(m.c, m.c, 1, 1)]
    weights += weights if draw(st.booleans()) else [n.weight(m.c, m.c, 1, 1)]
    number = len(n.nodes)
    branches = {}
    for kind, weight in zip(("then", "else"), weights, strict=True):
        name = f"{kind}{number}"
        conv = helper.make_node("Conv", [m.tensor, weight], [f"{name}/y"], f"{name}/conv")
        last = helper.make_node(
            "Relu" if kind == "then" else "Neg", [f"{name}/y"], [f"{name}/z"], name
        )
        branches[f"{kind}_branch"] = subgraph(name, [conv, last], f"{name}/z")
    return Maps(n.op("If", n.op("Greater", total, n.const(0.0)), **branches), m.c, 0)


@block
def repeated(draw: st.DrawFn, n: Net, m: Maps) -> Maps:
    """A Loop that carries the tensor and captures a weight."""
    weight, name = n.weight(m.c, m.c, 1, 1), f"loop{len(n.nodes)}"
    at, go, x, y, z, on = (f"{name}/{k}" for k in ("at", "go", "x", "y", "z", "on"))
    nodes = [
        helper.make_node("Conv", [x, weight], [y], f"{name}/conv"),
        helper.make_node("Tanh", [y], [z], f"{name}/tanh"),
        helper.make_node("Identity", [go], [on], f"{name}/on"),
    ]
    info = helper.make_tensor_value_info
    inputs = [
        info(at, TensorProto.INT64, []),
        info(go, TensorProto.BOOL, []),
        info(x, TensorProto.FLOAT, None),
    ]
    outputs = [info(on, TensorProto.BOOL, []), info(z, TensorProto.FLOAT, None)]
    body = helper.make_graph(nodes, name, inputs, outputs)
    times = n.const(draw(st.integers(1, 2)))
    return Maps(n.op("Loop", times, n.const(True, bool), m.tensor, body=body), m.c, 0)


# -- heads -----------------------------------------------------------------------------------


def above_average(n: Net, rows: str, c: int) -> str:
    """Which rows have a score of at least the mean: at least one."""
    score = n.op("Reshape", n.dense(rows, c, 1), n.const([-1]))
    return n.op("GreaterOrEqual", score, n.op("ReduceMean", score, keepdims=1))


def chosen_pixels(draw: st.DrawFn, n: Net, m: Maps) -> str:
    """Outputs of those pixels that have a high score (as many as the data says)."""
    rows = n.op("Transpose", m.tensor, perm=[0, 2, 3, 1])
    rows = n.op("Reshape", rows, n.const([-1, m.c]))
    mask = above_average(n, rows, m.c)
    if draw(st.booleans()):
        rows = n.op("Compress", rows, mask, axis=0)
    else:
        index = n.op("Squeeze", n.op("NonZero", mask), n.const([0]))
        rows = n.op("Gather", rows, index, axis=0)
    c = draw(WIDTHS)
    return n.gemm(n.op("Relu", n.gemm(rows, m.c, c)), c, draw(st.sampled_from([1, 3])))


def scores(draw: st.DrawFn, n: Net, m: Maps) -> str:
    """Classes, or one number, of the mean over pixels."""
    x = n.op("Flatten", n.op("GlobalAveragePool", m.tensor))
    c, out = draw(WIDTHS), draw(st.sampled_from([1, 1, 3]))
    x = n.op("Relu", n.gemm(x, m.c, c))
    if draw(st.booleans()):
        weights = [n.weight(out, c), *([n.weight(out)] if draw(st.booleans()) else [])]
        return n.op("Gemm", x, *weights, transB=1)
    return n.gemm(x, c, out)


def dense_map(draw: st.DrawFn, n: Net, m: Maps) -> str:
    """A map of classes."""
    return n.conv(m.tensor, m.c, draw(st.integers(1, 3)), 3)


HEADS = {"scores": scores, "dense_map": dense_map, "chosen_pixels": chosen_pixels}


# -- tokens ----------------------------------------------------------------------------------

Tokens = Callable[[st.DrawFn, Net, str], str]
C = 6
TOKENS: dict[str, Tokens] = {}


def tokens(function: Tokens) -> Tokens:
    """Register a block for ``[N, L, 6]`` of any size."""
    TOKENS[function.__name__] = function
    return function


@tokens
def feed_forward(draw: st.DrawFn, n: Net, x: str) -> str:
    c = draw(WIDTHS)
    y = n.dense(n.op("Relu", n.op("Add", n.dense(x, C, c), n.weight(c))), c, C)
    return n.op("Add", y, x) if draw(st.booleans()) else y


@tokens
def gated_linear(draw: st.DrawFn, n: Net, x: str) -> str:
    """One projection, cut in two; one half is read at once, the other behind an activation."""
    c = draw(WIDTHS)
    a, b = n.ops("Split", 2, n.dense(x, C, 2 * c), axis=-1)
    y = n.op("Mul", n.op("Sigmoid", n.op("Mul", a, n.weight(c))), b)
    return n.dense(n.op("Add", y, b) if draw(st.booleans()) else y, c, C)


@tokens
def heads(draw: st.DrawFn, n: Net, x: str) -> str:
    """Attention whose heads are made by sizes read off; some join the batch."""
    h, w = draw(st.sampled_from([(2, 2), (3, 2), (2, 3)]))
    batch, length = size_of(n, x, 0), size_of(n, x, 1)
    joined = draw(st.booleans())

    def apart(y: str) -> str:
        y = reshaped(n, y, batch, length, h, w)
        y = n.op("Transpose", y, perm=[0, 2, 1, 3])
        return reshaped(n, y, -1, length, w) if joined else y

    x_small = n.op("Tanh", x)
    q, k, v = (apart(n.dense(x_small, C, h * w)) for _ in range(3))
    turned = n.op("Transpose", k, perm=[0, 2, 1] if joined else [0, 1, 3, 2])
    y = n.op("MatMul", n.op("Softmax", n.op("MatMul", q, turned)), v)
    y = reshaped(n, y, batch, h, length, w) if joined else y
    y = n.op("Transpose", y, perm=[0, 2, 1, 3])
    return n.op("Add", n.dense(reshaped(n, y, batch, length, h * w), h * w, C), x)


@tokens
def positions(_: st.DrawFn, n: Net, x: str) -> str:
    """Add the first rows of a table that is longer than any sequence."""
    table = n.const(n.positive(16, C))
    rows = n.op("Slice", table, n.const([0]), size_of(n, x, 1), n.const([0]))
    return n.op("Add", x, rows)


@tokens
def causal(_: st.DrawFn, n: Net, x: str) -> str:
    """Means of what came before, by a triangle of ones as long as the sequence."""
    length = size_of(n, x, 1)
    square = n.op("Expand", n.const(1.0), n.op("Concat", length, length, axis=0))
    return n.op(
        "MatMul", n.op("Mul", n.op("Trilu", square, upper=0), n.const(0.2)), n.dense(x, C, C)
    )


@tokens
def over_time(_: st.DrawFn, n: Net, x: str) -> str:
    """A convolution along the sequence."""
    y = n.conv(n.op("Transpose", x, perm=[0, 2, 1]), C, C, 3, dims=1)
    return n.op("Transpose", n.op("Relu", y), perm=[0, 2, 1])


def token_scores(draw: st.DrawFn, n: Net, x: str) -> str:
    """Scores of the mean or of the first token, perhaps one."""
    if draw(st.booleans()):
        row = n.op("ReduceMean", x, axes=[1], keepdims=0)
    else:
        row = n.op("Gather", x, n.const(0), axis=1)
    c, out = draw(WIDTHS), draw(st.sampled_from([1, 3]))
    return n.gemm(n.op("Tanh", n.gemm(row, C, c)), c, out)


def chosen_tokens(draw: st.DrawFn, n: Net, x: str) -> str:
    """Outputs of the tokens that a mask picks."""
    rows = n.op("Reshape", x, n.const([-1, C]))
    index = n.op("Transpose", n.op("NonZero", above_average(n, rows, C)), perm=[1, 0])
    return n.gemm(n.op("GatherND", rows, index), C, draw(st.sampled_from([1, 3])))


def every_token(draw: st.DrawFn, n: Net, x: str) -> str:
    """Outputs of every token."""
    c = draw(WIDTHS)
    return n.dense(n.op("Relu", n.dense(x, C, c)), c, draw(st.integers(1, 3)))


TOKEN_HEADS = {
    "token_scores": token_scores,
    "chosen_tokens": chosen_tokens,
    "every_token": every_token,
}


RANKS = {"dense_map": 4, "every_token": 3}
"""Ranks of the outputs of heads; of the others it is 2."""

# -- networks --------------------------------------------------------------------------------

SHAPES = [(BATCH, "H", "W"), (BATCH, 6, "W"), (BATCH, 4, 4), (2, "H", "W"), (2, 4, 6)]
LENGTHS = [(BATCH, "L"), (2, "L"), (BATCH, 5), (2, 6)]


def drawn_names(draw: st.DrawFn, table: dict[str, object], most: int, least: int = 0) -> list[str]:
    """Draw keys of a table."""
    return draw(st.lists(st.sampled_from(sorted(table)), min_size=least, max_size=most))


@st.composite
def open_networks(draw: st.DrawFn, max_blocks: int = 5) -> ModelProto:
    """Draw a network over maps or tokens with one or two heads on places of their own."""
    n = Net(seed=draw(st.integers(0, 2**16)), shared=draw(st.sampled_from([0, 0, 1])))
    return (
        _map_network(draw, n, max_blocks)
        if draw(st.booleans())
        else _token_network(draw, n, max_blocks)
    )


def _map_network(draw: st.DrawFn, n: Net, most: int) -> ModelProto:
    batch, h, w = draw(st.sampled_from(SHAPES))
    m = MAPS["convolution"](draw, n, Maps(n.input(batch, 2, h, w), 2, 0))
    kinds, heads, outputs = drawn_names(draw, MAPS, most), drawn_names(draw, HEADS, 2, 1), []
    at = draw(st.integers(0, len(kinds)))
    for k, kind in enumerate(kinds):
        if k == at and len(heads) > 1:
            outputs.append(HEADS[heads[1]](draw, n, m))
        m = MAPS[kind](draw, n, m)
    outputs.insert(0, HEADS[heads[0]](draw, n, m))
    heads = heads[: len(outputs)]
    return finished(n, outputs, heads, [*kinds, *heads, f"{(batch, h, w)}"])


def _token_network(draw: st.DrawFn, n: Net, most: int) -> ModelProto:
    batch, length = draw(st.sampled_from(LENGTHS))
    if draw(st.booleans()):
        x = n.dense(n.input(batch, length, 3), 3, C)
    else:
        x = n.op(
            "Gather", n.const(n.rng.normal(size=(9, C))), n.input(batch, length, integers=True)
        )
    kinds, outs, outputs = drawn_names(draw, TOKENS, most), drawn_names(draw, TOKEN_HEADS, 2, 1), []
    at = draw(st.integers(0, len(kinds)))
    for k, kind in enumerate(kinds):
        if k == at and len(outs) > 1:
            outputs.append(TOKEN_HEADS[outs[1]](draw, n, x))
        x = TOKENS[kind](draw, n, x)
    outputs.insert(0, TOKEN_HEADS[outs[0]](draw, n, x))
    outs = outs[: len(outputs)]
    return finished(n, outputs, outs, [*kinds, *outs, f"{(batch, length)}"])


def finished(n: Net, outputs: list[str], heads: list[str], kinds: list[str]) -> ModelProto:
    """Write a model; its text names what it is made of."""
    proto = n.model(*outputs, rank=[RANKS.get(head, 2) for head in heads])
    proto.doc_string = " ".join(kinds)
    return proto
