"""Costs against hand-computed numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from strategies import Net

from onnxprune.model.cost import measure
from onnxprune.model.model import load, normalise
from onnxprune.model.observe import observe
from onnxprune.model.runner import Runner
from onnxprune.model.session import quantize_dynamic


def test_macs_and_weights_by_hand():
    rng = np.random.default_rng(0)

    def constant(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)

    zeros = numpy_helper.to_array(constant("dw", 6, 1, 3, 3)).copy()
    zeros[0] = 0
    initializers = [
        constant("c", 6, 3, 3, 3),
        constant("cb", 6),
        numpy_helper.from_array(zeros, "dw"),
        constant("t", 6, 4, 2, 2),
        constant("g", 5, 4),
        constant("m", 5, 7),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "c", "cb"], ["1"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["1", "dw"], ["2"], pads=[1, 1, 1, 1], group=6),
        helper.make_node("ConvTranspose", ["2", "t"], ["3"], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["3"], ["4"]),
        helper.make_node("Flatten", ["4"], ["5"]),
        helper.make_node("Gemm", ["5", "g"], ["6"], transB=1),
        helper.make_node("MatMul", ["6", "m"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 7])],
        initializers,
    )
    model = normalise(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )
    cost = measure(
        model, observe(model, {"x": np.ones((3, 3, 8, 8), np.float32)}, runner=Runner(1))
    )
    conv, depthwise = 8 * 8 * 6 * 27, 8 * 8 * 6 * 9
    transposed, dense = 8 * 8 * 6 * 4 * 4, 5 * 4 + 5 * 7
    assert cost.macs == conv + depthwise + transposed + dense
    assert cost.weights == 6 * 27 + 54 + 96 + 20 + 35
    assert cost.nonzero_weights == cost.weights - 9
    assert cost.params == cost.weights + 6


def test_integer_layers_count_like_their_originals(tmp_path):
    """A quantised model has the weights, and takes the operations, of what it was made from."""
    rng = np.random.default_rng(0)
    shapes = {"c": (6, 3, 3, 3), "m": (6 * 8 * 8, 7)}
    initializers = [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "c"], ["1"], pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["1"], ["2"]),
        helper.make_node("MatMul", ["2", "m"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 7])],
        initializers,
    )
    model = normalise(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )
    quantize_dynamic(model.proto, tmp_path / "int8.onnx")
    quantised = load(tmp_path / "int8.onnx")
    assert {"ConvInteger", "MatMulInteger"} <= {n.op_type for n in quantised.proto.graph.node}
    feeds = {"x": np.ones((2, 3, 8, 8), np.float32)}
    before, after = (measure(m, observe(m, feeds, runner=Runner(1))) for m in (model, quantised))
    assert before.macs == 64 * 6 * 27 + 6 * 64 * 7
    assert (after.macs, after.weights) == (before.macs, before.weights)
    scales = 2  # one for each weight tensor
    assert after.params == before.params - before.weights + scales, "float constants only"


def test_operations_of_einsum_count():
    n = Net()
    x = n.input(2, 5, 4)
    heads = n.op("Einsum", x, n.weight(4, 3, 6), equation="btd, dhk -> bthk")
    y = n.op("Einsum", heads, heads, equation="bihk,bjhk->bhij")
    model = normalise(n.model(y, rank=4))
    cost = measure(model, observe(model, {"x0": np.ones((2, 5, 4), np.float32)}, runner=Runner(1)))
    assert (cost.params, cost.weights) == (4 * 3 * 6, 4 * 3 * 6)
    assert cost.macs == 5 * 4 * 3 * 6 + 3 * 5 * 5 * 6


@pytest.mark.parametrize("packed", [False, True])
def test_operations_of_grouped_attention_count(packed):
    """Four heads of width 8 over two of the keys; three tokens, and two that were seen before."""
    n = Net()
    x = n.input(1, 3, 64)
    parts = [x, "", ""] if packed else [n.dense(x, 64, c) for c in (32, 16, 16)]
    seen = [n.const(np.ones((1, 2, 2, 8), np.float32)) for _ in range(2)]
    lengths = [n.const([4], np.int32), n.const(5, np.int32)]
    numbers = {"num_heads": 4, "kv_num_heads": 2, "domain": "com.microsoft"}
    y, *_ = n.ops("GroupQueryAttention", 3, *parts, *seen, *lengths, **numbers)
    model = normalise(n.model(y, rank=3))
    cost = measure(model, observe(model, {"x0": np.ones((1, 3, 64), np.float32)}, runner=Runner(1)))
    assert cost.macs == 2 * 4 * 3 * 5 * 8 + (0 if packed else 3 * 64 * 64)
