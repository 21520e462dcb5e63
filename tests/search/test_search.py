"""Budgets are kept by the finished file, and what accuracy allows decides how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxprune
from onnxprune.errors import BudgetError, OnnxpruneError, QualityError
from onnxprune.log import silent
from onnxprune.measure.accuracy import Accuracy, drop_between, expected_drop
from onnxprune.model.runner import Runner
from onnxprune.plans.reading import Reading
from onnxprune.plans.request import Request
from onnxprune.recover.ladder import QUICK, Effort
from onnxprune.run import execute as executing
from onnxprune.run.open import open_model, open_study
from onnxprune.search import auto as division
from onnxprune.search import candidates
from onnxprune.timing.vector_width import channel_block

ROOT = Path(__file__).parents[2]
MODELS = sorted((ROOT / "models").glob("*.onnx"))
CALIB = ROOT / "calibration" / "digits"
RESNET = ROOT / "models" / "digits_resnet.onnx"
LENET = ROOT / "models" / "digits_lenet300.onnx"


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
@pytest.mark.parametrize(
    "budget", [{"params": 0.5}, {"macs": 0.6}, {"sparsity": 0.5}, {"size": 0.4}], ids=str
)
@pytest.mark.parametrize("recover", ["none", "bias"])
def test_the_file_keeps_the_budget_closely(
    path: Path, budget: dict[str, float], recover: str, tmp_path: Path
) -> None:
    ((kind, value),) = budget.items()
    wanted = int(value * path.stat().st_size) if kind == "size" else value
    result = onnxprune.prune(path, CALIB, **{kind: wanted}, recover=recover, metric="magnitude")
    report = onnxprune.save(result, tmp_path / "out.onnx")
    before, after = report.before.cost, report.after.cost
    assert after.bytes == (tmp_path / "out.onnx").stat().st_size
    remains = {
        "params": after.params / before.params,
        "macs": after.macs / before.macs,
        "sparsity": after.nonzero_weights / before.weights,
        "size": after.bytes / before.bytes,
    }[kind]
    assert 0.97 * value < remains <= value
    assert result.report.split["zeros"] == 0 or kind == "sparsity"


def test_a_size_that_cannot_be_reached_names_the_best() -> None:
    with pytest.raises(BudgetError, match="size 700 cannot be reached"):
        onnxprune.prune(LENET, CALIB, size=700, recover="none", metric="magnitude")


def test_a_size_above_that_of_the_file_is_no_budget() -> None:
    with pytest.raises(OnnxpruneError, match="is no budget"):
        onnxprune.prune(LENET, CALIB, size=10**9, recover="none", metric="magnitude")


def test_channels_and_zeros_leave_together() -> None:
    """A plan with both is verified, and its masks have the shapes of the original."""
    result = onnxprune.prune(RESNET, CALIB, sparsity=0.9, max_drop=0.05, recover="bias")
    split = result.report.split
    assert split["channels"] + split["zeros"] >= 0.9 - 1e-9
    assert split["zeros"] > 0
    assert result.report.verification.max_rel_error < 1e-4
    values = [numpy_helper.to_array(t) for t in result.model.graph.initializer]
    zeros = sum(int((v == 0).sum()) for v in values if v.ndim > 1)
    assert zeros >= split["zeros"] * result.report.before.cost.weights


def test_the_drop_decides_the_split() -> None:
    seen = {}
    for limit in (0.0, 1.0):
        result = onnxprune.prune(LENET, CALIB, sparsity=0.8, max_drop=limit, recover="bias")
        seen[limit] = result.report.split["channels"]
    assert seen[1.0] >= 0.8, "all leave with channels where accuracy does not matter"
    assert seen[0.0] < seen[1.0]


def test_the_fewest_operations_within_a_drop() -> None:
    strict, loose = (
        onnxprune.prune(LENET, CALIB, max_drop=limit, recover="bias").report
        for limit in (0.01, 0.2)
    )
    for report, limit in ((strict, 0.01), (loose, 0.2)):
        assert report.drop is not None
        assert report.drop.value <= limit
        assert report.split["zeros"] == 0
    assert loose.after.cost.macs < strict.after.cost.macs < strict.before.cost.macs


def test_a_missed_gate_is_not_written(tmp_path: Path) -> None:
    result = onnxprune.prune(
        LENET, CALIB, sparsity=0.95, mode="channels", max_drop=0.0, recover="none"
    )
    assert not result.report.to_dict()["quality"]["met"]
    with pytest.raises(QualityError, match="accuracy drops by"):
        onnxprune.save(result, tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())
    onnxprune.save(result, tmp_path / "out.onnx", force=True)
    onnx.checker.check_model(str(tmp_path / "out.onnx"))


def test_a_gate_on_the_accuracy() -> None:
    common = {"sparsity": 0.3, "mode": "channels", "recover": "bias"}
    assert not onnxprune.prune(LENET, CALIB, **common, min_accuracy=0.5).missed
    missed = onnxprune.prune(LENET, CALIB, **common, min_accuracy=1.0).missed
    assert not missed or "wanted are 1" in missed


def test_the_standard_error_of_a_drop_counts_differences_only() -> None:
    def accuracy(hits: np.ndarray) -> Accuracy:
        return Accuracy(float(hits.mean()), 0.0, 0.0, len(hits), (), hits=hits)

    hits = np.arange(1000) % 10 != 0
    same = drop_between(accuracy(hits), accuracy(hits))
    assert (same.value, same.standard_error, same.samples) == (0.0, 0.0, 1000)
    worse = hits.copy()
    worse[:20] = False
    drop = drop_between(accuracy(hits), accuracy(worse))
    assert drop.value == pytest.approx(0.018)
    assert drop.standard_error == pytest.approx(np.sqrt(0.018 * 0.982 / 1000))


SAMPLES = 1000


def hitting(lost: int) -> Accuracy:
    """Of samples that were all right, and beyond doubt, some lost."""
    hits = np.ones(SAMPLES, dtype=np.bool_)
    hits[:lost] = False
    margins = np.where(hits, 1e3, -1e3)
    return Accuracy(float(hits.mean()), 0.0, 0.0, SAMPLES, (), hits=hits, margins=margins)


class Trials:
    """A study whose divisions lose so many samples, in place of carrying them out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lost: Sequence[int], **request: Any):
        self.run = SimpleNamespace(
            request=Request(sparsity=0.5, **request), selected=hitting(0), runner=Runner()
        )
        self.decider, self.align, self.shortening = self, None, None
        self.seen: list[tuple[float, bool]] = []
        self._lost = dict(zip(division.SHARES, lost, strict=True))
        for module in (division, executing):
            monkeypatch.setattr(module, "execute", self._execute)
        monkeypatch.setattr(division, "_judged", lambda _, trial: trial.selected)

    def channels(self, budget: Any) -> float:
        return round((1 - budget.limit) / 0.5, 6)

    def aligned(self, align: int) -> Trials:
        assert align == channel_block()
        return self

    def zeros(self, _: float, base: float = 0.0) -> float:
        return base

    def weights_left(self, base: float) -> float:
        return 1 - 0.5 * base

    def _execute(self, _: Any, plan: float, effort: Any = None) -> SimpleNamespace:
        self.seen.append((plan, effort is not None))
        return SimpleNamespace(
            study=self, plan=plan, selected=hitting(self._lost[plan]), speed=None
        )

    def share(self) -> float:
        found: Any = division.share_between(self, 0.5)  # type: ignore[arg-type]
        return found.plan


