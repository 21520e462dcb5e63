"""Gates: whether an accuracy is good enough, on the samples that decide."""

from __future__ import annotations

from onnxprune.measure.accuracy import Accuracy, Drop, drop_between, expected_drop
from onnxprune.plans.choices import DROP
from onnxprune.run.study import Study


def drop_of(study: Study, found: Accuracy | None) -> Drop | None:
    """Return the accuracy that was lost on the *select* samples; None without any."""
    if study.run.selected is None or found is None:
        return None
    return drop_between(study.run.selected, found)


def keeps_drop(study: Study, found: Accuracy | None) -> bool:
    """Whether no more accuracy is lost than was asked for, by default :data:`DROP`."""
    drop, limit = drop_of(study, found), study.run.request.max_drop
    return drop is not None and drop.value <= (DROP if limit is None else limit)


def costs_little_more(study: Study, found: Accuracy | None, other: Accuracy | None) -> bool:
    """Whether no more than :data:`DROP` is expected to be lost beyond what another model loses.

    As far as the samples can tell: one standard error is taken for chance (the rule of Breiman et
    al., Classification and Regression Trees, 1984, section 3.4.3), but where samples are so few
    that it is more than the default drop, no more than that. It is for what nobody set a bound
    on, because what is expected is not what is counted; see
    :func:`onnxprune.measure.accuracy.expected_drop`.
    """
    if study.run.selected is None or found is None or other is None:
        return False
    drop = expected_drop(study.run.selected, other, found)
    return drop.value - min(drop.standard_error, DROP) <= DROP
