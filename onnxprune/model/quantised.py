"""Quantised: how integers stand for the weights that a model computes with.

An integer ``q`` stands for ``(q - zero point) * scale``. Scale and zero point are one number each,
or one for each index of an axis, or one for each block of indices.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxprune.arrays import Array
from onnxprune.model.model import Model
from onnxprune.model.storage import with_graph


@dataclass(frozen=True)
class Places:
    """Where a node reads integer weights, and what goes with them.

    Attributes:
        weight: the input that holds the integers.
        scale: the input that holds the scales; -1 where they are computed elsewhere.
        zero: the input that holds the zero points.
        axis: the axis of the weights that has one of each for every index.
        block: indices of that axis that share one; 0 for one each.
    """

    weight: int
    scale: int
    zero: int
    axis: int
    block: int = 0


_PLACES = {
    "ConvInteger": Places(1, -1, 3, 0),
    "DynamicQuantizeMatMul": Places(1, 2, 3, -1),
    "MatMulInteger": Places(1, -1, 3, -1),
    "MatMulIntegerToFloat": Places(1, 3, 5, -1),
    "QAttention": Places(1, 4, 7, -1),
    "QLinearConv": Places(3, 4, 5, 0),
    "QLinearMatMul": Places(3, 4, 5, -1),
}


def places(op_type: str, attributes: dict[str, int]) -> Places | None:
    """Return where an operator reads integer weights; None for operators that do not.

    Args:
        op_type: the operator.
        attributes: its integer attributes.
    """
    if op_type == "DequantizeLinear":
        return Places(0, 1, 2, attributes.get("axis", 1), attributes.get("block_size", 0))
    if op_type == "QGemm":
        return Places(3, 4, 5, 0 if attributes.get("transB", 0) else 1)
    return _PLACES.get(op_type)


def spread(values: Array, shape: tuple[int, ...], at: Places) -> Array:
    """Arrange scales or zero points so that they broadcast to weights of a shape."""
    if values.size == 1 or not shape:
        return values.reshape(())
    axis = at.axis % len(shape)
    if at.block and values.ndim == len(shape):
        return values.repeat(at.block, axis=axis).take(range(shape[axis]), axis=axis)
    if values.ndim == 1:
        view = [1] * len(shape)
        view[axis] = -1
        return values.reshape(view)
    return values


def weight_values(model: Model, names: Collection[str]) -> dict[str, Array]:
    """Return the values of initializers; what integers stand for where they are weights."""
    tensors = model.constants
    values = {name: _computable(tensors[name]) for name in names if name in tensors}
    for node in model.proto.graph.node:
        at = places(node.op_type, {a.name: a.i for a in node.attribute})
        if at is None or len(node.input) <= at.weight or node.input[at.weight] not in values:
            continue
        name = node.input[at.weight]
        if TensorProto.DataType.Name(tensors[name].data_type) in _INTEGERS:
            values[name] = _dequantised(tensors, node, at)
    return values


_INTEGERS = (
    *("INT2", "UINT2", "INT4", "UINT4", "INT8", "UINT8", "INT16", "UINT16", "INT32"),
    *("FLOAT4E2M1", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"),
)
"""Types that nothing is computed with but what they stand for."""


def _dequantised(tensors: dict[str, TensorProto], node: onnx.NodeProto, at: Places) -> Array:
    def given(i: int, missing: float) -> Array:
        name = node.input[i] if 0 <= i < len(node.input) else ""
        value = numpy_helper.to_array(tensors[name]) if name in tensors else np.array(missing)
        return spread(value.astype(np.float32), shape, at)

    integers = numpy_helper.to_array(tensors[node.input[at.weight]])
    shape = integers.shape
    result: Array = (integers.astype(np.float32) - given(at.zero, 0.0)) * given(at.scale, 1.0)
    return result


def _computable(tensor: TensorProto) -> Array:
    """Return the values of a tensor; numpy does not compute with bfloat16, but float32 holds it."""
    values = numpy_helper.to_array(tensor)
    return values.astype(np.float32) if tensor.data_type == TensorProto.BFLOAT16 else values


def without_rounding(model: Model) -> Model | None:
    """Let readers of what is quantised and at once dequantised read it as it was before.

    What a model computes then goes smoothly with its weights, while a value that is rounded the
    other way is off by a whole step. None if nothing computed is quantised so.
    """
    quantised = {
        node.output[0]: node.input[0]
        for node in model.proto.graph.node
        if node.op_type == "QuantizeLinear"
    }
    before = {
        node.output[0]: quantised[node.input[0]]
        for node in model.proto.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in quantised
    }
    if not before:
        return None
    proto = with_graph(model.proto)
    returned = {v.name for v in proto.graph.output}
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and node.output[0] in before.keys() & returned:
            source = before[node.output[0]]
            node.CopyFrom(onnx.helper.make_node("Identity", [source], node.output, node.name))
        node.input[:] = [_followed(name, before) for name in node.input]
    return replace(model, proto=proto)


def _followed(name: str, before: Mapping[str, str]) -> str:
    while name in before:
        name = before[name]
    return name
