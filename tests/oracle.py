"""Three oracles that say whether labels, plan and rewrite of a model are right.

* identity: a plan that removes nothing gives the same bits;
* permutation: units of a group that change places leave the function as it was;
* mask: the pruned model equals the original with the removed channels multiplied by zero
  wherever an operator sums over them.

Graphs are edited here as protos, with no code of the rewrite or of the product's verification;
of the tracer only the labels, the sites and the groups are used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime as ort
import validity
from onnx import ModelProto, NodeProto, helper, numpy_helper
from reference import summed_axes
from strategies import BATCH

from onnxprune.arrays import I64, Bool
from onnxprune.model import model as graph
from onnxprune.model import observe
from onnxprune.model.folding import fold
from onnxprune.model.runner import Runner
from onnxprune.model.shapes import Shapes
from onnxprune.plans import plan as pruning_plan
from onnxprune.plans.cut import Cut
from onnxprune.rewrite import rewrite
from onnxprune.structure import trace
from onnxprune.structure.labels import Labels
from onnxprune.structure.structure import Structure
from onnxprune.structure.trace_state import TraceState

Array = np.ndarray[Any, Any]
TOLERANCE = 1e-5

INDICES = 4
"""Integer inputs are below this: no table of the tests has fewer rows."""

REORDERED = 1e-4
"""Tolerance where sums run in another order: deep networks of float32 then differ by more."""


class Blocks(Labels):
    """Labels that remember which of them were made together."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[int] = []

    def fresh(self, size: int) -> I64:
        labels = super().fresh(size)
        if size:
            self.starts.append(int(labels[0]))
        return labels


class Recorder(TraceState):
    """The tracer's state, kept for a look at it afterwards."""

    seen: Recorder

    def __init__(self, shapes: Shapes, *, allow_inexact: bool = False) -> None:
        super().__init__(shapes, allow_inexact=allow_inexact)
        self.labels: Blocks = Blocks()
        Recorder.seen = self


@dataclass(frozen=True)
class Traced:
    """A model with what tracing found: labels of tensors by axis, block of each label."""

    proto: ModelProto
    model: graph.Model
    shapes: Shapes
    structure: Structure
    axes: Mapping[str, Mapping[int, I64]]
    block: I64
    constants: Mapping[str, Array]

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of a constant or the first shape of any other tensor."""
        given = self.constants.get(tensor)
        return self.shapes.first[tensor] if given is None else given.shape

    def nodes(self) -> dict[str, NodeProto]:
        """Nodes of a fresh copy by the name of their first output."""
        copy = ModelProto()
        copy.CopyFrom(self.proto)
        return {next(o for o in n.output if o): n for n in copy.graph.node}


def traced(
    proto: ModelProto, shapes: Shapes | None = None, *, allow_inexact: bool = False
) -> Traced:
    """Run the tracer on a model, with ``shapes`` or as observed on random inputs."""
    whole = graph.normalise(proto)
    shapes = shapes or observe.observe(whole, feeds(proto, 2), runner=Runner(1))
    model = fold(whole, shapes)
    with mock.patch.object(trace, "TraceState", Recorder):
        structure = trace.trace(model, shapes, allow_inexact=allow_inexact)
    state = Recorder.seen
    ids = np.arange(len(structure.units.component))
    block = np.searchsorted(np.asarray(state.labels.starts), ids, side="right")
    given = {t.name: numpy_helper.to_array(t) for t in whole.proto.graph.initializer}
    constants = {**shapes.constants, **given}
    return Traced(proto, model, shapes, structure, state.axes, block, constants)


def feeds(proto: ModelProto, batch: int, seed: int = 0, size: int = 4) -> dict[str, Array]:
    """Random inputs: normal floats, integers below :data:`INDICES`.

    The dynamic axis ``N`` gets ``batch`` samples, others ``size`` and, by name, two more each.
    """
    rng, made = np.random.default_rng(seed), {}
    sizes = {BATCH: batch}
    for value in proto.graph.input:
        kind = value.type.tensor_type
        dims = [
            d.dim_value or sizes.setdefault(d.dim_param, size + 2 * (len(sizes) - 1))
            for d in kind.shape.dim
        ]
        floats = kind.elem_type == onnx.TensorProto.FLOAT
        drawn = rng.normal(size=dims) if floats else rng.integers(INDICES, size=dims)
        made[value.name] = drawn.astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return made


def several(proto: ModelProto) -> list[dict[str, Array]]:
    """Inputs that differ in data and in every dynamic size."""
    return [feeds(proto, 2, seed=2), feeds(proto, 3, seed=3, size=6)]


def has_dynamic_batch(proto: ModelProto) -> bool:
    """Whether every input takes any number of samples."""
    return all(not v.type.tensor_type.shape.dim[0].dim_value for v in proto.graph.input)


def run(proto: ModelProto, inputs: Mapping[str, Array]) -> list[Array]:
    """Run a model as it stands: one thread, no graph optimisation.

    Raises:
        AssertionError: if onnxruntime refuses it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return [np.asarray(v) for v in session.run(None, dict(inputs))]
    except Exception as refusal:  # of many types, which share no base
        raise AssertionError(f"onnxruntime refuses the model: {refusal}") from None


