"""Requantise: constants as floats while layers are fitted, and as integers again afterwards.

Scales stay what they are: the weights of a layer are rounded to the numbers that its integers
can stand for. Its bias is an integer too where its inputs are, since only then does onnxruntime
compute the layer with integers.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.arrays import F64, Array
from onnxprune.model.edit import captured_names, edit, node_id, rebuild
from onnxprune.model.model import Model
from onnxprune.model.quantised import Places, places, spread
from onnxprune.structure.structure import PRODUCTS

BIAS = 2
"""The input of a layer that holds its bias."""


def unpack(graph: gs.Graph) -> None:
    """Let layers read weights and biases as floats that a graph dequantises or casts.

    A weight keeps the name of its initializer. Constants that something else reads stay.
    """
    inside = {name for node in graph.nodes for name in captured_names(node)}
    for node in graph.nodes:
        if _unpackable(graph, node, inside):
            source, result = node.inputs[0], node.outputs[0]
            floats = gs.Constant(source.name, _floats(node))
            for reader in list(result.outputs):
                for i, tensor in enumerate(reader.inputs):
                    if tensor is result:
                        reader.inputs[i] = floats


def _unpackable(graph: gs.Graph, node: gs.Node, inside: set[str]) -> bool:
    if not _is_stored(node) or len(node.outputs) != 1:
        return False
    source, result = node.inputs[0], node.outputs[0]
    if result.name in inside or source.name in inside or len(source.outputs) != 1:
        return False
    if node.op == "Cast" and np.dtype(source.dtype).itemsize >= 4:
        return False
    if any(result is t for t in graph.outputs):
        return False
    return bool(result.outputs) and all(
        reader.op == "Add" or (reader.op in PRODUCTS and result not in reader.inputs[:1])
        for reader in result.outputs
    )


def _floats(node: gs.Node) -> Array:
    """Return what a node that dequantises or casts a constant gives."""
    values = np.asarray(node.inputs[0].values)
    at = places(node.op, node.attrs)
    if at is None:
        return values.astype(np.float32)
    scale, zero = _grid(node, at, values.shape)
    dtype = np.asarray(node.inputs[at.scale].values).dtype
    return np.asarray((values.astype(np.float64) - zero) * scale, dtype=dtype)


def _grid(node: gs.Node, at: Places, shape: tuple[int, ...]) -> tuple[F64, F64]:
    """Return the scales and the zero points of a node, such that they broadcast to a shape."""
    scale = np.asarray(node.inputs[at.scale].values, dtype=np.float64)
    zero = np.zeros(())
    if len(node.inputs) > at.zero and not node.inputs[at.zero].is_empty():
        zero = np.asarray(node.inputs[at.zero].values).astype(np.float64)
    return spread(scale, shape, at), spread(zero, shape, at)


def pack(model: Model, like: Model) -> Model:
    """Return a model with the constants of its layers stored as in another one.

    Args:
        model: a version of ``like`` that went through :func:`unpack`, with other values.
        like: the model that has integers.
    """
    if not any(n.op_type in ("DequantizeLinear", "Cast") for n in like.proto.graph.node):
        return model
    graph, before = edit(model), edit(like)
    stored = {str(node.inputs[0].name): node for node in before.nodes if _is_stored(node)}
    twins = {node_id(node): node for node in before.nodes}
    packed: dict[int, gs.Variable] = {}
    changed = False
    for node in list(graph.nodes):
        twin = twins.get(node_id(node))
        if node.op == "Add" and twin is not None and twin.op == "Add":
            for i, tensor in enumerate(node.inputs):
                maker = twin.inputs[i].inputs
                if isinstance(tensor, gs.Constant) and maker and _is_stored(maker[0]):
                    node.inputs[i] = _stored(graph, tensor, maker[0], rescale=True)
                    changed = True
        if node.op not in PRODUCTS:
            continue
        for i, tensor in enumerate(node.inputs[:BIAS]):
            if isinstance(tensor, gs.Constant) and str(tensor.name) in stored:
                if id(tensor) not in packed:
                    packed[id(tensor)] = _stored(graph, tensor, stored[str(tensor.name)])
                node.inputs[i] = packed[id(tensor)]
                changed = True
                _pack_bias(graph, node, i, twin)
    return rebuild(graph, model) if changed else model


def _is_stored(node: gs.Node) -> bool:
    """Whether a node gives what a constant stands for."""
    stored = node.op in ("DequantizeLinear", "Cast")
    return stored and all(isinstance(t, gs.Constant) or t.is_empty() for t in node.inputs)


def _stored(
    graph: gs.Graph, tensor: gs.Constant, like: gs.Node, *, rescale: bool = False
) -> gs.Variable:
    """Store a constant as another node reads it; return what that node's twin gives.

    With ``rescale``, one scale and zero point are chosen anew.
    """
    source = like.inputs[0]
    floats = np.asarray(tensor.values).reshape(source.shape)
    dtype = np.asarray(source.values).dtype
    if (at := places(like.op, like.attrs)) is None:
        integers = floats.astype(dtype)
    elif np.array_equal(floats, _floats(like)):
        integers = np.asarray(source.values)
    else:
        integers = _rounded(floats, *_grid(like, at, floats.shape), dtype)
    operands = [gs.Constant(t.name, np.asarray(t.values)) for t in like.inputs[1:]]
    if rescale and at is not None and not np.array_equal(floats, _floats(like)):
        scale, zero = _chosen(floats, dtype)
        if all(t.values.size == 1 for t in operands) and scale > 0 and len(operands) == 2:
            integers = _rounded(floats, np.asarray(scale), np.asarray(zero), dtype)
            names = [f"{t.name}/again" for t in operands]
            operands = [
                gs.Constant(name, np.full(t.shape, value, dtype=t.values.dtype))
                for name, t, value in zip(names, operands, (scale, zero), strict=True)
            ]
    operands.insert(0, gs.Constant(source.name, integers))
    result = gs.Variable(like.outputs[0].name)
    node = gs.Node(like.op, like.name, dict(like.attrs), operands, [result], domain=like.domain)
    graph.nodes.append(node)
    return result


def _chosen(floats: Array, dtype: np.dtype[np.generic]) -> tuple[float, float]:
    """Return a scale and a zero point with which integers reach all values, and zero."""
    low, high = _range(dtype)
    least, most = min(float(floats.min()), 0.0), max(float(floats.max()), 0.0)
    if low is None or high is None:
        return 0.0, 0.0
    scale = float(np.float32((most - least) / (high - low)))
    return scale, float(np.clip(np.rint(low - least / scale), low, high)) if scale > 0 else 0.0


def _rounded(floats: Array, scale: F64, zero: F64, dtype: np.dtype[np.generic]) -> Array:
    """Return the integers that stand for the nearest numbers."""
    low, high = _range(dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.nan_to_num(floats.astype(np.float64) / scale)
    if low is None:
        return np.asarray((steps + zero).astype(np.float32)).astype(dtype)
    return np.clip(np.rint(steps) + zero, low, high).astype(np.int64).astype(dtype)


def _range(dtype: np.dtype[np.generic]) -> tuple[int, int] | tuple[None, None]:
    """Return the least and the greatest integer of a type; None for floats of 8 bits."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype.name)
        return int(limits.min), int(limits.max)
    bits = {"int4": (-8, 7), "uint4": (0, 15), "int2": (-2, 1), "uint2": (0, 3)}
    return bits.get(dtype.name, (None, None))


