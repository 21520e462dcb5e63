"""A strategy is one file and one entry in a list, and is used from the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import done, save, tiny_net, tiny_samples

from onnxprune.plans.plan import PruningPlan
from onnxprune.run.run import Run
from onnxprune.run.study import Study
from onnxprune.search.strategies import STRATEGIES
from onnxprune.search.strategy import Answer, Strategy


def keep_the_first(study: Study) -> Answer:
    """Keep the first channel of each group."""
    groups = study.subject.structure.groups
    keep = {g.name: np.arange(len(g.units)) < 1 for g in groups}
    plan = PruningPlan(study.run.given.original.sha256, keep)
    return Answer(study, plan, warnings=("only the first channels stay",))


def _fits(run: Run) -> bool:
    return run.request.mode == "channels" and run.request.sparsity is not None


@pytest.fixture
def toy() -> Iterator[None]:
    strategy = Strategy("the first channels", _fits, keep_the_first)
    STRATEGIES.insert(0, strategy)
    yield
    STRATEGIES.remove(strategy)


@pytest.mark.usefixtures("toy")
def test_a_strategy_is_used_from_the_command_line(tmp_path: Path) -> None:
    model, data = tmp_path / "m.onnx", tmp_path / "d.npz"
    save(tiny_net(), model)
    tiny_samples(data)
    out = tmp_path / "small.onnx"
    arguments = (str(model), "--calib", str(data), "--mode", "channels", "--recover", "none")
    result = done("prune", *arguments, "--sparsity", "0.05", "-o", str(out), "--force")
    assert "only the first channels stay" in result.stderr
    first = next(t for t in onnx.load(out).graph.initializer if len(t.dims) == 4)
    assert first.dims[0] == 1