def error(expected: Sequence[Array], got: Sequence[Array]) -> float:
    """Largest difference of any output, relative to its largest magnitude; texts are equal."""
    assert len(expected) == len(got)
    assert any(one.size for one in expected), "all outputs are empty: the test has no teeth"
    worst = 0.0
    for one, other in zip(expected, got, strict=True):
        assert one.shape == other.shape, f"shape {other.shape}, expected {one.shape}"
        assert one.dtype == other.dtype, f"type {other.dtype}, expected {one.dtype}"
        if one.dtype.kind not in "fiub":
            assert np.array_equal(one, other), "other texts"
            continue
        if not one.size:
            continue
        assert np.isfinite(one).all(), "the reference is not finite: the test has no teeth"
        assert np.isfinite(other).all(), "not finite"
        a, b = one.astype(np.float64), other.astype(np.float64)
        worst = max(worst, float(np.abs(a - b).max()) / max(float(np.abs(a).max()), 1e-30))
    return worst


def differs(expected: Sequence[Array], got: Sequence[Array]) -> bool:
    """Whether outputs differ by more than rounding, or in number where the data counts."""
    shapes = [[v.shape for v in values] for values in (expected, got)]
    return shapes[0] != shapes[1] or error(expected, got) > 10 * TOLERANCE


def random_removal(structure: Structure, rng: np.random.Generator, share: float) -> Bool:
    """Draw units to remove (False); every axis keeps an index, groups lose about ``share``."""
    prunable = np.flatnonzero(structure.prunable)
    kept = np.ones(len(structure.units), dtype=np.bool_)
    order = rng.permutation(prunable)
    kept[order[: max(1, round(share * len(order)))]] = False
    while empty := [a for a in structure.axes if len(a) and not _stays(structure, kept, a)]:
        index, unit = structure.units.atoms(rng.permuted(empty[0]))
        kept[unit[index == index[0]]] = True
    if kept.all():
        for unit in order:
            kept[unit] = False
            if all(_stays(structure, kept, a) for a in structure.axes if len(a)):
                break
            kept[unit] = True
    return kept


def _stays(structure: Structure, kept: Bool, labels: I64) -> bool:
    return bool(structure.units.keep(kept)[labels].any())


def pruned(t: Traced, kept: Bool) -> ModelProto:
    """Prune with the product: plan and rewrite."""
    decided = pruning_plan.plan_from_units(t.model.sha256, t.structure, kept)
    return rewrite.rewrite(Cut(t.model, t.structure, t.shapes, decided)).proto


# -- identity ------------------------------------------------------------------------------


def identity(t: Traced) -> None:
    """Assert that an empty plan changes no bit."""
    same = pruned(t, np.ones(len(t.structure.units), dtype=np.bool_))
    validity.check(same)
    for inputs in several(t.proto):
        for one, other in zip(run(t.proto, inputs), run(same, inputs), strict=True):
            assert one.dtype == other.dtype
            assert np.array_equal(one, other, equal_nan=True), "an empty plan changed an output"


# -- permutation ---------------------------------------------------------------------------


