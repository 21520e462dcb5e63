"""Tests of the tests: rules that are subtly wrong must be caught by the oracles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import oracle
import pytest
from cases import CASES
from onnx import ModelProto, numpy_helper
from sabotages import CORRECT, Sabotage
from sabotages_by_family import SABOTAGES
from strategies import Body, Net

from onnxprune.errors import InternalError
from onnxprune.structure.rules import RULES

REJECTIONS = (
    AssertionError,
    InternalError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
)


def inverted(n: Net, x: str) -> str:
    """The inverse of a matrix for each row of a map."""
    rows = n.op("Transpose", n.op("Sin", x), perm=[0, 2, 3, 1])
    return n.op("Transpose", n.op("Inverse", rows, domain="com.microsoft"), perm=[0, 3, 1, 2])


UNKNOWN: dict[str, Body] = {"com.microsoft::Inverse": inverted}
for _op in (*UNKNOWN, "ReverseSequence", "Trilu"):
    _name = f"{_op}: as if element-wise"
    SABOTAGES.append(Sabotage(_name, _op, CORRECT["Relu"], "mask permutation"))


def models(op_type: str) -> list[ModelProto]:
    if op_type in CASES:
        return [case.build() for case in CASES[op_type]]
    n = Net()
    x = n.conv(n.input("N", 2, 4, 4), 2, 4)
    return [n.model(n.conv(UNKNOWN[op_type](n, x), 4, 3), rank=4)]


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
        if not found >= {"mask", "permutation"}:  # which is all that can be
            found |= verdicts(proto)
    assert found == set(case.caught_by.split())


@pytest.mark.parametrize("op_type", UNKNOWN)
def test_an_unknown_operator_freezes(op_type: str) -> None:
    (proto,) = models(op_type)
    structure = oracle.traced(proto).structure
    assert not structure.groups
    assert any(op_type.split("::")[-1] in frozen.reason for frozen in structure.frozen)
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
