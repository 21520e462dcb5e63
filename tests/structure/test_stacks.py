"""Stacks of matrices: letters of Einsum and MatMul, what they count as, and their refit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import oracle
import pytest
from onnx import ModelProto, numpy_helper
from oracle import Traced, error, run
from strategies import BATCH, Net

from onnxprune.decide.channel_damage import measure_moments, unit_errors
from onnxprune.linear.layer import Layer, prepare
from onnxprune.linear.matrix_form import StackForm
from onnxprune.model import cost
from onnxprune.model.equation import parse
from onnxprune.model.runner import Runner
from onnxprune.plans.choices import Mode
from onnxprune.plans.cut import Cut
from onnxprune.plans.plan import plan_from_units
from onnxprune.recover.layers import with_constants
from onnxprune.recover.least_squares import fit_layers
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.structure.structure import Weight
from onnxprune.structure.subject import Subject
from onnxprune.structure.unit_costs import weights_removed
from onnxprune.verbs.prune import prune


@pytest.mark.parametrize(
    ("equation", "ranks", "terms", "right"),
    [
        ("ij,jk->ik", (2, 2), ["ij", "jk"], "ik"),
        (" i j , j k ", (2, 2), ["ij", "jk"], "ik"),
        ("zya,ak", (3, 2), ["zya", "ak"], "kyz"),
        ("...ij,jk->...ik", (4, 2), ["abij", "jk"], "abik"),
        ("...b,b", (3, 1), ["acb", "b"], "ac"),
        ("x...,x...->...x", (3, 2), ["xab", "xb"], "abx"),
        ("bii->bi", (3,), ["bii"], "bi"),
    ],
)
def test_equations(equation: str, ranks: Sequence[int], terms: list[str], right: str) -> None:
    assert parse(equation, ranks) == (terms, right)


def weights_of(proto: ModelProto) -> list[Weight]:
    return list(oracle.traced(proto).structure.weights)


def product(op: str, x: tuple[int, ...], w: tuple[int, ...], at: int, equation: str) -> ModelProto:
    n = Net()
    operands = [n.input(BATCH, *x), n.weight(*w)][:: 1 if at else -1]
    how = {"equation": equation} if equation else {}
    return n.model(n.op(op, *operands, **how))


FORMS = [
    ("MatMul", (5, 4), (4, 6), 1, ""),
    ("MatMul", (5, 4), (6, 5), 0, ""),
    ("MatMul", (1, 5, 4), (3, 4, 6), 1, ""),
    ("MatMul", (3, 5, 4), (3, 4, 6), 1, ""),
    ("MatMul", (3, 5, 4), (1, 4, 6), 1, ""),
    ("MatMul", (3, 5, 4), (3, 6, 5), 0, ""),
    ("MatMul", (4,), (3, 4, 6), 1, ""),
    ("MatMul", (5, 4), (4,), 1, ""),
    ("Einsum", (4,), (3, 4, 6), 1, "bd,edh->beh"),
    ("Einsum", (3, 4), (3, 4, 6), 1, "beh,ehd->bed"),
    ("Einsum", (5, 3, 4), (3, 4, 6), 1, "bihk,hkd->bid"),
    ("Einsum", (5, 4), (4, 2, 3), 1, "bnd,dhk->bhnk"),
    ("Einsum", (5, 2, 4), (4, 6), 1, "...d,dk->...k"),
    ("Einsum", (5, 2, 4), (6, 2, 4), 0, "ohi,bthi->htbo"),
]


@pytest.mark.parametrize(("op", "x", "w", "at", "equation"), FORMS)
def test_a_stack_is_what_its_matrices_give(
    op: str, x: tuple[int, ...], w: tuple[int, ...], at: int, equation: str
) -> None:
    """Rows times the transposed matrices are the rows of the output, all or some of them."""
    proto = product(op, x, w, at, equation)
    (weight,) = weights_of(proto)
    assert weight.letters is not None
    form = StackForm(weight.letters, weight.shape)
    rng = np.random.default_rng(0)
    data = rng.normal(size=(2, *x)).astype(np.float32)
    values = numpy_helper.to_array(proto.graph.initializer[0])
    (y,) = run(proto, {"x0": data})
    matrices = form.to_matrix(values)
    assert matrices.shape == (form.groups, form.outputs, form.width)
    np.testing.assert_array_equal(form.to_tensor(matrices), values)
    for count in (1, 10**6):
        rows = form.rows(data, y, count, rng)
        inputs, targets = form.inputs(data, y.shape, rows), form.targets(y, rows)
        np.testing.assert_allclose(inputs @ matrices.swapaxes(1, 2), targets, rtol=1e-4, atol=1e-5)
    assert targets.size == y.size
    bias = np.zeros(form.bias_shape)
    assert bias.size == form.groups * form.outputs
    assert np.broadcast_shapes(bias.shape, y.shape) == y.shape


@pytest.mark.parametrize(
    ("x", "w", "at", "equation"),
    [
        ((5, 4), (4,), 1, "bnd,d->bnd"),
        ((5, 4), (4, 6), 1, "bnd,dk->bk"),
        ((5, 4), (5, 4, 6), 1, "bnd,ndk->bkn"),
        ((4, 4), (4, 4), 1, "bii,ik->bk"),
    ],
)
def test_what_is_no_product_of_matrices(
    x: tuple[int, ...], w: tuple[int, ...], at: int, equation: str
) -> None:
    """Scales, rows that are summed, stacks behind what they make, diagonals."""
    (weight,) = weights_of(product("Einsum", x, w, at, equation))
    assert weight.letters is None


def test_constants_count_once() -> None:
    n = Net()
    x = n.op("MatMul", n.op("Unsqueeze", n.input(2, 5, 4), n.const([1])), n.weight(3, 4, 6))
    x = n.op("Einsum", x, n.weight(3, 6, 4), equation="netd,edk->netk")
    y = n.op("MatMul", n.op("Einsum", x, n.weight(4), equation="...d,d->...d"), n.weight(4))
    proto = n.model(y, rank=3)
    t = oracle.traced(proto)
    found = cost.measure(t.model, t.shapes)
    assert found.weights == found.params == 3 * 4 * 6 + 3 * 6 * 4 + 4 + 4
    assert found.macs == 3 * 5 * (4 * 6 + 6 * 4 + 4 + 4)
    assert weights_removed(t.structure, np.ones(len(t.structure.units.component), bool)) == 0


# -- refit -----------------------------------------------------------------------------------


def einsum_experts(n: Net) -> str:
    x = n.gemm(n.input(BATCH, 8), 8, 6, name="in")
    inner = n.op("Einsum", x, n.weight(3, 6, 10), equation="bd,edh->beh", name="up")
    inner = n.op("Tanh", n.op("Add", inner, n.weight(3, 10)))
    outer = n.op("Einsum", inner, n.weight(3, 10, 5), equation="beh,ehd->bed", name="down")
    return n.gemm(n.op("Flatten", n.op("Tanh", outer)), 15, 4, name="out")


def stacked_experts(n: Net) -> str:
    x = n.gemm(n.input(BATCH, 8), 8, 6, name="in")
    inner = n.op("Add", n.op("MatMul", x, n.weight(3, 6, 10), name="up"), n.weight(3, 1, 10))
    outer = n.op("MatMul", n.op("Tanh", inner), n.weight(3, 10, 5), name="down")
    summed = n.op("ReduceSum", n.op("Tanh", outer), n.const([0]), keepdims=0)
    return n.gemm(summed, 5, 4, name="out")


def twins(proto: ModelProto) -> ModelProto:
    """Let the second half of the experts' inner channels repeat the first."""
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        if values.ndim >= 2 and values.shape[-1] == 10:
            values[..., 5:] = values[..., :5]
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return proto