def permutation(t: Traced, seed: int = 0) -> int:
    """Assert that the function stays when units change places; return how many groups did.

    Covered is every group with two units that occur equally often in each block of labels made
    together, factors of products included: whole blocks of a grouped convolution change
    places, and places within all blocks at once. Left out are groups with which some axis
    does not map to itself.
    """
    rng = np.random.default_rng(seed)
    sigma, moved = _permuted_labels(t, rng)
    if not moved:
        return 0
    nodes = t.nodes()
    values: dict[tuple[str, int], Array] = {}
    for site in t.structure.sites:
        place = site.node, site.input
        value = values.get(place, t.constants[site.tensor])
        index = _index_map(site.labels, sigma)
        assert index is not None
        values[place] = value.take(index, axis=site.axis)
    for node, i in values:
        nodes[node].input[i] = f"{node}/{i}/permuted"
    made = [numpy_helper.from_array(v, f"{n}/{i}/permuted") for (n, i), v in values.items()]
    model = with_nodes(t.proto, list(nodes.values()), made)
    for inputs in several(t.proto):
        found = error(run(t.proto, inputs), run(model, inputs))
        assert found <= REORDERED, f"permuted units change the function: error {found:.2g}"
    return moved


def _permuted_labels(t: Traced, rng: np.random.Generator) -> tuple[I64, int]:
    """Return the label that moves to the place of each label, and the number of groups."""
    units, component = t.structure.units, t.structure.units.component
    home: dict[int, list[int]] = defaultdict(list)
    for label, comp in enumerate(component):
        home[int(comp)].append(label)
    blocks = {c: tuple(sorted(t.block[labels])) for c, labels in home.items()}
    of_unit = np.flatnonzero(units.unit_of >= 0)[np.argsort(units.unit_of[units.unit_of >= 0])]
    chosen = np.arange(len(units.unit_of))
    sigma, moved = np.arange(len(component)), 0
    for group in t.structure.groups:
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for comp in of_unit[group.units]:
            alike[blocks[int(comp)]].append(int(comp))
        attempt = chosen.copy()
        for comps in alike.values():
            order = rng.permutation(comps)
            attempt[order] = np.roll(order, 1)
        if (attempt == chosen).all():
            continue
        found = _spread(t, attempt, home, blocks)
        if found is not None and all(_index_map(a, found) is not None for a in t.structure.axes):
            chosen, sigma, moved = attempt, found, moved + 1
    return sigma, moved


def _spread(
    t: Traced,
    chosen: I64,
    home: Mapping[int, list[int]],
    blocks: Mapping[int, tuple[int, ...]],
) -> I64 | None:
    """Spread a permutation of components to products and labels, None where it has no place."""
    target = chosen.copy()
    for products, first, second in t.structure.units.levels:
        rows = list(zip(products.tolist(), first.tolist(), second.tolist(), strict=True))
        rows.sort(key=lambda row: home[row[0]][0])
        places: dict[Any, list[int]] = defaultdict(list)
        for c, a, b in rows:
            places[a, b, blocks[c]].append(c)
        for c, a, b in rows:
            number = places[a, b, blocks[c]].index(c)
            there = places.get((int(target[a]), int(target[b]), blocks[c]), [])
            if number >= len(there):
                return None
            target[c] = there[number]
    sigma = np.arange(len(t.structure.units.component))
    inside: dict[tuple[int, int], list[int]] = defaultdict(list)
    for c, labels in home.items():
        for label in labels:
            inside[c, int(t.block[label])].append(label)
    for (c, block), labels in inside.items():
        sigma[labels] = inside[int(target[c]), block]
    return sigma


def _index_map(labels: I64, sigma: I64) -> I64 | None:
    """Return the index that moves to each index of an axis, None if labels leave the axis."""
    places: dict[int, list[int]] = defaultdict(list)
    for i, label in enumerate(labels.tolist()):
        places[label].append(i)
    result = np.empty(len(labels), dtype=np.int64)
    for label, here in places.items():
        there = places.get(int(sigma[label]), [])
        if len(there) != len(here):
            return None
        result[here] = there
    return result


# -- mask ----------------------------------------------------------------------------------


Reference = tuple[ModelProto, set[tuple[str, int, int]]]


