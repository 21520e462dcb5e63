"""Trace: walk a graph once with the rules and find its units, groups and frozen channels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.arrays import I64
from onnxprune.errors import ModelError
from onnxprune.model.edit import captured_names, edit, node_id
from onnxprune.model.model import Model
from onnxprune.model.nodes import operator
from onnxprune.model.shapes import Shapes
from onnxprune.structure.labels import Reason, Units
from onnxprune.structure.op import Op
from onnxprune.structure.rules import RULES
from onnxprune.structure.structure import Frozen, Group, Structure, Untouched
from onnxprune.structure.trace_state import TraceState
from onnxprune.structure.untouched import find_untouched


def trace(
    model: Model, shapes: Shapes, *, exclude: Sequence[str] = (), allow_inexact: bool = False
) -> Structure:
    """Find out which channels of a model can leave together, and which cannot and why.

    Args:
        model: a model whose shape arithmetic is folded.
        shapes: its observed shapes.
        exclude: globs over node and initializer names; what matches keeps its size.
        allow_inexact: let channels leave across which something is normalised.

    Raises:
        ModelError: if a glob matches nothing.
    """
    state = TraceState(shapes, allow_inexact=allow_inexact)
    graph = edit(model)
    unmatched, excluded = set(exclude), set[str]()
    for node in graph.nodes:
        op = Op(node, model.opset, state)
        recorded = len(state.sites)
        _apply(op, node)
        for pattern in exclude:
            names = [
                op.name,
                op.id,
                *(t.name for t in node.inputs if isinstance(t, gs.Constant)),
            ]
            if any(fnmatchcase(name, pattern) for name in names):
                unmatched.discard(pattern)
                excluded.update(names)
                for site in state.sites[recorded:]:
                    op.freeze(site.labels, f"excluded by '{pattern}'")
    if unmatched:
        raise ModelError(
            f"exclude pattern '{sorted(unmatched)[0]}' matches no node and no initializer"
        )
    _freeze_outputs(graph, state)
    _tie_shared(graph, state)
    untouched = find_untouched(model, shapes, {w.node for w in state.weights})
    return _structure(state, frozenset(excluded), graph, tuple(untouched))


def _apply(op: Op, node: gs.Node) -> None:
    for name in captured_names(node):
        for labels in op.labels_of(name).values():
            op.freeze(labels, f"is read inside a subgraph of {op.type}")
    rule = RULES.get(operator(node.op, node.domain))
    if rule is None or any(node.subgraphs()):
        op.close(f"there is no rule for {node.op}")
    elif not op.known():
        op.close("its shapes could not be observed")
    else:
        rule(op)
        op.close(f"{node.op} works across it")


def _freeze_outputs(graph: gs.Graph, state: TraceState) -> None:
    for output in graph.outputs:
        producer = output.inputs[0] if output.inputs else None
        frozen = [output]
        if producer is not None and producer.op == "Shape":
            frozen.append(producer.inputs[0])
        reason = Reason(
            producer.name or output.name if producer else output.name,
            f"'{output.name}' is a model output",
        )
        for tensor in frozen:
            for labels in state.axes.get(tensor.name, {}).values():
                state.labels.freeze(labels, reason)


def _tie_shared(graph: gs.Graph, state: TraceState) -> None:
    """A matrix that several nodes use stays one tensor; vectors are un-shared.

    Where one of the uses cannot shrink along an axis, none can.
    """
    cuts: dict[tuple[str, int], dict[int, I64]] = defaultdict(dict)
    for site in state.sites:
        cuts[site.node, site.input][site.axis] = site.labels
    users: dict[str, list[tuple[gs.Node, int]]] = defaultdict(list)
    for node in graph.nodes:
        for name in captured_names(node):
            users[name].append((node, -1))
        for i, tensor in enumerate(node.inputs):
            if isinstance(tensor, gs.Constant) and sum(n > 1 for n in tensor.shape) > 1:
                users[tensor.name].append((node, i))
    for name, uses in users.items():
        for axis in {axis for node, i in uses for axis in cuts[node_id(node), i]}:
            labels = [cuts[node_id(node), i].get(axis) for node, i in uses]
            known = [one for one in labels if one is not None]
            for other in known[1:]:
                state.labels.tie(known[0], other)
            if len(known) < len(labels):
                node = next(
                    node for (node, _), one in zip(uses, labels, strict=True) if one is None
                )
                why = f"'{name}' is used here too, and cannot shrink along axis {axis}"
                state.labels.freeze(known[0], Reason(node.name or node_id(node), why))


def _layers(state: TraceState) -> dict[str, int]:
    """Return how many weights each node has; those that are shared count at the first."""
    sizes: dict[str, int] = {}
    counted = set[str]()
    for weight in state.weights:
        own = 0 if weight.tensor in counted else int(np.prod(weight.shape))
        sizes[weight.node] = sizes.get(weight.node, 0) + own
        counted.add(weight.tensor)
    return sizes


def _structure(
    state: TraceState, excluded: frozenset[str], graph: gs.Graph, untouched: tuple[Untouched, ...]
) -> Structure:
    units = state.labels.solve()
    names = {node_id(n): n.name or node_id(n) for n in graph.nodes}
    axes: dict[bytes, I64] = {}
    recorded = [*(s.labels for s in state.sites), *(o.labels for o in state.origins)]
    for labels in [*recorded, *(a for by in state.axes.values() for a in by.values())]:
        axes.setdefault(labels.tobytes(), labels)
    distinct = tuple(axes.values())
    return Structure(
        units=units,
        sites=tuple(state.sites),
        sizes=tuple(state.sizes),
        renumbered=tuple(state.renumbered),
        original_shapes=tuple(state.original_shapes),
        sinks=tuple(state.sinks),
        origins=tuple(state.origins),
        weights=tuple(state.weights),
        axes=distinct,
        groups=_groups(units, state, distinct, names),
        frozen=(*_frozen(units, state, graph), *map(_as_frozen, untouched)),
        inexact=tuple(state.inexact),
        excluded=excluded & {w.tensor for w in state.weights},
        untouched=untouched,
    )


def _groups(
    units: Units, state: TraceState, axes: Sequence[I64], names: dict[str, str]
) -> tuple[Group, ...]:
    """Put units that occur on exactly the same axes into one group."""
    rng = np.random.default_rng(0)
    signature = np.zeros(len(units), dtype=np.uint64)
    for labels in axes:
        present = np.unique(units.atoms(labels)[1])
        signature[present] += rng.integers(1, 2**63, dtype=np.uint64)
    has_site = np.zeros(len(units), dtype=np.bool_)
    for site in state.sites:
        has_site[units.atoms(site.labels)[1]] = True
    origins: list[list[str]] = [[] for _ in range(len(units))]
    for origin in state.origins:
        for unit in np.unique(units.atoms(origin.labels)[1]):
            origins[unit].append(names[origin.node])
    along: list[list[str]] = [[] for _ in range(len(units))]
    begun = {origin.node for origin in state.origins}
    for node in {w.node: None for w in state.weights if w.node not in begun}:
        for unit in np.unique(units.atoms(_passed(state, node))[1]):
            along[unit].append(names[node])
    members: dict[int, list[int]] = {}
    for unit in np.flatnonzero(has_site):
        if origins[unit]:
            members.setdefault(int(signature[unit]), []).append(int(unit))
    groups, taken = [], set[str]()
    for unit_list in members.values():
        nodes = tuple(dict.fromkeys(origins[unit_list[0]]))
        name, count = nodes[0], 1
        while name in taken:
            count += 1
            name = f"{nodes[0]}#{count}"
        taken.add(name)
        others = tuple(dict.fromkeys(along[unit_list[0]]))
        groups.append(Group(name, np.asarray(unit_list, dtype=np.int64), nodes, others))
    return tuple(groups)


def _passed(state: TraceState, node: str) -> I64:
    """Return the labels of a node's output that its own constants are sliced along."""
    own = [s.labels for s in state.sites if s.node == node]
    given = list(state.axes.get(node, {}).values())
    return np.intersect1d(
        np.concatenate([np.empty(0, dtype=np.int64), *own]),
        np.concatenate([np.empty(0, dtype=np.int64), *given]),
    )


