"""Removals: which parts of a model can leave as a whole, found from the graph.

Two kinds. A *branch* is a region whose result is added to what leads around it: without it, the
sum is what leads around it. A *layer* without a path around it is a region between one tensor and
one layer or several that read its result; these can read its input instead, with new weights.
Regions are what becomes unused when their result is not read any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import onnx

from onnxprune.model.model import Model
from onnxprune.model.nodes import first_output, tensors_read
from onnxprune.model.shapes import Shapes
from onnxprune.structure.structure import PRODUCTS, Structure, Weight

SUMS = ("Add", "Sum")


@dataclass(frozen=True)
class Removal:
    """A part of a model that can leave.

    Attributes:
        name: the result that goes, which names the removal: for a branch the sum, for a layer
            the tensor that its readers read.
        kind: ``branch`` or ``layer``.
        result: the tensor that the part computes.
        source: the tensor that takes the place of ``name``.
        layers: nodes with weights that leave, by their first output.
        nodes: all nodes that leave, likewise.
        readers: for a layer, the nodes with weights that read ``result``, and which input that
            is; they get new weights.
    """

    name: str
    kind: Literal["branch", "layer"]
    result: str
    source: str
    layers: tuple[str, ...]
    nodes: frozenset[str]
    readers: tuple[tuple[str, int], ...] = ()


def find_removals(
    model: Model, shapes: Shapes, structure: Structure, macs: Mapping[str, float]
) -> list[Removal]:
    """Find what can leave as a whole, in the order of the model.

    Args:
        model: a folded model.
        shapes: its observed shapes.
        structure: the result of tracing it.
        macs: multiply-accumulates of each node (see :func:`onnxprune.model.cost.node_macs`).
    """
    graph = _Graph(model)
    weights = {w.node: w for w in structure.weights}
    fixed = {w.node for w in structure.weights if w.tensor in structure.excluded}
    found: list[Removal] = []
    for node in model.proto.graph.node:
        if node.op_type in SUMS and len(node.input) == 2:
            found += _branch(node, graph, shapes, weights, macs)
    for start in weights.values():
        found += _layer(start, graph, shapes, weights, macs)
    usable = [r for r in found if fixed.isdisjoint([*r.layers, *(n for n, _ in r.readers)])]
    return sorted(usable, key=lambda r: max(map(model.producers.__getitem__, r.nodes)))


def apart(a: Removal, b: Removal) -> bool:
    """Whether two parts can both leave."""
    return _leaves_alone(a, b) and _leaves_alone(b, a)


def hangs_on(model: Model, removal: Removal, node: str) -> bool:
    """Whether all that a part computes of its inputs goes through one of its nodes.

    Args:
        model: the model in which the part was found.
        removal: the part.
        node: the node, by its first output.
    """
    graph = _Graph(model)
    seen, pending = {node}, {graph.maker(removal.result)}
    while pending - seen:
        current = (pending - seen).pop()
        if current not in removal.nodes:
            return False
        seen.add(current)
        pending |= {graph.maker(t) for t in graph.read(current)}
    return node in pending


def _leaves_alone(a: Removal, b: Removal) -> bool:
    """Whether nothing that one part needs leaves with the other."""
    needed = {b.source, b.name, *b.nodes, *(n for n, _ in b.readers)}
    return a.name != b.name and a.nodes.isdisjoint(needed)


def _branch(
    node: onnx.NodeProto,
    graph: _Graph,
    shapes: Shapes,
    weights: Mapping[str, Weight],
    macs: Mapping[str, float],
) -> Iterator[Removal]:
    """Yield the larger of the operands of a sum that can leave it."""
    total = node.output[0]
    candidates: list[tuple[float, Removal]] = []
    for result, source in (tuple(node.input), tuple(node.input)[::-1]):
        if result == source or not (graph.computed(result) and graph.computed(source)):
            continue
        if not shapes.same(source, total):
            continue
        nodes, inputs = graph.region(result, {total})
        layers = tuple(n for n in nodes if n in weights)
        if layers and inputs and inputs <= graph.ancestors(source):
            removal = Removal(total, "branch", result, source, layers, frozenset(nodes))
            candidates.append((sum(macs.get(n, 0.0) for n in nodes), removal))
    if candidates:
        yield max(candidates, key=lambda c: c[0])[1]


def _layer(
    first: Weight,
    graph: _Graph,
    shapes: Shapes,
    weights: Mapping[str, Weight],
    macs: Mapping[str, float],
) -> Iterator[Removal]:
    """Yield the region from one layer to its readers, if these can do without it."""
    source, result = first.data_tensor, first.node
    while True:
        readers = graph.readers(result)
        following = [weights[n] for n in readers if n in weights]
        if not readers or graph.is_output(result):
            return
        if len(following) == len(readers):
            break
        if len(readers) != 1:
            return
        result = readers[0]
    nodes, inputs = graph.region(result, set(readers), source)
    if inputs != {source} or first.node not in nodes:
        return
    if not all(_can_read(w, source, result, shapes) for w in following):
        return
    leaves = sum(macs.get(n, 0.0) for n in nodes)
    grows = sum(
        macs.get(w.node, 0.0) * (_channels(shapes, source, w) / _channels(shapes, result, w) - 1)
        for w in following
    )
    if leaves > grows:
        layers = tuple(n for n in nodes if n in weights)
        places = tuple((w.node, graph.place(w.node, result)) for w in following)
        yield Removal(result, "layer", result, source, layers, frozenset(nodes), places)


def _can_read(weight: Weight, source: str, result: str, shapes: Shapes) -> bool:
    """Whether a layer can read another tensor with other weights."""
    if weight.op_type not in PRODUCTS or weight.data_tensor != result or weight.packed:
        return False
    if not (shapes.has(source) and shapes.has(result)) or weight.output_axis is None:
        return False
    channels = shapes.sizes(result)[weight.data_axis]
    if channels == 1 or weight.shape[input_axis(weight)] != channels:
        return False  # a grouped convolution
    axis = weight.data_axis % len(shapes.sizes(result))
    return all(
        _without(view[source], axis) == _without(view[result], axis)
        for view in (shapes.first, shapes.second)
    )


def input_axis(weight: Weight) -> int:
    """Return the axis of a weight tensor along which its input channels lie."""
    if weight.op_type in ("Conv", "ConvTranspose"):
        return 1 if weight.op_type == "Conv" else 0
    return 1 if weight.outputs_first else 0


def _without(sizes: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*sizes[:axis], *sizes[axis + 1 :])


def _channels(shapes: Shapes, tensor: str, weight: Weight) -> int:
    return shapes.sizes(tensor)[weight.data_axis]


class _Graph:
    """Who makes and who reads each tensor; nodes go by their first output."""

    def __init__(self, model: Model) -> None:
        graph = model.proto.graph
        self._nodes = {first_output(n): n for n in graph.node}
        self._order = model.producers
        self._makers = {o: name for name, n in self._nodes.items() for o in n.output if o}
        self._outputs = {v.name for v in graph.output}
        self._variables = set(self._makers) | {spec.name for spec in model.inputs}
        self._read = {
            name: self._variables.intersection(tensors_read(n)) for name, n in self._nodes.items()
        }
        self._readers: dict[str, list[str]] = {}
        for name, read in self._read.items():
            for tensor in read:
                self._readers.setdefault(tensor, []).append(name)

    def computed(self, tensor: str) -> bool:
        """Whether a tensor is neither a constant nor missing."""
        return tensor in self._variables

    def is_output(self, tensor: str) -> bool:
        """Whether a tensor is an output of the model."""
        return tensor in self._outputs

    def readers(self, tensor: str) -> list[str]:
        """Return the nodes that read a tensor."""
        return self._readers.get(tensor, [])

    def read(self, node: str) -> set[str]:
        """Return the tensors that a node reads, constants apart."""
        return self._read[node]

    def maker(self, tensor: str) -> str:
        """Return the node that makes a tensor; nothing for an input."""
        return self._makers.get(tensor, "")

    def place(self, node: str, tensor: str) -> int:
        """Return which input of a node a tensor is."""
        return list(self._nodes[node].input).index(tensor)

    def region(
        self, result: str, readers: set[str], source: str = ""
    ) -> tuple[list[str], set[str]]:
        """Return the nodes that are unused if these readers do not read a tensor any more.

        Also what they read from outside; what makes ``source`` is outside.
        """
        nodes: set[str] = set()
        pending = {result}
        while pending:
            # Whatever reads a tensor comes later, so it is known whether that leaves.
            tensor = max(pending, key=lambda t: self._order.get(t, -1))
            pending.discard(tensor)
            maker = self._makers.get(tensor)
            if maker is None or maker in nodes or tensor == source:
                continue
            own = [o for o in self._nodes[maker].output if o]
            if any(o in self._outputs for o in own):
                continue
            if all(
                r in nodes or (o == result and r in readers) for o in own for r in self.readers(o)
            ):
                nodes.add(maker)
                pending |= self._read[maker]
        inputs = {t for n in nodes for t in self._read[n] if self._makers.get(t) not in nodes}
        return sorted(nodes, key=self._order.__getitem__), inputs

    def ancestors(self, tensor: str) -> set[str]:
        """Return the tensors that a tensor is computed from, itself included."""
        found: set[str] = set()
        stack = [tensor]
        while stack:
            current = stack.pop()
            if current not in found:
                found.add(current)
                if current in self._makers:
                    stack += self._read[self._makers[current]]
        return found
