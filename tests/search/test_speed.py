"""Measured latency: what is concluded from it, with measurements of our own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.cli import commands as cli
from onnxprune.decide.latency_savings import LEAST, VECTOR, even_cut, measure_savings, responsive
from onnxprune.errors import BudgetError, ModelError, QualityError
from onnxprune.model import cost
from onnxprune.model import model as graph
from onnxprune.model.model import Model
from onnxprune.model.observe import observe
from onnxprune.model.runner import Runner
from onnxprune.model.session import NodeRun, optimised
from onnxprune.plans.budgets import KINDS, Budget
from onnxprune.plans.plan import PruningPlan
from onnxprune.plans.request import Request
from onnxprune.run import speed_check
from onnxprune.run.execute import execute_quickly
from onnxprune.run.speed_check import LOOK_S, SECONDS, check_speed
from onnxprune.run.study import Study
from onnxprune.samples.inputs import observe_inputs
from onnxprune.search import branches as lighten
from onnxprune.search import depth, meet_latency
from onnxprune.search import strategies as search
from onnxprune.search import within_latency as steering
from onnxprune.search.branch_trials import Yardstick
from onnxprune.search.within_latency import CLOSE, MEASUREMENTS, steer
from onnxprune.structure.subject import trace_subject
from onnxprune.structure.unit_costs import weights_left
from onnxprune.timing import latency, node_times, speed
from onnxprune.timing.latency import Comparison, Ratio, Timing, in_batches, samples_of
from onnxprune.timing.node_times import OTHERS, attribute, measure_nodes, medians
from onnxprune.timing.speed import Speed
from onnxprune.timing.vector_width import channel_block

ROOT = Path(__file__).parents[2]
RESNET = ROOT / "models" / "digits_resnet.onnx"
LENET = ROOT / "models" / "digits_lenet300.onnx"
MOBILENET = ROOT / "models" / "digits_mobilenet.onnx"
DIGITS = ROOT / "calibration" / "digits"
BRIEF = {"recover": "none", "metric": "magnitude"}


def exactly(value: float) -> Speed:
    return Speed(value, value, value, 4)


class Machine:
    """Plans by the width of one group, and what they are measured to take."""

    def __init__(self, measured: Callable[[float], float], widths: int = 1000, least: float = 0.0):
        self.measured, self.widths, self.least = measured, widths, least
        self.timed: list[float] = []

    def plan(self, ratio: float) -> PruningPlan:
        if ratio < self.least:
            raise BudgetError("too little")
        kept = np.arange(self.widths) < int(ratio * self.widths)
        return PruningPlan("", {"group": kept})

    def time(self, plan: PruningPlan) -> Speed:
        self.timed.append(float(plan.keep["group"].mean()))
        return exactly(self.measured(self.timed[-1]))


@pytest.mark.parametrize("limit", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize(
    "measured",
    [
        lambda p: p,
        lambda p: p**2,
        lambda p: p**0.5,
        lambda p: 0.2 + 0.8 * p,
        lambda p: 1.1 * p,
        lambda p: min(1.0, 1.25 * p),
        lambda p: np.ceil(p * 40) / 40,
    ],
)
def test_a_budget_is_met_closely_after_few_measurements(
    measured: Callable[[float], float], limit: float
) -> None:
    machine = Machine(measured)
    found = steer(Budget(KINDS["latency"], limit, ""), machine.plan, machine.time)
    assert (1 - CLOSE) * limit <= found.speed.value <= limit
    assert len(machine.timed) <= MEASUREMENTS
    assert found.speed.value == measured(float(found.plan.keep["group"].mean()))


def test_coarse_steps_give_the_best_of_them() -> None:
    machine = Machine(lambda p: p, widths=4)
    found = steer(Budget(KINDS["latency"], 0.7, ""), machine.plan, machine.time)
    assert found.speed.value == 0.5
    assert len(machine.timed) == len(set(machine.timed)), "no plan is timed twice"


def test_a_ratio_that_cannot_be_told_from_the_budget_is_close() -> None:
    machine = Machine(lambda p: p)
    vague = steer(
        Budget(KINDS["latency"], 0.5, ""),
        machine.plan,
        lambda plan: replace(machine.time(plan), value=0.4, high=0.51),
    )
    assert len(machine.timed) == 1
    assert vague.speed.value == 0.4


@pytest.mark.parametrize("least", [0.0, 0.3, 0.6])
def test_the_best_that_was_measured_is_named(least: float) -> None:
    machine = Machine(lambda p: 0.5 + 0.5 * p, least=least)
    with pytest.raises(BudgetError, match=r"latency 0\.4 cannot be reached") as error:
        steer(Budget(KINDS["latency"], 0.4, "latency 0.4"), machine.plan, machine.time)
    assert f"{0.5 + 0.5 * min(machine.timed):.4f}" in str(error.value)
    assert min(machine.timed) <= least + 0.05


def test_nothing_that_can_leave_is_said_so() -> None:
    machine = Machine(lambda p: p, least=2.0)
    with pytest.raises(BudgetError, match="that of the original"):
        steer(Budget(KINDS["latency"], 0.4, "latency 0.4"), machine.plan, machine.time)


# -- node times ------------------------------------------------------------------------------


def residual() -> onnx.ModelProto:
    """Return two convolutions that meet in a sum with a Relu, and a pool behind them."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Conv", ["x", "w"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["y"]),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 4, 8, 8]), ("y", [1, 4, 1, 1]))
    ]
    weight = numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "w")
    return helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], [weight]))


