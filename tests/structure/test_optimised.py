"""Cases as onnxruntime's own optimiser rewrites them: fused, folded and inlined operators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import oracle
import pytest
from case import Case
from cases import CASES
from onnx import ModelProto
from test_inexact import renormalised

FIRST = [next((c for c in cases if c.prunable), cases[0]) for cases in CASES.values()]


def optimised(proto: ModelProto, path: Path) -> ModelProto:
    """Let onnxruntime fuse what it can without leaving the operators that any machine runs."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


@pytest.mark.parametrize("case", FIRST, ids=lambda case: case.name)
@pytest.mark.parametrize("allow_inexact", [False, True])
def test_an_optimised_case_passes_all_oracles(
    case: Case, allow_inexact: bool, tmp_path: Path
) -> None:
    t = oracle.traced(optimised(case.build(), tmp_path / "m.onnx"), allow_inexact=allow_inexact)
    assert not case.prunable or t.structure.groups
    oracle.identity(t)
    oracle.permutation(t)
    for seed, share in enumerate((0.4, 0.8)):
        kept = oracle.random_removal(t.structure, np.random.default_rng(seed), share)
        oracle.mask(t, kept, renormalised if allow_inexact else None)
