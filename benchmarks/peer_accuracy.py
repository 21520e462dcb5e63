"""Prune one ONNX model with another tool, without training, for `accuracy.py --peers`.

Usage: python benchmarks/peer_accuracy.py TOOL MODEL OUT (--macs R | --sparsity S)

TOOL is `torch-pruning` (L1 importance, through onnx2torch) or `onnxsim`. Needs, in an environment
of its own: `pip install torch torch-pruning onnx2torch onnxsim onnx`.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import onnx


def with_onnxsim(model: onnx.ModelProto, out: Path, sparsity: float) -> None:
    """Ask onnxsim for a share of the parameters."""
    from onnxsim.pruning import apply_structured_pruning

    onnx.save(apply_structured_pruning(model, sparsity=sparsity), str(out))


def with_torch_pruning(
    model: onnx.ModelProto, out: Path, macs: float | None, sparsity: float | None
) -> None:
    """Cut the same share of every layer, as small as reaches the budget.

    The residual stream is left alone: cutting it crashes on shortcuts that pad channels.
    """
    import onnx2torch
    import torch
    import torch_pruning as tp

    (graph_input,) = model.graph.input
    sizes = [d.dim_value or 1 for d in graph_input.type.tensor_type.shape.dim]
    example = torch.zeros(sizes)
    net = onnx2torch.convert(model).eval()
    before = tp.utils.count_ops_and_params(net, example)

    def pruned(ratio: float) -> Any:
        result = copy.deepcopy(net)
        tp.pruner.MagnitudePruner(
            result,
            example,
            importance=tp.importance.MagnitudeImportance(p=1),
            pruning_ratio=ratio,
            ignored_layers=before_additions(result, model),
        ).step()
        return result

    def left(candidate: Any) -> float:
        after = tp.utils.count_ops_and_params(candidate, example)
        return float(after[0] / before[0] if macs is not None else after[1] / before[1])

    wanted = macs if macs is not None else 1 - (sparsity or 0.0)
    low, high = 0.0, 0.98
    for _ in range(7):
        middle = (low + high) / 2
        low, high = (low, middle) if left(pruned(middle)) <= wanted else (middle, high)
    best = pruned(high)
    torch.onnx.export(
        best,
        (example,),
        str(out),
        input_names=[graph_input.name],
        output_names=[model.graph.output[0].name],
        dynamic_axes={graph_input.name: {0: "N"}, model.graph.output[0].name: {0: "N"}},
        dynamo=False,
    )


def before_additions(net: Any, model: onnx.ModelProto) -> list[Any]:
    """Return the modules whose output is added to another, and the last layer."""
    added = {i for node in model.graph.node if node.op_type == "Add" for i in node.input}
    scores = {o.name for o in model.graph.output}
    stems = {i for node in model.graph.node if node.op_type == "Add" for i in node.output}
    weighted = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    modules = [m for m in net.modules() if type(m).__name__ in ("Conv2d", "Linear")]
    relu = {n.input[0]: n.output[0] for n in model.graph.node if n.op_type == "Relu"}
    return [
        module
        for node, module in zip(weighted, modules, strict=True)
        if node.output[0] in added | scores | stems or relu.get(node.output[0]) in added
    ]


def main() -> None:
    """Prune one model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("tool", choices=["torch-pruning", "onnxsim"])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--macs", type=float)
    budget.add_argument("--sparsity", type=float)
    a = parser.parse_args()
    model = onnx.load(a.model)
    if a.tool == "torch-pruning":
        with_torch_pruning(model, a.out, a.macs, a.sparsity)
    elif a.sparsity is None:
        parser.error("onnxsim takes a share of the parameters only: --sparsity")
    else:
        with_onnxsim(model, a.out, a.sparsity)


if __name__ == "__main__":
    main()
