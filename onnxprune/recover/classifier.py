"""Classifier: a step of the recovery fits the last layer of a model to the labels.

Multinomial logistic regression on the features that the pruned model gives, with a ridge
towards the weights that it has.
"""

from __future__ import annotations

import numpy as np

from onnxprune.arrays import F64, I64, Array
from onnxprune.linear.layer import Layer, prepare
from onnxprune.linear.matrix_form import MatrixForm
from onnxprune.linear.requantise import pack
from onnxprune.model.stepwise import Walk
from onnxprune.recover.ladder import Ladder
from onnxprune.recover.task import Step, Task
from onnxprune.samples.holdout import Subset

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""Choices of the ridge, for features of unit variance; by the loss on the check samples."""

CHECK_EVERY = 4
"""One sample of so many is a check sample."""


def refit_classifier(
    features: F64, labels: I64, weights: F64, bias: F64
) -> tuple[F64, F64, float] | None:
    """Fit a linear classifier with softmax to labels.

    Args:
        features: ``float64 [samples, width]``.
        labels: ``int64 [samples]``.
        weights: ``float64 [classes, width]``, where to start and what to stay close to; a single
            row gives the log odds of class 1.
        bias: ``float64 [classes]``, likewise.

    Returns:
        The new weights and bias and the ridge, or None where no ridge lowers the loss on the
        check samples.
    """
    if len(weights) == 1:
        two = (np.vstack([np.zeros_like(weights), weights]), np.append(0.0, bias))
        result = refit_classifier(features, labels, *two)
        return result and (np.diff(result[0], axis=0), np.diff(result[1]), result[2])
    deviation = features.std(axis=0)
    deviation[deviation == 0] = 1.0
    mean = features.mean(axis=0)
    scaled = (features - mean) / deviation
    old = np.concatenate([weights * deviation, (bias + weights @ mean)[:, None]], axis=1)
    check = np.arange(len(labels)) % CHECK_EVERY == CHECK_EVERY - 1
    if not check.any() or check.all() or not np.isfinite(old).all():
        return None
    best, chosen = _loss(scaled[check], labels[check], old), None
    for ridge in RIDGES:
        found = _minimise(scaled[~check], labels[~check], old, ridge)
        loss = _loss(scaled[check], labels[check], found)
        if loss < best:
            best, chosen = loss, ridge
    if chosen is None:
        return None
    new = _minimise(scaled, labels, old, chosen)
    fitted = new[:, :-1] / deviation
    return fitted, new[:, -1] - fitted @ mean, chosen


def _scores(features: F64, parameters: F64) -> F64:
    result: F64 = features @ parameters[:, :-1].T + parameters[:, -1]
    return result


def _loss(features: F64, labels: I64, parameters: F64) -> float:
    from scipy.special import log_softmax

    logs = log_softmax(_scores(features, parameters), axis=1)
    return float(-logs[np.arange(len(labels)), labels].mean())


def _minimise(features: F64, labels: I64, old: F64, ridge: float) -> F64:
    from scipy.optimize import minimize
    from scipy.special import softmax

    rows = np.arange(len(labels))

    def objective(flat: F64) -> tuple[float, F64]:
        parameters = flat.reshape(old.shape)
        gap = softmax(_scores(features, parameters), axis=1)
        gap[rows, labels] -= 1.0
        gap /= len(labels)
        moved = parameters - old
        gradient = np.concatenate([gap.T @ features, gap.sum(axis=0)[:, None]], axis=1)
        value = _loss(features, labels, parameters) + 0.5 * ridge * float((moved**2).sum())
        return value, (gradient + ridge * moved).ravel()

    result = minimize(objective, old.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return np.asarray(result.x, dtype=np.float64).reshape(old.shape)


def recover_classifier(ladder: Ladder, task: Task) -> None:
    """Offer a ladder its model with the classifier refitted to the labels.

    The classifier is the layer that gives the class scores, if it is dense and reads one
    vector per sample. Nothing is offered where some of its weights have to stay zero, or
    where a class has no samples: fitted without them, it would unlearn that class.
    """
    prepared, layers = prepare(ladder.model, task.cut, grow=task.grow)
    layer = next((la for la in layers if _is_classifier(la, task)), None)
    if layer is None:
        return
    classes = max(layer.form.outputs, 2)  # a single output tells two apart
    absent = classes - len(np.unique(task.subset.labels))
    if absent > 0:
        ladder.warnings.append(
            f"the classifier was not refitted to the labels: {absent} of its {classes} classes "
            "have no samples to fit on"
        )
        return
    walk = Walk(prepared, [{}], runner=task.runner)
    found = _features(walk, layer, task.subset, prepared.fixed_batch)
    if found is None:
        return
    weights = layer.form.to_matrix(walk.constant(layer.weight))[0] * layer.alpha
    bias = np.broadcast_to(walk.constant(layer.bias).reshape(-1), len(weights))
    result = refit_classifier(*found, weights, bias)
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


def _is_classifier(layer: Layer, task: Task) -> bool:
    """Whether a layer gives the class scores, and may be fitted."""
    return (
        layer.output == task.output
        and len(task.cut.shapes.sizes(task.output)) == 2
        and isinstance(layer.form, MatrixForm)
        and not layer.form.spatial
        and not layer.shared
        and layer.support is None is layer.fixed
    )


def _features(
    walk: Walk, layer: Layer, subset: Subset, fixed_batch: int | None
) -> tuple[F64, I64] | None:
    """Return what the classifier reads, and the labels; None if it reads no vector per sample.

    Samples that do not fill a fixed batch are left out.

    Returns:
        ``float64 [samples, width]`` and ``int64 [samples]``.
    """
    read: list[Array] = []
    labels: list[I64] = []
    for batch in subset.batches():
        if fixed_batch in (None, len(batch)):
            read.append(walk.on(batch.feeds, layer.data))
            labels.append(batch.labels)
    if not read or read[0].ndim != 2 or sum(map(len, read)) != sum(map(len, labels)):
        return None
    return np.concatenate(read).astype(np.float64), np.concatenate(labels)


STEP = Step(recover_classifier)
