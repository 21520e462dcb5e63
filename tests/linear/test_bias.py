"""A bias of a layer's own: what it computes stays, and what is added to it is added."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune.linear.bias import add_bias, before_bias, original_node
from onnxprune.model.edit import edit, node_id, rebuild
from onnxprune.model.folding import fold
from onnxprune.model.model import normalise
from onnxprune.model.observe import observe
from onnxprune.model.session import Session
from onnxprune.structure.trace import trace


@pytest.mark.parametrize("beta", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("shape", [(4,), (1, 4), (1,), (2, 4), None])
def test_what_is_added_to_a_bias_is_added_to_the_outputs(
    beta: float, shape: tuple[int, ...] | None
) -> None:
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(size=(3, 4)).astype(np.float32)}
    if shape is not None:
        constants["b"] = rng.normal(size=shape).astype(np.float32)
    node = helper.make_node("Gemm", ["x", *constants], ["y"], beta=beta)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 4])],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    model = normalise(helper.make_model(graph, opset_imports=opset, ir_version=8))
    x = {"x": rng.normal(size=(2, 3)).astype(np.float32)}
    shapes = observe(model, x)
    (weight,) = trace(fold(model, shapes), shapes).weights
    edited, delta = edit(model), np.array([1.0, -2.0, 3.0, 0.5])
    layer = next(n for n in edited.nodes if node_id(n) == weight.node)
    add_bias(edited, layer, weight, delta, np.dtype(np.float32))
    (before,), (after,) = (Session(m.proto).run(x) for m in (model, rebuild(edited, model)))
    np.testing.assert_allclose(after, before + delta, rtol=1e-5, atol=1e-5)


def test_a_node_is_known_by_its_first_name() -> None:
    assert original_node(before_bias(before_bias("fc"))) == "fc"
    assert original_node("fc") == "fc"
