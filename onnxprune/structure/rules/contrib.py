"""Fused operators that onnxruntime's own optimisers write (domain com.microsoft)."""

from __future__ import annotations

from onnxprune.structure.op import Op
from onnxprune.structure.rules.einsum import multiply
from onnxprune.structure.rules.elementwise import broadcast, unary
from onnxprune.structure.rules.layers import conv, gemm
from onnxprune.structure.rules.normalization import parameters
from onnxprune.structure.rules.registry import rule

DOMAIN = "com.microsoft::"


@rule(*(DOMAIN + name for name in ("Gelu", "QuickGelu")))
def fused_unary(op: Op) -> None:
    """Activations."""
    unary(op)


@rule(*(DOMAIN + name for name in ("BiasGelu", "FastGelu")))
def fused_bias_activation(op: Op) -> None:
    """An activation behind the addition of a bias."""
    broadcast(op)


@rule(DOMAIN + "FusedConv")
def fused_conv(op: Op) -> None:
    """A convolution, an optional addition of another tensor, and an activation."""
    conv(op)
    if op.is_parameter(3):
        op.site(3, 1, op.given(1))
    elif op.has(3):
        op.tie(op.given(1), op.take(3, 1))


@rule(DOMAIN + "FusedGemm")
def fused_gemm(op: Op) -> None:
    """A Gemm with an activation."""
    gemm(op)


@rule(DOMAIN + "FusedMatMul", DOMAIN + "TransposeMatMul")
def fused_matmul(op: Op) -> None:
    """A MatMul of operands that may be transposed."""
    if op.attribute("transBatchA", 0) or op.attribute("transBatchB", 0):
        return
    multiply(op, int(op.attribute("transA", 0)), int(op.attribute("transB", 0)))


@rule(DOMAIN + "SkipLayerNormalization", DOMAIN + "SkipSimplifiedLayerNormalization")
def skip_layer_normalization(op: Op) -> None:
    """A residual addition (output 3) and a normalisation of its last axis."""
    simplified = op.type.endswith("SkipSimplifiedLayerNormalization")
    rank = len(op.shape(0))
    skip_rank = len(op.shape(1))
    for k in range(rank):
        labels = op.normalised(0, k) if k == rank - 1 else op.take(0, k)
        if k >= rank - skip_rank:
            labels = op.tie(labels, op.take(1, k - rank + skip_rank))
        for o in range(len(op.node.outputs)):
            if o in (0, 3) or k < rank - 1:
                op.give(k, labels, o)
        if k == rank - 1:
            parameters(op, (2, 3) if simplified else (2, 3, 4), -1, labels)


@rule(DOMAIN + "EmbedLayerNormalization")
def embed_layer_normalization(op: Op) -> None:
    """Rows of two or three tables are added (output 2) and normalised."""
    tables, parameters_of = (2, 3, 4), (5, 6)
    if not op.all_constant(*tables, *parameters_of):
        return
    labels = op.origin(2)
    op.normalise(labels)
    for i in tables:
        op.site(i, 1, labels)
    for i in parameters_of:
        op.site(i, 0, labels)
    op.give(2, labels, 2)
