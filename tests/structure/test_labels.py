"""Ties, products and freezes, and the units they resolve to."""

from __future__ import annotations

from dataclasses import dataclass, field

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from onnxprune.arrays import I64
from onnxprune.structure.labels import FIXED, Labels, Reason, Units

WHY = Reason("node", "is needed")


def units_of(units: Units, labels: I64) -> list[set[int]]:
    """The units that each index leaves with."""
    index, unit = units.atoms(labels)
    return [set(unit[index == i].tolist()) for i in range(len(labels))]


def test_fresh_labels_are_new() -> None:
    labels = Labels()
    assert len(np.unique(np.concatenate([labels.fresh(n) for n in (3, 0, 1, 4)]))) == 8
    assert len(labels.solve()) == 8


def test_nothing_said_resolves_to_nothing() -> None:
    units = Labels().solve()
    assert len(units) == 0
    assert units.keep(np.empty(0, dtype=np.bool_)).shape == (0,)


def test_ties_join_index_by_index_and_over_many_steps() -> None:
    labels = Labels()
    a, b, c = (labels.fresh(3) for _ in range(3))
    labels.tie(a, b)
    labels.tie(b, c[::-1])
    units = labels.solve()
    assert len(units) == 3
    assert units_of(units, a) == units_of(units, b) == units_of(units, c)[::-1]


def test_labels_tied_to_themselves_stay_apart() -> None:
    labels = Labels()
    a = labels.fresh(3)
    labels.tie(a, a)
    assert len(labels.solve()) == 3


def test_axes_of_different_sizes_cannot_be_tied() -> None:
    labels = Labels()
    with pytest.raises(ValueError, match=r"cannot tie \(2,\) labels to \(3,\) labels"):
        labels.tie(labels.fresh(2), labels.fresh(3))


def test_a_frozen_label_holds_what_is_tied_to_it() -> None:
    labels = Labels()
    a, b = labels.fresh(3), labels.fresh(3)
    labels.tie(a, b)
    labels.freeze(a[:1], WHY)
    units = labels.solve()
    assert len(units) == 2
    assert units.keep(np.zeros(2, dtype=np.bool_))[b].tolist() == [True, False, False]
    assert units.why_fixed(b) == WHY
    assert units.why_fixed(b[1:]) is None


def test_the_first_reason_is_reported() -> None:
    labels = Labels()
    a = labels.fresh(2)
    labels.freeze(a, WHY)
    labels.freeze(a, Reason("later", "too"))
    assert labels.solve().why_fixed(a) == WHY


def grid(labels: Labels, rows: I64, columns: I64) -> I64:
    """The axis that rows times columns make."""
    return labels.product(np.repeat(rows, len(columns)), np.tile(columns, len(rows)))


def test_an_index_of_a_product_leaves_with_either_factor() -> None:
    labels = Labels()
    rows, columns = labels.fresh(2), labels.fresh(3)
    axis = grid(labels, rows, columns)
    units = labels.solve()
    assert len(units) == 5
    row, column = units_of(units, rows), units_of(units, columns)
    assert units_of(units, axis) == [r | c for r in row for c in column]
    kept = np.ones(5, dtype=np.bool_)
    kept[[*row[0], *column[2]]] = False
    assert units.keep(kept)[axis].tolist() == [False] * 3 + [True, True, False]


def test_products_that_meet_agree_in_both_factors() -> None:
    labels = Labels()
    a, b, c, d = labels.fresh(2), labels.fresh(3), labels.fresh(2), labels.fresh(3)
    labels.tie(grid(labels, a, b), grid(labels, c, d))
    units = labels.solve()
    assert len(units) == 5
    assert units_of(units, a) == units_of(units, c)
    assert units_of(units, b) == units_of(units, d)


def test_products_of_products_agree_to_the_bottom() -> None:
    labels = Labels()
    sizes = (2, 3, 2)
    first, second = ([labels.fresh(n) for n in sizes] for _ in range(2))
    whole = [grid(labels, grid(labels, a, b), c) for a, b, c in (first, second)]
    plain = labels.fresh(12)
    labels.tie(whole[0], plain)
    labels.tie(plain, whole[1])
    units = labels.solve()
    assert len(units) == 7
    for one, other in zip(first, second, strict=True):
        assert units_of(units, one) == units_of(units, other)
    assert [len(found) for found in units_of(units, plain)] == [3] * 12


def test_a_frozen_product_holds_its_factors() -> None:
    labels = Labels()
    a, b, c = labels.fresh(2), labels.fresh(2), labels.fresh(2)
    axis = labels.product(labels.product(a, b), c)
    labels.freeze(axis[:1], WHY)
    units = labels.solve()
    assert len(units) == 3
    for factor in (a, b, c):
        assert units.why_fixed(factor[:1]) == WHY
        assert units.why_fixed(factor[1:]) is None


