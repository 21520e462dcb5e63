"""Wrong rules for normalisations, recurrences, blocks, lookups, letters and fused operators."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest import mock

import numpy as np
from sabotages import CORRECT, SABOTAGES, Sabotage, sabotage, without

from onnxprune.structure.op import Op
from onnxprune.structure.rules import quantization, recurrent
from onnxprune.structure.rules.contrib import DOMAIN

for _op, _word, _caught in (
    ("ReduceMean", "normalised", "mask"),
    ("LayerNormalization", "normalised", "mask"),
    ("RMSNormalization", "normalised", "mask"),
    ("SimplifiedLayerNormalization", "normalised", "mask"),
    ("LpNormalization", "normalised", "mask"),
    ("MeanVarianceNormalization", "normalised", "mask"),
    ("GroupNormalization", "normalise", "mask"),
    ("GroupNormalization", "site", "mask permutation"),
    ("GroupNormalization", "sizes", "mask"),
    ("InstanceNormalization", "site", "mask permutation"),
    ("InstanceNormalization", "tie", "mask permutation"),
    ("RNN", "sizes", "mask"),
    ("RNN", "tie", "mask permutation"),
    ("GRU", "sink", "mask"),
    ("Einsum", "tie", "mask permutation"),
    ("Einsum", "sink", "mask"),
    ("Einsum", "site", "mask permutation"),
    ("DepthToSpace", "tie", "mask permutation"),
    ("Gather", "site", "mask permutation"),
    ("ScatterND", "tie", "mask permutation"),
    ("ScatterND", "site", "mask permutation"),
    ("GatherElements", "tie", "mask permutation"),
    ("GatherElements", "site", "mask permutation"),
    ("ScatterElements", "tie", "mask permutation"),
    ("ScatterElements", "site", "mask permutation"),
    ("ConstantOfShape", "sizes", "mask"),
    ("Tile", "sizes", "mask"),
    ("Tile", "site", "mask permutation"),
    ("BatchNormalization", "site", "mask permutation"),
    ("Expand", "site", "mask permutation"),
    (f"{DOMAIN}FusedConv", "tie", "mask permutation"),
    (f"{DOMAIN}FusedGemm", "sink", "mask"),
    (f"{DOMAIN}FusedMatMul", "sink", "mask"),
    (f"{DOMAIN}BiasGelu", "site", "mask permutation"),
    (f"{DOMAIN}SkipLayerNormalization", "normalised", "mask"),
    (f"{DOMAIN}SkipLayerNormalization", "tie", "mask permutation"),
    (f"{DOMAIN}SkipSimplifiedLayerNormalization", "normalised", "mask"),
    ("Attention", "tie", "mask permutation"),
    ("Attention", "sink", "mask"),
    ("Attention", "sizes", "mask"),
    ("Attention", "freeze", "mask"),
    ("RotaryEmbedding", "freeze", "mask permutation"),
    (f"{DOMAIN}MultiHeadAttention", "tie", "mask permutation"),
    (f"{DOMAIN}MultiHeadAttention", "freeze", "mask"),
    (f"{DOMAIN}Attention", "site", "mask permutation"),
    (f"{DOMAIN}Attention", "sizes", "mask"),
    (f"{DOMAIN}GroupQueryAttention", "tie", "mask permutation"),
    (f"{DOMAIN}GroupQueryAttention", "freeze", "mask permutation"),
    (f"{DOMAIN}GroupQueryAttention", "sizes", "mask"),
    (f"{DOMAIN}GroupQueryAttention", "site", "mask permutation"),
    (f"{DOMAIN}EmbedLayerNormalization", "normalise", "mask"),
    ("DeformConv", "sink", "mask"),
    ("Col2Im", "tie", "mask permutation"),
    ("QuantizeLinear", "site", "mask permutation"),
    ("DequantizeLinear", "site", "mask permutation"),
    ("Cast", "site", "mask permutation"),
):
    SABOTAGES.append(Sabotage(f"{_op}: without {_word}", _op, without(_op, _word), _caught))


@sabotage("GroupNormalization", "mask permutation")
def ignores_groups(op: Op) -> None:
    for_each = op.shape(0)[1] == op.shape(1)[0]
    CORRECT["InstanceNormalization" if for_each else "GroupNormalization"](op)


@sabotage("LRN", "mask permutation")
@sabotage("CumSum", "mask permutation")
@sabotage("ArgMax", "mask permutation")
@sabotage("TopK", "mask")
@sabotage("GatherElements", "mask permutation")
@sabotage("Compress", "mask permutation")
@sabotage("DFT", "mask permutation")
def passes_along_its_axis(op: Op) -> None:
    CORRECT[op.type](op)
    for axis in op.labelled(0):
        op.take(0, axis)


@sabotage("LSTM", "mask")
@sabotage("GRU", "mask")
def forgets_that_the_state_is_summed(op: Op) -> None:
    sum_over = op.sum_over

    def inputs_only(i: int, axis: int, labels: np.ndarray | None) -> None:
        if i == 0:
            sum_over(i, axis, labels)

    with mock.patch.object(op, "sum_over", inputs_only):
        CORRECT[op.type](op)


@sabotage("LSTM", "mask permutation")
@sabotage("RNN", "mask permutation")
def repeats_units_instead_of_gates(op: Op) -> None:
    def neighbours(units: np.ndarray | None, times: int) -> np.ndarray | None:
        return None if units is None else np.repeat(units, times)

    with mock.patch.object(recurrent, "_repeated", neighbours):
        CORRECT[op.type](op)


@sabotage("GRU", "mask permutation")
def keeps_the_recurrent_columns(op: Op) -> None:
    site = op.site

    def other_sites(i: int, axis: int, labels: np.ndarray | None) -> None:
        if (i, axis) != (2, 2):
            site(i, axis, labels)

    with mock.patch.object(op, "site", other_sites):
        CORRECT["GRU"](op)


@sabotage("LSTM", "mask permutation")
def forgets_peepholes(op: Op) -> None:
    with mock.patch.object(recurrent, "P", 99):
        CORRECT["LSTM"](op)


def with_attribute(op: Op, name: str, change: Callable[[Any], Any]) -> None:
    """Apply the right rule to a wrong attribute."""
    attribute = op.attribute

    def wrong(asked: str, default: Any = None) -> Any:
        value = attribute(asked, default)
        return change(value) if asked == name else value

    with mock.patch.object(op, "attribute", wrong):
        CORRECT[f"{op.node.domain or ''}::{op.type}".removeprefix("::")](op)


@sabotage("DepthToSpace", "mask permutation")
def reads_the_other_mode(op: Op) -> None:
    with_attribute(op, "mode", lambda mode: "DCR" if mode == "CRD" else "CRD")


@sabotage("SpaceToDepth", "mask permutation")
def puts_blocks_inside(op: Op) -> None:
    labels = op.take(0, 1)
    op.give(0, op.take(0, 0))
    if labels is not None:
        op.give(1, np.repeat(labels, op.attribute("blocksize") ** 2))


@sabotage("Einsum", "mask permutation")
def reads_the_last_operand_backwards(op: Op) -> None:
    def backwards(equation: str) -> str:
        inner, arrow, outer = equation.partition("->")
        *terms, last = inner.split(",")
        square = len(terms) == 1 and op.shape(1) == (4, 4)
        return ",".join([*terms, last[::-1] if square else last]) + arrow + outer

    with_attribute(op, "equation", backwards)


@sabotage("MatMul", "mask permutation")
@sabotage("Einsum", "mask permutation")
def slices_a_stack_from_the_other_end(op: Op) -> None:
    site = op.site

    def backwards(i: int, axis: int, labels: np.ndarray | None) -> None:
        stacked = labels is not None and len(op.shape(i)) > 2
        site(i, axis, labels[::-1] if stacked else labels)

    with mock.patch.object(op, "site", backwards):
        CORRECT[op.type](op)


@sabotage("MatMul", "mask")
def forgets_what_a_vector_sums(op: Op) -> None:
    vector = 1 in (len(op.shape(0)), len(op.shape(1)))
    with mock.patch.object(op, "sum_over", (lambda *_: None) if vector else op.sum_over):
        CORRECT["MatMul"](op)


@sabotage(f"{DOMAIN}FusedMatMul", "mask permutation")
def ignores_that_b_is_transposed(op: Op) -> None:
    square = op.shape(1) == (4, 4)
    with_attribute(op, "transB", lambda b: 0 if square else b)


@sabotage(f"{DOMAIN}FusedConv", "mask permutation")
def forgets_the_addend(op: Op) -> None:
    CORRECT["Conv"](op)
    if op.has(3):
        op.take(3, 1)


@sabotage("Gather", "mask permutation")
def mixes_up_columns_of_a_table(op: Op) -> None:
    if not op.is_constant(0) or op.attribute("axis", 0) or len(op.shape(0)) != 2:
        return CORRECT["Gather"](op)
    labels = op.origin(2)
    return op.site(0, 1, None if labels is None else labels[::-1])


@sabotage("GatherND", "mask permutation")
def forgets_what_is_indexed(op: Op) -> None:
    CORRECT["GatherND"](op)
    for axis in op.labelled(0):
        op.take(0, axis)


@sabotage("DequantizeLinear", "mask permutation")
def slices_the_scale_but_not_the_zero_point(op: Op) -> None:
    site = op.site

    def scale_only(i: int, axis: int, labels: np.ndarray | None) -> None:
        if i != 2:
            site(i, axis, labels)

    with mock.patch.object(op, "site", scale_only):
        CORRECT["DequantizeLinear"](op)


@sabotage("BatchNormalization", "mask permutation")
def takes_statistics_for_something_else(op: Op) -> None:
    give = op.give

    def apart(axis: int, labels: np.ndarray | None, o: int = 0) -> None:
        give(axis, labels if labels is None or o == 0 else op.fresh(len(labels)), o)

    with mock.patch.object(op, "give", apart):
        CORRECT["BatchNormalization"](op)


@sabotage("Mul", "mask permutation")
@sabotage("Where", "mask permutation")
def slices_a_spread_constant_backwards(op: Op) -> None:
    site, rank = op.site, len(op.out_shape())

    def other_way(i: int, axis: int, labels: np.ndarray | None) -> None:
        place = axis - len(op.shape(i))
        spread = -place <= len(op.shape(0)) and op.shape(0)[place] == 1 and rank == 4
        site(i, axis, labels if labels is None or not spread else labels[::-1])

    with mock.patch.object(op, "site", other_way):
        CORRECT[op.type](op)


@sabotage("MatMul", "mask")
def forgets_that_a_vector_is_summed_over(op: Op) -> None:
    matrices = all(len(op.shape(i)) > 1 for i in (0, 1))
    with nullcontext() if matrices else mock.patch.object(op, "sum_over"):
        CORRECT["MatMul"](op)


@sabotage("DequantizeLinear", "mask permutation")
def takes_blocks_for_strides(op: Op) -> None:
    def strides(labels: np.ndarray, block: int, size: int) -> np.ndarray:
        return np.tile(labels, block)[:size]

    with mock.patch.object(quantization, "_neighbours", strides):
        CORRECT["DequantizeLinear"](op)