@pytest.mark.parametrize(("own", "other"), [(0, "b"), (1, "a")])
def test_a_fused_product_is_the_layer_that_is_not_found_otherwise(own: int, other: str) -> None:
    """The sum and the Relu went into one of the convolutions; the other has its own name."""
    seconds = attribute(
        residual(),
        {
            ("onnxprune-3-0_nchwc", "Conv"): 5.0,
            (f"onnxprune-{own}-0_nchwc", "Conv"): 1.0,
            ("onnxprune-4-node", "GlobalAveragePool"): 0.5,
            ("ReorderInput_token_3", "ReorderInput"): 0.25,
        },
    )
    mine = {"a": "b", "b": "a"}[other]
    assert seconds == {mine: 1.0, other: 5.0, "c": 0.0, "d": 0.0, "y": 0.5, OTHERS: 0.25}


def test_a_fused_operator_without_product_counts_as_itself() -> None:
    seconds = attribute(residual(), {("onnxprune-3-node", "FusedAddRelu"): 2.0})
    assert seconds["d"] == 2.0
    assert sum(seconds.values()) == 2.0


def test_the_median_of_runs_is_what_counts() -> None:
    runs = [NodeRun("a", "Conv", s) for s in (1.0, 2.0, 30.0)]
    runs += [NodeRun("b", "Add", s) for s in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)]
    assert medians(runs, 3) == {("a", "Conv"): 2.0, ("b", "Add"): 2.0}


@pytest.mark.parametrize("path", [RESNET, MOBILENET], ids=lambda p: p.stem)
def test_every_layer_is_found_in_the_profile(path: Path) -> None:
    model = graph.load(path)
    before = model.proto.SerializeToString()
    feeds = {"image": np.zeros((4, 1, 8, 8), np.float32)}
    seconds = measure_nodes(model, feeds, runner=Runner(1))
    layers = [n.output[0] for n in model.proto.graph.node if n.op_type in ("Conv", "Gemm")]
    assert len(layers) > 5
    assert all(seconds[name] > 0 for name in layers)
    assert seconds[OTHERS] < sum(seconds.values())
    assert model.proto.SerializeToString() == before


