"""Einsum: every letter is an axis."""

from __future__ import annotations

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
        computed = [(i, axis) for i, axis in places if not op.is_constant(i)]
        labels: I64 | None = None
        if computed:
            take = op.take if letter in right else op.sink
            labels = take(*computed[0])
            for place in computed[1:]:
                labels = op.tie(labels, take(*place))
        elif letter in right:
            labels = op.origin(right.index(letter))
        for i, axis in places:
            if op.is_constant(i):
                op.site(i, axis, labels)
        if letter in right and computed:
            op.give(right.index(letter), labels)