def cut(t: Traced, node: str, share: slice) -> Cut:
    """Remove units of the group that begins at a node."""
    kept = np.ones(len(t.structure.units), dtype=np.bool_)
    (group,) = (g for g in t.structure.groups if node in g.nodes and len(g.units) > 3)
    kept[group.units[share]] = False
    plan = plan_from_units(t.model.sha256, t.structure, kept)
    return Cut(t.model, t.structure, t.shapes, plan)


@pytest.mark.parametrize("build", [einsum_experts, stacked_experts])
def test_every_expert_is_refitted(build: object) -> None:
    """Channels that others repeat are made up for, in each expert's own matrix."""
    n = Net()
    assert callable(build)
    t = oracle.traced(twins(n.model(build(n), rank=2)))
    smaller = cut(t, "up", slice(5, None))
    small = rewrite(smaller)
    prepared, layers = prepare(small, smaller)
    down = next(la for la in layers if la.form.groups == 3)
    assert down.cut
    x = np.random.default_rng(1).normal(size=(400, 8)).astype(np.float32)
    chunks = [{"x0": part} for part in np.split(x, 4)]
    fits = list(fit_layers(t.model, prepared, layers, chunks, runner=Runner(1)))
    assert next(f for f in fits if f.layer is down).error_after < 1e-4
    wanted = run(t.proto, {"x0": x})
    assert error(wanted, run(small.proto, {"x0": x})) > 0.1
    assert error(wanted, run(with_constants(prepared, fits).proto, {"x0": x})) < 0.01


