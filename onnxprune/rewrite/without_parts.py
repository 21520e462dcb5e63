"""Shorten: take whole parts out of a model, and the reference that proves it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs
from onnx import helper

from onnxprune.model.edit import edit, node_id, rebuild
from onnxprune.model.model import Model
from onnxprune.model.shapes import Shapes
from onnxprune.structure.removals import Removal, input_axis
from onnxprune.structure.structure import Structure


def shorten(
    model: Model, removals: Sequence[Removal], structure: Structure, shapes: Shapes
) -> Model:
    """Return a model without some of its parts.

    The name of a sum stays, as that of what leads around its branch. What read a layer's result
    reads the layer's input, with weights that are zero until they are fitted.

    Args:
        model: the model that was traced.
        removals: what leaves.
        structure: the result of tracing it.
        shapes: its observed shapes.
    """
    graph = edit(model)
    nodes = {node_id(node): node for node in graph.nodes}
    tensors = graph.tensors()
    weights = {w.node: w for w in structure.weights}
    for removal in removals:
        if removal.kind == "branch":
            node, source = nodes[removal.name], tensors[removal.source]
            node.op, node.inputs, node.attrs = "Identity", [source], {}
            continue
        for name, place in removal.readers:
            node, weight = nodes[name], weights[name]
            constant = node.inputs[weight.input]
            size, axis = list(weight.shape), input_axis(weight)
            size[axis] = shapes.sizes(removal.source)[weight.data_axis]
            dtype = np.asarray(constant.values).dtype
            node.inputs[weight.input] = gs.Constant(f"{name}/weight", np.zeros(size, dtype=dtype))
            node.inputs[place] = tensors[removal.source]
    return rebuild(graph, model)


def silenced(model: Model, removals: Sequence[Removal]) -> Model:
    """Return the original with what is removed multiplied by zero where it is read.

    Args:
        model: the model that was traced.
        removals: what leaves.
    """
    graph = edit(model)
    nodes = {node_id(node): node for node in graph.nodes}
    tensors = graph.tensors()
    types = model.types
    for removal in removals:
        result = tensors[removal.result]
        kind = types[removal.result].tensor_type.elem_type if removal.result in types else 1
        zero = np.zeros((), dtype=helper.tensor_dtype_to_np_dtype(kind))
        silent = gs.Variable(f"{removal.result}/silent")
        for name in [removal.name] if removal.kind == "branch" else [n for n, _ in removal.readers]:
            inputs = nodes[name].inputs
            for i in [k for k, tensor in enumerate(inputs) if tensor is result]:
                inputs[i] = silent
        constant = gs.Constant(f"{removal.result}/zero", zero)
        name = f"{removal.result}/silence"
        graph.nodes.append(gs.Node("Mul", name, inputs=[result, constant], outputs=[silent]))
    return rebuild(graph, model)


def with_gates(model: Model, removals: Sequence[Removal]) -> tuple[Model, dict[str, str]]:
    """Multiply the results of branches by constants that are one.

    Args:
        model: the model.
        removals: branches of it.

    Returns:
        The model, which computes the same, and for each removal the name of its constant: zero
        there is as if the branch had left.
    """
    graph = edit(model)
    nodes = {node_id(node): node for node in graph.nodes}
    types = model.types
    gates: dict[str, str] = {}
    for removal in removals:
        node = nodes[removal.name]
        place = next(k for k, t in enumerate(node.inputs) if t.name == removal.result)
        kind = types[removal.result].tensor_type.elem_type if removal.result in types else 1
        one = np.ones((), dtype=helper.tensor_dtype_to_np_dtype(kind))
        gates[removal.name] = f"{removal.name}/gate"
        gate, gated = gs.Constant(gates[removal.name], one), gs.Variable(f"{removal.name}/gated")
        name = f"{removal.name}/gating"
        graph.nodes.append(gs.Node("Mul", name, inputs=[node.inputs[place], gate], outputs=[gated]))
        node.inputs[place] = gated
    return rebuild(graph, model), gates
