"""Observe the shape of every tensor by running the model at two sizes of its dynamic axes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxprune.errors import ModelError
from onnxprune.folding import SMALL, computed_constants
from onnxprune.graph import Model, Shapes, tensor_types
from onnxprune.labels import Array
from onnxprune.session import Feeds, Session
from onnxprune.storage import draft, nbytes

_PREFIX = "onnxprune/shape/"


def observe(model: Model, feeds: Feeds, *, threads: int = 0) -> Shapes:
    """Run the model on ``feeds`` and on a second set with every dynamic axis changed.

    Args:
        model: the model.
        feeds: real or synthetic inputs with at least one sample on axis 0.
        threads: onnxruntime threads.

    Returns:
        Both shapes of every tensor, and the values of computed constants on which both runs
        agree. Where the model does not run with other spatial sizes, only the batch differs.
    """
    candidates = computed_constants(model.proto)
    proto, held = draft(model.proto)
    tensors = _add_shape_outputs(proto, set(candidates))
    session = Session(proto, threads=threads, optimize=False, held=held)
    shape_names = [_PREFIX + name for name in tensors]
    outputs = shape_names + list(candidates)

    def run(inputs: Feeds) -> Observed:
        values = session.run(inputs, outputs)
        shapes = {n: tuple(int(k) for k in v) for n, v in zip(tensors, values, strict=False)}
        constants = dict(zip(candidates, values[len(tensors) :], strict=True))
        shapes |= {n: tuple(v.shape) for n, v in constants.items()}
        shapes |= {n: tuple(v.shape) for n, v in inputs.items()}
        return shapes, constants

    first, constants = run(feeds)
    second, other = _second_run(model, feeds, run)
    # A large constant stays computed if folding it would make the file larger.
    graph = model.proto.graph
    others = [n for n in graph.node if not all(o in candidates for o in n.output)]
    staying = {name for node in others for name in node.input}
    sizes = {t.name: 0 if t.name in staying else nbytes(t) for t in graph.initializer}
    agreed = {
        name: value
        for name, value in constants.items()
        if value.shape == other[name].shape
        and np.array_equal(value, other[name])
        and value.nbytes <= max(SMALL, sum(sizes[s] for s in candidates[name]))
    }
    batch, other_batch = (
        max((shapes[name][0] for name in feeds if shapes[name]), default=1)
        for shapes in (first, second)
    )
    return Shapes(first, second, batch, other_batch, agreed)


Observed = tuple[dict[str, tuple[int, ...]], dict[str, Array]]


def _second_run(model: Model, feeds: Feeds, run: Callable[[Feeds], Observed]) -> Observed:
    dynamic = {
        spec.name: [k for k, n in enumerate(spec.shape) if not isinstance(n, int)]
        for spec in model.inputs
    }
    batch_only = {name: [k for k in axes if k == 0] for name, axes in dynamic.items()}
    for change in (dynamic, batch_only):
        if not any(change.values()):
            return run(feeds)
        try:
            return run({n: _grown(v, change.get(n, [])) for n, v in feeds.items()})
        except ModelError:
            continue
    raise ModelError(
        "the model runs with one batch size only although it declares a dynamic one; "
        "export it with a fixed batch size"
    )


def _grown(value: Array, axes: list[int]) -> Array:
    """Add one sample on axis 0, and double the other axes."""
    for axis in axes:
        extra = value.take([0], axis=axis) if axis == 0 else value
        value = np.concatenate([value, extra], axis=axis)
    return value


def _add_shape_outputs(proto: onnx.ModelProto, values: set[str]) -> list[str]:
    """Let a model return these values, and the shapes of all other computed tensors."""
    graph = proto.graph
    kinds = tensor_types(proto)
    tensors: list[str] = []
    del graph.output[:]
    for node in list(graph.node):
        for name in node.output:
            if not name or (name in kinds and not kinds[name].HasField("tensor_type")):
                continue
            if name in values:
                graph.output.append(helper.make_empty_tensor_value_info(name))
                continue
            tensors.append(name)
            graph.node.append(helper.make_node("Shape", [name], [_PREFIX + name]))
            graph.output.append(
                helper.make_tensor_value_info(_PREFIX + name, TensorProto.INT64, [None])
            )
    return tensors
