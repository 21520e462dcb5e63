"""What a model costs: parameters, weights, multiply-accumulates, bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.model.equation import parse
from onnxprune.model.model import UNPACKS, Model
from onnxprune.model.nodes import (
    captured,
    first_output,
    graphs,
    is_standard,
    subgraphs,
    tensors_read,
)
from onnxprune.model.quantised import weight_values
from onnxprune.model.shapes import Shapes
from onnxprune.model.storage import outline

_BY_PLACES = {
    (1,): "Attention Conv ConvInteger ConvTranspose DeformConv FusedConv NhwcConv NhwcFusedConv "
    "DynamicQuantizeMatMul GemmFastGelu MatMulBnb4 MatMulNBits QAttention",
    (0, 1): "Gemm MatMul MatMulInteger FusedGemm FusedMatMul FusedMatMulActivation GemmFloat8 "
    "MatMulInteger16 MatMulIntegerToFloat TransposeMatMul",
    (1, 2): "LSTM GRU RNN AttnLSTM DynamicQuantizeLSTM",
    (2, 3): "DecoderAttention",
    (3,): "QGemm QLinearConv QLinearConvTranspose",
    (0, 3): "QLinearMatMul",
    (2, 4, 6): "MoE",
    (2, 5, 8): "QMoE",
    tuple(range(16)): "Einsum",
}
WEIGHT_INPUTS: dict[str, tuple[int, ...]] = {
    name: places for places, names in _BY_PLACES.items() for name in names.split()
}
"""The operands that count as weights where they are constant: what a sparsity refers to."""

PAST = {"MultiHeadAttention": 6, "GroupQueryAttention": 3}
"""Products of two activations whose operations count, and where the keys seen before are."""

CONVOLUTIONS = (
    *("Conv", "ConvInteger", "DeformConv", "FusedConv", "NhwcConv", "NhwcFusedConv"),
    "QLinearConv",
)
RECURRENT = ("LSTM", "GRU", "RNN", "AttnLSTM", "DynamicQuantizeLSTM")
PACKED_MATRICES = ("MatMulNBits", "MatMulBnb4")
"""Their weights are bits in a row of bytes; two attributes tell how many there are."""

FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
}
"""Element types that count as parameters."""


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
        layers: nodes with weights.
        longest_path: nodes on the longest path from an input to an output.
    """

    params: int
    weights: int
    nonzero_weights: int
    macs: int
    bytes: int
    layers: int
    longest_path: int


def measure(model: Model, shapes: Shapes) -> Cost:
    """Count what a model costs.

    Args:
        model: the model.
        shapes: its observed shapes; a MAC count is that of the first observation divided by
            the batch.
    """
    operands, inner = weight_operands(model), inner_layers(model)
    weights = _each_once(operands)
    return Cost(
        params=count_params(model),
        weights=sum(weights.values()) + sum(map(_size, _distinct(inner, weights.keys()).values())),
        nonzero_weights=count_nonzero(model),
        macs=round(sum(node_macs(model, shapes).values())),
        bytes=model.file_bytes or model.proto.ByteSize(),
        layers=len(operands) + len(inner),
        longest_path=longest_path(model),
    )


def longest_path(model: Model) -> int:
    """Return the number of nodes on the longest path through a model."""
    depth: dict[str, int] = {}
    for node in model.proto.graph.node:
        own = 1 + max((depth.get(name, 0) for name in tensors_read(node)), default=0)
        depth |= dict.fromkeys(node.output, own)
    return max((depth.get(spec.name, 0) for spec in model.outputs), default=0)


def count_nonzero(model: Model) -> int:
    """Count the weights that are not zero; those that are packed several to a byte all count."""
    sizes = {name: _size(t) for name, t in model.constants.items()}
    weights = _each_once(weight_operands(model))
    own = sum(
        int(np.count_nonzero(weight_values(model, [name])[name])) if count == sizes[name] else count
        for name, count in weights.items()
    )
    inner = map(numpy_helper.to_array, _distinct(inner_layers(model), weights.keys()).values())
    return own + sum(int(np.count_nonzero(v)) for v in inner)


def weight_inputs(node: onnx.NodeProto) -> tuple[int, ...]:
    """Return the operands of a node that count as weights where they are constant."""
    if node.op_type == "Attention" and is_standard(node.domain):
        return ()  # the standard operator has queries, keys and values
    return WEIGHT_INPUTS.get(node.op_type, ())