@pytest.mark.parametrize("build", [einsum_experts, stacked_experts])
def test_channels_of_a_stack_have_errors_of_their_own(build: object) -> None:
    """What no expert reads leaves nothing to make up for."""
    n = Net()
    assert callable(build)
    proto = n.model(build(n), rank=2)
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        if values.shape == (3, 10, 5):
            values[:, 7] = 0.0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    t = oracle.traced(proto)
    x = np.random.default_rng(1).normal(size=(200, 8)).astype(np.float32)
    costs = cost.measure(t.model, t.shapes)
    measured = measure_moments(
        Subject(t.model, t.model, t.shapes, t.structure, costs), [{"x0": x}],
        output=t.proto.graph.output[0].name, seed=0, runner=Runner(1), progress=lambda _: None,
    )  # fmt: skip
    errors, _ = unit_errors(t.structure, measured)
    (group,) = (g for g in t.structure.groups if "up" in g.nodes and len(g.units) == 10)
    assert np.argmin(errors[group.units]) == 7
    assert len(np.unique(errors[group.units])) > 5


def mixer(n: Net) -> str:
    """Two blocks that mix tokens and then channels, which shrink in both."""
    x = n.dense(n.input(BATCH, 6, 3), 3, 8, name="stem")
    for _ in range(2):
        y = n.op("Transpose", x, perm=[0, 2, 1])
        y = n.op("Add", n.dense(n.op("Relu", n.dense(y, 6, 9)), 9, 6), n.weight(6))
        x = n.op("Add", x, n.op("Transpose", y, perm=[0, 2, 1]))
        x = n.op("Add", x, n.dense(n.op("Relu", n.dense(x, 8, 12)), 12, 8))
    return n.dense(x, 8, 4)


def test_layers_are_refitted_whose_rows_shrink() -> None:
    """The rows of a layer that mixes tokens are channels of the others."""
    n = Net()
    t = oracle.traced(n.model(mixer(n), rank=3))
    smaller = cut(t, "stem", slice(0, None, 2))
    small = rewrite(smaller)
    prepared, layers = prepare(small, smaller)
    x = np.random.default_rng(1).normal(size=(256, 6, 3)).astype(np.float32)
    chunks = [{"x0": part} for part in np.split(x, 4)]
    fits = list(fit_layers(t.model, prepared, layers, chunks, runner=Runner(1)))
    wanted = run(t.proto, {"x0": x})
    before = error(wanted, run(small.proto, {"x0": x}))
    after = error(wanted, run(with_constants(prepared, fits).proto, {"x0": x}))
    assert all(np.isfinite(f.error_after) for f in fits)
    assert after < before


def test_a_layer_names_what_stays_of_all_axes() -> None:
    n = Net()
    t = oracle.traced(n.model(mixer(n), rank=3))
    smaller = cut(t, "stem", slice(0, None, 2))
    _, layers = prepare(rewrite(smaller), smaller)
    mixing: list[Layer] = [la for la in layers if la.form.width in (6, 9)]
    assert len(mixing) == 4
    assert all(list(la.kept) == [-2] and len(la.kept[-2]) == 4 for la in mixing)


@pytest.mark.parametrize("mode", ["channels", "weights"])
def test_experts_are_pruned_and_recovered(mode: Mode, tmp_path: Path) -> None:
    """Half of what a mixture of experts holds leaves, and what is left is refitted."""
    n = Net()
    proto = n.model(einsum_experts(n), rank=2)
    x = np.random.default_rng(1).normal(size=(600, 8)).astype(np.float32)
    (scores,) = run(proto, {"x0": x})
    path, calib = tmp_path / "experts.onnx", tmp_path / "samples.npz"
    onnx.save(proto, path)
    np.savez(calib, x=x, y=(scores - scores.mean(axis=0)).argmax(axis=1))
    report = prune(
        path, calib, sparsity=0.5, mode=mode, recover="full", threads=1, cache=False
    ).report
    found = report.to_dict()
    assert found["before"]["weights"] == 8 * 6 + 3 * 6 * 10 + 3 * 10 * 5 + 15 * 4
    assert found["sparsity"]["achieved"] >= 0.5
    assert found["recovery"]["loss_with"] < found["recovery"]["loss_without"]
