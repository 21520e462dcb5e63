"""Builds random multi-branch networks: hypothesis draws the structure, a generator weights.

Blocks take and return a :class:`Maps` (a tensor ``[N, c, size, size]``); each is a network
part on which pruners are known to break, and any chain of them is a valid model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnx
import validity
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Dim = int | str
BATCH = "N"


class Net:
    """Builds a model node by node; weights come from a seeded generator, none near zero.

    Weights of at most ``shared`` axes that have one shape are one initializer.
    """

    def __init__(self, opset: int = 17, seed: int = 0, shared: int = 0) -> None:
        self.shared: dict[tuple[int, ...], str] = {}
        self.shared_rank = shared
        self.opset = opset
        self.rng = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []

    def input(self, *shape: Dim, integers: bool = False) -> str:
        """Add an input of floats or integers."""
        name, kind = f"x{len(self.inputs)}", TensorProto.INT64 if integers else TensorProto.FLOAT
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def const(self, value: Any, dtype: Any = None) -> str:
        """Add an initializer; other numbers than integers become float32."""
        array = np.asarray(value)
        if dtype is None and array.dtype.kind == "f":
            dtype = np.float32
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def weight(self, *shape: int) -> str:
        """Add random weights of both signs, scaled by the number of inputs of a row."""
        if shape in self.shared:
            return self.shared[shape]
        signs = self.rng.choice([-1.0, 1.0], size=shape)
        scale = np.sqrt(max(int(np.prod(shape)) // max(shape), 1)) if len(shape) > 1 else 1
        name = self.const(signs * self.positive(*shape) / scale)
        if 0 < len(shape) <= self.shared_rank:
            self.shared[shape] = name
        return name

    def positive(self, *shape: int) -> np.ndarray[Any, Any]:
        """Random numbers between 0.5 and 1.5."""
        return self.rng.uniform(0.5, 1.5, size=shape)

    def op(self, op_type: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node with one output and return that."""
        return self.ops(op_type, 1, *inputs, name=name, **attributes)[0]

    def ops(
        self, op_type: str, outputs: int, *inputs: str, name: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs."""
        made = [f"t{len(self.nodes)}_{k}" for k in range(outputs)]
        taken = any(node.name == (name or op_type) for node in self.nodes)
        name = f"{name or op_type}{len(self.nodes) if taken else ''}"
        self.nodes.append(helper.make_node(op_type, inputs, made, name, **attributes))
        return made

    def conv(
        self, x: str, c: int, out: int, kernel: int = 1, *, dims: int = 2, group: int = 1,
        bias: bool = True, name: str = "", **attributes: Any,
    ) -> str:  # fmt: skip
        """Add a convolution from ``c`` to ``out`` channels that keeps the size."""
        weights = [self.weight(out, c // group, *[kernel] * dims)]
        weights += [self.weight(out)] if bias else []
        attributes.setdefault("pads", [kernel // 2] * 2 * dims)
        return self.op("Conv", x, *weights, group=group, name=name, **attributes)

    def dense(self, x: str, c: int, out: int, name: str = "") -> str:
        """Add a matrix product of the last axis, ``c`` to ``out``."""
        return self.op("MatMul", x, self.weight(c, out), name=name)

    def gemm(self, x: str, c: int, out: int, name: str = "") -> str:
        """Add a Gemm with bias."""
        return self.op("Gemm", x, self.weight(c, out), self.weight(out), name=name)

    def model(self, *outputs: str, rank: int | Sequence[int] | None = None) -> ModelProto:
        """Finish the model; shapes of the outputs are inferred (or only have a rank, or each)."""
        ranks = [rank] * len(outputs) if rank is None or isinstance(rank, int) else rank
        values = [
            helper.make_tensor_value_info(o, TensorProto.FLOAT, r and [None] * r)
            for o, r in zip(outputs, ranks, strict=True)
        ]
        g = helper.make_graph(self.nodes, "g", self.inputs, values, self.constants)
        domains = sorted({"", *(node.domain for node in self.nodes)})
        opset = [helper.make_opsetid(d, 1 if d else self.opset) for d in domains]
        ir_version = 8 if self.opset <= 17 else 10
        proto = helper.make_model(g, opset_imports=opset, ir_version=ir_version)
        found = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        validity.check(found)
        del found.graph.value_info[:]
        return found


# -- parts that cases use too ----------------------------------------------------------------

Body = Callable[[Net, str], str]


def apply(op_type: str, *constants: Any, **attributes: Any) -> Body:
    """A body of one operator with constant operands; an empty string leaves one out."""

    def body(n: Net, x: str) -> str:
        operands = [c if isinstance(c, str) else n.const(c) for c in constants]
        return n.op(op_type, x, *operands, **attributes)

    return body


def chain(*bodies: Body) -> Body:
    """One body after the other."""

    def body(n: Net, x: str) -> str:
        for part in bodies:
            x = part(n, x)
        return x

    return body


def both(op_type: str, *bodies: Body, **attributes: Any) -> Body:
    """One operator on what several bodies return."""
    return lambda n, x: n.op(op_type, *(body(n, x) for body in bodies), **attributes)


def computed_shape(n: Net, x: str, *rest: int) -> str:
    """The batch of ``x`` followed by constants, as exporters compute it."""
    batch = n.op("Unsqueeze", n.op("Gather", n.op("Shape", x), n.const(0)), n.const([0]))
    return n.op("Concat", batch, n.const(list(rest)), axis=0)


def shuffle(n: Net, x: str, c: int, groups: int, size: int) -> str:
    """Shuffle channels: reshape, transpose, reshape."""
    x = n.op("Reshape", x, n.const([-1, groups, c // groups, size, size]))
    x = n.op("Transpose", x, perm=[0, 2, 1, 3, 4])
    return n.op("Reshape", x, computed_shape(n, x, c, size, size))


def attention(
    n: Net, x: str, c: int, heads: int, width: int, length: int, how: str = "gather"
) -> str:
    """Self-attention on ``[N, length, c]`` with one packed projection to q, k and v."""
    inner = 3 * heads * width
    packed = n.op("Add", n.dense(x, c, inner, name="packed"), n.weight(inner))
    if how == "gather":
        parts = n.op("Reshape", packed, n.const([0, length, 3, heads, width]))
        parts = n.op("Transpose", parts, perm=[2, 0, 3, 1, 4])
        q, k, v = (n.op("Gather", parts, n.const(i), axis=0) for i in range(3))
    else:
        ends = [heads * width * i for i in range(4)]
        if how == "split":
            cut = n.ops("Split", 3, packed, axis=2)
        else:
            cut = [
                n.op("Slice", packed, n.const([a]), n.const([b]), n.const([-1]))
                for a, b in pairwise(ends)
            ]
        shaped = [n.op("Reshape", t, computed_shape(n, t, length, heads, width)) for t in cut]
        q, k, v = (n.op("Transpose", t, perm=[0, 2, 1, 3]) for t in shaped)
    scores = n.op("MatMul", q, n.op("Transpose", k, perm=[0, 1, 3, 2]))
    scale = n.op("Gather", n.op("Shape", q), n.const(-1))
    scores = n.op("Div", scores, n.op("Sqrt", n.op("Cast", scale, to=TensorProto.FLOAT)))
    mixed = n.op("Transpose", n.op("MatMul", n.op("Softmax", scores), v), perm=[0, 2, 1, 3])
    joined = n.op("Reshape", mixed, n.const([0, 0, heads * width]))
    return n.dense(joined, heads * width, c, name="joined")


def windows(n: Net, x: str) -> str:
    """Attention inside 2 x 2 windows of ``[N, 16, 4]``: the batch becomes batch x windows."""
    grid = n.op("Reshape", x, n.const([-1, 2, 2, 2, 2, 4]))
    parts = n.op("Transpose", grid, perm=[0, 1, 3, 2, 4, 5])
    inside = attention(n, n.op("Reshape", parts, n.const([-1, 4, 4])), 4, 2, 2, 4)
    grid = n.op("Reshape", inside, n.const([-1, 2, 2, 2, 2, 4]))
    return n.op("Reshape", n.op("Transpose", grid, perm=[0, 1, 3, 2, 4, 5]), n.const([-1, 16, 4]))


def squeeze_excite(n: Net, x: str, c: int, inner: int) -> str:
    """Scale channels by gates computed from their means."""
    mean = n.op("ReduceMean", x, axes=[2, 3], keepdims=1)
    squeezed = n.op("Relu", n.conv(mean, c, inner, name="squeeze"))
    gates = n.conv(squeezed, inner, c, name="gates")
    return n.op("Mul", x, n.op("Sigmoid", gates))


# -- blocks ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Maps:
    """A tensor ``[N, c, size, size]``."""

    tensor: str
    c: int
    size: int


Block = Callable[[st.DrawFn, Net, Maps], Maps]
BLOCKS: dict[str, Block] = {}
WIDTHS = st.sampled_from([4, 6, 8])


def block(function: Block) -> Block:
    """Register a block."""
    BLOCKS[function.__name__] = function
    return function


def even(c: int) -> int:
    """Return a number of groups for ``c`` channels, 1 where it is odd."""
    return next((g for g in (2, 3) if c % g == 0), 1)


@block
def convolution(draw: st.DrawFn, n: Net, m: Maps) -> Maps:
    c = draw(WIDTHS)
    return Maps(n.conv(m.tensor, m.c, c, draw(st.sampled_from([1, 3]))), c, m.size)


@block
def depthwise(draw: st.DrawFn, n: Net, m: Maps) -> Maps:
    times = draw(st.sampled_from([1, 2])) if m.c <= 8 else 1
    return Maps(n.conv(m.tensor, m.c, times * m.c, 3, group=m.c), times * m.c, m.size)


@block
def grouped(draw: st.DrawFn, n: Net, m: Maps) -> Maps:
    c = even(m.c) * draw(st.sampled_from([2, 3]))
    return Maps(n.conv(m.tensor, m.c, c, 1, group=even(m.c), bias=False), c, m.size)


@block
def batch_norm(_: st.DrawFn, n: Net, m: Maps) -> Maps:
    operands = [n.weight(m.c), n.weight(m.c), n.weight(m.c), n.const(n.positive(m.c))]
    return Maps(n.op("BatchNormalization", m.tensor, *operands), m.c, m.size)


@block
def activation(draw: st.DrawFn, n: Net, m: Maps) -> Maps:
    kind = draw(st.sampled_from(["Relu", "Sigmoid", "HardSwish", "Elu", "Softplus", "PRelu"]))
    slopes = [n.const(n.positive(m.c, 1, 1) / 2)] if kind == "PRelu" else []
    return Maps(n.op(kind, m.tensor, *slopes), m.c, m.size)


@block
def residual(draw: st.DrawFn, n: Net, m: Maps) -> Maps:
    inner = draw(WIDTHS)
    branch = n.conv(n.op("Relu", n.conv(m.tensor, m.c, inner, 3)), inner, m.c)
    order = [branch, m.tensor] if draw(st.booleans()) else [m.tensor, branch]
    return Maps(n.op("Add", *order), m.c, m.size)


@block
def padded_residual(draw: st.DrawFn, n: Net, m: Maps) -> Maps:
    """Halve the maps; the shortcut is a strided slice with zero channels around it."""
    if m.size < 2:
        return m
    before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    c = m.c + before + after
    bounds = [n.const(v) for v in ([0, 0], [2**31, 2**31], [2, 3], [2, 2])]
    short = n.op("Slice", m.tensor, *bounds)
    short = n.op("Pad", short, n.const([0, before, 0, 0, 0, after, 0, 0]))
    branch = n.conv(m.tensor, m.c, c, 3, strides=[2, 2])
    return Maps(n.op("Add", branch, short), c, (m.size + 1) // 2)


@block
def dense_concat(draw: st.DrawFn, n: Net, m: Maps) -> Maps:
    grown = draw(st.integers(2, 3))
    parts = [m.tensor, n.op("Relu", n.conv(m.tensor, m.c, grown))]
    joined = n.op("Concat", *(parts if draw(st.booleans()) else parts[::-1]), axis=1)
    return Maps(joined, m.c + grown, m.size)


@block
def split_concat(draw: st.DrawFn, n: Net, m: Maps) -> Maps:
    first = draw(st.integers(1, m.c - 1))
    a, b = n.ops("Split", 2, m.tensor, n.const([first, m.c - first]), axis=1)
    if draw(st.booleans()):
        a = n.conv(a, first, first, 3)
    return Maps(n.op("Concat", b, a, axis=1), m.c, m.size)


@block
def channel_shuffle(_: st.DrawFn, n: Net, m: Maps) -> Maps:
    return Maps(shuffle(n, m.tensor, m.c, even(m.c), m.size), m.c, m.size)


@block
def gated(draw: st.DrawFn, n: Net, m: Maps) -> Maps:
    return Maps(squeeze_excite(n, m.tensor, m.c, draw(st.integers(2, 3))), m.c, m.size)


@block
def pool(draw: st.DrawFn, n: Net, m: Maps) -> Maps:
    kind = draw(st.sampled_from(["MaxPool", "AveragePool"]))
    pooled = n.op(kind, m.tensor, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    return Maps(pooled, m.c, m.size)


@block
def upsample(draw: st.DrawFn, n: Net, m: Maps) -> Maps:
    if m.size > 4:
        return m
    if draw(st.booleans()):
        scales = n.const([1.0, 1.0, 2.0, 2.0])
        return Maps(n.op("Resize", m.tensor, "", scales), m.c, 2 * m.size)
    group = even(m.c) if draw(st.booleans()) else 1
    weights = [n.weight(m.c, 4 // group if group != 3 else 2, 2, 2)]
    c = group * (4 // group if group != 3 else 2)
    up = n.op("ConvTranspose", m.tensor, *weights, group=group, strides=[2, 2])
    return Maps(up, c, 2 * m.size)


@block
def self_attention(draw: st.DrawFn, n: Net, m: Maps) -> Maps:
    how = draw(st.sampled_from(["gather", "split", "slices"]))
    flat = n.op("Reshape", m.tensor, n.const([0, m.c, -1]))
    # Bounded, so that no score is large and rounding errors stay small.
    rows = n.op("Tanh", n.op("Transpose", flat, perm=[0, 2, 1]))
    mixed = attention(n, rows, m.c, 2, draw(st.integers(2, 3)), m.size**2, how)
    if draw(st.booleans()):
        mixed = n.op("Add", mixed, rows)
    back = n.op("Transpose", mixed, perm=[0, 2, 1])
    return Maps(n.op("Reshape", back, n.const([-1, m.c, m.size, m.size])), m.c, m.size)


@block
def affine(draw: st.DrawFn, n: Net, m: Maps) -> Maps:
    kind = draw(st.sampled_from(["Mul", "Add", "Sub", "Div"]))
    operands = [m.tensor, n.const(n.positive(m.c, 1, 1))]
    if kind != "Div" and draw(st.booleans()):
        operands.reverse()
    return Maps(n.op(kind, *operands), m.c, m.size)


FACTORED: dict[str, Body] = {
    "scale": lambda n, x: n.op("Mul", x, n.weight(2, 1, 1, 1)),
    "transpose": apply("Transpose", perm=[0, 2, 1, 3, 4]),
    "softmax": apply("Softmax", axis=1),
    "normalise": both("Sub", apply("Identity"), apply("ReduceMean", axes=[2])),
    "sum rows": apply("ReduceSum", [1]),
    "sum columns": apply("ReduceSum", [2]),
    "first row": apply("Gather", 0, axis=1),
    "last columns": apply("Slice", [1], [2**31], [2]),
    "pad columns": apply("Pad", [0, 0, 1, 0, 0, 0, 0, 0, 0, 0]),
    "two of each": both("Concat", apply("Neg"), apply("Sigmoid"), axis=2),
}


@block
def factored(draw: st.DrawFn, n: Net, m: Maps) -> Maps:
    """Write the channels as two rows, work on rows or columns, and join them again."""
    if m.c % 2 or m.c < 4:
        return m
    kind = draw(st.sampled_from(sorted(FACTORED)))
    rows = n.op("Reshape", m.tensor, n.const([-1, 2, m.c // 2, m.size, m.size]))
    half, done = m.c // 2, FACTORED[kind](n, rows)
    widths = {"sum rows": half, "sum columns": 2, "first row": half, "last columns": m.c - 2}
    widths |= {"pad columns": m.c + 2, "two of each": 2 * m.c}
    c = widths.get(kind, m.c)
    return Maps(n.op("Reshape", done, n.const([-1, c, m.size, m.size])), c, m.size)


@st.composite
def networks(
    draw: st.DrawFn, max_blocks: int = 6, kinds_of: Sequence[str] = (), shared: bool = True
) -> ModelProto:
    """Draw a network: a convolution, some blocks, a head with Gemm.

    Blocks are drawn from all, or each of ``kinds_of`` at most once.
    """
    sharing = st.sampled_from([0, 0, 1, 5] if shared else [0])
    n = Net(seed=draw(st.integers(0, 2**16)), shared=draw(sharing))
    m = Maps(n.input(BATCH, 2, 4, 4), 2, 4)
    m = convolution(draw, n, m)
    names = st.sampled_from(sorted(kinds_of or BLOCKS))
    kinds = draw(st.lists(names, max_size=max_blocks, unique=bool(kinds_of)))
    for kind in kinds:
        m = BLOCKS[kind](draw, n, m)
    if draw(st.booleans()):
        flat, c = n.op("Flatten", m.tensor), m.c * m.size**2
    else:
        flat, c = n.op("Flatten", n.op("GlobalAveragePool", m.tensor)), m.c
    proto = n.model(n.gemm(n.op("Relu", n.gemm(flat, c, 4)), 4, 3))
    proto.doc_string = " ".join(["convolution", *kinds])
    return proto
