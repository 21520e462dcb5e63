"""Facts: which channels of a model are constant, and which carry the same values.

One walk over the graph, by abstract interpretation: every tensor that an operator of
:mod:`onnxprune.clean.transfers` makes gets :class:`~onnxprune.clean.channels.Channels` along one
of its axes. What any other operator computes counts as unknown, which costs coverage, never
correctness. That a channel is constant follows from the weights; its value is read from one run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper

from onnxprune.arrays import I64, Array, Bool
from onnxprune.clean.channels import UNREAD, Channels, Numbers
from onnxprune.clean.transfers import TRANSFERS
from onnxprune.measure.entropy import Activity
from onnxprune.model.edit import edit
from onnxprune.model.model import Model
from onnxprune.model.session import Session
from onnxprune.model.shapes import Shapes
from onnxprune.model.storage import draft
from onnxprune.structure.structure import PRODUCTS, Structure

CLOSE = 1e-6
"""Relative difference up to which the values of a constant count as one."""


@dataclass(frozen=True)
class States:
    """What a rectifier did on samples: ``bool [channels]`` along ``axis`` of its output."""

    axis: int
    always_off: Bool
    always_on: Bool


def relu_states(found: Sequence[Activity]) -> dict[str, States]:
    """Return what Relu nodes always did, by their first output, for the clean-up."""
    return {
        a.rectifier.output: States(a.rectifier.axis, a.always_off, a.always_on)
        for a in found
        if a.rectifier.op_type == "Relu"
    }


class Facts:
    """What is known of the channels of a model's tensors.

    Args:
        model: the traced model.
        shapes: its observed shapes.
        structure: the result of tracing it.
        states: of Relu nodes by their first output; what was always on or off on some samples is
            taken to be so always.
    """

    def __init__(
        self,
        model: Model,
        shapes: Shapes,
        structure: Structure,
        states: Mapping[str, States] | None = None,
    ) -> None:
        self.graph = edit(model)
        self.shapes = shapes
        self.numbers = Numbers()
        self.states = states or {}
        self.weights = {w.node: w for w in structure.weights if w.op_type in PRODUCTS}
        self.values = {t.name: numpy_helper.to_array(t) for t in model.proto.graph.initializer}
        self._model = model
        self._known: dict[str, Channels] = {}
        self._others: dict[tuple[str, int], I64] = {}
        self._read: dict[str, Array] = {}

    def known(self, tensor: str) -> Channels | None:
        """Return what was found about a tensor, along whichever axis."""
        return self._known.get(tensor)

    def of(self, tensor: str, axis: int) -> I64:
        """Return the numbers of the channels along an axis of a tensor, ``int64 [channels]``.

        They are fresh where nothing is known. A tensor without that axis (a negative one) has
        one channel.
        """
        found = self._known.get(tensor)
        if found is not None and found.axis == axis:
            return found.numbers
        if (tensor, axis) not in self._others:
            value = self.values.get(tensor)
            if value is None or not value.size:
                made = self.numbers.fresh(self.shape(tensor)[axis] if axis >= 0 else 1)
            else:
                rows = np.moveaxis(value, axis, 0) if axis >= 0 else value[None]
                rows = rows.reshape(len(rows), -1)
                flat = (rows == rows[:, :1]).all(axis=1)
                made = self.numbers.rows(rows)
                made[flat] = self.numbers.constants(rows[flat, 0])
            self._others[tensor, axis] = made
        return self._others[tensor, axis]

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return the shape of a constant, or the first observed one."""
        value = self.values.get(tensor)
        return self.shapes.sizes(tensor) if value is None else value.shape

    def has(self, tensor: str) -> bool:
        """Whether the shape of a tensor is known."""
        return tensor in self.values or self.shapes.has(tensor)

    def put(self, tensor: gs.Tensor, axis: int, numbers: I64) -> None:
        """Say what the channels of an output are, and read the values of its constants."""
        shape = self.shape(tensor.name) if not tensor.is_empty() else ()
        if len(shape) <= axis or shape[axis] != len(numbers):
            return
        unread = np.flatnonzero(numbers == UNREAD)
        if len(unread):
            numbers = numbers.copy()
            rows = np.moveaxis(self._run(tensor.name), axis, 0)[unread].reshape(len(unread), -1)
            value = rows[:, 0] if rows.shape[1] else np.full(len(rows), np.nan)
            with np.errstate(invalid="ignore"):
                error = np.abs(rows - value[:, None]).max(axis=1, initial=0)
            flat = error <= CLOSE * np.abs(value)
            numbers[unread] = self.numbers.constants(np.where(flat, value, np.nan))
        self._known[tensor.name] = Channels(axis, numbers)

    def _run(self, tensor: str) -> Array:
        """Return the values of a tensor on the first inputs; one run gives those of all."""
        if not self._read:
            proto, held = draft(self._model.proto)
            known = {v.name for v in proto.graph.output}
            names = [
                name
                for node in proto.graph.node
                if node.op_type in TRANSFERS and node.domain in ("", "ai.onnx")
                for name in node.output
                if name
            ]
            proto.graph.output.extend(
                helper.make_empty_tensor_value_info(name) for name in names if name not in known
            )
            session = Session(proto, threads=1, optimize=False, held=held)
            self._read = dict(zip(names, session.run(self.shapes.feeds[0], names), strict=True))
        return self._read[tensor].astype(np.float64)


def relate(
    model: Model,
    shapes: Shapes,
    structure: Structure,
    states: Mapping[str, States] | None = None,
) -> Facts:
    """Find what is known of the channels of a model's tensors; arguments as of :class:`Facts`."""
    facts = Facts(model, shapes, structure, states)
    for node in facts.graph.nodes:
        transfer = TRANSFERS.get(node.op)
        if transfer is None or node.domain not in ("", "ai.onnx", None):
            continue
        if all(shapes.has(t.name) for t in node.outputs if not t.is_empty()):
            transfer(facts, node)
    return facts
