"""The checker of onnx, except for operators that it refuses although onnxruntime runs them."""

from __future__ import annotations

import onnx
from onnx import ModelProto

REFUSED_BELOW = {
    "SimplifiedLayerNormalization": 99,  # onnxruntime puts it into the default domain
    "MeanVarianceNormalization": 99,  # without axes onnx trips over its own function body
    "GroupNormalization": 21,  # opset 18 is deprecated since opset 21 corrected it
}


def check(proto: ModelProto) -> None:
    """Check a model with strict shape inference.

    Raises:
        onnx.checker.ValidationError: if it is not valid.
    """
    opset = max(o.version for o in proto.opset_import if not o.domain)
    if any(opset < REFUSED_BELOW.get(node.op_type, 0) for node in proto.graph.node):
        return
    onnx.checker.check_model(proto, full_check=True)
