"""Cases of lookups, of operators on blocks of maps, and of Einsum."""

from __future__ import annotations

from functools import partial

import numpy as np
from case import conv, dense, flat, layer, rows, same, swap, tokens
from onnx import numpy_helper
from strategies import Body, Net, apply, both, chain, computed_shape

time_first = apply("Transpose", perm=[1, 0, 2])

# -- lookups ---------------------------------------------------------------------------------


def places(n: Net, _: str) -> str:
    """Computed integers ``[N, 3]`` below 4: the tokens where the input is largest."""
    return n.op("ArgMax", "x0", axis=1, keepdims=0)


def embedded(*shape: int, axis: int = 0) -> Body:
    """Rows of a table."""
    return lambda n, x: n.op("Gather", n.weight(*shape), places(n, x), axis=axis)


def picked(n: Net, x: str) -> str:
    """An embedding of which channel is largest: indices that carry labels of another axis."""
    return n.op("Gather", n.weight(4, 3), n.op("ArgMax", x, axis=1, keepdims=0))


_joined = partial(both, "Concat", axis=1)
tokens("Gather", "embedding alone", embedded(7, 4))
tokens("Gather", "embedding beside tokens", _joined(same, embedded(7, 4)))
_added = chain(_joined(same, embedded(5, 4)), lambda n, x: n.op("Add", x, n.weight(1, 7, 4)))
tokens("Gather", "embedding and positions", chain(_added, dense(4, 4)))
_columns = chain(embedded(4, 7, axis=1), apply("Transpose", perm=[1, 2, 0]))
tokens("Gather", "columns of a table", _columns)
_both = chain(embedded(7, 2, 3), apply("Reshape", [0, 0, 6]))
tokens("Gather", "embedding of two axes", _both, out=6)
tokens("Gather", "labelled indices", chain(picked, apply("Transpose", perm=[0, 2, 1])))


def gather_nd(n: Net, x: str) -> str:
    """Pick tokens for each sample."""
    where = n.op("Unsqueeze", places(n, x), n.const([-1]))
    return n.op("GatherND", x, where, batch_dims=1)


_where = apply("GatherND", [[2], [0], [3]])
tokens("GatherND", "tokens of each sample", gather_nd)
tokens("GatherND", "tokens", chain(time_first, _where, time_first))
_pixels = chain(apply("Transpose", perm=[2, 3, 0, 1]), apply("GatherND", [[0, 1], [3, 2]]))
layer("GatherND", "pixels", chain(_pixels, apply("Transpose", perm=[1, 2, 0]),
                                  apply("Unsqueeze", [3])))  # fmt: skip
_channels = chain(apply("Transpose", perm=[1, 0, 2, 3]), apply("GatherND", [[1], [3]]),
                  apply("Transpose", perm=[1, 0, 2, 3]))  # fmt: skip
layer("GatherND", "channels", _channels, out=2, prunable=False)


def scatter_nd(data: str, updates: str, **attributes: str) -> Body:
    """Write two tokens; each side is this layer's, another layer's, or constant."""

    def body(n: Net, x: str) -> str:
        rows = time_first(n, x)
        made = {
            "same": lambda _: rows,
            "layer": lambda _: time_first(n, n.dense("x0", 3, 4)),
            "constant": lambda length: n.weight(length, 2, 4),
        }
        new = made[updates](2)
        if updates != "constant":
            new = n.op("Slice", new, n.const([1]), n.const([3]), n.const([0]))
        where = n.const([[3], [1]])
        done = n.op("ScatterND", made[data](4), where, new, **attributes)
        return n.op("Add", time_first(n, done), x)

    return body


for _data, _updates in (
    ("same", "layer"), ("layer", "same"), ("layer", "layer"),
    ("constant", "same"), ("same", "constant"),
):  # fmt: skip
    _batch = {"batch": 2} if "constant" in (_data, _updates) else {}
    tokens("ScatterND", f"{_updates} into {_data}", scatter_nd(_data, _updates), **_batch)
tokens("ScatterND", "added", scatter_nd("same", "layer", reduction="add"), opset=18)
_into = apply("ScatterND", [[0, 1, 2]], [1.5])
tokens("ScatterND", "single values", _into, prunable=False, batch=2)


