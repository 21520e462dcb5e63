"""Allocation meets its budget, respects floors and alignment, or says what is possible."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.decide.allocate import Goal, allocate_channels, allocate_weights, auto_align
from onnxprune.errors import BudgetError
from onnxprune.structure.labels import Labels
from onnxprune.structure.structure import Group, Structure


def structure(*widths: int) -> Structure:
    """Independent groups of the given widths, each on one axis."""
    labels = Labels()
    axes = tuple(labels.fresh(w) for w in widths)
    units = labels.solve()
    groups = tuple(
        Group(f"g{k}", units.unit_of[units.component[a]], (f"g{k}",)) for k, a in enumerate(axes)
    )
    return Structure(units, (), (), (), (), (), (), (), axes, groups, (), frozenset())


def share(kept: np.ndarray) -> float:
    return 1 - kept.mean()


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.floats(0.05, 0.95),
    st.sampled_from([1, 4, 8]),
    st.integers(0, 1000),
)
def test_the_budget_is_met_within_one_step_or_refused(widths, sparsity, align, seed):
    s = structure(*widths)
    scores = np.random.default_rng(seed).random(len(s.units))
    total = sum(widths)
    try:
        kept = allocate_channels(s, scores, Goal(share, sparsity), align=align)
    except BudgetError:
        assert sum(w - 1 for w in widths) / total < sparsity
        return
    assert sparsity <= share(kept) <= sparsity + align / total + 1e-9
    for group in s.groups:
        own = kept[group.units]
        assert own.any()
        if own.any() and not own.all():
            assert scores[group.units][own].min() > scores[group.units][~own].max()


def test_a_tighter_budget_keeps_no_more():
    s = structure(16, 24, 8)
    scores = np.random.default_rng(3).random(len(s.units))
    kept = [allocate_channels(s, scores, Goal(share, x), align=4) for x in (0.2, 0.4, 0.6, 0.8)]
    for loose, tight in itertools.pairwise(kept):
        assert not (tight & ~loose).any()


def test_widths_stay_multiples_where_the_budget_allows():
    s = structure(32, 64)
    scores = np.random.default_rng(0).random(len(s.units))
    kept = allocate_channels(s, scores, Goal(share, 0.5), align=8)
    assert all(kept[g.units].sum() % 8 == 0 for g in s.groups)
    beyond = allocate_channels(s, scores, Goal(share, 0.95), align=8)
    assert share(beyond) >= 0.95


@pytest.mark.parametrize(
    ("size", "align"), [(12, 1), (16, 2), (24, 2), (32, 4), (64, 8), (100, 8), (2048, 8)]
)
def test_narrow_groups_are_aligned_to_less(size: int, align: int) -> None:
    assert auto_align(size) == align
    s = structure(size)
    scores = np.random.default_rng(0).random(size)
    target = 1 - align * (size // align - 3) / size
    kept = allocate_channels(s, scores, Goal(share, target - 1e-3), align=None)
    assert kept.sum() == align * (size // align - 3), "a multiple, where it meets the budget"
    for preferred in (None, 8):
        kept = allocate_channels(s, scores, Goal(share, 0.4), align=preferred, divide=True)
        assert 0.4 <= share(kept) < 0.4 + 1 / size + 0.02


def test_the_best_achievable_is_named_and_true():
    s, scores = structure(4, 4), np.arange(8.0)
    with pytest.raises(BudgetError, match=r"best achievable is 0\.75") as error:
        allocate_channels(s, scores, Goal(share, 0.9))
    best = float(re.findall(r"is (0\.\d+)", str(error.value))[0])
    assert share(allocate_channels(s, scores, Goal(share, best))) == best


def test_product_axes_never_empty():
    labels = Labels()
    rows, columns = labels.fresh(2), labels.fresh(3)
    whole = labels.product(np.repeat(rows, 3), np.tile(columns, 2))
    units = labels.solve()
    groups = (
        Group("rows", units.unit_of[units.component[rows]], ("r",)),
        Group("columns", units.unit_of[units.component[columns]], ("c",)),
    )
    s = Structure(
        units, (), (), (), (), (), (), (), (rows, columns, whole), groups, (), frozenset()
    )

    def removed(kept: np.ndarray) -> float:
        return 1 - units.keep(kept)[whole].mean()

    kept = allocate_channels(s, np.arange(5.0), Goal(removed, 0.8))
    assert units.keep(kept)[whole].sum() == 1
    with pytest.raises(BudgetError):
        allocate_channels(s, np.arange(5.0), Goal(removed, 0.9))


def weights(*sizes: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"w{k}": rng.random((n, 10)) for k, n in enumerate(sizes)}


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=3), st.floats(0.01, 0.95), st.data())
def test_exactly_the_requested_weights_leave(sizes, sparsity, data):
    scores = weights(*sizes)
    nonzero = {n: s > data.draw(st.floats(0, 0.3)) for n, s in scores.items()}
    total = sum(s.size for s in scores.values()) + 7
    try:
        masks = allocate_weights(scores, nonzero, total, sparsity)
    except BudgetError:
        return
    zeros = sum(int((~m).sum()) for m in masks.values())
    assert zeros == int(np.ceil(sparsity * total - 1e-9))
    assert all(m.any() for m in masks.values())


def test_zeros_leave_first():
    scores = {"w": np.array([[5.0, 9.0, 1.0, 2.0]])}
    masks = allocate_weights(scores, {"w": np.array([[True, False, True, True]])}, 4, 0.25)
    assert masks["w"].tolist() == [[True, False, True, True]]


def test_no_tensor_is_emptied():
    scores = {"low": np.full((4, 5), 0.1), "high": np.full((4, 5), 9.0)}
    nonzero = {n: np.ones((4, 5), dtype=bool) for n in scores}
    masks = allocate_weights(scores, nonzero, 40, 0.5)
    assert masks["low"].sum() == 1
    with pytest.raises(BudgetError, match=r"best achievable is 0\.95"):
        allocate_weights(scores, nonzero, 40, 0.96)
