"""A kind of budget is one class and one entry, and is used from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import DIGITS, LENET, done, run

from onnxprune.arrays import Bool
from onnxprune.plans.budgets import KINDS, Kind, Ledger, Measured
from onnxprune.structure.unit_costs import weights_removed


class Energy(Kind):
    """Let a weight that is read cost one joule."""

    name = "energy"

    def predict(self, ledger: Ledger) -> Callable[[Bool], float]:
        whole = ledger.whole.weights
        return lambda kept: 1 - weights_removed(ledger.structure, kept) / whole

    def measure(self, found: Measured) -> float:
        return found.after.weights / found.before.weights


@pytest.fixture
def energy() -> Iterator[None]:
    KINDS["energy"] = Energy()
    yield
    del KINDS["energy"]


COMMON = (LENET, "--calib", DIGITS, "--mode", "channels", "--recover", "none", "--align", "1")


@pytest.mark.usefixtures("energy")
def test_a_budget_is_used_from_the_command_line(tmp_path: Path) -> None:
    out, plan = tmp_path / "o.onnx", tmp_path / "p.json"
    result = done("prune", *COMMON, "--budget", "energy=0.6", "-o", out, "--json", "--force")
    report = json.loads(result.stdout)
    assert report["energy"]["requested"] == 0.6
    assert 0.58 < report["energy"]["achieved"] <= 0.6
    share = report["after"]["weights"] / report["before"]["weights"]
    assert report["energy"]["achieved"] == pytest.approx(share)
    done("plan", *COMMON, "--budget", "energy=0.6", "-o", plan)
    again = tmp_path / "again.onnx"
    done("apply", LENET, plan, "--calib", DIGITS, "-o", again, "--force")
    assert again.read_bytes() == out.read_bytes()


def test_a_budget_that_nobody_registered_is_named() -> None:
    result = run("prune", *COMMON, "--budget", "energy=0.6", "--force")
    assert result.exit_code == 1
    assert "budget energy: expected one of sparsity, params, macs" in result.stderr


def test_a_second_budget_is_refused() -> None:
    result = run("prune", *COMMON, "--budget", "energy=0.6", "--macs", "0.5")
    assert result.exit_code == 2
    assert "got macs and energy" in result.stderr.replace("--", "")
