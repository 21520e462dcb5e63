"""A collapse is always warned about: with any budget, in any mode, with and without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxprune
from onnxprune.model.model import load
from onnxprune.model.session import Session
from onnxprune.plans.request import Request
from onnxprune.run.agreement import COLLAPSE, SAMPLES
from onnxprune.samples.sources import open_dataset

ROOT = Path(__file__).parents[2]
LENET = ROOT / "models" / "digits_lenet300.onnx"
RESNET = ROOT / "models" / "digits_resnet.onnx"
DIGITS = ROOT / "calibration" / "digits"
BRIEF: dict[str, Any] = {"recover": "none", "threads": 1}


def collapses(warnings: tuple[str, ...]) -> list[str]:
    return [text for text in warnings if "collapsed" in text or "another class" in text]


@pytest.mark.parametrize(
    "budget",
    [
        {"sparsity": 0.97, "mode": "channels"},
        {"sparsity": 0.99, "mode": "weights"},
        {"macs": 0.03},
        {"params": 0.03, "mode": "channels"},
        {"size": 12_000},
    ],
    ids=lambda b: "-".join(b),
)
def test_whatever_was_asked_for(budget: dict[str, Any]) -> None:
    settings = budget | BRIEF | {"metric": "magnitude"}
    (warning,) = collapses(onnxprune.prune(LENET, DIGITS, **settings).report.warnings)
    assert "the accuracy collapsed from 1.0" in warning
    plan = onnxprune.plan(LENET, DIGITS, Request(**settings))
    assert collapses(onnxprune.apply(LENET, plan, DIGITS).report.warnings) == [warning]


def test_whole_parts() -> None:
    report = onnxprune.prune(RESNET, DIGITS, layers=3, mode="depth", **BRIEF).report
    assert collapses(report.warnings)


def test_what_keeps_its_accuracy_is_not_warned_about() -> None:
    report = onnxprune.prune(LENET, DIGITS, macs=0.8, mode="channels", **BRIEF).report
    assert not collapses(report.warnings)


def test_made_up_inputs_tell_too() -> None:
    settings: dict[str, Any] = {"random_inputs": True, "threads": 1}
    report = onnxprune.prune(RESNET, sparsity=0.9, mode="channels", **settings).report
    (warning,) = collapses(report.warnings)
    assert "made-up inputs" in warning
    light = onnxprune.prune(LENET, sparsity=0.1, mode="weights", **settings).report
    assert not collapses(light.warnings)
    assert not collapses(onnxprune.prune(RESNET, lossless=True, threads=1).report.warnings)


def test_labels_that_fit_nothing_do_not_hide_it(tmp_path: Path) -> None:
    """With the classes in another order the accuracy was nothing before as well."""
    digits = open_dataset(DIGITS, load(LENET).inputs)
    batch = next(iter(digits.batches(None, 400)))
    labels = (batch.labels + 1) % 10
    data = tmp_path / "digits.npz"
    np.savez(data, **batch.feeds, y=labels)
    result = onnxprune.prune(LENET, data, sparsity=0.97, mode="channels", **BRIEF)
    (warning,) = collapses(result.report.warnings)
    assert "it chooses another class for" in warning
    feeds = dict(batch.feeds)
    before, after = (
        Session(m).run(feeds)[0].argmax(axis=1) for m in (load(LENET).proto, result.model)
    )
    assert (before != after).mean() > COLLAPSE
    assert len(labels) <= SAMPLES