def weight_operands(model: Model) -> dict[str, dict[str, int]]:
    """Return the weights of each node that has any, by its first output.

    They are the initializers that its weight operands are, or are computed from alone, and the
    number of weights in each.
    """
    constants, source = model.constants, unpacked_weights(model)
    found = {
        first_output(node): {
            name: _count(node, constants[name])
            for i in weight_inputs(node)
            if i < len(node.input)
            and (name := source.get(node.input[i], node.input[i])) in constants
        }
        for node in model.proto.graph.node
    }
    return {node: names for node, names in found.items() if names}


def _count(node: onnx.NodeProto, tensor: onnx.TensorProto) -> int:
    """Return how many weights a tensor holds for a node, which may pack several to a byte."""
    given = {a.name: a.i for a in node.attribute}
    if node.op_type in PACKED_MATRICES:
        return given["K"] * given["N"]
    return _size(tensor) * (8 // (given.get("expert_weight_bits") or 8))


def _each_once(operands: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    return {name: count for names in operands.values() for name, count in names.items()}


def count_params(model: Model) -> int:
    """Count the elements of all float constants."""
    everywhere = list(graphs(model.proto.graph))
    nodes = (n for graph in everywhere for n in graph.node if n.op_type == "Constant")
    held = [t for graph in everywhere for t in graph.initializer]
    held += [a.t for node in nodes for a in node.attribute]  # what is an output as well
    return sum(_size(t) for t in held if t.data_type in FLOATS)


def unpacked_weights(model: Model) -> dict[str, str]:
    """Return the tensors that are computed from constants alone: dequantised weights, say.

    Returns:
        For each the largest initializer that it is computed from.
    """
    sizes = {name: _size(t) for name, t in model.constants.items()}
    known, found = {name: name for name in sizes}, dict[str, str]()
    for node in model.proto.graph.node:
        inputs = [name for name in node.input if name]
        if inputs and not captured(node) and all(name in known for name in inputs):
            source = max((known[name] for name in inputs), key=sizes.__getitem__)
            made = {name: source for name in node.output if name}
            known |= made
            found |= made
    return found


def node_macs(model: Model, shapes: Shapes) -> dict[str, float]:
    """Return the multiply-accumulates of each node for one sample, by its first output."""
    nodes = model.proto.graph.node
    own = {first_output(n): _macs(n, model.constants, shapes) / shapes.batch for n in nodes}
    return own | inner_macs(model, shapes)


def _size(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64))


def _macs(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], shapes: Shapes) -> int:
    def shape(name: str) -> tuple[int, ...]:
        return tuple(constants[name].dims) if name in constants else shapes.first[name]

    if node.op_type not in WEIGHT_INPUTS and node.op_type not in PAST:
        return 0
    if not all(shapes.has(o) for o in node.output if o):
        return 0
    if node.op_type == "Einsum":
        return _letters(node, [shape(name) for name in node.input])
    if node.op_type in PAST:
        operands = [shape(name) if name else () for name in node.input]
        return _scores(PAST[node.op_type], operands, shape(node.output[0]))
    places = WEIGHT_INPUTS[node.op_type]
    weights = [shape(node.input[i]) for i in places if i < len(node.input) and node.input[i]]
    first, out = shape(node.input[0]), shape(first_output(node))
    read, elements = (int(np.prod(s, dtype=np.int64)) for s in (first, out))
    sizes = [int(np.prod(s, dtype=np.int64)) for s in weights]
    given = {a.name: a.i for a in node.attribute}
    if node.op_type in CONVOLUTIONS:
        return elements * int(np.prod(weights[0][1:]))
    if node.op_type in ("ConvTranspose", "QLinearConvTranspose"):
        return read * int(np.prod(weights[0][1:]))
    if node.op_type == "Attention" and is_standard(node.domain):
        return (read + elements) * weights[0][-2]
    if node.op_type in ("Attention", "QAttention"):
        return first[0] * first[1] * sizes[0] + 2 * elements * first[1]
    if node.op_type in ("MoE", "QMoE"):
        packed = 8 // (given.get("expert_weight_bits") or 8)
        return read // first[-1] * (given.get("k") or 1) * sum(sizes) * packed // weights[0][0]
    if node.op_type in RECURRENT:
        return first[0] * first[1] * sum(sizes)
    return elements * first[-2 if given.get("transA") else -1]


def _scores(past: int, shapes: Sequence[tuple[int, ...]], out: tuple[int, ...]) -> int:
    """Count the operations of queries with keys and of scores with values.

    Args:
        past: the input with the keys that were seen before.
        shapes: of all inputs, empty where one is not given.
        out: shape of the output.
    """
    apart = len(shapes) > 1 and len(shapes[1]) == 3  # else one tensor holds all three
    keys = shapes[int(apart)][1] + (shapes[past][2] if len(shapes) > past and shapes[past] else 0)
    return out[0] * out[1] * keys * ((shapes[0][2] if apart else out[2]) + out[2])


