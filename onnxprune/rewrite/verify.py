"""Verify: a rewritten model must compute what the original computes without its channels.

The reference is the original with every removed channel multiplied by zero at the input of
each operator that sums over it; not where it is produced, where Sigmoid(0) = 0.5 and biases
would leak. For zeroed weights it is the original with its weights times their mask. Where the
user allows inexact normalisation, the reference normalises over the kept channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from onnxprune.arrays import Array, Bool
from onnxprune.errors import InternalError, ModelError
from onnxprune.model.counters import recounted
from onnxprune.model.edit import edit, node_id, rebuild
from onnxprune.model.folding import RANDOM
from onnxprune.model.model import UNPACKS, Model, captured, tensor_types
from onnxprune.model.observe import observe
from onnxprune.model.quantised import without_rounding
from onnxprune.model.runner import PLAIN, Runner
from onnxprune.model.session import Feeds
from onnxprune.model.values import difference, is_empty, is_finite
from onnxprune.plans.cut import Cut
from onnxprune.structure.structure import Inexact, Structure

LIMIT = 1e-3
LIMIT_HALF = 1e-2
_BOUNDED = frozenset({"Sigmoid", "HardSigmoid", "Softmax", "Tanh", "Softsign", "Erf"})

LIMIT_STEPS = 5e-2
"""Relative error up to which a few values of a quantised model that were rounded the other way,
each by a whole step, may explain it; the models must then agree without the rounding."""


@dataclass(frozen=True)
class Verification:
    """How far a model is from its reference, over all outputs.

    ``max_rel_error`` is ``max_abs_error`` divided by the largest absolute reference value;
    ``samples`` are those of all sets of inputs that were compared.
    """

    max_abs_error: float
    max_rel_error: float
    samples: int


def masked(cut: Cut) -> Model:
    """Return a model with what leaves it multiplied by zero instead."""
    graph, structure, kept = edit(cut.model), cut.structure, cut.kept
    nodes = {node_id(node): node for node in graph.nodes}
    types = _types(cut.model)
    for sink in structure.sinks:
        keep = kept[sink.labels]
        if not keep.all():
            node = nodes[sink.node]
            source = node.inputs[sink.input]
            constant = isinstance(source, gs.Constant)
            dtype = source.values.dtype if constant else types.get(source.name, np.float32)
            mask = keep.reshape(-1, *[1] * (-sink.axis - 1)).astype(dtype)
            node.inputs[sink.input] = _times(graph, source, mask)
    for inexact in structure.inexact:
        _normalise_kept(graph, nodes[inexact.node], inexact, structure, kept, types)
    for name, stays in cut.plan.masks.items():
        tensor = graph.tensors()[name]
        for node in list(tensor.outputs):
            if node.op in UNPACKS:
                output, node.outputs[0] = node.outputs[0], gs.Variable(f"{name}/unpacked")
                dtype = (
                    helper.tensor_dtype_to_np_dtype(node.attrs["to"])
                    if node.op == "Cast"
                    else node.inputs[1].values.dtype
                )
                _times(graph, node.outputs[0], stays.astype(dtype), output)
                continue
            for i, operand in enumerate(node.inputs):
                if operand is tensor:
                    node.inputs[i] = _times(graph, tensor, stays.astype(tensor.values.dtype))
    return rebuild(graph, cut.model)


def _times(
    graph: gs.Graph, tensor: gs.Tensor, mask: Array, result: gs.Variable | None = None
) -> gs.Variable:
    name = f"onnxprune/mask/{len(graph.nodes)}"
    result = gs.Variable(name) if result is None else result
    inputs = [tensor, gs.Constant(f"{name}/values", mask)]
    graph.nodes.append(gs.Node("Mul", name, inputs=inputs, outputs=[result]))
    return result


def _normalise_kept(
    graph: gs.Graph,
    node: gs.Node,
    inexact: Inexact,
    structure: Structure,
    kept: Bool,
    dtypes: Mapping[str, np.dtype[np.generic]],
) -> None:
    """Let a node see the kept channels only, and put its results back between zeros."""
    for (i, axis), labels in inexact.inputs.items():
        if not kept[labels].all():
            source, index = node.inputs[i], np.flatnonzero(kept[labels])
            node.inputs[i] = _picked(graph, source, index, axis)
    for sizes in structure.sizes:
        if sizes.node == inexact.node and isinstance(sizes.place, str):
            node.attrs[sizes.place] = int(kept[sizes.counted[0]].sum())
    for (o, axis), labels in inexact.outputs.items():
        keep = kept[labels]
        if keep.all():
            continue
        output, compact = node.outputs[o], gs.Variable(f"{node.outputs[o].name}/compact/{axis}")
        node.outputs[o] = compact
        spread = _picked(graph, compact, np.maximum(np.cumsum(keep) - 1, 0), axis)
        mask = keep.reshape(-1, *[1] * (-axis - 1)).astype(dtypes.get(output.name, np.float32))
        _times(graph, spread, mask, output)


def _picked(graph: gs.Graph, source: gs.Tensor, index: Array, axis: int) -> gs.Variable:
    name = f"onnxprune/pick/{len(graph.nodes)}"
    result = gs.Variable(name)
    inputs = [source, gs.Constant(f"{name}/index", index.astype(np.int64))]
    graph.nodes.append(
        gs.Node("Gather", name, inputs=inputs, outputs=[result], attrs={"axis": axis})
    )
    return result


def _types(model: Model) -> dict[str, np.dtype[np.generic]]:
    return {
        name: np.dtype(helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type))
        for name, kind in tensor_types(model.proto).items()
        if kind.tensor_type.elem_type
    }


def compare(
    reference: Model, candidate: Model, feeds: Sequence[Feeds], *, runner: Runner = PLAIN
) -> Verification:
    """Run two models on the same inputs, one set after the other, and compare all their outputs.

    Where an output is empty on all of them, because nothing was found in the data, both models
    are compared once more with what counts in the data made to find something.

    Raises:
        ModelError: if an output of the reference is not finite, or empty all the same: that
            cannot be compared.
    """
    result, empty = _compare_outputs(reference, candidate, feeds, runner)
    if not empty:
        return result
    pair = [_counting(model, feeds, runner) for model in (reference, candidate)]
    if pair[0] and pair[1]:
        again, empty = _compare_outputs(pair[0], pair[1], feeds, runner)
        result = max(result, again, key=lambda v: v.max_rel_error)
    if empty:
        raise ModelError(
            f"output '{sorted(empty)[0]}' is empty on all {len(feeds)} sets of inputs that were "
            "tried, so nothing is known of it and a rewrite cannot be verified; give samples "
            "(--calib) on which it is not"
        )
    return result


def _counting(model: Model, feeds: Sequence[Feeds], runner: Runner) -> Model | None:
    """Return a model whose counters find something; None if it has none."""
    shapes = observe(model, feeds[0], runner=runner)
    proto = recounted(model.proto, model.opset, shapes.first)
    return replace(model, proto=proto) if proto else None


def _compare_outputs(
    reference: Model, candidate: Model, feeds: Sequence[Feeds], runner: Runner
) -> tuple[Verification, set[str]]:
    """Compare two models; return the outputs that are empty on all inputs, too."""
    optimize = not _is_quantised(reference)
    sessions = [runner.session(m.proto, optimize=optimize) for m in (reference, candidate)]
    names = [spec.name for spec in reference.outputs]
    absolute, relative, samples, empty = 0.0, 0.0, 0, set(names)
    for inputs in feeds:
        samples += max((len(v) for v in inputs.values() if v.ndim), default=1)
        values = [session.run(inputs) for session in sessions]
        for name, expected, got in zip(names, *values, strict=True):
            if not is_finite(expected):
                raise ModelError(
                    f"output '{name}' is NaN or infinite on the samples, with or without "
                    "pruning, so a rewrite cannot be verified; check the model and the data"
                )
            error, scale = difference(expected, got)
            absolute = max(absolute, error)
            relative = max(relative, error / scale if error else 0.0)
            if not is_empty(expected):
                empty.discard(name)
    return Verification(absolute, relative, samples), empty


def _is_quantised(model: Model) -> bool:
    """Whether onnxruntime fuses quantised operators, whose rounding differs from what they replace.

    Masks keep it from that.
    """
    quantised = ("QuantizeLinear", "DequantizeLinear")
    return any(n.op_type in quantised for n in model.proto.graph.node)


def refuse_random(model: Model, feeds: Sequence[Feeds], *, runner: Runner = PLAIN) -> None:
    """Refuse a model whose outputs differ from run to run, if it does.

    Raises:
        ModelError: naming the operator that draws.
    """
    drawing = [n for n in model.proto.graph.node if n.op_type in RANDOM or captured(n)]
    if not drawing:
        return
    session = runner.session(model.proto, optimize=False)
    values = [session.run(feeds[0]) for _ in range(2)]
    for spec, one, other in zip(model.outputs, *values, strict=True):
        if is_finite(one) and difference(one, other)[0] != 0:
            node = next((n for n in drawing if n.op_type in RANDOM), drawing[0])
            raise ModelError(
                f"output '{spec.name}' of the model differs from run to run on the same inputs "
                f"(node '{node.name or node.output[0]}' {node.op_type} draws at random), so a "
                "rewrite cannot be verified; export the model without it, or with a constant in "
                "its place"
            )


def refuse_unsteady(
    model: Model, feeds: Sequence[Feeds], limit: float, *, runner: Runner = PLAIN
) -> None:
    """Refuse a model that makes more of rounding errors than a proof allows, if it does.

    Raises:
        ModelError: saying how far the model is from itself where onnxruntime computes its sums in
            another order.
    """
    sessions = [runner.session(model.proto, optimize=o) for o in (True, False)]
    for inputs in feeds:
        for spec, one, other in zip(model.outputs, *(s.run(inputs) for s in sessions), strict=True):
            error, scale = difference(one, other)
            if error > limit * scale:
                raise ModelError(
                    f"output '{spec.name}' of the model as it is changes by {error / scale:.2g} of "
                    "its size with the order in which onnxruntime sums, so a rewrite cannot be "
                    f"verified within {limit:g}: rounding errors grow from layer to layer; give "
                    "real samples (--calib), or check the weights"
                )


def verify(
    reference: Model, candidate: Model, feeds: Sequence[Feeds], what: str, *, runner: Runner = PLAIN
) -> Verification:
    """Like :func:`compare`, but refuse a model that differs.

    Raises:
        InternalError: if the relative error exceeds the limit (1e-3, float16 models 1e-2) or
            an output is not finite. Where a quantised model only differs by steps, the error
            without them counts; where outputs are bounded, and differ by next to nothing, that
            of what is bounded.
        ModelError: if the reference differs from itself by as much, or cannot be compared.
    """
    result = compare(reference, candidate, feeds, runner=runner)
    half = _has_half(reference.proto.graph.initializer)
    limit = LIMIT_HALF if half else LIMIT
    if not result.max_rel_error <= limit:
        refuse_random(reference, feeds, runner=runner)
        for applies, bypass in (
            (result.max_rel_error <= LIMIT_STEPS, without_rounding),
            (result.max_abs_error <= limit, _without_saturation),
        ):
            pair = [bypass(model) if applies else None for model in (reference, candidate)]
            if pair[0] and pair[1]:
                again = compare(pair[0], pair[1], feeds, runner=runner)
                if again.max_rel_error <= limit:
                    return again
        if not _is_quantised(reference):
            refuse_unsteady(reference, feeds, limit, runner=runner)
        raise InternalError(
            f"the {what} differs from its reference: relative error "
            f"{result.max_rel_error:.3g}, limit {limit:g}, on {result.samples} samples; "
            "nothing was written; please report this model"
        )
    return result


def _without_saturation(model: Model) -> Model | None:
    """Return what goes into the bounded functions at the outputs; None if there are none.

    Where they saturate, what is left of a value is smaller than a float can tell from another.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    returned = {v.name for v in proto.graph.output}
    found = [n for n in proto.graph.node if n.op_type in _BOUNDED and n.output[0] in returned]
    for node in found:
        node.CopyFrom(helper.make_node("Identity", node.input[:1], node.output, node.name))
    return replace(model, proto=proto) if found else None


def _has_half(tensors: Sequence[onnx.TensorProto]) -> bool:
    halves = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    return any(t.data_type in halves for t in tensors)
