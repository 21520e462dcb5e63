"""Cases of operators that mix values along an axis: normalisations, sorting, running sums."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from case import conv, dense, layer, leave, same, swap, tokens
from strategies import Body, Net, apply, both, chain, computed_shape

turned = apply("Transpose", perm=[0, 2, 1, 3])


def scaled(op_type: str, *widths: tuple[int, ...], **attributes: Any) -> Body:
    """A normalisation with parameters of these shapes, far from 1 and 0."""
    return lambda n, x: n.op(op_type, x, *(n.weight(*w) for w in widths), **attributes)


def with_statistics(n: Net, x: str) -> str:
    """Use the means and the inverse deviations too."""
    y, mean, deviation = n.ops("LayerNormalization", 3, x, n.weight(4), axis=3)
    return n.op("Add", n.op("Mul", y, mean), deviation)


# -- over the last axes ----------------------------------------------------------------------

for _op, _opset, _biases in (
    ("LayerNormalization", 17, 1),
    ("RMSNormalization", 23, 0),
    ("SimplifiedLayerNormalization", 17, 0),
):
    _one, _two = [(4,)] * (1 + _biases), [(4, 4)] * (1 + _biases)
    tokens(_op, "channels", scaled(_op, *_one), opset=_opset, prunable=False)
    tokens(_op, "last axis", chain(swap, scaled(_op, *_one, axis=-1), swap), opset=_opset)
    layer(_op, "maps", scaled(_op, *_two, axis=2), opset=_opset)
    layer(_op, "maps, negative axis", scaled(_op, *_two, axis=-2), opset=_opset)
    _all = scaled(_op, *[(4, 4, 4)] * (1 + _biases), axis=1)
    layer(_op, "everything", _all, opset=_opset, prunable=False)
tokens("LayerNormalization", "no bias", chain(swap, scaled("LayerNormalization", (4,)), swap))
layer("LayerNormalization", "statistics", with_statistics)

# -- over maps and groups of maps ------------------------------------------------------------


def groups_of(groups: int, *widths: int) -> Body:
    """Normalise 6 channels in groups with parameters of this width."""
    return scaled("GroupNormalization", *[(w,) for w in widths], num_groups=groups, epsilon=1e-3)


def reshaped_groups(n: Net, x: str) -> str:
    """Group normalisation as PyTorch writes it before opset 18."""
    rows = n.op("Reshape", x, n.const([0, 3, -1]))
    ones, zeros = n.const(np.ones(3, np.float32)), n.const(np.zeros(3, np.float32))
    rows = n.op("InstanceNormalization", rows, ones, zeros)
    maps = n.op("Reshape", rows, n.op("Shape", x))
    return n.op("Add", n.op("Mul", maps, n.weight(6, 1, 1)), n.weight(6, 1, 1))


def computed_scale(op_type: str, **attributes: Any) -> Body:
    """A normalisation whose scale is computed from another layer."""

    def body(n: Net, x: str) -> str:
        axes = [0, 2, 3]
        scale = n.op("ReduceMax", n.conv("x0", 2, 6), n.const(axes), keepdims=0)
        return n.op(op_type, x, scale, n.weight(6), **attributes)

    return body


_group = partial(layer, "GroupNormalization", c=6, out=6)
_group("per channel", groups_of(3, 6, 6), opset=21)
_group("per group", groups_of(3, 3, 3), opset=18)
_group("one channel each", groups_of(6, 6, 6), opset=21)
_group("one group", groups_of(1, 6, 6), opset=21, prunable=False)
_group("behind groups", chain(conv(6, 6, group=2), groups_of(2, 6, 6)), opset=21)
_group("between others", chain(conv(6, 6, group=2), groups_of(3, 6, 6)), opset=21)
_group("residual", both("Add", same, chain(groups_of(2, 6, 6), conv(6, 6))), opset=21)
_group("computed scale", computed_scale("GroupNormalization", num_groups=3), opset=21)
_group("volumes", groups_of(3, 6, 6), opset=21, size=(2, 3, 2))
layer("InstanceNormalization", "maps", scaled("InstanceNormalization", (4,), (4,)))
layer("InstanceNormalization", "1d", scaled("InstanceNormalization", (4,), (4,)), size=(5,))
layer("InstanceNormalization", "groups", reshaped_groups, c=6, out=6)
_computed = computed_scale("InstanceNormalization")
layer("InstanceNormalization", "computed scale", _computed, c=6, out=6, opset=18)
layer("MeanVarianceNormalization", "default", apply("MeanVarianceNormalization"))
layer("MeanVarianceNormalization", "maps", apply("MeanVarianceNormalization", axes=[2, -1]))
_wide = apply("MeanVarianceNormalization", axes=[1, 2, 3])
layer("MeanVarianceNormalization", "channels too", _wide, prunable=False)

# -- over one axis ---------------------------------------------------------------------------

for _p in (1, 2):
    layer("LpNormalization", f"map axis, {_p}", apply("LpNormalization", axis=2, p=_p))
layer("LpNormalization", "channels", apply("LpNormalization", axis=1), prunable=False)
tokens("LpNormalization", "last axis", chain(swap, apply("LpNormalization"), swap))
_lrn = apply("LRN", size=3, alpha=0.5)
layer("LRN", "channels", _lrn, prunable=False)
layer("LRN", "turned", chain(turned, _lrn, turned))
layer("CumSum", "map axis", apply("CumSum", 2))
layer("CumSum", "last axis, reversed", apply("CumSum", -1, reverse=1, exclusive=1))
layer("CumProd", "map axis", apply("CumProd", 2), opset=26)
layer("CumSum", "channels", apply("CumSum", 1), prunable=False)
tokens("CumSum", "tokens", apply("CumSum", [1]))


def largest(*, values: bool = True, indices: bool = False, k: int = 2, **attributes: Any) -> Body:
    """The largest values, the places of them, or both."""

    def body(n: Net, x: str) -> str:
        made = n.ops("TopK", 2, x, n.const([k]), **attributes)
        made[1] = leave(n, made[1])
        return n.op("Mul", *made) if values and indices else made[indices]

    return body


layer("TopK", "values", largest(axis=2))
layer("TopK", "places", largest(values=False, indices=True, axis=3))
layer("TopK", "both, smallest", largest(indices=True, largest=0))
layer("TopK", "attribute", lambda n, x: n.ops("TopK", 2, x, k=2)[0], opset=9)
layer("TopK", "channels", largest(axis=1), out=2, prunable=False)
for _op in ("ArgMax", "ArgMin"):
    layer(_op, "map axis", chain(apply(_op, axis=2), leave))
    _dropped = chain(apply(_op, axis=-1, keepdims=0), leave, apply("Unsqueeze", [3]))
    layer(_op, "dropped", _dropped)
    _first = chain(apply("Transpose", perm=[1, 0, 2]), apply(_op, keepdims=0), leave)
    tokens(_op, "default axis", chain(_first, apply("Unsqueeze", [1]), same))
    layer(_op, "channels", chain(apply(_op, axis=1), leave), out=1, prunable=False)


def decomposed(*axes: int) -> Body:
    """Layer normalisation as exporters wrote it before opset 17."""

    def body(n: Net, x: str) -> str:
        centred = n.op("Sub", x, n.op("ReduceMean", x, axes=axes))
        variance = n.op("ReduceMean", n.op("Pow", centred, n.const(2.0)), axes=axes)
        deviation = n.op("Sqrt", n.op("Add", variance, n.const(1e-3)))
        scaled = n.op("Mul", n.op("Div", centred, deviation), n.weight(4))
        return n.op("Add", scaled, n.weight(4))

    return body


def transformer(n: Net, x: str) -> str:
    """A pre-norm block: both branches read the normalised stream and add to it."""
    shape = computed_shape(n, x, 4, 4)
    inner = dense(4, 6)(n, decomposed(2)(n, x))
    added = n.op("Add", x, dense(6, 4)(n, n.op("Relu", inner)))
    normal = n.op("LayerNormalization", added, n.weight(4), n.weight(4))
    return n.op("Add", added, n.op("Reshape", dense(4, 4)(n, normal), shape))


tokens("ReduceMean", "decomposed layer norm", decomposed(-1), prunable=False)
tokens("ReduceMean", "of tokens", chain(swap, decomposed(-1), swap))
tokens("LayerNormalization", "transformer", transformer)
