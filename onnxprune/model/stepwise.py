"""Walk: execute a model step by step, keeping only the activations that are still needed.

A layer-by-layer pass over a network of depth ``L`` would cost ``L**2`` layers if every step ran
the whole prefix. A :class:`Walk` runs every node once: small sub-models go from the live
tensors to the next ones that are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.arrays import F64, Array
from onnxprune.model.model import Model
from onnxprune.model.nodes import tensors_read
from onnxprune.model.runner import PLAIN, Runner
from onnxprune.model.session import Feeds, Session
from onnxprune.model.storage import describe, with_graph


class Walk:
    """Executes one model on fixed chunks of samples, in any steps along its order.

    Args:
        model: the model; its constants may be replaced between steps.
        chunks: inputs of each chunk of samples. They are referenced, not copied.
        runner: runs the models.
    """

    def __init__(self, model: Model, chunks: Sequence[Feeds], *, runner: Runner = PLAIN) -> None:
        self._proto = model.proto
        self._runner = runner
        self._constants = dict(model.constants)
        self._producer = model.producers
        self._inputs = [tensors_read(node) for node in model.proto.graph.node]
        self._sequences = _sequences(model)
        self._live: list[dict[str, Array]] = [dict(feeds) for feeds in chunks]
        self._whole: tuple[str, Session, list[str]] | None = None

    def constant(self, name: str) -> F64:
        """Return the current value of a constant as float64."""
        return numpy_helper.to_array(self._constants[name]).astype(np.float64)

    def replace(self, name: str, values: Array) -> None:
        """Replace the value of a constant; its element type stays."""
        made = numpy_helper.from_array(self._cast(name, values), name)
        describe(made, self._constants[name])
        self._constants[name] = made

    def holds(self, name: str, values: Array) -> bool:
        """Whether a constant can have these values: they are finite in its element type."""
        return bool(np.isfinite(self._cast(name, values).astype(np.float64)).all())

    def _cast(self, name: str, values: Array) -> Array:
        dtype = helper.tensor_dtype_to_np_dtype(self._constants[name].data_type)
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(values, dtype=dtype)

    def model(self) -> Model:
        """Return the model with the constants as they are now."""
        return Model(with_graph(self._proto, constants=self._constants.values()))

    def step(self, wanted: Iterable[str], later: Iterable[str]) -> list[list[Array]]:
        """Compute tensors from what is live, then forget what nothing later needs.

        Args:
            wanted: names of tensors.
            later: the tensors that following steps are going to ask for.

        Returns:
            For each chunk the wanted tensors, in order.
        """
        names = list(wanted)
        missing = [n for n in dict.fromkeys(names) if n not in self._live[0]]
        if missing:
            session, feeds = self._session(missing)
            for live in self._live:
                values = session.run({n: live[n] for n in feeds}, missing)
                live.update(zip(missing, values, strict=True))
        result = [[live[n] for n in names] for live in self._live]
        needed = self._frontier(later)[0]
        for live in self._live:
            for name in set(live) - needed:
                del live[name]
        return result

    def forget(self, name: str) -> None:
        """Forget a tensor, so that it is computed anew from what is live in front of it."""
        for live in self._live:
            live.pop(name, None)

    def peek(self, name: str, constants: Mapping[str, Array]) -> list[Array]:
        """Compute a tensor with other constants, and leave everything as it is.

        Args:
            name: the tensor.
            constants: values by name; the element types stay.

        Returns:
            The tensor for each chunk.
        """
        if name in self._live[0]:  # an input of the model, say
            return [live[name] for live in self._live]
        kept = dict(self._constants)
        for constant, values in constants.items():
            self.replace(constant, values)
        try:
            session, feeds = self._session([name])
        finally:
            self._constants = kept
        return [session.run({n: live[n] for n in feeds}, [name])[0] for live in self._live]

    def on(self, feeds: Feeds, name: str) -> Array:
        """Compute a tensor for other inputs, from the beginning, and keep nothing of it."""
        if name in feeds:
            return feeds[name]
        if self._whole is None or self._whole[0] != name:
            live, self._live = self._live, [dict(feeds)]
            self._whole = (name, *self._session([name]))
            self._live = live
        _, session, inputs = self._whole
        result: Array = session.run({n: feeds[n] for n in inputs}, [name])[0]
        return result

    def first_user(self, constants: Set[str]) -> int:
        """Return the number of the first node that reads one of these constants."""
        return min(
            (k for k, read in enumerate(self._inputs) if not constants.isdisjoint(read)),
            default=len(self._inputs),
        )

    def step_to(self, node: int, later: Iterable[str]) -> None:
        """Run all nodes before a node, given its number; keep only what the others read of them."""
        later = list(later)
        behind = [k for k in self._frontier(later)[1] if k >= node]
        read = {n for k in behind for n in self._inputs[k]}
        before = self._tensors(n for n in read if self._producer.get(n, node) < node)
        self.step(sorted(before), [*later, *read])

    def depends_on(self, name: str, producers: set[str]) -> bool:
        """Whether a tensor has any of these tensors among its not yet computed ancestors."""
        _, nodes = self._frontier([name])
        outputs = {o for k in nodes for o in self._proto.graph.node[k].output}
        return bool(outputs & producers)

    def _tensors(self, names: Iterable[str]) -> set[str]:
        """Return the computed tensors that hold these values: sequences are never kept."""
        found, stack = set[str](), list(names)
        while stack:
            name = stack.pop()
            if name in self._sequences:
                stack += self._inputs[self._producer[name]]
            elif name in self._producer:
                found.add(name)
        return found

    def _frontier(self, names: Iterable[str]) -> tuple[set[str], set[int]]:
        """Find the live tensors that ``names`` are computed from, and the nodes in between."""
        stack, live = list(names), self._live[0]
        found: set[str] = set()
        nodes: set[int] = set()
        while stack:
            name = stack.pop()
            if name in live:
                found.add(name)
            elif name in self._producer and self._producer[name] not in nodes:
                nodes.add(self._producer[name])
                stack += self._inputs[self._producer[name]]
        return found, nodes

    def _session(self, wanted: Sequence[str]) -> tuple[Session, list[str]]:
        found, numbers = self._frontier(wanted)
        read = {name for k in numbers for name in self._inputs[k]}
        inputs = sorted(found & read)
        nodes = [_apart(self._proto.graph.node[k], found) for k in sorted(numbers)]
        graph = helper.make_graph(
            nodes,
            "step",
            [_declared(n, self._live[0][n]) for n in inputs],
            [helper.make_empty_tensor_value_info(n) for n in wanted],
            [self._constants[n] for n in sorted(read & set(self._constants))],
        )
        proto = helper.make_model(
            graph, opset_imports=self._proto.opset_import, ir_version=self._proto.ir_version
        )
        return self._runner.session(proto), inputs


def _sequences(model: Model) -> set[str]:
    """Return what a model computes that are no tensors."""
    kinds = [node.op_type for node in model.proto.graph.node]
    if not any("Sequence" in kind or "Optional" in kind for kind in kinds):
        return set()
    known = model.producers.keys() & model.types.keys()
    return {name for name in known if not model.types[name].HasField("tensor_type")}


def _apart(node: onnx.NodeProto, held: Set[str]) -> onnx.NodeProto:
    """Rename those outputs of a node that are held already: another of them is computed."""
    if held.isdisjoint(node.output):
        return node
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.output[:] = [f"{name}/again" if name in held else name for name in node.output]
    return copy


def _declared(name: str, value: Array) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_value_info(name, kind, [None] * value.ndim)


def live_bytes(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the most bytes of activations that a walk node by node holds at once.

    Args:
        model: the model.
        shapes: the shape of every tensor for the number of samples in question.
    """
    last = {n: k for k, node in enumerate(model.proto.graph.node) for n in tensors_read(node)}
    computed = shapes.keys() - model.constants.keys()
    size = {name: 4 * math.prod(shapes[name]) for name in computed}
    live = {spec.name for spec in model.inputs}
    most = 0
    for k, node in enumerate(model.proto.graph.node):
        live.update(name for name in node.output if name)
        most = max(most, sum(size.get(n, 0) for n in live))
        live = {n for n in live if last.get(n, -1) > k}
    return most
