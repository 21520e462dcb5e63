"""Chunks: samples in as many at a time as the memory takes."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.model.model import Model
from onnxprune.model.session import Feeds
from onnxprune.model.shapes import Shapes
from onnxprune.model.stepwise import live_bytes
from onnxprune.samples.holdout import Subset, repeated

MEMORY = 1 << 30
"""Bytes of activations that recovery may hold; more samples than fit are left out."""

CHUNK = 64
"""Samples that are run at once where the model leaves it open."""


def sample_chunks(
    model: Model, shapes: Shapes, subset: Subset, memory: int = MEMORY
) -> list[Feeds]:
    """Read as many samples as a walk of two models may hold in memory, in equal chunks.

    Args:
        model: the larger of the two.
        shapes: its observed shapes.
        subset: the samples; they are thinned out evenly if there are too many.
        memory: bytes of activations.

    Returns:
        Inputs ``[samples, ...]`` by name, chunk by chunk.

    Raises:
        CalibrationError: if samples cannot be read.
    """
    each = 2 * live_bytes(model, shapes.first) / shapes.batch
    most = max(int(memory / max(each, 1.0)), model.fixed_batch or 2)
    taken = subset.at_most(most)
    size = model.fixed_batch or min(CHUNK, len(taken))
    return list(_full(Subset(subset.dataset, taken.rows, size), model.fixed_batch))


def _full(subset: Subset, fixed: int | None) -> Iterator[Feeds]:
    """Stream inputs; where the batch is fixed, samples that do not fill one are passed over.

    If not even the first batch is full, its samples are repeated until it is.
    """
    first = True
    for batch in subset.batches():
        if fixed is None or len(batch) == fixed:
            yield batch.feeds
        elif first:
            yield repeated(batch.feeds, fixed)
        first = False