def _as_frozen(layer: Untouched) -> Frozen:
    reason = f"it {layer.reason}"
    return Frozen(layer.tensor, layer.node, reason, layer.channels, layer.weights)


def _frozen(units: Units, state: TraceState, graph: gs.Graph) -> tuple[Frozen, ...]:
    """List the outputs of layers whose channels cannot all leave, with the first reason."""
    result, layers = [], _layers(state)
    for origin in state.origins:
        reason = units.why_fixed(origin.labels)
        if reason is not None:
            size = len(origin.labels)
            channels = size - len(np.unique(units.atoms(origin.labels)[0]))
            weights = round(layers.get(origin.node, 0) * channels / size)
            result.append(Frozen(origin.tensor, reason.node, reason.text, channels, weights))
    begun = {origin.node for origin in state.origins}
    for node in graph.nodes:
        name = node_id(node)
        if name not in layers or name in begun:
            continue
        labels = _passed(state, name)
        if len(units.atoms(labels)[0]):
            continue  # a layer that shrinks along
        sizes = state.shapes.sizes(name) if state.shapes.has(name) else ()
        channels = sizes[1 if "Conv" in node.op else -1] if len(sizes) > 1 else 0
        reason = units.why_fixed(labels) or Reason(node.name or name, _why_none(node, channels))
        result.append(Frozen(name, reason.node, reason.text, channels, layers[name]))
    return tuple(result)


def _why_none(node: gs.Node, channels: int) -> str:
    """Say why no labels begin at a node with weights."""
    if channels == 1:
        return "its one output has to stay"
    return f"no channels begin at {node.op} with such operands"
