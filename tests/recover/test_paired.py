"""Pairs of layers: the maps they are made of, their joint fit, and which layers are a pair."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.linear.layer import affected, pairs, prepare
from onnxprune.linear.matrix_form import MatrixForm
from onnxprune.linear.moments import Moments
from onnxprune.linear.product import Product, channels_last
from onnxprune.model.folding import fold
from onnxprune.model.model import Model, normalise
from onnxprune.model.observe import observe
from onnxprune.model.session import Session
from onnxprune.plans.cut import Cut
from onnxprune.plans.plan import PruningPlan, plan_from_units
from onnxprune.recover import pairs as layer_pairs
from onnxprune.recover.layers import with_constants
from onnxprune.recover.least_squares import fit_layers
from onnxprune.recover.pair_fit import Half, Sample, _Problem, fit_pair
from onnxprune.recover.through_rectifier import Gap
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.structure.trace import trace

MAPS: list[tuple[str, tuple[int, ...], dict[str, Any], tuple[int, ...]]] = [
    ("Conv", (6, 4, 3, 3), {"pads": [1, 1, 1, 1]}, (3, 4, 7, 5)),
    ("Conv", (6, 4, 3, 2), {"strides": [2, 1], "pads": [0, 1, 1, 0]}, (3, 4, 7, 5)),
    ("Conv", (6, 2, 3, 3), {"group": 2, "dilations": [2, 1]}, (3, 4, 7, 5)),
    ("Conv", (4, 1, 3, 3), {"group": 4, "auto_pad": "SAME_UPPER"}, (3, 4, 7, 5)),
    ("Conv", (6, 4, 3), {"strides": [2]}, (3, 4, 9)),
    ("ConvTranspose", (4, 3, 3, 3), {"strides": [2, 2], "pads": [1, 1, 0, 0]}, (3, 4, 4, 5)),
    ("ConvTranspose", (4, 3, 2, 2), {"group": 2, "strides": [1, 2]}, (3, 4, 4, 5)),
    ("MatMul", (4, 6), {}, (3, 4)),
    ("MatMul", (4, 6), {}, (3, 5, 4)),
]


@pytest.mark.parametrize(("kind", "shape", "attributes", "inside"), MAPS, ids=str)
def test_a_layer_as_a_map_and_its_adjoint(kind, shape, attributes, inside) -> None:
    rng = np.random.default_rng(1)
    x, w = (rng.normal(size=s).astype(np.float32) for s in (inside, shape))
    node = helper.make_node(kind, ["x", "w"], ["y"], **attributes)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xwy"]
    graph = helper.make_graph([node], "g", values[:2], values[2:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (y,) = Session(made).run({"x": x, "w": w}, ["y"])
    spatial = kind != "MatMul"
    form = MatrixForm(
        kind, shape, attributes, 1 if spatial else -1, 1 - y.ndim if spatial else -1, False
    )
    product, weights = Product(form, x.shape, y.shape), form.to_matrix(w.astype(np.float64))
    flat = channels_last(x, form.data_axis).astype(np.float64)
    unfolded = product.unfold(flat)
    result = product.forward(unfolded, weights)
    np.testing.assert_allclose(result, channels_last(y, form.output_axis), atol=1e-4)
    back = rng.normal(size=result.shape)
    assert (back * result).sum() == pytest.approx((product.backward(back, weights) * flat).sum())
    assert (back * result).sum() == pytest.approx(
        (product.correlation(back, unfolded) * weights).sum()
    )


WIDTH, HIDDEN, KEPT, OUTPUTS = 6, 8, 3, 4


def a_pair(seed: int, samples: int = 600, *, support: bool = False) -> tuple[Any, ...]:
    """A network whose hidden layer lost all but a few units, and what it should give."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, 1, WIDTH))
    w1, w2 = rng.normal(size=(HIDDEN, WIDTH)), rng.normal(size=(OUTPUTS, HIDDEN))
    wanted = np.maximum(x @ w1.T, 0) @ w2.T
    hidden = np.maximum(x[:, 0] @ w1[:KEPT].T, 0)
    moments = [Moments.shifted(np.zeros(n), np.zeros(OUTPUTS)) for n in (WIDTH, KEPT)]
    for own, data in zip(moments, (x[:, 0], hidden), strict=True):
        own.add(data, wanted[:, 0])
    forms = [MatrixForm("MatMul", (a, b), {}, -1, -1, False) for a, b in ((WIDTH, KEPT), (KEPT, 4))]
    ends = [(samples, WIDTH), (samples, KEPT), (samples, OUTPUTS)]
    start = [w1[:KEPT], np.linalg.lstsq(hidden, wanted[:, 0], rcond=None)[0].T]
    masks = [rng.random((1, *w.shape)) < 0.7 if support else None for w in start]
    halves = [
        Half(
            Product(form, ends[k], ends[k + 1]),
            (start[k] if masks[k] is None else start[k] * masks[k][0])[None],
            np.zeros(len(start[k])),
            [moments[k]],
            1e-3,
            masks[k],
        )
        for k, form in enumerate(forms)
    ]
    cut = samples * 4 // 5
    skip = rng.normal(size=wanted.shape)
    passed = (0.0, np.inf)
    parts = [
        [Sample(x[None, own, 0], Gap(passed, wanted[own], skip[own])) for own in blocks]
        for blocks in (np.split(np.arange(cut), 3), [np.arange(cut, samples)])
    ]
    return halves, parts


