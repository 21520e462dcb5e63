"""Labels: the identity of every index along every prunable axis of every tensor.

An axis of size ``n`` carries ``int64 [n]`` labels. Operators *tie* labels that can only leave
the model together, *freeze* labels that cannot leave, and write a label as a *product* of two
others where an axis is made of factors (attention heads x width, channel groups x width): an
index of a product axis stays only if all its factors stay. :meth:`Labels.solve` turns all ties
of a graph into **units**, the smallest sets of labels that can leave together, with one call
of :func:`scipy.sparse.csgraph.connected_components`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.arrays import I64, Bool

FIXED = -1
"""Unit number of a label that cannot leave the model."""


@dataclass(frozen=True)
class Reason:
    """Why labels cannot leave: the node where this was found, and the explanation."""

    node: str
    text: str


class Labels:
    """Collects ties, products and freezes while a graph is traced."""

    def __init__(self) -> None:
        self._size = 0
        self._ties: list[tuple[I64, I64]] = []
        self._products: list[tuple[I64, I64, I64]] = []
        self._frozen: list[tuple[I64, int]] = []
        self._reasons: list[Reason] = []

    def fresh(self, size: int) -> I64:
        """Return ``int64 [size]`` labels that nothing else bears."""
        labels = np.arange(self._size, self._size + size, dtype=np.int64)
        self._size += size
        return labels

    def tie(self, a: I64, b: I64) -> None:
        """Say that ``a[i]`` and ``b[i]`` can only leave together (both ``int64 [n]``)."""
        if a is not b:
            if a.shape != b.shape:
                raise ValueError(f"cannot tie {a.shape} labels to {b.shape} labels")
            self._ties.append((a, b))

    def product(self, a: I64, b: I64) -> I64:
        """Return labels whose index ``i`` stays only if both ``a[i]`` and ``b[i]`` stay."""
        labels = self.fresh(len(a))
        self._products.append((labels, a, b))
        return labels

    def freeze(self, labels: I64, reason: Reason) -> None:
        """Say that none of ``labels`` can leave."""
        self._frozen.append((labels, len(self._reasons)))
        self._reasons.append(reason)

    def solve(self) -> Units:
        """Resolve everything said so far into units."""
        ties = [_concat([a for a, _ in self._ties]), _concat([b for _, b in self._ties])]
        p, a, b = (_concat([t[k] for t in self._products]) for k in range(3))
        # Products that meet in one component must agree: tie their factors pairwise until
        # nothing changes. (Sufficient for equality, so always sound.)
        while True:
            comp = _components(self._size, ties[0], ties[1])
            order = np.argsort(comp[p], kind="stable")
            same = comp[p][order][1:] == comp[p][order][:-1]
            left, right = order[:-1][same], order[1:][same]
            new_a = np.concatenate([a[left], b[left]])
            new_b = np.concatenate([a[right], b[right]])
            changed = comp[new_a] != comp[new_b]
            if not changed.any():
                break
            ties = [
                np.concatenate([ties[0], new_a[changed]]),
                np.concatenate([ties[1], new_b[changed]]),
            ]
        size = int(comp.max()) + 1 if len(comp) else 0
        reason = np.full(size, FIXED, dtype=np.int64)
        for labels, index in reversed(self._frozen):
            reason[comp[labels]] = index
        cp, ca, cb = comp[p], comp[a], comp[b]
        cyclic = Reason("", "an axis is tied to a part of itself")
        levels = _freeze_factors(reason, cp, ca, cb, len(self._reasons))
        composite = np.zeros(size, dtype=np.bool_)
        composite[cp] = True
        free = (reason == FIXED) & ~composite
        unit_of = np.full(size, FIXED, dtype=np.int64)
        unit_of[free] = np.arange(int(free.sum()))
        return Units(comp, unit_of, reason, (*self._reasons, cyclic), tuple(levels))


@dataclass(frozen=True)
class Units:
    """The resolved labels of a graph.

    Attributes:
        component: ``int64 [labels]``, the connected component of each label.
        unit_of: ``int64 [components]``, the unit a component is, else :data:`FIXED` (frozen,
            or a product, which leaves with its factors).
        reason_of: ``int64 [components]``, index into ``reasons`` of a frozen component.
        reasons: every reason given while tracing.
        levels: ``(product, factor, factor)`` component numbers, innermost products first.
    """

    component: I64
    unit_of: I64
    reason_of: I64
    reasons: tuple[Reason, ...]
    levels: tuple[tuple[I64, I64, I64], ...]

    def __len__(self) -> int:
        return int((self.unit_of != FIXED).sum())

    def keep(self, units: Bool) -> Bool:
        """Spread a decision over units (``bool [units]``) to all labels (``bool [labels]``)."""
        kept = np.ones(len(self.unit_of), dtype=np.bool_)
        free = self.unit_of != FIXED
        kept[free] = units[self.unit_of[free]]
        for product, a, b in self.levels:
            kept[product] = kept[a] & kept[b]
        result: Bool = kept[self.component]
        return result

    def atoms(self, labels: I64) -> tuple[I64, I64]:
        """Return ``(index, unit)`` pairs: index ``i`` of ``labels`` leaves with any of its units.

        An index that cannot leave does not occur; one of a product axis occurs several times.
        """
        index, comp = self._factors(labels)
        free = self.unit_of[comp] != FIXED
        pairs = np.unique(np.stack([index[free], self.unit_of[comp[free]]]), axis=1)
        return pairs[0], pairs[1]

    def _factors(self, labels: I64) -> tuple[I64, I64]:
        """Return ``(index, component)`` pairs, with the factors in the place of products."""
        index, comp = np.arange(len(labels)), self.component[labels]
        for product, a, b in reversed(self.levels):
            order = np.argsort(product)
            at = np.clip(np.searchsorted(product, comp, sorter=order), 0, len(product) - 1)
            hit = product[order[at]] == comp
            rest, first, second = comp[~hit], a[order[at[hit]]], b[order[at[hit]]]
            index = np.concatenate([index[~hit], index[hit], index[hit]])
            comp = np.concatenate([rest, first, second])
        return index, comp

    def why_fixed(self, labels: I64) -> Reason | None:
        """Return the first reason why any index of ``labels`` cannot leave, or None if all can.

        An index of a product axis cannot leave where none of its factors can.
        """
        index, comp = self._factors(labels)
        leaves = np.zeros(len(labels), dtype=np.bool_)
        leaves[index[self.unit_of[comp] != FIXED]] = True
        found = self.reason_of[comp[~leaves[index]]]
        found = found[found != FIXED]
        return self.reasons[int(found.min())] if len(found) else None


def _concat(arrays: Sequence[I64]) -> I64:
    return np.concatenate([np.empty(0, dtype=np.int64), *arrays])


def _components(size: int, a: I64, b: I64) -> I64:
    # Imported late: `onnxprune --help` must not pay for scipy.
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if size == 0:
        return np.empty(0, dtype=np.int64)
    edges = coo_matrix((np.ones(len(a)), (a, b)), shape=(size, size))
    return np.asarray(connected_components(edges, directed=False)[1], dtype=np.int64)


def _freeze_factors(
    reason: I64, p: I64, a: I64, b: I64, cyclic_reason: int
) -> list[tuple[I64, I64, I64]]:
    """Pass freezes from products to factors, in place; return the products by depth.

    A product that is its own factor (an axis tied to a part of itself) is frozen for
    ``cyclic_reason``.
    """
    _, first = np.unique(p, return_index=True)
    p, a, b = p[first], a[first], b[first]
    levels: list[tuple[I64, I64, I64]] = []
    waiting = np.ones(len(p), dtype=np.bool_)
    blocked = np.zeros(len(reason), dtype=np.bool_)
    blocked[p] = True
    while waiting.any():
        ready = waiting & ~blocked[a] & ~blocked[b]
        if not ready.any():
            cyclic = np.concatenate([p[waiting], a[waiting], b[waiting]])
            reason[cyclic] = np.where(reason[cyclic] == FIXED, cyclic_reason, reason[cyclic])
            break
        levels.append((p[ready], a[ready], b[ready]))
        blocked[p[ready]] = False
        waiting &= ~ready
    for product, left, right in reversed(levels):
        frozen = reason[product] != FIXED
        for factor in (left, right):
            reason[factor[frozen]] = reason[product[frozen]]
    return levels
