"""Every rule in every case and in random networks, held against the oracles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from cases import CASES, Case
from hypothesis import HealthCheck, given, settings
from onnx import ModelProto
from oracle import (
    Findings,
    Traced,
    check,
    error,
    feeds,
    identity,
    mask,
    permutation,
    pruned,
    random_removal,
    run,
    traced,
)
from strategies import BATCH, BLOCKS, Net, attention, networks, shuffle, squeeze_excite
from strategies_open import HEADS, MAPS, TOKEN_HEADS, TOKENS, open_networks

from onnxprune.model.cost import WEIGHT_INPUTS
from onnxprune.model.model import normalise
from onnxprune.structure.rules import RULES

ALL = [case for cases in CASES.values() for case in cases]
every_case = pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)


@cache
def traced_case(case: Case) -> Traced:
    return traced(case.build())


def test_every_rule_has_a_case() -> None:
    assert set(CASES) == set(RULES)
    for op_type, cases in CASES.items():
        for case in cases:
            nodes = traced_case(case).proto.graph.node
            assert op_type in {f"{n.domain}::{n.op_type}".removeprefix("::") for n in nodes}
    assert len({case.name for case in ALL}) == len(ALL)


@every_case
def test_case_keeps_its_bits_under_an_empty_plan(case: Case) -> None:
    identity(traced_case(case))


@every_case
def test_case_keeps_its_function_when_units_change_places(case: Case) -> None:
    assert (permutation(traced_case(case)) > 0) == case.prunable


@every_case
def test_case_equals_its_masked_original(case: Case) -> None:
    t = traced_case(case)
    visible = False
    for seed, share in enumerate((0.3, 0.6, 1.0)):
        kept = random_removal(t.structure, np.random.default_rng(seed), share)
        assert kept.all() != case.prunable
        visible |= mask(t, kept)
    assert visible == case.prunable, "the masks change nothing: the test has no teeth"


@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN", "Einsum"])
def test_channels_that_an_operator_begins_can_leave(op_type: str) -> None:
    """Also where the channels of the layer before could."""
    for case in CASES[op_type]:
        frozen = {f.tensor for f in traced_case(case).structure.frozen if f.channels > 1}
        nodes = [n for n in traced_case(case).model.proto.graph.node if n.op_type == op_type]
        assert not case.prunable or not frozen & {o for n in nodes for o in n.output}


@pytest.mark.parametrize("case", [c for c in ALL if not c.prunable], ids=lambda c: c.name)
def test_channels_that_cannot_leave_have_a_reason(case: Case) -> None:
    structure = traced_case(case).structure
    known = {n.name for n in traced_case(case).model.proto.graph.node}
    assert {f.tensor for f in structure.frozen} >= {o.tensor for o in structure.origins}
    assert all(f.reason and f.node in known for f in structure.frozen)


@every_case
def test_every_layer_is_in_a_group_or_has_a_reason(case: Case) -> None:
    """Also where its factors are frozen one by one, and where no channels begin at it."""
    t = traced_case(case)
    structure, proto = t.structure, t.model.proto
    sizes = {i.name: int(np.prod(i.dims)) for i in proto.graph.initializer}
    layers = {
        n.name: set(n.output)
        for n in proto.graph.node
        if any(n.input[i] in sizes for i in WEIGHT_INPUTS.get(n.op_type, ()) if i < len(n.input))
    }
    found = {n for g in structure.groups for n in (*g.nodes, *g.along)}
    frozen = {f.tensor for f in structure.frozen}
    assert layers
    assert not [name for name, out in layers.items() if name not in found and not out & frozen]
    assert sum(f.weights for f in structure.frozen) <= sum(sizes.values())


def test_a_layer_whose_factors_are_all_frozen_has_a_reason() -> None:
    """As the last layer of a detector, whose channels are anchors times coordinates."""
    n = Net()
    x = n.conv(stem(n, 4), 4, 6, name="boxes")
    x = n.op("Reshape", x, n.const([0, 3, 2, 16], "int64"))
    t = traced(n.model(n.op("Transpose", x, perm=[0, 3, 1, 2])))
    (frozen,) = (f for f in t.structure.frozen if f.channels == 6)
    assert "is a model output" in frozen.reason
    assert frozen.weights == 4 * 6


def test_layers_that_shrink_along_are_named() -> None:
    n = Net()
    x = n.conv(stem(n, 5), 5, 5, 3, group=5, name="deep")
    (group,) = traced(n.model(n.conv(x, 5, 2))).structure.groups
    assert (group.nodes, group.along) == (("stem",), ("deep",))


def test_what_costs_most_is_named_first() -> None:
    n = Net()
    x = n.op("Softmax", n.dense(n.input(BATCH, 3), 3, 4, name="first"))
    x = n.op("LayerNormalization", n.dense(x, 4, 40, name="wide"), n.const([1.0] * 40), axis=-1)
    structure = traced(n.model(n.dense(x, 40, 2, name="last"), rank=2)).structure
    assert structure.frozen_by_reason()[0].weights == 160
    said = structure.costliest()
    assert said.startswith("160 weights of 1 layer stay: LayerNormalization normalises across it")
    assert "--allow-inexact" in said
    assert said.count(" stay: ") == 2


def test_random_networks_pass_all_oracles() -> None:
    found: list[Findings] = []
    blocks: Counter[str] = Counter()

    @settings(
        max_examples=240, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(networks())
    def hold(proto: ModelProto) -> None:
        found.append(check(proto, seed=len(found), share=0.2 + 0.2 * (len(found) % 4)))
        blocks.update(proto.doc_string.split())

    hold()
    assert len(found) >= 200
    assert set(blocks) == set(BLOCKS)
    assert all(f.removed for f in found), "a network froze silently"
    assert sum(f.visible for f in found) > 0.95 * len(found)
    assert sum(f.permuted for f in found) > 0.8 * sum(f.groups for f in found)


def test_networks_with_open_sizes_and_subgraphs_pass_all_oracles() -> None:
    found: list[Findings] = []
    parts: Counter[str] = Counter()

    @settings(
        max_examples=60, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(open_networks())
    def hold(proto: ModelProto) -> None:
        found.append(check(proto, seed=len(found), share=0.2 + 0.2 * (len(found) % 4)))
        parts.update(proto.doc_string.split())

    hold()
    assert len(found) >= 50
    every = {*MAPS, *HEADS, *TOKENS, *TOKEN_HEADS}
    assert len(every & set(parts)) > 0.8 * len(every)
    assert sum(f.removed > 0 for f in found) > 0.8 * len(found)


# -- groups known by hand --------------------------------------------------------------------

Golden = tuple[Callable[[Net], str], list[tuple[set[str], int]]]


def stem(n: Net, c: int) -> str:
    return n.conv(n.input(BATCH, 2, 4, 4), 2, c, 3, name="stem")


def residual(n: Net) -> str:
    x = stem(n, 6)
    y = n.conv(n.op("Relu", n.conv(x, 6, 4, name="inner")), 4, 6, name="outer")
    return n.conv(n.op("Add", x, y), 6, 2)


def dense_concat(n: Net) -> str:
    x = stem(n, 4)
    return n.conv(n.op("Concat", x, n.conv(x, 4, 3, name="grow"), axis=1), 7, 2)


def depthwise(n: Net) -> str:
    return n.conv(n.conv(stem(n, 5), 5, 5, 3, group=5), 5, 2)


def grouped(n: Net) -> str:
    return n.conv(n.conv(stem(n, 6), 6, 12, group=3, name="grouped"), 12, 2)


def shuffled(n: Net) -> str:
    x = n.conv(stem(n, 4), 4, 6, group=2, name="grouped")
    return n.conv(shuffle(n, x, 6, 2, 4), 6, 2, name="tail")


def gates(n: Net) -> str:
    return n.conv(squeeze_excite(n, stem(n, 5), 5, 3), 5, 2)


def heads(how: str) -> Callable[[Net], str]:
    def build(n: Net) -> str:
        x = n.dense(n.input(BATCH, 5, 3), 3, 4, name="embed")
        return n.dense(attention(n, x, 4, 2, 3, 5, how), 4, 2)

    return build


def separate_shuffle(n: Net) -> str:
    return n.conv(shuffle(n, stem(n, 6), 6, 2, 4), 6, 2, name="tail")


GOLDEN: dict[str, Golden] = {
    "residual": (residual, [({"stem", "outer"}, 6), ({"inner"}, 4)]),
    "dense concat": (dense_concat, [({"stem"}, 4), ({"grow"}, 3)]),
    "depthwise": (depthwise, [({"stem"}, 5)]),
    # three groups, two input channels in each, four output channels in each
    "grouped": (grouped, [({"stem", "grouped"}, 3), ({"stem"}, 2), ({"grouped"}, 4)]),
    "shuffle": (separate_shuffle, [({"stem"}, 2), ({"stem"}, 3)]),
    "grouped, then shuffle": (
        shuffled,
        [({"stem", "grouped"}, 2), ({"stem"}, 2), ({"grouped"}, 3)],
    ),
    "squeeze-excite": (gates, [({"stem", "gates"}, 5), ({"squeeze"}, 3)]),
    # heads, the width of q and k, the width of v, and what the projection returns
    "attention, split": (
        heads("split"),
        [({"embed"}, 4), ({"packed"}, 2), ({"packed"}, 3), ({"packed"}, 3), ({"joined"}, 4)],
    ),
    # one axis holds the widths of q, k and v
    "attention, gather": (
        heads("gather"),
        [({"embed"}, 4), ({"packed"}, 2), ({"packed"}, 3), ({"joined"}, 4)],
    ),
}


def as_counts(groups: list[tuple[set[str], int]]) -> Counter[tuple[tuple[str, ...], int]]:
    return Counter((tuple(sorted(nodes)), count) for nodes, count in groups)


@pytest.mark.parametrize("name", GOLDEN)
def test_groups_are_those_known_by_hand(name: str) -> None:
    build, expected = GOLDEN[name]
    n = Net()
    t = traced(n.model(build(n)))
    found = [(set(g.nodes), len(g.units)) for g in t.structure.groups]
    assert as_counts(found) == as_counts(expected)


def units_along(t: Traced, node: str, axis: int) -> list[set[int]]:
    """The units that each index of a weight's axis leaves with."""
    names = {n.name: n.output[0] for n in t.model.proto.graph.node}
    (site,) = (
        s for s in t.structure.sites if s.node == names[node] and (s.input, s.axis) == (1, axis)
    )
    index, unit = t.structure.units.atoms(site.labels)
    return [set(unit[index == i].tolist()) for i in range(len(site.labels))]


