"""Einsum: every letter is an axis."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.labels import I64
from onnxprune.op import Op
from onnxprune.rules.registry import rule


@rule("Einsum")
def einsum(op: Op) -> None:
    """Axes with the same letter are tied; the node sums over letters that vanish.

    Letters that only a constant has begin labels. Ellipses and repeated letters in one
    operand freeze.
    """
    equation = str(op.attribute("equation")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    letters = "".join(terms)
    if not arrow:
        right = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    if "." in equation or any(len(set(t)) < len(t) for t in [*terms, right]):
        return
    for letter in dict.fromkeys(letters):
        places = [(i, t.index(letter)) for i, t in enumerate(terms) if letter in t]
        sizes = {op.shape(i)[axis] for i, axis in places}
        if len(sizes) > 1:
            continue
        computed = [(i, axis) for i, axis in places if not op.is_parameter(i)]
        labels: I64 | None = None
        if computed:
            take = op.take if letter in right else op.sink
            labels = take(*computed[0])
            for place in computed[1:]:
                labels = op.tie(labels, take(*place))
        elif letter in right:
            labels = op.origin(right.index(letter))
        for i, axis in places:
            if op.is_parameter(i):
                op.site(i, axis, labels)
        if letter in right and computed:
            op.give(right.index(letter), labels)
    for i in range(len(terms)):
        if op.is_parameter(i):
            _record_weight(op, i, terms, right)


def _record_weight(op: Op, i: int, terms: list[str], right: str) -> None:
    """Record a constant; of several letters that it sums over or begins, the longest counts."""
    own = dict(zip(terms[i], op.shape(i), strict=True))
    for j, term in enumerate(terms):
        shared = [c for c in term if c in own and not op.is_parameter(j)]
        if not shared:
            continue
        channel = max(shared, key=lambda c: (c not in right, own[c]))
        begun = [c for c in terms[i] if c in right and c not in term]
        axis = term.index(channel)
        op.weight(
            i,
            data=(op.tensor(j), axis, op.labelled(j).get(axis)),
            channel_of=_numbered(terms[i], own, channel),
            output_of=_numbered(terms[i], own, max(begun, key=lambda c: own[c], default="")),
        )
        return


def _numbered(term: str, sizes: Mapping[str, int], letter: str) -> I64:
    """Return the index along one letter, in a shape that broadcasts to the term's."""
    view = [sizes[c] if c == letter else 1 for c in term]
    return np.arange(sizes.get(letter, 1), dtype=np.int64).reshape(view)