def _pack_bias(graph: gs.Graph, node: gs.Node, weight: int, twin: gs.Node | None) -> None:
    """Store the bias of a layer as it was; as integers if it is new, and its inputs are.

    The scale of a new one is the product of those of the inputs and the weights.
    """
    if len(node.inputs) <= BIAS or not isinstance(node.inputs[BIAS], gs.Constant):
        return
    old = twin.inputs[BIAS] if twin is not None and len(twin.inputs) > BIAS else None
    if old is not None and not old.is_empty():
        made = old.inputs[0] if old.inputs else None
        if made is not None and isinstance(made.inputs[0], gs.Constant):
            node.inputs[BIAS] = _stored(graph, node.inputs[BIAS], made)
        return
    maker = node.inputs[1 - weight].inputs
    data = maker[0] if maker else None
    if data is None or data.op != "DequantizeLinear" or data.attrs.get("block_size", 0):
        return
    read = [data.inputs[1], node.inputs[weight].inputs[0].inputs[1]]
    if not all(isinstance(t, gs.Constant) for t in read) or node.attrs.get("alpha", 1.0) != 1.0:
        return
    floats = np.asarray(node.inputs[BIAS].values)
    step, own = (np.asarray(t.values).reshape(-1) for t in read)
    if len(step) != 1 or len(own) not in (1, floats.size) or floats.ndim != 1:
        return
    if len(own) > 1 and not _by_output(node, node.inputs[weight].inputs[0], floats.size):
        return
    scale = step * own
    name, zeros = f"{node_id(node)}/bias", np.zeros(len(scale), dtype=np.int32)
    integers = _rounded(floats, scale.astype(np.float64), np.zeros(()), np.dtype(np.int32))
    alone = len(scale) == 1
    operands = [
        gs.Constant(f"{name}/integers", integers),
        gs.Constant(f"{name}/scale", scale.reshape(()) if alone else scale),
        gs.Constant(f"{name}/zero", zeros.reshape(()) if alone else zeros),
    ]
    result = gs.Variable(name)
    attributes = {} if alone else {"axis": 0}
    graph.nodes.append(gs.Node("DequantizeLinear", name, attributes, operands, [result]))
    node.inputs[BIAS] = result


def _by_output(node: gs.Node, dequantised: gs.Node, outputs: int) -> bool:
    """Whether each output of a layer has a scale for its weights."""
    shape = dequantised.inputs[0].shape
    axis = dequantised.attrs.get("axis", 1) % len(shape)
    expected = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0 if node.attrs.get("transB", 0) else 1}
    return bool(axis == expected.get(node.op) and shape[axis] == outputs)