def error_of(halves, samples, layers) -> float:
    return float(np.mean([error_of_block(halves, sample, layers) for sample in samples]))


def error_of_block(halves, sample, layers) -> float:
    (w1, b1), (w2, b2) = layers
    hidden = np.maximum(halves[0].product.forward(sample.x, w1) + b1, 0)
    left = sample.gap(halves[1].product.forward(halves[1].product.unfold(hidden), w2) + b2)
    return float((left**2).sum()) / (left.shape[0] * left.shape[1])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("support", [False, True])
def test_both_layers_together_leave_less(seed: int, support: bool) -> None:
    halves, (fitted, checked) = a_pair(seed, support=support)
    start = [(h.weights, h.bias) for h in halves]
    layers = fit_pair(*halves, (0.0, np.inf), fitted, checked)
    assert error_of(halves, checked, layers) < 0.9 * error_of(halves, checked, start)
    assert error_of(halves, fitted, layers) < 0.9 * error_of(halves, fitted, start)
    for half, (weights, _) in zip(halves, layers, strict=True):
        if half.support is not None:
            assert (weights[~half.support] == 0).all()


def test_the_slope_is_that_of_the_error() -> None:
    halves, (fitted, _) = a_pair(9)
    problem = _Problem(halves[0], halves[1], (0.0, np.inf))
    _, states = problem.at(problem.start, fitted)
    slope = problem.slope(problem.start, fitted, states)
    tiny = 1e-6
    for k, part in enumerate(slope.parts):
        for at in np.ndindex(part.shape):
            errors = []
            for sign in (1, -1):
                moved = [p.copy() for p in problem.start.parts]
                moved[k][at] += sign * tiny
                errors.append(problem.at(type(slope)(tuple(moved)), fitted)[0])
            assert -(errors[0] - errors[1]) / (4 * tiny) == pytest.approx(part[at], abs=1e-4)


def test_blocks_and_threads_do_not_change_the_result() -> None:
    halves, (fitted, checked) = a_pair(5)
    alone = fit_pair(*halves, (0.0, np.inf), fitted, checked)
    with ThreadPoolExecutor(3) as pool:
        many = fit_pair(*halves, (0.0, np.inf), fitted, checked, pool.map)
    for (w, b), (v, c) in zip(alone, many, strict=True):
        np.testing.assert_array_equal(w, v)
        np.testing.assert_array_equal(b, c)