def test_residual_channels_leave_index_by_index() -> None:
    n = Net()
    t = traced(n.model(residual(n)))
    assert units_along(t, "stem", 0) == units_along(t, "outer", 0)
    assert all(len(units) == 1 for units in units_along(t, "stem", 0))


def test_a_shuffled_channel_leaves_with_its_row_or_its_column() -> None:
    n = Net()
    t = traced(n.model(separate_shuffle(n)))
    before, after = units_along(t, "stem", 0), units_along(t, "tail", 1)
    rows, columns = [before[0] & before[k] for k in (1, 3)]
    assert before[0] == rows | columns
    assert len(rows) == len(columns) == 1
    assert after == [before[k] for k in (0, 3, 1, 4, 2, 5)]


@pytest.mark.parametrize(
    "case", [c for c in ALL if "shared matrix" in c.name or "tied" in c.name], ids=lambda c: c.name
)
def test_a_shared_matrix_is_not_copied(case: Case) -> None:
    t = traced_case(case)
    small = pruned(t, random_removal(t.structure, np.random.default_rng(0), 0.6))
    matrices = [
        [i for i in proto.graph.initializer if len(i.dims) > 1] for proto in (t.proto, small)
    ]
    assert len(matrices[0]) == len(matrices[1])
    assert sum(np.prod(i.dims) for i in matrices[1]) < sum(np.prod(i.dims) for i in matrices[0])


