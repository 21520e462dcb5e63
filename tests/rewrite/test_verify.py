"""A difference that only rounding explains is told from one that a rewrite made."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper
from strategies import Net

from onnxprune.errors import InternalError, ModelError
from onnxprune.model.model import Model, normalise
from onnxprune.model.runner import Runner
from onnxprune.rewrite.verify import compare, verify

ROWS = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)


def moved(model: ModelProto, initializer: str, by: float) -> Model:
    """Add something to all values of an initializer."""
    other = ModelProto()
    other.CopyFrom(model)
    tensor = next(t for t in other.graph.initializer if t.name == initializer)
    tensor.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(by), tensor.name)
    )
    return normalise(other)


def saturated() -> tuple[ModelProto, str]:
    n = Net()
    bias = n.const(np.full(3, -16.0))
    weight = n.const(0.01 * np.ones((4, 3)))
    return n.model(n.op("Sigmoid", n.op("Gemm", n.input("n", 4), weight, bias)), rank=2), bias


def stepped() -> tuple[ModelProto, str]:
    n = Net()
    bias = n.const(np.full(4, 0.005))  # in the middle between two steps
    scale, zero = n.const(0.01), n.const(128, np.uint8)
    places = n.op("Floor", n.op("Mul", n.input("n", 4), n.const(10.0)))
    x = n.op("Add", n.op("Mul", places, n.const(0.01)), bias)
    q = n.op("QuantizeLinear", x, scale, zero)
    return n.model(n.op("DequantizeLinear", q, scale, zero), rank=2), bias


@pytest.mark.parametrize("build", [saturated, stepped])
def test_what_rounding_does_to_an_output_is_no_difference(build) -> None:
    proto, bias = build()
    reference = normalise(proto)
    close, far = moved(proto, bias, 1e-5), moved(proto, bias, 0.2)
    feeds = [{"x0": ROWS}]
    assert compare(reference, close, feeds, runner=Runner(1)).max_rel_error > 1e-3
    assert verify(reference, close, feeds, "model", runner=Runner(1)).max_rel_error <= 1e-3
    with pytest.raises(InternalError, match="differs from its reference"):
        verify(reference, far, feeds, "model", runner=Runner(1))


def test_a_model_that_amplifies_rounding_is_said_to() -> None:
    """Thirty steps of the logistic map make of one rounding error what they like."""
    n = Net()
    h = n.conv(n.input("n", 2, 4, 4), 2, 8, 3)
    statistics = [n.const(v) for v in (1.3 * np.ones(8), np.ones(8), np.ones(8), 2 * np.ones(8))]
    x = n.op("Sigmoid", n.op("BatchNormalization", h, *statistics))
    for _ in range(30):
        x = n.op("Mul", n.op("Mul", x, n.const(3.99)), n.op("Sub", n.const(1.0), x))
    proto = n.model(x, rank=4)
    feeds = [{"x0": np.random.default_rng(0).normal(size=(4, 2, 4, 4)).astype(np.float32)}]
    bias = next(node for node in proto.graph.node if node.op_type == "Conv").input[2]
    with pytest.raises(ModelError, match="with the order in which onnxruntime sums"):
        verify(normalise(proto), moved(proto, bias, 1e-3), feeds, "model", runner=Runner(1))
