"""Round trip: models to onnx-graphsurgeon and back, with everything it does not carry.

onnx-graphsurgeon copies constants into the subgraphs that read them, and drops metadata,
documentation and attributes that it does not know. So a node remembers the message it was read
from, and what an edit did not touch is taken from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, TensorProto, numpy_helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.logger import G_LOGGER

from onnxprune.errors import InternalError, ModelError
from onnxprune.model import storage

G_LOGGER.severity = G_LOGGER.CRITICAL + 1  # it would write names of tensors to stdout


def to_graph(proto: onnx.ModelProto) -> gs.Graph:
    """Return a model as an onnx-graphsurgeon graph; its constants are not copied.

    Raises:
        ModelError: if an attribute holds text that cannot be read.
    """
    try:
        graph = gs.import_onnx(proto)
    except UnicodeDecodeError as error:
        raise ModelError(
            f"a node has an attribute whose text is not UTF-8 ({error.reason}); export the model "
            "again without it"
        ) from None
    _remember(graph, proto.graph)
    return graph


def _remember(graph: gs.Graph, source: onnx.GraphProto) -> None:
    """Let all know the messages they were read from, and nodes the attributes they were given."""
    graph.origin = source
    for node, message in zip(graph.nodes, source.node, strict=True):
        node.origin = message
        node.given = {k: list(v) if isinstance(v, list) else v for k, v in node.attrs.items()}
        for attribute in message.attribute:
            if attribute.type == AttributeProto.GRAPH:
                _remember(node.attrs[attribute.name], attribute.g)


def to_proto(graph: gs.Graph, source: onnx.ModelProto) -> onnx.ModelProto:
    """Return an edited graph as a model with all that ``source`` says beside its nodes.

    A constant is written once, where it was: at the top, unless a subgraph has it for itself.
    Training graphs are left out: they belong to the weights that the model had.

    Args:
        graph: what :func:`to_graph` returned, edited.
        source: what that was made from.
    """
    result = onnx.ModelProto()
    storage.copy_fields(source, result, "graph", "training_info")
    # Before IR version 4 every initializer had to be an input as well; ours never are.
    result.ir_version = max(source.ir_version, 4)
    _write(graph, source.graph, result.graph, top=True)
    return result


def _write(
    graph: gs.Graph, source: onnx.GraphProto, target: onnx.GraphProto, *, top: bool = False
) -> None:
    """Write a graph into a message; of constants those that are its own."""
    lists = ("node", "initializer", "input", "output", "value_info", "quantization_annotation")
    storage.copy_fields(source, target, *lists)
    for node in graph.nodes:
        _write_node(node, target.node.add())
    for tensors, ours, theirs in (
        (graph.inputs, target.input, source.input),
        (graph.outputs, target.output, source.output),
    ):
        declared = {v.name: v for v in theirs}
        ours.extend(declared[t.name] for t in tensors)
    held = {t.name: t for t in source.initializer}
    for name, constant in _constants(graph).items():
        if top or name in held:
            _write_constant(constant, held.get(name), target.initializer.add())
    present = {name for node in target.node for name in node.output} | {
        v.name for v in target.input
    }
    if not top:
        target.value_info.extend(v for v in source.value_info if v.name in present)
    _write_annotations(source, target, present)


def _constants(graph: gs.Graph) -> dict[str, gs.Constant]:
    """Return the constants that the nodes of a graph and of its subgraphs read, by name.

    Raises:
        InternalError: if an edit left two that share a name.
    """
    found: dict[str, gs.Constant] = {}
    for tensor in _read(graph):
        if not isinstance(tensor, gs.Constant):
            continue
        if found.setdefault(tensor.name, tensor) is not tensor:
            raise InternalError(f"two constants are called '{tensor.name}'")
    return found


def _read(graph: gs.Graph) -> Iterator[gs.Tensor]:
    for node in graph.nodes:
        yield from node.inputs
        for inner in node.subgraphs():
            own = {t.name for t in inner.origin.initializer}
            yield from (t for t in _read(inner) if t.name not in own)
    yield from graph.outputs


def _write_node(node: gs.Node, target: onnx.NodeProto) -> None:
    origin, given = getattr(node, "origin", onnx.NodeProto()), getattr(node, "given", {})
    storage.copy_fields(origin, target, "input", "output", "attribute")
    changed = (target.op_type, target.domain) != (node.op, node.domain or "")
    target.op_type, target.name, target.domain = node.op, node.name, node.domain or ""
    target.input.extend(t.name for t in node.inputs)
    target.output.extend(t.name for t in node.outputs)
    known = {a.name: a for a in origin.attribute}
    for name, value in node.attrs.items():
        attribute = target.attribute.add()
        if isinstance(value, gs.Graph):
            storage.copy_fields(known[name], attribute, "g")
            _write(value, value.origin, attribute.g)
        elif name in known and _same(value, given.get(name)):
            attribute.CopyFrom(known[name])
        else:
            attribute.CopyFrom(OnnxExporter.export_attributes({name: value})[0])
    if not changed:  # what onnx-graphsurgeon could not read
        target.attribute.extend(a for a in origin.attribute if a.name not in given)


def _same(value: Any, given: Any) -> bool:
    """Whether an attribute is what it was; constants are equal if they share a name."""
    plain = type(value) is type(given) and isinstance(value, (list, int, float, str))
    return value is given or (plain and value == given)


def _write_constant(constant: gs.Constant, source: TensorProto | None, target: TensorProto) -> None:
    """Write a constant with what is said about the one that bore its name."""
    values = constant._values
    if isinstance(values, np.ndarray) and values.dtype.kind == "V":  # which it cannot pack
        target.CopyFrom(numpy_helper.from_array(values, constant.name))
    else:
        target.CopyFrom(OnnxExporter.export_tensor_proto(constant))
    if source is not None:
        storage.describe(target, source)


def _write_annotations(source: onnx.GraphProto, target: onnx.GraphProto, present: set[str]) -> None:
    """Keep what is said of the quantisation of tensors that are left, and the scales it names.

    Scales by channel go with a tensor that may have lost channels.
    """
    held = {t.name: t for t in source.initializer}
    written = {t.name: t for t in target.initializer}
    cut = {n for n, t in held.items() if n not in written or written[n].dims != t.dims}
    for annotation in source.quantization_annotation:
        name = annotation.tensor_name
        scales = [e.value for e in annotation.quant_parameter_tensor_names if e.value in held]
        by_channel = any(math.prod(held[s].dims) > 1 for s in scales)
        touched = name in cut if name in held else bool(cut - set(scales))
        if (name not in present and name not in written) or (by_channel and touched):
            continue
        target.quantization_annotation.add().CopyFrom(annotation)
        for scale in scales:
            if scale not in written:
                written[scale] = target.initializer.add()
                written[scale].CopyFrom(held[scale])


def declare(target: onnx.GraphProto, inferred: onnx.GraphProto, source: onnx.GraphProto) -> None:
    """Declare the inferred shapes of a graph, with what ``source`` says of these tensors."""
    said = {v.name: v for v in source.value_info}
    for value in inferred.value_info:
        declared = target.value_info.add()
        declared.CopyFrom(value)
        if value.name in said:
            storage.copy_fields(said[value.name], declared, "name", "type")