def test_a_node_with_a_subgraph_is_profiled() -> None:
    """What a subgraph reads from outside keeps its name."""
    branch = helper.make_graph(
        [helper.make_node("Add", ["y0", "y0"], ["z"])],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    proto = residual()
    proto.graph.node[-1].output[0] = "y0"
    proto.graph.node.append(
        helper.make_node("If", ["always"], ["y"], then_branch=branch, else_branch=branch)
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    proto.ir_version, proto.opset_import[0].version = 8, 13
    seconds = measure_nodes(
        Model(proto), {"x": np.ones((1, 4, 8, 8), np.float32)}, runner=Runner(1)
    )
    assert set(seconds) == {"a", "b", "c", "d", "y0", "y", OTHERS}
    assert node_times.FEW_RUNS <= node_times.RUNS


# -- savings ----------------------------------------------------------------------------------


def test_what_does_not_leave_is_fixed() -> None:
    whole = {"a": 8.0, "b": 4.0, "c": 2.0, "relu": 1.0, OTHERS: 3.0}
    cut = {"a": 4.0, "b": 4.1, "c": 0.1, "relu": 0.5, OTHERS: 3.0}
    saved = responsive(whole, cut, {"a": 0.25, "b": 0.5, "c": 0.5, "d": 0.5})
    assert saved["a"] == pytest.approx(4 / 0.75)
    assert saved["b"] == pytest.approx(LEAST * 4), "no step is for nothing"
    assert saved["c"] == 2.0, "not more than all of it"
    assert saved["relu"] == 1.0
    assert sum(saved.values()) == pytest.approx(sum(whole.values()))


@pytest.mark.parametrize("path", [RESNET, MOBILENET], ids=lambda p: p.stem)
def test_an_even_cut_can_be_carried_out_and_measured(path: Path) -> None:
    model = graph.load(path)
    shapes = observe_inputs(model, None, seed=0, runner=Runner(1))
    subject = trace_subject(model, shapes)
    structure = subject.structure
    kept = even_cut(structure)
    for group in structure.groups:
        size, stays = len(group.units), int(kept[group.units].sum())
        assert stays == size // 2 - (size // 2 % VECTOR if size >= 2 * VECTOR else 0)
    shares = weights_left(structure, structure.units.keep(kept))
    assert min(shares.values()) < 0.5
    whole, saved = measure_savings(subject, shapes.feeds[0], runner=Runner(1))
    assert sum(saved.values()) == pytest.approx(sum(whole.values()))
    assert all(0 < saved[w.node] <= whole[w.node] for w in structure.weights)


# -- pruning ---------------------------------------------------------------------------------


@pytest.fixture
def by_macs(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let 70 % of the latency go with the operations; return what was measured."""
    timed: list[float] = []

    def measure(study: Study, model: Model) -> Speed:
        macs = cost.measure(model, observe(model, study.run.feeds[0], runner=Runner(1))).macs
        timed.append(0.3 + 0.7 * macs / study.run.given.cost.macs)
        return exactly(timed[-1])

    for module in (steering, meet_latency, depth):
        monkeypatch.setattr(module, "measure_speed", measure)
    monkeypatch.setattr(search, "check_speed", measure)
    return timed


@pytest.mark.parametrize("recover", ["none", "bias"])
@pytest.mark.parametrize("latency", [0.6, 0.8])
def test_a_latency_is_met_by_what_is_written(
    by_macs: list[float], latency: float, recover: str
) -> None:
    result = onnxprune.prune(
        RESNET, DIGITS, latency=latency, recover=recover, metric="magnitude", align=1
    )
    report = result.report.to_dict()
    assert report["latency"]["requested"] == latency
    assert (1 - CLOSE) * latency <= report["latency"]["achieved"] <= latency
    share = report["after"]["macs"] / report["before"]["macs"]
    assert report["latency"]["achieved"] == pytest.approx(0.3 + 0.7 * share)
    assert report["latency"]["batch"] == 4
    assert len(by_macs) <= MEASUREMENTS + 1


def test_a_latency_that_cannot_be_reached(by_macs: list[float]) -> None:
    with pytest.raises(BudgetError, match=r"latency 0\.2 cannot be reached .* best latency"):
        onnxprune.prune(RESNET, DIGITS, latency=0.2, **BRIEF)
    assert by_macs


@pytest.mark.usefixtures("by_macs")
def test_a_miss_in_the_end_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The finished model is slower than the plan was: so the next plan removes more."""
    steered = meet_latency.measure_speed
    monkeypatch.setattr(
        meet_latency, "measure_speed", lambda s, m: exactly(1.1 * steered(s, m).value)
    )
    report = onnxprune.prune(RESNET, DIGITS, latency=0.7, align=1, **BRIEF).report
    assert report.speed is not None
    assert report.speed.value <= 0.7
    monkeypatch.setattr(meet_latency, "measure_speed", lambda _, __: exactly(0.9))
    report = onnxprune.prune(RESNET, DIGITS, latency=0.7, align=1, **BRIEF).report
    assert any("latency 0.7 was missed: 0.9000" in text for text in report.warnings)


@pytest.mark.usefixtures("by_macs")
@pytest.mark.parametrize("cheaper", [False, True])
def test_parts_leave_for_a_latency_where_that_is_the_cheaper_cut(
    cheaper: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"latency": 0.7, "metric": "magnitude", "threads": 1}

    def nodes(_: Yardstick, model: Model) -> int:
        return len(model.proto.graph.node) * (1 if cheaper else -1)

    monkeypatch.setattr(Yardstick, "distance", nodes)
    monkeypatch.setattr(
        lighten,
        "execute_quickly",
        lambda *of: replace(execute_quickly(*of), recovery={"loss_with": 0.0}),
    )
    result = onnxprune.prune(RESNET, DIGITS, **settings)
    gone = result.report.to_dict()["removals"]
    assert bool(gone) == cheaper
    assert result.report.speed is not None
    assert result.report.speed.value <= 0.7
    plan = onnxprune.plan(RESNET, DIGITS, Request(**settings))
    applied = onnxprune.apply(RESNET, plan, DIGITS).report
    assert applied.speed is not None
    assert applied.speed.value <= 0.7
    again = applied.to_dict()
    assert bool(plan.removals) == cheaper  # by times of their own: not always the same parts
    assert {part["name"] for part in again["removals"]} == set(plan.removals)
    assert 0.3 + 0.7 * again["after"]["macs"] / again["before"]["macs"] <= 0.7


def test_what_came_out_slower_is_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(_: Study, model: Model) -> Speed:
        odd = any(t.dims[0] % 8 for t in model.proto.graph.initializer if len(t.dims) == 4)
        return replace(exactly(1.2 if odd else 0.8), is_slower=odd)

    monkeypatch.setattr(search, "check_speed", check)
    result = onnxprune.prune(RESNET, DIGITS, sparsity=0.45, mode="channels", align=1, **BRIEF)
    assert result.report.achieved >= 0.45
    assert all(g.kept % 8 == 0 for g in result.report.groups)
    assert any("multiples of 8" in text for text in result.report.warnings)
    assert result.report.request["align"] == 1
    assert not result.missed


def test_what_stays_slower_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = replace(exactly(1.2), is_slower=True)
    monkeypatch.setattr(search, "check_speed", lambda _, __: slow)
    result = onnxprune.prune(RESNET, DIGITS, sparsity=0.5, mode="channels", **BRIEF)
    with pytest.raises(QualityError, match="slower than the original"):
        onnxprune.save(result, tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())
    onnxprune.save(result, tmp_path / "out.onnx", force=True)
    zeros = onnxprune.prune(RESNET, DIGITS, sparsity=0.5, mode="weights", **BRIEF)
    plan = onnxprune.plan(RESNET, DIGITS, Request(sparsity=0.5, mode="channels", **BRIEF))
    assert "slower" in onnxprune.apply(RESNET, plan, DIGITS).missed
    assert zeros.report.speed is None, "zeros change nothing, so nothing is timed"
    assert not zeros.missed


@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize(
    ("low", "slower"), [(1.15, True), (1.03, True), (1.02, False), (0.7, False)]
)
def test_the_lower_end_of_the_interval_decides(low: float, slower: bool, settled: bool) -> None:
    """However wide the interval is: 1.405 (1.380 to 1.427) is slower."""
    timing = Timing(1.0, 1.0, 1.0, 1.0, 1.0)
    ratios = (Ratio(1.0, 1.0, 1.0, (1.0, 1.0)), Ratio(low + 0.02, low, low + 0.05, (low, low)))
    result = speed.speed_of(Comparison((timing, timing), ratios, 9, 9, 1.0, settled), 4)
    assert result.is_slower == slower
    assert (result.value, result.low, result.high) == (low + 0.02, low, low + 0.05)


def slowly(value: float) -> Speed:
    return replace(exactly(value), is_slower=value > latency.SLOWER)


def test_a_second_look_before_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[tuple[float, int]] = []

    def measure(_: Study, __: Model, seconds: float, feeds: dict[str, np.ndarray]) -> Speed:
        looks.append((seconds, len(feeds["x"])))
        return slowly(measured[len(looks) - 1])

    monkeypatch.setattr(speed_check, "measure_speed", measure)
    monkeypatch.setattr(speed_check, "_one_run", lambda _: one_run)
    feeds = [{"x": np.zeros(n)} for n in (8, 1)]
    run = SimpleNamespace(log=SimpleNamespace(elapsed=1.0), timing_feeds=feeds)
    study = SimpleNamespace(run=run)
    short, long = LOOK_S, SECONDS
    one_run, measured = 0.001, [0.9, 0.9]
    for case, expected, wanted in (
        ([0.9, 0.7], 0.9, [(short, 8), (short, 1)]),
        ([1.2, 0.95, 0.7], 0.95, [(short, 8), (long, 8), (short, 1)]),
        ([0.5, 1.1, 1.05], 1.05, [(short, 8), (short, 1), (long, 1)]),
        ([1.3, 1.2, 1.1, 1.05], 1.2, [(short, 8), (long, 8), (short, 1), (long, 1)]),
    ):
        measured = case
        looks.clear()
        assert check_speed(study, None) == slowly(expected)
        assert looks == wanted
    looks.clear()
    one_run = 3.0
    assert check_speed(study, None) is None
    assert not looks, "a model that takes seconds is not timed after a run of one"
    run.log.elapsed = 3600.0
    assert check_speed(study, None) is not None


REPAIRED = {
    "sparsity, channels": {"sparsity": 0.45, "mode": "channels"},
    "sparsity, auto": {"sparsity": 0.45},
    "macs": {"macs": 0.57},
    "params": {"params": 0.57, "mode": "channels"},
    "size": {"size": 60_000},
    "drop": {"max_drop": 0.05},
    "latency": {"latency": 0.61},
}


@pytest.mark.parametrize("name", REPAIRED)
def test_a_repair_changes_the_widths_whatever_was_asked_for(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The alignment of a repair is the one in force, not that of the request."""
    budget: dict[str, Any] = REPAIRED[name]
    widths: list[list[int]] = []

    def check(study: Study, model: Model) -> Speed:
        widths.append([t.dims[-1] for t in model.proto.graph.initializer if len(t.dims) == 1][:-1])
        return slowly(0.6 if study.align else 1.2)

    def by_weights(study: Study, model: Model) -> Speed:
        return exactly(cost.count_nonzero(model) / study.run.given.cost.weights)

    monkeypatch.setattr(search, "check_speed", check)
    for module in (meet_latency, depth, steering):
        monkeypatch.setattr(module, "measure_speed", by_weights)
    if name == "latency":  # which is measured in any case
        monkeypatch.setattr(meet_latency, "measure_speed", check)
    result = onnxprune.prune(LENET, DIGITS, threads=1, **budget, **BRIEF)
    assert not result.missed
    whole = [300, 100]  # nothing leaves a layer that saves nothing by it
    assert all(w % 8 == 0 or w == size for w, size in zip(widths[-1], whole, strict=True)), widths
    assert widths[-1] != whole
    assert any("multiples of 8" in text for text in result.report.warnings)
    # Zeros make up for the rest, or node times decide, which are measured.
    if name not in ("sparsity, auto", "latency"):
        assert any(width % 8 for width in widths[0]), widths


def test_a_plan_is_repaired_like_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that applying it gives the same; applying repairs nothing."""
    checked: list[int] = []

    def check(_: Study, model: Model) -> Speed:
        checked.append(len(model.proto.graph.initializer))
        return slowly(1.2 if len(checked) == 1 else 0.8)

    monkeypatch.setattr(search, "check_speed", check)
    settings: dict[str, Any] = {"macs": 0.57, "threads": 1, **BRIEF}
    pruned = onnxprune.prune(LENET, DIGITS, **settings)
    checked.clear()
    plan = onnxprune.plan(LENET, DIGITS, Request(**settings))
    assert len(checked) == 2
    assert plan.request is not None
    assert plan.request.align == 8
    applied = onnxprune.apply(LENET, plan, DIGITS)
    assert [g.kept for g in applied.report.groups] == [g.kept for g in pruned.report.groups]
    assert not applied.missed
    checked.clear()
    assert "slower" in onnxprune.apply(LENET, plan, DIGITS).missed


@pytest.mark.parametrize("repairs", [0, 1])
def test_what_only_a_clean_up_made_slower_stays(
    repairs: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Dead channels leave without a loss, and at a width that runs slower for it."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(16, 4, 1, 1)), rng.normal(size=(4, 16, 1, 1))]
    weights[0][13:] = 0
    values = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4, 6, 6]) for n in ("x", "y")
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["h"]),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("Conv", ["a", "w1"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(w.astype(np.float32), f"w{k}") for k, w in enumerate(weights)
    ]
    network = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    opset = [helper.make_opsetid("", 17)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(network, opset_imports=opset, ir_version=8), path)

    def check(_: Study, model: Model) -> Speed:
        width = min(t.dims[0] for t in model.proto.graph.initializer if t.dims[0] > 4)
        seen.append(width)
        return slowly(0.9 if repairs and width == 16 else 1.3)

    seen: list[int] = []
    monkeypatch.setattr(search, "check_speed", check)
    result = onnxprune.prune(path, lossless=True)
    assert seen[0] == 13
    assert not result.missed
    assert result.report.to_dict()["clean_up"]["channels"]["dead"] == 0
    assert result.report.after.cost.weights == result.report.before.cost.weights
    assert result.report.warnings


def test_a_latency_is_timed_at_the_batch_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes: list[int] = []

    def measure(_: Study, __: Model, ___: float = 1.0, feeds: Any = None) -> Speed:
        sizes.append(len(feeds["image"]))
        return replace(slowly(1.2 if sizes[-1] == 1 else 0.8), batch=sizes[-1])

    monkeypatch.setattr(search, "check_speed", check_speed)
    monkeypatch.setattr(speed_check, "measure_speed", measure)
    out, report = tmp_path / "out.onnx", tmp_path / "r.json"
    args = [RESNET, "--calib", DIGITS, "--sparsity", 0.5, "--mode", "channels", "-o", out, "-q",
            "--recover", "none", "--latency-batch", 16, "--report", report]  # fmt: skip
    result = CliRunner().invoke(cli.main, [str(a) for a in args])
    assert result.exit_code == 3
    assert set(sizes) == {1, 16}
    assert "at batch 1 its latency is 1.200" in result.stderr
    assert not out.exists()
    assert json.loads(report.read_text())["latency"]["batch"] == 1


def test_what_a_model_can_be_timed_on() -> None:
    feeds = {"image": np.zeros((3, 1, 8, 8), np.float32)}
    model = graph.load(RESNET)
    assert [samples_of(f) for f in in_batches(model, feeds, (16, 1), runner=Runner(1))] == [16, 1]
    assert [samples_of(f) for f in in_batches(model, feeds, (1, 1), runner=Runner(1))] == [1]
    fixed = residual()
    assert in_batches(Model(fixed), feeds, (16, 1)) == [feeds]


def test_the_real_check_reports_what_it_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "check_speed", check_speed)
    latency = onnxprune.prune(
        RESNET, DIGITS, sparsity=0.6, mode="channels", threads=1, **BRIEF
    ).report.to_dict()["latency"]
    assert latency["requested"] is None
    assert 0 < latency["low"] <= latency["achieved"] <= latency["high"]
    assert latency["batch"] == 1


@pytest.mark.usefixtures("by_macs")
def test_the_command_line(tmp_path: Path) -> None:
    def run(*args: object) -> tuple[int, str, str]:
        result = CliRunner().invoke(cli.main, [str(a) for a in args])
        return result.exit_code, result.stdout, result.stderr

    common = (RESNET, "--calib", DIGITS, "-o", tmp_path / "out.onnx", "--recover", "none")
    code, out, _ = run(*common, "--latency", 0.7)
    assert code == 0
    assert "latency: requested 0.7, achieved 0.6" in out
    assert "measured on this machine at batch 4" in out
    assert run(*common, "--latency", 0.7, "--mode", "weights")[0] == 2
    assert run(*common, "--latency", 1.5)[0] == 2
    code, _, error = run(*common, "--latency", 0.7, "--force", "--provider", "Abacus")
    assert code == 1
    assert error.startswith("onnxprune: error: provider 'Abacus' is not in this onnxruntime")


def test_a_provider_must_exist() -> None:
    with pytest.raises(ModelError, match="'Abacus'"):
        onnxprune.prune(RESNET, DIGITS, latency=0.5, provider="Abacus")


def test_the_channels_that_are_computed_together() -> None:
    """One channel more than a block takes another block."""
    block = channel_block()
    assert block in (4, 8, 16)
    rows: list[int] = []
    for outputs in (block, block + 1):
        weights = numpy_helper.from_array(np.ones((outputs, 32, 3, 3), np.float32), "w")
        values = [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
            for n, s in (("x", (1, 32, 8, 8)), ("y", (1, outputs, 6, 6)))
        ]
        conv = helper.make_node("Conv", ["x", "w"], ["y"])
        network = helper.make_graph([conv], "g", values[:1], values[1:], [weights])
        opset = [helper.make_opsetid("", 17)]
        made = optimised(helper.make_model(network, opset_imports=opset, ir_version=8))
        rows.append(max(t.dims[0] for t in made.graph.initializer if len(t.dims) == 4))
    assert rows in ([block, 2 * block], [block, block + 1])  # the latter where none are filled up
    assert channel_block("OtherExecutionProvider") == 8
