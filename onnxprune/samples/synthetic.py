"""Synthetic inputs: what to feed a model when there are no samples."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from onnx import NodeProto

from onnxprune.arrays import Array
from onnxprune.errors import ModelError
from onnxprune.model.model import Model, TensorSpec

SIZES = (224, 32, 64, 16, 128, 256, 299, 384, 512, 8)
"""Sizes to try for dynamic axes other than the batch, until the model runs."""

MOST_ELEMENTS = 2**28

_CARRIERS = frozenset(
    {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Transpose"}
    | {"Slice", "Split", "Gather"}
)
_LOOKUPS = frozenset(
    {"Gather", "GatherElements", "GatherND", "Scatter", "ScatterElements", "ScatterND"}
)


def synthetic_feeds(
    model: Model,
    *,
    batch: int = 2,
    size: int = SIZES[0],
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
) -> dict[str, Array]:
    """Make inputs for a model: normal floats, valid indices, ones for masks.

    Args:
        model: the model to feed.
        batch: size of a dynamic axis 0, and of every other axis of that name.
        size: size of other dynamic axes.
        dims: sizes of dynamic axes by name, or by input and axis (``x:1``).
        seed: of the draws.

    Raises:
        ModelError: if an input declares a size that no machine could feed, or if ``dims`` names
            an axis that no input has.
    """
    wanted = dict(dims or {})
    known = {name for spec in model.inputs for k in _free(spec) for name in _names(spec, k)}
    if unknown := sorted(set(wanted) - known):
        raise ModelError(
            f"no input has a dynamic axis '{unknown[0]}' (--dim); expected one of "
            f"{', '.join(sorted(known)) or 'none: all sizes are fixed'}"
        )
    samples = {spec.shape[0] for spec in model.inputs if 0 in _free(spec)} - {""}
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for spec in model.inputs:
        shape = [
            n
            if isinstance(n, int) and k not in _free(spec)
            else next(
                (wanted[name] for name in _names(spec, k) if name in wanted),
                size if k and n not in samples else batch,
            )
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


def has_free_sizes(model: Model, dims: Mapping[str, int] | None = None) -> bool:
    """Whether an axis other than the batch is dynamic, and no size is given for it."""
    return bool(free_names(model, dims or {}, start=1))


def free_names(model: Model, dims: Mapping[str, int], start: int = 0) -> list[str]:
    """Name the dynamic axes, from axis ``start`` on, that no size is given for."""
    names = [
        _names(spec, k)
        for spec in model.inputs
        for k in _free(spec)
        if k >= start and not dims.keys() & set(_names(spec, k))
    ]
    return list(dict.fromkeys(own[0] for own in names))


def _free(spec: TensorSpec) -> list[int]:
    """Return the dynamic axes of an input; a declared size of 0 says nothing."""
    return [k for k, n in enumerate(spec.shape) if not isinstance(n, int) or n <= 0]


def _names(spec: TensorSpec, axis: int) -> list[str]:
    """Return what a dynamic axis is called."""
    own = spec.shape[axis]
    place = f"{spec.name}:{axis}"
    return [own, place] if isinstance(own, str) and own else [place]


def _table_rows(model: Model, spec: TensorSpec) -> int | None:
    """Return the rows of the smallest table that an integer input looks up in.

    Of a table that is computed only two are certain to be there.
    """
    tables = {t.name: tuple(t.dims) for t in model.proto.graph.initializer}
    carried, rows = {spec.name}, []
    for node in model.proto.graph.node:
        if node.op_type in _CARRIERS and node.input[0] in carried:
            carried.update(node.output)
        elif node.op_type in _LOOKUPS and node.input[1] in carried:
            table = tables.get(node.input[0]) if node.op_type == "Gather" else None
            rows.append(table[_axis(node)] if table else 2)
    return min(rows, default=None)


def _axis(node: NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), 0)
