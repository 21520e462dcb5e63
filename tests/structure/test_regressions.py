"""Models on which pruning once went wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper
from oracle import identity, mask, permutation, random_removal, traced
from strategies import BATCH, Net

Build = Callable[[], ModelProto]
REGRESSIONS: dict[str, tuple[Build, bool]] = {}


def regression(*, prunable: bool = True) -> Callable[[Build], Build]:
    """Register a model, and whether something of it must be prunable."""

    def register(build: Build) -> Build:
        REGRESSIONS[build.__name__.replace("_", " ")] = build, prunable
        return build

    return register


def stem(n: Net, c: int = 4) -> str:
    return n.conv(n.input(BATCH, 2, 4, 4), 2, c, 3, name="stem")


# -- an axis that shrinks to one vanishes ------------------------------------------------------


@regression(prunable=False)
def squeeze_without_axes() -> ModelProto:
    n = Net()
    pooled = n.op("Squeeze", n.op("GlobalMaxPool", stem(n)))
    return n.model(n.gemm(pooled, 4, 2))


@regression()
def squeeze_without_axes_behind_other_layers() -> ModelProto:
    n = Net()
    pooled = n.op("GlobalMaxPool", n.conv(stem(n), 4, 3, name="second"))
    return n.model(n.gemm(n.op("Squeeze", pooled), 3, 2))


# -- subgraphs read what the outer graph slices ------------------------------------------------


def branching(n: Net, y: str, reads: str) -> ModelProto:
    """Add the sum or the maximum of a tensor, chosen in an If, to the output."""

    def branch(name: str, op_type: str) -> onnx.GraphProto:
        nodes = [
            helper.make_node(op_type, [reads], [f"{name}_number"], keepdims=0),
            helper.make_node("Cast", [f"{name}_number"], [name], to=TensorProto.FLOAT),
        ]
        return helper.make_graph(
            nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [])]
        )

    positive = n.op("Greater", n.op("ReduceMax", "x0", keepdims=0), n.const(0.0))
    attributes = {
        "then_branch": branch("then", "ReduceSum"),
        "else_branch": branch("else", "ReduceMax"),
    }
    return n.model(n.op("Add", y, n.op("If", positive, **attributes)))


@regression()
def bias_that_a_branch_reads() -> ModelProto:
    n = Net()
    y = n.conv(stem(n), 4, 3)
    return branching(n, y, n.nodes[0].input[2])


@regression(prunable=False)
def weight_that_a_branch_reads() -> ModelProto:
    n = Net()
    y = n.conv(stem(n), 4, 3)
    return branching(n, y, n.nodes[0].input[1])


@regression()
def shared_bias_that_a_branch_reads() -> ModelProto:
    n = Net(shared=1)
    y = n.conv(n.conv(stem(n), 4, 4), 4, 3)
    return branching(n, y, n.nodes[0].input[2])


@regression(prunable=False)
def activations_that_a_branch_reads() -> ModelProto:
    n = Net()
    x = stem(n)
    return branching(n, n.conv(x, 4, 3), x)


@regression()
def shape_that_a_branch_reads() -> ModelProto:
    n = Net()
    x = stem(n)
    y = n.conv(x, 4, 3)
    return branching(n, y, n.op("Shape", x))


# -- a shape is a result -----------------------------------------------------------------------


def with_integers(proto: ModelProto, name: str, size: int) -> ModelProto:
    """Make an int64 vector one more output."""
    proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.INT64, [size]))
    return proto


@regression(prunable=False)
def shape_as_output() -> ModelProto:
    n = Net()
    x = stem(n)
    shape = n.op("Shape", x)
    return with_integers(n.model(n.conv(x, 4, 3)), shape, 4)


@regression(prunable=False)
def shape_as_output_and_number() -> ModelProto:
    n = Net()
    x = stem(n)
    shape = n.op("Shape", x)
    number = n.op("Cast", n.op("ReduceProd", shape), to=TensorProto.FLOAT)
    return with_integers(n.model(n.conv(n.op("Div", x, number), 4, 3)), shape, 4)


@regression()
def part_of_a_shape_as_output() -> ModelProto:
    n = Net()
    x = stem(n)
    part = n.op("Slice", n.op("Shape", x), n.const([0]), n.const([2]))
    return with_integers(n.model(n.conv(x, 4, 3)), part, 2)


# -- opsets that lack Where --------------------------------------------------------------------


def size_as_number(n: Net, x: str) -> str:
    """The number of elements as PyTorch 1.0 wrote it."""
    sizes = n.op("Cast", n.op("Shape", x), to=TensorProto.FLOAT)
    whole = n.op("Cast", n.op("ReduceProd", sizes, keepdims=0), to=TensorProto.INT64)
    return n.op("Cast", whole, to=TensorProto.FLOAT)


@regression()
def size_as_number_before_where() -> ModelProto:
    n = Net(opset=8)
    x = stem(n)
    y = n.conv(n.op("Div", x, size_as_number(n, x)), 4, 5, name="free")
    return n.model(n.conv(y, 5, 3))


@regression()
def computed_reshape_before_where() -> ModelProto:
    n = Net(opset=8)
    x = n.op("Relu", stem(n))
    batch = n.op("Unsqueeze", n.op("Gather", n.op("Shape", "x0"), n.const(0)), axes=[0])
    rows = n.op("Reshape", x, n.op("Concat", batch, n.const([64]), axis=0))
    return n.model(n.gemm(rows, 64, 2), rank=2)


@regression(prunable=False)
def computed_expand_before_where() -> ModelProto:
    n = Net(opset=8)
    pooled = n.op("GlobalMaxPool", stem(n))
    batch = n.op("Unsqueeze", n.op("Gather", n.op("Shape", "x0"), n.const(0)), axes=[0])
    maps = n.op("Expand", pooled, n.op("Concat", batch, n.const([4, 2, 2]), axis=0))
    return n.model(n.conv(maps, 4, 2))


@pytest.mark.parametrize("name", REGRESSIONS)
def test_pruning_is_right(name: str) -> None:
    build, prunable = REGRESSIONS[name]
    t = traced(build())
    assert bool(t.structure.groups) == prunable
    identity(t)
    for seed, share in enumerate((0.3, 0.6, 1.0)):
        permutation(t, seed)
        mask(t, random_removal(t.structure, np.random.default_rng(seed), share))


def test_channels_stay_where_squeeze_would_drop_an_axis_of_one() -> None:
    t = traced(squeeze_without_axes_behind_other_layers())
    (frozen,) = (f for f in t.structure.frozen if "output" not in f.reason)
    assert frozen.node == "Squeeze"
    (group,) = t.structure.groups
    for stays in group.units:
        kept = np.ones(len(t.structure.units), dtype=np.bool_)
        kept[group.units] = group.units == stays
        assert mask(t, kept)
