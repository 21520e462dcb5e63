"""The solver against numpy, the pass over the layers, and the gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxprune import prune
from onnxprune.decide.elimination import GroupReader, eliminate
from onnxprune.decide.weight_damage import refitted
from onnxprune.linear.layer import affected, prepare
from onnxprune.linear.matrix_form import MatrixForm
from onnxprune.linear.moments import Moments
from onnxprune.linear.ridge import Inverse, ridge, ridge_rows
from onnxprune.model.folding import fold
from onnxprune.model.model import Model, normalise
from onnxprune.model.observe import observe
from onnxprune.model.runner import Runner
from onnxprune.model.session import Session
from onnxprune.model.stepwise import Walk
from onnxprune.plans.cut import Cut
from onnxprune.plans.plan import PruningPlan, plan_from_units
from onnxprune.recover.classifier import refit_classifier
from onnxprune.recover.ladder import Judgement, Ladder
from onnxprune.recover.layers import with_constants
from onnxprune.recover.least_squares import fit_layers
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.structure.trace import trace


def moments(x: np.ndarray, y: np.ndarray) -> Moments:
    result = Moments.shifted(x[0].astype(float), y[0].astype(float))
    for rows in np.array_split(np.arange(len(x)), 3):
        result.add(x[rows], y[rows])
    return result


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 5), st.floats(-100, 100))
def test_the_solver_equals_lstsq(seed: int, width: int, outputs: int, offset: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60, width)) + offset
    y = rng.normal(size=(60, outputs))
    found = moments(x, y)
    weights = ridge(found, np.zeros((outputs, width)), 1e-12)
    expected = np.linalg.lstsq(np.column_stack([x, np.ones(60)]), y, rcond=None)[0]
    np.testing.assert_allclose(weights, expected[:-1].T, rtol=1e-4, atol=1e-6)
    bias = found.intercept(weights)
    residual = ((x @ weights.T + bias - y) ** 2).sum(axis=1).mean()
    assert found.error(weights, bias) == pytest.approx(residual, rel=1e-6)


def test_rows_are_solved_on_their_supports() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 6)), rng.normal(size=(80, 3))
    support = rng.random((3, 6)) < 0.5
    support[0] = [True, *[False] * 5]
    weights = ridge(moments(x, y), np.ones((3, 6)), 1e-12, support)
    assert (weights[~support] == 0).all()
    for row in range(3):
        own = np.flatnonzero(support[row])
        design = np.column_stack([x[:, own], np.ones(80)])
        expected = np.linalg.lstsq(design, y[:, row], rcond=None)[0][:-1]
        np.testing.assert_allclose(weights[row, own], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_rows_are_solved_as_in_a_plain_loop(shift: float) -> None:
    """Also where a damped covariance is not positive, and for rows without any support."""
    rng = np.random.default_rng(4)
    a = rng.normal(size=(60, 9))
    xx = a.T @ a / 60 - shift * np.eye(9)
    support, gap, damping = rng.random((7, 9)) < 0.5, rng.normal(size=(7, 9)), 1e-2
    support[3] = False
    support[5] = True
    kept = xx.copy()
    expected = np.zeros_like(gap)
    for row, own in enumerate(map(np.flatnonzero, support)):
        part = xx[np.ix_(own, own)]
        values, vectors = np.linalg.eigh(part)
        inverse = np.linalg.inv(part + damping * np.eye(len(own)))
        if len(own) and values.min() + damping <= 0:
            inverse = (vectors / (np.maximum(values, 0) + damping)) @ vectors.T
        expected[row, own] = gap[row, own] @ inverse
    assert shift == 0.0 or np.linalg.eigvalsh(xx)[0] < -damping
    inverse = Inverse(xx, damping, support)
    for _ in range(2):
        np.testing.assert_allclose(inverse(gap), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(Inverse(xx, damping)(gap)[5], expected[5], rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(xx, kept)


def test_conjugate_gradients_agree_with_exact_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 20))
    covariance = x.T @ x / 200
    old, support = rng.normal(size=(12, 20)), rng.random((12, 20)) < 0.6
    exact = ridge_rows(old, covariance, support, 1e-3)
    monkeypatch.setattr("onnxprune.linear.ridge.ROW_WIDTH", 2)
    np.testing.assert_allclose(ridge_rows(old, covariance, support, 1e-3), exact, atol=1e-5)


def test_rows_refitted_from_near_the_result() -> None:
    """A few steps from the rows of a support that is a little larger come close to them."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(400, 60)) @ rng.normal(size=(60, 60))
    covariance = x.T @ x / 400
    damping = 1e-3 * float(np.diagonal(covariance).mean())
    old, worth = rng.normal(size=(12, 60)), rng.random((12, 60))
    before, support = worth < 0.65, worth < 0.6
    near = ridge_rows(old, covariance, before, damping)
    exact = ridge_rows(old, covariance, support, damping)
    found = ridge_rows(old, covariance, support, damping, near)

    def error(rows: np.ndarray) -> float:
        return float(np.einsum("od,de,oe->", rows - old, covariance, rows - old))

    assert (found[~support] == 0).all()
    assert error(found) < 1.05 * error(exact) < error(near * support)


