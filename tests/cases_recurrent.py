"""Cases of recurrent operators: both directions, every state and output, and what follows."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

from case import leave, tokens
from strategies import Body, Net, apply, chain

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STATES = {"LSTM": 2, "GRU": 1, "RNN": 1}
HIDDEN, LENGTH = 5, 4
time_first = apply("Transpose", perm=[1, 0, 2])


def batch_of(n: Net, x: str) -> str:
    """The number of samples as a vector of one."""
    return n.op("Unsqueeze", n.op("Gather", n.op("Shape", x), n.const(0)), n.const([0]))


def tiled_state(n: Net, x: str, directions: int, hidden: int, value: float = 0.0) -> str:
    """One number, repeated for all layers, of which a slice is taken."""
    repeats = n.op("Concat", batch_of(n, x), n.const([2 * directions]), n.const([hidden]), axis=0)
    state = n.op("Transpose", n.op("Tile", n.const([[[value]]]), repeats), perm=[1, 0, 2])
    return n.op("Slice", state, n.const([directions]), n.const([2**31]), n.const([0]))


def product_state(n: Net, _: str, directions: int, hidden: int) -> str:
    """What is left of the input when it is multiplied by zero, as Keras writes it."""
    none = n.op("ReduceSum", n.op("Mul", "x0", n.const(0.0)), n.const([1, 2]), keepdims=0)
    column = n.op("Unsqueeze", none, n.const([0, 2]))
    return n.op("Tile", column, n.const([directions, 1, hidden]))


def chosen_state(n: Net, x: str, directions: int, hidden: int) -> str:
    """Zeros whatever is chosen."""
    shape = n.op("Concat", n.const([directions]), batch_of(n, x), n.const([hidden]), axis=0)
    zeros = n.op("ConstantOfShape", shape)
    picks = n.op("Greater", n.op("ReduceMax", "x0", keepdims=0), n.const(0.0))
    return n.op("Concat", n.op("Where", picks, zeros, n.op("Neg", zeros)), axis=0)


ZEROS = {
    "tiled zeros": tiled_state,
    "tiled number": partial(tiled_state, value=0.3),
    "product": product_state,
    "choice": chosen_state,
}


def initial_state(n: Net, x: str, how: str, directions: int, hidden: int) -> str:
    """An initial state ``[directions, batch, hidden]`` for time-last rows ``x``."""
    if how == "":
        return ""
    if how == "constant":
        return n.weight(directions, 2, hidden)
    if how == "layer":
        each = [n.op("Tanh", n.dense("x0", 3, hidden)) for _ in range(directions)]
        last = [n.op("Gather", y, n.const([-1]), axis=1) for y in each]
        joined = last[0] if len(last) == 1 else n.op("Concat", *last, axis=1)
        return n.op("Transpose", joined, perm=[1, 0, 2])
    ends = n.const([directions]), n.const([hidden])
    shape = n.op("Concat", ends[0], batch_of(n, x), ends[1], axis=0)
    if how == "zeros":
        return n.op("ConstantOfShape", shape)
    if how in ZEROS:
        return ZEROS[how](n, x, directions, hidden)
    value = n.const(0.7) if how == "one number" else n.weight(directions, 1, hidden)
    return n.op("Expand", value, shape)


def recurrent(
    op_type: str, *, c: int = 4, hidden: int = HIDDEN, bias: bool = True,
    direction: str = "forward", initial: str = "", given: str = "Y", peepholes: bool = False,
    merge: str = "batch first", lengths: bool = False, **attributes: Any,
) -> Body:  # fmt: skip
    """Rows ``[N, L, c]`` through a recurrence, to rows again (with directions side by side)."""
    both = direction == "bidirectional"
    d, gates = 1 + both, GATES[op_type]

    def body(n: Net, x: str) -> str:
        operands = [time_first(n, x), n.weight(d, gates * hidden, c)]
        operands += [n.weight(d, gates * hidden, hidden)]
        operands += [n.weight(d, 2 * gates * hidden) if bias else ""]
        operands += [n.const([LENGTH, LENGTH - 1], "int32") if lengths else ""]
        states = [initial_state(n, x, initial, d, hidden) for _ in range(STATES[op_type])]
        operands += states + ([n.weight(d, 3 * hidden)] if peepholes else [])
        while not operands[-1]:
            operands.pop()
        made = n.ops(
            op_type, 1 + STATES[op_type], *operands, direction=direction, hidden_size=hidden,
            **attributes,
        )  # fmt: skip
        node = n.nodes[-1]
        wanted = given.split("+")
        rows = []
        for name, output in zip(("Y", "Y_h", "Y_c"), list(made), strict=False):
            if name in wanted:
                rows.append(side_by_side(n, output, name, d, hidden, merge))
            else:
                node.output[list(node.output).index(output)] = ""
        while not node.output[-1]:
            node.output.pop()
        for other in rows[1:]:
            rows[0] = n.op("Add", rows[0], other)
        return rows[0]

    return body


def side_by_side(n: Net, y: str, name: str, d: int, hidden: int, merge: str) -> str:
    """Turn ``[L, d, N, h]`` or ``[d, N, h]`` into rows ``[N, L or 1, d * h]``."""
    axis = n.const([1 if name == "Y" else 0])
    if name == "Y":
        if d == 1:
            return time_first(n, n.op("Squeeze", y, axis))
        if merge == "batch first":
            y = n.op("Transpose", y, perm=[2, 0, 1, 3])
            return n.op("Reshape", y, n.const([0, 0, d * hidden]))
        y = n.op("Transpose", y, perm=[0, 2, 1, 3])
        return time_first(n, n.op("Reshape", y, n.const([0, 0, -1])))
    if d == 1:
        return n.op("Unsqueeze", n.op("Squeeze", y, axis), n.const([1]))
    if merge == "picked":
        ends = [n.op("Gather", y, n.const(k), axis=0) for k in range(d)]
        return n.op("Unsqueeze", n.op("Concat", *ends[::-1], axis=1), n.const([1]))
    joined = n.op("Reshape", n.op("Transpose", y, perm=[1, 0, 2]), n.const([-1, d * hidden]))
    return n.op("Unsqueeze", joined, n.const([1]))


def case(op_type: str, variant: str, *, out: int = 0, fixed: bool = False, **how: Any) -> None:
    """Register a case for one recurrence."""
    c, prunable, opset = (how.pop(k, v) for k, v in (("c", 4), ("prunable", True), ("opset", 17)))
    both = how.get("direction") == "bidirectional"
    out = out or (1 + both) * how.get("hidden", HIDDEN)
    body = recurrent(op_type, c=c, **how)
    how = {"batch": 2} if fixed else {}
    tokens(op_type, variant, body, out=out, c=c, prunable=prunable, opset=opset, **how)


for _op in GATES:
    for _direction, _bias in product(("forward", "bidirectional"), (True, False)):
        case(_op, f"{_direction}{'' if _bias else ', no bias'}", direction=_direction, bias=_bias)
    case(_op, "reverse", direction="reverse")
    for _initial in ("constant", "zeros", "token", "one number", "layer"):
        for _direction in ("forward", "bidirectional"):
            case(
                _op, f"{_direction}, initial {_initial}", direction=_direction,
                initial=_initial, fixed=_initial == "constant",
            )  # fmt: skip
    for _initial in ZEROS:
        case(_op, f"initial {_initial}", direction="bidirectional", initial=_initial)
    for _given in ("Y_h", "Y+Y_h"):
        case(_op, f"forward, {_given}", given=_given)
        case(_op, f"bidirectional, {_given}", given=_given, direction="bidirectional")
    case(_op, "bidirectional, time first", direction="bidirectional", merge="time first")
    case(_op, "bidirectional, ends", direction="bidirectional", given="Y_h", merge="picked")
    case(_op, "lengths", lengths=True, fixed=True, given="Y+Y_h")
    case(_op, "one hidden unit", hidden=1)
    case(_op, "clipped", clip=0.4)
for _direction in ("forward", "bidirectional"):
    case("LSTM", f"{_direction}, peepholes", direction=_direction, peepholes=True)
    case("LSTM", f"{_direction}, Y_c", direction=_direction, given="Y_c")
    case("LSTM", f"{_direction}, all outputs", direction=_direction, given="Y+Y_h+Y_c")
    _all = {"initial": "token", "peepholes": True, "given": "Y_h+Y_c"}
    case("LSTM", f"{_direction}, all inputs", direction=_direction, **_all)
    case("GRU", f"{_direction}, reset after", direction=_direction, linear_before_reset=1)
    _how = {"direction": _direction, "linear_before_reset": 1, "bias": False}
    case("GRU", f"{_direction}, reset after, no bias", **_how)
case("LSTM", "input forgets", input_forget=1, peepholes=True)
case("RNN", "relu", activations=["Relu"])
case("LSTM", "other activations", activations=["HardSigmoid", "Softsign", "Elu"])


def stacked(op_type: str) -> Body:
    """Two bidirectional layers."""
    first = recurrent(op_type, direction="bidirectional", merge="time first")
    second = recurrent(op_type, c=2 * HIDDEN, hidden=3, direction="bidirectional", given="Y_h")
    return chain(first, second)


def residual(op_type: str) -> Body:
    """The states join the stream that they were computed from."""
    return lambda n, x: n.op("Add", x, recurrent(op_type, hidden=4)(n, x))


def encoder_decoder(op_type: str) -> Body:
    """The last state of one recurrence begins another."""

    def body(n: Net, x: str) -> str:
        w, gates = time_first(n, x), GATES[op_type] * HIDDEN
        weights = [(n.weight(1, gates, 4), n.weight(1, gates, HIDDEN)) for _ in range(2)]
        _, *states = n.ops(op_type, 1 + STATES[op_type], w, *weights[0], hidden_size=HIDDEN)
        second = n.op(op_type, w, *weights[1], "", "", *states, hidden_size=HIDDEN)
        return time_first(n, n.op("Squeeze", second, n.const([1])))

    return body


def computed_weight(op_type: str) -> Body:
    """The weights depend on the data."""

    def body(n: Net, x: str) -> str:
        rows = GATES[op_type] * HIDDEN
        w = n.op("Mul", n.weight(1, rows, 4), n.op("ReduceMax", "x0", keepdims=0))
        y = n.op(op_type, time_first(n, x), w, n.weight(1, rows, HIDDEN), hidden_size=HIDDEN)
        return time_first(n, leave(n, n.op("Squeeze", y, n.const([1]))))

    return body


for _op in GATES:
    tokens(_op, "stacked", stacked(_op), out=6)
    tokens(_op, "residual", residual(_op))
    tokens(_op, "encoder and decoder", encoder_decoder(_op), out=HIDDEN)
    tokens(_op, "computed weight", computed_weight(_op), out=HIDDEN, prunable=False)
