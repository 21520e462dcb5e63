"""Untouched: layers whose weights no rule records, so that none of them can leave, and why."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

import onnx
from onnx import TensorProto

from onnxprune.model.cost import CONVOLUTIONS, PACKED_MATRICES, WEIGHT_INPUTS, weight_operands
from onnxprune.model.model import Model
from onnxprune.model.nodes import first_output, operator, subgraphs
from onnxprune.model.shapes import Shapes
from onnxprune.model.storage import nbytes
from onnxprune.structure.rules import RULES
from onnxprune.structure.structure import Untouched, described

LARGE_SHARE = 0.1
"""Share of a file's bytes from which a warning says that what holds it cannot be pruned."""

_HELD = (
    *("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "UINT8", "INT16", "UINT16", "INT4"),
    *("UINT4", "INT2", "UINT2", "FLOAT4E2M1", "FLOAT8E4M3FN", "FLOAT8E5M2"),
)
"""Types that weights are stored in."""

_BEFORE = "prune the model before it is quantised"
_DYNAMIC = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
_ONE_MACHINE = ("com.microsoft.nchwc", "com.ms.internal.nhwc")


def find_untouched(model: Model, shapes: Shapes, recorded: Collection[str]) -> list[Untouched]:
    """Find the nodes that have weights which no rule has recorded.

    These are operators that count (see :data:`onnxprune.model.cost.WEIGHT_INPUTS`) in a form that
    their rule does not take, operators without a rule that read a constant with several axes,
    and operators with layers in their subgraphs.

    Args:
        model: the model that was traced.
        shapes: its observed shapes.
        recorded: nodes whose weights were recorded, by their first output.
    """
    tensors, counted = model.constants, weight_operands(model)
    found = []
    for node in model.proto.graph.node:
        output = first_output(node)
        inside = dict(_inside(node, tensors))
        names = counted.get(output) or dict(_constants(node, tensors))
        names |= {name: math.prod(tensor.dims) for name, tensor in inside.items()}
        if not names or output in recorded or (output not in counted and _has_rule(node)):
            continue
        shape = shapes.first.get(output, ())
        axis = 1 if node.op_type in CONVOLUTIONS and len(shape) > 1 else -1
        read = {n: tensors[n] for n in {*names, *node.input} & tensors.keys()} | inside
        found.append(
            Untouched(
                tensor=output,
                node=node.name or output,
                op_type=node.op_type,
                reason=_why(node, model),
                channels=shape[axis] if shape else 0,
                weights=sum(names.values()),
                bytes=sum(map(nbytes, read.values())),
            )
        )
    return found


def _has_rule(node: onnx.NodeProto) -> bool:
    return operator(node.op_type, node.domain) in RULES


def _constants(node: onnx.NodeProto, tensors: dict[str, TensorProto]) -> Iterator[tuple[str, int]]:
    """Yield the constants of a node that may be weights, and their elements."""
    for name in node.input:
        tensor = tensors.get(name)
        if tensor is None or sum(n > 1 for n in tensor.dims) < 2:
            continue
        if TensorProto.DataType.Name(tensor.data_type) in _HELD:
            yield name, math.prod(tensor.dims)


def _inside(
    node: onnx.NodeProto, outer: dict[str, TensorProto]
) -> Iterator[tuple[str, TensorProto]]:
    """Yield the weights of layers in the subgraphs of a node."""
    for graph in subgraphs(node):
        held = outer | {t.name: t for t in graph.initializer}
        for inner in graph.node:
            places = WEIGHT_INPUTS.get(inner.op_type, ())
            for name in (inner.input[i] for i in places if i < len(inner.input)):
                if name in held:
                    yield name, held[name]
            yield from _inside(inner, held)


def _why(node: onnx.NodeProto, model: Model) -> str:
    """Return why the weights of a node stay, to be read after "it"."""
    last = any(a.name == "channels_last" and a.i for a in node.attribute)
    if node.domain in _ONE_MACHINE or last or node.op_type.startswith("Nhwc"):
        return (
            f"is laid out for one machine by onnxruntime ({node.domain}::{node.op_type}); prune "
            "the file that it was made from"
        )
    if node.op_type in PACKED_MATRICES or node.op_type in ("MatMulFpQ4", "QMoE"):
        return f"packs weights of several inputs together ({node.op_type}); {_BEFORE}"
    makers = (model.maker(name) for name in node.input)
    read = {maker.op_type for maker in makers if maker is not None}
    if node.op_type in _DYNAMIC or "DynamicQuantizeLinear" in read:
        return f"reads all channels with one scale, found while it runs; {_BEFORE}"
    if any(subgraphs(node)):
        return f"runs layers in its subgraphs, which stay as they are ({node.op_type})"
    if not _has_rule(node):
        return f"has no rule ({node.op_type})"
    return f"is used in a form that its rule does not take ({node.op_type})"


def untouched_warnings(found: Sequence[Untouched], file_bytes: int) -> list[str]:
    """Say what cannot be pruned where it holds much of a file."""
    share = sum(item.bytes for item in found) / max(file_bytes, 1)
    if share <= LARGE_SHARE:
        return []
    return [f"{described(found)}; they hold {100 * share:.0f} % of the file"]
