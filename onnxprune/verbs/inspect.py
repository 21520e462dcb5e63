"""Inspect: what can be pruned from a model, and what cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from onnxprune.log import Progress, silent
from onnxprune.model import cost
from onnxprune.model.folding import fold
from onnxprune.model.model import Model
from onnxprune.model.qoperators import separated
from onnxprune.model.runner import Runner
from onnxprune.plans.request import Request
from onnxprune.plans.settings import Settings, taken
from onnxprune.report.inspection import Inspection
from onnxprune.run.open import open_model, open_study
from onnxprune.samples.inputs import observe_inputs
from onnxprune.structure.removals import find_removals
from onnxprune.structure.trace import trace


def inspect(
    model: str | Path,
    data: str | Path | None = None,
    *,
    progress: Progress = silent,
    **settings: Unpack[Settings],
) -> Inspection:
    """Find out what can be pruned from a model, and with samples what its rectifiers do.

    With samples also what cutting each group does to the outputs.

    Args:
        model: path of the model.
        data: as for :func:`prune`; None for the structure alone.
        progress: see :data:`~onnxprune.log.Progress`.
        settings: as for :func:`prune`, those that say what is looked at and how.

    Raises:
        OnnxpruneError: if the model or the samples cannot be used.
        TypeError: for a setting that it does not take.
    """
    asked, reading = taken("inspect", settings, Request(macs=0.5))
    original = open_model(model)
    if data is None:
        return _structure(original, asked)
    study = open_study(original, data, asked, reading, progress)
    run, structure = study.run, study.subject.structure
    trials = study.decider.sensitivities if structure.groups else []
    log, _ = run.log, run.reported  # which warns of a model at chance level
    return Inspection(
        structure,
        run.given.cost,
        study.knowledge.node_macs,
        run.removals,
        study.activations.rectifiers,
        trials,
        tuple(dict.fromkeys(log.warnings)),
    )


def _structure(original: Model, request: Request) -> Inspection:
    """Inspect a model without samples."""
    shapes = observe_inputs(
        original, None, seed=0, runner=Runner(request.threads), dims=request.dims
    )
    folded, shapes = separated(fold(original, shapes), shapes)
    structure = trace(folded, shapes, exclude=request.exclude, allow_inexact=request.allow_inexact)
    macs = cost.node_macs(folded, shapes)
    parts = find_removals(folded, shapes, structure, macs)
    return Inspection(structure, cost.measure(folded, shapes), macs, parts)
