"""Plan: decide what to prune, and stop there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Unpack

import numpy as np

from onnxprune.log import Progress, silent
from onnxprune.plans.plan import PruningPlan
from onnxprune.plans.request import Request
from onnxprune.plans.settings import Settings, taken
from onnxprune.run.open import open_model, open_study
from onnxprune.search.strategies import find_plan


def plan(
    model: str | Path,
    data: str | Path | None = None,
    request: Request | None = None,
    *,
    progress: Progress = silent,
    **settings: Unpack[Settings],
) -> PruningPlan:
    """Decide what to prune from an ONNX model, as :func:`prune` does, and stop there.

    Args:
        model: as for :func:`prune`, like all that follows.
        data: see above.
        request: see above; the plan remembers it.
        progress: see above.
        settings: see above.

    Returns:
        A plan that names all groups; write it with :func:`save_plan`.

    Raises:
        OnnxpruneError: for everything the user can act on.
        TypeError: for a setting that there is not.
    """
    asked, reading = taken("plan", settings, request)
    study = open_study(open_model(model), data, asked, reading, progress)
    log, _ = study.run.log, study.run.reported  # which warns of a model at chance level
    answer = find_plan(study)
    found, left = answer.plan, answer.study
    groups = left.subject.structure.groups
    keep = {g.name: found.keep.get(g.name, np.ones(len(g.units), np.bool_)) for g in groups}
    return replace(
        found,
        keep=keep,
        # With the alignment that a repair came to, the clean-up is the same when it is applied.
        request=replace(asked, align=left.align),
        nodes={g.name: g.nodes for g in groups},
        warnings=tuple(dict.fromkeys([*log.warnings, *answer.warnings])),
    )