def table_nd(n: Net, x: str) -> str:
    """Rows of a constant table, by two numbers each."""
    where = n.op("Concat", *(n.op("Unsqueeze", places(n, x), n.const([2])) for _ in range(2)),
                 axis=2)  # fmt: skip
    return n.op("Concat", x, n.op("GatherND", n.weight(4, 4, 4), where), axis=1)


tokens("GatherND", "rows of a table", table_nd)


def numbers(n: Net, x: str, kind: str, width: int = 4) -> str:
    """Which token each of 4 tokens picks: one for all channels, or for each its own."""
    if kind == "constant":
        return n.const(n.rng.integers(0, 4, size=(2, 4, width)))
    if kind == "own":
        return n.op("ArgMax", x, axis=1, keepdims=1)
    picked = n.op("ArgMax", "x0", axis=2, keepdims=1)
    if kind == "tiled":
        return n.op("Tile", picked, n.const([1, 1, width]))
    return n.op("Expand", picked, computed_shape(n, x, 4, width))


def gathered(kind: str, width: int = 4, axis: int = 1) -> Body:
    """Values of other tokens."""
    return lambda n, x: n.op("GatherElements", x, numbers(n, x, kind, width), axis=axis)


for _kind in ("expanded", "tiled", "constant", "own"):
    _batch = {"batch": 2} if _kind == "constant" else {}
    tokens("GatherElements", _kind, gathered(_kind), **_batch)
_layers = both("GatherElements", same, lambda n, x: n.op("ArgMax", n.dense(x, 4, 4), axis=1),
               axis=1)  # fmt: skip
tokens("GatherElements", "indices of a layer", _layers)
tokens("GatherElements", "some channels", gathered("expanded", 3), out=3, prunable=False)
tokens("GatherElements", "across channels", gathered("expanded", axis=2), prunable=False)
_turned = chain(swap, lambda n, x: n.op("GatherElements", x, n.const(np.tile([0, 2, 1, 3], (2, 4, 1)
                )), axis=2), swap)  # fmt: skip
tokens("GatherElements", "last axis", _turned, batch=2)


def scattered(data: str, kind: str = "expanded", op: str = "ScatterElements", width: int = 4,
              axis: int = 1, **how: str) -> Body:  # fmt: skip
    """Messages to other tokens, as graph networks pass them."""

    def body(n: Net, x: str) -> str:
        messages = n.dense(x, 4, width)
        if data == "zeros":
            nothing = numpy_helper.from_array(np.zeros(1, np.float32))
            into = n.op("ConstantOfShape", computed_shape(n, x, 4, 4), value=nothing)
        else:
            into = n.weight(2, 4, 4) if data == "constant" else x
        done = n.op(op, into, numbers(n, x, kind, width), messages, axis=axis, **how)
        return n.op("Add", n.op("Tanh", done), x)

    return body


for _data in ("same", "zeros", "constant"):
    for _kind in ("expanded", "tiled", "constant"):
        _batch = {"batch": 2} if "constant" in (_data, _kind) else {}
        _body = scattered(_data, _kind, reduction="add")
        tokens("ScatterElements", f"{_kind} into {_data}", _body, opset=16, **_batch)
for _how in ("mul", "max", "min"):
    tokens("ScatterElements", _how, scattered("same", reduction=_how), opset=18)
tokens("ScatterElements", "last wins", scattered("zeros"))
tokens("ScatterElements", "some channels", scattered("same", width=3), prunable=False)
tokens("ScatterElements", "across channels", scattered("same", axis=2), prunable=False)
tokens("Scatter", "last wins", scattered("same", "constant", "Scatter"), opset=10, batch=2)

tokens("Compress", "tokens", apply("Compress", [True, False, True, True], axis=1))
tokens("Compress", "channels", apply("Compress", [True, False, True, True], axis=2), out=3,
       prunable=False)  # fmt: skip


def largest(axis: int, *last: int) -> Body:
    """Which token is the largest of each channel, told by zeros and ones."""

    def body(n: Net, x: str) -> str:
        where = n.op("ArgMax", x, axis=1, keepdims=0)
        made = n.op("OneHot", where, n.const(4), n.const([-0.5, 1.0]), axis=axis)
        return n.op("Transpose", made, perm=[0, *last]) if last else made

    return body


