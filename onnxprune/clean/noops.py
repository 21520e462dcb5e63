"""No-ops: nodes that compute nothing, and branches that only ever add a constant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs

from onnxprune.clean.facts import Facts
from onnxprune.clean.transfers import constant_input, ints
from onnxprune.model.edit import captured_names, edit, node_id, rebuild
from onnxprune.model.model import Model
from onnxprune.model.shapes import Shapes


@dataclass(frozen=True)
class _Facts:
    """What is known of a graph beside its nodes."""

    shapes: Shapes
    types: dict[str, onnx.TypeProto]
    opset: int
    linear: Collection[str]

    def same_shape(self, node: gs.Node, i: int = 0) -> bool:
        """Whether input ``i`` and output 0 had one shape in both observations."""
        return self.shapes.same(node.inputs[i].name, node.outputs[0].name)

    def same_type(self, node: gs.Node) -> bool:
        """Whether input 0 and output 0 are known to hold one type of numbers."""
        kinds = [self.types.get(t.name) for t in (node.inputs[0], node.outputs[0])]
        elements = [k.tensor_type.elem_type if k is not None else 0 for k in kinds]
        return elements[0] == elements[1] != 0


def drop_noops(
    model: Model, shapes: Shapes, *, linear: Collection[str] = (), keep: Collection[str] = ()
) -> tuple[Model, Counter[str]]:
    """Take nodes out of a graph that pass their input on as it is.

    Args:
        model: a folded model.
        shapes: its observed shapes.
        linear: first outputs of rectifiers to be taken for identities.
        keep: first outputs of nodes to be left alone.

    Returns:
        The model, and how many nodes went by operator.
    """
    graph = edit(model)
    facts = _Facts(shapes, model.types, model.opset, linear)
    inside = set[str]().union(*(captured_names(node) for node in graph.nodes))
    gone: Counter[str] = Counter()
    for node in graph.nodes:
        if node_id(node) in keep or node.domain not in ("", "ai.onnx", None):
            continue
        place = _passes(node, facts)
        if place is not None and _bypass(graph, node, node.inputs[place], inside):
            gone[node.op] += 1
    return (rebuild(graph, model), gone) if gone else (model, gone)


def _bypass(graph: gs.Graph, node: gs.Node, source: gs.Tensor, inside: Collection[str]) -> bool:
    """Let readers of a node's output read its input; False where names forbid it."""
    output = node.outputs[0]
    if output.name in inside or any(t.outputs for t in node.outputs[1:]):
        return False
    is_output = any(output is t for t in graph.outputs)
    if is_output:
        # The output keeps its name, so what makes the input has to make it under that name.
        interface = any(source is t for t in [*graph.inputs, *graph.outputs])
        if interface or source.name in inside or not source.inputs:
            return False
    node.inputs.clear()
    node.outputs.clear()
    left, gone = (output, source) if is_output else (source, output)
    for reader in list(gone.outputs):
        reader.inputs = [left if t is gone else t for t in reader.inputs]
    if is_output:
        producer = source.inputs[0]
        producer.outputs = [output if t is source else t for t in producer.outputs]
    return True


# -- which nodes pass an input ---------------------------------------------------------------------


def _passes(node: gs.Node, facts: _Facts) -> int | None:
    """Return the input that a node passes on as it is, or None."""
    if not node.inputs or not node.outputs or node.inputs[0].is_empty():
        return None
    if node.op in _NEUTRAL:
        return _beside_neutral(node, facts)
    if node_id(node) in facts.linear or node.op == "Identity":
        return 0
    check = _CHECKS.get(node.op)
    return 0 if check is not None and check(node, facts) else None


_NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0, "Pow": 1.0}


def _beside_neutral(node: gs.Node, facts: _Facts) -> int | None:
    for constant, other in ((1, 0), (0, 1)):
        value = constant_input(node, constant)
        if value is None or (constant == 0 and node.op not in ("Add", "Mul")):
            continue
        if not value.size or not (value == _NEUTRAL[node.op]).all():
            continue
        if facts.same_shape(node, other):
            return other
    return None


