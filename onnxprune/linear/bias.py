"""Bias: what is constant in the outputs of a layer: where it is, and how to change it.

A bias is an input of the layer, or a constant that is added behind it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.arrays import F64, Array
from onnxprune.model.edit import captured_names, is_output, set_input
from onnxprune.structure.structure import Weight

_BEFORE = "/without_bias"


def before_bias(node: str) -> str:
    """Return the identity of a node, given the one it had, once a bias is added behind it."""
    return node + _BEFORE


def original_node(node: str) -> str:
    """Return the identity that a node had before any bias was added behind it."""
    while node.endswith(_BEFORE):
        node = node.removesuffix(_BEFORE)
    return node


def add_bias(
    graph: gs.Graph, node: gs.Node, weight: Weight, delta: F64, dtype: np.dtype[Any]
) -> None:
    """Add ``delta`` to a node's output channels: in its bias if it has one, else behind it.

    Args:
        graph: the graph that is edited.
        node: a node with weights.
        weight: its weight; has an output axis.
        delta: ``float64 [outputs]``, as many as the node has now.
        dtype: the type of the weights.
    """
    bias, _ = own_bias(graph, node, weight, bias_shape(weight, len(delta)), dtype)
    old = np.asarray(bias.values)
    bias.values = _cast(old + delta.reshape(old.shape), old.dtype)


def own_bias(
    graph: gs.Graph, node: gs.Node, weight: Weight, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> tuple[gs.Constant, gs.Tensor]:
    """Give a node a bias that nothing else reads and that has a value for each output.

    The node computes what it did: the bias is what was constant so far, or zero.

    Args:
        graph: the graph that is edited.
        node: a node with weights.
        weight: its weight.
        shape: in which one value for each output broadcasts to what the node gives.
        dtype: the type of the weights.

    Returns:
        The bias, of that shape or ``[outputs]``, and the output with it.
    """
    given, outputs = given_bias(node), int(np.prod(shape))
    takes = node.op in ("Conv", "ConvTranspose", "Gemm")
    if takes and (given is None or isinstance(given, gs.Constant)):
        old = np.zeros(outputs) if given is None else np.asarray(given.values, dtype=np.float64)
        if old.size == 1 or old.shape in ((outputs,), (1, outputs)):
            beta = float(node.attrs.get("beta", 1.0))
            values = np.broadcast_to(old.reshape(-1) * beta, (outputs,))
            bias = gs.Constant(_free_name(graph, weight, given), _cast(values, dtype))
            set_input(node, 2, bias)
            if beta != 1.0:
                node.attrs["beta"] = 1.0
            return bias, node.outputs[0]
    if (found := _addition(graph, node)) is not None:
        adding, place = found
        old = np.asarray(adding.inputs[place].values)
        if _fits(old, shape):
            bias = gs.Constant(_free_name(graph, weight, adding.inputs[place]), old.copy())
            adding.inputs[place] = bias
            return bias, adding.outputs[0]
    bias = gs.Constant(_free_name(graph, weight), np.zeros(shape, dtype=dtype))
    return bias, add_behind(graph, node, weight.node, bias)


def add_behind(graph: gs.Graph, node: gs.Node, name: str, constant: gs.Constant) -> gs.Tensor:
    """Put an addition behind a node, in front of all that reads it; return what that gives.

    Args:
        graph: the graph that is edited.
        node: a node.
        name: its identity, which the addition takes over (see :func:`before_bias`).
        constant: what to add.
    """
    output = node.outputs[0]
    inner = node.outputs[0] = gs.Variable(before_bias(name), dtype=output.dtype)
    graph.nodes.append(gs.Node("Add", f"{name}/add_bias", None, [inner, constant], [output]))
    return output


def bias_shape(weight: Weight, outputs: int) -> tuple[int, ...]:
    """Return the shape in which one value for each output channel broadcasts to a layer's output.

    Args:
        weight: of the layer; has an output axis.
        outputs: number of its output channels.
    """
    assert weight.output_axis is not None
    return (outputs, *[1] * (-weight.output_axis - 1))


def given_bias(node: gs.Node) -> gs.Tensor | None:
    """Return the bias that a node with weights has as an input; None if it has none."""
    given = node.op != "MatMul" and len(node.inputs) > 2 and not node.inputs[2].is_empty()
    return node.inputs[2] if given else None


def found_bias(
    graph: gs.Graph, node: gs.Node, shape: tuple[int, ...]
) -> tuple[gs.Tensor | None, gs.Tensor]:
    """Return what is added to a node's outputs, in it or behind it, and the tensor with it.

    None if nothing is, and the node's own output.

    Args:
        graph: the graph.
        node: a node with weights.
        shape: see :func:`bias_shape`.
    """
    if (given := given_bias(node)) is not None:
        return given, node.outputs[0]
    if (found := _addition(graph, node)) is not None:
        adding, place = found
        if _fits(adding.inputs[place].values, shape):
            return adding.inputs[place], adding.outputs[0]
    return None, node.outputs[0]


def is_own(bias: gs.Tensor | None, outputs: int) -> bool:
    """Whether a bias is a constant with a value for each output that nothing else reads."""
    if not isinstance(bias, gs.Constant) or len(bias.outputs) > 1:
        return False
    return int(np.prod(bias.shape)) == outputs


def takes_bias(graph: gs.Graph, node: gs.Node) -> bool:
    """Whether a layer has a place for a bias without more to compute between integers."""
    if node.op != "MatMul" or _addition(graph, node) is not None:
        return True
    return not any(reader.op == "QuantizeLinear" for reader in node.outputs[0].outputs)


def _free_name(graph: gs.Graph, weight: Weight, replaced: gs.Tensor | None = None) -> str:
    """Return a name for a bias that no other constant bears.

    That of the tensor whose place it takes is free if nothing else reads it.
    """
    free = replaced if replaced is not None and len(replaced.outputs) == 1 else None
    taken = {str(t.name) for node in graph.nodes for t in node.inputs if t is not free}
    taken.update(*map(captured_names, graph.nodes))
    name, count = f"{weight.node}/bias", 1
    while name in taken:
        count += 1
        name = f"{weight.node}/bias/{count}"
    return name


def _fits(values: Array, shape: tuple[int, ...]) -> bool:
    """Whether a constant is of a shape, but for axes of size 1 in front."""
    return values.size == np.prod(shape) and values.shape[values.ndim - len(shape) :] == shape


def _cast(values: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore"):  # what overflows gives an infinite loss
        return np.ascontiguousarray(values, dtype=dtype)


def _addition(graph: gs.Graph, node: gs.Node) -> tuple[gs.Node, int] | None:
    """Return the constant addition behind a node, and which of its inputs is the constant.

    What a node gives may be quantised and dequantised in between. None if something else reads
    it, or nothing constant is added.
    """
    output = _read_once(graph, node.outputs[0])
    readers = list(output.outputs)
    if len(readers) != 1 or readers[0].op != "Add" or is_output(graph, output):
        return None
    other = 1 - next(i for i, t in enumerate(readers[0].inputs) if t is output)
    return (readers[0], other) if isinstance(readers[0].inputs[other], gs.Constant) else None


def _read_once(graph: gs.Graph, tensor: gs.Tensor) -> gs.Tensor:
    """Follow a tensor through quantising and dequantising."""
    while len(tensor.outputs) == 1 and not is_output(graph, tensor):
        reader = tensor.outputs[0]
        passes = reader.op in ("QuantizeLinear", "DequantizeLinear")
        if not passes or reader.inputs[0] is not tensor:
            break
        tensor = reader.outputs[0]
    return tensor
