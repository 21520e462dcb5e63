"""Rewrite: carry out a plan, and make the reference that proves it."""

from __future__ import annotations

from onnxprune.model.edit import edit, rebuild
from onnxprune.model.model import Model
from onnxprune.plans.cut import Cut
from onnxprune.rewrite.edits import EDITS


def rewrite(cut: Cut) -> Model:
    """Return a model without what leaves it."""
    graph = edit(cut.model)
    for kind in EDITS:
        kind.apply(graph, cut)
    return rebuild(graph, cut.model)


def masked(cut: Cut) -> Model:
    """Return a model that computes what the rewritten one has to, by masks instead of cuts."""
    graph = edit(cut.model)
    for kind in reversed(EDITS):
        kind.refer(graph, cut)
    return rebuild(graph, cut.model)