def _letters(node: onnx.NodeProto, shapes: Sequence[tuple[int, ...]]) -> int:
    """Count the operations of an Einsum, whose operands are multiplied one after the other.

    Each takes the product of the sizes of all letters of two operands.
    """
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation")
    terms, right = parse(equation, [len(own) for own in shapes])
    sizes: dict[str, int] = {}
    for term, own in zip(terms, shapes, strict=True):
        sizes |= {c: max(sizes.get(c, 1), n) for c, n in zip(term, own, strict=True)}
    total, seen = 0, set(terms[0])
    for k, term in enumerate(terms[1:], 1):
        seen |= set(term)
        total += int(np.prod([sizes[c] for c in seen], dtype=np.int64))
        seen &= set(right).union(*terms[k + 1 :])
    return total


# -- inside subgraphs ------------------------------------------------------------------------------

Named = tuple[str, str]
"""A constant: where the graph that has it is, nothing for the outermost, and its name."""


def inner_layers(model: Model) -> list[dict[Named, onnx.TensorProto]]:
    """Return the weight operands of each node in a subgraph that has any."""
    held = {name: (("", name), tensor) for name, tensor in model.constants.items()}
    return [own for node in model.proto.graph.node for own in _layers_inside(node, held, "")]


def _layers_inside(
    node: onnx.NodeProto, outer: Mapping[str, tuple[Named, onnx.TensorProto]], where: str
) -> Iterator[dict[Named, onnx.TensorProto]]:
    for k, graph in enumerate(subgraphs(node)):
        place = f"{where}/{first_output(node)}/{k}"
        held = {**outer, **{t.name: ((place, t.name), t) for t in graph.initializer}}
        unpacked = {
            inner.output[0]: held[inner.input[0]]
            for inner in graph.node
            if inner.op_type in UNPACKS and inner.input[0] in held
        }
        names = held | unpacked
        for inner in graph.node:
            places = WEIGHT_INPUTS.get(inner.op_type, ())
            read = (inner.input[i] for i in places if i < len(inner.input))
            if own := dict(names[name] for name in read if name in names):
                yield own
            yield from _layers_inside(inner, held, place)


def _distinct(
    layers: Sequence[Mapping[Named, onnx.TensorProto]], outer: Collection[str]
) -> dict[Named, onnx.TensorProto]:
    """Return the weights of subgraphs, each once, that no outer layer has as well."""
    found = {key: tensor for layer in layers for key, tensor in layer.items()}
    return {key: tensor for key, tensor in found.items() if key[0] or key[1] not in outer}


def inner_macs(model: Model, shapes: Shapes) -> dict[str, float]:
    """Return the multiply-accumulates of nodes with subgraphs for one sample, where known.

    Of the branches of an If the most expensive counts, of a Scan one run of its body. What shape
    inference does not know counts as nothing: most of what is in a Loop.
    """
    if not any(any(subgraphs(node)) for node in model.proto.graph.node):
        return {}
    light = outline(model.proto)
    for value in light.graph.input:
        if value.name in shapes.first:
            kind = value.type.tensor_type
            del kind.shape.dim[:]
            kind.shape.dim.extend(
                onnx.TensorShapeProto.Dimension(dim_value=n) for n in shapes.first[value.name]
            )
    with contextlib.suppress(onnx.shape_inference.InferenceError):
        light = onnx.shape_inference.infer_shapes(light, data_prop=True)
    return {
        first_output(node): max(bodies) / shapes.batch
        for node in light.graph.node
        if (bodies := [_body_macs(g, model.constants, shapes) for g in subgraphs(node)])
    }


def _body_macs(
    graph: onnx.GraphProto, constants: Mapping[str, onnx.TensorProto], outer: Shapes
) -> int:
    declared = [*graph.value_info, *graph.input, *graph.output]
    dims = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in declared}
    known = {name: tuple(sizes) for name, sizes in dims.items() if sizes and min(sizes) > 0}
    held = {**constants, **{t.name: t for t in graph.initializer}}
    first = {**outer.first, **known}
    shapes = Shapes(first, first, outer.batch, outer.batch)
    total = 0
    for node in graph.node:
        if bodies := [_body_macs(inner, held, shapes) for inner in subgraphs(node)]:
            total += max(bodies)
        elif all(name in first or name in held for name in [*node.input, *node.output] if name):
            total += _macs(node, held, shapes)
    return total
