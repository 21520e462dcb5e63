"""Budgets of operations, selection by the errors that are left, and its allocation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxprune.decide.allocate import Goal, allocate_channels
from onnxprune.decide.spread import share_of_rest
from onnxprune.errors import BudgetError, OnnxpruneError
from onnxprune.model import cost
from onnxprune.model import model as graph
from onnxprune.model.folding import fold
from onnxprune.model.observe import observe
from onnxprune.plans.cut import Cut
from onnxprune.plans.plan import plan_from_units
from onnxprune.plans.request import Request
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.samples.synthetic import synthetic_feeds
from onnxprune.structure.labels import Labels
from onnxprune.structure.structure import Group, Structure
from onnxprune.structure.trace import trace
from onnxprune.structure.unit_costs import predicted_macs, unit_costs, weights_removed
from onnxprune.verbs.prune import prune

ROOT = Path(__file__).parents[2]
MODELS = sorted((ROOT / "models").glob("*.onnx"))
CALIB = ROOT / "calibration" / "digits"


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
@pytest.mark.parametrize("seed", range(3))
def test_predicted_macs_are_those_measured(path: Path, seed: int) -> None:
    model = graph.load(path)
    feeds = synthetic_feeds(model, seed=0)
    shapes = observe(model, feeds)
    folded = fold(model, shapes)
    structure = trace(folded, shapes)
    rng = np.random.default_rng(seed)
    kept = np.ones(len(structure.units), dtype=np.bool_)
    for group in structure.groups:
        kept[group.units[1:]] = rng.random(len(group.units) - 1) < 0.6
    macs = cost.node_macs(folded, shapes)
    predicted = predicted_macs(structure, macs, structure.units.keep(kept))
    pruned = rewrite(Cut(folded, structure, shapes, plan_from_units("", structure, kept)))
    measured = cost.measure(pruned, observe(pruned, feeds)).macs
    assert predicted == pytest.approx(measured, abs=1)
    everything = np.ones(len(structure.units), dtype=np.bool_)
    whole = predicted_macs(structure, macs, structure.units.keep(everything))
    assert whole == pytest.approx(sum(macs.values()))


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_unit_costs_are_what_one_unit_saves(path: Path) -> None:
    model = graph.load(path)
    shapes = observe(model, synthetic_feeds(model, seed=0))
    folded = fold(model, shapes)
    structure = trace(folded, shapes)
    macs = cost.node_macs(folded, shapes)
    costs, weights = unit_costs(structure, macs), unit_costs(structure)
    everything = np.ones(len(structure.units), dtype=np.bool_)
    for unit in (int(g.units[0]) for g in structure.groups):
        kept = everything.copy()
        kept[unit] = False
        labels = structure.units.keep(kept)
        saved = sum(macs.values()) - predicted_macs(structure, macs, labels)
        # A layer that loses an input and an output at once saves a little less than both.
        assert 0 < saved <= costs[unit] * (1 + 1e-9)
        assert 0 < weights_removed(structure, labels) <= weights[unit] * (1 + 1e-9)


@pytest.mark.parametrize("ratio", [0.8, 0.5])
def test_a_budget_of_operations_is_met(ratio: float) -> None:
    path = next(p for p in MODELS if "resnet" in p.stem)
    report = prune(path, CALIB, macs=ratio, recover="bias", threads=1).report.to_dict()
    assert report["request"]["macs"] == report["macs"]["requested"] == ratio
    assert report["macs"]["achieved"] <= ratio
    assert report["macs"]["achieved"] > ratio - 0.15
    assert report["after"]["macs"] < report["before"]["macs"]


def test_a_budget_of_operations_that_cannot_be_met_names_the_best() -> None:
    path = next(p for p in MODELS if "resnet" in p.stem)
    with pytest.raises(BudgetError, match=r"macs 0\.0001 .* best achievable is 0\.\d+"):
        prune(path, CALIB, macs=1e-4, recover="none", metric="magnitude")


def test_exactly_one_budget() -> None:
    with pytest.raises(OnnxpruneError, match="exactly one of sparsity, params, macs"):
        Request()
    with pytest.raises(OnnxpruneError, match="exactly one of sparsity, params, macs"):
        Request(sparsity=0.5, macs=0.5)
    with pytest.raises(OnnxpruneError, match="weights needs sparsity"):
        Request(mode="weights", macs=0.5)


def two_groups(first: int, second: int) -> Structure:
    labels = Labels()
    axes = (labels.fresh(first), labels.fresh(second))
    units = labels.solve()
    groups = tuple(
        Group(f"g{k}", units.unit_of[units.component[a]], (f"g{k}",)) for k, a in enumerate(axes)
    )
    return Structure(units, (), (), (), (), (), (), (), axes, groups, (), frozenset())


def test_the_least_error_for_what_it_saves_leaves_first() -> None:
    structure = two_groups(8, 8)
    errors = np.concatenate([np.arange(1.0, 9.0), np.arange(1.0, 9.0)])
    costs = np.concatenate([np.full(8, 1.0), np.full(8, 4.0)])

    def saved(kept: np.ndarray) -> float:
        return float(1 - costs[kept].sum() / costs.sum())

    kept = allocate_channels(structure, errors, Goal(saved, 0.4), align=1, costs=costs)
    cheap, dear = (int(kept[g.units].sum()) for g in structure.groups)
    assert dear < cheap
    for group in structure.groups:
        own = kept[group.units]
        assert errors[group.units][own].min() > errors[group.units][~own].max(initial=-1)


def test_share_of_rest_is_lamp() -> None:
    squares = np.array([[4.0, 1.0], [9.0, 0.0]])
    expected = np.array([[4 / 13, 1 / 14], [1.0, 0.0]])
    np.testing.assert_allclose(share_of_rest(squares), expected)


@pytest.mark.parametrize("mode", ["channels", "weights"])
@pytest.mark.parametrize("metric", ["f-magnitude", "reconstruction"])
def test_full_recovery_is_gated_and_repeatable(mode: str, metric: str) -> None:
    path = next(p for p in MODELS if "lenet" in p.stem)
    settings = {"sparsity": 0.6, "mode": mode, "metric": metric, "threads": 1, "seed": 3}
    first, again = (prune(path, CALIB, **settings) for _ in range(2))
    assert first.model.SerializeToString() == again.model.SerializeToString()
    steps = first.report.recovery["steps"]
    assert [s["name"].split(",")[0] for s in steps][:2] == ["bias", "least squares"]
    best = steps[0]["loss_before"]
    for step in steps:
        assert step["loss_before"] == best
        assert step["accepted"] == (step["loss_after"] <= best)
        best = min(best, step["loss_after"])
