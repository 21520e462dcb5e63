"""Vector width: how many channels onnxruntime computes together on this machine.

Its kernels for the CPU hold the channels of a convolution in blocks that are as wide as the
processor's vectors, and fill up the last one: 12 channels in blocks of 16 take as long as 16. The
width of a block is found by optimising a convolution with one output channel: its weights are
padded to one block.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.model.session import PROVIDER, optimised

USUAL = 8
"""The width where it cannot be found: another provider, or weights that were not padded."""


@cache
def channel_block(provider: str = PROVIDER) -> int:
    """Return the number of channels whose multiples run best with an execution provider."""
    if provider != PROVIDER:
        return USUAL
    weights = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w")
    shapes = {"x": (1, 1, 8, 8), "y": (1, 1, 8, 8)}
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "probe", values[:1], values[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    try:
        found = optimised(model).graph.initializer
    except ModelError:
        return USUAL
    return max((int(t.dims[0]) for t in found if len(t.dims) == 4 and t.dims[0] > 1), default=USUAL)
