"""Rectifiers: activations that pass what is positive and stop what is negative.

Single operators are known by name. Those that exporters write as several nodes (x * sigmoid(x),
x * Phi(x) by Erf, x * clip(x + 3, 0, 6) / 6) are products and maxima that depend on one tensor,
value by value, and are recognised by what they compute of a very negative and a very positive
number.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.arrays import Array
from onnxprune.errors import ModelError
from onnxprune.model.model import Model
from onnxprune.model.nodes import attributes, is_standard
from onnxprune.model.session import Session
from onnxprune.model.shapes import Shapes
from onnxprune.structure.rules.elementwise import UNARY
from onnxprune.structure.structure import Structure

SINGLE = (
    "Relu LeakyRelu PRelu Elu Celu Selu Gelu Mish HardSwish Swish ThresholdedRelu "
    "FastGelu QuickGelu"
).split()
"""Operators that are rectifiers by themselves; their input decides."""

FAR = 20.0
"""Where a rectifier has stopped its input, or passes it."""

MOST_NODES = 16
"""Nodes of which a rectifier is made at most."""

_PASSING = {
    *("Add", "Sum", "Sub", "Mul", "Div", "Identity", "Cast", "Dropout", "BatchNormalization"),
    *("InstanceNormalization", "GroupNormalization", "LayerNormalization"),
}
"""What may lie between a layer and its rectifier."""

_SCALAR_OPS = {*UNARY, "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum"}


@dataclass(frozen=True)
class Rectifier:
    """An activation with two states.

    Attributes:
        node: name of the node that returns the result.
        op_type: its operator; a product stands for a rectifier of several nodes.
        output: the result.
        tensor: the tensor whose sign says what is on: the input, or for operators that give
            zero for all that is off, the output, which onnxruntime computes anyway.
        axis: the axis of the neurons.
        neurons: how many there are.
    """

    node: str
    op_type: str
    output: str
    tensor: str
    axis: int
    neurons: int


def find_rectifiers(model: Model, shapes: Shapes, structure: Structure) -> list[Rectifier]:
    """Find the rectifiers of a model, in its order.

    Args:
        model: a folded model.
        shapes: its observed shapes.
        structure: the result of tracing it, which says where the outputs of its layers are.
    """
    graph = model.proto.graph
    values = {name: numpy_helper.to_array(t) for name, t in model.constants.items()}
    makers = {o: graph.node[k] for o, k in model.producers.items()}
    order = {o: k for k, o in enumerate(makers)}
    composed: dict[str, str] = {}
    inside = set[str]()
    for node in graph.node:
        if node.op_type in ("Mul", "Max"):
            found = _composed(node, makers, order, values, model)
            if found is not None:
                source, parts = found
                composed[node.output[0]] = source
                inside |= parts
                del makers[node.output[0]]  # nothing behind it is made of it
    axes = _neuron_axes(model, shapes, structure)
    result = []
    for node in graph.node:
        output = node.output[0]
        source = composed.get(output, "")
        if not source and output not in inside:
            source = _single(node, values) or ""
        if not source or not shapes.has(source) or not shapes.sizes(source):
            continue
        if not all(shapes.sizes(source)):  # it holds nothing
            continue
        if node.op_type in ("Relu", "Clip"):
            source = output
        axis = axes.get(source, -1 if len(shapes.sizes(source)) == 3 else 1)
        axis = min(axis % len(shapes.sizes(source)), len(shapes.sizes(source)) - 1)
        if not shapes.is_dynamic(source, axis):
            neurons = shapes.sizes(source)[axis]
            name = node.name or output
            result.append(Rectifier(name, node.op_type, output, source, axis, neurons))
    return result


def rectified_layers(
    model: Model,
    structure: Structure,
    rectifiers: Sequence[Rectifier],
    branches: Mapping[str, str],
) -> dict[str, str]:
    """Find the layer whose output each rectifier reads, through what works value by value.

    Args:
        model: the model in which they were found.
        structure: the result of tracing it.
        rectifiers: the rectifiers.
        branches: for sums of two tensors, which of them is followed; default the one whose
            layer comes later.

    Returns:
        Nodes with weights, by their first output, by the output of the rectifier.
    """
    layers = {w.node for w in structure.weights if w.op_type in ("Conv", "Gemm", "MatMul")}
    ends = {r.output for r in rectifiers}

    def behind(tensor: str) -> str | None:
        node = model.maker(tensor)
        if node is None or node.output[0] in layers:
            return node.output[0] if node is not None else None
        variables = [i for i in node.input if i and i not in model.constants]
        if tensor in ends or node.op_type not in _PASSING:
            return None
        if len(variables) > 1 and node.op_type not in ("Add", "Sum"):
            return None
        if branches.get(tensor) in variables:
            variables = [branches[tensor]]
        found = [layer for layer in map(behind, variables) if layer is not None]
        return max(found, key=model.producers.__getitem__, default=None)

    result: dict[str, str] = {}
    for rectifier in rectifiers:
        own = rectifier.tensor == rectifier.output
        maker = model.maker(rectifier.output)
        layer = behind(maker.input[0] if own and maker else rectifier.tensor)
        if layer is not None:
            result[rectifier.output] = layer
    return result


def _single(node: onnx.NodeProto, values: Mapping[str, Array]) -> str | None:
    """Return the input of a node that is a rectifier by itself."""
    if node.op_type in SINGLE:
        return str(node.input[0])
    if node.op_type != "Clip":
        return None
    low = attributes(node).get("min")
    if len(node.input) > 1 and node.input[1] in values:
        low = float(values[node.input[1]])
    return str(node.input[0]) if low == 0 else None


def _composed(
    node: onnx.NodeProto,
    makers: Mapping[str, onnx.NodeProto],
    order: Mapping[str, int],
    values: Mapping[str, Array],
    model: Model,
) -> tuple[str, set[str]] | None:
    """Return the one tensor on which a rectifier depends, and the outputs of its nodes."""
    parts: list[onnx.NodeProto] = [node]
    leaves = _variables(node, values)
    while len(parts) < MOST_NODES:
        if len(leaves) == 1 and len(parts) + (node.op_type == "Max") > 1:
            source = next(iter(leaves))
            if _rectifies(node.output[0], source, parts, values, model):
                return source, {o for n in parts for o in n.output}
        # Open the leaf that is computed last: it may depend on another leaf.
        last = max((leaf for leaf in leaves if leaf in makers), key=order.__getitem__, default=None)
        maker = makers[last] if last is not None else None
        if maker is None or maker.op_type not in _SCALAR_OPS or maker.op_type in SINGLE:
            return None
        if not is_standard(maker.domain) or not _scalars_only(maker, values):
            return None
        parts.append(maker)
        leaves = (leaves - {str(last)}) | _variables(maker, values)
    return None


def _variables(node: onnx.NodeProto, values: Mapping[str, Array]) -> set[str]:
    return {str(i) for i in node.input if i and i not in values}


def _scalars_only(node: onnx.NodeProto, values: Mapping[str, Array]) -> bool:
    return all(values[i].size == 1 for i in node.input if i in values)


def _rectifies(
    output: str,
    source: str,
    parts: Collection[onnx.NodeProto],
    values: Mapping[str, Array],
    model: Model,
) -> bool:
    """Whether nodes stop a very negative number and pass a very positive one."""
    if not all(_scalars_only(n, values) for n in parts):
        return False
    names = {i for n in parts for i in n.input if i in values}
    constants = [numpy_helper.from_array(values[n], n) for n in sorted(names)]
    kinds = {t.data_type for t in constants if t.data_type != TensorProto.INT64}
    kind = kinds.pop() if len(kinds) == 1 else TensorProto.FLOAT
    given = helper.make_tensor_value_info(source, kind, [2])
    made = [helper.make_empty_tensor_value_info(output)]
    graph = helper.make_graph(list(parts)[::-1], "rectifier", [given], made, constants)
    proto = helper.make_model(
        graph,
        opset_imports=model.proto.opset_import,
        ir_version=max(model.proto.ir_version, 4),
    )
    feed = np.asarray([-FAR, FAR], dtype=helper.tensor_dtype_to_np_dtype(kind))
    try:
        low, high = Session(proto, threads=1, optimize=False).run({source: feed}, [output])[0]
    except (ModelError, ValueError):
        return False
    return bool(abs(low) < 1e-3 and 0.1 < abs(high) < FAR**3)


def _neuron_axes(model: Model, shapes: Shapes, structure: Structure) -> dict[str, int]:
    """Return the axis of the outputs of layers, for them and what keeps their shape."""
    axes: dict[str, int] = {}
    made = {w.node: w.output_axis for w in structure.weights if w.output_axis is not None}
    for node in model.proto.graph.node:
        output = node.output[0]
        if not output or not shapes.has(output):
            continue
        shape = shapes.sizes(output)
        if output in made:
            axes[output] = made[output] % len(shape)
            continue
        same = (i for i in node.input if i in axes and shapes.sizes(i) == shape)
        known = next(same, None)
        if known is not None and node.op_type != "Transpose":
            axes[output] = axes[known]
    return axes
