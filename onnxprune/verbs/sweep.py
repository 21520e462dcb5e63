"""Sweep: what accuracy is left at many budgets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from onnxprune.errors import BudgetError, OnnxpruneError
from onnxprune.log import Progress, silent
from onnxprune.measure.accuracy import Accuracy
from onnxprune.model import cost
from onnxprune.model.observe import observe
from onnxprune.plans.budgets import KINDS, Budget
from onnxprune.plans.request import Request
from onnxprune.plans.settings import Settings, taken
from onnxprune.report.curve import Curve, Point
from onnxprune.run.execute import execute
from onnxprune.run.open import open_model, open_study
from onnxprune.run.study import Study

RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Operations that remain, as fractions of the original's."""


def sweep_macs(study: Study, ratios: Sequence[float], model: str) -> Curve:
    """Prune a model to many ratios of its operations; nothing is measured twice.

    Args:
        study: the model.
        ratios: operations that remain, as fractions of the original's.
        model: what the model is called.
    """
    points = [_point(1.0, study.subject.cost, study.subject.cost, study.run.reported)]
    for ratio in sorted(set(ratios), reverse=True):
        try:
            plan = study.decider.channels(Budget(KINDS["macs"], ratio, f"macs {ratio:g}"))
        except BudgetError as error:
            study.run.log.warnings.append(str(error))
            break
        outcome = execute(study, plan)
        shapes = observe(outcome.model, study.run.feeds[0], runner=study.run.runner)
        after = cost.measure(outcome.model, shapes)
        accuracy = study.run.accuracy(outcome.model, study.run.samples.report)
        points.append(_point(ratio, study.subject.cost, after, accuracy))
        study.run.log.warnings += outcome.warnings
    return Curve(model, points, tuple(dict.fromkeys(study.run.log.warnings)))


def _point(
    requested: float, before: cost.Cost, after: cost.Cost, accuracy: Accuracy | None
) -> Point:
    return Point(
        requested,
        after.macs / max(before.macs, 1),
        after.params / max(before.params, 1),
        accuracy.value if accuracy else None,
        accuracy.standard_error if accuracy else None,
        accuracy.loss if accuracy else None,
    )


def sweep(
    model: str | Path,
    data: str | Path,
    ratios: Sequence[float] = RATIOS,
    *,
    progress: Progress = silent,
    **settings: Unpack[Settings],
) -> Curve:
    """Measure what accuracy is left at many budgets of operations, from one calibration.

    Args:
        model: path of the model.
        data: as for :func:`prune`.
        ratios: operations that remain, as fractions of the original's.
        progress: see :data:`~onnxprune.log.Progress`.
        settings: as for :func:`prune`, without budgets and what goes with them.

    Raises:
        OnnxpruneError: for everything the user can act on.
        TypeError: for a setting that it does not take.
    """
    for ratio in ratios:
        if not 0.0 < ratio < 1.0:
            raise OnnxpruneError(f"ratios must lie between 0 and 1; got {ratio:g}")
    base = Request(macs=max(ratios), mode="channels")
    asked, reading = taken("sweep", settings, base)
    study = open_study(open_model(model), data, asked, reading, progress)
    return sweep_macs(study, ratios, str(model))
