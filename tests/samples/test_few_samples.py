"""Few samples: what is fallen back to where classes have hardly any, decided before the work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command import Tiny, done, report_of, save

CLASSES = 40


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    net = Tiny((2, 3, 3), classes=CLASSES)
    net.conv("x", "conv1", 2, 8)
    net.op("Relu", "conv1", "act1")
    net.op("Flatten", "act1", "flat")
    net.op("Gemm", f"flat {net.const('fc.w', 72, CLASSES)} {net.const('fc.b', CLASSES)}", "logits")
    save(net, tmp_path / "many.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def samples(labels: list[int]) -> str:
    x = np.random.default_rng(0).standard_normal((len(labels), 2, 3, 3)).astype(np.float32)
    np.savez("d.npz", x=x, y=np.array(labels))
    return "d.npz"


def undefined(warnings: list[str]) -> list[str]:
    return [w for w in warnings if w.startswith("the F statistic needs")]


@pytest.mark.parametrize(
    ("labels", "falls_back"),
    [
        (list(range(CLASSES)), True),
        (list(range(CLASSES)) * 2, False),
        ([0, 0, 1], True),
        ([0, 5, 9], True),
        ([0, 1], True),
        ([0] * 20 + [1] * 20 + [2], False),
        ([0] * 20 + [1], False),
    ],
    ids=["one each", "two each", "three in all", "three of three", "two in all", "single", "pair"],
)
@pytest.mark.parametrize("mode", ["channels", "weights"])
def test_few_samples_prune_with_one_warning(
    labels: list[int], falls_back: bool, mode: str
) -> None:  # fmt: skip
    args = ["many.onnx", "--calib", samples(labels), "--sparsity", 0.5, "--mode", mode]
    report = report_of("prune", *args)
    assert len(undefined(report["warnings"])) == falls_back
    assert report["request"]["metric"] == ("magnitude" if falls_back else "f-magnitude")
    assert sum(report["data"]["samples"].values()) == len(labels)
    assert report["sparsity"]["achieved"] >= 0.5
    assert not any("rough" in w for w in report["warnings"] if falls_back)


@pytest.mark.parametrize("recover", ["full", "bias", "none"])
@pytest.mark.parametrize("metric", ["f", "f-magnitude", "magnitude", "reconstruction"])
def test_what_is_fallen_back_to(metric: str, recover: str) -> None:
    data = samples(list(range(CLASSES)))
    args = ["many.onnx", "--calib", data, "--macs", 0.5, "--mode", "channels", "--recover", recover]
    report = report_of("prune", *args, "--metric", metric)
    uses_f = metric.startswith("f")
    assert len(undefined(report["warnings"])) == uses_f
    other = "reconstruction" if recover == "full" else "magnitude"
    assert report["request"]["metric"] == (other if uses_f else metric)


def test_plan_then_apply_falls_back_alike() -> None:
    data = samples(list(range(CLASSES)))
    args = ["--calib", data, "--sparsity", 0.5, "--mode", "channels", "--recover", "bias"]
    done("plan", "many.onnx", *args, "-o", "plan.json")
    done("apply", "many.onnx", "plan.json", "--calib", data, "-o", "a.onnx")
    done("prune", "many.onnx", *args, "-o", "p.onnx")
    assert Path("a.onnx").read_bytes() == Path("p.onnx").read_bytes()


def test_lossless_needs_no_f() -> None:
    data = samples(list(range(CLASSES)))
    report = report_of("prune", "many.onnx", "--calib", data, "--lossless", "--empirical")
    assert not undefined(report["warnings"])
