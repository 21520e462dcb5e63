"""Channels leave: constants are sliced and sizes recounted.

The reference multiplies every removed channel by zero at the input of each operator that sums over
it; not where it is produced, where Sigmoid(0) = 0.5 and biases would leak. Where the user allows
inexact normalisation, the reference normalises over the kept channels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.arrays import Array, Bool
from onnxprune.model.edit import captured_names, node_id, values_of
from onnxprune.plans.cut import Cut
from onnxprune.rewrite.masks import dtypes_of, times
from onnxprune.structure.structure import Inexact, OriginalShape, Renumber, Sizes, Structure

INFERRED = -1
"""Stands in a shape for the size that follows from the others."""


def apply(graph: gs.Graph, cut: Cut) -> None:
    """Let the channels of a cut leave a graph of its model."""
    structure, kept = cut.structure, cut.kept
    nodes = {node_id(node): node for node in graph.nodes}
    _slice_constants(nodes, structure, kept)
    for sizes in structure.sizes:
        _recount(graph, nodes[sizes.node], sizes, kept)
    for renumber in structure.renumbered:
        _renumber(nodes[renumber.node], renumber, kept)
    for shape in structure.original_shapes:
        _restore_shape(graph, nodes[shape.node], shape, kept)


def refer(graph: gs.Graph, cut: Cut) -> None:
    """Multiply the channels of a cut by zero where something sums over them."""
    structure, kept = cut.structure, cut.kept
    nodes = {node_id(node): node for node in graph.nodes}
    types = dtypes_of(cut.model)
    for sink in structure.sinks:
        keep = kept[sink.labels]
        if not keep.all():
            node = nodes[sink.node]
            source = node.inputs[sink.input]
            constant = isinstance(source, gs.Constant)
            dtype = source.values.dtype if constant else types.get(source.name, np.float32)
            mask = keep.reshape(-1, *[1] * (-sink.axis - 1)).astype(dtype)
            node.inputs[sink.input] = times(graph, source, mask)
    for inexact in structure.inexact:
        _normalise_kept(graph, nodes[inexact.node], inexact, structure, kept, types)


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


def _normalise_kept(
    graph: gs.Graph,
    node: gs.Node,
    inexact: Inexact,
    structure: Structure,
    kept: Bool,
    dtypes: Mapping[str, np.dtype[np.generic]],
) -> None:
    """Let a node see the kept channels only, and put its results back between zeros."""
    for (i, axis), labels in inexact.inputs.items():
        if not kept[labels].all():
            source, index = node.inputs[i], np.flatnonzero(kept[labels])
            node.inputs[i] = _picked(graph, source, index, axis)
    for sizes in structure.sizes:
        if sizes.node == inexact.node and isinstance(sizes.place, str):
            node.attrs[sizes.place] = int(kept[sizes.counted[0]].sum())
    for (o, axis), labels in inexact.outputs.items():
        keep = kept[labels]
        if keep.all():
            continue
        output, compact = node.outputs[o], gs.Variable(f"{node.outputs[o].name}/compact/{axis}")
        node.outputs[o] = compact
        spread = _picked(graph, compact, np.maximum(np.cumsum(keep) - 1, 0), axis)
        mask = keep.reshape(-1, *[1] * (-axis - 1)).astype(dtypes.get(output.name, np.float32))
        times(graph, spread, mask, output)


def _picked(graph: gs.Graph, source: gs.Tensor, index: Array, axis: int) -> gs.Variable:
    name = f"onnxprune/pick/{len(graph.nodes)}"
    result = gs.Variable(name)
    inputs = [source, gs.Constant(f"{name}/index", index.astype(np.int64))]
    graph.nodes.append(
        gs.Node("Gather", name, inputs=inputs, outputs=[result], attrs={"axis": axis})
    )
    return result
