"""Observe the shape of every tensor by running the model twice.

The second run has other data and other sizes along every dynamic axis, and what counts in the
data gives another count. Only what is equal in both is taken to be fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxprune.arrays import Array
from onnxprune.errors import ModelError
from onnxprune.model.counters import recounted
from onnxprune.model.dynamic_axes import (
    DynamicAxis,
    NewSizes,
    all_resized,
    drawn,
    dynamic_axes,
    other_sizes,
    rearranged,
)
from onnxprune.model.folding import SMALL, Computed, computed_constants
from onnxprune.model.model import Model
from onnxprune.model.runner import PLAIN, Runner
from onnxprune.model.session import Feeds, Session
from onnxprune.model.shapes import Shapes
from onnxprune.model.storage import draft, nbytes
from onnxprune.model.values import is_empty, is_finite

_PREFIX = "onnxprune/shape/"

DRAWS = 4
"""Draws of inputs to compare models on, until no output is empty."""

Observed = tuple[dict[str, tuple[int, ...]], dict[str, Array]]
"""Shapes of tensors, and values of computed constants."""

Trial = Callable[[Feeds], Observed]
"""Runs a model on inputs."""

Draw = Callable[[Feeds, NewSizes, int], dict[str, Array]]
"""Makes inputs of other sizes from given ones; the number tells draws apart."""


def observe(model: Model, feeds: Feeds, *, runner: Runner = PLAIN) -> Shapes:
    """Run the model on ``feeds``, and on other data with every dynamic axis changed.

    Args:
        model: the model.
        feeds: real or synthetic inputs with at least one sample on axis 0.
        runner: runs the models.

    Returns:
        Both shapes of every tensor, the values of computed constants on which both runs agree,
        and inputs of the other sizes to compare models on. Where a dynamic axis works with one
        size only, nothing that depends on shapes is taken to be constant.

    Raises:
        ModelError: if the model does not run on ``feeds``, or not with another batch size
            although it declares that dynamic.
    """
    known = computed_constants(model)
    proto, held = draft(model.proto)
    tensors = _add_shape_outputs(proto, model.types, known.sources)

    def run_with(session: Session) -> Trial:
        names = [_PREFIX + name for name in tensors] + list(known.sources)

        def run(inputs: Feeds) -> Observed:
            values = session.run(inputs, names)
            shapes = {n: tuple(int(k) for k in v) for n, v in zip(tensors, values, strict=False)}
            constants = dict(zip(known.sources, values[len(tensors) :], strict=True))
            shapes |= {n: tuple(v.shape) for n, v in constants.items()}
            return shapes | {n: tuple(v.shape) for n, v in inputs.items()}, constants

        return run

    session = runner.session(proto, optimize=False, held=held)
    runs = [run_with(session)]
    first, constants = runs[0](feeds)
    if (other := recounted(proto, model.opset, first)) is not None:
        runs.insert(0, run_with(runner.session(other, optimize=False, held=held)))
    axes = dynamic_axes(model, feeds)
    second = _second_run(axes, feeds, runs)
    return Shapes(
        first,
        second.shapes,
        _batch(axes, feeds, first),
        _batch(axes, feeds, second.shapes),
        _agreed(model, known, constants, second),
        feeds=(feeds, _proof_feeds(session, [v.name for v in model.outputs], feeds, second)),
        loose=known.loosely if len(runs) == 1 or second.recounted else known.data_sized,
        stuck=tuple(map(str, second.stuck)),
    )


@dataclass(frozen=True)
class _Second:
    """A second run: what it gave, how its inputs were made, and which axes kept their size."""

    shapes: dict[str, tuple[int, ...]]
    constants: dict[str, Array]
    draw: Draw
    sizes: NewSizes
    recounted: bool
    stuck: tuple[DynamicAxis, ...] = ()


def _second_run(axes: Sequence[DynamicAxis], feeds: Feeds, runs: Sequence[Trial]) -> _Second:
    """Run on other data and sizes; where not all axes change at once, one after the other."""

    def attempt(sizes: NewSizes, run: Trial, stuck: Sequence[DynamicAxis] = ()) -> _Second | None:
        for draw in (drawn, rearranged):
            try:
                observed = run(draw(feeds, sizes, 1))
            except ModelError:
                continue
            return _Second(*observed, draw, sizes, run is not runs[-1], tuple(stuck))
        return None

    for run in runs:
        for sizes in all_resized(axes, feeds):
            if found := attempt(sizes, run):
                return found
    for run in runs:
        chosen: dict[tuple[str, int], int] = {}
        stuck = []
        for axis in axes:
            trials = (
                chosen | dict.fromkeys(axis.places, size) for size in other_sizes(axis, feeds)
            )
            works = next((sizes for sizes in trials if attempt(sizes, run)), None)
            if works is None:
                stuck.append(axis)
            else:
                chosen = works
        if any(axis.holds_samples for axis in stuck):
            continue
        if found := attempt(chosen, run, stuck):
            return found
    raise ModelError(
        "the model runs with one batch size only although it declares a dynamic one; "
        "export it with a fixed batch size"
    )


def _batch(axes: Sequence[DynamicAxis], feeds: Feeds, shapes: dict[str, tuple[int, ...]]) -> int:
    """Return the number of samples of a run."""
    for axis in axes:
        if axis.holds_samples:
            name, k = axis.places[0]
            return shapes[name][k]
    return max((shapes[name][0] for name in feeds if shapes[name]), default=1)


def _agreed(
    model: Model, known: Computed, constants: dict[str, Array], second: _Second
) -> dict[str, Array]:
    """Return the values of computed constants that both runs agree on.

    A large one stays computed if folding it would make the file larger.
    """
    nodes = model.proto.graph.node
    others = [n for n in nodes if not all(o in known.sources for o in n.output)]
    staying = {name for node in others for name in node.input}
    sizes = {n: 0 if n in staying else nbytes(t) for n, t in model.constants.items()}
    return {
        name: value
        for name, value in constants.items()
        if not (second.stuck and name in known.from_shapes)
        and value.shape == second.constants[name].shape
        and np.array_equal(value, second.constants[name])
        and value.nbytes <= max(SMALL, sum(sizes[s] for s in known.sources[name]))
    }


def _proof_feeds(
    session: Session, outputs: Sequence[str], feeds: Feeds, second: _Second
) -> dict[str, Array]:
    """Make inputs to compare models on: other data than was observed, at the second sizes.

    The outputs are finite on them, and not empty unless no draw gave any.
    """
    made = [second.draw(feeds, second.sizes, 2 + k) for k in range(DRAWS)]
    made.append(rearranged(feeds, second.sizes, 1))
    finite = []
    for inputs in made:
        try:
            values = session.run(inputs, outputs)
        except ModelError:
            continue
        if all(map(is_finite, values)):
            finite.append(inputs)
            if not any(map(is_empty, values)):
                return inputs
    return finite[0] if finite else rearranged(feeds, {}, 1)


def _add_shape_outputs(
    proto: onnx.ModelProto, kinds: Mapping[str, onnx.TypeProto], values: Collection[str]
) -> list[str]:
    """Let a model return these values, and the shapes of all other computed tensors, too.

    Returns:
        The tensors whose shapes it returns.
    """
    graph = proto.graph
    tensors: list[str] = []
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
