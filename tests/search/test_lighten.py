"""Whole parts and channels leave together: what decides that, and that one recovery serves both."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import onnxprune
from onnxprune.log import silent
from onnxprune.plans.budgets import KINDS, Budget, budget_of
from onnxprune.plans.reading import Reading
from onnxprune.plans.request import Request
from onnxprune.recover.ladder import QUICK
from onnxprune.run.execute import execute, without_parts
from onnxprune.run.open import open_model, open_study
from onnxprune.run.study import Study
from onnxprune.search import branches as lighten
from onnxprune.search.branch_trials import BranchOrder, Yardstick, branch_order

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "calibration" / "digits"
RESNET = ROOT / "models" / "digits_resnet.onnx"
MODELS = sorted((ROOT / "models").glob("*.onnx"))


def study(path: Path = RESNET, **settings: Any) -> Study:
    request = Request(**({"macs": 0.4, "threads": 1} | settings))
    return open_study(open_model(path), DIGITS, request, Reading(cache=False), silent)


@pytest.fixture(scope="module")
def whole() -> Study:
    return study()


@pytest.mark.parametrize(
    ("distances", "losses", "chosen"),
    [
        ({0: 1.0, 2: 2.0, 1: 3.0}, (1, 1, 1, 1), 0),
        ({0: 1.0, 2: 2.0, 1: 0.5}, (1, 1, 1, 1), 1),
        ({0: 1.0, 2: 0.5, 3: 0.7}, (1, 1, 1, 1), 2),
        ({0: 1.0, 2: 0.5, 3: 0.4}, (1, 1, 1, 1), 3),
        ({0: 1.0, 2: 0.5, 1: 0.4}, (1, 2, 2, 1), 0),  # nearer, but the loss is worse
        ({0: 1.0, 2: 0.5, 3: 0.4}, (2, 1, 1, 2), 2),
        ({0: np.inf, 2: np.inf, 1: 0.4}, (1, 1, 1, 1), 1),  # channels alone cannot, nor with two
        ({0: np.inf, 2: np.inf, 1: np.inf}, (1, 1, 1, 1), 0),
    ],
)
def test_what_half_of_the_parts_do_decides_whether_more_or_less_are_tried(
    whole: Study,
    distances: dict[int, float],
    losses: tuple[float, ...],
    chosen: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[int] = []
    counts = {0.25: 1, 0.5: 2, 1.0: 3}

    def count(left: Study) -> int:
        return len(left.shortening.names) if left.shortening else 0

    def trial(left: Study, _: object) -> SimpleNamespace | None:
        tried.append(count(left))
        distance = distances[tried[-1]]
        outcome = SimpleNamespace(model=distance, recovery={"loss_with": losses[tried[-1]]})
        return None if np.isinf(distance) else outcome

    def shorter(study: Study, names: tuple[str, ...]) -> SimpleNamespace:
        assert study is whole
        return SimpleNamespace(shortening=SimpleNamespace(names=names))

    monkeypatch.setattr(lighten, "_wears_out", lambda *_: True)
    monkeypatch.setattr(lighten, "execute_quickly", trial)
    monkeypatch.setattr(lighten, "without_parts", shorter)
    monkeypatch.setattr(BranchOrder, "enough", lambda _, share: tuple("abc"[: counts[share / 0.6]]))
    monkeypatch.setattr(Yardstick, "distance", lambda _, model: model)
    left = lighten.drop_branches(whole, Budget(KINDS["macs"], 0.4, "macs 0.4"))
    assert tried == list(distances)
    assert count(left) == chosen


@pytest.mark.parametrize(
    "settings", [{"mode": "channels"}, {"recover": "none"}, {"macs": None, "params": 0.5}]
)
def test_only_auto_takes_parts_and_only_for_work(settings: dict[str, Any]) -> None:
    asked = study(**settings)
    assert lighten.drop_branches(asked, budget_of(asked.run.request, asked.run.given.cost)) is asked


def test_parts_are_tried_where_channels_leave_next_to_nothing_of_one(whole: Study) -> None:
    branches = [r for r in whole.run.removals if r.kind == "branch"]
    tried = {
        limit: lighten._wears_out(whole, branches, Budget(KINDS["macs"], limit, f"macs {limit}"))
        for limit in (0.9, 0.1, 0.001)
    }
    assert tried == {0.9: False, 0.1: True, 0.001: True}  # the last cannot be met at all
    assert lighten._wears_out(whole, branches, Budget(KINDS["latency"], 0.9, "latency 0.9"))


def test_branches_leave_in_order_until_enough_work_is_gone(whole: Study) -> None:
    order = BranchOrder(whole)
    work = {
        r.name: sum(whole.knowledge.node_macs[n] for n in r.layers) / whole.run.given.cost.macs
        for r in whole.run.removals
    }
    *_, every = branch_order(whole)
    assert order.enough(0.0) == ()
    assert order.enough(1.0) == every, "all, where they do not do so much"
    for count in range(1, len(every) + 1):
        done = sum(work[name] for name in every[:count])
        assert order.enough(done - 1e-9) == every[:count]


def test_one_recovery_serves_parts_and_channels(whole: Study) -> None:
    """What is left is measured in the whole model and fitted to it, both cuts at once."""
    names = [r.name for r in whole.run.removals if r.kind == "branch"][:1]
    left = without_parts(whole, names)
    budget = Budget(KINDS["macs"], 0.4, "macs 0.4")
    plan = left.decider.channels(budget)
    assert left.activations.stats.keys() == whole.activations.stats.keys()
    outcome = execute(left, plan, QUICK)
    assert outcome.plan.removals == tuple(names)
    assert outcome.plan.model_sha256 == whole.run.given.original.sha256
    steps = outcome.recovery["steps"]
    assert [s["name"].split(",")[0] for s in steps][:1] == ["least squares"]
    assert outcome.recovery["loss_with"] < 0.5 * outcome.recovery["loss_without"]
    yardstick = Yardstick(whole, 1)
    assert yardstick.distance(whole.run.given.folded) == pytest.approx(0.0, abs=1e-9)
    assert yardstick.distance(outcome.model) < 0.5


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_auto_meets_the_budget_and_a_plan_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    request = Request(macs=0.35, threads=1)
    result = onnxprune.prune(path, DIGITS, macs=0.35, threads=1, cache=False)
    report = result.report.to_dict()
    assert 0.3 < report["macs"]["achieved"] <= 0.35
    assert report["verification"]["max_rel_error"] < 1e-4
    plan = onnxprune.plan(path, DIGITS, request, cache=False)
    assert [part["name"] for part in report["removals"]] == sorted(
        plan.removals, key=[part["name"] for part in report["removals"]].index
    )
    applied = onnxprune.apply(path, plan, DIGITS, cache=False)
    assert applied.model.SerializeToString() == result.model.SerializeToString()
    onnxprune.save(result, tmp_path / "out.onnx")
