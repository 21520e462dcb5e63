"""Redundancy: channels that can leave without any change, because others make up for them.

A removed channel reads as zero wherever an operator sums over it (see
:mod:`onnxprune.rewrite.verify`). So a unit can leave if at every such place each of its channels
is zero, or is not read, or is a constant or equal to a channel that stays, by which the layer
that sums can be corrected.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.arrays import F64, I64, Array, Bool
from onnxprune.clean.channels import ZERO
from onnxprune.clean.facts import Facts
from onnxprune.linear.bias import add_bias
from onnxprune.linear.matrix_form import MatrixForm, by_channel, is_padded, matrix_form
from onnxprune.model.edit import edit, node_id, rebuild
from onnxprune.model.model import Model
from onnxprune.structure.structure import Sink, Structure, Weight

KINDS = ("dead", "unread", "constant", "duplicate")
"""Why a unit can leave: zero everywhere, multiplied by zeros only, folded, merged."""


@dataclass(frozen=True)
class Reader:
    """A place where a node sums over channels.

    Attributes:
        labels: those of the channels.
        alike: ``int64 [channels]``; channels with one number make up for each other.
        zero: ``bool [channels]``: those that are zero everywhere.
        value: ``float64 [channels]``: values of those that are constant.
        free: ``bool [channels]``: those for which nothing has to.
        unread: ``bool [channels]``: those whose weights are all zero.
        weight: the weight of a layer that can be corrected, else None.
        form: how that layer reads as a matrix product.
    """

    labels: I64
    alike: I64
    zero: Bool
    value: F64
    free: Bool
    unread: Bool
    weight: Weight | None = None
    form: MatrixForm | None = None


def readers(structure: Structure, facts: Facts) -> list[Reader]:
    """Return every place where channels that may leave are summed over."""
    nodes = {node_id(node): node for node in facts.graph.nodes}
    uses = {t.name: len(t.outputs) for t in facts.graph.tensors().values()}
    weights = {
        node: w
        for node, w in facts.weights.items()
        if w.output_axis is not None and uses.get(w.tensor) == 1 and not w.packed
    }
    return [
        _reader(sink, nodes[sink.node], weights.get(sink.node), facts)
        for sink in structure.sinks
        if structure.units.atoms(sink.labels)[0].size
    ]


def _reader(sink: Sink, node: gs.Node, weight: Weight | None, facts: Facts) -> Reader:
    name = node.inputs[sink.input].name
    numbers = facts.of(name, sink.axis % len(facts.shape(name)))
    zero, constants = numbers == ZERO, facts.numbers.values(numbers)
    count = np.arange(len(numbers))
    value = facts.values.get(weight.tensor) if weight else None
    if weight is None or value is None or name != weight.data_tensor or sink.input == weight.input:
        unread = np.zeros(len(numbers), dtype=np.bool_)
        return Reader(sink.labels, count, zero, constants, zero, unread)
    form = matrix_form(node, weight, value.shape)
    unread = ~by_channel(form, value).any(axis=(1, 2)).reshape(-1)
    numbers = facts.numbers.mapped(numbers, padded=is_padded(node))
    alike = facts.numbers.of(numbers, count // (len(numbers) // form.groups))
    alike -= alike.min(initial=0)
    free = unread | (numbers < 0)
    return Reader(sink.labels, alike, zero, constants, free, unread, weight, form)


def find(structure: Structure, places: list[Reader], align: int = 1) -> tuple[Bool, Counter[str]]:
    """Choose units that leave.

    Args:
        structure: the traced model.
        places: see :func:`readers`.
        align: a number whose multiples run faster: a group that has a multiple of it keeps one.

    Returns:
        ``bool [units]``, those that stay, and how many leave for which of :data:`KINDS`.
    """
    units = structure.units
    kept = np.ones(len(units), dtype=np.bool_)
    kinds: dict[int, str] = {}
    candidates = structure.prunable.copy()
    tables = [_Table(place, *units.atoms(place.labels)) for place in places]
    for table in tables:
        candidates[table.bound()] = False
    # The best of every axis stays: no axis may vanish.
    floors = [
        _Table(None, *units.atoms(labels), size=len(labels))
        for labels in structure.axes
        if len(labels)
    ]
    by_unit: dict[int, list[_Table]] = {int(u): [] for u in np.flatnonzero(candidates)}
    for table in [*tables, *floors]:
        for unit in np.unique(table.unit):
            if int(unit) in by_unit:
                by_unit[int(unit)].append(table)
    for unit in sorted(by_unit, reverse=True):
        own = by_unit[unit]
        if all(table.can_spare(unit) for table in own):
            kinds[unit] = _kind(unit, own)
            for table in own:
                table.remove(unit)
            kept[unit] = False
    for group in structure.groups:
        leaving = group.units[~kept[group.units]]
        kept[leaving[: _back(len(group.units), len(leaving), align)]] = True
    return kept, Counter(kind for unit, kind in kinds.items() if not kept[unit])


def _back(size: int, leaving: int, align: int) -> int:
    """Return how many of those that leave a group must stay for a width that runs fast."""
    target = -(-(size - leaving) // align) * align
    if target > size:  # it has no such width, and cannot come down to one
        return 0
    return target - (size - leaving)


class _Table:
    """Which channels of one axis are still there."""

    def __init__(self, place: Reader | None, index: I64, unit: I64, size: int = 0) -> None:
        size = len(place.alike) if place else size
        self.place, self.unit, self._index = place, unit, index
        self._there = np.ones(size, dtype=np.bool_)
        self._alike = place.alike if place else np.zeros(size, dtype=np.int64)
        self._free = place.free if place else np.zeros(size, dtype=np.bool_)
        self._count = np.bincount(self._alike, minlength=1)

    def of(self, unit: int) -> I64:
        """Return the channels that leave with a unit."""
        result: I64 = self._index[self.unit == unit]
        return result

    def bound(self) -> I64:
        """Return the units with a channel that nothing can make up for."""
        alone = ~self._free & (self._count[self._alike] == 1)
        return np.asarray(np.unique(self.unit[alone[self._index]]), dtype=np.int64)

    def can_spare(self, unit: int) -> bool:
        """Whether something stays that makes up for what would leave."""
        leaving = self.of(unit)
        leaving = leaving[self._there[leaving]]
        left = self._count - np.bincount(self._alike[leaving], minlength=len(self._count))
        return bool((self._free[leaving] | (left[self._alike[leaving]] > 0)).all())

    def remove(self, unit: int) -> None:
        """Take the channels of a unit away."""
        leaving = self.of(unit)
        leaving = leaving[self._there[leaving]]
        np.subtract.at(self._count, self._alike[leaving], 1)
        self._there[leaving] = False


def _kind(unit: int, tables: list[_Table]) -> str:
    seen = [(t.place, t.of(unit)) for t in tables if t.place is not None]
    if all(place.zero[own].all() for place, own in seen) and seen:
        return "dead"
    if not all(place.free[own].all() for place, own in seen):
        return "duplicate"
    read = [place.zero[own] | place.unread[own] for place, own in seen]
    return "unread" if all(r.all() for r in read) else "constant"


def absorb(facts: Facts, pruned: Model, places: list[Reader], kept: Bool) -> Model:
    """Correct the layers that read removed channels by those that stay.

    Args:
        facts: what is known of the traced model.
        pruned: what is left of that.
        places: see :func:`readers`.
        kept: ``bool [labels]``, those that stay.
    """
    graph = edit(pruned)
    nodes = {node_id(node): node for node in graph.nodes}
    for place in places:
        stays, weight = kept[place.labels], place.weight
        if weight is None or place.form is None or stays.all() or weight.node not in nodes:
            continue
        node = nodes[weight.node]
        old = facts.values[weight.tensor]
        matrix = by_channel(place.form, old.astype(np.float64))
        alpha = float(node.attrs.get("alpha", 1.0)) if node.op == "Gemm" else 1.0
        delta = alpha * _merge(matrix, place, stays)
        new = place.form.to_tensor(matrix.reshape(place.form.groups, place.form.outputs, -1))
        for axis, labels in weight.axes.items():
            new = new.compress(kept[labels], axis=axis)
        if weight.output_labels is not None:
            delta = delta[kept[weight.output_labels]]
        name = node.inputs[weight.input].name
        node.inputs[weight.input] = gs.Constant(name, np.ascontiguousarray(new, dtype=old.dtype))
        if delta.any():
            add_bias(graph, node, weight, delta, old.dtype)
    return rebuild(graph, pruned)


def _merge(matrix: Array, place: Reader, stays: Bool) -> F64:
    """Move what removed channels add to others, in place; return what constants add.

    Args:
        matrix: ``float64 [groups, outputs, offsets, channels]``.
        place: where they are read.
        stays: ``bool [channels]``.
    """
    width = matrix.shape[-1]
    added = np.zeros(matrix.shape[:2])
    for i in np.flatnonzero(~stays & ~place.unread & ~place.zero):
        group, own = divmod(int(i), width)
        column = matrix[group, :, :, own]
        if place.free[i]:
            added[group] += place.value[i] * column.sum(axis=1)
        else:
            j = int(np.flatnonzero(stays & (place.alike == place.alike[i]))[0])
            matrix[group, :, :, j % width] += column
    return added.reshape(-1)
