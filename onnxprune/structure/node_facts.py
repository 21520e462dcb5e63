"""Node facts: what is known of one node before its rule runs: operator, constants, shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune.model.edit import node_id
from onnxprune.structure.trace_state import TraceState


class NodeFacts:
    """What can be asked of one node; nothing here changes anything.

    Args:
        node: the node.
        opset: the model's version of the standard operators.
        trace: what was observed of the graph, and found out so far.
    """

    def __init__(self, node: gs.Node, opset: int, trace: TraceState) -> None:
        self.node = node
        self.opset = opset
        self.id = node_id(node)
        self._trace = trace

    @property
    def name(self) -> str:
        """The node's name for people."""
        return str(self.node.name or self.id)

    @property
    def type(self) -> str:
        """The operator, for example ``Conv``."""
        return str(self.node.op)

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or ``default``."""
        return self.node.attrs.get(name, default)

    @property
    def inputs(self) -> range:
        """The indices of the inputs that are present."""
        return range(len(self.node.inputs))

    def has(self, i: int) -> bool:
        """Whether input ``i`` is given (optional inputs may be missing or empty)."""
        return i < len(self.node.inputs) and not self.node.inputs[i].is_empty()

    def is_constant(self, i: int) -> bool:
        """Whether input ``i`` is an initializer."""
        return self.has(i) and isinstance(self.node.inputs[i], gs.Constant)

    def is_parameter(self, i: int) -> bool:
        """Whether input ``i`` is an initializer, or one that is dequantised or cast."""
        return self.is_constant(i) or (self.has(i) and self.tensor(i) in self._trace.parameters)

    def value(self, i: int) -> npt.NDArray[Any] | None:
        """Return the value of input ``i`` if it is an initializer, else None."""
        return np.asarray(self.node.inputs[i].values) if self.is_constant(i) else None

    def ints(self, i: int, attribute: str) -> list[int] | None:
        """Return integers that older opsets hold in an attribute and newer ones in input ``i``.

        None where they are absent or not constant.
        """
        if attribute in self.node.attrs:
            return [int(v) for v in np.atleast_1d(self.attribute(attribute))]
        value = self.value(i)
        return None if value is None else [int(v) for v in np.atleast_1d(value)]

    def tensor(self, i: int) -> str:
        """Return the name of input ``i``."""
        return str(self.node.inputs[i].name)

    def shape(self, i: int) -> tuple[int, ...]:
        """Return the observed shape of input ``i``."""
        tensor = self.node.inputs[i]
        if isinstance(tensor, gs.Constant):
            return tuple(int(n) for n in tensor.shape)
        return self._trace.shapes.sizes(tensor.name)

    def out_shape(self, o: int = 0) -> tuple[int, ...]:
        """Return the observed shape of output ``o``."""
        return self._trace.shapes.sizes(self.node.outputs[o].name)

    def known(self) -> bool:
        """Whether the shapes of all inputs and outputs were observed."""
        shapes = self._trace.shapes
        named = [t for t in self.node.inputs if not isinstance(t, gs.Constant)]
        return all(shapes.has(t.name) for t in [*named, *self.node.outputs] if not t.is_empty())

    def dynamic(self, o: int, axis: int) -> bool:
        """Whether the size of an output axis depends on the batch or a dynamic input axis."""
        return self._trace.shapes.is_dynamic(self.node.outputs[o].name, axis)

    def loose(self) -> bool:
        """Whether output 0 may have sizes that were not tried, of a dynamic axis or by the data."""
        shapes = self._trace.shapes
        return bool(shapes.stuck) or str(self.node.outputs[0].name) in shapes.loose

    def varies(self, i: int, axis: int) -> bool:
        """Whether the size of an axis of input ``i`` depends on the batch or a dynamic axis."""
        return not self.is_constant(i) and self._trace.shapes.is_dynamic(self.tensor(i), axis)

    def second_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of input 0 and output 0 in the second observation (other dynamic sizes)."""
        shapes, first = self._trace.shapes, self.node.inputs[0]
        first_shape = self.shape(0) if isinstance(first, gs.Constant) else shapes.second[first.name]
        return first_shape, shapes.second[self.node.outputs[0].name]

    def all_constant(self, *inputs: int) -> bool:
        """Whether each of these inputs is absent or an initializer."""
        return all(self.is_constant(i) or not self.has(i) for i in inputs)
