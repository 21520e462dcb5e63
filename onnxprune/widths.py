"""Widths: how many channels onnxruntime computes together on this machine.

It pads convolutions to blocks of channels, so that a width between two multiples of a block costs
as much as the larger one. How long a block is depends on the processor, and can be seen from a
convolution that is timed at some widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from time import perf_counter

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.session import PROVIDER, Session

FINE, COARSE = 8, 16
"""The alignments to choose from; the first unless it is clear that the second is as fast."""

PAIRS = ((40, 48), (56, 64))
"""Widths that cost the same in blocks of :data:`COARSE` channels, and 5:6 and 7:8 without."""

CLEAR = 0.95
"""From which ratio on the widths of all pairs cost the same."""

_CHANNELS, _SIZE, _BATCH, _ROUNDS = 64, 8, 4, 40


@cache
def preferred_width(provider: str = PROVIDER) -> int:
    """Return the alignment that this machine prefers, :data:`FINE` or :data:`COARSE`.

    Measured once per process, in about a tenth of a second.
    """
    try:
        return choose(_measure(provider))
    except ModelError:
        return FINE  # a provider that cannot do without others says nothing about widths


def choose(seconds: Mapping[int, float]) -> int:
    """Return the alignment that times by width speak for."""
    same = all(seconds[narrow] >= CLEAR * seconds[wide] for narrow, wide in PAIRS)
    return COARSE if same else FINE


def _measure(provider: str) -> dict[int, float]:
    """Return the least time that a convolution took, by the number of its outputs.

    In turns, and the least, since other programs can only make a run longer.
    """
    widths = [width for pair in PAIRS for width in pair]
    data = np.zeros((_BATCH, _CHANNELS, _SIZE, _SIZE), np.float32)
    sessions = {
        width: Session(_convolution(width), threads=1, provider=provider, timed=True)
        for width in widths
    }
    least = dict.fromkeys(widths, np.inf)
    for _ in range(_ROUNDS):
        for width, session in sessions.items():
            start = perf_counter()
            session.run({"x": data})
            least[width] = min(least[width], perf_counter() - start)
    return least


def _convolution(width: int) -> onnx.ModelProto:
    weight = np.zeros((width, _CHANNELS, 3, 3), np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        "widths",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [_BATCH, _CHANNELS, _SIZE, _SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [_BATCH, width, _SIZE, _SIZE])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
