"""Recurrent operators: hidden units are channels."""

from __future__ import annotations

import numpy as np

from onnxprune.arrays import I64
from onnxprune.structure.op import Op
from onnxprune.structure.rules.registry import rule

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
W, R, B, INITIAL_H, INITIAL_C, P = 1, 2, 3, 5, 6, 7


@rule("LSTM", "GRU", "RNN")
def recurrent(op: Op) -> None:
    """A hidden unit owns a row of every gate, a recurrent column and a place in the state.

    Both directions share their units. Inside the recurrence a removed unit is masked at the
    recurrent weights, over whose columns the node sums.
    """
    if not (op.is_constant(W) and op.is_constant(R) and op.all_constant(B, P)):
        return
    if op.attribute("layout", 0):
        return
    hidden, gates = op.shape(R)[2], GATES[op.type]
    units = op.fresh(hidden) if hidden > 1 else None
    inputs = op.sink(0, 2)
    op.site(W, 2, inputs)
    op.sum_over(R, 2, units)
    op.site(R, 2, units)
    for i in (W, R, B, P):
        if op.has(i):
            op.site(i, 1, _repeated(units, op.shape(i)[1] // hidden))
    for i in (INITIAL_H, INITIAL_C):
        if op.is_constant(i):
            op.site(i, 2, units)
        elif op.has(i):
            op.tie(units, op.take(i, 2))
    if units is not None:
        op.sizes({0: units}, "hidden_size")
    given = [o for o in range(len(op.node.outputs)) if op.node.outputs[o].name]
    for o in given:
        op.give(3 if o == 0 else 2, units, o)
    state = given[0]
    op.begin(3 if state == 0 else 2, units, state)
    directions, rows = op.shape(W)[0], gates * hidden
    row = np.arange(directions * rows, dtype=np.int64).reshape(directions, rows, 1)
    for i, tensor, axis, labels in (
        (W, op.tensor(0), 2, inputs),
        (R, op.node.outputs[state].name, 3 if state == 0 else 2, units),
    ):
        channels = np.arange(op.shape(i)[2], dtype=np.int64).reshape(1, 1, -1)
        op.weight(i, data=(tensor, axis, labels), channel_of=channels, output_of=row)


def _repeated(units: I64 | None, times: int) -> I64 | None:
    return None if units is None else np.tile(units, times)
