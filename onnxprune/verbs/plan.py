"""Plan: decide what to prune, and stop there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from onnxprune.log import Progress, silent
from onnxprune.plans.plan import PruningPlan
from onnxprune.plans.request import Request
from onnxprune.run.open import _load, _study
from onnxprune.search.strategies import find_plan


def plan(
    model: str | Path,
    data: str | Path | None,
    request: Request,
    *,
    eval_data: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    cache: bool = True,
    progress: Progress = silent,
) -> PruningPlan:
    """Decide what to prune from an ONNX model, as :func:`prune` does, and stop there.

    Args:
        model: path of the model.
        data: as for :func:`prune`.
        request: what is asked for; the plan remembers it.
        eval_data: as for :func:`prune`: it decides how ``data`` is divided.
        mean: channel means for image folders, on the 0..1 scale.
        std: channel standard deviations, likewise.
        cache: use and keep what was measured.
        progress: see :data:`~onnxprune.log.Progress`.

    Returns:
        A plan that names all groups; write it with :func:`save_plan`.

    Raises:
        OnnxpruneError: for everything the user can act on.
    """
    original = _load(model)
    study = _study(original, model, request, data, eval_data, mean, std, cache, progress)
    answer = find_plan(study)
    study, found = answer.study, answer.plan
    groups = study.subject.structure.groups
    keep = {g.name: found.keep.get(g.name, np.ones(len(g.units), np.bool_)) for g in groups}
    # With the alignment that a repair came to, the clean-up is the same when the plan is applied.
    request = replace(request, align=study.align)
    return replace(found, keep=keep, request=request, nodes={g.name: g.nodes for g in groups})
