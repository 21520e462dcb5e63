"""Subject: a model that was read, observed and traced."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune import cost
from onnxprune.errors import BudgetError, ModelError
from onnxprune.folding import fold
from onnxprune.graph import Model, Shapes
from onnxprune.holdout import Holdout, Part
from onnxprune.labels import Array
from onnxprune.observe import observe
from onnxprune.qoperators import separated
from onnxprune.quantised import weight_values
from onnxprune.request import Request
from onnxprune.session import Feeds
from onnxprune.structure import Structure, described
from onnxprune.synthetic import SIZES, has_free_sizes, synthetic_feeds
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
    model: Model, samples: Holdout | None, *, seed: int, threads: int, batch: int = 2
) -> tuple[Feeds, Shapes]:
    """Observe the shapes on real samples, else on the first ``batch`` synthetic ones that work."""
    if samples is not None and len(samples.fit):
        feeds = _verification_feeds(model, samples.fit)
        return feeds, observe(model, feeds, threads=threads)
    failure = ModelError("no size of its dynamic axes was tried")
    for size in SIZES if has_free_sizes(model) else SIZES[:1]:
        feeds = synthetic_feeds(model, batch=batch, size=size, seed=seed)
        try:
            return feeds, observe(model, feeds, threads=threads)
        except ModelError as error:
            failure = error
    raise failure


def _verification_feeds(model: Model, part: Part) -> Feeds:
    """Take real samples: at least two, or exactly one batch where the model fixes it."""
    feeds = part.some_feeds(model.fixed_batch or VERIFY_SAMPLES)
    rows = len(next(iter(feeds.values())))
    wanted = model.fixed_batch or max(rows, 2)
    return {n: np.resize(v, (wanted, *v.shape[1:])) for n, v in feeds.items()}


def trace_subject(original: Model, shapes: Shapes, request: Request) -> Subject:
    """Fold and trace a model.

    Raises:
        ModelError: if there is nothing to prune in the requested mode.
        BudgetError: if there are weights, but no rule for any of them.
    """
    folded = fold(original, shapes)
    costs = cost.measure(folded, shapes)
    folded, shapes = separated(folded, shapes)
    structure = trace(folded, shapes, exclude=request.exclude, allow_inexact=request.allow_inexact)
    subject = Subject(original, folded, shapes, structure, costs)
    if request.lossless:
        return subject
    if structure.untouched and not cost.counted(structure):
        best = 0 if request.budget in ("sparsity", "layers") else 1
        raise BudgetError(
            f"{request.goal} cannot be reached: the best achievable is {best}, since "
            f"{described(structure.untouched)}; see 'onnxprune inspect'"
        )
    if not cost.counted(structure):
        raise ModelError(
            "the model has no prunable weight: no Conv, ConvTranspose, Gemm or MatMul with a "
            "constant weight was found"
        )
    if request.mode == "channels" and not structure.groups:
        first = structure.frozen[0] if structure.frozen else None
        why = f"; '{first.tensor}' {first.reason} (node {first.node})" if first else ""
        why = f": {described(structure.untouched)}" if structure.untouched else why
        raise ModelError(
            f"no channel of the model can be removed{why}; see 'onnxprune inspect', or use "
            "--mode weights"
        )
    return subject