@pytest.mark.parametrize("case", ["constant", "dead", "duplicate", "few", "outlier", "zero rows"])
def test_degenerate_inputs_give_finite_weights(case: str) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(3 if case == "few" else 50, 8)).astype(np.float32)
    if case == "constant":
        x[:] = 7.0
    elif case == "dead":
        x[:, 3] = 0.0
    elif case == "duplicate":
        x[:, 1] = x[:, 0]
    elif case == "outlier":
        x[0] = 1e15
    y = rng.normal(size=(len(x), 2)).astype(np.float32)
    old = rng.normal(size=(2, 8))
    found = moments(x, y)
    for support in (None, rng.random((2, 8)) < 0.5):
        weights = ridge(found, old, 1e-3, support)
        assert np.isfinite(weights).all()
        assert np.isfinite(found.intercept(weights)).all()
        if case == "constant":
            np.testing.assert_array_equal(weights, old if support is None else old * support)
        if case == "dead" and support is None:
            np.testing.assert_array_equal(weights[:, 3], old[:, 3])


def run_node(node: onnx.NodeProto, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    value = helper.make_tensor_value_info
    g = helper.make_graph(
        [node],
        "g",
        [value("x", TensorProto.FLOAT, x.shape)],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(w, "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    return Session(helper.make_model(g, opset_imports=opset, ir_version=8)).run({"x": x})[0]


FORMS = [
    ("Conv", {"pads": [1, 0, 2, 1], "strides": [2, 1]}, (6, 4, 3, 2), 1),
    ("Conv", {"group": 2, "dilations": [2, 1]}, (6, 2, 2, 3), 1),
    ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (3, 4, 3, 3), 1),
    ("Conv", {"auto_pad": "SAME_LOWER", "strides": [2, 3]}, (3, 4, 2, 2), 1),
    ("Conv", {"group": 4, "pads": [1, 1, 1, 1]}, (4, 1, 3, 3), 1),
    ("ConvTranspose", {"strides": [2, 3], "pads": [1, 0, 0, 1]}, (4, 5, 3, 3), 1),
    ("ConvTranspose", {"group": 2, "strides": [2, 2], "output_padding": [1, 1]}, (4, 3, 2, 3), 1),
]


@pytest.mark.parametrize(("op", "attributes", "shape", "axis"), FORMS)
@pytest.mark.parametrize("count", [5, 10**6])
def test_unfolded_layers_compute_the_same(op, attributes, shape, axis, count) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(3, 4, 7, 6)).astype(np.float32)
    w = rng.normal(size=shape).astype(np.float32)
    y = run_node(helper.make_node(op, ["x", "w"], ["y"], **attributes), x, w)
    form = MatrixForm(op, shape, attributes, axis, axis - 4, outputs_first=True)
    np.testing.assert_array_equal(form.to_tensor(form.to_matrix(w)), w)
    rows = form.rows(x, y, count, rng)
    inputs, targets = form.inputs(x, y.shape, rows), form.targets(y, rows)
    np.testing.assert_allclose(
        inputs @ form.to_matrix(w).swapaxes(1, 2), targets, rtol=1e-4, atol=1e-4
    )


def block(seed: int = 0, width: int = 8, dtype: type = np.float32) -> Model:
    """Conv, Relu, Conv, Add of the input, Relu, pool, Gemm: a residual block with a head."""
    rng = np.random.default_rng(seed)

    def constant(name: str, *shape: int) -> onnx.TensorProto:
        values = rng.normal(size=shape) / np.sqrt(max(np.prod(shape[1:]), 1))
        return numpy_helper.from_array(values.astype(dtype), name)

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["s"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["s", "a", "ab"], ["1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["1"], ["2"]),
        helper.make_node("Conv", ["2", "b"], ["3"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["3", "s"], ["4"]),
        helper.make_node("Relu", ["4"], ["5"]),
        helper.make_node("GlobalAveragePool", ["5"], ["6"]),
        helper.make_node("Flatten", ["6"], ["7"]),
        helper.make_node("Gemm", ["7", "c", "cb"], ["y"], transB=1),
    ]
    value = helper.make_tensor_value_info
    g = helper.make_graph(
        nodes,
        "g",
        [value("x", kind, ["n", 3, 6, 6])],
        [value("y", kind, ["n", 4])],
        [
            constant("stem", 6, 3, 3, 3),
            constant("a", width, 6, 3, 3),
            constant("ab", width),
            constant("b", 6, width, 3, 3),
            constant("c", 4, 6),
            constant("cb", 4),
        ],
    )
    opset = [helper.make_opsetid("", 17)]
    return normalise(helper.make_model(g, opset_imports=opset, ir_version=8))


def pruned_block(dtype: type = np.float32):
    model = block(dtype=dtype)
    rng = np.random.default_rng(9)
    chunks = [{"x": rng.normal(size=(16, 3, 6, 6)).astype(dtype)} for _ in range(6)]
    shapes = observe(model, chunks[0])
    structure = trace(fold(model, shapes), shapes)
    kept = np.ones(len(structure.units), dtype=np.bool_)
    group = next(g for g in structure.groups if len(g.units) == 8)
    kept[group.units[:3]] = False
    plan = plan_from_units("", structure, kept)
    cut = Cut(model, structure, shapes, plan)
    prepared, layers = prepare(rewrite(cut), cut)
    return model, prepared, affected(prepared, layers), chunks


def outputs(model: Model, chunks) -> np.ndarray:
    session = Session(model.proto)
    return np.concatenate([session.run(c)[0].astype(np.float64) for c in chunks])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_pass_brings_the_outputs_back(dtype: type) -> None:
    model, prepared, layers, chunks = pruned_block(dtype)
    assert [layer.output for layer in layers] == ["1", "3", "y"]  # "1" pairs with "3"
    fits = list(fit_layers(model, prepared, layers, chunks))
    wanted = outputs(model, chunks)
    before, after = (
        np.mean((outputs(m, chunks) - wanted) ** 2)
        for m in (prepared, with_constants(prepared, fits))
    )
    assert after < before / 2
    assert all(f.error_after <= f.error_before for f in fits)
    assert not any(f.note for f in fits)


def test_the_pass_is_repeatable() -> None:
    model, prepared, layers, chunks = pruned_block()
    first, again = (
        with_constants(
            prepared, list(fit_layers(model, prepared, layers, chunks, seed=4, runner=Runner(1)))
        )
        for _ in range(2)
    )
    assert first.proto == again.proto


def test_an_unchanged_model_needs_no_fit() -> None:
    model = block()
    shapes = observe(model, {"x": np.ones((2, 3, 6, 6), np.float32)})
    structure = trace(fold(model, shapes), shapes)
    prepared, layers = prepare(model, Cut(model, structure, shapes, PruningPlan("")))
    assert affected(prepared, layers) == []
    x = {"x": np.random.default_rng(0).normal(size=(2, 3, 6, 6)).astype(np.float32)}
    np.testing.assert_array_equal(outputs(prepared, [x]), outputs(model, [x]))


def test_a_walk_equals_the_whole_model() -> None:
    model = block()
    rng = np.random.default_rng(1)
    chunks = [{"x": rng.normal(size=(4, 3, 6, 6)).astype(np.float32)} for _ in range(2)]
    walk = Walk(model, chunks)
    walk.step(["1"], ["3", "y"])
    walk.step(["3", "s"], ["y"])
    found = np.concatenate([v[0] for v in walk.step(["y"], [])])
    np.testing.assert_allclose(found, outputs(model, chunks), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("losses", [[3, 2, 1], [3, 4, 2], [1, 2, 3], [1, float("inf"), 1]])
def test_no_step_raises_the_loss(losses: list[float]) -> None:
    models = [block(seed) for seed in range(3)]
    known = {id(m): loss for m, loss in zip(models, losses, strict=True)}
    ladder = Ladder(models[0], lambda m: Judgement(known[id(m)]))
    for model in models[1:]:
        before = ladder.best
        accepted = ladder.offer("step", model)
        assert ladder.best is not None
        assert before is not None
        assert ladder.best <= before
        assert accepted == (known[id(model)] <= before)
        assert ladder.model is (model if accepted else ladder.model)
    assert ladder.best == min(losses)


def test_elimination_takes_the_least_error_first() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(500, 4))
    x[:, 3] = x[:, 0] + x[:, 1]  # the others make up for it
    covariance = np.cov(x, rowvar=False)
    weights = rng.normal(size=(3, 4)) + 2
    columns = {u: np.array([u]) for u in range(4)}
    found = eliminate(range(4), [GroupReader(weights, covariance, columns, 1.0)], keep=[1])
    assert found.order[0] in (0, 1, 3)
    assert found.errors[0] < 0.05 * found.errors[1]
    assert (np.diff(found.errors) >= 0).all()
    gone = found.order[0]
    assert (found.snapshots[1][0][:, gone] == 0).all()
    left = weights - found.snapshots[1][0]
    assert np.einsum("od,od->", left @ covariance, left) < 0.05


def test_saliency_is_the_error_of_removing_one_weight() -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(400, 5)) @ rng.normal(size=(5, 5))
    covariance = np.cov(x, rowvar=False)
    weights = rng.normal(size=(2, 5))
    diagonal = np.diagonal(np.linalg.inv(covariance))
    full = np.ones((2, 5), dtype=np.bool_)
    worth = refitted(weights, covariance, full, diagonal)[1]
    support = full.copy()
    support[0, 2] = False
    fitted = refitted(weights, covariance, support, diagonal, relative=1e-12)[0]
    gap = weights - fitted
    assert worth[0, 2] == pytest.approx(np.einsum("od,od->", gap @ covariance, gap), rel=1e-6)


def test_the_classifier_improves_or_stays() -> None:
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 3, 300)
    features = rng.normal(size=(300, 5)) + 2 * np.eye(3, 5)[labels]
    found = refit_classifier(features, labels, rng.normal(size=(3, 5)), np.zeros(3))
    assert found is not None
    accuracy = ((features @ found[0].T + found[1]).argmax(axis=1) == labels).mean()
    assert accuracy > 0.8
    assert refit_classifier(features[:2], labels[:2], np.ones((3, 5)), np.zeros(3)) is None


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 4), st.floats(-20, 20))
def test_an_intercept_that_stays_is_taken_off_the_targets(
    seed: int, width: int, outputs: int, offset: float
) -> None:
    rng = np.random.default_rng(seed)
    x, y, stays = rng.normal(size=(60, width)) + offset, rng.normal(size=(60, outputs)), 3.0
    found = moments(x, y).about(np.full(outputs, stays))
    weights = ridge(found, np.zeros((outputs, width)), 1e-12)
    expected = np.linalg.lstsq(x, y - stays, rcond=None)[0].T
    np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.intercept(weights), 0, atol=1e-9)
    residual = ((x @ weights.T + stays - y) ** 2).sum(axis=1).mean()
    assert found.error(weights, np.zeros(outputs)) == pytest.approx(residual, rel=1e-5)


