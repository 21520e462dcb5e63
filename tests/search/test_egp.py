"""EGP: the budget is divided as published, layers leave once they are empty, and nothing else."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import onnx
import oracle
import pytest
from command import DIGITS, LENET, ROOT, Counted, digits, done, report_of, run
from hypothesis import given, settings
from onnx import numpy_helper
from strategies import BATCH, Net

import onnxprune
from onnxprune.errors import BudgetError, OnnxpruneError
from onnxprune.plans.request import Request
from onnxprune.search import egp
from onnxprune.structure.rectifiers import find_rectifiers, rectified_layers

RESNET = ROOT / "models" / "digits_resnet.onnx"

# -- the budget ------------------------------------------------------------------------------------


def published(importance: list[float], available: list[int], budget: float) -> list[float]:
    """The rule, written layer by layer."""
    wanted: dict[int, float] = {}
    waiting = [k for k, n in enumerate(available) if n]
    while waiting:
        total = sum(importance[k] for k in waiting)
        irrelevance = {k: total / importance[k] for k in waiting}
        top = max(irrelevance.values())
        exponentials = {k: np.exp(irrelevance[k] - top) for k in waiting}
        for k in waiting:
            wanted[k] = budget * exponentials[k] / sum(exponentials.values())
        full = [k for k in waiting if wanted[k] > available[k]]
        for k in full:
            wanted[k] = available[k]
            budget -= available[k]
            waiting.remove(k)
        if not full:
            break
    return [wanted.get(k, 0.0) for k in range(len(available))]


def divided(importance: list[float], available: list[int], budget: int) -> list[int]:
    result = egp.budgets(np.asarray(importance), np.asarray(available, dtype=np.int64), budget)
    return [int(n) for n in result]


@pytest.mark.parametrize(
    ("importance", "available", "budget", "expected"),
    [
        # R is 3 and 1.5, so the shares are 1 and exp(-1.5) = 0.2231: 8.18 and 1.82
        ([1, 2], [100, 100], 10, [8, 2]),
        # the first has 5, the others get what is left: R is 2 and 2
        ([1, 4, 4], [5, 100, 100], 25, [5, 10, 10]),
        # without the first, R is 2, 4 and 4: shares 0.0634, 0.4683 and 0.4683 of 30
        ([0.1, 2, 1, 1], [1, 99, 99, 99], 31, [1, 2, 14, 14]),
        ([1, 1], [3, 4], 7, [3, 4]),
        ([1, 1], [3, 4], 9, [3, 4]),
        ([1, 2], [0, 9], 4, [0, 4]),
        ([], [], 4, []),
    ],
)
def test_budgets(
    importance: list[float], available: list[int], budget: int, expected: list[int]
) -> None:
    assert divided(importance, available, budget) == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.floats(0.01, 2), st.integers(0, 60)), min_size=1, max_size=6),
    st.integers(0, 200),
)
def test_budgets_are_those_published(layers: list[tuple[float, int]], budget: int) -> None:
    importance, available = [list(x) for x in zip(*layers, strict=True)]
    found = divided(importance, available, budget)
    assert sum(found) == min(budget, sum(available))
    if budget < sum(available):
        wanted = published(importance, available, budget)
        assert all(abs(a - b) < 1 + 1e-6 for a, b in zip(found, wanted, strict=True))
    assert all(0 <= a <= n for a, n in zip(found, available, strict=True))


def test_importance_and_rounds() -> None:
    assert egp.importances(np.asarray([0.5, 1.0]), np.asarray([3.0, 0.2])).tolist() == [1.5, 0.2]
    assert list(egp.rounds(0.3)) == [0.3]
    assert list(egp.rounds(0.5)) == [0.5]
    assert list(egp.rounds(0.9)) == [0.5, 0.75, 0.875, 0.9]


# -- candidates ------------------------------------------------------------------------------------


def test_layers_that_a_rectifier_follows() -> None:
    n = Net()
    stem = n.conv(n.input(BATCH, 2, 4, 4), 2, 4)
    x = n.op("Relu", n.op("Mul", stem, n.const(n.positive(4, 1, 1))))
    inner = n.conv(x, 4, 4)
    outer = n.conv(n.op("Mul", inner, n.op("Sigmoid", inner)), 4, 4)
    around = n.conv(x, 4, 4)
    y = n.op("Relu", n.op("Add", outer, around))
    pooled = n.op("Relu", n.op("MaxPool", n.conv(y, 4, 4), kernel_shape=[2, 2]))
    again = n.op("LeakyRelu", n.op("Relu", pooled))
    t = oracle.traced(n.model(n.conv(again, 4, 3)))
    found = find_rectifiers(t.model, t.shapes, t.structure)
    assert len(found) == 6

    def layers(branches: dict[str, str]) -> list[str]:
        return [*rectified_layers(t.model, t.structure, found, branches).values()]

    total = next(m.output[0] for m in t.proto.graph.node if m.op_type == "Add")
    assert layers({total: outer}) == [stem, inner, outer]
    assert layers({}) == [stem, inner, around]


# -- a whole run -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits(tmp_path_factory.mktemp("d") / "digits", 20)


@pytest.mark.parametrize("metric", ["egp", "magnitude"])
@pytest.mark.parametrize("sparsity", [0.5, 0.93])
def test_no_layer_is_emptied_that_cannot_leave(
    samples: Path, metric: str, sparsity: float, tmp_path: Path
) -> None:
    """Without a recovery nothing takes the place of a layer that lies in no branch."""
    result = onnxprune.prune(
        LENET, samples, sparsity=sparsity, mode="depth", metric=metric, recover="none"
    )
    onnxprune.save(result, tmp_path / "o.onnx")
    found, report = Counted(tmp_path / "o.onnx"), result.report
    assert not report.removals
    assert sparsity - 1e-9 <= report.achieved <= sparsity + 2e-3
    assert report.achieved == pytest.approx(1 - found.nonzero / Counted(LENET).weights)
    kept = [layer.nonzero_after for layer in report.layers]
    assert len(kept) == 3
    assert min(kept) > 0
    assert any("no layer left the model whole" in w for w in report.warnings)


def test_too_much_names_the_best(samples: Path) -> None:
    with pytest.raises(BudgetError, match=r"the best achievable is 0\.99") as error:
        onnxprune.prune(
            LENET, samples, sparsity=0.9999, mode="depth", metric="magnitude", recover="none"
        )
    assert "sparsity 0.9999 cannot be reached" in str(error.value)


@pytest.fixture(scope="module")
def shortened(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """What EGP makes of a residual network."""
    out = tmp_path_factory.mktemp("o") / "o.onnx"
    args = ("--mode", "depth", "--metric", "egp", "--sparsity", 0.45, "--recover", "full")
    return out, report_of(RESNET, "--calib", samples, *args, "-o", out)


def test_empty_layers_leave_the_file(shortened: tuple[Path, dict]) -> None:
    out, report = shortened
    assert report["removals"]
    assert 0.45 - 1e-9 <= report["sparsity"]["achieved"] <= 0.45 + 2e-3
    after = Counted(out)
    assert after.nonzero == report["after"]["nonzero_weights"]
    left = {o for node in onnx.load(out).graph.node for o in node.output}
    given = {o for node in onnx.load(RESNET).graph.node for o in node.output}
    gone = [layer for removal in report["removals"] for layer in removal["layers"]]
    assert gone
    assert set(gone) <= given
    assert left.isdisjoint(gone)
    assert report["after"]["layers"] == report["before"]["layers"] - len(gone)
    assert report["verification"]["max_rel_error"] < 1e-4
    assert report["after"]["accuracy"] > 0.8


def test_magnitude_empties_no_layer_there(samples: Path, tmp_path: Path) -> None:
    args = ("--mode", "depth", "--metric", "magnitude", "--sparsity", 0.45)
    report = report_of(RESNET, "--calib", samples, *args, "-o", tmp_path / "o.onnx")
    assert not report["removals"]
    assert report["after"]["layers"] == report["before"]["layers"]
    assert 0.45 - 1e-9 <= report["sparsity"]["achieved"] <= 0.45 + 2e-3


def test_plan_and_apply_give_the_same_bytes(
    samples: Path, shortened: tuple[Path, dict], tmp_path: Path
) -> None:
    plan, out = tmp_path / "p.json", tmp_path / "o.onnx"
    args = ("--mode", "depth", "--metric", "egp", "--sparsity", 0.45, "--recover", "full")
    done("plan", RESNET, "--calib", samples, *args, "-o", plan)
    done("apply", RESNET, plan, "--calib", samples, "-o", out)
    assert out.read_bytes() == shortened[0].read_bytes()


def test_what_is_alone_leaves_where_others_can_read_its_input(tmp_path: Path) -> None:
    """A layer of a chain, planted to have hardly any weights, is bypassed, and the loss allows."""
    proto = onnx.load(LENET)
    for tensor in proto.graph.initializer:
        if tensor.name == "3.weight":
            values = numpy_helper.to_array(tensor).copy()
            values[:, 40:] *= 1e-3
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, tmp_path / "m.onnx")
    result = onnxprune.prune(
        tmp_path / "m.onnx", DIGITS, sparsity=0.7, mode="depth", metric="egp", seed=1
    )
    (removal,) = result.report.removals
    assert removal.kind == "layer"
    assert removal.layers == ("/3/Gemm_output_0",)
    assert result.report.after.cost.layers == 2
    assert 0.7 <= result.report.achieved <= 0.702


@pytest.mark.parametrize("metric", ["egp", "magnitude"])
@pytest.mark.parametrize("budget", [("--macs", 0.5), ("--layers", 1), ("--max-drop", 0.1)], ids=str)
def test_other_budgets(metric: str, budget: tuple[str, float]) -> None:
    result = run(LENET, "--calib", "d", "--mode", "depth", "--metric", metric, *budget)
    assert result.exit_code == 2
    assert f"--metric {metric} with --mode depth needs --sparsity; use --metric trial" in (
        result.stderr
    )
    name = budget[0].removeprefix("--").replace("-", "_")
    with pytest.raises(OnnxpruneError, match="needs sparsity; use metric trial with"):
        Request(mode="depth", metric=metric, **{name: budget[1]})  # type: ignore[arg-type]
