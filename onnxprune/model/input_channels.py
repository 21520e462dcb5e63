"""Input channels: whether a model reads a fixed number of channels that it declares dynamic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.errors import ModelError
from onnxprune.model.model import Model
from onnxprune.model.nodes import attributes

_KEEPING = frozenset(
    {"Identity", "Cast", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Neg", "Abs", "Sqrt", "Log", "Exp",
     "Clip", "Dropout", "QuantizeLinear", "DequantizeLinear"}
)  # fmt: skip
"""Operators whose result has the axes of their first input."""

_BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div"})
_ALONG_1 = frozenset({"Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization"})

Axes = tuple[int | None, ...]
"""For each axis of a tensor the axis of the input that it is; None for a new one."""


def require_fixed_channels(model: Model) -> None:
    """Refuse a float input whose axis 1 is dynamic although a fixed number is read along it.

    An axis that may have any size, such as time or height, is none of these.

    Raises:
        ModelError: naming the input, the node and the number.
    """
    for spec in model.inputs:
        size = spec.shape[1] if len(spec.shape) > 1 else 1
        if (isinstance(size, int) and size > 0) or not np.issubdtype(spec.dtype, np.floating):
            continue
        for node, count in _read_along(model, spec.name, len(spec.shape)):
            raise ModelError(
                f"input '{spec.name}' has a dynamic channel dimension: axis 1 is '{size or '?'}', "
                f"but node '{node.name or node.output[0]}' ({node.op_type}) reads {count} channels "
                "there; export the model with it fixed"
            )


def _read_along(model: Model, name: str, rank: int) -> Iterator[tuple[onnx.NodeProto, int]]:
    """Yield the nodes that need a certain size of an input's axis 1, and that size."""
    constants, axes = model.constants, {name: Axes(range(rank))}
    for node in model.proto.graph.node:
        place = next((k for k, t in enumerate(node.input) if t in axes), None)
        if place is None:
            continue
        own = axes[node.input[place]]
        for axis, size in _needed(node, place, len(own), constants).items():
            if size != 1 and own[axis] == 1:
                yield node, size
        passed = _passed(node, place, own, constants)
        if passed is not None:
            axes[node.output[0]] = passed


def _needed(
    node: onnx.NodeProto, place: int, rank: int, constants: Mapping[str, onnx.TensorProto]
) -> dict[int, int]:
    """Return the sizes of axes that a node needs of the input at a place, by axis."""
    operands = [constants.get(n) for n in node.input]
    other = operands[1 - place] if len(operands) > 1 and place < 2 else None
    if other is None:
        return {}
    dims, kind, how = list(other.dims), node.op_type, attributes(node)
    if kind in _BROADCASTING:
        return {rank - k: n for k, n in enumerate(reversed(dims), 1) if k <= rank and n != 1}
    if kind == "MatMul" and dims:
        return {rank - 1: dims[-2:][0]} if place == 0 else {max(rank - 2, 0): dims[-1]}
    if place:
        return {}
    if kind in _ALONG_1 and rank > 1 and dims:
        conv = kind == "Conv" and len(dims) > 1
        return {1: dims[1] * how.get("group", 1) if conv else dims[0]}
    if kind == "Gemm":
        return {0 if how.get("transA") else 1: dims[1 if how.get("transB") else 0]}
    return {2: dims[2]} if kind in ("LSTM", "GRU", "RNN") and len(dims) == 3 else {}


def _passed(
    node: onnx.NodeProto, place: int, own: Axes, constants: Mapping[str, onnx.TensorProto]
) -> Axes | None:
    """Return the axes of what a node makes; None where they are not known."""
    how = attributes(node)
    if node.op_type in _BROADCASTING:
        other = constants.get(node.input[1 - place])
        return own if other is not None and len(other.dims) <= len(own) else None
    if place:
        return None
    if node.op_type in _KEEPING:
        return own
    if node.op_type == "Transpose":
        return tuple(own[k] for k in how.get("perm") or reversed(range(len(own))))
    if node.op_type not in ("Squeeze", "Unsqueeze"):
        return None
    given = constants.get(node.input[1]) if len(node.input) > 1 else None
    listed = how.get("axes") if given is None else numpy_helper.to_array(given).tolist()
    if listed is None:
        return None
    if node.op_type == "Squeeze":
        gone = {k % len(own) for k in listed}
        return tuple(a for k, a in enumerate(own) if k not in gone)
    rank, rest = len(own) + len(listed), iter(own)
    new = {k % rank for k in listed}
    return tuple(None if k in new else next(rest) for k in range(rank))
