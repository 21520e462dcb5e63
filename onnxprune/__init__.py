"""Prune an exported ONNX model with nothing but onnxruntime and labelled samples.

The public names are imported on first use, so that ``import onnxprune`` (and the command
line's ``--help``) stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from onnxprune.version import __version__ as __version__

if TYPE_CHECKING:
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
    from onnxprune.measure.accuracy import Accuracy
    from onnxprune.plans.plan import PruningPlan
    from onnxprune.plans.plan_file import load_plan, save_plan
    from onnxprune.plans.request import Request
    from onnxprune.report.benchmark import Benchmark
    from onnxprune.report.curve import Curve
    from onnxprune.report.result import PruneResult, save
    from onnxprune.verbs.apply import apply
    from onnxprune.verbs.bench import bench
    from onnxprune.verbs.evaluate import evaluate
    from onnxprune.verbs.inspect import inspect
    from onnxprune.verbs.plan import plan
    from onnxprune.verbs.prune import prune
    from onnxprune.verbs.sweep import sweep

_HOME = {
    "Accuracy": "onnxprune.measure.accuracy",
    "Benchmark": "onnxprune.report.benchmark",
    "BudgetError": "onnxprune.errors",
    "CalibrationError": "onnxprune.errors",
    "Curve": "onnxprune.report.curve",
    "InternalError": "onnxprune.errors",
    "ModelError": "onnxprune.errors",
    "OnnxpruneError": "onnxprune.errors",
    "OutputError": "onnxprune.errors",
    "PlanError": "onnxprune.errors",
    "PruneResult": "onnxprune.report.result",
    "PruningPlan": "onnxprune.plans.plan",
    "QualityError": "onnxprune.errors",
    "Request": "onnxprune.plans.request",
    "apply": "onnxprune.verbs.apply",
    "bench": "onnxprune.verbs.bench",
    "evaluate": "onnxprune.verbs.evaluate",
    "inspect": "onnxprune.verbs.inspect",
    "load_plan": "onnxprune.plans.plan_file",
    "plan": "onnxprune.verbs.plan",
    "prune": "onnxprune.verbs.prune",
    "save": "onnxprune.report.result",
    "save_plan": "onnxprune.plans.plan_file",
    "sweep": "onnxprune.verbs.sweep",
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
