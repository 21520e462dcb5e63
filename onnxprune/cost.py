"""What a model costs: parameters, weights, multiply-accumulates, bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.graph import Model, Shapes
from onnxprune.labels import Bool
from onnxprune.structure import Structure, Weight

WEIGHT_INPUTS = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
}
"""The operands that count as weights where they are constant."""

_FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
}


@dataclass(frozen=True)
class Cost:
    """Costs of a model.

    Attributes:
        params: elements of all float constants.
        weights: elements of all weight operands, each tensor once.
        nonzero_weights: those that are not zero.
        macs: multiply-accumulates for one sample, of layers with weights and of products of
            two activations.
        bytes: size of the model as a file.
    """

    params: int
    weights: int
    nonzero_weights: int
    macs: int
    bytes: int


def measure(model: Model, shapes: Shapes) -> Cost:
    """Count what a model costs.

    Args:
        model: the model.
        shapes: its observed shapes; a MAC count is that of the first observation divided by
            the batch.
    """
    graph = model.proto.graph
    constants = {t.name: t for t in graph.initializer}
    weights = {
        node.input[i]
        for node in graph.node
        for i in WEIGHT_INPUTS.get(node.op_type, ())
        if i < len(node.input) and node.input[i] in constants
    }
    return Cost(
        params=sum(_size(t) for t in graph.initializer if t.data_type in _FLOATS),
        weights=sum(_size(constants[name]) for name in weights),
        nonzero_weights=sum(
            int(np.count_nonzero(numpy_helper.to_array(constants[name]))) for name in weights
        ),
        macs=round(sum(node_macs(model, shapes).values())),
        bytes=model.file_bytes or model.proto.ByteSize(),
    )


def node_macs(model: Model, shapes: Shapes) -> dict[str, float]:
    """Return the multiply-accumulates of each node for one sample, by its first output."""
    constants = {t.name: t for t in model.proto.graph.initializer}
    return {
        next(o for o in node.output if o): _macs(node, constants, shapes) / shapes.batch
        for node in model.proto.graph.node
    }


def _size(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64))


def _macs(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], shapes: Shapes) -> int:
    def shape(name: str) -> tuple[int, ...]:
        return tuple(constants[name].dims) if name in constants else shapes.first[name]

    if node.op_type not in WEIGHT_INPUTS or not all(shapes.has(o) for o in node.output if o):
        return 0
    first, second = shape(node.input[0]), shape(node.input[1])
    out = shape(next(o for o in node.output if o))
    elements = int(np.prod(out, dtype=np.int64))
    if node.op_type == "Conv":
        return elements * int(np.prod(second[1:]))
    if node.op_type == "ConvTranspose":
        return int(np.prod(first, dtype=np.int64)) * int(np.prod(second[1:]))
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return elements * first[0 if transposed else 1]
    if node.op_type == "MatMul":
        return elements * first[-1]
    recurrent = shape(node.input[2])
    return first[0] * first[1] * int(np.prod(second) + np.prod(recurrent))


def weights_kept(weight: Weight, kept: Bool) -> int:
    """Count the elements of a weight that stay when only these labels do (``bool [labels]``)."""
    shape = list(weight.shape)
    for axis, labels in weight.axes.items():
        shape[axis] = int(kept[labels].sum())
    return int(np.prod(shape))


def weights_removed(structure: Structure, kept: Bool) -> int:
    """Count the weights that leave when only these labels stay (``bool [labels]``)."""
    tensors = {w.tensor: w for w in structure.weights}.values()
    return sum(int(np.prod(w.shape)) - weights_kept(w, kept) for w in tensors)
