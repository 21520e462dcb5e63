"""Ask onnxsim's structured pruning for half of every model of a folder: the peer's coverage.

Usage: python benchmarks/peer_onnxsim.py FOLDER [--sparsity 0.5] [--markdown FILE]

Needs `pip install onnxsim==0.8.1 onnxruntime numpy onnx` in an environment of its own. A row says
whether the result runs in onnxruntime and how many parameters left.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxsim.pruning import apply_structured_pruning


def parameters(model: onnx.ModelProto) -> int:
    """Count the elements of all float initializers."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    return sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type in floats)


def runs(model: onnx.ModelProto) -> str:
    """Run a model once on random numbers; return what went wrong, or nothing."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        feeds = {
            i.name: np.zeros([n if isinstance(n, int) else 1 for n in i.shape], np.float32)
            for i in session.get_inputs()
        }
        session.run(None, feeds)
    except Exception as error:
        return " ".join(str(error).split())[:120]
    return ""


def main() -> None:
    """Print a row for each model and a summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--markdown", type=Path)
    a = parser.parse_args()
    lines = ["| model | runs | parameters removed | note |", "|---|---|---|---|"]
    outcomes: list[tuple[bool, float]] = []
    for path in sorted(a.folder.glob("*.onnx")):
        model = onnx.load(path)
        before = parameters(model)
        try:
            pruned = apply_structured_pruning(model, sparsity=a.sparsity)
            problem, removed = runs(pruned), 1 - parameters(pruned) / before
        except Exception as error:
            problem, removed = f"{type(error).__name__}: {error}"[:120], 0.0
        outcomes.append((not problem, removed))
        lines.append(f"| {path.stem} | {'no' if problem else 'yes'} | {removed:.3f} | {problem} |")
        print(lines[-1], flush=True)
    near = sum(ok and removed >= 0.95 * a.sparsity for ok, removed in outcomes)
    broken = sum(not ok for ok, _ in outcomes)
    lines += [
        "",
        f"At {a.sparsity:g}: {len(outcomes)} models, {near} run with at least 95 % of the request "
        f"removed, {broken} do not run.",
    ]
    print(lines[-1])
    if a.markdown:
        a.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
