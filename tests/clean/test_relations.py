"""What is said of channels is compared with what the models compute, for every operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
from cases import CASES, Case
from onnx import ModelProto, helper, numpy_helper

from onnxprune.clean.channels import ZERO, Numbers
from onnxprune.clean.facts import States, relate
from onnxprune.clean.transfers import TRANSFERS

Array = np.ndarray[Any, Any]
ALL = [case for op_type in sorted(CASES) for case in CASES[op_type]]


def related(proto: ModelProto) -> ModelProto:
    """Make output 2 of every layer the same as output 0, and output 3 of the first constant."""
    result = ModelProto()
    result.CopyFrom(proto)
    values = {t.name: t for t in result.graph.initializer}
    layers = ("Conv", "MatMul", "Gemm", "ConvTranspose")
    for k, layer in enumerate(n for n in result.graph.node if n.op_type in layers):
        leads = layer.op_type == "Conv" or any(a.name == "transB" and a.i for a in layer.attribute)
        for name in [i for i in layer.input[1:] if i in values]:
            array = np.atleast_1d(numpy_helper.to_array(values[name])).copy()
            rows = np.moveaxis(array, 0 if leads or array.ndim == 1 else 1, 0)
            if len(rows) >= 4:
                rows[2] = rows[0]
                rows[3] = 0 if array.ndim > 1 and not k else rows[3]
                values[name].CopyFrom(numpy_helper.from_array(array, name))
    return result


def compared(proto: ModelProto, states: dict[str, States] | None = None) -> tuple[int, int]:
    """Hold what is said against what is computed; return how many channels each way were."""
    t = oracle.traced(proto)
    relations = relate(t.model, t.shapes, t.structure, states)
    probe = ModelProto()
    probe.CopyFrom(t.model.proto)
    names = [n for n in {o for node in probe.graph.node for o in node.output if o}
             if relations.known(n) is not None]  # fmt: skip
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names)
    functions: dict[tuple[int, tuple[int, ...]], Array] = {}
    constant = equal = 0
    for name, value in zip(names, oracle.run(probe, oracle.feeds(proto, 2, seed=5)), strict=True):
        found = relations.known(name)
        assert found is not None
        rows = np.moveaxis(value, found.axis, 0).astype(np.float64)
        assert len(rows) == len(found.numbers)
        scale = max(float(np.abs(rows[np.isfinite(rows)]).max(initial=0)), 1.0)
        for i, row in enumerate(rows):
            if not np.isfinite(row).all():  # a constant that was normalised
                continue
            number = int(found.numbers[i])
            if number < 0:
                value = relations.numbers.values(found.numbers)[i]
                assert np.abs(row - value).max(initial=0) <= 1e-5 * scale, (name, i)
                constant += 1
                continue
            known = functions.setdefault((number, row.shape), row)
            equal += known is not row
            assert np.abs(known - row).max(initial=0) <= 1e-5 * scale, (name, i)
    return constant, equal


def told(numbers: Array) -> bool:
    """Whether something is said of channels: one is constant, or two are equal."""
    return bool((numbers < 0).any()) or len(np.unique(numbers)) < len(numbers)


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_relations_hold(case: Case) -> None:
    compared(related(case.build()))


def test_something_is_compared() -> None:
    found = np.array([compared(related(case.build())) for case in CASES["Add"] + CASES["Concat"]])
    assert (found.sum(axis=0) > 10).all()


def test_relations_are_found_for_every_transfer() -> None:
    """Behind each operator with a transfer function something is known in one of its cases."""
    silent = set()
    for op_type in TRANSFERS:
        silent.add(op_type)
        for case in CASES[op_type]:
            proto = related(case.build())
            t = oracle.traced(proto)
            relations = relate(t.model, t.shapes, t.structure)
            for node in t.model.proto.graph.node:
                found = relations.known(node.output[0]) if node.op_type == op_type else None
                if found is not None and told(found.numbers):
                    silent.discard(op_type)
    assert silent == set()


def test_rows_that_are_equal_get_one_number() -> None:
    numbers = Numbers()
    rows = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    found = numbers.rows(np.concatenate([rows, rows, rows * np.float32(1.001)]))
    assert np.array_equal(found[:50], found[50:100])
    assert len(np.unique(found)) == 100
    assert len(np.unique(numbers.rows(np.array([[0.0], [-0.0]])))) == 1


def test_numbers_are_fresh_each_time() -> None:
    numbers = Numbers()
    first, second = (numbers.of(np.array([4, 4, 5])) for _ in range(2))
    assert first[0] == first[1] != first[2]
    assert not set(first) & set(second)


def test_constants_are_found_again_by_their_numbers() -> None:
    numbers = Numbers()
    values = np.array([0.0, 2.5, -1.0, 2.5, -0.0])
    found = numbers.constants(values)
    assert np.array_equal(numbers.values(found), values)
    assert found[0] == found[4] == ZERO
    assert found[1] == found[3] < 0
    assert (numbers.constants([np.nan, np.inf]) >= 0).all()
    assert np.array_equal(numbers.mapped(found, padded=True) < 0, found == ZERO)