tokens("OneHot", "in front", largest(1))
tokens("OneHot", "behind", largest(-1, 2, 1))


def fourier(axis: int, **how: int) -> Body:
    """Real and imaginary parts of a transform, added up."""

    def body(n: Net, x: str) -> str:
        pairs, named = n.op("Unsqueeze", x, n.const([3])), {"axis": axis} if n.opset < 20 else {}
        operands = [pairs] if named else [pairs, "", n.const(axis)]
        return n.op("ReduceSum", n.op("DFT", *operands, **named, **how), n.const([3]), keepdims=0)

    return body


for _opset in (17, 20):
    tokens("DFT", f"tokens, {_opset}", fourier(1), opset=_opset)
tokens("DFT", "negative, one-sided", fourier(-3, onesided=1), opset=20)
tokens("DFT", "channels", fourier(2), prunable=False)

# -- constants of a computed shape -----------------------------------------------------------


def filled(*shape: int, value: float = 0.5) -> Body:
    """One value in the shape of a computed batch and constants."""

    def body(n: Net, x: str) -> str:
        tensor = numpy_helper.from_array(np.asarray([value], np.float32))
        return n.op("ConstantOfShape", computed_shape(n, x, *shape), value=tensor)

    return body


layer("ConstantOfShape", "added", both("Add", same, filled(4, 4, 4)))
layer("ConstantOfShape", "beside", both("Concat", same, filled(3, 4, 4), axis=1), out=7)
tokens("ConstantOfShape", "token", both("Concat", filled(1, 4), same, axis=1))
layer("ConstantOfShape", "gates", both("Mul", conv(4, 4), filled(4, 1, 1)))


ONE = numpy_helper.from_array(np.asarray([1]))


def positions(n: Net, x: str) -> str:
    """Learnt positions of 5 tokens."""
    return n.op("Add", x, n.weight(1, 5, 4))


def class_token(how: str) -> Body:
    """Put a learnt token before the others of every sample."""

    def body(n: Net, x: str) -> str:
        token = n.weight(1, 1, 4)
        if how == "computed":
            shape = computed_shape(n, x, 1, 4)
        elif how == "short":
            shape = computed_shape(n, x, 1, 1)
        else:  # expand(batch, -1, -1), as PyTorch writes it
            given = computed_shape(n, x, -1, -1)
            minus = n.op("Mul", n.op("ConstantOfShape", n.const([3]), value=ONE), n.const(-1))
            ones = n.op("ConstantOfShape", n.const([3]), value=ONE)
            shape = n.op("Where", n.op("Equal", given, minus), ones, given)
        return n.op("Concat", n.op("Expand", token, shape), x, axis=1)

    return body


for _how in ("computed", "short", "PyTorch"):
    tokens("Expand", f"class token, {_how}", chain(class_token(_how), positions, dense(4, 4)))


def gates(op_type: str) -> Body:
    """One gate for all channels, which the graph repeats for each of them."""

    def body(n: Net, x: str) -> str:
        gate = n.op("Sigmoid", n.op("ReduceMax", "x0", axes=[1], keepdims=1))
        shape = computed_shape(n, x, 4, 4, 4) if op_type == "Expand" else n.const([1, 4, 1, 1])
        return n.op("Mul", n.conv(x, 4, 4), n.op(op_type, gate, shape))

    return body


def reversed_tokens(n: Net, x: str) -> str:
    """Turn the first tokens of each sample around."""
    return n.op("ReverseSequence", x, n.const([3, 2]), batch_axis=0, time_axis=1)


tokens("ReverseSequence", "tokens", reversed_tokens, batch=2)
_turned = chain(swap, reversed_tokens, swap)
tokens("ReverseSequence", "channels", _turned, batch=2, prunable=False)
layer("Trilu", "maps", apply("Trilu", upper=0))
layer("Trilu", "upper", apply("Trilu", 1))
tokens("Trilu", "last axis", chain(apply("Unsqueeze", [1]), apply("Trilu"), apply("Squeeze", [1])),
       prunable=False)  # fmt: skip
for _op in ("Expand", "Tile"):
    layer(_op, "gates", gates(_op))

# -- blocks of maps --------------------------------------------------------------------------