def test_a_frozen_factor_leaves_the_other_free() -> None:
    labels = Labels()
    rows, columns = labels.fresh(2), labels.fresh(2)
    axis = grid(labels, rows, columns)
    labels.freeze(rows, WHY)
    units = labels.solve()
    assert len(units) == 2
    assert units_of(units, axis) == units_of(units, np.tile(columns, 2))


def test_an_axis_tied_to_a_part_of_itself_is_frozen() -> None:
    labels = Labels()
    a, b, other = labels.fresh(2), labels.fresh(2), labels.fresh(2)
    labels.tie(labels.product(a, b), a)
    units = labels.solve()
    assert len(units) == len(other)
    found = units.why_fixed(b)
    assert found is not None
    assert found.text == "an axis is tied to a part of itself"
    assert units.keep(np.zeros(2, dtype=np.bool_))[np.concatenate([a, b])].all()


# -- against an implementation that follows every label by hand ------------------------------


@dataclass
class Naive:
    """Labels again, one at a time."""

    ties: list[tuple[int, int]] = field(default_factory=list)
    products: list[tuple[int, int, int]] = field(default_factory=list)
    frozen: set[int] = field(default_factory=set)
    component: list[int] = field(default_factory=list)
    factors: dict[int, tuple[int, int]] = field(default_factory=dict)

    def solve(self, size: int) -> None:
        """Join until nothing changes, then find what is frozen."""
        self.component = list(range(size))
        changed = True
        while changed:
            changed = False
            self.factors = {}
            pairs = list(self.ties)
            for p, a, b in self.products:
                x, y = self.factors.setdefault(self.component[p], (a, b))
                pairs += [(a, x), (b, y)]
            for a, b in pairs:
                old, new = self.component[a], self.component[b]
                if old != new:
                    changed = True
                    self.component = [new if c == old else c for c in self.component]
        self.frozen = {self.component[label] for label in self.frozen}
        self.frozen |= {c for c in self.factors if not self.ends(c, ())}
        waiting = list(self.frozen)
        while waiting:
            for factor in self.parts(waiting.pop()):
                if factor not in self.frozen:
                    self.frozen.add(factor)
                    waiting.append(factor)

    def parts(self, component: int) -> tuple[int, ...]:
        """The components of the factors."""
        return tuple(self.component[label] for label in self.factors.get(component, ()))

    def ends(self, component: int, above: tuple[int, ...]) -> bool:
        """Whether no component is made of itself from here on."""
        return component not in above and all(
            self.ends(part, (*above, component)) for part in self.parts(component)
        )

    def atoms(self, component: int) -> set[int]:
        """The free components that a component leaves with."""
        if component in self.frozen:
            return set()
        if component not in self.factors:
            return {component}
        return set().union(*(self.atoms(part) for part in self.parts(component)))


WORDS = st.tuples(
    st.sampled_from(["fresh", "tie", "product", "product", "freeze"]), st.integers(0, 2**16)
)


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.lists(WORDS, max_size=12), st.integers(0, 2**16))
def test_keep_and_atoms_agree_with_a_naive_implementation(
    words: list[tuple[str, int]], seed: int
) -> None:
    labels, naive = Labels(), Naive()
    pool = [labels.fresh(3), labels.fresh(4)]
    for word, number in words:
        rng = np.random.default_rng(number)
        size = int(rng.integers(1, 5))
        a, b = (rng.choice(pool[rng.integers(len(pool))], size) for _ in range(2))
        if word == "fresh":
            pool.append(labels.fresh(size))
        elif word == "tie":
            labels.tie(a, b)
            naive.ties += zip(a.tolist(), b.tolist(), strict=True)
        elif word == "product":
            pool.append(labels.product(a, b))
            naive.products += zip(pool[-1].tolist(), a.tolist(), b.tolist(), strict=True)
        else:
            labels.freeze(a[:1], WHY)
            naive.frozen.add(int(a[0]))
    units = labels.solve()
    everything = np.concatenate(pool)
    naive.solve(len(everything))
    free = {naive.component[label] for label in everything}
    free -= naive.frozen | set(naive.factors)
    assert len(units) == len(free)

    kept = np.random.default_rng(seed).random(len(units)) < 0.6
    stays, found = units.keep(kept), units_of(units, np.arange(len(everything)))
    unit_of = dict(enumerate(units.unit_of[units.component].tolist()))
    number_of = {naive.component[i]: unit for i, unit in unit_of.items() if unit != FIXED}
    assert set(number_of) == free
    for label, component in enumerate(naive.component):
        atoms = {number_of[atom] for atom in naive.atoms(component)}
        assert found[label] == atoms
        assert stays[label] == all(kept[unit] for unit in atoms)
    for a, b in naive.ties:
        assert stays[a] == stays[b]
