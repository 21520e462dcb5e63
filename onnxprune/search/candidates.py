"""Candidates: find the first good enough of those that get better one after the other."""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.errors import BudgetError
from onnxprune.run.execute import Outcome


def promising(count: int, good: Callable[[int], bool]) -> int:
    """Return the first candidate that is good enough in a quick trial, or the last.

    Candidates get better one after the other, so that halving finds it. The last is not tried.

    Args:
        count: how many candidates there are.
        good: tries one, and tells whether it is good enough.
    """
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle + 1, high)
    return low


def proven(
    count: int,
    first: int,
    stride: int,
    outcome: Callable[[int], Outcome],
    good: Callable[[Outcome], bool],
) -> Outcome:
    """Carry out candidates from a first one on, to the first that is good with all samples.

    In strides until one is good and one is not, then halving what is between them. Where none is
    good, it returns the last. One that there is no plan for is not good.

    Args:
        count: how many candidates there are.
        first: where to begin.
        stride: how many to go on by.
        outcome: carries one out; raises :class:`BudgetError` where there is no such plan.
        good: whether it is good enough.

    Raises:
        BudgetError: if there is no plan for the last.
    """
    best, bad, fine, k = None, -1, count, first
    while fine - bad > 1:
        try:
            found = outcome(k)
        except BudgetError:
            if k == count - 1:
                raise
            found = None
        if found and good(found):
            best, fine = found, k
        else:
            bad = k
        if bad < 0:
            k = max(fine - stride, 0)
        elif best is None:
            k = min(bad + stride, count - 1)
        else:
            k = (bad + fine) // 2
    result = best or found
    assert result is not None  # the last there is, which is the one that was tried last
    return result
