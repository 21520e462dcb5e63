"""Synthetic inputs: what to feed a model when there are no samples."""

from __future__ import annotations

import math

import numpy as np
from onnx import NodeProto

from onnxprune.errors import ModelError
from onnxprune.graph import Model, TensorSpec
from onnxprune.labels import Array

SIZES = (224, 32, 64, 16, 128, 256, 299, 384, 512, 8)
"""Sizes to try for dynamic axes other than the batch, until the model runs."""

MOST_ELEMENTS = 2**28

_CARRIERS = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})


def synthetic_feeds(
    model: Model, *, batch: int = 2, size: int = SIZES[0], seed: int = 0
) -> dict[str, Array]:
    """Make inputs for a model: normal floats, valid indices, ones for masks.

    Args:
        model: the model to feed.
        batch: size of a dynamic axis 0.
        size: size of other dynamic axes.
        seed: of the draws.

    Raises:
        ModelError: if an input declares a size that no machine could feed.
    """
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for spec in model.inputs:
        shape = [
            n if isinstance(n, int) and n > 0 else size if k else batch
            for k, n in enumerate(spec.shape)
        ]
        if math.prod(shape) > MOST_ELEMENTS:
            raise ModelError(
                f"input '{spec.name}' declares shape {list(spec.shape)}: that is too large to "
                "be made up; give samples, or export the model with the sizes it is used with"
            )
        values: Array
        if np.issubdtype(spec.dtype, np.floating):
            values = rng.standard_normal(shape)
        elif (rows := _table_rows(model, spec)) is not None:
            values = rng.integers(0, rows, shape)
        else:
            values = np.ones(shape)
        feeds[spec.name] = np.asarray(values, spec.dtype)
    return feeds


def has_free_sizes(model: Model) -> bool:
    """Whether an axis other than the batch is dynamic."""
    return any(not isinstance(n, int) or n <= 0 for s in model.inputs for n in s.shape[1:])


def _table_rows(model: Model, spec: TensorSpec) -> int | None:
    """Return the rows of the smallest constant table that an integer input looks up in."""
    tables = {t.name: tuple(t.dims) for t in model.proto.graph.initializer}
    carried, rows = {spec.name}, []
    for node in model.proto.graph.node:
        if node.op_type in _CARRIERS and node.input[0] in carried:
            carried.update(node.output)
        elif node.op_type == "Gather" and node.input[1] in carried and node.input[0] in tables:
            rows.append(tables[node.input[0]][_axis(node)])
    return min(rows, default=None)


def _axis(node: NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), 0)
