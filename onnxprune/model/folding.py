"""Folding: replace what is computed from constants and fixed sizes by its value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx
from onnx import numpy_helper

from onnxprune.arrays import Array
from onnxprune.model.model import Model
from onnxprune.model.nodes import captured, subgraphs, used
from onnxprune.model.shapes import Shapes
from onnxprune.model.storage import describe, with_graph

SMALL = 32768
"""Bytes up to which a folded constant may be larger than what it was computed from."""

RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
    | {"Multinomial", "Bernoulli", "Dropout"}
)
_HALVES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)

COUNTERS = frozenset({"NonZero", "NonMaxSuppression", "Compress", "Unique"})
"""Operators that give as many results as they find in the data."""

_SIZE_PLACES = {
    (0,): "BlackmanWindow ConstantOfShape HammingWindow HannWindow",
    (1,): "AffineGrid CenterCropPad Col2Im DFT Expand OneHot ReduceSum Reshape Split "
    "SplitToSequence TopK Unsqueeze Upsample",
    (2,): "MaxUnpool",
    (0, 1): "MelWeightMatrix",
    (1, 2): "Tile",
    (1, 3): "Pad STFT",
    (0, 1, 2): "Range",
    (1, 2, 3): "Resize",
    (1, 2, 3, 4): "Slice",
}
_SIZE_OPERANDS: Mapping[str, tuple[int, ...]] = {
    name: places for places, names in _SIZE_PLACES.items() for name in names.split()
}
"""Operands whose values decide the size of a result."""


@dataclass(frozen=True)
class Computed:
    """What of a graph is computed from constants and shapes only.

    Attributes:
        sources: for each such tensor the initializers that it was computed from.
        from_shapes: those of them that depend on the size of another tensor.
        data_sized: tensors whose sizes depend on the values of the inputs, and all behind them.
        loosely: those of them whose sizes do not come from a node of :data:`COUNTERS` alone.
    """

    sources: Mapping[str, frozenset[str]]
    from_shapes: frozenset[str]
    data_sized: frozenset[str]
    loosely: frozenset[str]


def computed_constants(model: Model) -> Computed:
    """Find tensors that depend on constants and shapes only, not on the data.

    The size of a tensor that depends on the data is no such shape: what is computed from it is
    not found, and nothing that depends on a subgraph with results of such sizes.
    """
    graph = model.proto.graph
    known = {name: frozenset([name]) for name in model.constants}
    halves = {name for name, t in model.constants.items() if t.data_type in _HALVES}
    outputs = {v.name for v in graph.output}
    found: dict[str, frozenset[str]] = {}
    shaped, sized, loose = set[str](), set[str](), set[str]()
    for node in graph.node:
        inputs = [name for name in node.input if name]
        has_graph = any(subgraphs(node))
        reads_shape = node.op_type in ("Shape", "Size")
        if (reads_shape and node.input[0] not in sized) or (
            inputs and all(name in known for name in inputs) and not has_graph
        ):
            sources = frozenset[str]().union(*(known.get(name, ()) for name in inputs))
            unpacks = node.op_type == "Cast" and node.input[0] in halves
            if node.op_type in RANDOM or unpacks or node.op_type == "DequantizeLinear":
                continue  # weights are to stay as small as they are stored
            for name in node.output:
                known[name] = frozenset() if reads_shape else sources
                if reads_shape or shaped.intersection(inputs):
                    shaped.add(name)
                if name and name not in outputs:
                    found[name] = known[name]
            continue
        if reads_shape:
            continue  # of a fixed size of its own, whatever it tells
        operands = [
            node.input[i]
            for i in _SIZE_OPERANDS.get(node.op_type, ())
            if i < len(node.input) and node.input[i]
        ]
        here = {*inputs, *captured(node)}
        loosely = any(name not in known for name in operands) or not here.isdisjoint(loose)
        loosely |= has_graph and _sizes_vary(node, known)
        if loosely or node.op_type in COUNTERS or not here.isdisjoint(sized):
            sized.update(node.output)
        if loosely:
            loose.update(node.output)
    return Computed(found, frozenset(shaped), frozenset(sized), frozenset(loose))


def _sizes_vary(node: onnx.NodeProto, known: Mapping[str, object]) -> bool:
    """Whether a node with subgraphs may give results of sizes that depend on the data."""
    if node.op_type == "If" and node.input[0] in known:
        return any(
            inner.op_type in COUNTERS or _SIZE_OPERANDS.get(inner.op_type) or captured(inner)
            for graph in subgraphs(node)
            for inner in graph.node
        )
    return True


def fold(model: Model, shapes: Shapes) -> Model:
    """Replace nodes whose values both observations agree on by initializers.

    What depends on the batch or on another dynamic size stays computed. A folded weight (one
    that the file holds transposed, say) keeps the name of its initializer.
    """
    graph, constants = model.proto.graph, shapes.constants
    kept = [n for n in graph.node if not all(o in constants for o in n.output)]
    live, needed = used(kept, (v.name for v in graph.output))
    produced = {name for node in live for name in node.output}
    folded = [name for name in constants if name in needed and name not in produced]
    names = _source_names(model, folded, needed, constants)
    inputs = {v.name for v in graph.input}
    said = (e for a in graph.quantization_annotation for e in a.quant_parameter_tensor_names)
    scales = {entry.value for entry in said} - set(names.values())
    held = [t for t in graph.initializer if t.name in needed | inputs | scales]
    if len(live) == len(graph.node) and len(held) == len(graph.initializer):
        return model
    made = [numpy_helper.from_array(constants[name], names.get(name, name)) for name in folded]
    for name, tensor in zip(folded, made, strict=True):
        if name in names:
            describe(tensor, model.constants[names[name]])
    proto = with_graph(model.proto, nodes=live, constants=[*held, *made])
    for node in proto.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    taken = set(names.values())  # what was said of an initializer is not true of its successor
    still_true = [v for v in proto.graph.value_info if v.name not in taken]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(still_true)
    return replace(model, proto=proto)


def _source_names(
    model: Model,
    folded: Sequence[str],
    needed: set[str],
    constants: Mapping[str, Array],
) -> dict[str, str]:
    """Name folded tensors after the one initializer they rearrange, where that is free."""
    elements = {name: math.prod(t.dims) for name, t in model.constants.items()}
    found = computed_constants(model).sources
    inside = set[str]().union(*map(captured, model.proto.graph.node))
    names: dict[str, str] = {}
    for name in folded:
        large = [s for s in found[name] if elements[s] > 1]
        if len(large) == 1 and elements[large[0]] == constants[name].size:
            taken = large[0] in needed or large[0] in names.values() or name in inside
            if not taken:
                names[name] = large[0]
    return names
