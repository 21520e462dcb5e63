"""One network at every opset from 7 to the newest that onnxruntime runs."""

from __future__ import annotations

import onnx
import oracle
import pytest
from onnx import ModelProto
from strategies import BATCH, Net

import onnxprune
from onnxprune.errors import ModelError
from onnxprune.model.session import Session


def net(opset: int) -> ModelProto:
    """A residual block, a branch, heads of attention without a scale, and a classifier."""
    n = Net(opset)
    x = n.conv(n.input(BATCH, 2, 4, 4), 2, 8, 3)
    scale, shift, mean = (n.weight(8) for _ in range(3))
    y = n.op("BatchNormalization", x, scale, shift, mean, n.const(n.positive(8)))
    x = n.op("Add", x, n.op("Relu", n.conv(y, 8, 8, group=2)))
    x = n.op("Concat", x, n.op("MaxPool", n.conv(x, 8, 4), kernel_shape=[1, 1]), axis=1)
    rows = n.op("Transpose", n.op("Reshape", x, n.const([0, 12, 16])), perm=[0, 2, 1])
    q, k, v = (n.op("Reshape", n.dense(rows, 12, 6), n.const([0, 16, 2, 3])) for _ in range(3))
    q, k, v = (n.op("Transpose", t, perm=p) for t, p in zip(
        (q, k, v), ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True))  # fmt: skip
    y = n.op("MatMul", n.op("Softmax", n.op("MatMul", q, k), axis=3), v)
    y = n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3]), n.const([0, 96]))
    return n.model(n.op("Gemm", y, n.weight(96, 5), n.weight(5)), rank=2)


def accepted() -> list[int]:
    """Opsets that both the installed onnx and the installed onnxruntime know."""
    found = []
    for opset in range(7, onnx.defs.onnx_opset_version() + 1):
        try:
            Session(net(opset), threads=1)
        except ModelError:
            break
        found.append(opset)
    return found


OPSETS = accepted()


def test_old_and_new_opsets_are_known() -> None:
    assert set(OPSETS) >= set(range(7, 22))


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_passes_the_oracles(opset: int) -> None:
    found = oracle.check(net(opset), seed=opset)
    assert found.groups == found.permuted > 5
    assert found.removed
    assert found.visible


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_is_pruned(opset: int, tmp_path: object) -> None:
    path = f"{tmp_path}/net.onnx"
    onnx.save(net(opset), path)
    result = onnxprune.prune(path, sparsity=0.5, random_inputs=True)
    assert result.report.achieved >= 0.5
    assert [(o.domain, o.version) for o in result.model.opset_import] == [("", opset)]
