"""One small rule per ONNX operator, saying how labels pass through it.

A rule takes an :class:`~onnxprune.structure.op.Op` and uses its vocabulary: ``take`` an input axis,
``give`` an output axis, ``tie`` axes that shrink together, ``freeze`` what cannot, begin
labels at an ``origin``, and record constant sites, sinks and sizes to rewrite. Layout operators
run *themselves* on labels. An axis that a rule does not take is frozen by the caller, and so is
everything an operator without a rule touches.

To add an operator: one rule here (a plain activation is one word in
:data:`~onnxprune.structure.rules.elementwise.UNARY`), and one case in ``tests/cases.py``.
"""

from onnxprune.structure.rules import (
    attention,
    contrib,
    einsum,
    elementwise,
    indexing,
    layers,
    normalization,
    quantization,
    recurrent,
    reshape,
    spatial,
)
from onnxprune.structure.rules.registry import RULES, Rule, rule

__all__ = [
    "RULES",
    "Rule",
    "attention",
    "contrib",
    "einsum",
    "elementwise",
    "indexing",
    "layers",
    "normalization",
    "quantization",
    "recurrent",
    "reshape",
    "rule",
    "spatial",
]
