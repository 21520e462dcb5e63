"""Nodes: what the messages of a graph say of their operators, tensors and subgraphs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto, helper


def is_standard(domain: str | None) -> bool:
    """Whether a domain is that of the standard operators, however it is written."""
    return domain in ("", "ai.onnx", None)


def operator(op_type: str, domain: str | None) -> str:
    """Return the name of an operator: with its domain if that is not the standard one."""
    return op_type if is_standard(domain) else f"{domain}::{op_type}"


def first_output(node: NodeProto) -> str:
    """Return the identity of a node: its first output that has a name; its own for none."""
    return next((o for o in node.output if o), node.name)


def attributes(node: NodeProto) -> dict[str, Any]:
    """Return the attributes of a node by name: numbers, lists, bytes, tensors, graphs."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the graphs that a node runs (If, Loop, Scan), not those inside them."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and all graphs inside it."""
    yield graph
    yield from graphs_inside(graph.node)


def graphs_inside(nodes: Iterable[NodeProto]) -> Iterator[GraphProto]:
    """Yield all graphs inside nodes, those inside others as well."""
    for node in nodes:
        for graph in subgraphs(node):
            yield from graphs(graph)


def outer_nodes(proto: ModelProto) -> list[NodeProto]:
    """Return the nodes of a model and of its local functions, not those inside subgraphs."""
    return [*proto.graph.node, *(node for function in proto.functions for node in function.node)]


def all_nodes(proto: ModelProto) -> Iterator[NodeProto]:
    """Yield the nodes of a model, those of subgraphs and functions included."""
    outer = outer_nodes(proto)
    yield from outer
    for graph in graphs_inside(outer):
        yield from graph.node


def captured(node: NodeProto) -> set[str]:
    """Return the tensors that the subgraphs of a node read; those of the outer graph among them."""
    inner = list(graphs_inside([node]))
    names = {name for graph in inner for each in graph.node for name in each.input}
    return names.union(v.name for graph in inner for v in graph.output)


def tensors_read(node: NodeProto) -> list[str]:
    """Return the tensors that a node reads, also in its subgraphs."""
    return [name for name in [*node.input, *captured(node)] if name]


def used(nodes: Sequence[NodeProto], wanted: Iterable[str]) -> tuple[list[NodeProto], set[str]]:
    """Find the nodes that some tensors are computed by.

    Args:
        nodes: the nodes of a graph, in order.
        wanted: the tensors.

    Returns:
        These nodes, in order; the wanted tensors and all that the nodes read.
    """
    kept, needed = list[NodeProto](), set(wanted)
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            kept.append(node)
            needed.update(tensors_read(node))
    return kept[::-1], needed
