"""What is said of channels is compared with what the models compute, for every operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
from cases import CASES, Case
from onnx import ModelProto, helper, numpy_helper

from onnxprune.clean.channels import NOTHING, Roots, alike
from onnxprune.clean.facts import States
from onnxprune.clean.relations import relate
from onnxprune.clean.transfers import TRANSFERS

Array = np.ndarray[Any, Any]
ALL = [case for op_type in sorted(CASES) for case in CASES[op_type]]


def related(proto: ModelProto) -> ModelProto:
    """Make output 1 of the first layer -2 times output 0, output 2 the same as 0, 3 constant."""
    result = ModelProto()
    result.CopyFrom(proto)
    values = {t.name: t for t in result.graph.initializer}
    first = next(n for n in result.graph.node if n.op_type in ("Conv", "MatMul", "Gemm"))
    for name in [i for i in first.input if i in values]:
        array = numpy_helper.to_array(values[name]).copy()
        axis = array.ndim - 1 if first.op_type != "Conv" else 0
        rows = np.moveaxis(array, axis, 0)
        if len(rows) >= 4:
            rows[1], rows[2] = -2 * rows[0], rows[0]
            rows[3] = 0 if array.ndim > 1 else rows[3]
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
        assert len(rows) == len(found)
        scale = max(float(np.abs(rows[np.isfinite(rows)]).max(initial=0)), 1.0)
        for i, row in enumerate(rows):
            if not np.isfinite(row).all():  # a constant that was normalised
                continue
            if found.root[i] == NOTHING:
                assert np.abs(row - found.offset[i]).max() <= 1e-5 * scale, (name, i)
                constant += 1
                continue
            function = (row - found.offset[i]) / found.scale[i]
            known = functions.setdefault((int(found.root[i]), row.shape), function)
            equal += known is not function
            size = 1e-5 * max(float(np.abs(known).max()), scale / abs(found.scale[i]))
            assert np.abs(known - function).max() <= size, (name, i)
    return constant, equal


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
                if found is not None and not found.plain:
                    silent.discard(op_type)
    assert silent == set()


def test_rows_are_alike_up_to_rounding() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 7)).astype(np.float32)
    again = np.concatenate([rows, rows * np.float32(1 + 1e-7), rows * np.float32(1.001)])
    number = alike(np.zeros(150, dtype=np.int64), again)
    assert np.array_equal(number[:50], number[50:100])
    assert len(np.unique(number)) == 100
    apart = alike(np.repeat([0, 1, 2], 50), again)
    assert len(np.unique(apart)) == 150


def test_roots_are_fresh_each_time() -> None:
    roots = Roots()
    first, second = (roots.of([np.array([4, 4, 5])], []) for _ in range(2))
    assert first[0] == first[1] != first[2]
    assert not set(first) & set(second)
