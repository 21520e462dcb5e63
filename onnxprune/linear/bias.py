"""Biases: add something constant to the outputs of a layer, where it is cheapest."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.arrays import F64, Array
from onnxprune.linear.matrix_form import MatrixForm, StackForm
from onnxprune.model.edit import captured_names, is_output, set_input
from onnxprune.structure.structure import Weight


def add_bias(
    graph: gs.Graph, node: gs.Node, weight: Weight, delta: F64, dtype: np.dtype[np.generic]
) -> None:
    """Add ``delta`` to a node's output channels: in its bias if it has one, else behind it.

    Args:
        graph: the graph that is edited.
        node: a node with weights.
        weight: its weight; has an output axis.
        delta: ``float64 [outputs]``, as many as the node has now.
        dtype: the type of the weights.
    """
    addend = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
    name = bias_name(graph, weight, addend)
    if node.op in ("Conv", "ConvTranspose"):
        old = 0.0 if addend is None else _value(addend)
        if old is not None:
            set_input(node, 2, gs.Constant(name, _cast(old + delta, dtype)))
            return
    if node.op == "Gemm":
        old = 0.0 if addend is None else _value(addend)
        beta = float(node.attrs.get("beta", 1.0))
        if old is not None and beta != 0.0:
            scale = 1.0 if addend is None else beta
            if addend is None:
                node.attrs["beta"] = 1.0
            set_input(node, 2, gs.Constant(name, _cast(old + delta / scale, dtype)))
            return
    _append_add(graph, node, weight, _cast(delta, dtype))


def bias_name(graph: gs.Graph, weight: Weight, replaced: gs.Tensor | None = None) -> str:
    """Return a name for a bias of a node with weights that no other constant bears.

    Args:
        graph: the graph that is edited.
        weight: the node's weight.
        replaced: the tensor whose place it takes; its name is free if nothing else reads it.
    """
    free = replaced if replaced is not None and len(replaced.outputs) == 1 else None
    taken = {str(t.name) for node in graph.nodes for t in node.inputs if t is not free}
    taken.update(*map(captured_names, graph.nodes))
    name, count = f"{weight.node}/bias", 1
    while name in taken:
        count += 1
        name = f"{weight.node}/bias/{count}"
    return name


def found_bias(
    graph: gs.Graph, node: gs.Node, weight: Weight, outputs: int
) -> tuple[gs.Tensor | None, gs.Tensor]:
    """Return what is added to a node's outputs, in it or behind it, and the tensor with it.

    None if nothing is, and the node's own output.

    Args:
        graph: the graph.
        node: a node with weights.
        weight: its weight; has an output axis.
        outputs: number of the node's output channels.
    """
    if node.op != "MatMul" and len(node.inputs) > 2 and not node.inputs[2].is_empty():
        return node.inputs[2], node.outputs[0]
    assert weight.output_axis is not None
    if (found := addition(graph, node)) is not None:
        adding, place = found
        values = _value(adding.inputs[place])
        if values is not None and _is_bias(values, -weight.output_axis - 1, outputs):
            return adding.inputs[place], adding.outputs[0]
    return None, node.outputs[0]


def is_own(bias: gs.Tensor | None, outputs: int) -> bool:
    """Whether a bias is a constant with a value for each output that nothing else reads."""
    if not isinstance(bias, gs.Constant) or len(bias.outputs) > 1:
        return False
    return int(np.prod(bias.shape)) == outputs


def _value(tensor: gs.Tensor) -> Array | None:
    return np.asarray(tensor.values, dtype=np.float64) if isinstance(tensor, gs.Constant) else None


def _is_bias(values: Array, trailing: int, outputs: int) -> bool:
    return values.ndim > trailing and values.size == outputs == values.shape[-1 - trailing]


def _cast(values: Array, dtype: np.dtype[np.generic]) -> Array:
    with np.errstate(over="ignore"):  # what overflows gives an infinite loss
        return np.ascontiguousarray(values, dtype=dtype)


def addition(graph: gs.Graph, node: gs.Node) -> tuple[gs.Node, int] | None:
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


def takes_bias(graph: gs.Graph, node: gs.Node) -> bool:
    """Whether a layer has a place for a bias without more to compute between integers."""
    if node.op != "MatMul" or addition(graph, node) is not None:
        return True
    return not any(reader.op == "QuantizeLinear" for reader in node.outputs[0].outputs)


def _read_once(graph: gs.Graph, tensor: gs.Tensor) -> gs.Tensor:
    """Follow a tensor through quantising and dequantising."""
    while len(tensor.outputs) == 1 and not is_output(graph, tensor):
        reader = tensor.outputs[0]
        if (
            reader.op not in ("QuantizeLinear", "DequantizeLinear")
            or reader.inputs[0] is not tensor
        ):
            break
        tensor = reader.outputs[0]
    return tensor


def _append_add(graph: gs.Graph, node: gs.Node, weight: Weight, delta: Array) -> None:
    """Put an addition behind a node, or into the constant addition that is there already."""
    output = node.outputs[0]
    assert weight.output_axis is not None
    trailing = -weight.output_axis - 1
    if (found := addition(graph, node)) is not None:
        adding, other = found
        old = _value(adding.inputs[other])
        if old is not None and _is_bias(old, trailing, len(delta)):
            values = _cast(old + delta.reshape(old.shape), delta.dtype)
            name = bias_name(graph, weight, adding.inputs[other])
            adding.inputs[other] = gs.Constant(name, values)
            return
    inner = gs.Variable(f"{weight.node}/without_bias", dtype=output.dtype)
    node.outputs[0] = inner
    bias = gs.Constant(bias_name(graph, weight), delta.reshape(-1, *[1] * trailing))
    graph.nodes.append(
        gs.Node("Add", f"{weight.node}/add_bias", inputs=[inner, bias], outputs=[output])
    )


def _own_bias(
    graph: gs.Graph,
    node: gs.Node,
    weight: Weight,
    form: MatrixForm | StackForm,
    dtype: np.dtype[Any],
) -> tuple[gs.Constant, gs.Tensor]:
    """Give a node a bias constant that nothing else uses; return it and the biased output."""
    outputs = form.outputs * form.groups
    zeros = np.zeros(outputs, dtype=dtype)
    addend = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
    constant = addend is None or isinstance(addend, gs.Constant)
    name = bias_name(graph, weight, addend)
    if node.op in ("Conv", "ConvTranspose") and constant:
        bias = gs.Constant(name, zeros if addend is None else np.array(addend.values))
        set_input(node, 2, bias)
        return bias, node.outputs[0]
    if node.op == "Gemm" and constant:
        old = zeros if addend is None else np.asarray(addend.values)
        beta = float(node.attrs.get("beta", 1.0)) if addend is not None else 1.0
        if old.size == 1 or old.shape in ((outputs,), (1, outputs)):
            values = np.broadcast_to(old.reshape(-1), (outputs,)).astype(np.float64) * beta
            bias = gs.Constant(name, values.astype(dtype))
            set_input(node, 2, bias)
            node.attrs["beta"] = 1.0
            return bias, node.outputs[0]
    if isinstance(form, StackForm):
        return _added_bias(graph, node, weight, zeros.reshape(form.bias_shape))
    assert weight.output_axis is not None
    return _added_bias(graph, node, weight, zeros.reshape(-1, *[1] * (-weight.output_axis - 1)))


def _added_bias(
    graph: gs.Graph, node: gs.Node, weight: Weight, zeros: Array
) -> tuple[gs.Constant, gs.Tensor]:
    """Use the constant addition that follows a node, or put one there."""
    output = node.outputs[0]
    if (found := addition(graph, node)) is not None:
        adding, i = found
        old = np.asarray(adding.inputs[i].values)
        if old.size == zeros.size and old.shape[old.ndim - zeros.ndim :] == zeros.shape:
            bias = gs.Constant(bias_name(graph, weight, adding.inputs[i]), old.copy())
            adding.inputs[i] = bias
            return bias, adding.outputs[0]
    inner = gs.Variable(f"{weight.node}/without_bias", dtype=output.dtype)
    node.outputs[0] = inner
    bias = gs.Constant(bias_name(graph, weight), zeros)
    graph.nodes.append(
        gs.Node("Add", f"{weight.node}/add_bias", inputs=[inner, bias], outputs=[output])
    )
    return bias, output