def test_a_weight_shared_through_identity_is_one_tensor() -> None:
    """As TorchScript exports parameters with equal values; vectors may still be sliced apart."""
    n = Net()
    x = stem(n, 6)
    weight, bias = n.weight(6, 6, 1, 1), n.weight(6)
    x = n.op("Relu", n.op("Conv", x, weight, bias))
    x = n.op("Conv", x, n.op("Identity", n.op("Identity", weight)), n.op("Identity", bias))
    proto = n.model(n.conv(x, 6, 2), n.op("Identity", bias))
    whole = normalise(proto).proto
    assert [node.op_type for node in whole.graph.node].count("Identity") == 1  # an output's
    assert error(run(proto, feeds(proto, 2)), run(whole, feeds(whole, 2))) == 0
    assert check(whole, share=0.6).visible
    t = traced(whole)
    small = pruned(t, random_removal(t.structure, np.random.default_rng(0), 0.6))
    kernels = [tuple(i.dims) for i in small.graph.initializer if len(i.dims) == 4]
    assert len(kernels) == 3
    assert (6, 6, 1, 1) not in kernels


def test_a_shared_weight_stays_one_tensor_and_a_shared_bias_does_not_tie() -> None:
    n = Net(shared=5)
    x = n.conv(n.conv(stem(n, 4), 4, 4), 4, 4)
    t = traced(n.model(n.conv(x, 4, 2)))
    (stem_node, one, other, _) = t.model.proto.graph.node
    assert one.input[1] == other.input[1]
    assert stem_node.input[2] == one.input[2] == other.input[2]
    assert len(t.structure.groups) == 1
    kept = random_removal(t.structure, np.random.default_rng(0), 0.5)
    _, one, other, _ = pruned(t, kept).graph.node
    assert one.input[1] == other.input[1]

    n = Net(shared=1)
    t = traced(n.model(n.conv(n.conv(stem(n, 4), 4, 4), 4, 2)))
    first, second, _ = t.model.proto.graph.node
    assert first.input[2] == second.input[2]
    assert [len(g.units) for g in t.structure.groups] == [4, 4]
    mask(t, random_removal(t.structure, np.random.default_rng(0), 0.5))
