"""Division: let as much of a sparsity as the accuracy allows leave with channels, zero the rest.

Zeros do not make a model faster, so the channels that leave beside them are those that save the
most operations. They may cost no more than the default drop beyond what zeros alone cost, which is
the price of what was asked for. That is decided by trials, whose few samples leave more to judge
them on. A bound that was asked for is one on all that is lost, and what keeps it is carried out
with all samples before it counts.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from onnxprune.measure.accuracy import Accuracy
from onnxprune.plans.budgets import KINDS, Budget
from onnxprune.plans.plan import PruningPlan
from onnxprune.recover.ladder import QUICK
from onnxprune.run.execute import Outcome, execute, execute_quickly
from onnxprune.run.gates import costs_little_more, keeps_drop
from onnxprune.run.run import Run
from onnxprune.run.study import Study
from onnxprune.search.candidates import promising, proven
from onnxprune.search.strategy import Answer, Strategy
from onnxprune.timing.vector_width import channel_block

SHARES = (1.0, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1, 0.0)
"""Shares of a sparsity that leave with channels, in the order of preference: all of its weights, or
as large a share of the operations. What lies closer together, few samples cannot tell apart."""

ZEROS = len(SHARES) - 1
"""The last: zeros alone."""

JUDGED = 1024
"""Samples to judge trials on, where so many neither were fitted on nor are only to report; more if
more are to decide."""


def share_between(study: Study, sparsity: float) -> Answer:
    """Reach a sparsity, and let as much of it as the accuracy allows leave with channels.

    Args:
        study: of the model, with samples that decide.
        sparsity: the share of its weights that is to go.

    Returns:
        The plan; carried out where a bound on the accuracy decides.

    Raises:
        BudgetError: if zeros alone cannot reach it.
    """
    bounded = study.run.request.bounded

    @cache
    def plan(k: int) -> PruningPlan:
        return _plan(study, sparsity, SHARES[k])

    @cache
    def trial(k: int) -> Accuracy | None:
        found = execute_quickly(study, lambda: plan(k))
        if found is None:
            return None
        return found.selected if bounded else _judged(study, found)

    def promises(k: int) -> bool:
        if bounded:
            return keeps_drop(study, trial(k))
        return costs_little_more(study, trial(k), trial(ZEROS))

    first = promising(len(SHARES), promises)
    if not bounded:
        return Answer(study, plan(first))
    found = proven(
        len(SHARES),
        first,
        1,
        lambda k: execute(study, plan(k)),
        lambda outcome: keeps_drop(study, outcome.selected),
    )
    return Answer.of(found)


def _judged(study: Study, trial: Outcome) -> Accuracy | None:
    """Measure a trial on the samples that decide, and on those to fit on that it spared."""
    select = study.run.samples.select
    spared = QUICK.spared(study.run.samples.fit).at_most(JUDGED - len(select))
    if not len(spared):
        return trial.selected
    rows = np.concatenate([select.rows, spared.rows])
    return study.run.accuracy(trial.model, replace(select, rows=rows))


def _plan(study: Study, sparsity: float, share: float) -> PruningPlan:
    """Let a share of a sparsity leave with channels, and zero the rest.

    Zeros make up for what channels miss, so these can have the widths that run fastest.
    """
    decider = study.decider
    if share == 0.0:
        return decider.zeros(sparsity)
    weights, macs = (
        Budget(KINDS[kind], 1 - share * sparsity, f"sparsity {sparsity:g}")
        for kind in ("sparsity", "macs")
    )
    if share == 1.0:
        return decider.channels(weights)
    wide = decider if decider.align else decider.aligned(channel_block(study.run.runner.provider))
    base = wide.channels(macs)
    if wide.weights_left(base) < 1 - sparsity:
        base = wide.channels(weights)
    return decider.zeros(sparsity, base)


def _meet(study: Study) -> Answer:
    return share_between(study, study.run.request.sparsity or 0.0)


def _fits(run: Run) -> bool:
    request = run.request
    return request.mode == "auto" and request.sparsity is not None and run.selected is not None


STRATEGY = Strategy("channels and zeros", _fits, _meet)
