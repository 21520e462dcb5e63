"""Search: find the plan that meets a request, by trying where it cannot be worked out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from onnxprune import cost, storage
from onnxprune.accuracy import Drop, drop_between
from onnxprune.budget import Budget
from onnxprune.depth import shortenings
from onnxprune.egp import emptied
from onnxprune.errors import BudgetError
from onnxprune.execute import Outcome, clean, execute, finished, shortened
from onnxprune.layers import prepare
from onnxprune.pruning_plan import PruningPlan
from onnxprune.recovery import QUICK
from onnxprune.request import DROP
from onnxprune.rewrite import rewrite
from onnxprune.speed import check_speed, measure_speed, refusal
from onnxprune.steering import within_latency
from onnxprune.study import Study

SPLITS = (1.0, 0.8, 0.65, 0.5, 0.35, 0.2, 0.1, 0.0)
"""Shares of a sparsity that leave with whole channels, in the order of preference."""

MACS = tuple(round(0.95 * 0.91**k, 4) for k in range(31, -1, -1))
"""Ratios of the operations that are tried for the fewest within a bound on the accuracy."""

TIGHTENINGS, STEERINGS = 5, 2

ALIGNMENTS = (8, 16)
"""What is tried where removing channels made a model slower."""


def search(study: Study) -> Outcome:
    """Find and carry out the plan that meets the request of a study.

    Raises:
        BudgetError: if there is none; names the best achievable.
    """
    outcome = _timed(study, _carried_out(study))
    if outcome.speed and outcome.speed.is_slower and outcome.plan.keep:
        return _repaired(study, outcome)
    return outcome


def find_plan(study: Study) -> tuple[Study, PruningPlan]:
    """Find the plan that meets the request of a study; carry it out only where that decides.

    Returns:
        The study that the plan belongs to, which may have lost whole parts, and the plan.

    Raises:
        BudgetError: if there is none; names the best achievable.
    """
    found = _found(study)
    return (found.study, found.plan) if isinstance(found, Outcome) else (study, found)


def _carried_out(study: Study) -> Outcome:
    found = _found(study)
    return found if isinstance(found, Outcome) else execute(study, found)


def _found(study: Study) -> Outcome | PruningPlan:
    """Return a plan; where plans had to be tried, the best of them as it was carried out."""
    request = study.request
    if request.lossless:
        return clean(study)
    if request.mode == "depth":
        return emptied(study) if request.zeroes else _shorter(study)
    if request.budget is None:
        return _fewest_macs(study)
    if request.sparsity is not None and request.mode == "weights":
        return study.decider.zeros(request.sparsity)
    if request.sparsity is not None and request.mode == "auto" and study.selected:
        return _split(study, request.sparsity)
    if request.latency is not None:
        return _steered(study, request.limit(study.bytes))
    return _within(study, request.limit(study.bytes))


def _steered(study: Study, budget: Budget) -> Outcome:
    """Meet a latency; what the recovery does to it is only known once it is there."""
    limit = budget
    for _ in range(STEERINGS):
        found = within_latency(study, limit)
        outcome = execute(study, found.plan)
        speed = measure_speed(study, outcome.model)
        outcome = replace(outcome, speed=speed)
        if speed.low <= budget.limit:
            return outcome
        limit = replace(limit, limit=found.speed.value * budget.limit / speed.value)
    study.log.warnings.append(
        f"{budget.asked} was missed: {speed.value:.4f} ({speed.low:.4f} to {speed.high:.4f}) was "
        "measured in the end; ask for less, or measure on a machine with less to do"
    )
    return outcome


def _timed(study: Study, outcome: Outcome) -> Outcome:
    """Measure the latency of what lost channels; zeros do not change it."""
    cut = outcome.plan.removals or not all(kept.all() for kept in outcome.plan.keep.values())
    if outcome.speed or not cut:
        return outcome
    return replace(outcome, speed=check_speed(study, outcome.model))


def _repaired(study: Study, slower: Outcome) -> Outcome:
    """Give a model that is slower than its original the widths that processors like."""
    for align in ALIGNMENTS:
        try:
            outcome = _timed(study, _carried_out(study.aligned(align)))
        except BudgetError:
            continue
        if not refusal(outcome.speed):
            study.log.warnings.append(
                f"removing channels that way made the model slower than the original (latency "
                f"ratio {slower.speed.value if slower.speed else 1:.3f}); their numbers are "
                f"therefore multiples of {align}"
            )
            return outcome
    return slower


def drop_of(study: Study, outcome: Outcome) -> Drop | None:
    """Return the accuracy that was lost on the *select* samples; None without any."""
    if study.selected is None or outcome.selected is None:
        return None
    return drop_between(study.selected, outcome.selected)


def _split(study: Study, sparsity: float) -> Outcome:
    """Let as much of a sparsity as the accuracy allows leave with channels, and zero the rest."""

    def plan(share: float) -> PruningPlan:
        if share == 0.0:
            return study.decider.zeros(sparsity)
        budget = Budget("sparsity", 1 - share * sparsity, f"sparsity {sparsity:g}")
        channels = study.decider.channels(budget)
        return channels if share == 1.0 else study.decider.zeros(sparsity, channels)

    return _first_good(study, SPLITS, plan)


def _fewest_macs(study: Study) -> Outcome:
    """Remove as many operations as the accuracy allows."""

    def plan(ratio: float) -> PruningPlan:
        return study.decider.channels(Budget("macs", ratio, f"macs {ratio:g}"))

    outcome = _first_good(study, MACS, plan)
    drop, limit = drop_of(study, outcome), study.request.max_drop or 0.0
    if drop is None or drop.value > limit:
        shown = "unknown" if drop is None else f"{drop.value:.4f}"
        raise BudgetError(
            f"max_drop {limit:g} cannot be kept by removing channels: removing "
            f"{100 * (1 - MACS[-1]):.0f} % of the operations already loses {shown}; allow more, "
            "or give more samples"
        )
    return outcome


def _first_good(
    study: Study, candidates: Sequence[float], plan: Callable[[float], PruningPlan]
) -> Outcome:
    """Carry out the first candidate that is good enough, or the last.

    Candidates get better one after the other, so that halving finds the first good one among
    quick trials; it then has to prove itself with all samples.
    """
    limit = DROP if study.request.max_drop is None else study.request.max_drop

    def good(outcome: Outcome) -> bool:
        drop = drop_of(study, outcome)
        return drop is not None and drop.value <= limit

    plans: dict[int, PruningPlan] = {}  # the one that wins its trial is carried out again

    def planned(k: int) -> PruningPlan:
        if k not in plans:
            plans[k] = plan(candidates[k])
        return plans[k]

    def tried(k: int) -> bool:
        try:
            return good(execute(study, planned(k), QUICK))
        except BudgetError:
            return False

    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if tried(middle) else (middle + 1, high)
    while True:
        outcome = execute(study, planned(low))
        if good(outcome) or low == len(candidates) - 1:
            return outcome
        low += 1


def _within(study: Study, budget: Budget) -> PruningPlan:
    """Remove channels until the finished model is within a budget.

    What recovery adds (biases) is only known once it is there, so the limit is tightened by
    what a plan exceeds it.
    """
    limit = budget
    for _ in range(TIGHTENINGS):
        plan = study.decider.channels(limit)
        left = _left(study, plan, budget.kind)
        if left <= budget.limit:
            return plan
        limit = replace(limit, limit=limit.limit * budget.limit / left * 0.999)
    raise BudgetError(
        f"{budget.asked} cannot be reached by removing channels: {left:.4f} of the original is "
        "left; ask for less"
    )


def _left(study: Study, plan: PruningPlan, kind: str) -> float:
    """Return what is left of the file's bytes or of the parameters once a model is finished."""
    if kind not in ("size", "params"):
        return 0.0
    subject = study.subject
    pruned = rewrite(subject.folded, subject.structure, plan)
    if study.request.recover != "none":
        pruned = prepare(pruned, subject.structure, plan, subject.shapes)[0]
    model = finished(pruned, study)
    if kind == "params":
        return cost.count_params(model) / study.given.cost.params
    return storage.pack(model.proto, study.location).size / study.bytes


