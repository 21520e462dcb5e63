"""Recovery: run the steps of a recovery, and accept each only if it does no harm.

A step is accepted if the loss on the *select* part does not get worse; so no step ever raises
it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from onnxprune.arrays import Array
from onnxprune.graph import Model, Shapes
from onnxprune.holdout import Part, Progress, silent
from onnxprune.layers import affected, prepare
from onnxprune.least_squares import Fit, fit_layers
from onnxprune.pruning_plan import PruningPlan
from onnxprune.refit import refit_classifier
from onnxprune.requantise import pack
from onnxprune.session import Feeds
from onnxprune.structure import Structure
from onnxprune.unfold import MatrixForm
from onnxprune.walk import Walk, live_bytes

MEMORY = 1 << 30
"""Bytes of activations that recovery may hold; more samples than fit are left out."""

CHUNK = 64
"""Samples that are run at once where the model leaves it open."""


@dataclass(frozen=True)
class Effort:
    """How much of the samples a recovery uses.

    Attributes:
        samples: the most samples to fit on; None for all.
        rows: share of the rows that a layer is fitted on otherwise.
    """

    samples: int | None = None
    rows: float = 1.0

    def thinned(self, part: Part) -> Part:
        """Return at most that many samples of a part, spread evenly."""
        return part if self.samples is None else part.at_most(self.samples)

    def spared(self, part: Part) -> Part:
        """Return the samples of a part that are not used."""
        return replace(part, rows=np.setdiff1d(part.rows, self.thinned(part).rows))


ALL = Effort()
"""For the result."""

QUICK = Effort(samples=512, rows=0.1)
"""For candidates on the way to a decision."""

Loss = Callable[[Model], float | None]
"""Returns the loss of a model on the select part; None if that is empty."""


@dataclass(frozen=True)
class Step:
    """One step of a recovery: the losses on the select part and whether it was accepted."""

    name: str
    loss_before: float | None
    loss_after: float | None
    accepted: bool


@dataclass
class Ladder:
    """The best model so far, and the steps that led to it.

    Args:
        model: the model to start from.
        loss: measures a model.
    """

    model: Model
    loss: Loss
    steps: list[Step] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.first = self.best = self.loss(self.model)

    def offer(self, name: str, candidate: Model) -> bool:
        """Accept a model if its loss is not worse; return whether it was."""
        after = self.loss(candidate)
        accepted = self.best is None or (after is not None and bool(after <= self.best))
        self.steps.append(Step(name, self.best, after, accepted))
        if accepted:
            self.model, self.best = candidate, after
        return accepted

    def refuse(self, name: str) -> None:
        """Warn that the last offer raised the loss."""
        step = self.steps[-1]
        assert step.loss_before is not None
        shown = "not finite" if step.loss_after is None else f"{step.loss_after:.4f}"
        self.warnings.append(
            f"{name} was not used: it raises the loss on held-out samples from "
            f"{step.loss_before:.4f} to {shown}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report's ``recovery``."""
        accepted = any(step.accepted for step in self.steps)
        result: dict[str, Any] = {"accepted": accepted}
        if self.best is not None:
            result |= {"loss_without": self.first, "loss_with": self.best}
        return result | {"steps": [asdict(step) for step in self.steps]}


def recover_layers(
    ladder: Ladder,
    original: Model,
    pruned: Model,
    structure: Structure,
    plan: PruningPlan,
    shapes: Shapes,
    part: Part,
    *,
    changed: Collection[str] = (),
    grow: bool = True,
    rows: float = 1.0,
    seed: int,
    threads: int,
    progress: Progress = silent,
) -> None:
    """Offer a ladder the pruned model with all its layers refitted (``--recover full``).

    If the loss gets worse, it is offered with the first half of the layers only, and so on.

    Args:
        ladder: where to offer it.
        original: the model that was traced.
        pruned: what rewriting it gave.
        structure: the result of tracing it.
        plan: what was removed.
        shapes: its observed shapes.
        part: the samples to fit on.
        changed: tensors that are not what they were, besides what the plan says.
        grow: whether layers may get biases that have none of their own.
        rows: see :class:`Effort`.
        seed: of the drawn positions.
        threads: onnxruntime threads.
        progress: told of each layer that is done.
    """
    prepared, every = prepare(pruned, structure, plan, shapes, grow=grow)
    layers = affected(prepared, every, changed)
    if not layers:
        return
    chunks = sample_chunks(original, shapes, part)
    fits = list(
        fit_layers(
            original,
            prepared,
            layers,
            chunks,
            rows=rows,
            seed=seed,
            threads=threads,
            progress=progress("recover", len(layers)),
        )
    )
    ladder.warnings += fit_warnings(fits)
    count = len(fits)
    while count:
        name = f"least squares, {count} of {len(fits)} layers"
        if ladder.offer(name, pack(with_constants(prepared, fits[:count]), pruned)):
            break
        if count == len(fits):
            ladder.refuse("least squares of all layers")
        count //= 2


