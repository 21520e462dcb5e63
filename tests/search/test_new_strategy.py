"""A strategy is one file and one entry in a list, and is used from the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import DIGITS, LENET, done, save, tiny_net, tiny_samples

from onnxprune.log import silent
from onnxprune.plans.budgets import budget_of
from onnxprune.plans.plan import PruningPlan
from onnxprune.plans.reading import Reading
from onnxprune.plans.request import Request
from onnxprune.run.open import open_model, open_study
from onnxprune.run.run import Run
from onnxprune.run.study import Study
from onnxprune.search import strategies
from onnxprune.search.strategies import STRATEGIES, find_plan
from onnxprune.search.strategy import Answer, Strategy
from onnxprune.timing.speed import Speed


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


def test_an_attempt_that_is_thrown_away_leaves_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Request(macs=0.5, mode="channels", metric="magnitude", recover="none", threads=1)
    study = open_study(open_model(LENET), DIGITS, asked, Reading(cache=False), silent)

    def meet(study: Study) -> Answer:
        plan = study.decider.channels(budget_of(asked, study.run.given.cost))
        return Answer(study, plan, warnings=(f"aligned to {study.align}",))

    def check(study: Study, _: object) -> Speed:
        ratio = 0.9 if study.align == 16 else 1.3
        return Speed(ratio, ratio, ratio, 1, is_slower=ratio > 1)

    monkeypatch.setattr(strategies, "STRATEGIES", [Strategy("toy", lambda _: True, meet)])
    monkeypatch.setattr(strategies, "check_speed", check)
    answer = find_plan(study)
    assert answer.study.align == 16
    repair, own = answer.warnings
    assert "multiples of 16" in repair
    assert own == "aligned to 16"
    assert not any("aligned" in text for text in study.run.log.warnings)