BIASES = ("none", "shared", "one number", "behind", "shared behind", "own")


def chain_of(kind: str) -> onnx.ModelProto:
    """Return three dense layers of 8 whose biases are of some kind."""
    rng, nodes = np.random.default_rng(11), []
    constants = {"zero": np.full(8, 0.25, np.float32)}
    constants["number"] = np.array([0.5], np.float32)
    current = "x"
    for k in range(3):
        constants[f"w{k}"] = rng.normal(size=(8, 8)).astype(np.float32)
        constants[f"b{k}"] = rng.normal(size=8).astype(np.float32)
        behind = {"behind": f"b{k}", "shared behind": "zero"}.get(kind)
        within = {"shared": "zero", "one number": "number", "own": f"b{k}"}.get(kind)
        out = "y" if k == 2 else f"h{k}"
        last = f"{out}/product" if behind else out
        nodes.append(
            helper.make_node("Gemm", [current, f"w{k}", within], [last])
            if within
            else helper.make_node("MatMul", [current, f"w{k}"], [last])
        )
        if behind:
            nodes.append(helper.make_node("Add", [last, behind], [out]))
        if k < 2:
            nodes.append(helper.make_node("Relu", [out], [f"r{k}"]))
            current = f"r{k}"
    read = {name for node in nodes for name in node.input}
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 8]) for n in ("x", "y")]
    held = [numpy_helper.from_array(v, n) for n, v in constants.items() if n in read]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], held)
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


