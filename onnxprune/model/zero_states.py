"""Zero states: initial states of recurrent nodes that are zero whatever the data, the default.

Exporters write them out, in shapes computed from the batch and the hidden size. Left out, they
need not shrink with the hidden units, and do not tie layers that share one.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import TensorProto, numpy_helper

from onnxprune.model.nodes import attributes, is_standard
from onnxprune.model.storage import with_graph

STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
"""The inputs of recurrent operators that hold initial states."""

_NUMBERS = (
    *(TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16),
    *(TensorProto.INT32, TensorProto.INT64),
)
_OF_THE_FIRST = frozenset(
    "Abs Cast CastLike Expand Flatten Gather GatherElements GatherND Identity Neg "
    "ReduceSum Relu Reshape Sign Slice Split Squeeze Tanh Tile Transpose Trilu Unsqueeze".split()
)
_OF_ALL = frozenset(["Add", "Concat", "Sub", "Sum"])


def without_zero_states(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Leave out initial states that are provably zero; return the same model without any.

    A product with zeros counts as zero: activations are taken to be finite.
    """
    places = [
        (k, i)
        for k, node in enumerate(proto.graph.node)
        if is_standard(node.domain)
        for i in STATES.get(node.op_type, ())
        if i < len(node.input) and node.input[i]
    ]
    zeros = _zeros(proto) if places else set[str]()
    places = [(k, i) for k, i in places if proto.graph.node[k].input[i] in zeros]
    if not places:
        return proto
    result = with_graph(proto)
    for k, i in places:
        inputs = result.graph.node[k].input
        inputs[i] = ""
        while not inputs[-1]:
            del inputs[-1]
    return result


def _zeros(proto: onnx.ModelProto) -> set[str]:
    """Return the tensors that hold nothing but zeros."""
    inputs = {v.name for v in proto.graph.input}  # which may take another value
    constants = (t for t in proto.graph.initializer if t.name not in inputs)
    zeros = {t.name for t in constants if _is_zero(t)}
    for node in proto.graph.node:
        if is_standard(node.domain) and _gives_zeros(node, zeros):
            zeros.update(node.output)
    return zeros - {""}


def _is_zero(tensor: TensorProto) -> bool:
    return tensor.data_type in _NUMBERS and not numpy_helper.to_array(tensor).any()


def _gives_zeros(node: onnx.NodeProto, zeros: Collection[str]) -> bool:
    if node.op_type == "ConstantOfShape":
        return all(map(_is_zero, attributes(node).values()))
    if not node.input:
        return False
    if node.op_type in _OF_THE_FIRST:
        return node.input[0] in zeros
    if node.op_type in (*_OF_ALL, "Where"):
        return all(name in zeros for name in node.input[node.op_type == "Where" :])
    return node.op_type == "Mul" and any(name in zeros for name in node.input)
