"""Verify: two models must compute the same, on several sets of inputs.

A rewritten model is compared with its reference (see :mod:`onnxprune.rewrite.edits`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx
from onnx import helper

from onnxprune.errors import InternalError, ModelError
from onnxprune.model.counters import recounted
from onnxprune.model.folding import RANDOM
from onnxprune.model.model import Model
from onnxprune.model.nodes import captured
from onnxprune.model.observe import observe
from onnxprune.model.quantised import without_rounding
from onnxprune.model.runner import PLAIN, Runner
from onnxprune.model.session import Feeds, samples_of
from onnxprune.model.values import difference, is_empty, is_finite

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
        samples += samples_of(inputs)
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
