"""Edit: models as onnx-graphsurgeon graphs, and back with everything that drops."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import numpy as np
import onnx
import onnx.inliner
import onnx_graphsurgeon as gs
from onnx import helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnxprune.arrays import Array
from onnxprune.errors import InternalError
from onnxprune.model import roundtrip, storage
from onnxprune.model.model import Model, _problem


def node_id(node: gs.Node) -> str:
    """Return the identity of a node: the name of its first output that has one."""
    return next((str(t.name) for t in node.outputs if t.name), str(node.name))


def captured_names(node: gs.Node) -> set[str]:
    """Like :func:`captured`, for a graph that is being edited."""
    names: set[str] = set()
    for attribute in node.attrs.values():
        if isinstance(attribute, gs.Graph):
            for inner in attribute.nodes:
                names.update(str(t.name) for t in inner.inputs)
                names.update(captured_names(inner))
            names.update(str(t.name) for t in attribute.outputs)
    return names


def edit(model: Model) -> gs.Graph:
    """Return an onnx-graphsurgeon copy of the model to be changed."""
    return roundtrip.to_graph(model.proto)


def values_of(tensor: gs.Constant) -> Array:
    """Return the values of a constant; the graph does not keep what had to be read for that."""
    values = tensor._values
    return np.asarray(values.load() if isinstance(values, LazyValues) else values)


def rebuild(graph: gs.Graph, original: Model) -> Model:
    """Turn an edited graph, which is used up, back into a Model with the metadata of ``original``.

    Shapes of intermediate tensors are dropped, since edits make them stale, and inferred anew
    if the original declared them.
    """
    graph.cleanup().toposort()
    source = original.proto
    proto = roundtrip.to_proto(graph, source)
    if source.graph.value_info:
        with contextlib.suppress(onnx.shape_inference.InferenceError):
            inferred = onnx.shape_inference.infer_shapes(storage.outline(proto), data_prop=True)
            roundtrip.declare(proto.graph, inferred.graph, source.graph)
    return Model(proto, original.sha256)


def with_metadata(model: Model, entries: Mapping[str, str]) -> Model:
    """Return the model with entries of ``metadata_props`` added or replaced."""
    proto = storage.with_graph(model.proto)
    kept = {p.key: p.value for p in proto.metadata_props} | dict(entries)
    helper.set_model_props(proto, kept)
    return Model(proto, model.sha256)


def check(model: Model) -> None:
    """Run the ONNX checker with shape inference on a model we made.

    Raises:
        InternalError: if it is not valid.
    """
    if problem := _problem(model.proto):
        raise InternalError(f"the pruned model is not valid: {problem}")


def set_input(node: gs.Node, i: int, tensor: gs.Tensor) -> None:
    """Let a node read a tensor as input ``i``; inputs in front of it that are not given stay so."""
    while len(node.inputs) <= i:
        node.inputs.append(gs.Variable.empty())
    node.inputs[i] = tensor


def is_output(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether a tensor is an output of a graph."""
    return any(tensor is t for t in graph.outputs)