@pytest.mark.parametrize(
    ("lost", "gates", "share"),
    [
        # No more than 10 beyond what zeros alone lose, or so little more that it may be chance.
        ([80, 70, 60, 50, 40, 30, 20, 3], {}, 0.0),
        ([80, 70, 60, 50, 40, 30, 20, 7], {}, 0.1),
        ([20, 10, 9, 8, 7, 6, 5, 0], {}, 0.8),
        ([9, 8, 7, 6, 5, 4, 3, 0], {}, 1.0),
        ([40, 30, 20, 10, 5, 4, 3, 30], {}, 1.0),
        ([80, 70, 60, 50, 40, 30, 20, 20], {}, 0.2),
        # A gate is one on all that is lost, exactly.
        ([80, 70, 60, 50, 40, 30, 20, 10], {"max_drop": 0.01}, 0.0),
        ([80, 70, 60, 50, 40, 30, 20, 10], {"max_drop": 0.03}, 0.2),
        ([80, 70, 60, 50, 40, 31, 20, 10], {"max_drop": 0.03}, 0.1),
        ([80, 70, 60, 50, 40, 30, 20, 10], {"min_accuracy": 0.5}, 0.0),
    ],
)
def test_channels_that_leave_beside_zeros_cost_little_more_than_zeros_alone(
    lost: Sequence[int], gates: dict[str, float], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = Trials(monkeypatch, lost, **gates)
    assert trials.share() == share
    carried_out = [plan for plan, quick in trials.seen if not quick]
    assert len(carried_out) == len(set(carried_out)) <= 2
    assert (share in carried_out) == bool(gates), "a plan is enough where nothing more decides"
    tried = [plan for plan, quick in trials.seen if quick]
    assert len(tried) == len(set(tried)) <= 4


def test_trials_are_judged_on_what_neither_was_fitted_on_nor_is_to_report() -> None:
    asked = Request(sparsity=0.5, threads=1, batch_size=32)
    study = open_study(open_model(LENET), CALIB, asked, Reading(cache=False), silent)
    fit, select, report = (getattr(study.run.samples, n) for n in ("fit", "select", "report"))
    few = Effort(samples=100)
    used = set(few.thinned(fit).rows)
    trial: Any = SimpleNamespace(model=study.run.given.original, selected=study.run.selected)
    with mock.patch.object(division, "QUICK", few):
        judged = division._judged(study, trial)
    assert judged is not None
    assert judged.samples == len(select) + len(fit) - 100
    spared = set(few.spared(fit).rows)
    assert spared | used == set(fit.rows)
    assert not spared & (used | set(select.rows) | set(report.rows))
    with mock.patch.object(division, "QUICK", few), mock.patch.object(division, "JUDGED", 1):
        assert division._judged(study, trial) is study.run.selected
    assert len(QUICK.spared(fit.at_most(512))) == 0


def test_an_expected_drop_is_one_of_the_accuracy_whatever_the_scores() -> None:
    """Where margins are the log odds of being right, it has the mean of what is counted."""
    rng = np.random.default_rng(0)

    def accuracy(margins: np.ndarray) -> Accuracy:
        hits = margins > 0
        return Accuracy(float(hits.mean()), 0.0, 0.0, len(hits), (), hits=hits, margins=margins)

    odds = rng.normal(3.0, 2.0, 40_000)
    truth = np.where(rng.random(odds.size) < 1 / (1 + np.exp(-odds)), odds, -odds)
    worse = truth - rng.gamma(0.2, 2.0, odds.size) * np.sign(truth)
    before, after = accuracy(truth), accuracy(worse)
    counted = drop_between(before, after).value
    found = [
        expected_drop(accuracy(s * truth), accuracy(s * truth), accuracy(s * worse)).value
        for s in (0.01, 1.0, 100.0)
    ]
    assert np.ptp(found) < 1e-4
    assert found[0] == pytest.approx(counted, rel=0.35)
    assert expected_drop(before, before, before).value == 0.0
    assert expected_drop(before, after, before).value == -found[1]

    parts = np.arange(odds.size).reshape(-1, 400)
    each = [(accuracy(truth[part]), accuracy(worse[part])) for part in parts]
    expected = np.std([expected_drop(a, a, b).value for a, b in each])
    assert expected < 0.8 * np.std([drop_between(a, b).value for a, b in each])


@pytest.mark.parametrize("margin", [0.0, 1e-9, 3.0])
def test_an_expected_drop_where_all_are_right(margin: float) -> None:
    same = hitting(0)
    same = replace(same, margins=np.full(SAMPLES, margin))
    worse = replace(same, margins=np.r_[np.full(SAMPLES - 10, margin), np.full(10, -margin)])
    assert expected_drop(same, same, worse).value == pytest.approx(0.01 if margin else 0.0, rel=0.1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sparsity": 0.5, "macs": 0.5},
        {"size": 0},
        {"max_drop": 1.5},
        {"sparsity": 0.5, "min_accuracy": -0.1},
        {"mode": "weights", "macs": 0.5},
        {"mode": "weights", "max_drop": 0.1},
    ],
    ids=str,
)
def test_requests_that_cannot_be(settings: dict[str, float]) -> None:
    with pytest.raises(OnnxpruneError):
        Request(**settings)


@pytest.mark.parametrize(
    ("quick", "full", "chosen", "most"),
    [
        # How many of 20 candidates lose too much: in trials, and with all samples.
        (10, 10, 10, 5),
        (10, 3, 3, 5),
        (15, 0, 0, 5),
        (3, 9, 9, 5),
        (0, 0, 0, 1),
        (19, 19, 19, 4),
        (20, 20, 19, 1),
    ],
)
def test_candidates_have_to_prove_themselves_with_all_samples(
    quick: int, full: int, chosen: int, most: int
) -> None:
    proven: list[int] = []

    def outcome(k: int) -> Any:
        proven.append(k)
        return SimpleNamespace(number=k)

    first = candidates.promising(20, lambda k: k >= quick)
    assert first == min(quick, 19)
    found: Any = candidates.proven(20, first, 4, outcome, lambda o: o.number >= full)  # type: ignore[attr-defined]
    assert found.number == chosen
    assert len(proven) == len(set(proven)) <= most
