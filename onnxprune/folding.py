"""Folding: replace what is computed from constants and fixed sizes by its value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.graph import Model, Shapes, captured
from onnxprune.labels import Array
from onnxprune.storage import describe, without_constants

SMALL = 32768
"""Bytes up to which a folded constant may be larger than what it was computed from."""

_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
    | {"Multinomial", "Bernoulli", "Dropout"}
)
_HALVES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def computed_constants(proto: onnx.ModelProto) -> dict[str, frozenset[str]]:
    """Find tensors that depend on constants and shapes only, not on the data.

    Returns:
        For each, the initializers it was computed from.
    """
    known = {t.name: frozenset([t.name]) for t in proto.graph.initializer}
    halves = {t.name for t in proto.graph.initializer if t.data_type in _HALVES}
    outputs = {v.name for v in proto.graph.output}
    found: dict[str, frozenset[str]] = {}
    for node in proto.graph.node:
        has_graph = any(a.type in (a.GRAPH, a.GRAPHS) for a in node.attribute)
        unpacks = node.op_type == "Cast" and node.input[0] in halves
        if node.op_type in _RANDOM or has_graph or unpacks or node.op_type == "DequantizeLinear":
            continue  # weights are to stay as small as they are stored
        inputs = [name for name in node.input if name]
        if node.op_type in ("Shape", "Size"):
            sources = frozenset[str]()
        elif node.input and all(name in known for name in inputs):
            sources = frozenset[str]().union(*(known[name] for name in inputs))
        else:
            continue
        for name in node.output:
            known[name] = sources
            if name and name not in outputs:
                found[name] = sources
    return found


def fold(model: Model, shapes: Shapes) -> Model:
    """Replace nodes whose values both observations agree on by initializers.

    What depends on the batch or on another dynamic size stays computed. A folded weight (one
    that the file holds transposed, say) keeps the name of its initializer.
    """
    graph, constants = model.proto.graph, shapes.constants
    kept = [n for n in graph.node if not all(o in constants for o in n.output)]
    needed = {v.name for v in graph.output}
    live: list[onnx.NodeProto] = []
    for node in reversed(kept):
        if any(name in needed for name in node.output):
            live.append(node)
            needed.update(node.input)
            needed.update(captured(node))
    produced = {name for node in live for name in node.output}
    folded = [name for name in constants if name in needed and name not in produced]
    names = _source_names(model.proto, folded, needed, constants)
    inputs = {v.name for v in graph.input}
    said = (e for a in graph.quantization_annotation for e in a.quant_parameter_tensor_names)
    scales = {entry.value for entry in said} - set(names.values())
    used = [t for t in graph.initializer if t.name in needed | inputs | scales]
    if len(live) == len(graph.node) and len(used) == len(graph.initializer):
        return model
    proto = without_constants(model.proto)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(live))
    for node in proto.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    proto.graph.initializer.extend(used)
    held = {t.name: t for t in graph.initializer}
    for name in folded:
        tensor = proto.graph.initializer.add()
        tensor.CopyFrom(numpy_helper.from_array(constants[name], names.get(name, name)))
        if name in names:
            describe(tensor, held[names[name]])
    return replace(model, proto=proto)


def _source_names(
    proto: onnx.ModelProto,
    folded: Sequence[str],
    needed: set[str],
    constants: Mapping[str, Array],
) -> dict[str, str]:
    """Name folded tensors after the one initializer they rearrange, where that is free."""
    elements = {t.name: int(np.prod(t.dims)) for t in proto.graph.initializer}
    found = computed_constants(proto)
    inside = {name for node in proto.graph.node for name in captured(node)}
    names: dict[str, str] = {}
    for name in folded:
        large = [s for s in found[name] if elements[s] > 1]
        if len(large) == 1 and elements[large[0]] == constants[name].size:
            taken = large[0] in needed or large[0] in names.values() or name in inside
            if not taken:
                names[name] = large[0]
    return names
