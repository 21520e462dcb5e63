"""Recoveries: lists of steps, none of which may raise the loss.

Each has an entry in :data:`onnxprune.plans.choices.RECOVERIES` that names its list. To add one: a
module with a list, and an entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from pkgutil import resolve_name

from onnxprune.plans.choices import Recovery
from onnxprune.recover import bias_shift, classifier, layers
from onnxprune.recover.ladder import ALL, Judge, Judgement, Ladder
from onnxprune.recover.task import Step, Task

NONE: Sequence[Step] = ()

BIAS: Sequence[Step] = (bias_shift.STEP,)

FULL: Sequence[Step] = (bias_shift.FIRST_STEP, layers.STEP, classifier.STEP)


def steps_of(recovery: Recovery) -> Sequence[Step]:
    """Return the steps of a recovery, in order."""
    found: Sequence[Step] = resolve_name(recovery.steps)
    return found


def needs_stats(recovery: Recovery) -> bool:
    """Whether a recovery looks at statistics of the original's activations."""
    return any(step.needs_stats for step in steps_of(recovery))


def recover(task: Task, recovery: Recovery, judge: Judge) -> Ladder:
    """Take the steps of a recovery.

    Args:
        task: what to make up for.
        recovery: an entry of :data:`onnxprune.plans.choices.RECOVERIES`.
        judge: measures a model; it is not called where the recovery has no steps.

    Returns:
        The best model, and the steps that led to it.
    """
    steps = steps_of(recovery)
    ladder = Ladder(task.pruned, judge if steps else lambda _: Judgement())
    if not task.cut.is_empty or task.changed:
        for step in steps:
            if step.in_trials or task.effort == ALL:
                step.climb(ladder, task)
    return ladder
