"""Op: the vocabulary in which a rule says how labels pass through one node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.arrays import I64, Bool
from onnxprune.errors import InternalError
from onnxprune.model.nodes import is_standard
from onnxprune.structure.labels import Reason
from onnxprune.structure.node_facts import NodeFacts
from onnxprune.structure.structure import (
    Inexact,
    Origin,
    OriginalShape,
    Renumber,
    Sink,
    Site,
    Sizes,
    Weight,
)
from onnxprune.structure.trace_state import TraceState

MEETS_FIXED = "meets an axis that cannot shrink"
WHERE_SINCE = 9  # the opset that brought Where, which replaces entries of a computed shape


class Op(NodeFacts):
    """One node, as its rule sees it: what is known of it, and how labels pass through it.

    A labelled input axis that the rule does not take is frozen afterwards (:meth:`close`), so
    forgetting an axis costs coverage, never correctness.
    """

    def __init__(self, node: gs.Node, opset: int, trace: TraceState) -> None:
        super().__init__(node, opset, trace)
        self._taken: set[tuple[int, int]] = set()
        self._own_sites: list[Site] = []
        self._inexact = False

    # -- labels ----------------------------------------------------------------------------

    def labelled(self, i: int) -> dict[int, I64]:
        """The labelled axes of input ``i``; looking does not take them."""
        return self.labels_of(self.node.inputs[i].name) if self.has(i) else {}

    def labels_of(self, tensor: str) -> dict[int, I64]:
        """The labelled axes of any tensor of the graph."""
        return dict(self._trace.axes.get(tensor, {}))

    def take(self, i: int, axis: int) -> I64 | None:
        """Take responsibility for an input axis; None if it carries no labels."""
        self._taken.add((i, axis % max(len(self.shape(i)), 1)))
        return self.labelled(i).get(axis % max(len(self.shape(i)), 1))

    def give(self, axis: int, labels: I64 | None, o: int = 0) -> None:
        """Put labels on an output axis; they are frozen if its size is not fixed."""
        if labels is None or o >= len(self.node.outputs) or self.node.outputs[o].is_empty():
            return
        if not len(labels):  # an axis of size 0 holds no channel
            return
        if self.dynamic(o, axis):
            self.freeze(labels, "runs along an axis of dynamic size")
            return
        if len(labels) != self.out_shape(o)[axis]:
            raise InternalError(
                f"the rule for {self.type} gave {len(labels)} labels to axis {axis} of "
                f"'{self.node.outputs[o].name}' with shape {self.out_shape(o)}"
            )
        self._trace.axes.setdefault(self.node.outputs[o].name, {})[axis] = labels

    def pass_on(self, axes: Iterable[int]) -> None:
        """Let axes of input 0 pass, as they are, to output 0."""
        for axis in axes:
            self.give(axis, self.take(0, axis))

    def pass_all_but(self, *axes: int) -> None:
        """Let the axes of input 0 pass, as they are, to output 0, all but some."""
        rank = len(self.shape(0))
        self.pass_on(set(range(rank)) - {axis % rank for axis in axes})

    def given(self, axis: int, o: int = 0) -> I64 | None:
        """Return the labels that the rule has put on an output axis."""
        return self._trace.axes.get(self.node.outputs[o].name, {}).get(axis)

    def fresh(self, size: int) -> I64:
        """Return new labels."""
        return self._trace.labels.fresh(size)

    def origin(self, axis: int, labels: I64 | None = None) -> I64 | None:
        """Begin new labels (or the given ones) on an axis of output 0, as weights do.

        An axis of size 1 or 0 cannot shrink and carries none.
        """
        size = self.out_shape()[axis]
        if size <= 1:
            return None
        labels = self.fresh(size) if labels is None else labels
        self.begin(axis, labels)
        self.give(axis, labels)
        return labels

    def begin(self, axis: int, labels: I64 | None, o: int = 0) -> None:
        """Say that labels begin at an output axis: the floor and the report are about those."""
        if labels is not None:
            tensor = str(self.node.outputs[o].name)
            self._trace.origins.append(Origin(self.id, tensor, axis, labels))

    def fixed(self, size: int, why: str) -> I64:
        """Return new labels that cannot leave."""
        labels = self.fresh(size)
        self.freeze(labels, why)
        return labels

    def tie(self, a: I64 | None, b: I64 | None) -> I64 | None:
        """Tie two axes index by index; an axis that meets one without labels is frozen."""
        if a is not None and b is not None:
            self._trace.labels.tie(a, b)
        elif a is not None or b is not None:
            known = a if a is not None else b
            assert known is not None
            self.freeze(known, MEETS_FIXED)
        return a if a is not None else b

    def freeze(self, labels: I64 | None, why: str) -> None:
        """Say that ``labels`` cannot leave, and why."""
        if labels is not None:
            self._trace.labels.freeze(labels, Reason(self.name, why))

    def factor(self, labels: I64 | None, *dims: int) -> list[I64 | None]:
        """Split an axis into factors (row-major); each gets labels, or None if it has none.

        The given labels become products of the factors' labels. A factor along which the
        labels repeat (the spatial part of a flattened map), or of size 1, carries none.
        """
        if labels is None:
            return [None] * len(dims)
        if dims == (len(labels),):
            return [labels]
        grid = labels.reshape(dims)
        varies = [
            n > 1 and bool((grid != grid.take([0], axis=k)).any()) for k, n in enumerate(dims)
        ]
        if not any(varies):
            self.freeze(labels, "every index of an axis shares one channel")
            return [None] * len(dims)
        if sum(varies) == 1:
            return [
                np.moveaxis(grid, k, 0).reshape(n, -1)[:, 0] if varies[k] else None
                for k, n in enumerate(dims)
            ]
        factors = [self.fresh(n) if varies[k] else None for k, n in enumerate(dims)]
        merged = self.merge(factors, dims)
        self.tie(labels, merged)
        return factors

    def merge(self, factors: Sequence[I64 | None], dims: Sequence[int]) -> I64 | None:
        """Join factors (row-major) into one axis: the inverse of :meth:`factor`."""
        merged: I64 | None = None
        size = int(np.prod(dims))
        for k, labels in enumerate(factors):
            if labels is None:
                continue
            view = [1] * len(dims)
            view[k] = dims[k]
            spread = np.broadcast_to(labels.reshape(view), dims).reshape(size)
            merged = spread if merged is None else self._trace.labels.product(merged, spread)
        return merged

    # -- records ---------------------------------------------------------------------------

    def site(self, i: int, axis: int, labels: I64 | None) -> None:
        """Say that axis ``axis`` of parameter ``i`` is sliced along with ``labels``."""
        if not self.has(i):
            return
        axis %= len(self.shape(i))
        if not self.is_constant(i):
            labels = self.tie(self.take(i, axis), labels)
        if labels is None:
            return
        site = Site(self.id, i, self.tensor(i), axis, labels)
        self._own_sites.append(site)
        if self.is_constant(i):
            self._trace.sites.append(site)

    def unpack(self, given: Mapping[int, I64] | None = None) -> None:
        """Say that output 0 is computed from initializer 0 alone, index by index.

        It remains a parameter, which can shrink with what it meets.

        Args:
            given: labels of axes whose indices cannot leave one by one.
        """
        for axis, size in enumerate(self.shape(0)):
            if size > 1:
                labels = (given or {}).get(axis)
                if labels is None:
                    labels = self.fresh(size)
                self.site(0, axis, labels)
                self.give(axis, labels)
        self._trace.parameters[self.node.outputs[0].name] = self.tensor(0)

    def sink(self, i: int, axis: int) -> I64 | None:
        """Take an input axis over which the node sums."""
        labels = self.take(i, axis)
        self.sum_over(i, axis, labels)
        return labels

    def sum_over(self, i: int, axis: int, labels: I64 | None) -> None:
        """Say that the node sums over an input axis with these labels."""
        if labels is not None:
            rank = len(self.shape(i))
            self._trace.sinks.append(Sink(self.id, i, axis % rank - rank, labels))

    def normalised(self, i: int, axis: int) -> I64 | None:
        """Take an input axis across which the node normalises.

        What remains is then normalised with other statistics than with zeros in the removed
        places: not exact, so the axis is frozen unless the user allows it.
        """
        labels = self.take(i, axis)
        self.normalise(labels)
        return labels

    def normalise(self, labels: I64 | None) -> None:
        """Say that the node normalises across these labels (see :meth:`normalised`)."""
        if labels is not None and not self._trace.allow_inexact:
            self.freeze(labels, f"{self.type} normalises across it (see --allow-inexact)")
        elif labels is not None:
            self._inexact = True

    def sizes(self, counted: Mapping[int, I64], place: int | str) -> None:
        """Say which integers of an input or attribute count which labels.

        A computed input is taken to hold the last sizes of the output's shape.
        """
        if not counted:
            return None
        if isinstance(place, str):
            values = np.atleast_1d(np.asarray(self.attribute(place), dtype=np.int64))
        elif (constant := self.value(place)) is not None:
            values = np.atleast_1d(constant.astype(np.int64))
        else:
            size = self.shape(place)[0]
            values = np.asarray(self.out_shape()[-size:], dtype=np.int64)
            first = len(self.out_shape()) - size
            dynamic = [
                self.dynamic(0, first + k) or (k not in counted and self.loose())
                for k in range(size)
            ]
            inferred = self.type == "Reshape" and sum(dynamic) <= 1
            for k in counted:
                if dynamic[k] and not inferred:  # batch x heads, say: no number fits it
                    self.freeze(counted[k], "shares an axis of dynamic size")
            if self.opset < WHERE_SINCE and not inferred:
                for labels in counted.values():
                    self.freeze(labels, f"needs opset {WHERE_SINCE} to change a computed size")
                return None
            return self._add_sizes(place, values, counted, np.asarray(dynamic))
        return self._add_sizes(place, values, counted)

    def known_sizes(
        self, values: Sequence[int], counted: Mapping[int, I64], place: int | str
    ) -> None:
        """Like :meth:`sizes`, for an input or attribute whose normalised values are known."""
        if counted:
            self._add_sizes(place, np.asarray(values, dtype=np.int64), counted)

    def _add_sizes(
        self, place: int | str, values: I64, counted: Mapping[int, I64], dynamic: Bool | None = None
    ) -> None:
        dynamic = np.zeros(len(values), dtype=np.bool_) if dynamic is None else dynamic
        self._trace.sizes.append(Sizes(self.id, place, values, dynamic, dict(counted)))

    def renumber(self, i: int, labels: I64) -> None:
        """Say that constant input ``i`` holds indices into an axis with these labels."""
        self._trace.renumbered.append(Renumber(self.id, i, labels))

    def keep_original_shape(self, axes: Mapping[int, I64]) -> None:
        """Say that readers of this Shape node must go on seeing the original sizes."""
        shape = self.shape(0)
        seen = list(range(len(shape)))[self.attribute("start", 0) : self.attribute("end")]
        name = self.node.inputs[0].name
        self._trace.original_shapes.append(
            OriginalShape(
                self.id,
                np.asarray([shape[k] for k in seen], dtype=np.int64),
                np.asarray([self._trace.shapes.is_dynamic(name, k) for k in seen], dtype=bool),
                {seen.index(k): labels for k, labels in axes.items() if k in seen},
            )
        )

    def weight(
        self,
        i: int,
        *,
        data: tuple[str, int, I64 | None],
        channel_of: I64,
        output_of: I64,
        output_axis: int | None = None,
        letters: tuple[str, str, str] | None = None,
    ) -> None:
        """Record a weight operand (see :class:`Weight`), after its sites and output labels.

        Args:
            i: the input that holds it.
            data: the tensor that it multiplies, its channel axis and that axis's labels.
            channel_of: see :class:`Weight`.
            output_of: see :class:`Weight`.
            output_axis: axis of output 0; None if the node has no place for an intercept.
            letters: see :class:`Weight`.
        """
        if not all(self.shape(i)):
            return  # it has no elements
        if not is_standard(self.node.domain):
            output_axis = letters = None  # fused operators have no place
        packed = not self.is_constant(i)
        letters = None if packed else letters
        known = output_axis is not None or letters is not None
        rank = len(self.out_shape()) if known else 0
        given = self.labels_of(self.node.outputs[0].name) if known else {}
        self._trace.weights.append(
            Weight(
                node=self.id,
                op_type=self.type,
                input=i,
                tensor=self._trace.parameters.get(self.tensor(i), self.tensor(i)),
                shape=self.shape(i),
                data_tensor=data[0],
                data_axis=data[1],
                channel_of=channel_of,
                output_of=output_of,
                output_axis=None if output_axis is None else output_axis - rank,
                data_labels=data[2],
                output_labels=None if output_axis is None else self.given(output_axis),
                axes={s.axis: s.labels for s in self._own_sites if s.input == i},
                output_axes={k - rank: v for k, v in given.items()},
                letters=letters,
                packed=packed,
            )
        )

    def close(self, why: str) -> None:
        """Freeze every labelled input axis that the rule did not take; note inexactness."""
        if self._inexact:
            self._trace.inexact.append(self._as_inexact())
        for i in self.inputs:
            for axis, labels in self.labelled(i).items():
                if (i, axis) not in self._taken:
                    self.freeze(labels, f"{why} (axis {axis} of '{self.node.inputs[i].name}')")

    def _as_inexact(self) -> Inexact:
        inputs = {
            (i, k - len(self.shape(i))): v for i in self.inputs for k, v in self.labelled(i).items()
        }
        sites = {(s.input, s.axis - len(self.shape(s.input))): s.labels for s in self._own_sites}
        outputs = {
            (o, k - len(self.out_shape(o))): v
            for o, tensor in enumerate(self.node.outputs)
            for k, v in self.labels_of(tensor.name).items()
        }
        return Inexact(self.id, inputs | sites, outputs)
