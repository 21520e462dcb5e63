"""Clean-up: what is planted is found, what is left computes the same, nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
from cases import CASES
from hypothesis import HealthCheck, assume, given, settings
from onnx import ModelProto, TensorProto, helper, numpy_helper
from strategies import BATCH, Net, networks
from validity import check as check_valid

from onnxprune.clean import clean_up as cleaning
from onnxprune.clean.clean_up import CleanUp, clean_up
from onnxprune.model import model as graph
from onnxprune.model.runner import Runner
from onnxprune.structure.structure import Structure

Array = np.ndarray[Any, Any]
TOLERANCE = 1e-5

FOLLOWED = (
    "convolution depthwise batch_norm activation residual padded_residual dense_concat "
    "split_concat gated pool affine grouped upsample"
).split()
"""Blocks through which relations between channels are followed."""


def cleaned(proto: ModelProto) -> tuple[ModelProto, CleanUp]:
    """Clean a model up and hold the result against it, on samples that the product did not see."""
    model = graph.normalise(proto)
    result, what = clean_up(model, oracle.feeds(proto, 2), runner=Runner(1))
    assert bool(what) == (result is not model)
    check_valid(result.proto)
    for ours, theirs in (
        (result.proto.graph.input, proto.graph.input),
        (result.proto.graph.output, proto.graph.output),
    ):
        assert [v.SerializeToString() for v in ours] == [v.SerializeToString() for v in theirs]
    for batch in (3, 5) if oracle.has_dynamic_batch(proto) else (2,):
        inputs = oracle.feeds(proto, batch, seed=7)
        found = oracle.error(oracle.run(proto, inputs), oracle.run(result.proto, inputs))
        assert found <= TOLERANCE, f"cleaning changed the outputs: error {found:.2g}"
    return result.proto, what


# -- planting ------------------------------------------------------------------------------------


def values_of(proto: ModelProto) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t).copy() for t in proto.graph.initializer}


def with_values(proto: ModelProto, values: dict[str, Array]) -> ModelProto:
    result = ModelProto()
    result.CopyFrom(proto)
    for tensor in result.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return result


def places(structure: Structure, labels: Array, unit: int) -> Array:
    index, units = structure.units.atoms(labels)
    return index[units == unit]


def plant(proto: ModelProto, structure: Structure, unit: int, twin: int, kind: str) -> ModelProto:
    """Make a unit a constant, or a copy of a twin, by all that produces it; readers stay."""
    values = values_of(proto)
    summing = {sink.node for sink in structure.sinks}
    data = {(w.tensor, w.data_labels.tobytes()) for w in structure.weights
            if w.data_labels is not None and w.node in summing}  # fmt: skip
    weights = {w.tensor for w in structure.weights}
    for site in structure.sites:
        here = places(structure, site.labels, unit)
        if (site.tensor, site.labels.tobytes()) in data or not len(here):
            continue
        array = np.moveaxis(values[site.tensor], site.axis, 0)
        if kind == "duplicate":
            array[here] = array[places(structure, site.labels, twin)]
        elif site.tensor in weights:
            array[here] = 0
    return with_values(proto, values)


def removable(proto: ModelProto, structure: Structure, unit: int) -> bool:
    """Whether what a constant unit brings is zero, or read without padding, wherever it is summed.

    Measured, not derived.
    """
    inputs = oracle.feeds(proto, 4, seed=3)
    nodes = {n.output[0]: n for n in proto.graph.node}
    for sink in structure.sinks:
        here = places(structure, sink.labels, unit)
        if not len(here):
            continue
        node = nodes[sink.node]
        probe = ModelProto()
        probe.CopyFrom(proto)
        probe.graph.output.append(helper.make_empty_tensor_value_info(node.input[sink.input]))
        read = np.moveaxis(oracle.run(probe, inputs)[-1], sink.axis, 0)[here]
        pads = next((a.ints for a in node.attribute if a.name == "pads"), [])
        if read.any() and (any(pads) or node.op_type not in ("Conv", "Gemm", "MatMul")):
            return False
        if np.ptp(read.reshape(len(here), -1), axis=1).max() > 0:
            return False
    return True


SETTINGS = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@SETTINGS
@given(networks(4, FOLLOWED, shared=False), st.integers(0, 1000), st.booleans())
def test_planted_duplicates_are_found(proto: ModelProto, seed: int, twice: bool) -> None:
    t = oracle.traced(proto)
    groups = [g for g in t.structure.groups if len(g.units) >= 3]
    assume(groups)
    rng = np.random.default_rng(seed)
    group = groups[seed % len(groups)]
    original, *copies = rng.permutation(group.units)[: 3 if twice else 2]
    planted = proto
    for copy in copies:
        planted = plant(planted, t.structure, int(copy), int(original), "duplicate")
    small, what = cleaned(planted)
    assert sum(what.channels.values()) >= len(copies)
    assert not what.dropped
    assert oracle.weight_elements(small) < oracle.weight_elements(t.model.proto)


@SETTINGS
@given(networks(4, FOLLOWED, shared=False), st.integers(0, 1000))
def test_planted_constants_are_found(proto: ModelProto, seed: int) -> None:
    t = oracle.traced(proto)
    groups = [g for g in t.structure.groups if len(g.units) >= 3]
    assume(groups)
    group = groups[seed % len(groups)]
    unit, twin = (int(u) for u in np.random.default_rng(seed).permutation(group.units)[:2])
    planted = plant(proto, t.structure, unit, twin, "constant")
    _, what = cleaned(planted)
    assert not what.dropped
    if removable(planted, t.structure, unit):
        assert sum(what.channels.values()) + what.branches >= 1


PLAIN = [kind for kind in FOLLOWED if kind != "padded_residual"]
"""Blocks that never do nothing; that one may pad by zero."""


@SETTINGS
@given(networks(4, PLAIN, shared=False))
def test_a_model_without_redundancy_is_returned_as_it_is(proto: ModelProto) -> None:
    _, what = cleaned(proto)
    assert not what


@SETTINGS
@given(networks(4), st.integers(0, 1000), st.sampled_from(["duplicate", "constant"]))
def test_cleaning_is_right_for_every_network(proto: ModelProto, seed: int, kind: str) -> None:
    t = oracle.traced(proto)
    groups = [g for g in t.structure.groups if len(g.units) >= 2]
    if groups:
        group = groups[seed % len(groups)]
        unit, twin = (int(u) for u in np.random.default_rng(seed).permutation(group.units)[:2])
        proto = plant(proto, t.structure, unit, twin, kind)
    cleaned(proto)


# -- kinds -----------------------------------------------------------------------------------------


def two_layers(
    change: Callable[[Array, Array], None],
    *,
    kernel: int = 1,
    between: str = "Relu",
    readers: tuple[float, ...] = (),
) -> ModelProto:
    """Conv to 6 channels, an activation, Conv with a kernel; ``change`` the first layer."""
    n = Net()
    x = n.op(between, n.conv(n.input(BATCH, 2, 4, 4), 2, 6, 3))
    proto = n.model(n.conv(x, 6, 3, kernel))
    values = values_of(proto)
    weight, bias = (values[name] for name in proto.graph.node[0].input[1:])
    change(weight, bias)
    for k, value in enumerate(readers):
        values[proto.graph.node[-1].input[1]][:, k] *= value
    return with_values(proto, values)


def set_rows(**rows: tuple[float, float]) -> Callable[[Array, Array], None]:
    """Make rows a multiple of row 0, with a bias of a multiple of bias 0."""

    def change(weight: Array, bias: Array) -> None:
        for name, (times, plus) in rows.items():
            k = int(name[1:])
            weight[k], bias[k] = times * weight[0], times * bias[0] + plus

    return change


KINDS: dict[str, tuple[ModelProto, dict[str, int]]] = {
    "zero": (two_layers(set_rows(r2=(0, 0))), {"dead": 1}),
    "constant below zero": (two_layers(set_rows(r2=(0, -1)), kernel=3), {"dead": 1}),
    "constant": (two_layers(set_rows(r2=(0, 0.7))), {"constant": 1}),
    "constant in padding": (two_layers(set_rows(r2=(0, 0.7)), kernel=3), {}),
    "two constants in padding": (
        two_layers(set_rows(r2=(0, 0.7), r4=(0, 0.7)), kernel=3), {"duplicate": 1},
    ),
    "sigmoid of zero": (two_layers(set_rows(r1=(0, 0)), between="Sigmoid"), {"constant": 1}),
    "duplicate": (two_layers(set_rows(r3=(1, 0)), kernel=3), {"duplicate": 1}),
    "three alike": (two_layers(set_rows(r3=(1, 0), r5=(1, 0))), {"duplicate": 2}),
    "scaled": (two_layers(set_rows(r3=(2.7, 0)), kernel=3), {}),
    "scaled and negative": (two_layers(set_rows(r3=(-2.7, 0))), {}),
    "scaled behind sigmoid": (two_layers(set_rows(r3=(2.7, 0)), between="Sigmoid"), {}),
    "shifted before linear": (two_layers(set_rows(r3=(1, 0.3)), between="Identity"), {}),
    "two different constants in padding": (
        two_layers(set_rows(r2=(0, 0.7), r4=(0, 2)), kernel=3), {},
    ),
    "nearly a duplicate": (two_layers(set_rows(r3=(1, 1e-3))), {}),
    "not read": (two_layers(set_rows(), kernel=3, readers=(1, 0, 1, 0)), {"unread": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_kinds(name: str) -> None:
    proto, expected = KINDS[name]
    small, what = cleaned(proto)
    assert dict(what.channels) == expected
    rows = {t.name: t.dims[0] for t in small.graph.initializer}
    conv = next(n for n in small.graph.node if n.op_type == "Conv")
    assert what.merged or rows[conv.input[1]] == 6 - sum(expected.values())


@pytest.mark.parametrize(
    ("align", "left"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7, 1)]
)
def test_a_width_that_runs_fast_stays_one(align: int, left: int) -> None:
    """Of 6 channels 5 are dead: a width that is a multiple, or can come down to one, is one."""

    def off(weight: Array, bias: Array) -> None:
        weight[:], bias[:] = 0, -1

    proto = two_layers(off)
    model = graph.normalise(proto)
    result, what = clean_up(model, oracle.feeds(proto, 2), align=align, runner=Runner(1))
    assert what.channels.get("dead", 0) == 6 - left
    rows = {t.name: t.dims[0] for t in result.proto.graph.initializer}
    conv = next(node for node in result.proto.graph.node if node.op_type == "Conv")
    assert rows[conv.input[1]] == left


def test_one_channel_of_a_dead_layer_stays() -> None:
    def off(weight: Array, bias: Array) -> None:
        weight[:], bias[:] = 0, -1

    small, what = cleaned(two_layers(off))
    assert what.channels == {"dead": 5}
    assert [n.op_type for n in small.graph.node] == ["Conv", "Relu", "Conv"]


def test_a_dead_branch_leaves() -> None:
    n = Net()
    x = n.op("Relu", n.conv(n.input(BATCH, 2, 4, 4), 2, 4, 3))
    inner = n.op("Relu", n.conv(x, 4, 5, 3, name="inner"))
    y = n.op("Add", x, n.conv(inner, 5, 4, name="outer"))
    proto = n.model(n.conv(y, 4, 3))
    values = values_of(proto)
    inner_node, outer_node = (next(m for m in proto.graph.node if m.name == k)
                              for k in ("inner", "outer"))  # fmt: skip
    values[inner_node.input[1]][:], values[inner_node.input[2]][:] = 0, -1
    small, what = cleaned(with_values(proto, values))
    assert what.branches == 1
    assert [m.op_type for m in small.graph.node] == ["Conv", "Relu", "Add", "Conv"]
    values[outer_node.input[2]][:] = 0
    small, what = cleaned(with_values(proto, values))
    assert [m.op_type for m in small.graph.node] == ["Conv", "Relu", "Conv"]
    assert what.nodes == {"Add": 1}


def test_what_is_not_exact_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    proto, _ = KINDS["constant"]
    monkeypatch.setattr(cleaning, "absorb", lambda _, pruned, *__: pruned)
    model = graph.normalise(proto)
    result, what = clean_up(model, oracle.feeds(proto, 2), runner=Runner(1))
    assert result is model
    assert not what
    assert what.dropped == ("channels",)
    (warning,) = what.warnings()
    assert "channels that do nothing were found" in warning


def test_excluded_layers_stay() -> None:
    proto, _ = KINDS["duplicate"]
    model = graph.normalise(proto)
    for pattern in ("Conv", proto.graph.node[0].input[1]):
        result, what = clean_up(model, oracle.feeds(proto, 2), exclude=[pattern], runner=Runner(1))
        assert result is model
        assert not what


# -- nodes -----------------------------------------------------------------------------------------

NOOPS: dict[str, tuple[str, Callable[[Net, str], str]]] = {
    "identity": ("Identity", lambda n, x: n.op("Identity", x)),
    "dropout": ("Dropout", lambda n, x: n.op("Dropout", x, n.const(0.5))),
    "times one": ("Mul", lambda n, x: n.op("Mul", x, n.const(np.ones((4, 1, 1))))),
    "one times": ("Mul", lambda n, x: n.op("Mul", n.const(1.0), x)),
    "plus zero": ("Add", lambda n, x: n.op("Add", x, n.const(0.0))),
    "minus zero": ("Sub", lambda n, x: n.op("Sub", x, n.const(0.0))),
    "by one": ("Div", lambda n, x: n.op("Div", x, n.const(1.0))),
    "power one": ("Pow", lambda n, x: n.op("Pow", x, n.const(1.0))),
    "reshape": ("Reshape", lambda n, x: n.op("Reshape", x, n.const([0, 0, 4, 4]))),
    "transpose": ("Transpose", lambda n, x: n.op("Transpose", x, perm=[0, 1, 2, 3])),
    "cast": ("Cast", lambda n, x: n.op("Cast", x, to=TensorProto.FLOAT)),
    "pad": ("Pad", lambda n, x: n.op("Pad", x, n.const([0] * 8))),
    "concat": ("Concat", lambda n, x: n.op("Concat", x, axis=1)),
    "sum": ("Sum", lambda n, x: n.op("Sum", x)),
    "slice": ("Slice", lambda n, x: n.op("Slice", x, n.const([0]), n.const([99]), n.const([2]))),
    "expand": ("Expand", lambda n, x: n.op("Expand", x, n.const([1, 4, 1, 1]))),
    "tile": ("Tile", lambda n, x: n.op("Tile", x, n.const([1, 1, 1, 1]))),
    "pool": ("MaxPool", lambda n, x: n.op("MaxPool", x, kernel_shape=[1, 1])),
    "clip": ("Clip", lambda n, x: n.op("Clip", x)),
    "relu of relu": ("Relu", lambda n, x: n.op("Relu", n.op("Relu", x))),
}
NOT_NOOPS: dict[str, Callable[[Net, str], str]] = {
    "two minus": lambda n, x: n.op("Sub", n.const(0.0), x),
    "one by": lambda n, x: n.op("Div", n.const(1.0), n.op("Exp", x)),
    "plus zeros that widen": lambda n, x: n.op(
        "Add", n.op("GlobalMaxPool", x), n.const(np.zeros((1, 1, 4, 4)))
    ),
    "backwards": lambda n, x: n.op(
        "Slice", x, n.const([-1]), n.const([-9]), n.const([2]), n.const([-1])
    ),
    "turned": lambda n, x: n.op("Transpose", x, perm=[0, 1, 3, 2]),
    "shifted": lambda n, x: n.op("Pad", x, n.const([0, 0, 1, 0, 0, 0, -1, 0])),
    "relu": lambda n, x: n.op("Relu", x),
    "pool": lambda n, x: n.op("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "rounded": lambda n, x: n.op("Cast", n.op("Cast", x, to=TensorProto.INT32), to=1),
    "clip": lambda n, x: n.op("Clip", x, n.const(-0.1)),
}


def around(body: Callable[[Net, str], str]) -> ModelProto:
    n = Net()
    x = n.conv(n.input(BATCH, 2, 4, 4), 2, 4, 3)
    return n.model(n.conv(body(n, x), 4, 3))


@pytest.mark.parametrize("name", NOOPS)
def test_noops_leave(name: str) -> None:
    op_type, body = NOOPS[name]
    small, what = cleaned(around(body))
    assert what.nodes == {op_type: 1}
    assert not any(what.channels.values())
    # The two convolutions, if nothing is left between them, are merged next.
    assert len(small.graph.node) == (3 if name == "relu of relu" else 2) - what.merged


@pytest.mark.parametrize("name", NOT_NOOPS)
def test_what_works_stays(name: str) -> None:
    assert not cleaned(around(NOT_NOOPS[name]))[1]


def test_outputs_keep_their_names() -> None:
    n = Net()
    x = n.conv(n.input(BATCH, 2, 4, 4), 2, 4, 3)
    y = n.op("Identity", x)
    small, what = cleaned(n.model(y, n.conv(x, 4, 3)))
    assert what.nodes == {"Identity": 1}
    assert len(small.graph.node) == 2


def test_an_output_that_is_an_input_stays() -> None:
    n = Net()
    x = n.input(BATCH, 2, 4, 4)
    assert not cleaned(n.model(n.op("Identity", x), n.conv(x, 2, 3)))[1]


@pytest.mark.parametrize("op_type", sorted(CASES))
def test_cleaning_is_right_for_every_operator(op_type: str) -> None:
    for case in CASES[op_type]:
        proto = case.build()
        if np.isfinite(np.concatenate([v.ravel() for v in oracle.run(
            proto, oracle.feeds(proto, 3, seed=7))])).all():  # fmt: skip
            cleaned(proto)
