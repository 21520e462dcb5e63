"""Least squares through a rectifier: against a general optimiser, and in a model."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy.optimize import minimize

from onnxprune.linear.layer import prepare
from onnxprune.linear.moments import Moments
from onnxprune.linear.ridge import ridge
from onnxprune.model.folding import fold
from onnxprune.model.model import normalise
from onnxprune.model.observe import observe
from onnxprune.plans.cut import Cut
from onnxprune.plans.plan import PruningPlan
from onnxprune.recover.through_rectifier import Rows, fit_rectified
from onnxprune.structure.trace import trace

ROWS, WIDTH, OUTPUTS = 400, 6, 3


def gap(values: np.ndarray, wanted: np.ndarray, low: float, high: float) -> np.ndarray:
    """What lacks, written value by value."""
    result = wanted - values
    under, over = wanted <= low, wanted >= high
    result[under] = np.minimum(low - values, 0)[under]
    result[over] = np.maximum(high - values, 0)[over]
    return result


@pytest.mark.parametrize("bounds", [(0.0, np.inf), (0.0, 1.0), (-0.5, 0.5)])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("supported", [False, True])
def test_the_error_that_passes_is_minimal(bounds, added, supported, monkeypatch) -> None:
    monkeypatch.setattr("onnxprune.recover.through_rectifier.ENOUGH", 0.0)
    monkeypatch.setattr("onnxprune.recover.through_rectifier.STEPS", 2000)
    rng = np.random.default_rng(5)
    x = rng.normal(size=(ROWS, WIDTH)) + rng.normal(size=WIDTH)
    hidden = np.concatenate([x, rng.normal(size=(ROWS, 2))], axis=1)
    y = hidden @ rng.normal(size=(WIDTH + 2, OUTPUTS))
    skip = rng.normal(size=(ROWS, OUTPUTS)) if added else None
    support = rng.random((OUTPUTS, WIDTH)) < 0.6 if supported else np.ones((OUTPUTS, WIDTH), bool)
    moments = Moments.shifted(x[:50].mean(axis=0), y[:50].mean(axis=0))
    moments.add(x, y)
    relative, old = 1e-2, np.zeros((OUTPUTS, WIDTH))
    start = ridge(moments, old, relative, support if supported else None)
    rows = Rows(bounds, 2)
    for half in (slice(0, 150), slice(150, ROWS)):
        own = None if skip is None else skip[None, half]
        rows.add(x[None, half], y[None, half], own)
    given = [support] if supported else None
    (weights,), bias = fit_rectified(rows, [moments], [start], [old], relative, given)
    offset = 0.0 if skip is None else skip
    damping = moments.damping(relative)

    def objective(flat: np.ndarray) -> float:
        w = flat[:-OUTPUTS].reshape(OUTPUTS, WIDTH) * support
        left = gap(x @ w.T + flat[-OUTPUTS:] + offset, y + offset, *bounds)
        return float((left**2).sum() / ROWS + damping * (w**2).sum())

    found = np.append(weights.ravel(), bias)
    plain = np.append(start.ravel(), moments.intercept(start))
    best = minimize(objective, plain, method="L-BFGS-B", options={"maxiter": 5000}).fun
    assert (weights[~support] == 0).all()
    assert objective(found) < 0.98 * objective(plain)
    assert objective(found) == pytest.approx(best, rel=2e-3)


def test_what_is_not_finite_keeps_the_start() -> None:
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(1, 40, 3)), rng.normal(size=(1, 40, 2))
    moments = Moments.shifted(np.zeros(3), np.zeros(2))
    moments.add(x[0], y[0])
    start, rows = rng.normal(size=(2, 3)), Rows((0.0, np.inf), 1)
    broken = y.copy()
    broken[0, 0, 0] = np.nan
    rows.add(x, broken, None)
    (weights,), bias = fit_rectified(rows, [moments], [start], [start], 1e-3)
    np.testing.assert_array_equal(weights, start)
    np.testing.assert_allclose(bias, moments.intercept(start))


BEHIND = [
    ([("Relu", ["y"])], ["o0"], (0.0, np.inf)),
    ([("Clip", ["y", "l", "h"])], ["o0"], (-1.0, 2.0)),
    ([("Clip", ["y", "", "h"])], ["o0"], (-np.inf, 2.0)),
    ([("Relu", ["y"]), ("Clip", ["y", "l", "h"])], ["o0", "o1"], (-1.0, np.inf)),
    ([("Relu", ["y"]), ("Sigmoid", ["y"])], ["o0", "o1"], (-np.inf, np.inf)),
    ([("LeakyRelu", ["y"])], ["o0"], (-np.inf, np.inf)),
    ([("Relu", ["y"])], ["o0", "y"], (-np.inf, np.inf)),
    ([("Add", ["y", "s"]), ("Relu", ["o0"])], ["o1"], (0.0, np.inf)),
    ([("Add", ["y", "s"]), ("Relu", ["o0"])], ["o0", "o1"], (-np.inf, np.inf)),
]


@pytest.mark.parametrize(("behind", "outputs", "bounds"), BEHIND)
def test_what_reads_a_layer_says_what_makes_a_difference(behind, outputs, bounds) -> None:
    rng = np.random.default_rng(7)
    values = {"w": rng.normal(size=(5, 4)), "v": rng.normal(size=(5, 4)), "l": -1.0, "h": 2.0}
    skip = (
        [helper.make_node("MatMul", ["x", "v"], ["s"])]
        if any("s" in inputs for _, inputs in behind)
        else []
    )
    nodes = [helper.make_node(kind, inputs, [f"o{k}"]) for k, (kind, inputs) in enumerate(behind)]
    graph = helper.make_graph(
        [*skip, helper.make_node("Gemm", ["x", "w"], ["y"], name="layer"), *nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5])],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, ["n", 4]) for o in outputs],
        [numpy_helper.from_array(np.asarray(v, np.float32), n) for n, v in values.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    model = normalise(helper.make_model(graph, opset_imports=opset, ir_version=8))
    shapes = observe(model, {"x": np.ones((2, 5), np.float32)})
    structure = trace(fold(model, shapes), shapes)
    _, layers = prepare(model, Cut(model, structure, shapes, PruningPlan("")))
    assert next(la for la in layers if la.output == "y").bounds == bounds
