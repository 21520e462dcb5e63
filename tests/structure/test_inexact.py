"""Channels leave across which something is normalised: what remains is normalised alone.

The reference is the original in which each normalising node sees the channels that stay and
nothing else; its results are put back between zeros. It is built here from the operators'
definitions, without the product's verification.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import oracle
import pytest
from case import Case, dense, layer, tokens
from cases import CASES
from cases_normalization import decomposed, scaled
from onnx import NodeProto, helper, numpy_helper
from onnx.checker import ValidationError
from onnx.shape_inference import InferenceError
from oracle import Traced, error, feeds, identity, mask, permutation, run
from reference import attributes, reduced_axes
from sabotages import without
from strategies import Body, Net, apply, both, chain

from onnxprune.arrays import Bool
from onnxprune.errors import InternalError
from onnxprune.plans.cut import Cut
from onnxprune.plans.plan import plan_from_units
from onnxprune.rewrite.rewrite import masked
from onnxprune.structure.op import MEETS_FIXED
from onnxprune.structure.rules import RULES

DOMAIN = "com.microsoft::"
REJECTIONS = (AssertionError, InternalError, ValidationError, InferenceError)
LAST = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
SKIP = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
EMBED = "EmbedLayerNormalization"
OTHERS = ("GroupNormalization", "LpNormalization", "MeanVarianceNormalization", "ReduceMean")


def normalised_axes(t: Traced, node: NodeProto) -> list[int]:
    """Return the axes over which a node normalises, decided by its type alone.

    They are those of input 0, or of output 0 where tables are looked up in.
    """
    if node.op_type == EMBED:
        return [2]
    if node.op_type not in (*LAST, *SKIP, *OTHERS):
        return []
    given, rank = attributes(node), len(t.shape(node.input[0]))
    if node.op_type in LAST:
        return list(range(given.get("axis", -1) % rank, rank))
    if node.op_type in SKIP:
        return [rank - 1]
    if node.op_type == "GroupNormalization":
        return [1]
    if node.op_type == "LpNormalization":
        return [given.get("axis", -1) % rank]
    if node.op_type == "ReduceMean":
        return reduced_axes(node, rank, t.constants)
    return [k % rank for k in given.get("axes", (0, 2, 3))]


def renormalised(t: Traced, stays: Bool) -> oracle.Reference:
    """Return the masked original in which nodes normalise over what stays."""
    proto, places = oracle.masked(t, stays)
    nodes: list[NodeProto] = []
    changed = set()
    for node in proto.graph.node:
        before, behind = [], []
        aligned = node.output[0] if node.op_type == EMBED else "".join(node.input[:1])
        named = t.axes.get(aligned, {})
        name = next(o for o in node.output if o)
        for axis in normalised_axes(t, node):
            labels = named.get(axis)
            if labels is not None and not stays[labels].all():
                if not whole_groups(node, stays[labels]):
                    changed.add(name)
                one, other = narrowed(t, node, t.nodes()[name], axis, stays[labels])
                before, behind = before + one, other + behind
        nodes += [*before, node, *behind]
    assert changed <= {i.node for i in t.structure.inexact}, "not reported as inexact"
    return oracle.with_nodes(proto, nodes, []), places


def narrowed(
    t: Traced, node: NodeProto, original: NodeProto, axis: int, keep: Bool
) -> tuple[list[NodeProto], list[NodeProto]]:
    """Let a node see what stays of an axis; return what comes before and behind it.

    ``original`` is the node before other axes were narrowed.
    """
    embeds = node.op_type == EMBED
    from_end = axis - len(t.shape((original.output if embeds else original.input)[0]))
    groups = attributes(node).get("num_groups", 0)
    grouped = node.op_type == "GroupNormalization"
    before: list[NodeProto] = []
    behind: list[NodeProto] = []
    for i, name in enumerate(original.input):
        place = from_end + len(t.shape(name)) if name else -1
        alone = keep
        if grouped and i > 0:
            place = 0
            alone = keep if t.shape(name)[0] == len(keep) else some(keep, groups)
        if place >= 0 and reads_along(node, i) and t.shape(name)[place] == len(alone):
            index = np.flatnonzero(alone)
            new = f"{original.output[0]}/{axis}/{i}"
            before += picked(node.input[i], new, index, place)
            node.input[i] = new
    if grouped:
        (attribute,) = (a for a in node.attribute if a.name == "num_groups")
        attribute.i = int(some(keep, groups).sum())
    for o, name in enumerate(original.output):
        shape = t.shapes.first.get(name, ()) if node.op_type != "ReduceMean" else ()
        place = from_end + len(shape)
        if shape and place >= 0 and shape[place] == len(keep):
            compact, wide = f"{name}/{axis}/compact", node.output[o]
            node.output[o] = compact
            behind += spread(compact, wide, keep, place)
    return before, behind


def whole_groups(node: NodeProto, keep: Bool) -> bool:
    """Whether the statistics of what stays are those that they were."""
    groups = attributes(node).get("num_groups", 1)
    return groups > 1 and bool((some(keep, groups) == keep.reshape(groups, -1).all(axis=1)).all())


def some(keep: Bool, groups: int) -> Bool:
    """Which groups of channels stay."""
    kept: Bool = keep.reshape(groups, -1).any(axis=1)
    return kept


def reads_along(node: NodeProto, i: int) -> bool:
    """Whether an input is aligned with the activations (axes of a reduction are not)."""
    if node.op_type == EMBED:
        return 2 <= i <= 6
    return i == 0 or node.op_type != "ReduceMean"


def constant(name: str, value: np.ndarray) -> NodeProto:
    """A node for a constant."""
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


def picked(source: str, result: str, index: np.ndarray, axis: int) -> list[NodeProto]:
    """Take indices of an axis."""
    place = f"{result}/index"
    gather = helper.make_node("Gather", [source, place], [result], axis=axis)
    return [constant(place, index.astype(np.int64)), gather]


def spread(source: str, result: str, keep: Bool, axis: int) -> list[NodeProto]:
    """Put slices back where they came from, between zeros."""
    index = np.where(keep, np.cumsum(keep) - 1, keep.sum())
    return [
        *picked(source, f"{result}/first", np.asarray([0]), axis),
        helper.make_node("Sub", [f"{result}/first"] * 2, [f"{result}/zeros"]),
        helper.make_node(
            "Concat", [source, f"{result}/zeros"], [f"{result}/with zeros"], axis=axis
        ),
        *picked(f"{result}/with zeros", result, index, axis),
    ]


# -- cases -----------------------------------------------------------------------------------


def written_out(n: Net, x: str) -> str:
    """Root mean square normalisation in single operators."""
    squares = n.op("ReduceMean", n.op("Mul", x, x), axes=[-1], keepdims=1)
    inverse = n.op("Reciprocal", n.op("Sqrt", n.op("Add", squares, n.const(1e-3))))
    return n.op("Mul", n.op("Mul", x, inverse), n.weight(4))


def rearranged(
    *, centred: bool = False, fast: bool = False, expanded: bool = False, axis: int = 2
) -> Body:
    """Layer normalisation that multiplies the inverse deviation by the scale first.

    The mean is subtracted before that (``centred``), or what it comes to behind it; the variance
    may be that of Flax (``fast``); statistics may be repeated for each channel (``expanded``).
    """
    width = (4,) if axis == 2 else (4, 1, 1)

    def body(n: Net, x: str) -> str:
        def mean(y: str) -> str:
            made = n.op("ReduceMean", y, axes=[axis])
            return n.op("Expand", made, n.op("Shape", x)) if expanded else made

        first = mean(x)
        gap = n.op("Sub", x, first)
        variance = mean(n.op("Mul", gap, gap))
        if fast:
            squares = n.op("Sub", mean(n.op("Mul", x, x)), n.op("Mul", first, first))
            variance = n.op("Max", n.const(0.0), squares)
        inverse = n.op("Reciprocal", n.op("Sqrt", n.op("Add", variance, n.const(1e-3))))
        scale, offset = n.op("Mul", inverse, n.weight(*width)), n.weight(*width)
        if centred:
            return n.op("Add", n.op("Mul", gap, scale), offset)
        offset = n.op("Sub", offset, n.op("Mul", first, scale))
        return n.op("Add", n.op("Mul", x, scale), offset)

    return body


def block(n: Net, x: str) -> str:
    """A pre-norm transformer block: the stream itself shrinks."""
    normal = scaled("LayerNormalization", (4,), (4,))(n, x)
    x = n.op("Add", x, dense(6, 4)(n, n.op("Relu", dense(4, 6)(n, normal))))
    return decomposed(2)(n, x)


FAMILIES = [*LAST, *OTHERS, *(DOMAIN + name for name in (*SKIP, EMBED))]
KNOWN = [case for op_type in FAMILIES for case in CASES[op_type]]
tokens("Inexact", "layer norm", decomposed(-1))
tokens("Inexact", "layer norm of tokens and channels", decomposed(1, 2))
tokens("Inexact", "root mean square", written_out)
tokens("Inexact", "scale first, centred", rearranged(centred=True))
tokens("Inexact", "scale first", rearranged())
tokens("Inexact", "scale first, fast variance", rearranged(fast=True))
tokens("Inexact", "scale first, repeated", rearranged(centred=True, expanded=True))
layer("Inexact", "scale first, maps", rearranged(axis=1))
tokens("Inexact", "block", block)
tokens("Inexact", "mean", both("Sub", chain(dense(4, 4)), apply("ReduceMean", axes=[2])))
tokens("Inexact", "two of them", chain(decomposed(2), dense(4, 4), decomposed(2)))
tokens("Inexact", "parts", chain(
    dense(4, 8), lambda n, x: n.op("Concat", *n.ops("Split", 2, x, axis=2)[::-1], axis=2),
    scaled("LayerNormalization", (8,), (8,))), out=8)  # fmt: skip
_heads = chain(dense(4, 6), apply("Reshape", [0, 0, 2, 3]), scaled("LayerNormalization", (3,)))
tokens("Inexact", "within heads", chain(_heads, apply("Reshape", [0, 0, 6])), out=6)
_rms = chain(apply("Reshape", [0, 0, 2, 3]), scaled("RMSNormalization", (2, 3), axis=2))
_rms = chain(dense(4, 6), _rms, apply("Reshape", [0, 0, 6]))
tokens("Inexact", "across heads", _rms, out=6, opset=23)


def decomposed_groups(n: Net, x: str) -> str:
    """Group normalisation in single operators: channels and positions share an axis."""
    rows = n.op("Reshape", x, n.const([0, 3, -1]))
    centred = n.op("Sub", rows, n.op("ReduceMean", rows, axes=[2]))
    variance = n.op("ReduceMean", n.op("Mul", centred, centred), axes=[2])
    rows = n.op("Div", centred, n.op("Sqrt", n.op("Add", variance, n.const(1e-3))))
    return n.op("Mul", n.op("Reshape", rows, n.op("Shape", x)), n.weight(6, 1, 1))


layer("Inexact", "groups", decomposed_groups, c=6, out=6)
layer("Inexact", "mean of everything", both("Sub", apply("Identity"), apply("ReduceMean")))
MADE = CASES.pop("Inexact")
ALL = [*KNOWN, *MADE]


@cache
def traced_case(case: Case) -> Traced:
    return oracle.traced(case.build(), allow_inexact=True)


def removals(t: Traced) -> Sequence[Bool]:
    return [
        oracle.random_removal(t.structure, np.random.default_rng(seed), share)
        for seed, share in enumerate((0.3, 0.6, 1.0))
    ]


every_case = pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)


@every_case
def test_case_passes_the_other_oracles(case: Case) -> None:
    identity(traced_case(case))
    assert permutation(traced_case(case))


@every_case
def test_case_equals_its_renormalised_original(case: Case) -> None:
    t = traced_case(case)
    assert t.structure.groups, "nothing can shrink"
    visible = [mask(t, kept, renormalised) for kept in removals(t)]
    assert any(visible)


@pytest.mark.parametrize(
    "case", [c for c in ALL if not c.prunable or c in MADE], ids=lambda c: c.name
)
def test_normalising_over_less_is_not_masking(case: Case) -> None:
    t = traced_case(case)
    inputs = feeds(t.proto, 2)
    differs = False
    for kept in removals(t):
        stays = t.structure.units.keep(kept)
        one, other = (refer(t, stays)[0] for refer in (oracle.masked, renormalised))
        differs |= error(run(one, inputs), run(other, inputs)) > 1e-3
    assert differs, "the reference has no teeth"


@every_case
def test_the_product_verifies_against_the_same(case: Case) -> None:
    t = traced_case(case)
    inputs = feeds(t.proto, 2)
    for kept in removals(t):
        plan = plan_from_units(t.model.sha256, t.structure, kept)
        theirs = masked(Cut(t.model, t.structure, t.shapes, plan)).proto
        ours = renormalised(t, t.structure.units.keep(kept))[0]
        assert error(run(ours, inputs), run(theirs, inputs)) < 1e-5


@pytest.mark.parametrize("case", [c for c in MADE if "first" in c.name], ids=lambda c: c.name)
def test_the_reason_without_the_flag_is_the_normalisation(case: Case) -> None:
    structure = oracle.traced(case.build()).structure
    reasons = {f.reason for f in structure.frozen if "model output" not in f.reason}
    assert any("normalises across it (see --allow-inexact)" in reason for reason in reasons)
    assert not any(reason == MEETS_FIXED for reason in reasons)


# -- the oracle's own test ---------------------------------------------------------------------

WRONG = {
    "LayerNormalization": "site",
    "RMSNormalization": "site",
    "GroupNormalization": "sizes",
    f"{DOMAIN}SkipLayerNormalization": "tie",
    f"{DOMAIN}EmbedLayerNormalization": "site",
    f"{DOMAIN}SkipSimplifiedLayerNormalization": "site",
}


def caught(op_type: str) -> bool:
    """Whether the oracle rejects any case of an operator."""
    for case in CASES[op_type]:
        t = oracle.traced(case.build(), allow_inexact=True)
        try:
            for kept in removals(t):
                mask(t, kept, renormalised)
        except REJECTIONS:
            return True
    return False


@pytest.mark.parametrize("op_type", WRONG)
def test_a_rule_that_forgets_something_is_caught(
    op_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not caught(op_type)
    monkeypatch.setitem(RULES, op_type, without(op_type, WRONG[op_type]))
    assert caught(op_type)


@pytest.mark.parametrize("op_type", ["LayerNormalization", "ReduceMean", "LpNormalization"])
def test_a_rule_that_does_not_report_is_caught(
    op_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RULES, op_type, without(op_type, "normalised"))
    assert caught(op_type)


def test_a_reference_of_plain_zeros_is_another_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("test_inexact.normalised_axes", lambda *_: [])
    assert caught("ReduceMean")
