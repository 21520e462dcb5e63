"""Constants: every constant of a model as a dense initializer of the graph that has it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.model.nodes import all_nodes, graphs, subgraphs
from onnxprune.model.storage import MOST_BYTES, describe, with_graph


def densified(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model without sparse tensors, which neither rules nor shape inference know.

    Raises:
        ModelError: if one is damaged, or too large to be dense.
    """
    if not any(g.sparse_initializer for g in graphs(proto.graph)) and not any(
        map(_is_sparse, all_nodes(proto))
    ):
        return proto
    result = with_graph(proto)
    for graph in graphs(result.graph):
        graph.initializer.extend(_dense(t, t.values.name) for t in graph.sparse_initializer)
        del graph.sparse_initializer[:]
    for node in filter(_is_sparse, all_nodes(result)):
        tensor = _dense(node.attribute[0].sparse_tensor, ", ".join(node.output))
        node.attribute[0].CopyFrom(helper.make_attribute("value", tensor))
    return result


def _is_sparse(node: NodeProto) -> bool:
    return node.op_type == "Constant" and [a.name for a in node.attribute] == ["sparse_value"]


def to_initializers(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Turn ``Constant`` nodes into initializers of their graphs, in subgraphs as well."""
    if not any(n.op_type == "Constant" for g in graphs(proto.graph) for n in g.node):
        return proto
    result = with_graph(proto)
    for graph in graphs(result.graph):
        nodes, outputs = list(graph.node), {v.name for v in graph.output}
        tensors = [None if outputs & set(node.output) else _constant(node) for node in nodes]
        graph.initializer.extend(t for t in tensors if t is not None)
        kept = [n for n, t in zip(nodes, tensors, strict=True) if t is None]
        del graph.node[:]
        graph.node.extend(kept)
    return result


def shadows(graph: GraphProto, outer: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield initializers of subgraphs that bear the name of a tensor outside.

    Runtimes do not agree on which of the two is meant.
    """
    visible = outer.union((t.name for t in graph.initializer), (v.name for v in graph.input))
    visible = visible.union(*(node.output for node in graph.node))
    for inner in (inner for node in graph.node for inner in subgraphs(node)):
        yield from (t.name for t in inner.initializer if t.name in visible)
        yield from shadows(inner, visible)


def _constant(node: NodeProto) -> TensorProto | None:
    """Return what a ``Constant`` holds; None for other nodes, and for strings."""
    if node.op_type != "Constant":
        return None
    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        tensor = TensorProto()
        tensor.CopyFrom(value)
    elif attribute.name in ("value_int", "value_ints"):
        tensor = numpy_helper.from_array(np.asarray(value, dtype=np.int64))
    elif attribute.name in ("value_float", "value_floats"):
        tensor = numpy_helper.from_array(np.asarray(value, dtype=np.float32))
    else:
        return None
    tensor.name = node.output[0]
    describe(tensor, node)
    return tensor


def _dense(sparse: SparseTensorProto, name: str) -> TensorProto:
    """Return a sparse tensor with its zeros.

    Args:
        sparse: values and their indices: one number each, into the flat tensor, or one for
            each axis.
        name: what the result is called.

    Raises:
        ModelError: if values, indices and shape do not fit, or it would be too large.
    """
    shape, count = list(sparse.dims), math.prod(sparse.values.dims)
    if sparse.values.data_type in (TensorProto.STRING, TensorProto.UNDEFINED):
        raise ModelError(f"sparse tensor '{name}' holds no numbers; export it dense")
    kind = helper.tensor_dtype_to_np_dtype(sparse.values.data_type)
    if min(shape, default=1) < 0 or math.prod(shape) * kind.itemsize >= MOST_BYTES:
        raise ModelError(
            f"sparse tensor '{name}': shape {shape} is more than fits into memory once it is dense"
        )
    try:
        values = numpy_helper.to_array(sparse.values).reshape(-1)
        places = numpy_helper.to_array(sparse.indices).astype(np.int64)
        flat = places if places.ndim == 1 else np.ravel_multi_index(tuple(places.T), shape)
        result = np.zeros(math.prod(shape), dtype=kind)
        if count and not 0 <= flat.min() <= flat.max() < result.size:
            raise ValueError
        result[flat] = values
    except (ValueError, TypeError, IndexError):
        raise ModelError(
            f"sparse tensor '{name}': its {count} values and indices of shape "
            f"{list(sparse.indices.dims)} do not fit shape {shape}; export it again"
        ) from None
    tensor = numpy_helper.from_array(result.reshape(shape), name)
    describe(tensor, sparse.values)
    return tensor
