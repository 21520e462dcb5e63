"""Tests of the tests: rules that are subtly wrong must be caught by the oracles."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from unittest import mock

import numpy as np
import onnx
import oracle
import pytest
from cases import CASES, Body
from onnx import ModelProto, numpy_helper
from strategies import Net

from onnxprune.errors import InternalError
from onnxprune.op import Op
from onnxprune.rules import RULES, Rule

REJECTIONS = (
    AssertionError,
    InternalError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
)


@dataclass(frozen=True)
class Sabotage:
    """A wrong rule for an operator, and the oracles that must catch it."""

    name: str
    op_type: str
    rule: Rule
    caught_by: str


SABOTAGES: list[Sabotage] = []


def sabotage(op_type: str, caught_by: str) -> Callable[[Rule], Rule]:
    """Register a wrong rule."""

    def register(wrong: Rule) -> Rule:
        name = f"{op_type}: {wrong.__name__.replace('_', ' ').strip()}"
        SABOTAGES.append(Sabotage(name, op_type, wrong, caught_by))
        return wrong

    return register


def without(op_type: str, *words: str) -> Rule:
    """Return a rule that forgets some of the things it says."""
    rule = RULES[op_type]

    def forgetful(op: Op) -> None:
        with ExitStack() as patches:
            for word in words:
                said = {"sink": op.take, "tie": lambda a, b: b if a is None else a}
                silent = said.get(word, lambda *_, **__: None)
                patches.enter_context(mock.patch.object(op, word, silent))
            rule(op)

    return forgetful


for _op, _word, _caught in (
    ("Add", "tie", "mask permutation"),
    ("Where", "tie", "mask permutation"),
    ("MatMul", "tie", "mask permutation"),
    ("Mul", "site", "mask permutation"),
    ("PRelu", "site", "mask permutation"),
    ("Gemm", "site", "mask permutation"),
    ("Concat", "tie", "mask permutation"),
    ("Conv", "sizes", "mask"),
    ("Conv", "sink", "mask"),
    ("ReduceL2", "sink", "mask"),
    ("Split", "known_sizes", "mask"),
    ("Slice", "known_sizes", "mask"),
    ("Pad", "sizes", "mask"),
    ("Reshape", "sizes", "mask"),
    ("Expand", "sizes", "mask"),
    ("Gather", "renumber", "mask"),
    ("Shape", "keep_original_shape", "mask"),
):
    SABOTAGES.append(Sabotage(f"{_op}: without {_word}", _op, without(_op, _word), _caught))


@sabotage("Concat", "mask permutation")
def wrong_order(op: Op) -> None:
    axis = op.attribute("axis") % len(op.out_shape())
    parts = [op.take(i, axis) for i in op.inputs][::-1]
    if all(part is not None for part in parts):
        op.give(axis, np.concatenate(parts))


@sabotage("Split", "mask permutation")
def parts_change_places(op: Op) -> None:
    axis = op.attribute("axis", 0) % len(op.shape(0))
    sizes = [op.out_shape(o)[axis] for o in range(len(op.node.outputs))]
    labels = op.take(0, axis)
    if labels is not None and len(set(sizes)) == 1:
        parts = np.split(labels, len(sizes))[::-1]
        for o, part in enumerate(parts):
            op.give(axis, part, o)
        op.known_sizes(sizes, dict(enumerate(parts)), 1)


@sabotage("Transpose", "mask permutation")
def ignores_perm(op: Op) -> None:
    for axis in range(len(op.shape(0))):
        if op.shape(0)[axis] == op.out_shape()[axis]:
            op.give(axis, op.take(0, axis))


@sabotage("Flatten", "mask permutation")
def tiles_instead_of_repeating(op: Op) -> None:
    labels = op.take(0, 1)
    op.give(0, op.take(0, 0))
    if labels is not None:
        op.give(1, np.tile(labels, op.out_shape()[1] // len(labels)))


@sabotage("Reshape", "mask permutation")
def splits_in_column_order(op: Op) -> None:
    rows = op.factor

    def columns(labels: np.ndarray | None, *dims: int) -> list[np.ndarray | None]:
        return rows(labels, *dims[::-1])[::-1]

    with mock.patch.object(op, "factor", columns):
        CORRECT["Reshape"](op)


@sabotage("BatchNormalization", "mask permutation")
def slices_the_scale_only(op: Op) -> None:
    labels = op.take(0, 1)
    op.site(1, 0, labels)
    op.give(1, labels)


@sabotage("BatchNormalization", "mask permutation")
def forgets_the_variance(op: Op) -> None:
    labels = op.take(0, 1)
    for i in (1, 2, 3):
        op.site(i, 0, labels)
    op.give(1, labels)


@sabotage("Conv", "mask permutation")
def groups_are_independent(op: Op) -> None:
    if op.attribute("group", 1) == 1:
        return CORRECT["Conv"](op)
    labels = op.take(0, 1)
    if labels is not None and op.shape(1)[0] == len(labels) == op.attribute("group"):
        op.site(1, 0, op.origin(1))
        op.site(2, 0, op.given(1))
        op.sizes({0: labels}, "group")
    return None


@sabotage("Softmax", "mask")
def is_element_wise(op: Op) -> None:
    CORRECT["Relu"](op)


@sabotage("ReduceMean", "mask")
def averages_like_a_sum(op: Op) -> None:
    CORRECT["ReduceSum"](op)
    for axis in op.labelled(0):
        op.sink(0, axis)


@sabotage("ReduceMax", "mask")
def passes_over_channels(op: Op) -> None:
    CORRECT["ReduceMax"](op)
    op.take(0, 1)


@sabotage("Pad", "mask permutation")
def pads_on_the_wrong_side(op: Op) -> None:
    labels, pads = op.take(0, 1), op.ints(1, "pads")
    if labels is not None and pads is not None and len(pads) == 8:
        front, back = op.fresh(pads[1]), op.fresh(pads[5])
        op.give(1, np.concatenate([labels, front, back]))
        op.sizes({1: front, 5: back}, "pads" if "pads" in op.node.attrs else 1)


@sabotage("Slice", "mask permutation")
def is_off_by_one(op: Op) -> None:
    give = op.give

    def shifted(axis: int, labels: np.ndarray | None, o: int = 0) -> None:
        whole = op.labelled(0).get(axis)
        if labels is not None and whole is not None and len(labels) < len(whole):
            labels = np.roll(whole, 1 - int(np.flatnonzero(whole == labels[0])[0]))[: len(labels)]
        give(axis, labels, o)

    with mock.patch.object(op, "give", shifted):
        CORRECT["Slice"](op)


@sabotage("MatMul", "mask permutation")
def slices_the_wrong_axis(op: Op) -> None:
    if op.shape(1) == (4, 4) and op.is_constant(1):
        op.site(1, 1, op.sink(0, -1))
        op.site(1, 0, op.origin(len(op.out_shape()) - 1))
    else:
        CORRECT["MatMul"](op)


@sabotage("Gather", "mask permutation")
def ignores_the_order(op: Op) -> None:
    labels, indices = op.take(0, 1), op.value(1)
    if labels is not None and indices is not None and indices.ndim:
        op.give(1, labels[np.sort(indices % len(labels))])
        op.renumber(1, labels)


@sabotage("Tile", "mask permutation")
def repeats_instead_of_tiling(op: Op) -> None:
    labels, repeats = op.take(0, 1), op.ints(1, "")
    if labels is not None and repeats is not None:
        op.give(1, np.repeat(labels, repeats[1]))


CORRECT = dict(RULES)
UNKNOWN: dict[str, Body] = {
    "LRN": lambda n, x: n.op("LRN", x, size=3, alpha=0.5),
    "CumSum": lambda n, x: n.op("CumSum", x, n.const(1)),
    "InstanceNormalization": lambda n, x: n.op(
        "InstanceNormalization", x, n.weight(4), n.weight(4)
    ),
    "LpNormalization": lambda n, x: n.op("LpNormalization", x, axis=1),
    "MeanVarianceNormalization": lambda n, x: n.op("MeanVarianceNormalization", x, axes=[1]),
}
# Normalising over all channels alike does not depend on their order.
EVEN = ("LpNormalization", "MeanVarianceNormalization")
for _op in UNKNOWN:
    _caught = "mask" if _op in EVEN else "mask permutation"
    SABOTAGES.append(Sabotage(f"{_op}: as if element-wise", _op, CORRECT["Relu"], _caught))


def models(op_type: str) -> list[ModelProto]:
    if op_type in CASES:
        return [case.build() for case in CASES[op_type]]
    n = Net()
    x = n.conv(n.input("N", 2, 4, 4), 2, 4)
    return [n.model(n.conv(UNKNOWN[op_type](n, x), 4, 3))]


def verdicts(proto: ModelProto) -> set[str]:
    """Return the names of the oracles that reject a model."""
    t = oracle.traced(proto)
    kept = [
        oracle.random_removal(t.structure, np.random.default_rng(seed), share)
        for seed, share in enumerate((0.3, 0.5, 0.7))
    ]
    found = set()
    for name, hold in (
        ("identity", lambda: oracle.identity(t)),
        ("permutation", lambda: [oracle.permutation(t, seed) for seed in range(3)]),
        ("mask", lambda: [oracle.mask(t, k) for k in kept]),
    ):
        try:
            hold()
        except REJECTIONS:
            found.add(name)
    return found


@pytest.mark.parametrize("case", SABOTAGES, ids=lambda case: case.name)
def test_a_wrong_rule_is_caught(case: Sabotage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, case.op_type, case.rule)
    found: set[str] = set()
    for proto in models(case.op_type):
        found |= verdicts(proto)
    assert found == set(case.caught_by.split())


@pytest.mark.parametrize("op_type", UNKNOWN)
def test_an_unknown_operator_freezes(op_type: str) -> None:
    (proto,) = models(op_type)
    structure = oracle.traced(proto).structure
    assert not structure.groups
    assert any(op_type in frozen.reason for frozen in structure.frozen)
    assert verdicts(proto) == set()


# -- oracles over models that are almost right -------------------------------------------------


def spoiled(proto: ModelProto, change: Callable[[np.ndarray], np.ndarray]) -> ModelProto:
    """Change the first weight of a model."""
    result = ModelProto()
    result.CopyFrom(proto)
    tensor = result.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
    return result


def test_identity_notices_one_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    t = oracle.traced(CASES["Conv"][0].build())
    right = oracle.pruned
    monkeypatch.setattr(oracle, "pruned", lambda t, kept: spoiled(
        right(t, kept), lambda w: np.nextafter(w, np.float32(9))))  # fmt: skip
    with pytest.raises(AssertionError, match="an empty plan changed an output"):
        oracle.identity(t)


def test_mask_notices_a_small_error(monkeypatch: pytest.MonkeyPatch) -> None:
    t = oracle.traced(CASES["Conv"][0].build())
    kept = oracle.random_removal(t.structure, np.random.default_rng(0), 0.5)
    right = oracle.pruned
    monkeypatch.setattr(oracle, "pruned", lambda t, kept: spoiled(
        right(t, kept), lambda w: w * np.float32(1.001)))  # fmt: skip
    with pytest.raises(AssertionError, match="pruned differs from masked"):
        oracle.mask(t, kept)


def test_mask_notices_that_nothing_left(monkeypatch: pytest.MonkeyPatch) -> None:
    t = oracle.traced(CASES["Conv"][0].build())
    kept = oracle.random_removal(t.structure, np.random.default_rng(0), 0.5)
    monkeypatch.setattr(oracle, "pruned", lambda t, _: t.model.proto)
    with pytest.raises(AssertionError, match="nothing shrank"):
        oracle.mask(t, kept)


def test_removal_leaves_an_index_on_every_axis() -> None:
    for case in CASES["Concat"] + CASES["Reshape"]:
        structure = oracle.traced(case.build()).structure
        for seed in range(5):
            kept = oracle.random_removal(structure, np.random.default_rng(seed), 1.0)
            assert not kept.all()
            assert kept[~structure.prunable].all()
            stays = structure.units.keep(kept)
            assert all(stays[labels].any() for labels in structure.axes)
