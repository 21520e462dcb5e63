"""Show how the time of tracing and rewriting grows with nodes and with channels.

Usage: python benchmarks/scaling.py

Generates residual convolutional graphs of growing depth and of growing width, prunes half of
every group, and prints seconds and the slope of log(seconds) over log(size): 1 is linear.
"""

from __future__ import annotations

import time

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.model import model as graph
from onnxprune.model.folding import fold
from onnxprune.model.observe import observe
from onnxprune.plans.cut import Cut
from onnxprune.plans.plan import plan_from_units
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.structure.trace import trace


def residual(blocks: int, channels: int) -> onnx.ModelProto:
    """Build a chain of residual blocks: Conv, Relu, Conv, Add, Relu."""
    rng = np.random.default_rng(0)
    tensors: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def conv(source: str, result: str, inputs: int, outputs: int) -> None:
        values = rng.normal(0, 0.1, (outputs, inputs, 1, 1)).astype(np.float32)
        tensors.append(numpy_helper.from_array(values, f"{result}.w"))
        nodes.append(helper.make_node("Conv", [source, f"{result}.w"], [result]))

    conv("x", "s0", 3, channels)
    for k in range(blocks):
        conv(f"s{k}", f"a{k}", channels, channels)
        nodes.append(helper.make_node("Relu", [f"a{k}"], [f"r{k}"]))
        conv(f"r{k}", f"b{k}", channels, channels)
        nodes.append(helper.make_node("Add", [f"b{k}", f"s{k}"], [f"t{k}"]))
        nodes.append(helper.make_node("Relu", [f"t{k}"], [f"s{k + 1}"]))
    conv(f"s{blocks}", "y", channels, 4)
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 4, 4])
    body = helper.make_graph(nodes, "g", [image], [result], tensors)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def seconds(blocks: int, channels: int) -> tuple[float, float]:
    """Return the best of three times of trace and of rewrite."""
    model = graph.normalise(residual(blocks, channels))
    shapes = observe(model, {"x": np.ones((2, 3, 4, 4), np.float32)})
    folded = fold(model, shapes)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        structure = trace(folded, shapes)
        middle = time.perf_counter()
        kept = np.ones(len(structure.units), dtype=bool)
        for group in structure.groups:
            kept[group.units[: len(group.units) // 2]] = False
        plan = plan_from_units("", structure, kept)
        before = time.perf_counter()
        rewrite(Cut(folded, structure, shapes, plan))
        times.append((middle - start, time.perf_counter() - before))
    best = np.min(times, axis=0)
    return float(best[0]), float(best[1])


def table(name: str, sizes: list[tuple[int, int]], axis: int) -> None:
    """Print one table and its slopes."""
    rows = np.array([seconds(*size) for size in sizes])
    print(f"\n| blocks | channels | trace s | rewrite s |\n|{'---|' * 4}")
    for (blocks, channels), (tracing, rewriting) in zip(sizes, rows, strict=True):
        print(f"| {blocks} | {channels} | {tracing:.3f} | {rewriting:.3f} |")
    logs = np.log([size[axis] for size in sizes])
    slopes = [np.polyfit(logs, np.log(rows[:, k]), 1)[0] for k in range(2)]
    print(f"slope over {name}: trace {slopes[0]:.2f}, rewrite {slopes[1]:.2f}")


def main() -> None:
    """Print both tables."""
    table("nodes", [(blocks, 16) for blocks in (50, 100, 200, 400, 800)], 0)
    table("channels", [(20, channels) for channels in (64, 128, 256, 512, 1024)], 1)


if __name__ == "__main__":
    main()
