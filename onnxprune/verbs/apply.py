"""Apply: carry out a plan, edited or not."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from onnxprune.errors import PlanError
from onnxprune.log import Progress, silent
from onnxprune.plans.plan import PruningPlan
from onnxprune.plans.plan_file import (
    check_model,
    check_removals,
    check_structure,
    load_plan,
)
from onnxprune.plans.settings import Settings, taken
from onnxprune.report.result import PruneResult, assemble_result
from onnxprune.run.execute import execute, without_parts
from onnxprune.run.open import open_model, open_study
from onnxprune.search.strategies import check_latency


def apply(
    model: str | Path,
    plan: PruningPlan | str | Path,
    data: str | Path | None = None,
    *,
    progress: Progress = silent,
    **settings: Unpack[Settings],
) -> PruneResult:
    """Carry out a plan, edited or not: rewrite, verify, recover, report. Writes nothing.

    With the samples and settings that the plan was made with, the model is the one that
    :func:`prune` gives. A budget that an edited plan misses is a warning, as the edit decides.

    Args:
        model: path of the model that the plan was made for.
        plan: the plan, or the path of its file.
        data: as for :func:`prune`; None for a plan that was made without samples.
        progress: see :data:`~onnxprune.log.Progress`.
        settings: as for :func:`prune`, those that a plan leaves open; the others, and those that
            are not given, are what the plan was made with.

    Raises:
        PlanError: if the plan is damaged, or made for another model.
        OnnxpruneError: for everything else the user can act on.
        InternalError: if the result fails verification.
        TypeError: for a setting that a plan does not leave open.
    """
    if not isinstance(plan, PruningPlan):
        plan = load_plan(plan)
    if plan.request is None:
        raise PlanError("the plan holds no request; give it one with dataclasses.replace")
    asked, reading = taken("apply", settings, plan.request)
    original = open_model(model)
    check_model(plan, original.sha256)
    study = open_study(original, data, asked, reading, progress)
    before = study.run.reported
    if plan.removals:
        check_removals(plan, study.run.removals)
        study = without_parts(study, plan.removals)
    check_structure(plan, study.subject.structure)
    return assemble_result(check_latency(execute(study, plan)), str(model), before, edited=True)