def _is_dropout_off(node: gs.Node, facts: _Facts) -> bool:
    if facts.opset < 7:
        return bool(node.attrs.get("is_test", 0))
    if len(node.inputs) < 3 or node.inputs[2].is_empty():
        return True
    value = constant_input(node, 2)
    return value is not None and not value.any()


def _is_whole_slice(node: gs.Node, facts: _Facts) -> bool:
    steps = ints(node, 4, "steps")
    forward = len(node.inputs) < 5 or (steps is not None and set(steps) == {1})
    return forward and facts.same_shape(node)


def _keeps_order(node: gs.Node, _: _Facts) -> bool:
    order = [int(k) for k in node.attrs.get("perm", [])]
    return bool(order) and order == sorted(order)


def _pads_nothing(node: gs.Node, facts: _Facts) -> bool:
    pads = ints(node, 1, "pads")
    return pads is not None and not any(pads) and facts.same_shape(node)


def _is_unit_pool(node: gs.Node, facts: _Facts) -> bool:
    unit = all(k == 1 for name in ("kernel_shape", "strides") for k in node.attrs.get(name, [1]))
    return unit and not any(node.attrs.get("pads", [])) and facts.same_shape(node)


def _repeats_nothing(node: gs.Node, facts: _Facts) -> bool:
    repeats = constant_input(node, 1)
    return repeats is not None and bool((repeats == 1).all()) and facts.same_shape(node)


def _is_second_relu(node: gs.Node, _: _Facts) -> bool:
    producers = node.inputs[0].inputs
    return bool(producers) and producers[0].op in ("Relu", "Sigmoid", "Softmax", "Abs")


_CHECKS: dict[str, Callable[[gs.Node, _Facts], bool]] = {
    **dict.fromkeys(
        ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand"),
        lambda node, facts: facts.same_shape(node),
    ),
    "Dropout": _is_dropout_off,
    "Cast": lambda node, facts: facts.same_type(node),
    "Tile": _repeats_nothing,
    "Transpose": _keeps_order,
    "Slice": _is_whole_slice,
    "Pad": _pads_nothing,
    "Relu": _is_second_relu,
    "MaxPool": _is_unit_pool,
    "AveragePool": _is_unit_pool,
    "Clip": lambda node, _: (
        len([t for t in node.inputs if not t.is_empty()]) == 1
        and not {"min", "max"} & set(node.attrs)
    ),
    **dict.fromkeys(("Concat", "Sum", "Max", "Min", "Mean"), lambda node, _: len(node.inputs) == 1),
}


# -- branches that add a constant ------------------------------------------------------------------


def fold_constant_branches(model: Model, facts: Facts) -> tuple[Model, int]:
    """Replace what is constant in every channel, where it is added to what has its full shape.

    Args:
        model: a folded model.
        facts: what is known of its channels; of no more use where something is replaced.

    Returns:
        The model, and the number of operands that became constants.
    """
    graph, shapes, types, count = facts.graph, facts.shapes, model.types, 0
    for node in graph.nodes:
        if node.op not in ("Add", "Sub", "Mul") or len(node.inputs) != 2:
            continue
        for i, operand in enumerate(node.inputs):
            found, kind = facts.known(operand.name), types.get(operand.name)
            other = node.inputs[1 - i]
            if found is None or kind is None or not found.constant.all():
                continue
            if any(isinstance(t, gs.Constant) for t in node.inputs):
                continue
            if not shapes.same(other.name, node.outputs[0].name):
                continue
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type)
            values = facts.numbers.values(found.numbers).astype(dtype)
            values = values.reshape(-1, *[1] * (len(shapes.sizes(operand.name)) - found.axis - 1))
            node.inputs[i] = gs.Constant(f"{operand.name}/constant{i}", values)
            count += 1
            break
    return (rebuild(graph, model), count) if count else (model, count)