def mask(t: Traced, kept: Bool, refer: Callable[[Traced, Bool], Reference] | None = None) -> bool:
    """Assert that pruning equals masking; return whether the masks change the function.

    ``refer`` builds another reference than :func:`masked`.
    """
    small = pruned(t, kept)
    validity.check(small)
    for ours, theirs in (
        (small.graph.input, t.proto.graph.input),
        (small.graph.output, t.proto.graph.output),
    ):
        assert [v.SerializeToString() for v in ours] == [v.SerializeToString() for v in theirs]
    if not kept.all():
        assert weight_elements(small) < weight_elements(t.model.proto), "nothing shrank"
    reference, places = (refer or masked)(t, t.structure.units.keep(kept))
    sinks = {(s.node, s.input, s.axis) for s in t.structure.sinks}
    assert places <= sinks, f"not recorded as sinks: {places - sinks}"
    visible = False
    for inputs in several(t.proto):
        expected = run(reference, inputs)
        found = error(expected, run(small, inputs))
        assert found <= TOLERANCE, f"pruned differs from masked: error {found:.2g}"
        visible |= differs(run(t.proto, inputs), expected)
    return visible


def weight_elements(proto: ModelProto) -> int:
    """Number of elements of constant operands but shapes, a shared one counted at every use."""
    others = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL)
    weights = [t for t in proto.graph.initializer if t.data_type not in others]
    sizes = {t.name: int(np.prod(t.dims)) for t in weights}
    return sum(sizes.get(name, 0) for node in proto.graph.node for name in node.input)


def masked(t: Traced, stays: Bool) -> Reference:
    """Return the original with the removed channels times zero, and where it is masked."""
    nodes: list[NodeProto] = []
    made, places = [], set[tuple[str, int, int]]()
    parameters, types = set[str](), number_types(t.proto)
    for name, node in t.nodes().items():
        operands = list(node.input)
        if node.op_type in ("DequantizeLinear", "Cast") and operands[0] in t.constants:
            parameters.add(name)
        for summed in summed_axes(node, t.shape, t.constants):
            i, axis, rank = summed.input, summed.axis, len(t.shape(operands[summed.input]))
            named = t.axes.get(summed.tensor, {})
            labels = named.get(summed.tensor_axis % len(t.shape(summed.tensor)))
            if labels is None or stays[labels].all() or summed.tensor in parameters:
                continue  # a weight meets activations that are masked
            dtype = types.get(node.input[i], np.dtype(np.float32))
            factor = stays[labels].astype(dtype).reshape(-1, *[1] * (rank - 1 - axis % rank))
            times = f"{name}/{i}/{axis % rank}"
            made.append(numpy_helper.from_array(factor, f"{times}/kept"))
            nodes.append(
                helper.make_node("Mul", [node.input[i], f"{times}/kept"], [f"{times}/masked"])
            )
            node.input[i] = f"{times}/masked"
            places.add((name, i, axis % rank - rank))
        nodes.append(node)
    return with_nodes(t.proto, nodes, made), places


def number_types(proto: ModelProto) -> dict[str, np.dtype[Any]]:
    """The element types of tensors, as far as they can be inferred."""
    given = {t.name: t.data_type for t in proto.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        given[value.name] = value.type.tensor_type.elem_type
    return {n: helper.tensor_dtype_to_np_dtype(k) for n, k in given.items() if k}


def with_nodes(
    proto: ModelProto, nodes: Sequence[NodeProto], made: Sequence[onnx.TensorProto]
) -> ModelProto:
    result = ModelProto()
    result.CopyFrom(proto)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(made)
    return result


# -- all together --------------------------------------------------------------------------


@dataclass(frozen=True)
class Findings:
    """What the oracles had to work with, to show that they are not vacuous."""

    groups: int
    permuted: int
    removed: int
    visible: bool


def check(proto: ModelProto, seed: int = 0, share: float = 0.5) -> Findings:
    """Hold a model against all three oracles."""
    t = traced(proto)
    kept = random_removal(t.structure, np.random.default_rng(seed), share)
    identity(t)
    permuted = permutation(t, seed)
    visible = mask(t, kept)
    return Findings(len(t.structure.groups), permuted, int((~kept).sum()), visible)