def _shorter(study: Study) -> Outcome:
    """Take out whole parts, one after the other, until the request is met."""
    if not study.removals:
        raise BudgetError(
            "no layer can be taken out whole: none lies on a branch that is added to what leads "
            "around it, or between layers that can do without it; use --mode channels or weights"
        )
    if study.request.budget is None:
        return _shortest(study)
    best, parts = 1.0, 0
    for left in shortenings(study):
        best, parts = _share(left), parts + 1
        if not _is_short_enough(left):
            continue
        full = shortened(study, _gone(left))
        if _is_short_enough(full):
            return execute(full, PruningPlan(study.given.original.sha256))
    if study.request.layers is not None:
        reached = f"only {parts} parts can leave, one after the other"
    else:
        reached = f"the best achievable is {best:.4f}, once all {parts} parts are gone that can be"
    raise BudgetError(
        f"{study.request.goal} cannot be reached by taking out whole layers: {reached}; ask for "
        "less, or use --mode auto"
    )


def _shortest(study: Study) -> Outcome:
    """Take out as many parts as the accuracy allows."""
    limit, selected = study.request.max_drop or 0.0, study.selected
    assert selected is not None
    names: tuple[str, ...] = ()
    for left in shortenings(study):
        accuracy = study.accuracy(left.subject.folded, study.samples.select)
        if accuracy is None or drop_between(selected, accuracy).value > limit:
            break
        names = _gone(left)
    while names:
        outcome = execute(shortened(study, names), PruningPlan(study.given.original.sha256))
        drop = drop_of(study, outcome)
        if drop is not None and drop.value <= limit:
            return outcome
        names = names[:-1]
    raise BudgetError(
        f"max_drop {limit:g} cannot be kept by taking out whole layers: the one that is missed "
        "least already loses more; allow more, or use --mode auto"
    )


def _gone(study: Study) -> tuple[str, ...]:
    return study.shortening.names if study.shortening else ()


def _is_short_enough(left: Study) -> bool:
    """Whether a model from which parts are gone meets the request."""
    request = left.request
    if request.layers is not None:
        return len(_gone(left)) >= request.layers
    return _share(left) <= request.limit(left.bytes).limit


def _share(left: Study) -> float:
    """Return what is left of the original by the request's kind of budget."""
    kind, before, after = left.request.budget, left.given.cost, left.subject.cost
    if kind == "latency":
        return measure_speed(left, left.subject.original).value
    if kind == "size":
        packed = storage.pack(finished(left.subject.original, left).proto, left.location)
        return packed.size / left.bytes
    name = {"sparsity": "weights", "layers": "layers"}.get(str(kind), str(kind))
    return float(getattr(after, name) / max(getattr(before, name), 1))
