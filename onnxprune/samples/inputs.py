"""Inputs: real samples, or made-up ones, to observe a model on."""

from __future__ import annotations

from collections.abc import Mapping

from onnxprune.errors import ModelError, RunError
from onnxprune.model.model import Model
from onnxprune.model.observe import observe
from onnxprune.model.runner import Runner
from onnxprune.model.session import Feeds
from onnxprune.model.shapes import Shapes
from onnxprune.samples.holdout import Holdout, Subset, repeated
from onnxprune.samples.synthetic import SIZES, free_names, has_free_sizes, synthetic_feeds

VERIFY_SAMPLES = 32


def observe_inputs(
    model: Model,
    samples: Holdout | None,
    *,
    seed: int,
    runner: Runner,
    batch: int = 2,
    dims: Mapping[str, int] | None = None,
) -> Shapes:
    """Observe the shapes on real samples, else on the first ``batch`` synthetic ones that work.

    Args:
        model: the model.
        samples: its samples; None, or none to fit on, for synthetic inputs.
        seed: of synthetic inputs.
        runner: runs the models.
        batch: number of synthetic samples.
        dims: sizes of dynamic axes of synthetic inputs by name.

    Raises:
        ModelError: if the model cannot be run.
    """
    if samples is not None and len(samples.fit):
        return observe(model, _verification_feeds(model, samples.fit), runner=runner)
    failure = ModelError("no size of its dynamic axes was tried")
    for size in SIZES if has_free_sizes(model, dims or {}) else SIZES[:1]:
        feeds = synthetic_feeds(model, batch=batch, size=size, dims=dims, seed=seed)
        try:
            return observe(model, feeds, runner=runner)
        except ModelError as error:
            failure = error
    if isinstance(failure, RunError) and (names := free_names(model, dims or {})):
        raise ModelError(
            f"{failure}; if the model needs certain sizes of {', '.join(names)}, give them with "
            "--dim NAME=SIZE"
        )
    raise failure


def _verification_feeds(model: Model, subset: Subset) -> Feeds:
    """Take real samples: at least two, or exactly one batch where the model fixes it."""
    feeds = subset.some_feeds(model.fixed_batch or VERIFY_SAMPLES)
    rows = len(next(iter(feeds.values())))
    return repeated(feeds, model.fixed_batch or max(rows, 2))
