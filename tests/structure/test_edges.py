"""Layers with one output, axes of nothing, and nodes with several outputs, through all modes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import oracle
import pytest
from cases import CASES
from cases_recurrent import recurrent
from onnx import ModelProto, numpy_helper
from strategies import BATCH, Net

import onnxprune
from onnxprune.linear.bias import add_bias
from onnxprune.linear.layer import Layer, prepare
from onnxprune.model import zero_states
from onnxprune.model.edit import edit, rebuild
from onnxprune.model.folding import fold
from onnxprune.model.model import Model, normalise
from onnxprune.model.observe import observe
from onnxprune.model.runner import Runner
from onnxprune.model.stepwise import Walk
from onnxprune.plans.cut import Cut
from onnxprune.plans.plan import PruningPlan
from onnxprune.structure.structure import Structure
from onnxprune.structure.trace import trace

Build = Callable[[Net], ModelProto]
BUILDS: dict[str, Build] = {}


def build(function: Build) -> Build:
    """Register a model with 3 class scores."""
    BUILDS[function.__name__.strip("_").replace("_", " ")] = function
    return function


def stem(n: Net) -> str:
    """Two layers, to 8 features."""
    x = n.op("Relu", n.gemm(n.input(BATCH, 6), 6, 8))
    return n.op("Relu", n.gemm(x, 8, 8))


def head(n: Net, x: str, *others: str, c: int = 8) -> ModelProto:
    return n.model(n.gemm(x, c, 3), *others, rank=2)


@build
def value_head(n: Net) -> ModelProto:
    x = stem(n)
    return head(n, x, n.gemm(x, 8, 1))


@build
def transposed_value_head(n: Net) -> ModelProto:
    x = stem(n)
    value = n.op("Gemm", x, n.weight(1, 8), n.weight(1, 1), transB=1, alpha=0.5, beta=2.0)
    return head(n, x, value)


@build
def gate_of_one_channel(n: Net) -> ModelProto:
    x = n.op("Relu", n.conv(n.input(BATCH, 2, 4, 4), 2, 8, 3))
    x = n.op("Relu", n.conv(x, 8, 8, 3))
    x = n.op("Mul", x, n.op("Sigmoid", n.conv(x, 8, 1, 1)))
    return head(n, n.op("Flatten", n.op("GlobalAveragePool", x)))


@build
def bottleneck_of_one(n: Net) -> ModelProto:
    x = stem(n)
    inner = n.op("Relu", n.op("Gemm", x, n.weight(1, 8), n.weight(1), transB=1))
    wide = n.op("Relu", n.op("Gemm", inner, n.weight(8, 1), n.weight(8), transB=1))
    return head(n, n.op("Add", x, wide))


@build
def product_with_a_vector(n: Net) -> ModelProto:
    x = stem(n)
    gate = n.op("Sigmoid", n.op("Unsqueeze", n.op("MatMul", x, n.weight(8)), n.const([1])))
    return head(n, n.op("Mul", x, gate))


@build
def empty_part(n: Net) -> ModelProto:
    a, b, c = n.ops("Split", 3, stem(n), n.const([3, 0, 5]), axis=1)
    return head(n, n.op("Concat", c, n.op("Relu", b), n.op("Relu", a), axis=1))


@build
def product_with_nothing(n: Net) -> ModelProto:
    x = stem(n)
    none = n.op("Slice", x, n.const([8]), n.const([2**31]), n.const([1]))
    added = n.op("Add", n.dense(none, 0, 8), x)
    return head(n, n.op("Concat", n.op("Relu", added), n.dense(x, 8, 0), axis=1))


@build
def split_used_on_both_sides(n: Net) -> ModelProto:
    x = n.op("Relu", n.conv(n.input(BATCH, 2, 4, 4), 2, 8, 3))
    a, b = n.ops("Split", 2, x, axis=1)
    y = n.op("Add", n.op("Relu", n.conv(n.op("Relu", n.conv(a, 4, 4, 3)), 4, 4, 3)), a)
    x = n.op("Relu", n.conv(n.op("Concat", y, b, axis=1), 8, 8))
    return head(n, n.op("Flatten", n.op("GlobalAveragePool", x)))


@build
def batch_statistics(n: Net) -> ModelProto:
    n.opset = 15
    x = n.conv(n.input(BATCH, 2, 4, 4), 2, 8, 3)
    for _ in range(2):
        operands = [n.weight(8), n.weight(8), n.weight(8), n.const(n.positive(8))]
        y, *_ = n.ops("BatchNormalization", 3, x, *operands, training_mode=1)
        x = n.op("Add", x, n.conv(n.op("Relu", n.conv(n.op("Relu", y), 8, 8, 3)), 8, 8))
    return head(n, n.op("Flatten", n.op("GlobalAveragePool", x)))


@build
def states_of_two_recurrences(n: Net) -> ModelProto:
    """Only the last states are used, and the first output of both nodes has no name."""
    x = n.op("Transpose", n.input(BATCH, 4, 6), perm=[1, 0, 2])
    states = []
    for _ in range(2):
        weights = n.weight(1, 32, 6), n.weight(1, 32, 8), n.weight(1, 64)
        _, state, cell = n.ops("LSTM", 3, x, *weights, hidden_size=8)
        n.nodes[-1].output[0] = ""
        states += [n.op("Squeeze", s, n.const([0])) for s in (state, cell)]
    y = n.op("Relu", n.gemm(states[0], 8, 8))
    y = n.op("Add", n.op("Relu", n.gemm(n.op("Add", y, states[1]), 8, 8)), states[2])
    return head(n, n.op("Add", y, states[3]))


@build
def sequence_between_layers(n: Net) -> ModelProto:
    x = n.op("Relu", n.conv(n.input(BATCH, 2, 4, 4), 2, 8, 3))
    parts = n.op("SplitToSequence", x, n.const([3, 5]), axis=1)
    y = n.op("Relu", n.conv(n.op("SequenceAt", parts, n.const(0)), 3, 3, 3))
    parts = n.op("SequenceInsert", parts, y)
    y = n.op("Relu", n.conv(y, 3, 3, 3))
    others = [n.op("SequenceAt", parts, n.const(k)) for k in (1, 2)]
    x = n.op("Relu", n.conv(n.op("Concat", y, *others, axis=1), 11, 8))
    return head(n, n.op("Flatten", n.op("GlobalAveragePool", x)))


MODES = {
    "channels": {"sparsity": 0.15, "mode": "channels"},
    "bias": {"sparsity": 0.15, "mode": "channels", "recover": "bias"},
    "weights": {"sparsity": 0.4, "mode": "weights"},
    "auto": {"sparsity": 0.3},
    "depth": {"layers": 1, "mode": "depth"},
    "lossless": {"lossless": True},
}


def data_for(proto: ModelProto, path: Path, rows: int = 30) -> Path:
    shape = [rows, *(d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim[1:])]
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    np.savez(path, x=x, y=np.arange(rows) % 3)
    return path


@pytest.mark.parametrize(
    ("name", "mode"),
    [(n, m) for n in BUILDS for m in MODES if (n, m) != ("sequence between layers", "depth")],
)
def test_a_model_goes_through_a_mode(name: str, mode: str, tmp_path: Path) -> None:
    proto = BUILDS[name](Net())
    onnx.save(proto, tmp_path / "m.onnx")
    samples = None if mode == "lossless" else data_for(proto, tmp_path / "d.npz")
    result = onnxprune.prune(
        tmp_path / "m.onnx", samples, threads=1, random_inputs=samples is None, **MODES[mode]
    )
    inputs = oracle.feeds(proto, 5, seed=9)
    before, after = oracle.run(proto, inputs), oracle.run(result.model, inputs)
    assert [v.shape for v in after] == [v.shape for v in before]
    assert all(np.isfinite(v).all() for v in after)
    names = [t.name for t in result.model.graph.initializer]
    assert len(set(names)) == len(names)
    if mode == "lossless":
        assert oracle.error(before, after) < 1e-5


# -- one layer alone -----------------------------------------------------------------------------


def prepared(proto: ModelProto) -> tuple[Model, Structure, list[Layer]]:
    whole = normalise(proto)
    shapes = observe(whole, oracle.feeds(proto, 4), runner=Runner(1))
    model = fold(whole, shapes)
    structure = trace(model, shapes)
    made, layers = prepare(model, Cut(model, structure, shapes, PruningPlan("")))
    return made, structure, layers


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("sizes", [(5, 1), (1, 5), (1, 1), (4, 3)])
def test_a_matrix_is_read_the_right_way_round(sizes: tuple[int, int], transposed: int) -> None:
    n = Net()
    weight = n.weight(*sizes[:: -1 if transposed else 1])
    y = n.op("Gemm", n.input(BATCH, sizes[0]), weight, transB=transposed)
    proto = n.model(y, rank=2)
    _, _, (layer,) = prepared(proto)
    matrix = layer.form.to_matrix(numpy_helper.to_array(proto.graph.initializer[0]))
    assert (layer.form.outputs, layer.form.width) == sizes[::-1]
    x = oracle.feeds(proto, 4)
    np.testing.assert_allclose(x["x0"] @ matrix[0].T, oracle.run(proto, x)[0], rtol=1e-5)


def test_equal_rows_of_one_input_are_duplicates(tmp_path: Path) -> None:
    """The weights of several outputs with one input, and of one output with several inputs."""
    n = Net()
    first = n.op("Gemm", n.input(BATCH, 1), n.const(np.ones((6, 1))), n.weight(6), transB=1)
    y = n.op("Gemm", n.op("Sigmoid", first), n.weight(1, 6), n.weight(1), transB=1)
    proto = n.model(y, rank=2)
    bias = proto.graph.initializer[1]
    bias.CopyFrom(numpy_helper.from_array(np.float32([1, 2, 1, 3, 2, 1]), bias.name))
    onnx.save(proto, tmp_path / "m.onnx")
    result = onnxprune.prune(tmp_path / "m.onnx", None, random_inputs=True, lossless=True)
    assert oracle.weight_elements(result.model) == 3 * 3 + 1
    inputs = oracle.feeds(proto, 5)
    assert oracle.error(oracle.run(proto, inputs), oracle.run(result.model, inputs)) < 1e-5


def test_an_added_bias_bears_a_name_of_its_own() -> None:
    """Also beside a bias for each sample, which stays, and under a name that is taken."""
    n = Net()
    x = n.input(4, 6)
    weight, each = n.weight(6, 1), n.weight(4, 1)
    y = n.op("Gemm", x, weight, each)
    n.constants[1].name = n.nodes[0].input[2] = f"{y}/bias"
    proto = n.model(y, rank=2)
    made, _, (layer,) = prepared(proto)
    names = [t.name for t in made.proto.graph.initializer]
    assert len(set(names)) == len(names) == 3
    assert layer.bias_shape == (1,)
    x = oracle.feeds(proto, 4)
    np.testing.assert_array_equal(oracle.run(made.proto, x)[0], oracle.run(proto, x)[0])


def test_a_bias_takes_no_name_that_another_layer_reads() -> None:
    n = Net()
    x = n.input(BATCH, 4)
    bias = n.weight(4)
    first = n.op("Gemm", x, n.weight(4, 4), bias)
    y = n.op("Gemm", n.op("Relu", first), n.weight(4, 4), bias)
    n.constants[0].name = n.nodes[0].input[2] = n.nodes[2].input[2] = f"{first}/bias"
    proto = n.model(y, rank=2)
    made, structure, layers = prepared(proto)
    assert len({layer.bias for layer in layers}) == 2
    graph = edit(normalise(proto))
    add_bias(graph, graph.nodes[0], structure.weights[0], np.ones(4), np.dtype(np.float32))
    changed = rebuild(graph, made)
    x = oracle.feeds(proto, 3)
    w, b, v = (numpy_helper.to_array(proto.graph.initializer[k]) for k in (1, 0, 2))
    expected = np.maximum(x["x0"] @ w + b + 1, 0) @ v + b
    np.testing.assert_allclose(oracle.run(changed.proto, x)[0], expected, rtol=1e-4, atol=1e-5)


# -- a walk, output by output --------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["split used on both sides", "batch statistics", "states of two recurrences",
             "sequence between layers"],
)  # fmt: skip
def test_a_walk_in_any_steps_equals_the_whole_model(name: str) -> None:
    proto = BUILDS[name](Net())
    model = normalise(proto)
    chunks = [oracle.feeds(proto, 4, seed=k) for k in range(2)]
    (expected,) = zip(*(oracle.run(proto, c) for c in chunks), strict=True)
    tensors = [o for node in model.proto.graph.node for o in node.output if o]
    kinds = Model(proto).types
    names = [t for t in tensors if kinds[t].HasField("tensor_type")]
    rng = np.random.default_rng(0)
    result = model.outputs[0].name
    for _ in range(8):
        walk = Walk(model, chunks, runner=Runner(1))
        kept = sorted(rng.choice(len(names), 5, replace=False))
        for count, k in enumerate(kept):
            walk.step([names[k]], [*(names[j] for j in kept[count + 1 :]), result])
        for node in sorted(rng.choice(len(model.proto.graph.node), 2, replace=False)):
            walk.step_to(int(node), [result])
        found = [v[0] for v in walk.step([result], [])]
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)


# -- states that are zero ------------------------------------------------------------------------


def recurrence(initial: str) -> ModelProto:
    n = Net()
    return n.model(recurrent("LSTM", c=3, initial=initial)(n, n.input(BATCH, 4, 3)), rank=3)


@pytest.mark.parametrize("initial", ["zeros", "tiled zeros", "product", "choice"])
def test_a_state_that_is_zero_is_left_out(initial: str) -> None:
    proto = recurrence(initial)
    made = normalise(proto).proto
    (node,) = (n for n in made.graph.node if n.op_type == "LSTM")
    assert len(node.input) == 4
    x = oracle.feeds(proto, 3)
    np.testing.assert_array_equal(oracle.run(made, x)[0], oracle.run(proto, x)[0])


@pytest.mark.parametrize("initial", ["token", "one number", "layer", "tiled number"])
def test_a_state_that_is_not_zero_stays(initial: str) -> None:
    proto = recurrence(initial)
    assert normalise(proto).proto is proto


def test_one_state_of_two_is_left_out() -> None:
    n = Net()
    x = n.op("Transpose", n.input(BATCH, 4, 3), perm=[1, 0, 2])
    shape = n.op("Concat", n.const([1]), n.op("Shape", x, start=1, end=2), n.const([5]), axis=0)
    states = n.op("ConstantOfShape", shape), n.op("Expand", n.weight(1, 1, 5), shape)
    weights = n.weight(1, 20, 3), n.weight(1, 20, 5)
    proto = n.model(n.op("LSTM", x, *weights, "", "", *states, hidden_size=5), rank=4)
    made = normalise(proto).proto
    assert list(made.graph.node[-1].input)[5:] == ["", states[1]]
    x = oracle.feeds(proto, 3)
    np.testing.assert_array_equal(oracle.run(made, x)[0], oracle.run(proto, x)[0])


def test_a_state_that_can_be_given_stays() -> None:
    """An initializer that is an input too is a default, which a user may replace."""
    n = Net()
    weights = n.weight(1, 20, 3), n.weight(1, 20, 5)
    n.input(4, 2, 3)
    state = n.const(np.zeros((1, 2, 5)))
    n.inputs.append(onnx.helper.make_tensor_value_info(state, onnx.TensorProto.FLOAT, [1, 2, 5]))
    proto = n.model(n.op("LSTM", "x0", *weights, "", "", state, hidden_size=5), rank=4)
    assert normalise(proto).proto is proto


def test_the_oracles_notice_a_state_that_was_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = (c for c in CASES["LSTM"] if c.name == "LSTM-initial tiled number")
    oracle.identity(oracle.traced(case.build()))
    monkeypatch.setattr(zero_states, "_is_zero", lambda _: True)
    with pytest.raises(AssertionError, match="an empty plan changed an output"):
        oracle.identity(oracle.traced(case.build()))


def test_a_constant_begins_nothing_beside_an_axis_that_is_one_by_chance() -> None:
    """With another length, the input's axis would not be repeated but meet the constant's."""
    n = Net()
    x, times = n.input(BATCH, 3), n.input(BATCH, "T")
    scales = n.op("Mul", times, n.weight(2))
    proto = n.model(n.gemm(n.op("Mul", n.gemm(x, 3, 2), scales), 2, 3), rank=2)
    whole = normalise(proto)
    first = {"x0": np.ones((2, 3), np.float32), "x1": np.ones((2, 1), np.float32)}
    shapes = observe(whole, first, runner=Runner(1))
    assert shapes.is_dynamic("x1", 1)
    assert not trace(fold(whole, shapes), shapes).groups
