"""Rules that are subtly wrong, and the oracles that must catch them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from unittest import mock

import numpy as np

from onnxprune.structure.op import Op
from onnxprune.structure.rules import RULES, Rule

CORRECT = dict(RULES)


@dataclass(frozen=True)
class Sabotage:
    """A wrong rule for an operator, and the oracles that must catch it."""

    name: str
    op_type: str
    rule: Rule
    caught_by: str


SABOTAGES: list[Sabotage] = []


def sabotage(op_type: str, caught_by: str) -> Callable[[Rule], Rule]:
    """Register a wrong rule."""

    def register(wrong: Rule) -> Rule:
        name = f"{op_type}: {wrong.__name__.replace('_', ' ').strip()}"
        SABOTAGES.append(Sabotage(name, op_type, wrong, caught_by))
        return wrong

    return register


def without(op_type: str, *words: str) -> Rule:
    """Return a rule that forgets some of the things it says."""
    rule = RULES[op_type]

    def forgetful(op: Op) -> None:
        with ExitStack() as patches:
            for word in words:
                said = {"tie": lambda a, b: b if a is None else a}
                said |= dict.fromkeys(("sink", "normalised"), op.take)
                silent = said.get(word, lambda *_, **__: None)
                patches.enter_context(mock.patch.object(op, word, silent))
            rule(op)

    return forgetful


for _op, _word, _caught in (
    ("Add", "tie", "mask permutation"),
    ("Where", "tie", "mask permutation"),
    ("MatMul", "tie", "mask permutation"),
    ("Mul", "site", "mask permutation"),
    ("PRelu", "site", "mask permutation"),
    ("Gemm", "site", "mask permutation"),
    ("Concat", "tie", "mask permutation"),
    ("Conv", "sizes", "mask"),
    ("Conv", "sink", "mask"),
    ("ReduceL2", "sink", "mask"),
    ("Split", "known_sizes", "mask"),
    ("Slice", "known_sizes", "mask"),
    ("Pad", "sizes", "mask"),
    ("Reshape", "sizes", "mask"),
    ("Expand", "sizes", "mask"),
    ("Gather", "renumber", "mask"),
    ("Shape", "keep_original_shape", "mask"),
):
    SABOTAGES.append(Sabotage(f"{_op}: without {_word}", _op, without(_op, _word), _caught))


@sabotage("Concat", "mask permutation")
def wrong_order(op: Op) -> None:
    axis = op.attribute("axis") % len(op.out_shape())
    parts = [op.take(i, axis) for i in op.inputs][::-1]
    if all(part is not None for part in parts):
        op.give(axis, np.concatenate(parts))


@sabotage("Split", "mask permutation")
def parts_change_places(op: Op) -> None:
    axis = op.attribute("axis", 0) % len(op.shape(0))
    sizes = [op.out_shape(o)[axis] for o in range(len(op.node.outputs))]
    labels = op.take(0, axis)
    if labels is not None and len(set(sizes)) == 1:
        parts = np.split(labels, len(sizes))[::-1]
        for o, part in enumerate(parts):
            op.give(axis, part, o)
        op.known_sizes(sizes, dict(enumerate(parts)), 1)


@sabotage("Transpose", "mask permutation")
def ignores_perm(op: Op) -> None:
    for axis in range(len(op.shape(0))):
        if op.shape(0)[axis] == op.out_shape()[axis]:
            op.give(axis, op.take(0, axis))


@sabotage("Flatten", "mask permutation")
def tiles_instead_of_repeating(op: Op) -> None:
    labels = op.take(0, 1)
    op.give(0, op.take(0, 0))
    if labels is not None:
        op.give(1, np.tile(labels, op.out_shape()[1] // len(labels)))


@sabotage("Reshape", "mask permutation")
def splits_in_column_order(op: Op) -> None:
    rows = op.factor

    def columns(labels: np.ndarray | None, *dims: int) -> list[np.ndarray | None]:
        return rows(labels, *dims[::-1])[::-1]

    with mock.patch.object(op, "factor", columns):
        CORRECT["Reshape"](op)


@sabotage("BatchNormalization", "mask permutation")
def slices_the_scale_only(op: Op) -> None:
    labels = op.take(0, 1)
    op.site(1, 0, labels)
    op.give(1, labels)


@sabotage("BatchNormalization", "mask permutation")
def forgets_the_variance(op: Op) -> None:
    labels = op.take(0, 1)
    for i in (1, 2, 3):
        op.site(i, 0, labels)
    op.give(1, labels)


@sabotage("Conv", "mask permutation")
def groups_are_independent(op: Op) -> None:
    if op.attribute("group", 1) == 1:
        return CORRECT["Conv"](op)
    labels = op.take(0, 1)
    if labels is not None and op.shape(1)[0] == len(labels) == op.attribute("group"):
        op.site(1, 0, op.origin(1))
        op.site(2, 0, op.given(1))
        op.sizes({0: labels}, "group")
    return None


@sabotage("Softmax", "mask")
def is_element_wise(op: Op) -> None:
    CORRECT["Relu"](op)


@sabotage("ReduceMax", "mask")
def passes_over_channels(op: Op) -> None:
    CORRECT["ReduceMax"](op)
    op.take(0, 1)


@sabotage("Pad", "mask permutation")
def pads_on_the_wrong_side(op: Op) -> None:
    labels, pads = op.take(0, 1), op.ints(1, "pads")
    if labels is not None and pads is not None and len(pads) == 8:
        front, back = op.fresh(pads[1]), op.fresh(pads[5])
        op.give(1, np.concatenate([labels, front, back]))
        op.sizes({1: front, 5: back}, "pads" if "pads" in op.node.attrs else 1)


@sabotage("Slice", "mask permutation")
def is_off_by_one(op: Op) -> None:
    give = op.give

    def shifted(axis: int, labels: np.ndarray | None, o: int = 0) -> None:
        whole = op.labelled(0).get(axis)
        if labels is not None and whole is not None and 0 < len(labels) < len(whole):
            labels = np.roll(whole, 1 - int(np.flatnonzero(whole == labels[0])[0]))[: len(labels)]
        give(axis, labels, o)

    with mock.patch.object(op, "give", shifted):
        CORRECT["Slice"](op)


@sabotage("MatMul", "mask permutation")
def slices_the_wrong_axis(op: Op) -> None:
    if op.shape(1) == (4, 4) and op.is_constant(1):
        op.site(1, 1, op.sink(0, -1))
        op.site(1, 0, op.origin(len(op.out_shape()) - 1))
    else:
        CORRECT["MatMul"](op)


@sabotage("Gather", "mask permutation")
def ignores_the_order(op: Op) -> None:
    labels, indices = op.take(0, 1), op.value(1)
    if labels is not None and indices is not None and indices.ndim:
        op.give(1, labels[np.sort(indices % len(labels))])
        op.renumber(1, labels)


@sabotage("Tile", "mask permutation")
def repeats_instead_of_tiling(op: Op) -> None:
    labels, repeats = op.take(0, 1), op.ints(1, "")
    if labels is not None and repeats is not None:
        op.give(1, np.repeat(labels, repeats[1]))