def recover_classifier(
    ladder: Ladder,
    structure: Structure,
    plan: PruningPlan,
    shapes: Shapes,
    part: Part,
    output: str,
    *,
    grow: bool = True,
    threads: int,
) -> None:
    """Offer a ladder its model with the classifier refitted to the labels.

    The classifier is the layer that gives the class scores, if it is dense and reads one
    vector per sample. Nothing is offered where some of its weights have to stay zero, or
    where a class has no samples: fitted without them, it would unlearn that class.

    Args:
        ladder: where to offer it.
        structure: the result of tracing the original.
        plan: what was removed.
        shapes: observed shapes of the original.
        part: the labelled samples to fit on.
        output: name of the output with the class scores.
        grow: see :func:`recover_layers`.
        threads: onnxruntime threads.
    """
    prepared, layers = prepare(ladder.model, structure, plan, shapes, grow=grow)
    found = [
        la
        for la in layers
        if la.output == output
        and isinstance(la.form, MatrixForm)
        and not la.form.spatial
        and la.support is None
        and not la.shared
        and la.fixed is None
    ]
    if not found or len(shapes.sizes(output)) != 2:
        return
    layer = found[0]
    classes = max(layer.form.outputs, 2)  # a single output tells two apart
    absent = classes - len(np.unique(part.labels))
    if absent > 0:
        ladder.warnings.append(
            f"the classifier was not refitted to the labels: {absent} of its {classes} classes "
            "have no samples to fit on"
        )
        return
    features: list[Array] = []
    labels: list[Array] = []
    walk = None
    for batch in part.batches():
        if prepared.fixed_batch not in (None, len(batch)):
            continue
        walk = Walk(prepared, [batch.feeds], threads=threads) if walk is None else walk
        features.append(walk.on(batch.feeds, layer.data))
        labels.append(batch.labels)
    if walk is None:
        return
    values = np.concatenate(features).astype(np.float64)
    if values.ndim != 2 or len(values) != sum(map(len, labels)):
        return
    weights = layer.form.to_matrix(walk.constant(layer.weight))[0] * layer.alpha
    bias = np.broadcast_to(walk.constant(layer.bias).reshape(-1), len(weights))
    result = refit_classifier(values, np.concatenate(labels), weights, bias)
    if result is None:
        return
    constants = {
        layer.weight: layer.form.to_tensor(result[0][None]) / (layer.alpha or 1.0),
        layer.bias: result[1].reshape(layer.bias_shape),
    }
    if all(walk.holds(name, values) for name, values in constants.items()):
        for name, values in constants.items():
            walk.replace(name, values)
        ladder.offer("classifier", pack(walk.model(), ladder.model))


def fit_warnings(fits: Sequence[Fit]) -> list[str]:
    """Say which layers could not be fitted, or hardly so: one line for each reason."""
    layers: dict[str, list[str]] = {}
    for fit in fits:
        if fit.note:
            reason = f"{fit.note}; left as it was"
            layers.setdefault(reason, []).append(f"'{fit.layer.node}'")
        elif fit.rows < fit.inputs:
            reason = (
                "fewer rows to fit on than inputs; what they do not determine keeps its old "
                "weights; give more samples"
            )
            counts = f"({fit.rows} rows for {fit.inputs} inputs)"
            layers.setdefault(reason, []).append(f"'{fit.layer.node}' {counts}")
    return [
        f"{names[0]}: {reason}"
        if len(names) == 1
        else f"{len(names)} layers, the first {names[0]}: {reason}"
        for reason, names in layers.items()
    ]


def with_constants(model: Model, fits: Sequence[Fit]) -> Model:
    """Return a model with the new constants of these fits."""
    from onnx import ModelProto, numpy_helper
    from onnx.helper import tensor_dtype_to_np_dtype

    from onnxprune.storage import describe

    values: Mapping[str, Array] = {n: v for fit in fits for n, v in fit.constants.items()}
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    for tensor in proto.graph.initializer:
        if tensor.name in values:
            dtype = tensor_dtype_to_np_dtype(tensor.data_type)
            cast = np.ascontiguousarray(values[tensor.name], dtype=dtype)
            made = numpy_helper.from_array(cast, tensor.name)
            describe(made, tensor)
            tensor.CopyFrom(made)
    return Model(proto, model.sha256)


def sample_chunks(model: Model, shapes: Shapes, part: Part, memory: int = MEMORY) -> list[Feeds]:
    """Read as many samples as a walk of two models may hold in memory, in equal chunks.

    Args:
        model: the larger of the two.
        shapes: its observed shapes.
        part: the samples; they are thinned out evenly if there are too many.
        memory: bytes of activations.
    """
    each = 2 * live_bytes(model, shapes.first) / shapes.batch
    most = max(int(memory / max(each, 1.0)), model.fixed_batch or 2)
    taken = part.at_most(most)
    size = model.fixed_batch or min(CHUNK, len(taken))
    return list(_full(Part(part.dataset, taken.rows, size), model.fixed_batch))


def _full(part: Part, fixed: int | None) -> Iterator[Feeds]:
    """Stream a part; where the batch is fixed, what does not fill one is left out."""
    first = True
    for batch in part.batches():
        if fixed is None or len(batch) == fixed:
            yield batch.feeds
        elif first:
            yield {n: np.resize(v, (fixed, *v.shape[1:])) for n, v in batch.feeds.items()}
        first = False
