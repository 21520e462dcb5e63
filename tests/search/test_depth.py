"""Whole parts: which are found, that taking them out is proven, and what a user gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.errors import BudgetError, InternalError, OnnxpruneError, PlanError
from onnxprune.model import cost
from onnxprune.model.model import load, normalise
from onnxprune.model.runner import Runner
from onnxprune.model.session import Feeds, Session
from onnxprune.plans.request import Request
from onnxprune.rewrite.verify import compare, verify
from onnxprune.rewrite.without_parts import shorten, silenced, with_gates
from onnxprune.samples.inputs import observe_inputs
from onnxprune.structure.removals import apart, find_removals
from onnxprune.structure.subject import Subject, trace_subject

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "calibration" / "digits"


def subject(model: onnx.ModelProto | Path) -> tuple[Subject, tuple[Feeds, ...]]:
    loaded = load(model) if isinstance(model, Path) else normalise(model)
    shapes = observe_inputs(loaded, None, seed=0, runner=Runner(1))
    return trace_subject(loaded, shapes), shapes.feeds


def parts(found: Subject) -> dict[str, str]:
    """Return the kind of each removal by name."""
    macs = cost.node_macs(found.folded, found.shapes)
    removals = find_removals(found.folded, found.shapes, found.structure, macs)
    return {r.name: r.kind for r in removals}


def network(nodes: list[tuple[str, str, str]], outputs: list[str], **attributes) -> onnx.ModelProto:
    """Return a network of nodes ``(operator, inputs, output)`` on an image of 4 channels.

    Convolutions read weights that are called after them.
    """
    rng = np.random.default_rng(3)
    made, constants = [], []
    for kind, inputs, output in nodes:
        read, own = inputs.split(), {}
        if kind.startswith("Conv"):
            own = {"pads": [1, 1, 1, 1], **attributes.get(output, {})}
            group, out = own.get("group", 1), 4
            values = rng.normal(size=(out, 4 // group, 3, 3)).astype(np.float32) / 6
            constants.append(numpy_helper.from_array(values, f"{output}.w"))
            bias = rng.normal(size=out).astype(np.float32)
            constants.append(numpy_helper.from_array(bias, f"{output}.b"))
            read += [f"{output}.w", f"{output}.b"]
        made.append(helper.make_node(kind, read, [output], **own))
    declare = helper.make_tensor_value_info
    graph = helper.make_graph(
        made,
        "g",
        [declare("x", TensorProto.FLOAT, ["n", 4, 6, 6])],
        [helper.make_empty_tensor_value_info(o) for o in outputs],
        constants,
    )
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


STEM = [("Conv", "x", "c0"), ("Relu", "c0", "s")]
BLOCK = [("Conv", "s", "a"), ("Relu", "a", "h"), ("Conv", "h", "b"), ("Add", "b s", "t")]
LAST = [("Relu", "t", "u"), ("Conv", "u", "y")]
FOUND = {
    "residual": (STEM + BLOCK + LAST, ["y"], {}, {"t": "branch", "h": "layer", "s": "layer"}),
    "added the other way": (
        [*STEM, *BLOCK[:3], ("Add", "s b", "t"), *LAST],
        ["y"],
        {},
        {"t": "branch", "h": "layer"},
    ),
    "projection": (
        [*STEM, *BLOCK[:3], ("Conv", "s", "p"), ("Add", "b p", "t"), *LAST],
        ["y"],
        {},
        {"t": "branch", "h": "layer"},
    ),
    "branch read elsewhere": (STEM + BLOCK + LAST, ["y", "b"], {}, {"h": "layer"}),
    "two towers": (
        [("Conv", "x", "l"), ("Sigmoid", "x", "r0"), ("Conv", "r0", "r"), ("Add", "l r", "t"),
         *LAST],
        ["y"],
        {},
        {"t": "branch"},
    ),
    "chain": (
        [*STEM, ("Conv", "s", "a"), ("Tanh", "a", "h"), ("Conv", "h", "y")],
        ["y"],
        {},
        {"s": "layer", "h": "layer"},
    ),
    "grouped reader": (
        [*STEM, ("Conv", "s", "a"), ("Tanh", "a", "h"), ("Conv", "h", "y")],
        ["y"],
        {"y": {"group": 2}},
        {"s": "layer"},
    ),
    "smaller map": (
        [*STEM, ("Conv", "s", "a"), ("Tanh", "a", "h"), ("Conv", "h", "y")],
        ["y"],
        {"a": {"strides": [2, 2]}},
        {"s": "layer"},
    ),
    "result is an output": (
        [*STEM, ("Conv", "s", "a"), ("Tanh", "a", "h"), ("Conv", "h", "y")],
        ["y", "h"],
        {},
        {"s": "layer"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_parts_are_found_from_the_graph(name: str) -> None:
    nodes, outputs, attributes, expected = FOUND[name]
    found = parts(subject(network(nodes, outputs, **attributes))[0])
    if name == "residual":
        found.pop("s", None)
        expected = {k: v for k, v in expected.items() if k != "s"}
    assert {k: v for k, v in found.items() if k in expected or v == "branch"} == expected


def test_what_is_computed_from_something_else_is_no_branch() -> None:
    nodes = [("Conv", "x", "l"), ("Conv", "z", "r"), ("Add", "l r", "t"), *LAST]
    model = network(nodes, ["y"])
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 4, 6, 6]))
    assert "t" not in parts(subject(model)[0])


@pytest.mark.parametrize("name", FOUND)
def test_taking_parts_out_is_proven(name: str) -> None:
    nodes, outputs, attributes, _ = FOUND[name]
    traced, feeds = subject(network(nodes, outputs, **attributes))
    macs = cost.node_macs(traced.folded, traced.shapes)
    for removal in find_removals(traced.folded, traced.shapes, traced.structure, macs):
        short = shorten(traced.folded, [removal], traced.structure, traced.shapes)
        proof = verify(silenced(traced.folded, [removal]), short, feeds, "model")
        assert proof.max_rel_error < 1e-6
        left = {n.output[0] for n in short.proto.graph.node}
        assert left.isdisjoint(removal.nodes)
        with pytest.raises(InternalError):
            verify(traced.folded, short, feeds, "model that still has it")


@pytest.mark.parametrize("model", sorted((ROOT / "models").glob("*.onnx")), ids=lambda p: p.stem)
def test_many_parts_leave_the_embedded_models(model: Path) -> None:
    traced, feeds = subject(model)
    macs = cost.node_macs(traced.folded, traced.shapes)
    chosen = []
    for removal in find_removals(traced.folded, traced.shapes, traced.structure, macs):
        if all(apart(removal, other) for other in chosen):
            chosen.append(removal)
    assert chosen
    short = shorten(traced.folded, chosen, traced.structure, traced.shapes)
    assert verify(silenced(traced.folded, chosen), short, feeds, "model").max_rel_error < 1e-5
    branches = [r for r in chosen if r.kind == "branch"]
    gated, gates = with_gates(traced.folded, branches)
    assert compare(traced.folded, gated, feeds).max_rel_error < 1e-6
    assert sorted(gates) == sorted(r.name for r in branches)


@pytest.fixture(scope="module")
def shorter() -> onnxprune.PruneResult:
    return onnxprune.prune(
        ROOT / "models" / "digits_resnet.onnx", SAMPLES, mode="depth", layers=2, threads=1
    )


def test_layers_leave_the_file(shorter) -> None:
    report = shorter.report.to_dict()
    assert len(report["removals"]) == 2
    gone = {layer for part in report["removals"] for layer in part["layers"]}
    assert gone.isdisjoint({o for n in shorter.model.graph.node for o in n.output})
    before, after = report["before"], report["after"]
    assert after["layers"] == before["layers"] - len(gone)
    assert after["longest_path"] < before["longest_path"]
    assert after["macs"] < before["macs"]
    assert after["accuracy"] > before["accuracy"] - 0.05
    steps = report["recovery"]["steps"]
    assert any(s["accepted"] for s in steps)
    assert report["recovery"]["loss_with"] < report["recovery"]["loss_without"]


def test_a_plan_reproduces_it(shorter, tmp_path: Path) -> None:
    path = ROOT / "models" / "digits_resnet.onnx"
    request = Request(layers=2, mode="depth", metric="trial", threads=1)
    plan = onnxprune.plan(path, SAMPLES, request)
    assert len(plan.removals) == 2
    onnxprune.save_plan(plan, tmp_path / "plan.json")
    again = onnxprune.apply(path, tmp_path / "plan.json", SAMPLES)
    assert again.model.SerializeToString() == shorter.model.SerializeToString()
    for wrong, message in ((("nonsense",), "no such part"), (plan.removals * 2, "cannot both")):
        with pytest.raises(PlanError, match=message):
            onnxprune.apply(path, replace(plan, removals=wrong), SAMPLES)


@pytest.mark.parametrize("budget", [{"macs": 0.7}, {"params": 0.6}, {"size": 500_000},
                                    {"sparsity": 0.3}])  # fmt: skip
def test_budgets_are_kept(budget: dict[str, float]) -> None:
    path = ROOT / "models" / "digits_resnet.onnx"
    result = onnxprune.prune(path, SAMPLES, mode="depth", recover="none", threads=1, **budget)
    report = result.report.to_dict()
    (kind, wanted), *_ = budget.items()
    if kind == "sparsity":
        assert report["sparsity"]["achieved"] >= wanted
    else:
        assert report[kind]["achieved"] <= wanted
    assert report["removals"]


def test_as_many_leave_as_the_drop_allows() -> None:
    path = ROOT / "models" / "digits_resnet.onnx"
    result = onnxprune.prune(path, SAMPLES, mode="depth", max_drop=0.02, threads=1)
    report = result.report.to_dict()
    assert report["removals"]
    assert report["quality"]["drop"] <= 0.02


def test_a_layer_without_a_path_around_it_is_bypassed() -> None:
    path = ROOT / "models" / "digits_lenet300.onnx"
    report = onnxprune.prune(path, SAMPLES, mode="depth", layers=1, threads=1).report.to_dict()
    assert [part["kind"] for part in report["removals"]] == ["layer"]
    assert (report["before"]["layers"], report["after"]["layers"]) == (3, 2)
    assert report["after"]["accuracy"] > report["before"]["accuracy"] - 0.03


def test_what_cannot_be_done_is_said() -> None:
    path = ROOT / "models" / "digits_lenet300.onnx"
    with pytest.raises(BudgetError, match="only 1 parts can leave"):
        onnxprune.prune(path, SAMPLES, mode="depth", layers=2, threads=1)
    with pytest.raises(OnnxpruneError, match="layers needs mode depth"):
        onnxprune.prune(path, SAMPLES, layers=1)
    with pytest.raises(OnnxpruneError, match="mode depth needs labelled samples"):
        onnxprune.prune(path, mode="depth", layers=1, random_inputs=True)


def dense(*layers: tuple[str, str, str], outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """Return a network of nodes ``(operator, inputs, output)`` on 4 numbers; Gemm has 4 outputs.

    Only Gemm nodes called ``wide`` have 24, and those that read them as many inputs.
    """
    rng, made, constants = np.random.default_rng(5), [], []
    for kind, inputs, output in layers:
        read = inputs.split()
        if kind == "Gemm":
            shape = [24 if name.startswith("wide") else 4 for name in (read[0], output)]
            weights = (rng.normal(size=shape), rng.normal(size=shape[1]))
            for name, values in zip((f"{output}.w", f"{output}.b"), weights, strict=True):
                constants.append(numpy_helper.from_array(values.astype(np.float32), name))
                read.append(name)
        made.append(helper.make_node(kind, read, [output]))
    values = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in ("x", *outputs)
    ]
    graph = helper.make_graph(made, "g", values[:1], values[1:], constants)
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


INNER = [("Gemm", "x", "wide"), ("Relu", "wide", "wide_on")]
LEFT = {
    "a classifier that reads the input": (dense(*INNER, ("Gemm", "wide_on", "y")), 16),
    "nothing but the input": (
        dense(*INNER, ("Gemm", "wide_on", "f"), ("Add", "f x", "y")),
        0,
    ),
    "its softmax": (
        dense(*INNER, ("Gemm", "wide_on", "f"), ("Add", "f x", "t"), ("Softmax", "t", "y")),
        0,
    ),
    "an input that is an output too": (
        dense(*INNER, ("Gemm", "wide_on", "y"), outputs=("y", "x")),
        16,
    ),
    "a second head on the input": (
        dense(*INNER, ("Gemm", "wide_on", "y"), ("Gemm", "x", "z"), outputs=("y", "z")),
        32,
    ),
}


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "vectors.npz"
    x = np.random.default_rng(6).normal(size=(120, 4)).astype(np.float32)
    np.savez(path, x=x, y=x.argmax(axis=1))
    return path


@pytest.mark.parametrize("name", LEFT)
@pytest.mark.parametrize("recover", ["none", "full"])
def test_what_is_left_may_read_an_input_directly(
    name: str, recover: str, vectors: Path, tmp_path: Path
) -> None:
    """The name of an input is asked for as that of any tensor, by trials and by the recovery."""
    model, weights = LEFT[name]
    branch = not weights
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    if recover == "none" and not branch:
        with pytest.raises(BudgetError, match="with recover full only"):
            onnxprune.prune(path, vectors, mode="depth", layers=1, recover=recover, threads=1)
        return
    result = onnxprune.prune(path, vectors, mode="depth", layers=1, recover=recover, threads=1)
    assert len(result.report.removals) == 1
    assert result.report.after.cost.weights == weights
    assert all("wide" not in node.output for node in result.model.graph.node)
    x = np.random.default_rng(7).normal(size=(5, 4)).astype(np.float32)
    before, after = (Session(m).run({"x": x}) for m in (model, result.model))
    assert [v.shape for v in after] == [v.shape for v in before]
    if weights == 16:
        tensors = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer}
        (node,) = (n for n in result.model.graph.node if n.op_type == "Gemm")
        np.testing.assert_allclose(
            after[0], x @ tensors[node.input[1]] + tensors[node.input[2]], rtol=1e-4, atol=1e-5
        )
    if branch:
        expected = x if name == "nothing but the input" else np.exp(x) / np.exp(x).sum(1)[:, None]
        np.testing.assert_allclose(after[0], expected, rtol=1e-4)


def test_what_reads_a_part_that_leaves_may_not_be_excluded(vectors: Path, tmp_path: Path) -> None:
    """It would get new weights."""
    path = tmp_path / "model.onnx"
    onnx.save(LEFT["a classifier that reads the input"][0], path)
    with pytest.raises(BudgetError, match="no layer can be taken out whole"):
        onnxprune.prune(path, vectors, mode="depth", layers=1, exclude=["y.w"], threads=1)


def test_the_best_of_a_sparsity_is_what_leaves(vectors: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(LEFT["a classifier that reads the input"][0], path)
    with pytest.raises(BudgetError, match=r"best achievable is 0\.9167"):
        onnxprune.prune(path, vectors, mode="depth", sparsity=0.95, threads=1)
