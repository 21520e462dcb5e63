"""Lossless: only what does not change the outputs leaves."""

from __future__ import annotations

from onnxprune.run.execute import clean
from onnxprune.run.study import Study
from onnxprune.search.strategy import Answer, Strategy


def only_clean(study: Study) -> Answer:
    """Take out what computes nothing."""
    return Answer.of(clean(study))


STRATEGY = Strategy("lossless", lambda run: run.request.lossless, only_clean)
