"""Node times: how many seconds of a model's latency each of its nodes takes.

onnxruntime fuses nodes and changes layouts before it runs a graph. It names a fused node after one
of the nodes that went into it, or after its output. So the nodes and the outputs of a copy get
numbers as names, and the numbers are looked for in the names of the profile.
"""

from __future__ import annotations

import re
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx

from onnxprune.model.cost import WEIGHT_INPUTS
from onnxprune.model.model import Model
from onnxprune.model.nodes import captured
from onnxprune.model.runner import PLAIN, Runner
from onnxprune.model.session import Feeds, NodeRun
from onnxprune.model.storage import draft

RUNS, SECONDS = 12, 2.0
"""Profiled runs at most, and seconds after which no more are started once there are FEW_RUNS."""

FEW_RUNS = 3

OTHERS = ""
"""The key for the time of which no node is known."""

_PRODUCTS = ("Conv", "Gemm", "MatMul")
_NUMBER = re.compile(r"onnxprune-(\d+)-")


def measure_nodes(model: Model, feeds: Feeds, *, runner: Runner = PLAIN) -> dict[str, float]:
    """Measure the seconds that each node takes in one run, by its first output.

    Args:
        model: the model.
        feeds: the inputs of a run.
        runner: runs it, profiled, on its provider.

    Returns:
        Medians over the runs. A fused node's time counts as that of the layer with weights in it;
        time of no known node is under :data:`OTHERS`.

    Raises:
        ModelError: if onnxruntime cannot run the model.
    """
    proto, held = draft(model.proto)
    _number(proto)
    with tempfile.TemporaryDirectory() as folder:
        session = runner.timed(proto, held=held, profile=Path(folder))
        start, runs = perf_counter(), 0
        while runs < RUNS and (runs < FEW_RUNS or perf_counter() < start + SECONDS):
            session.run(feeds)
            runs += 1
        measured = session.node_runs()
    return attribute(model.proto, medians(measured, runs))


def medians(measured: Sequence[NodeRun], runs: int) -> dict[tuple[str, str], float]:
    """Return the median seconds of one run by name and operator.

    Args:
        measured: the nodes of all profiled runs.
        runs: how many runs those were.
    """
    seconds: dict[tuple[str, str], list[float]] = {}
    for run in measured:
        seconds.setdefault((run.name, run.op_type), []).append(run.seconds)
    return {key: float(np.median(s)) * len(s) / runs for key, s in seconds.items()}


def attribute(
    proto: onnx.ModelProto, measured: Mapping[tuple[str, str], float]
) -> dict[str, float]:
    """Return the seconds of a model's nodes, by their first output.

    A product that was fused with the nodes after it bears the number of the last of these. Its time
    is that of the nearest layer before that node which was not found by its own number.

    Args:
        proto: the model, as it was before its nodes were numbered.
        measured: seconds of one run of the numbered copy, by name and operator.
    """
    nodes = list(proto.graph.node)
    producer = {name: k for k, node in enumerate(nodes) for name in node.output if name}
    taken: set[int] = set()
    result = dict.fromkeys([*map(_key, nodes), OTHERS], 0.0)
    fused: list[tuple[int, float]] = []
    for (name, op_type), seconds in measured.items():
        match = _NUMBER.search(name)
        number = int(match[1]) if match else None
        if number is None:
            result[OTHERS] += seconds
        elif nodes[number].op_type in op_type or not any(p in op_type for p in _PRODUCTS):
            taken.add(number)
            result[_key(nodes[number])] += seconds
        else:
            fused.append((number, seconds))
    for number, seconds in fused:
        found = _layer_before(number, nodes, producer, taken)
        taken.add(found)
        result[_key(nodes[found])] += seconds
    return result


def _layer_before(
    start: int, nodes: Sequence[onnx.NodeProto], producer: Mapping[str, int], taken: set[int]
) -> int:
    """Return the nearest node with weights that is not taken; ``start`` if there is none."""
    queue, seen = deque([start]), {start}
    while queue:
        k = queue.popleft()
        if nodes[k].op_type in WEIGHT_INPUTS:
            if k not in taken:
                return k
            continue
        before = {producer[name] for name in nodes[k].input if name in producer} - seen
        seen |= before
        queue.extend(sorted(before))
    return start


def _key(node: onnx.NodeProto) -> str:
    return next(o for o in node.output if o)


def _number(proto: onnx.ModelProto) -> None:
    """Put the number of each node into its name and into the names of its outputs."""
    graph = proto.graph
    fixed = {name for node in graph.node for name in captured(node)}
    names: dict[str, str] = {}
    for k, node in enumerate(graph.node):
        node.name = f"onnxprune-{k}-node"
        for i, name in enumerate(node.output):
            if name and name not in fixed:
                names[name] = f"onnxprune-{k}-{i}"
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in graph.output:
        value.name = names.get(value.name, value.name)
    del graph.value_info[:]
