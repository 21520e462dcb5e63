"""Layers: a step of the recovery fits all layers of a pruned model to what they gave before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnxprune.linear.layer import affected, prepare
from onnxprune.linear.requantise import pack
from onnxprune.model.model import Model
from onnxprune.model.stepwise import Walk
from onnxprune.recover.ladder import Ladder
from onnxprune.recover.least_squares import Fit, fit_layers
from onnxprune.recover.task import Step, Task
from onnxprune.samples.chunks import sample_chunks


def recover_layers(ladder: Ladder, task: Task) -> None:
    """Offer a ladder the pruned model with all its layers fitted to those of the original.

    If that raises the loss, it is offered with the first half of the layers only, and so on.
    """
    prepared, every = prepare(task.pruned, task.cut, grow=task.grow)
    layers = affected(prepared, every, task.changed)
    if not layers:
        return
    chunks = sample_chunks(task.original, task.cut.shapes, task.subset)
    fits = list(
        fit_layers(
            task.original,
            prepared,
            layers,
            chunks,
            rows=task.effort.rows,
            seed=task.seed,
            runner=task.runner,
        )
    )
    ladder.warnings += fit_warnings(fits)
    count = len(fits)
    while count:
        name = f"least squares, {count} of {len(fits)} layers"
        if ladder.offer(name, pack(with_constants(prepared, fits[:count]), task.pruned)):
            break
        if count == len(fits):
            ladder.refuse("least squares of all layers")
        count //= 2


STEP = Step(recover_layers)


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
    walk = Walk(model, [])
    for fit in fits:
        for name, values in fit.constants.items():
            walk.replace(name, values)
    return replace(walk.model(), sha256=model.sha256)
