"""Latency savings: how much of the time of each node leaves with its channels, on this machine.

Half of the channels seldom means half of the time: short vectors are filled up, layouts change,
small layers have overheads. So the model is cut evenly, whatever its scores say, and profiled
again: what each layer then saves is what its channels are worth.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.arrays import Bool
from onnxprune.decide.allocate import floor
from onnxprune.model.runner import Runner
from onnxprune.model.session import Feeds
from onnxprune.plans.cut import Cut
from onnxprune.plans.plan import plan_from_units
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.structure.structure import Structure
from onnxprune.structure.subject import Subject
from onnxprune.structure.unit_costs import weights_left
from onnxprune.timing.node_times import OTHERS, measure_nodes

VECTOR = 16
"""A multiple of what onnxruntime computes together on common processors, where halves are exact."""

LEAST = 0.05
"""The share of a node's time that counts as leaving with its channels, whatever was measured."""


def measure_savings(
    subject: Subject, feeds: Feeds, *, runner: Runner
) -> tuple[dict[str, float], dict[str, float]]:
    """Measure the time of each node, by its first output, and the part that channels can save.

    Args:
        subject: the model.
        feeds: what to run it on.
        runner: runs the models.

    Returns:
        The seconds of each node; and of these the seconds that go with the size of its weights,
        where those that do not are added up under
        :data:`~onnxprune.timing.node_times.OTHERS`, so that the total is the same.
    """
    kept = even_cut(subject.structure)
    plan = plan_from_units(subject.original.sha256, subject.structure, kept)
    smaller = rewrite(Cut.of(subject, plan))
    whole, cut = (measure_nodes(model, feeds, runner=runner) for model in (subject.folded, smaller))
    left = weights_left(subject.structure, subject.structure.units.keep(kept))
    return whole, responsive(whole, cut, left)


def even_cut(structure: Structure) -> Bool:
    """Keep half of every group, in blocks (:data:`VECTOR`) if it has one; ``bool [units]``."""
    kept = ~structure.prunable | floor(structure, np.zeros(len(structure.units)))
    for group in structure.groups:
        half = max(len(group.units) // 2, 1)
        kept[group.units[: half - half % VECTOR if half >= VECTOR else half]] = True
    return kept


def responsive(
    whole: Mapping[str, float], cut: Mapping[str, float], left: Mapping[str, float]
) -> dict[str, float]:
    """Return the part of each node's time that goes with its weights; the rest is fixed.

    Args:
        whole: seconds of each node of the original.
        cut: those of the smaller model.
        left: the share of the weights of each node that the smaller model has.
    """
    result = dict(whole)
    for node, share in left.items():
        if share < 1 and node in cut:
            seconds = whole[node]
            saved = (seconds - cut[node]) / (1 - share)
            result[node] = min(max(saved, LEAST * seconds), seconds)
            result[OTHERS] += seconds - result[node]
    return result