for _op, _wide, _modes in (("DepthToSpace", 12, ("DCR", "CRD", "")), ("SpaceToDepth", 4, ("",))):
    for _mode in _modes:
        _attributes = {"mode": _mode} if _mode else {}
        _shift = apply(_op, blocksize=2, **_attributes)
        _out = 3 if _op == "DepthToSpace" else 16
        layer(_op, _mode or "default", _shift, c=_wide, out=_out)
        layer(_op, f"{_mode}, behind groups", chain(conv(_wide, _wide, group=2), _shift), c=_wide,
              out=_out)  # fmt: skip
    layer(_op, "three by three", apply(_op, blocksize=3), c=18 if _wide > 4 else 2,
          out=2 if _wide > 4 else 18, size=(3, 3))  # fmt: skip
layer("DepthToSpace", "to one channel", apply("DepthToSpace", blocksize=2), out=1, prunable=False)
_there = apply("SpaceToDepth", blocksize=2)
for _mode in ("DCR", "CRD"):
    _round = chain(_there, apply("DepthToSpace", blocksize=2, mode=_mode))
    layer("SpaceToDepth", f"and back, {_mode}", _round, c=8, out=8)
    layer("DepthToSpace", f"residual, {_mode}", both("Add", conv(8, 8), _round), c=8, out=8)

# -- Einsum ----------------------------------------------------------------------------------


def einsum(equation: str, *weights: tuple[int, ...], at: int = 0) -> Body:
    """An Einsum with constants before and behind the activations."""

    def body(n: Net, x: str) -> str:
        constants = [n.weight(*w) for w in weights]
        return n.op("Einsum", *constants[:at], x, *constants[at:], equation=equation)

    return body


def two(equation: str, *bodies: Body) -> Body:
    """An Einsum of what bodies return."""
    return both("Einsum", *bodies, equation=equation)


def einsum_attention(n: Net, x: str) -> str:
    """Attention with 2 heads of width 3, written in letters."""
    q, k, v = (einsum("bnd,dhk->bhnk", (4, 2, 3))(n, x) for _ in range(3))
    scores = n.op("Softmax", n.op("Einsum", q, k, equation="bhik,bhjk->bhij"))
    mixed = n.op("Einsum", scores, v, equation="bhij,bhjk->bihk")
    return n.op("Einsum", mixed, n.weight(2, 3, 4), equation="bihk, hkd -> bid")


tokens("Einsum", "two activations", two("bid,bjd->bij", dense(4, 6), dense(4, 6)))
_outer = two("bid,bie->bide", dense(4, 3), dense(4, 2))
tokens("Einsum", "outer product", chain(_outer, apply("Reshape", [0, 0, 6])), out=6)
tokens("Einsum", "element by element", two("bnd,bnd->bnd", dense(4, 4), same))
tokens("Einsum", "constant behind", einsum("bnd,dk->bnk", (4, 5)), out=5)
tokens("Einsum", "constant in front", einsum("kd,bnd->bnk", (5, 4), at=1), out=5)
tokens("Einsum", "constant of one axis", einsum("bnd,d->bnd", (4,)))
tokens("Einsum", "square constant", einsum("bnd,kd->bnk", (4, 4)))
_heads = chain(einsum("bnd,dhk->bnhk", (4, 2, 3)), apply("Reshape", [0, 0, 6]))
tokens("Einsum", "heads", _heads, out=6)
tokens("Einsum", "two constants", einsum("bnd,dk,km->bnm", (4, 3), (3, 5)), out=5)
tokens("Einsum", "attention", einsum_attention)
tokens("Einsum", "transposed", chain(einsum("bnd->bdn"), swap))
tokens("Einsum", "sum", chain(einsum("bnd->bn"), apply("Unsqueeze", [1])))
tokens("Einsum", "tokens summed", chain(einsum("bnd->bd"), apply("Unsqueeze", [1])))
tokens("Einsum", "implicit output", chain(einsum("bnd,dk", (4, 4)), swap))
_reversed = chain(einsum("zya,ak", (4, 5)), apply("Transpose", perm=[2, 1, 0]))
tokens("Einsum", "implicit, letters out of order", _reversed, out=5)
tokens("Einsum", "capital letters", einsum("NHd,dK->NHK", (4, 5)), out=5)
layer("Einsum", "maps", einsum("nchw,oc->nohw", (5, 4)), out=5)
rows("Einsum", "rows", chain(flat, einsum("nc,co->no", (16, 4))))
_grid = chain(apply("Reshape", [0, 2, 3, 4, 4]), einsum("nabhw,bc->nachw", (3, 2)),
              apply("Reshape", [0, 4, 4, 4]))  # fmt: skip
