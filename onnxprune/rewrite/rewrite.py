"""Rewrite: execute a plan. Constants are sliced, sizes recounted, single weights zeroed."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.arrays import Array, Bool
from onnxprune.model.edit import captured_names, edit, node_id, rebuild, values_of
from onnxprune.model.model import Model
from onnxprune.model.quantised import places, spread
from onnxprune.plans.cut import Cut
from onnxprune.plans.plan import PruningPlan
from onnxprune.structure.structure import OriginalShape, Renumber, Sizes, Structure

INFERRED = -1
"""Stands in a shape for the size that follows from the others."""


def rewrite(cut: Cut) -> Model:
    """Return a model without what leaves it."""
    graph, structure, kept = edit(cut.model), cut.structure, cut.kept
    nodes = {node_id(node): node for node in graph.nodes}
    _zero(graph, cut.plan)  # masks have the shapes of the original
    _slice_constants(nodes, structure, kept)
    for sizes in structure.sizes:
        _recount(graph, nodes[sizes.node], sizes, kept)
    for renumber in structure.renumbered:
        _renumber(nodes[renumber.node], renumber, kept)
    for shape in structure.original_shapes:
        _restore_shape(graph, nodes[shape.node], shape, kept)
    return rebuild(graph, cut.model)


def _slice_constants(nodes: dict[str, gs.Node], structure: Structure, kept: Bool) -> None:
    """Slice every constant once; uses that want different slices of one get their own."""
    wanted: dict[tuple[str, int], list[tuple[int, bytes]]] = defaultdict(list)
    for site in structure.sites:
        if not kept[site.labels].all():
            wanted[site.node, site.input].append((site.axis, kept[site.labels].tobytes()))
    uses: dict[str, set[tuple[tuple[int, bytes], ...]]] = defaultdict(set)
    for node_name, node in nodes.items():
        for i, tensor in enumerate(node.inputs):
            if isinstance(tensor, gs.Constant):
                uses[tensor.name].add(tuple(sorted(wanted.get((node_name, i), []))))
        for name in captured_names(node):
            uses[name].add(())
    made: dict[tuple[str, tuple[tuple[int, bytes], ...]], gs.Constant] = {}
    for (node_name, i), cuts in wanted.items():
        node, key = nodes[node_name], tuple(sorted(cuts))
        tensor = node.inputs[i]
        sliced = made.get((tensor.name, key))
        if sliced is None:
            values = values_of(tensor)
            for axis, keep in key:
                values = values.compress(np.frombuffer(keep, dtype=np.bool_), axis=axis)
            alone = len(uses[tensor.name]) == 1
            name = tensor.name if alone else f"{tensor.name}/{node_name}"
            sliced = gs.Constant(name, np.ascontiguousarray(values))
            made[tensor.name, key] = sliced
        node.inputs[i] = sliced


def _recount(graph: gs.Graph, node: gs.Node, sizes: Sizes, kept: Bool) -> None:
    """Write the sizes that changed; a -1 or 0 that a shape holds elsewhere keeps its meaning."""
    values = sizes.values.copy()
    changed = np.zeros(len(values), dtype=np.bool_)
    for position, labels in sizes.counted.items():
        count = int(kept[labels].sum())
        if count != len(labels):
            changed[position] = True
            if node.op != "Reshape" or values[position] != INFERRED:
                values[position] = count
    if not changed.any():
        return
    if isinstance(sizes.place, str):
        old = node.attrs[sizes.place]
        node.attrs[sizes.place] = (
            [int(v) for v in values] if isinstance(old, list) else int(values[0])
        )
        return
    while len(node.inputs) <= sizes.place:
        node.inputs.append(gs.Variable.empty())
    current = node.inputs[sizes.place]
    name = f"{node_id(node)}/input{sizes.place}"
    if isinstance(current, gs.Constant) or current.is_empty():
        dtype = np.int64 if current.is_empty() else current.values.dtype
        node.inputs[sizes.place] = gs.Constant(name, values.astype(dtype))
        node.attrs.pop("num_outputs", None)
    elif node.op == "Reshape" and sizes.dynamic.sum() <= 1:
        node.inputs[sizes.place] = gs.Constant(name, np.where(sizes.dynamic, -1, values))
    else:
        node.inputs[sizes.place] = _override(graph, name, current, changed, values)


def _override(
    graph: gs.Graph, name: str, computed: gs.Tensor, where: Bool, values: Array
) -> gs.Variable:
    """Replace some entries of a computed int64 vector."""
    result = gs.Variable(name, dtype=np.int64)
    graph.nodes.append(
        gs.Node(
            "Where",
            name,
            inputs=[
                gs.Constant(f"{name}/where", where),
                gs.Constant(f"{name}/values", values.astype(np.int64)),
                computed,
            ],
            outputs=[result],
        )
    )
    return result


def _renumber(node: gs.Node, renumber: Renumber, kept: Bool) -> None:
    keep = kept[renumber.labels]
    if keep.all():
        return
    tensor = node.inputs[renumber.input]
    old = np.asarray(tensor.values)
    place = old % len(keep)
    new = (np.cumsum(keep) - 1)[place]
    new = new[keep[place]] if new.ndim else new
    node.inputs[renumber.input] = gs.Constant(
        f"{node_id(node)}/indices", np.asarray(new, dtype=old.dtype)
    )


def _restore_shape(graph: gs.Graph, node: gs.Node, shape: OriginalShape, kept: Bool) -> None:
    changed = np.zeros(len(shape.values), dtype=np.bool_)
    for position, labels in shape.axes.items():
        changed[position] = not kept[labels].all()
    if not changed.any():
        return
    output = node.outputs[0]
    places = {
        (id(reader), i): reader
        for reader in output.outputs
        for i, tensor in enumerate(reader.inputs)
        if tensor is output
    }
    original = _override(graph, f"{output.name}/original", output, changed, shape.values)
    for (_, i), reader in places.items():
        reader.inputs[i] = original


def _zero(graph: gs.Graph, plan: PruningPlan) -> None:
    tensors: dict[str, Any] = graph.tensors()
    for name, mask in plan.masks.items():
        values = np.asarray(tensors[name].values)
        tensors[name].values = np.where(mask, values, _zero_point(tensors[name], values))


def _zero_point(tensor: gs.Constant, values: Array) -> Array:
    """Return what stands for zero in a tensor, in a shape that broadcasts to it."""
    for node in tensor.outputs:
        at = places(node.op, node.attrs)
        if at and node.inputs[at.weight] is tensor and at.zero < len(node.inputs):
            point = node.inputs[at.zero]
            if isinstance(point, gs.Constant):
                return spread(np.asarray(point.values), values.shape, at)
    return np.zeros((), dtype=values.dtype)
