"""What a model says beside its function survives; constants of subgraphs stay where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import OnnxpruneError
from onnxprune.model import cost
from onnxprune.model import model as graph
from onnxprune.model.edit import edit, rebuild
from onnxprune.model.nodes import graphs
from onnxprune.model.observe import observe
from onnxprune.model.runner import Runner

RANDOM = {"random_inputs": True, "threads": 1, "cache": False}


def weight(name: str, *shape: int) -> TensorProto:
    rng = np.random.default_rng(len(name) + sum(shape))
    return numpy_helper.from_array(rng.normal(size=shape).astype(np.float32) / 4, name)


def value(name: str, *shape: int | str | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape or None)


def body(nodes: Sequence[NodeProto], output: str, *held: TensorProto) -> GraphProto:
    return helper.make_graph(nodes, "body", [], [value(output)], held)


def net(middle: Sequence[NodeProto], *held: TensorProto, opset: int = 17) -> ModelProto:
    """Two layers from ``x`` to ``q``, then nodes that make ``m``, then a layer."""
    gemm = [(["x", "w1"], "h"), (["q0", "w2"], "q"), (["m", "w3"], "y")]
    first, second, last = (helper.make_node("Gemm", i, [o], name=f"gemm_{o}") for i, o in gemm)
    nodes = [first, helper.make_node("Relu", ["h"], ["q0"]), second, *middle, last]
    weights = [weight("w1", 8, 32), weight("w2", 32, 16), weight("w3", 16, 3)]
    made = helper.make_graph(
        nodes, "g", [value("x", "N", 8)], [value("y", "N", 3)], [*weights, *held]
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=11)


def node(op: str, inputs: str, output: str, **attributes: object) -> NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attributes)


def run(model: ModelProto, batch: int = 5) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    x = np.random.default_rng(1).normal(size=(batch, 8)).astype(np.float32)
    return np.asarray(
        ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]
    )


def round_trip(path: Path) -> ModelProto:
    model = graph.load(path)
    return rebuild(edit(model), model).proto


# -- subgraphs -------------------------------------------------------------------------------


TRUE = numpy_helper.from_array(np.array(True), "c")
BIG = weight("big", 16, 16)


def branches(then: GraphProto, other: GraphProto, output: str = "m") -> NodeProto:
    return node("If", "c", output, then_branch=then, else_branch=other)


def loop() -> ModelProto:
    nodes = [node("MatMul", "v big", "v2"), node("Tanh", "v2", "v3"), node("Identity", "ci", "co")]
    integer, flag = TensorProto.INT64, TensorProto.BOOL
    inputs = [
        helper.make_tensor_value_info("it", integer, []),
        helper.make_tensor_value_info("ci", flag, []),
        value("v"),
    ]
    outputs = [helper.make_tensor_value_info("co", flag, []), value("v3")]
    inner = helper.make_graph(nodes, "loop", inputs, outputs)
    trips = numpy_helper.from_array(np.array(3), "trips")
    return net([node("Loop", "trips c q", "m", body=inner)], TRUE, BIG, trips)


def nested() -> ModelProto:
    inner = branches(
        body([node("MatMul", "q big", "it")], "it"),
        body([node("MatMul", "q own", "ie")], "ie"),
        "i",
    )
    then = [inner, node("Constant", "", "b", value=weight("", 16)), node("Add", "i b", "t")]
    other = body([node("MatMul", "q big", "e")], "e")
    return net([branches(body(then, "t", weight("own", 16, 16)), other)], TRUE, BIG)


def shared() -> ModelProto:
    then = body([node("MatMul", "q big", "t")], "t")
    return net(
        [branches(then, body([node("MatMul", "q big", "f"), node("Relu", "f", "e")], "e"))],
        TRUE,
        BIG,
    )


def siblings() -> ModelProto:
    """Both branches have a constant of their own, with one name."""
    then = body([node("MatMul", "q own", "t")], "t", weight("own", 16, 16))
    other = numpy_helper.from_array(2 * numpy_helper.to_array(weight("own", 16, 16)), "own")
    return net([branches(then, body([node("MatMul", "q own", "e")], "e", other))], TRUE)


def constant_branch() -> ModelProto:
    constant = body([node("Constant", "", "e", value=weight("e", 1, 16))], "e")
    return net(
        [branches(body([], "t", weight("t", 1, 16)), constant, "m0"), node("Add", "q m0", "m")],
        TRUE,
    )


OUTER = 8 * 32 + 32 * 16 + 16 * 3
SUBGRAPHS: dict[str, tuple[Callable[[], ModelProto], int, int, int]] = {
    "loop": (loop, OUTER + 256, OUTER + 256, OUTER),
    "nested": (nested, OUTER + 2 * 256 + 16, OUTER + 2 * 256, OUTER + 256),
    "shared": (shared, OUTER + 256, OUTER + 256, OUTER + 256),
    "siblings": (siblings, OUTER + 2 * 256, OUTER + 2 * 256, OUTER + 256),
    "constant": (constant_branch, OUTER + 32, OUTER, OUTER),
}
"""Models with their parameters, weights and operations for one sample (unknown in a loop)."""


@pytest.mark.parametrize(("build", "params", "weights", "macs"), SUBGRAPHS.values(), ids=SUBGRAPHS)
def test_constants_of_subgraphs(
    tmp_path: Path, build: Callable[[], ModelProto], params: int, weights: int, macs: int
) -> None:
    proto, path = build(), tmp_path / "m.onnx"
    onnx.save(proto, path)
    model = graph.load(path)
    feeds = {"x": np.zeros((2, 8), np.float32)}
    found = cost.measure(model, observe(model, feeds, runner=Runner(1)))
    assert (found.params, found.weights, found.macs) == (params, weights, macs)
    assert found.nonzero_weights == weights
    same = round_trip(path)
    assert np.array_equal(run(proto), run(same))
    names = [
        [{t.name for t in g.initializer} for g in graphs(p.graph)] for p in (model.proto, same)
    ]
    assert names[0] == names[1]
    assert abs(same.ByteSize() - proto.ByteSize()) < 500
    result = onnxprune.prune(path, sparsity=0.2, mode="channels", **RANDOM)
    assert result.report.before.cost.params == params
    assert result.report.achieved == 1 - result.report.after.cost.weights / weights
    assert result.report.achieved >= 0.2
    assert np.isfinite(run(result.model, batch=3)).all()


def test_a_name_inside_that_hides_one_outside_is_refused(tmp_path: Path) -> None:
    then = body([node("MatMul", "q big", "t")], "t", weight("big", 16, 16))
    other = body([node("MatMul", "q big", "e")], "e")
    onnx.save(net([branches(then, other)], TRUE, BIG), tmp_path / "m.onnx")
    with pytest.raises(OnnxpruneError, match="'big' is a tensor outside a subgraph and another"):
        onnxprune.prune(tmp_path / "m.onnx", sparsity=0.2, **RANDOM)


def test_zeros_name_what_can_be_reached_beside_subgraphs(tmp_path: Path) -> None:
    onnx.save(shared(), tmp_path / "m.onnx")
    with pytest.raises(OnnxpruneError, match=r"sparsity 0\.9 cannot.* is 0\.7\d* \(256 weights"):
        onnxprune.prune(tmp_path / "m.onnx", sparsity=0.9, mode="weights", **RANDOM)


# -- metadata --------------------------------------------------------------------------------


def entry(message: object, key: str) -> None:
    message.metadata_props.add(key=key, value=f"\x1b {key}\n")  # type: ignore[attr-defined]


def talkative() -> ModelProto:
    """A model that says something wherever it can, with a node that the clean-up takes out."""
    model = net([node("Relu", "q", "m0"), node("Identity", "m0", "m")], opset=20)
    made = onnx.shape_inference.infer_shapes(model).graph
    model.graph.value_info.extend(made.value_info)
    model.doc_string, model.graph.doc_string, model.domain = "model", "graph", "org.example"
    entry(model, "of model")
    entry(model.graph, "of graph")
    device = model.configuration.add(name="two", num_devices=2)
    assert device.num_devices == 2
    groups = (model.graph.node, model.graph.initializer, model.graph.value_info, model.graph.input)
    for group in groups:
        for item in group:
            entry(item, f"of {item.name}")
            item.doc_string = f"about {item.name}"
    for item in model.graph.node:
        item.device_configurations.add(configuration_id="two", pipeline_stage=1)
        for attribute in item.attribute:
            attribute.doc_string = "about an attribute"
    model.graph.initializer.extend(
        [numpy_helper.from_array(np.float32(0.5), "s"), weight("by_channel", 32)]
    )
    for name, scale in (("h", "s"), ("h", "elsewhere"), ("w1", "by_channel"), ("w3", "s")):
        said = model.graph.quantization_annotation.add(tensor_name=name)
        said.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=scale)
    return model


def said_of(model: ModelProto) -> dict[str, list[object]]:
    """Return all that is said, by what it is said of."""
    result: dict[str, list[object]] = {}
    items = [
        *(("node", i) for i in model.graph.node if i.metadata_props),
        *(("tensor", i) for i in model.graph.initializer if i.metadata_props),
        *(("value", i) for i in model.graph.value_info if i.metadata_props),
        *(("input", i) for i in model.graph.input),
    ]
    for kind, item in items:
        result[f"{kind} {item.name}"] = [
            item.doc_string,
            [(p.key, p.value) for p in item.metadata_props],
            len(item.device_configurations) if kind == "node" else None,
        ]
    props = [(p.key, p.value) for p in model.metadata_props if not p.key.startswith("onnxprune.")]
    result["model"] = [model.doc_string, model.domain, props, list(model.configuration)]
    result["graph"] = [
        model.graph.doc_string,
        [(p.key, p.value) for p in model.graph.metadata_props],
    ]
    return result


REWRITES: dict[str, dict[str, object]] = {
    "channels": {"sparsity": 0.4, "mode": "channels"},
    "weights": {"sparsity": 0.4, "mode": "weights"},
    "auto": {"sparsity": 0.4},
    "lossless": {"lossless": True},
}


@pytest.mark.parametrize("how", REWRITES.values(), ids=REWRITES)
def test_what_is_said_survives(tmp_path: Path, how: dict[str, object]) -> None:
    model, path = talkative(), tmp_path / "m.onnx"
    model.graph.node[-2].name = "passes on"
    onnx.save(model, path)
    result = onnxprune.prune(path, **how, **RANDOM)  # type: ignore[arg-type]
    onnxprune.save(result, tmp_path / "out.onnx")
    before, after = said_of(model), said_of(onnx.load(tmp_path / "out.onnx"))
    gone = {"node passes on", "value m"} | ({"value m0"} if "value m0" not in after else set())
    assert {k: v for k, v in before.items() if k not in gone} == after or before == after
    annotations = [
        (a.tensor_name, a.quant_parameter_tensor_names[0].value)
        for a in result.model.graph.quantization_annotation
    ]
    everything = [("h", "s"), ("h", "elsewhere"), ("w1", "by_channel"), ("w3", "s")]
    cut = result.report.after.cost.params < result.report.before.cost.params - 33
    assert annotations == [a for a in everything if not (cut and "by_channel" in a)]
    names = {t.name for t in result.model.graph.initializer}
    assert {"s"} | (set() if cut else {"by_channel"}) <= names


def test_recovery_keeps_what_is_said(tmp_path: Path) -> None:
    model, path = talkative(), tmp_path / "m.onnx"
    onnx.save(model, path)
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    x = rng.normal(size=(90, 8)).astype(np.float32) + labels[:, None]
    np.savez(tmp_path / "d.npz", x=x, y=labels)
    result = onnxprune.prune(
        path, tmp_path / "d.npz", sparsity=0.4, mode="channels", threads=1, cache=False
    )
    after = said_of(result.model)
    assert {"tensor w1", "tensor w2", "tensor w3", "node gemm_h", "value h"} <= after.keys()
    assert all(said_of(model)[key] == said for key, said in after.items())


def test_attributes_survive_as_they_are(tmp_path: Path) -> None:
    """An empty list, a type and a documentation: onnx-graphsurgeon knows none of them."""
    empty = node("Optional", "", "none")
    empty.input[:] = []
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    empty.attribute.append(helper.make_attribute("type", kind))
    has = node("OptionalHasElement", "none", "has")
    keeps = node("Where", "has q0b q", "m")
    cast = node("Identity", "q", "q0b")
    model = net([cast, empty, has, keeps], opset=18)
    model.graph.node[0].attribute.append(helper.make_attribute("alpha", 1.0, "about alpha"))
    onnx.save(model, tmp_path / "m.onnx")
    same = round_trip(tmp_path / "m.onnx")
    attributes = {n.op_type: list(n.attribute) for n in same.graph.node}
    assert attributes["Optional"][0].tp == kind
    assert next(a for n in same.graph.node for a in n.attribute if a.name == "alpha").doc_string
    assert np.array_equal(run(model), run(same))


def test_a_folded_weight_keeps_what_is_said(tmp_path: Path) -> None:
    turned = [node("Transpose", "wt", "w", perm=[1, 0]), node("MatMul", "q1 w", "a")]
    model = net([node("Relu", "q", "q1"), *turned, node("Relu", "a", "m")])
    model.graph.initializer.append(weight("wt", 16, 16))
    model.graph.initializer[-1].doc_string = "about wt"
    onnx.save(model, tmp_path / "m.onnx")
    result = onnxprune.prune(tmp_path / "m.onnx", sparsity=0.3, mode="channels", **RANDOM)
    assert {t.name: t.doc_string for t in result.model.graph.initializer}["wt"] == "about wt"


def test_training_graphs_leave_with_a_warning(tmp_path: Path) -> None:
    model = net([node("Relu", "q", "m")])
    model.training_info.add().algorithm.name = "step"
    onnx.save(model, tmp_path / "m.onnx")
    result = onnxprune.prune(tmp_path / "m.onnx", sparsity=0.3, mode="channels", **RANDOM)
    assert not result.model.training_info
    assert any("graphs to train the model" in text for text in result.report.warnings)


# -- sparse constants ------------------------------------------------------------------------


def sparse(tensor: TensorProto, *, flat: bool, wrong: str = "") -> onnx.SparseTensorProto:
    values = numpy_helper.to_array(tensor).copy()
    values[np.abs(values) < 0.2] = 0
    places = np.flatnonzero(values) if flat else np.argwhere(values)
    kept = values[values != 0]
    if wrong == "index":
        places[-1] = 10**6
    if wrong == "count":
        kept = kept[:-1]
    dims = [2**40, 2**40] if wrong == "size" else list(values.shape)
    return helper.make_sparse_tensor(
        numpy_helper.from_array(kept, tensor.name),
        numpy_helper.from_array(places.astype(np.int64), f"{tensor.name}/indices"),
        dims,
    )


def with_sparse(*, flat: bool, inside: bool, wrong: str = "") -> ModelProto:
    model = shared()
    held = {t.name: t for t in model.graph.initializer}
    for name in ("w1", "w2", "big"):
        made = sparse(held[name], flat=flat, wrong=wrong)
        model.graph.initializer.remove(held[name])
        if not inside or name == "big":
            model.graph.sparse_initializer.append(made)
            continue
        constant = helper.make_node("Constant", [], [name], sparse_value=made)
        model.graph.node.insert(0, constant)
    return model


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_sparse_constants_are_made_dense(tmp_path: Path, flat: bool, inside: bool) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(with_sparse(flat=flat, inside=inside), path)
    dense = shared()
    for tensor in dense.graph.initializer:
        if tensor.name in ("w1", "w2", "big"):
            values = numpy_helper.to_array(tensor).copy()
            values[np.abs(values) < 0.2] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    assert np.array_equal(run(dense), run(round_trip(path)))
    result = onnxprune.prune(path, sparsity=0.3, mode="channels", **RANDOM)
    assert result.report.achieved >= 0.3
    assert result.report.before.cost.weights == OUTER + 256
    assert not result.model.graph.sparse_initializer


@pytest.mark.parametrize("wrong", ["index", "count", "size"])
@pytest.mark.parametrize("flat", [True, False])
def test_damaged_sparse_constants(tmp_path: Path, flat: bool, wrong: str) -> None:
    onnx.save(with_sparse(flat=flat, inside=False, wrong=wrong), tmp_path / "m.onnx")
    with pytest.raises(OnnxpruneError, match=r"onnx: sparse tensor 'w1'.*(do not fit|more than)"):
        graph.load(tmp_path / "m.onnx")
