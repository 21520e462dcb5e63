"""Prune: a smaller model, proven and reported."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from onnxprune.log import Progress, silent
from onnxprune.plans.request import Request
from onnxprune.plans.settings import Settings, taken
from onnxprune.report.result import PruneResult, assemble_result
from onnxprune.run.open import open_model, open_study
from onnxprune.search.strategies import search


def prune(
    model: str | Path,
    data: str | Path | None = None,
    request: Request | None = None,
    *,
    progress: Progress = silent,
    **settings: Unpack[Settings],
) -> PruneResult:
    """Prune an ONNX model: measure, decide, rewrite, verify, recover, report. Writes nothing.

    Args:
        model: path of the model.
        data: labelled samples: a folder of class folders with images, or an .npz with ``y`` and an
            array for each model input (``x`` if there is one). None with ``random_inputs``, or
            with ``lossless``.
        request: what is asked for; None for what the settings say.
        progress: see :data:`~onnxprune.log.Progress`.
        settings: of the request, which they change, and of reading the samples: see
            :class:`~onnxprune.plans.request.Request` and
            :class:`~onnxprune.plans.reading.Reading`.

    Returns:
        The pruned model and its report; write it with :func:`save`.

    Raises:
        OnnxpruneError: for everything the user can act on (see :mod:`onnxprune.errors`).
        InternalError: if the result fails verification.
        TypeError: for a setting that there is not.
    """
    asked, reading = taken("prune", settings, request)
    study = open_study(open_model(model), data, asked, reading, progress)
    before = study.run.reported
    with study.run.log.stage("search"):
        outcome = search(study)
    return assemble_result(outcome, str(model), before)
