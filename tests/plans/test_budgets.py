"""A kind of budget says itself whether a result keeps to a setting, and how that is shown."""

from __future__ import annotations

from dataclasses import replace

import pytest
from command import LENET

import onnxprune
from onnxprune.plans.budgets import KINDS, Measured
from onnxprune.timing.speed import Speed

WHOLE = replace(
    onnxprune.inspect(LENET).cost,
    params=1000, weights=1000, nonzero_weights=900, macs=2000, bytes=4000,
)  # fmt: skip
HALF = replace(WHOLE, params=500, weights=500, nonzero_weights=200, macs=1000, bytes=2000)
FOUND = Measured(WHOLE, HALF, Speed(0.6, 0.5, 0.7, batch=1))


@pytest.mark.parametrize(
    ("name", "shown", "kept", "missed"),
    [
        ("sparsity", "0.5000", 0.5, 0.51),
        ("params", "0.5000", 0.5, 0.49),
        ("macs", "0.5000", 0.4995, 0.49),
        ("latency", "0.6000", 0.5, 0.49),
        ("size", "2,000", 2000, 1999),
    ],
)
def test_what_a_budget_says_of_a_result(name: str, shown: str, kept: float, missed: float) -> None:
    kind = KINDS[name]
    value = kind.achieved(FOUND)
    assert value is not None
    assert kind.show(value) == shown
    assert kind.within(FOUND, kept)
    assert not kind.within(FOUND, missed)


def test_zeros_count_where_they_were_allowed_and_a_latency_may_be_unknown() -> None:
    assert KINDS["sparsity"].achieved(replace(FOUND, zeros=True)) == 0.8
    assert KINDS["latency"].achieved(replace(FOUND, speed=None)) is None
    assert KINDS["latency"].within(replace(FOUND, speed=None), 0.1)