def test_what_only_fits_is_not_taken() -> None:
    """Where the check samples want the opposite, the start is returned."""
    halves, (fitted, checked) = a_pair(3)
    (w1, b1), (w2, b2) = ((h.weights, h.bias) for h in halves)
    hidden = np.maximum(halves[0].product.forward(checked[0].x, w1) + b1, 0)
    given = halves[1].product.forward(halves[1].product.unfold(hidden), w2) + b2
    exact = Gap((-np.inf, np.inf), given, 0.0)
    layers = fit_pair(*halves, (0.0, np.inf), fitted, [Sample(checked[0].x, exact)])
    for half, (weights, bias) in zip(halves, layers, strict=True):
        np.testing.assert_array_equal(weights, half.weights)
        np.testing.assert_allclose(bias, half.bias, atol=1e-12)


def test_what_is_not_finite_keeps_the_start() -> None:
    halves, (fitted, checked) = a_pair(3)
    fitted[0].x[0, 0, 0] = np.nan
    for half, (weights, _) in zip(
        halves, fit_pair(*halves, (0.0, np.inf), fitted, checked), strict=True
    ):
        np.testing.assert_array_equal(weights, half.weights)


def network(middle: list[Any], outputs: list[str]) -> Model:
    """Two convolutions with something in between, and a classifier that is not needed here."""
    rng = np.random.default_rng(2)
    constants = {
        "w1": rng.normal(size=(8, 3, 3, 3)) / 3,
        "w2": rng.normal(size=(5, 8, 3, 3)) / 5,
        "six": np.asarray(6.0),
    }
    pads = {"pads": [1, 1, 1, 1]}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w1"], ["a"], name="one", **pads),
            *middle,
            helper.make_node("Conv", ["h", "w2"], ["y"], name="two", **pads),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 6, 6])],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return normalise(onnx.shape_inference.infer_shapes(made))


RELU = helper.make_node("Relu", ["a"], ["h"])


@pytest.mark.parametrize(
    ("middle", "outputs", "found"),
    [
        ([RELU], ["y"], True),
        ([helper.make_node("Clip", ["a", "", "six"], ["h"])], ["y"], True),
        ([RELU], ["y", "h"], False),
        ([RELU, helper.make_node("Sigmoid", ["a"], ["z"])], ["y", "z"], False),
        ([RELU, helper.make_node("Sigmoid", ["h"], ["z"])], ["y", "z"], False),
        ([helper.make_node("Sigmoid", ["a"], ["h"])], ["y"], False),
        (
            [RELU_B := helper.make_node("Relu", ["a"], ["b"])]
            and [RELU_B, helper.make_node("MaxPool", ["b"], ["h"], kernel_shape=[1, 1])],
            ["y"],
            False,
        ),
    ],
)
def test_which_layers_are_a_pair(middle, outputs, found) -> None:
    model = network(middle, outputs)
    shapes = observe(model, {"x": np.ones((2, 3, 6, 6), np.float32)})
    folded = fold(model, shapes)
    prepared, layers = prepare(folded, Cut(folded, trace(folded, shapes), shapes, PruningPlan("")))
    assert {n: la.output for n, la in pairs(prepared, layers).items()} == (
        {"y": "a"} if found else {}
    )


def test_pairs_in_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs of a pruned model are nearer to the original's once its pairs are fitted."""
    rng = np.random.default_rng(4)
    model = network([RELU], ["y"])
    x = rng.normal(size=(120, 3, 6, 6)).astype(np.float32)
    shapes = observe(model, {"x": x[:2]})
    folded = fold(model, shapes)
    structure = trace(folded, shapes)
    kept = np.ones(len(structure.units), dtype=np.bool_)
    kept[structure.groups[0].units[:4]] = False
    plan = plan_from_units("", structure, kept)
    cut = Cut(folded, structure, shapes, plan)
    prepared, layers = prepare(rewrite(cut), cut)
    chunks = [{"x": part} for part in np.split(x[:96], 3)]
    (wanted,) = Session(folded.proto).run({"x": x[96:]}, ["y"])

    def error() -> float:
        fits = list(fit_layers(folded, prepared, affected(prepared, layers), chunks))
        (got,) = Session(with_constants(prepared, fits).proto).run({"x": x[96:]}, ["y"])
        return float(((got - wanted) ** 2).mean() / wanted.var())

    both = error()
    monkeypatch.setattr(layer_pairs, "pairs", lambda *_: {})
    assert both < 0.9 * error()
