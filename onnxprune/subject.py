"""Subject: a model that was read, observed and traced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune import cost
from onnxprune.arrays import Array
from onnxprune.errors import ModelError
from onnxprune.folding import fold
from onnxprune.graph import Model, Shapes
from onnxprune.holdout import Holdout, Part
from onnxprune.observe import observe
from onnxprune.qoperators import separated
from onnxprune.quantised import weight_values
from onnxprune.session import Feeds
from onnxprune.structure import Structure
from onnxprune.synthetic import SIZES, free_names, has_free_sizes, synthetic_feeds
from onnxprune.trace import trace

VERIFY_SAMPLES = 32


@dataclass(frozen=True)
class Subject:
    """A model that was read, observed and traced."""

    original: Model
    folded: Model
    shapes: Shapes
    structure: Structure
    cost: cost.Cost

    @property
    def weights(self) -> dict[str, Array]:
        """The values of the weight tensors that may be pruned, by name."""
        return weight_values(self.folded, {w.tensor for w in self.structure.weights})


def observe_inputs(
    model: Model,
    samples: Holdout | None,
    *,
    seed: int,
    threads: int,
    batch: int = 2,
    dims: Mapping[str, int] | None = None,
) -> Shapes:
    """Observe the shapes on real samples, else on the first ``batch`` synthetic ones that work.

    Args:
        model: the model.
        samples: its samples; None, or none to fit on, for synthetic inputs.
        seed: of synthetic inputs.
        threads: onnxruntime threads.
        batch: number of synthetic samples.
        dims: sizes of dynamic axes of synthetic inputs by name.

    Raises:
        ModelError: if the model cannot be run.
    """
    if samples is not None and len(samples.fit):
        return observe(model, _verification_feeds(model, samples.fit), threads=threads)
    failure = ModelError("no size of its dynamic axes was tried")
    for size in SIZES if has_free_sizes(model, dims or {}) else SIZES[:1]:
        feeds = synthetic_feeds(model, batch=batch, size=size, dims=dims, seed=seed)
        try:
            return observe(model, feeds, threads=threads)
        except ModelError as error:
            failure = error
    if names := free_names(model, dims or {}):
        raise ModelError(
            f"{failure}; if the model needs certain sizes of {', '.join(names)}, give them with "
            "--dim NAME=SIZE"
        )
    raise failure


def _verification_feeds(model: Model, part: Part) -> Feeds:
    """Take real samples: at least two, or exactly one batch where the model fixes it."""
    feeds = part.some_feeds(model.fixed_batch or VERIFY_SAMPLES)
    rows = len(next(iter(feeds.values())))
    wanted = model.fixed_batch or max(rows, 2)
    return {n: np.resize(v, (wanted, *v.shape[1:])) for n, v in feeds.items()}


def trace_subject(
    original: Model, shapes: Shapes, *, exclude: Sequence[str] = (), allow_inexact: bool = False
) -> Subject:
    """Fold and trace a model, whether there is anything to prune or not.

    Args:
        original: the model as it was read.
        shapes: its observed shapes.
        exclude: globs over node and initializer names; what matches keeps its size.
        allow_inexact: let channels leave across which something is normalised.
    """
    folded = fold(original, shapes)
    costs = cost.measure(folded, shapes)
    folded, shapes = separated(folded, shapes)
    structure = trace(folded, shapes, exclude=exclude, allow_inexact=allow_inexact)
    return Subject(original, folded, shapes, structure, costs)