layer("Einsum", "factors", _grid, c=6)
tokens("Einsum", "ellipsis", einsum("...d,dk->...k", (4, 5)), out=5)
tokens("Einsum", "diagonal", chain(einsum("bii->bi"), apply("Unsqueeze", [1])), prunable=False)
tokens("Einsum", "spread", two("bnd,bnd->bnd", same, dense(4, 1)))


def experts(first: str, second: str, gated: str, *shapes: tuple[int, ...]) -> Body:
    """Several networks side by side, added up with gates that depend on the data."""

    def body(n: Net, x: str) -> str:
        inner = n.op("Tanh", n.op("Einsum", x, n.weight(*shapes[0]), equation=first))
        outer = n.op("Einsum", inner, n.weight(*shapes[1]), equation=second)
        return n.op("Einsum", n.op("Sigmoid", n.dense(x, 4, 3)), outer, equation=gated)

    return body


_moe = experts("bnd,edh->bneh", "bneh,ehd->bned", "bne,bned->bnd", (3, 4, 5), (3, 5, 4))
tokens("Einsum", "experts", _moe)
_moe = experts("...d,edh->e...h", "e...h,ehd->e...d", "...e,e...d->...d", (3, 4, 5), (3, 5, 4))
tokens("Einsum", "experts, ellipsis", _moe)
_inner = chain(einsum("bnd,edh->ebnh", (3, 4, 5)), apply("Tanh"))
tokens("Einsum", "experts, summed", chain(_inner, einsum("ebnh,ehd->bnd", (3, 5, 4))))
_stack = chain(apply("Reshape", [0, 0, 2, 3]), einsum("...hi,hij->...hj", (2, 3, 5)),
               apply("Reshape", [0, 0, 10]))  # fmt: skip
tokens("Einsum", "ellipsis, heads", _stack, c=6, out=10)
tokens("Einsum", "ellipsis, implicit", einsum("...d,dk", (4, 5)), out=5)
_inside = chain(einsum("b...d,dk->bk...", (4, 5)), swap)
tokens("Einsum", "ellipsis inside", _inside, out=5)


def picked_experts(n: Net, x: str) -> str:
    """The matrices of one expert for each token."""
    which = n.op("ArgMax", "x0", axis=2, keepdims=0)
    first, second = (n.op("Gather", n.weight(*s), which) for s in ((3, 4, 5), (3, 5, 4)))
    inner = n.op("Tanh", n.op("Einsum", x, first, equation="bnd,bndh->bnh"))
    column = n.op("Unsqueeze", inner, n.const([2]))
    return n.op("Squeeze", n.op("MatMul", column, second), n.const([2]))


tokens("Einsum", "experts, picked", picked_experts)
_scores = two("bid,bjd,bjk->bik", dense(4, 6), dense(4, 6), dense(4, 5))
tokens("Einsum", "three activations", _scores, out=5)
tokens("Einsum", "row of a stack", einsum("bnd,nd->bnd", (4, 4)))
_diagonal = chain(einsum("nchh->nch"), apply("Unsqueeze", [3]))
layer("Einsum", "diagonal of maps", _diagonal)


def twice(first: str, second: str, *shape: int) -> Body:
    """One matrix in two Einsums, with a layer before each of them."""

    def body(n: Net, x: str) -> str:
        weight = n.weight(*shape)
        y = n.op("Tanh", n.op("Einsum", x, weight, equation=first))
        return n.op("Einsum", n.dense(n.op("Add", y, n.weight(4)), 4, 4), weight, equation=second)

    return body


tokens("Einsum", "shared matrix", twice("bnd,dk->bnk", "bnd,dk->bnk", 4, 4))
tokens("Einsum", "shared matrix, there and back", twice("bnd,dk->bnk", "bnd,kd->bnk", 4, 4))
