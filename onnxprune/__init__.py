"""Prune an exported ONNX model with nothing but onnxruntime and labelled samples.

The public names are imported on first use, so that ``import onnxprune`` (and the command
line's ``--help``) stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from onnxprune.version import __version__ as __version__

if TYPE_CHECKING:
    from onnxprune.benchmark import Benchmark, bench
    from onnxprune.errors import (
        BudgetError,
        CalibrationError,
        InternalError,
        ModelError,
        OnnxpruneError,
        OutputError,
        PlanError,
        QualityError,
    )
    from onnxprune.pipeline import (
        Accuracy,
        PruneResult,
        PruningPlan,
        Request,
        apply,
        evaluate,
        inspect,
        load_plan,
        plan,
        prune,
        save,
        save_plan,
        sweep,
    )
    from onnxprune.sweeping import Curve

_HOME = {
    "Accuracy": "onnxprune.pipeline",
    "Benchmark": "onnxprune.benchmark",
    "BudgetError": "onnxprune.errors",
    "CalibrationError": "onnxprune.errors",
    "Curve": "onnxprune.sweeping",
    "InternalError": "onnxprune.errors",
    "ModelError": "onnxprune.errors",
    "OnnxpruneError": "onnxprune.errors",
    "OutputError": "onnxprune.errors",
    "PlanError": "onnxprune.errors",
    "PruneResult": "onnxprune.pipeline",
    "PruningPlan": "onnxprune.pipeline",
    "QualityError": "onnxprune.errors",
    "Request": "onnxprune.pipeline",
    "apply": "onnxprune.pipeline",
    "bench": "onnxprune.benchmark",
    "evaluate": "onnxprune.pipeline",
    "inspect": "onnxprune.pipeline",
    "load_plan": "onnxprune.pipeline",
    "plan": "onnxprune.pipeline",
    "prune": "onnxprune.pipeline",
    "save": "onnxprune.pipeline",
    "save_plan": "onnxprune.pipeline",
    "sweep": "onnxprune.pipeline",
}

__all__ = [
    "Accuracy",
    "Benchmark",
    "BudgetError",
    "CalibrationError",
    "Curve",
    "InternalError",
    "ModelError",
    "OnnxpruneError",
    "OutputError",
    "PlanError",
    "PruneResult",
    "PruningPlan",
    "QualityError",
    "Request",
    "apply",
    "bench",
    "evaluate",
    "inspect",
    "load_plan",
    "plan",
    "prune",
    "save",
    "save_plan",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'onnxprune' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
