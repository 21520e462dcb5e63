"""Einsum and MatMul: every letter is an axis."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.arrays import I64
from onnxprune.model.equation import parse
from onnxprune.structure.op import Op
from onnxprune.structure.rules.registry import rule


@rule("Einsum")
def einsum(op: Op) -> None:
    """A product in letters. Those that repeat in one operand (a diagonal) freeze."""
    ranks = [len(op.shape(i)) for i in op.inputs]
    contract(op, *parse(str(op.attribute("equation")), ranks))


@rule("MatMul")
def matmul(op: Op) -> None:
    """Stacks of matrices, and vectors; a constant is a layer's weight and begins labels."""
    multiply(op, 0, 0)


def multiply(op: Op, transposed_a: int, transposed_b: int) -> None:
    """Multiply stacks of matrices, either of them stored transposed in its last two axes."""
    ranks = [len(op.shape(i)) for i in (0, 1)]
    most = max(*ranks, 2) - 2
    stack, row, inner, column = string.ascii_lowercase[:most], "R", "I", "C"
    own = [stack[most - max(rank - 2, 0) :] for rank in ranks]
    first = inner if ranks[0] == 1 else (row + inner)[:: -1 if transposed_a else 1]
    second = inner if ranks[1] == 1 else (inner + column)[:: -1 if transposed_b else 1]
    right = stack + row * (ranks[0] > 1) + column * (ranks[1] > 1)
    contract(op, [own[0] + first, own[1] + second], right)


def contract(op: Op, terms: Sequence[str], right: str) -> None:
    """Tie axes with the same letter; sum over letters that vanish.

    Letters that only a constant has begin labels. An axis of size 1 may meet a longer one.
    """
    repeated = {c for t in [*terms, right] for c in t if t.count(c) > 1}
    for letter in dict.fromkeys("".join(terms)):
        places = [(i, t.index(letter)) for i, t in enumerate(terms) if letter in t]
        size = max(op.shape(i)[axis] for i, axis in places)
        short = [(i, axis) for i, axis in places if op.shape(i)[axis] != size]
        if letter in repeated or any(op.shape(i)[axis] != 1 for i, axis in short):
            continue
        for place in short:
            op.freeze(op.take(*place), "is spread over another axis by broadcasting")
        places = [place for place in places if place not in short]
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


def _record_weight(op: Op, i: int, terms: Sequence[str], right: str) -> None:
    """Record a constant; of several letters that it sums over or begins, the longest counts."""
    own = dict(zip(terms[i], op.shape(i), strict=True))
    for j, term in enumerate(terms):
        shared = [c for c in term if c in own and not op.is_parameter(j)]
        if not shared:
            continue
        channel = max(shared, key=lambda c: (c not in right, own[c]))
        begun = [c for c in terms[i] if c in right and c not in term]
        letters = _as_product(op, i, j, terms, right) if len(terms) == 2 else None
        plain = letters is not None and _is_plain(*letters)
        axis = term.index(channel)
        op.weight(
            i,
            data=(op.tensor(j), axis, op.labelled(j).get(axis)),
            channel_of=_numbered(terms[i], own, channel),
            output_of=_numbered(terms[i], own, max(begun, key=lambda c: own[c], default="")),
            output_axis=right.index(begun[0]) if plain else None,
            letters=letters,
        )
        return


def _as_product(
    op: Op, i: int, j: int, terms: Sequence[str], right: str
) -> tuple[str, str, str] | None:
    """Return the letters of data, weight and output if they are a product of matrices.

    A dot stands for an axis of size 1 that is spread over another one. Letters of both operands
    that stay number matrices, which come before what these begin.
    """
    sizes = dict(zip("".join(terms), [*op.shape(0), *op.shape(1)], strict=True))
    for term, k in zip(terms, (0, 1), strict=True):
        sizes |= {c: max(sizes[c], n) for c, n in zip(term, op.shape(k), strict=True)}
    weight, data = (
        "".join("." if n < sizes[c] else c for c, n in zip(terms[k], op.shape(k), strict=True))
        for k in (i, j)
    )
    summed = set(weight) & set(data) - set(right) - {"."}
    rows = [c for c in right if c not in weight]
    stays = "".join("g" if c in data else "o" for c in right if c in weight)
    alone = (set(data) ^ set(weight)) - set(right) - {"."}
    repeated = any(t.count(c) > 1 for t in [*terms, right] for c in t)
    if not summed or not rows or alone or repeated or "og" in stays or set(rows) - set(data):
        return None
    return data, weight, right


def _is_plain(data: str, weight: str, right: str) -> bool:
    """Whether the letters are one matrix that changes one axis, and leaves the others in order."""
    new = [c for c in weight if c in right]
    old = [c for c in weight if c not in right]
    plain = len(weight) == 2 and len(new) == 1 and new[0] not in data and "." not in data + weight
    return plain and data.replace(old[0], "") == right.replace(new[0], "")


def _numbered(term: str, sizes: Mapping[str, int], letter: str) -> I64:
    """Return the index along one letter, in a shape that broadcasts to the term's."""
    view = [sizes[c] if c == letter else 1 for c in term]
    return np.arange(sizes.get(letter, 1), dtype=np.int64).reshape(view)
