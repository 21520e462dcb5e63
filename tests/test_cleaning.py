"""Clean-up: what is planted is found, what is left computes the same, nothing else changes."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import oracle
from hypothesis import HealthCheck, assume, given, settings
from onnx import ModelProto, helper, numpy_helper
from strategies import networks
from validity import check as check_valid

from onnxprune import graph
from onnxprune.cleaning import CleanUp, clean_up
from onnxprune.structure import Structure

Array = np.ndarray[Any, Any]
TOLERANCE = 1e-5

FOLLOWED = (
    "convolution depthwise batch_norm activation residual padded_residual dense_concat "
    "split_concat gated pool affine"
).split()
"""Blocks through which relations between channels are followed."""


def cleaned(proto: ModelProto) -> tuple[ModelProto, CleanUp]:
    """Clean a model up and hold the result against it, on samples that the product did not see."""
    model = graph.normalise(proto)
    result, what = clean_up(model, oracle.feeds(proto, 2), threads=1)
    assert bool(what) == (result is not model)
    check_valid(result.proto)
    for ours, theirs in (
        (result.proto.graph.input, proto.graph.input),
        (result.proto.graph.output, proto.graph.output),
    ):
        assert [v.SerializeToString() for v in ours] == [v.SerializeToString() for v in theirs]
    for batch in (3, 5) if oracle.has_dynamic_batch(proto) else (2,):
        inputs = oracle.feeds(proto, batch, seed=7)
        found = oracle.error(oracle.run(proto, inputs), oracle.run(result.proto, inputs))
        assert found <= TOLERANCE, f"cleaning changed the outputs: error {found:.2g}"
    return result.proto, what


# -- planting ------------------------------------------------------------------------------------


def values_of(proto: ModelProto) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t).copy() for t in proto.graph.initializer}


def with_values(proto: ModelProto, values: dict[str, Array]) -> ModelProto:
    result = ModelProto()
    result.CopyFrom(proto)
    for tensor in result.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return result


def places(structure: Structure, labels: Array, unit: int) -> Array:
    index, units = structure.units.atoms(labels)
    return index[units == unit]


def plant(proto: ModelProto, structure: Structure, unit: int, twin: int, kind: str) -> ModelProto:
    """Make a unit a constant, or a copy of a twin, by all that produces it; readers stay."""
    values = values_of(proto)
    summing = {sink.node for sink in structure.sinks}
    data = {(w.tensor, w.data_labels.tobytes()) for w in structure.weights
            if w.data_labels is not None and w.node in summing}  # fmt: skip
    weights = {w.tensor for w in structure.weights}
    for site in structure.sites:
        here = places(structure, site.labels, unit)
        if (site.tensor, site.labels.tobytes()) in data or not len(here):
            continue
        array = np.moveaxis(values[site.tensor], site.axis, 0)
        if kind == "duplicate":
            array[here] = array[places(structure, site.labels, twin)]
        elif site.tensor in weights:
            array[here] = 0
    return with_values(proto, values)


def removable(proto: ModelProto, structure: Structure, unit: int) -> bool:
    """Whether what a constant unit brings is zero, or read without padding, wherever it is summed.

    Measured, not derived.
    """
    inputs = oracle.feeds(proto, 4, seed=3)
    nodes = {n.output[0]: n for n in proto.graph.node}
    for sink in structure.sinks:
        here = places(structure, sink.labels, unit)
        if not len(here):
            continue
        node = nodes[sink.node]
        probe = ModelProto()
        probe.CopyFrom(proto)
        probe.graph.output.append(helper.make_empty_tensor_value_info(node.input[sink.input]))
        read = np.moveaxis(oracle.run(probe, inputs)[-1], sink.axis, 0)[here]
        pads = next((a.ints for a in node.attribute if a.name == "pads"), [])
        if read.any() and (any(pads) or node.op_type not in ("Conv", "Gemm", "MatMul")):
            return False
        if np.ptp(read.reshape(len(here), -1), axis=1).max() > 0:
            return False
    return True


SETTINGS = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@SETTINGS
@given(networks(4, FOLLOWED, shared=False), st.integers(0, 1000), st.booleans())
def test_planted_duplicates_are_found(proto: ModelProto, seed: int, twice: bool) -> None:
    t = oracle.traced(proto)
    groups = [g for g in t.structure.groups if len(g.units) >= 3]
    assume(groups)
    rng = np.random.default_rng(seed)
    group = groups[seed % len(groups)]
    original, *copies = rng.permutation(group.units)[: 3 if twice else 2]
    planted = proto
    for copy in copies:
        planted = plant(planted, t.structure, int(copy), int(original), "duplicate")
    small, what = cleaned(planted)
    if sum(what.channels.values()) < len(copies):
        import onnx

        onnx.save(planted, "/tmp/fail.onnx")
        onnx.save(proto, "/tmp/orig.onnx")
        print(group, original, copies)
    assert sum(what.channels.values()) >= len(copies)
    assert not what.dropped
    assert oracle.weight_elements(small) < oracle.weight_elements(t.model.proto)


@SETTINGS
@given(networks(4, FOLLOWED, shared=False), st.integers(0, 1000))
def test_planted_constants_are_found(proto: ModelProto, seed: int) -> None:
    t = oracle.traced(proto)
    groups = [g for g in t.structure.groups if len(g.units) >= 3]
    assume(groups)
    group = groups[seed % len(groups)]
    unit, twin = (int(u) for u in np.random.default_rng(seed).permutation(group.units)[:2])
    planted = plant(proto, t.structure, unit, twin, "constant")
    _, what = cleaned(planted)
    assert not what.dropped
    if removable(planted, t.structure, unit):
        assert sum(what.channels.values()) + what.branches >= 1


@SETTINGS
@given(networks(4, FOLLOWED, shared=False))
def test_a_model_without_redundancy_is_returned_as_it_is(proto: ModelProto) -> None:
    _, what = cleaned(proto)
    assert not what


@SETTINGS
@given(networks(4), st.integers(0, 1000), st.sampled_from(["duplicate", "constant"]))
def test_cleaning_is_right_for_every_network(proto: ModelProto, seed: int, kind: str) -> None:
    t = oracle.traced(proto)
    groups = [g for g in t.structure.groups if len(g.units) >= 2]
    if groups:
        group = groups[seed % len(groups)]
        unit, twin = (int(u) for u in np.random.default_rng(seed).permutation(group.units)[:2])
        proto = plant(proto, t.structure, unit, twin, kind)
    cleaned(proto)
