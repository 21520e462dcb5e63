"""Inspect: what can be pruned from a model, and what cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnxprune.log import Progress, silent
from onnxprune.model import cost
from onnxprune.model.folding import fold
from onnxprune.model.qoperators import separated
from onnxprune.model.runner import Runner
from onnxprune.plans.request import Request
from onnxprune.report.inspection import Inspection
from onnxprune.run.open import _load, _study
from onnxprune.samples.inputs import observe_inputs
from onnxprune.structure.removals import find_removals
from onnxprune.structure.trace import trace


def inspect(
    model: str | Path,
    data: str | Path | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    exclude: Sequence[str] = (),
    allow_inexact: bool = False,
    dims: Mapping[str, int] | None = None,
    threads: int = 0,
    batch_size: int = 32,
    progress: Progress = silent,
) -> Inspection:
    """Find out what can be pruned from a model, and with samples what its rectifiers do.

    With samples also what cutting each group does to the outputs.

    Raises:
        OnnxpruneError: if the model or the samples cannot be used.
    """
    original = _load(model)
    if data is None:
        shapes = observe_inputs(original, None, seed=0, runner=Runner(threads), dims=dims)
        folded, shapes = separated(fold(original, shapes), shapes)
        structure = trace(folded, shapes, exclude=exclude, allow_inexact=allow_inexact)
        macs = cost.node_macs(folded, shapes)
        parts = find_removals(folded, shapes, structure, macs)
        return Inspection(structure, cost.measure(folded, shapes), macs, parts)
    request = Request(
        macs=0.5,
        exclude=tuple(exclude),
        allow_inexact=allow_inexact,
        threads=threads,
        batch_size=batch_size,
    )
    study = _study(original, model, request, data, None, mean, std, True, progress)
    structure, found = study.subject.structure, study.activations.rectifiers
    trials = study.decider.sensitivities if structure.groups else []
    costs = study.run.given.cost, study.knowledge.node_macs
    return Inspection(structure, *costs, study.run.removals, found, trials)