@pytest.mark.parametrize("recover", ["full", "bias"])
@pytest.mark.parametrize("kind", BIASES)
def test_zeros_never_make_a_model_larger(kind: str, recover: str, tmp_path: Path) -> None:
    """A bias that is missing, shared or one number stays what it is; the weights make up for it."""
    path, data = tmp_path / "model.onnx", tmp_path / "data.npz"
    proto = chain_of(kind)
    onnx.save(proto, path)
    x = np.random.default_rng(1).normal(size=(400, 8)).astype(np.float32)
    y = Session(proto).run({"x": x})[0].argmax(axis=1)
    np.savez(data, x=x, y=y)
    result = prune(path, data, sparsity=0.5, mode="weights", recover=recover, threads=1)
    report = result.report
    assert report.after.cost.params <= report.before.cost.params
    if recover == "full":
        assert report.recovery["accepted"]
    if kind != "own":
        kept = {n for t in result.model.graph.initializer if (n := t.name) in ("zero", "number")}
        read = {i for n in proto.graph.node for i in n.input} & {"zero", "number"}
        assert kept == read


def test_channels_may_still_get_biases() -> None:
    """Where much leaves, they cost little."""
    model = normalise(chain_of("none"))
    shapes = observe(model, {"x": np.ones((2, 8), np.float32)})
    structure = trace(fold(model, shapes), shapes)
    for grow in (True, False):
        _, layers = prepare(model, Cut(model, structure, shapes, PruningPlan("")), grow=grow)
        assert [layer.fixed is None for layer in layers] == [grow] * 3
