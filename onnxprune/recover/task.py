"""Task: what a recovery has to make up for, and the steps by which it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnxprune.measure.statistics import ActivationStats
from onnxprune.model.model import Model
from onnxprune.model.runner import Runner
from onnxprune.plans.cut import Cut
from onnxprune.recover.ladder import Effort, Ladder
from onnxprune.samples.holdout import Subset


@dataclass(frozen=True)
class Task:
    """A pruned model, and all that there is to give its accuracy back.

    Attributes:
        original: the model as it was given, folded; what it computes is wanted.
        pruned: what is left of it, as rewriting it gave it.
        cut: the channels and weights that left; of ``original``, or of what was left of that
            once whole parts were gone.
        changed: names of tensors that differ from the original's, besides what the cut says.
        subset: the labelled samples to fit on.
        effort: how much of them is used, and whether the plan is only tried.
        stats: returns statistics of the original's activations by point; only for steps that need
            them.
        output: name of the output with the class scores.
        grow: whether layers may get biases that have none of their own.
        seed: of everything that is drawn.
        runner: runs the models.
    """

    original: Model
    pruned: Model
    cut: Cut
    changed: frozenset[str]
    subset: Subset
    effort: Effort
    stats: Callable[[], Mapping[tuple[str, int], ActivationStats]]
    output: str
    grow: bool
    seed: int
    runner: Runner


@dataclass(frozen=True)
class Step:
    """A step of a recovery.

    Attributes:
        climb: offers a ladder one candidate or several, the best first, and adds warnings to it.
            It changes nothing else.
        needs_stats: whether it looks at statistics of the original's activations.
        in_trials: whether it is also taken where a plan is only tried, on the way to a decision.
    """

    climb: Callable[[Ladder, Task], None]
    needs_stats: bool = False
    in_trials: bool = True
