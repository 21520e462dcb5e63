"""Layers that cannot be pruned are named, and why."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from strategies import Net

from onnxprune import inspect, prune
from onnxprune.errors import BudgetError


def layers_in_branches() -> onnx.ModelProto:
    """All layers are in the branches of an If, which capture their weights."""
    n = Net()
    x = n.input("N", 2, 4, 4)
    branches = {}
    for kind in ("then", "else"):
        weights = [n.weight(8, 2, 3, 3), n.weight(3, 8, 3, 3)]
        steps = [
            helper.make_node("Conv", [x, weights[0]], [f"{kind}/y"], pads=[1] * 4),
            helper.make_node("Conv", [f"{kind}/y", weights[1]], [f"{kind}/z"], pads=[1] * 4),
        ]
        out = helper.make_tensor_value_info(f"{kind}/z", TensorProto.FLOAT, ["N", 3, 4, 4])
        branches[f"{kind}_branch"] = helper.make_graph(steps, kind, [], [out])
    test = n.op("Greater", n.op("ReduceSum", x, keepdims=0), n.const(0.0))
    return n.model(n.op("If", test, name="choice", **branches), rank=4)


def test_layers_in_subgraphs_are_named(tmp_path: Path) -> None:
    path = tmp_path / "branches.onnx"
    path.write_bytes(layers_in_branches().SerializeToString())
    with pytest.raises(BudgetError, match=r"is 0, since .*720 weights.*'choice', runs layers in"):
        prune(path, sparsity=0.5, mode="channels", random_inputs=True)
    assert any("'choice'" in str(f) or f.node == "choice" for f in inspect(path).structure.frozen)
