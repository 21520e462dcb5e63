"""Synthetic inputs: what to feed a model when there are no samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.graph import TensorSpec
from onnxprune.labels import Array


def synthetic_feeds(
    inputs: Sequence[TensorSpec], *, batch: int = 2, seed: int = 0
) -> dict[str, Array]:
    """Make inputs for observing shapes without data: normal floats, zeros for the rest.

    A dynamic axis 0 becomes ``batch``; other dynamic axes 224 for images, else 16.
    """
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for spec in inputs:
        is_float = np.issubdtype(spec.dtype, np.floating)
        other = 224 if is_float and len(spec.shape) == 4 else 16
        shape = [
            n if isinstance(n, int) and n > 0 else other if k else batch
            for k, n in enumerate(spec.shape)
        ]
        values = rng.standard_normal(shape) if is_float else np.zeros(shape)
        feeds[spec.name] = np.asarray(values, spec.dtype)
    return feeds
