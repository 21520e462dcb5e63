"""Apply: carry out a plan, edited or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxprune.errors import PlanError
from onnxprune.log import Progress, silent
from onnxprune.plans.plan import PruningPlan
from onnxprune.plans.plan_file import (
    check_model,
    check_removals,
    check_structure,
    load_plan,
)
from onnxprune.report.result import PruneResult, assemble_result
from onnxprune.run.execute import execute, without_parts
from onnxprune.run.open import _load, _study
from onnxprune.search.strategies import check_latency


def apply(
    model: str | Path,
    plan: PruningPlan | str | Path,
    data: str | Path | None = None,
    *,
    max_drop: float | None = None,
    min_accuracy: float | None = None,
    recover: str | None = None,
    output: str | None = None,
    seed: int | None = None,
    threads: int | None = None,
    batch_size: int | None = None,
    latency_batch: int | None = None,
    eval_data: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    cache: bool = True,
    progress: Progress = silent,
) -> PruneResult:
    """Carry out a plan, edited or not: rewrite, verify, recover, report. Writes nothing.

    With the samples and settings that the plan was made with, the model is the one that
    :func:`prune` gives. A budget that an edited plan misses is a warning, as the edit decides.

    Args:
        model: path of the model that the plan was made for.
        plan: the plan, or the path of its file.
        data: as for :func:`prune`; None for a plan that was made without samples.
        max_drop: like the settings up to ``latency_batch`` as for :func:`prune`, but None is
            what the plan was made with.
        min_accuracy: accuracy to be kept.
        recover: ``full``, ``bias`` or ``none``.
        output: name of the output with the class scores.
        seed: of everything that is drawn.
        threads: onnxruntime threads.
        batch_size: samples per run.
        latency_batch: samples of a run whose latency is measured.
        eval_data: samples to report accuracy on; without it a part of ``data`` is held out.
        mean: channel means for image folders, on the 0..1 scale.
        std: channel standard deviations, likewise.
        cache: use and keep what was measured.
        progress: see :data:`~onnxprune.log.Progress`.

    Raises:
        PlanError: if the plan is damaged, or made for another model.
        OnnxpruneError: for everything else the user can act on.
        InternalError: if the result fails verification.
    """
    if not isinstance(plan, PruningPlan):
        plan = load_plan(plan)
    if plan.request is None:
        raise PlanError("the plan holds no request; give it one with dataclasses.replace")
    changes = {
        "max_drop": max_drop,
        "min_accuracy": min_accuracy,
        "recover": recover,
        "output": output,
        "seed": seed,
        "threads": threads,
        "batch_size": batch_size,
        "latency_batch": latency_batch,
    }
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    request = replace(plan.request, **given)
    original = _load(model)
    check_model(plan, original.sha256)
    study = _study(original, model, request, data, eval_data, mean, std, cache, progress)
    before = study.run.reported
    if plan.removals:
        check_removals(plan, study.run.removals)
        study = without_parts(study, plan.removals)
    check_structure(plan, study.subject.structure)
    return assemble_result(check_latency(execute(study, plan)), str(model), before, edited=True)
