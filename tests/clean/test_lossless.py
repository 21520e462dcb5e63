"""``prune --lossless`` and the clean-up behind every cut, as the commands show them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import (
    MODELS,
    Counted,
    done,
    report_of,
    run,
    save,
    tiny_arrays,
    tiny_net,
    tiny_samples,
)
from onnx import ModelProto, numpy_helper

import onnxprune

Array = np.ndarray[Any, Any]


def changed(proto: ModelProto, **rows: tuple[int, float, float]) -> ModelProto:
    """Set rows of weights and biases: ``conv1=(row, weight, bias)``."""
    for tensor in proto.graph.initializer:
        name, kind = tensor.name.split(".")
        if name in rows:
            row, weight, bias = rows[name]
            array = numpy_helper.to_array(tensor).copy()
            array[row] = weight if kind == "w" else bias
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return proto


@pytest.fixture
def dead(tmp_path: Path) -> Path:
    """A net whose second layer has a dead channel."""
    return save(changed(tiny_net().model(), conv2=(3, 0, -1)), tmp_path / "m.onnx")


@pytest.fixture
def off(tmp_path: Path) -> Path:
    """A net with a channel that is off unless the input is large."""
    proto = changed(tiny_net().model(), conv2=(3, 0.01, -5))
    return save(proto, tmp_path / "m.onnx")


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    return tiny_samples(tmp_path / "d.npz")


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.stem)
def test_a_model_without_redundancy_keeps_its_bytes(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    result = done(model, "--lossless", "-o", out)
    assert out.read_bytes() == model.read_bytes()
    assert "nothing to remove" in result.stdout


def test_lossless_needs_no_samples(dead: Path) -> None:
    report = report_of("prune", dead, "--lossless")
    before, after = Counted(dead), Counted(dead.with_name("m.pruned.onnx"))
    assert report["clean_up"]["channels"] == {"dead": 1, "unread": 0, "constant": 0, "duplicate": 0}
    assert report["request"]["lossless"] is True
    assert report["sparsity"]["requested"] is None
    assert report["sparsity"]["achieved"] == pytest.approx(1 - after.weights / before.weights)
    assert report["before"]["accuracy"] is None
    assert report["verification"]["max_rel_error"] <= 1e-5
    assert report["verification"]["samples"] >= 2
    feeds = {"x": tiny_arrays()["x"]}
    assert after.scores(feeds) == pytest.approx(before.scores(feeds), rel=1e-5, abs=1e-5)
    assert after.weights < before.weights
    assert {p.key: p.value for p in after.proto.metadata_props}["onnxprune.request"] == (
        "lossless seed 0"
    )
    layers = report["layers"]
    assert [x["shape_after"][0] for x in layers[:2]] == [8, 7]


def test_lossless_shows_what_went(dead: Path, samples: Path) -> None:
    text = done(dead, "--lossless", "--calib", samples).stdout
    assert "cleaned up: 1 dead channels" in text
    assert "the outputs are the same exactly: relative error" in text
    assert "accuracy" in text


def test_lossless_is_idempotent_and_deterministic(dead: Path) -> None:
    outs = [dead.with_name(f"{k}.onnx") for k in range(3)]
    for out in outs[:2]:
        done(dead, "--lossless", "-o", out)
    done(outs[0], "--lossless", "-o", outs[2])
    assert len({out.read_bytes() for out in outs}) == 1


def test_empirical_is_about_the_samples(off: Path, samples: Path) -> None:
    general = report_of(off, "--lossless", "--calib", samples)
    assert not any(general["clean_up"]["channels"].values())
    assert off.with_name("m.pruned.onnx").read_bytes() == off.read_bytes()
    out = off.with_name("o.onnx")
    report = report_of(off, "--lossless", "--empirical", "--calib", samples, "-o", out)
    assert report["clean_up"]["channels"]["dead"] == 1
    assert [r["always_off"] for r in report["rectifiers"]][1] == 1
    before, after = Counted(off), Counted(out)
    x = tiny_arrays()["x"]
    assert after.scores({"x": x}) == pytest.approx(before.scores({"x": x}), rel=1e-4, abs=1e-4)
    large = {"x": np.abs(x) * 1e4}
    assert np.abs(after.scores(large) - before.scores(large)).max() > 1
    text = done(off, "--lossless", "--empirical", "--calib", samples, "--force").stdout
    assert "the same on the samples, not in general" in text


def test_a_rectifier_that_is_always_on_leaves_empirically(tmp_path: Path, samples: Path) -> None:
    proto = tiny_net().model()
    for tensor in proto.graph.initializer:
        if tensor.name == "conv1.b":
            tensor.CopyFrom(numpy_helper.from_array(np.full(8, 50, np.float32), "conv1.b"))
    path, out = save(proto, tmp_path / "m.onnx"), tmp_path / "o.onnx"
    report = report_of(path, "--lossless", "--empirical", "--calib", samples, "-o", out)
    assert report["clean_up"]["nodes"] == {"Relu": 1}
    kinds = [n.op_type for n in onnx.load(out).graph.node]
    assert kinds == ["Conv", "Conv", "Relu", "Flatten", "Gemm"]


@pytest.mark.parametrize("mode", ["channels", "weights"])
def test_the_cut_is_cleaned_up(dead: Path, samples: Path, mode: str) -> None:
    any_width = ("--align", 1) if mode == "weights" else ()  # fast widths would stay
    report = report_of(dead, "--calib", samples, "--sparsity", 0.3, "--mode", mode, *any_width)
    after = Counted(dead.with_name("m.pruned.onnx"))
    left = after.weights if mode == "channels" else after.nonzero
    assert report["sparsity"]["achieved"] >= 0.3
    assert report["sparsity"]["achieved"] == pytest.approx(1 - left / Counted(dead).weights)
    assert report["sparsity"]["achieved"] <= 0.3 + (0.2 if mode == "channels" else 2e-3)
    went = report["clean_up"]["channels"]["dead"] >= 1
    if mode == "weights":
        assert went == (after.weights < Counted(dead).weights)
        assert went or report["clean_up"]["dropped"] == ["channels beyond the sparsity"]


def test_api(dead: Path, samples: Path) -> None:
    result = onnxprune.prune(dead, lossless=True)
    assert result.report.clean_up.channels == {"dead": 1}
    assert json.loads(result.report.to_json()) == result.report.to_dict()
    for settings, text in (
        ({"lossless": True, "sparsity": 0.5}, "lossless takes no budget: leave out sparsity"),
        ({"lossless": True, "empirical": True}, "empirical needs calibration samples"),
    ):
        with pytest.raises(onnxprune.OnnxpruneError, match=text):
            onnxprune.prune(dead, **settings)
    with pytest.raises(onnxprune.OnnxpruneError, match="empirical needs lossless"):
        onnxprune.prune(dead, samples, sparsity=0.5, empirical=True)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--lossless", "--sparsity", "0.5"], "--lossless takes no budget: leave out --sparsity"),
        (["--lossless", "--macs", "0.5"], "leave out --macs"),
        (["--lossless", "--empirical"], "--empirical needs --calib"),
        (["--lossless", "--eval", "d"], "--eval needs --calib"),
        (["--calib", "d", "--sparsity", "0.5", "--empirical"], "--empirical needs --lossless"),
        (["--calib", "d"], "--sparsity"),
    ],
)
def test_usage(dead: Path, args: list[str], text: str) -> None:
    result = run(dead, *args)
    assert result.exit_code == 2
    assert text in result.stderr
    assert not dead.with_name("m.pruned.onnx").exists()
