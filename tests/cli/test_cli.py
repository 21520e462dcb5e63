"""What the commands promise: results, report, stdout and stderr, exit codes, the Python API."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import onnx
import pytest
from command import (
    ANY_MODEL,
    DIGITS,
    DIGITS_TEST,
    DOC,
    LENET,
    METADATA,
    MODELS,
    ROOT,
    Counted,
    Pruned,
    digits,
    done,
    python,
    read_digits,
    report_of,
    run,
    save,
    tiny_arrays,
    tiny_net,
    tiny_samples,
    top1,
    tree,
)
from onnx import ModelProto, helper

import onnxprune
from onnxprune.cli import commands as cli
from onnxprune.decide import score, spread
from onnxprune.plans import choices
from onnxprune.search import strategies


@pytest.fixture(scope="module")
def calib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits(tmp_path_factory.mktemp("calib") / "digits")


@pytest.fixture(scope="module", params=[(m, k) for m in MODELS for k in ANY_MODEL],
                ids=lambda p: f"{p[0].stem}-{p[1]}")  # fmt: skip
def pruned(
    request: pytest.FixtureRequest, calib: Path, tmp_path_factory: pytest.TempPathFactory
) -> Pruned:
    source, mode = request.param
    folder = tmp_path_factory.mktemp("pruned")
    proto = onnx.load(source)
    helper.set_model_props(proto, METADATA)
    proto.doc_string = proto.graph.doc_string = DOC
    model = save(proto, folder / "net.v1.onnx")
    common = ["--calib", calib, "--sparsity", 0.7, "--mode", mode, "--threads", 1]
    inputs = tree(folder) | tree(calib) | tree(DIGITS)
    measured, verdicts = strategies.check_speed, list[Any]()

    def check(study: Any, model: Any) -> Any:
        verdicts.append(measured(study, model))
        return verdicts[-1]

    with mock.patch.object(strategies, "check_speed", check):
        done(model, *common, "--report", folder / "report.json")
    again = folder / "again.onnx"
    with mock.patch.object(strategies, "check_speed", side_effect=verdicts):  # it decides widths
        done("prune", model, *common, "--out", again)
    out = folder / "net.v1.pruned.onnx"
    assert sorted(p.name for p in folder.iterdir()) == [
        "again.onnx", "net.v1.onnx", "net.v1.pruned.onnx", "report.json",
    ]  # fmt: skip
    report = json.loads((folder / "report.json").read_text())
    left = tree(folder) | tree(calib) | tree(DIGITS)
    for name in (out.name, again.name, "report.json"):
        del left[name]
    return Pruned(mode, Counted(model), Counted(out), report, again.read_bytes(), inputs, left)


def test_there_are_default_models() -> None:
    assert len(MODELS) >= 3


def test_bare_model_means_prune(pruned: Pruned) -> None:
    assert pruned.after.path.read_bytes() == pruned.same


def test_inputs_are_not_changed(pruned: Pruned) -> None:
    assert pruned.inputs_before == pruned.inputs_after


SIDE = {
    "params": int, "weights": int, "nonzero_weights": int, "macs": int, "bytes": int,
    "accuracy": float,
}  # fmt: skip
REPORT: dict[str, Any] = {
    "model": {"sha256": str},
    "request": {
        "sparsity": float, "mode": str, "metric": str, "recover": str, "align": str,
        "exclude": list, "seed": int, "threads": int, "batch_size": int,
    },
    "before": SIDE,
    "after": SIDE,
    "sparsity": {"requested": float, "achieved": float},
    "verification": {"max_abs_error": float, "max_rel_error": float, "samples": int},
    "clean_up": {"channels": dict, "nodes": dict, "branches": int, "merged": int, "dropped": list},
    "rectifiers": [{
        "node": str, "op_type": str, "tensor": str, "neurons": int, "entropy": float, "on": float,
        "always_on": int, "always_off": int,
    }],
    "groups": list,
    "frozen": [{"tensor": str, "node": str, "reason": str}],
    "layers": list,
    "timings": dict,
    "warnings": list,
}  # fmt: skip


def assert_like(value: Any, form: Any, where: str) -> None:
    """Check keys and types; a list of one form stands for a list of such values."""
    if isinstance(form, dict):
        assert isinstance(value, dict), where
        for key, inner in form.items():
            assert key in value, f"{where}.{key}"
            assert_like(value[key], inner, f"{where}.{key}")
    elif isinstance(form, list):
        assert isinstance(value, list), where
        assert value, where
        for k, item in enumerate(value):
            assert_like(item, form[0], f"{where}[{k}]")
    else:
        assert type(value) is form, f"{where}: {value!r}"


def test_report_has_the_promised_keys(pruned: Pruned) -> None:
    assert_like(pruned.report, REPORT, "report")
    assert all(isinstance(t, float) and t >= 0 for t in pruned.report["timings"].values())
    assert all(f["reason"] for f in pruned.report["frozen"])
    for side in ("before", "after"):
        assert 0.0 <= pruned.report[side]["accuracy"] <= 1.0


def test_report_names_the_model_and_the_request(pruned: Pruned) -> None:
    report = pruned.report
    assert report["model"]["sha256"] == hashlib.sha256(pruned.before.path.read_bytes()).hexdigest()
    assert report["request"]["sparsity"] == report["sparsity"]["requested"] == 0.7
    assert report["request"]["mode"] == pruned.mode
    assert report["request"]["threads"] == 1


@pytest.mark.parametrize("side", ["before", "after"])
def test_costs_are_those_of_the_files(pruned: Pruned, side: str) -> None:
    costs, file = pruned.report[side], getattr(pruned, side)
    assert costs["params"] == file.params
    assert costs["weights"] == file.weights
    assert costs["nonzero_weights"] == file.nonzero
    assert costs["macs"] == file.macs
    assert costs["bytes"] == file.path.stat().st_size


def test_achieved_sparsity_is_that_of_the_files(pruned: Pruned) -> None:
    left = pruned.after.weights if pruned.mode == "channels" else pruned.after.nonzero
    achieved = pruned.report["sparsity"]["achieved"]
    assert achieved == pytest.approx(1 - left / pruned.before.weights, abs=1e-12)
    assert 0.7 <= achieved < 0.9


def test_mode_decides_what_shrinks(pruned: Pruned) -> None:
    before, after = pruned.report["before"], pruned.report["after"]
    if pruned.mode == "channels":
        assert after["bytes"] < 0.5 * before["bytes"]
        assert after["macs"] < before["macs"]
        assert after["weights"] < before["weights"]
    elif pruned.mode == "weights":
        # only what has no weight left leaves for good
        went = any(pruned.report["clean_up"]["channels"].values())
        assert (after["weights"] < before["weights"]) == went
        assert (after["macs"] < before["macs"]) == went
    else:
        split = pruned.report["split"]
        assert split["channels"] == pytest.approx(1 - after["weights"] / before["weights"])
        assert split["channels"] + split["zeros"] >= 0.7 - 1e-3
        assert (after["macs"] < before["macs"]) == (split["channels"] > 0)


def test_rewrite_is_verified_on_samples(pruned: Pruned) -> None:
    proof = pruned.report["verification"]
    assert proof["max_rel_error"] < 1e-4
    assert proof["max_abs_error"] >= 0
    assert proof["samples"] >= 2


def test_layers_add_up(pruned: Pruned) -> None:
    layers = pruned.report["layers"]
    for when, file in (("before", pruned.before), ("after", pruned.after)):
        assert sum(int(np.prod(x[f"shape_{when}"])) for x in layers) == file.weights
        assert sum(x[f"nonzero_{when}"] for x in layers) == file.nonzero
        for layer in layers:
            shapes = [list(v.shape) for v in file.of_node(layer["node"]).values()]
            assert layer[f"shape_{when}"] in shapes


def test_every_group_and_layer_stays_alive(pruned: Pruned) -> None:
    groups = pruned.report["groups"]
    assert groups
    assert all(1 <= g["kept"] <= g["units"] for g in groups)
    assert all(x["nonzero_after"] >= 1 for x in pruned.report["layers"])
    removed = sum(g["units"] - g["kept"] for g in groups)
    assert (removed > 0) == (pruned.report["split"]["channels"] > 0)
    assert pruned.mode != "channels" or removed


def test_frozen_names_the_output(pruned: Pruned) -> None:
    output = pruned.before.proto.graph.output[0].name
    assert output in {f["tensor"] for f in pruned.report["frozen"]}
    assert pruned.after.scores({"image": np.zeros((1, 1, 8, 8), np.float32)}).shape == (1, 10)


def test_result_is_a_valid_model(pruned: Pruned) -> None:
    onnx.checker.check_model(str(pruned.after.path), full_check=True)


@pytest.mark.parametrize("rows", [1, 5])
def test_result_runs_with_any_batch(pruned: Pruned, rows: int) -> None:
    image = np.random.default_rng(0).random((rows, 1, 8, 8), np.float32)
    scores = pruned.after.scores({"image": image})
    assert scores.shape == (rows, 10)
    assert np.isfinite(scores).all()


def test_interface_and_metadata_survive(pruned: Pruned) -> None:
    before, after = pruned.before.proto, pruned.after.proto
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert list(after.opset_import) == list(before.opset_import)
    assert after.ir_version == before.ir_version
    assert after.producer_name == before.producer_name
    assert after.doc_string == after.graph.doc_string == DOC
    props = {p.key: p.value for p in after.metadata_props}
    assert METADATA.items() <= props.items()
    assert pruned.report["model"]["sha256"] in props.values()


# -- settings --------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return save(tiny_net(), tmp_path / "tiny.onnx")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny_samples(tmp_path / "data.npz")


@pytest.mark.parametrize("metric", choices.METRICS)
def test_every_metric(tiny: Path, data: Path, metric: str) -> None:
    for mode in ANY_MODEL:
        out = tiny.with_name(f"{mode}.onnx")
        common = ["--calib", data, "--sparsity", 0.4, "--metric", metric, "--mode", mode]
        report = report_of(tiny, *common, "-o", out)
        assert report["request"]["metric"] == metric
        assert report["sparsity"]["achieved"] >= 0.4


def test_layers_are_refitted_by_default(tiny: Path, data: Path) -> None:
    request = onnxprune.prune(tiny, data, sparsity=0.5).report.request
    assert (request["metric"], request["recover"]) == ("f-magnitude", "full")


def test_random_inputs_need_nothing_else(tiny: Path) -> None:
    report = report_of(tiny, "--random-inputs", "--sparsity", 0.5)
    assert report["request"]["metric"] == "magnitude"
    assert report["request"]["recover"] == "none"
    assert report["sparsity"]["achieved"] >= 0.5


@pytest.mark.parametrize("choice", [("--metric", "f"), ("--recover", "bias")])
def test_random_inputs_have_no_statistics(tiny: Path, choice: tuple[str, str]) -> None:
    result = run(tiny, "--random-inputs", "--sparsity", 0.5, *choice)
    assert result.exit_code == 1
    assert "random inputs have no statistics: use one of the metrics" in result.stderr
    assert choice[1] in result.stderr


@pytest.mark.parametrize("allocation", choices.ALLOCATIONS)
def test_every_allocation(tiny: Path, data: Path, allocation: str) -> None:
    for mode in ANY_MODEL:
        for recovery in ("none", "full"):
            out = tiny.with_name(f"{mode}-{recovery}.onnx")
            common = ["--calib", data, "--sparsity", 0.4, "--recover", recovery, "--mode", mode]
            report = report_of(tiny, *common, "--allocation", allocation, "-o", out)
            assert report["request"]["allocation"] == allocation
            assert report["sparsity"]["achieved"] >= 0.4


@pytest.mark.parametrize("recovery", choices.RECOVERIES)
def test_every_recovery(tiny: Path, data: Path, recovery: str) -> None:
    report = report_of(tiny, "--calib", data, "--sparsity", 0.4, "--recover", recovery)
    assert report["request"]["recover"] == recovery
    assert report["verification"]["max_rel_error"] < 1e-4


@pytest.mark.parametrize("mode", ANY_MODEL)
def test_without_recovery_weights_are_kept_or_gone(tiny: Path, data: Path, mode: str) -> None:
    common = ["--sparsity", 0.5, "--mode", mode, "--recover", "none"]
    report = report_of(tiny, "--calib", data, *common)
    before, after = Counted(tiny), Counted(tiny.with_name("tiny.pruned.onnx"))
    assert len(report["layers"]) == 3
    for layer in report["layers"]:
        old, new = (next(iter(f.of_node(layer["node"]).values())) for f in (before, after))
        if mode == "weights":
            assert np.array_equal(new, np.where(new != 0, old, 0))
        else:
            assert np.isin(new[new != 0], old).all()
    assert report["after"]["nonzero_weights"] < report["before"]["nonzero_weights"]


def test_choices_are_those_of_the_package() -> None:
    assert tuple(choices.METRICS) == tuple(score.CRITERIA)
    assert ("auto", *spread.SPREADS) == choices.ALLOCATIONS


@pytest.mark.parametrize("mode", ANY_MODEL)
def test_eval_is_the_report_part(calib: Path, tmp_path: Path, mode: str) -> None:
    held_out = digits(tmp_path / "eval", 7, DIGITS_TEST)
    out = tmp_path / "out.onnx"
    report = report_of(
        LENET, "--calib", calib, "--eval", held_out, "--sparsity", 0.9, "--mode", mode, "-o", out
    )
    samples = read_digits(held_out)
    assert report["before"]["accuracy_samples"] == report["after"]["accuracy_samples"] == 70
    assert report["before"]["accuracy"] == pytest.approx(top1(Counted(LENET), samples))
    assert report["after"]["accuracy"] == pytest.approx(top1(Counted(out), samples))
    assert sum(report["data"]["samples"].values()) == 120 + 70


def test_without_eval_a_part_of_calib_is_held_out(calib: Path, tmp_path: Path) -> None:
    report = report_of(LENET, "--calib", calib, "--sparsity", 0.5, "-o", tmp_path / "out.onnx")
    parts = report["data"]["samples"]
    assert sum(parts.values()) == 120
    assert parts["report"] == report["before"]["accuracy_samples"]
    assert 10 <= parts["report"] < parts["fit"]


@pytest.mark.parametrize("mode", ANY_MODEL)
@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.stem)
def test_excluded_layer_is_untouched(calib: Path, tmp_path: Path, mode: str, model: Path) -> None:
    common = [model, "--calib", calib, "--mode", mode]
    layers = report_of(*common, "--sparsity", 0.4, "-o", tmp_path / "all.onnx")["layers"]
    layer = next(x for x in layers if x["nonzero_after"] < x["nonzero_before"])
    node, tensor = layer["node"], layer["tensor"]
    expected = Counted(model).of_node(node).values()
    for k, glob in enumerate((f"*{node[1:]}", f"[{tensor[0]}]{tensor[1:]}")):
        out = tmp_path / f"{k}.onnx"
        report = report_of(*common, "--sparsity", 0.2, "-o", out, "--exclude", glob)
        assert report["request"]["exclude"] == [glob]
        got = Counted(out).of_node(node).values()
        for a, b in zip(expected, got, strict=True):
            assert np.array_equal(a, b), glob


def test_alignment_is_automatic_by_default(tiny: Path, data: Path) -> None:
    report = report_of(tiny, "--calib", data, "--sparsity", 0.4)
    assert report["request"]["align"] == "auto"
    again = report_of(tiny, "--calib", data, "--sparsity", 0.4, "--align", "auto", "--force")
    assert again["groups"] == report["groups"]


@pytest.mark.parametrize("align", [1, 4, 16])
def test_align(calib: Path, tmp_path: Path, align: int) -> None:
    common = ["--calib", calib, "--sparsity", 0.5, "-o", tmp_path / "out.onnx"]
    groups = report_of(LENET, *common, "--align", align)["groups"]
    assert all(g["kept"] == g["units"] or g["kept"] % align == 0 for g in groups)
    assert any(g["kept"] < g["units"] for g in groups)
    assert report_of(LENET, *common, "--force", "--align", 7)["groups"] != groups


def test_align_gives_way_where_it_cannot_reach_the_request(tiny: Path, data: Path) -> None:
    report = report_of(tiny, "--calib", data, "--sparsity", 0.7, "--align", 8)
    assert report["sparsity"]["achieved"] >= 0.7
    assert any(g["kept"] % 8 for g in report["groups"])


def test_mean_and_std(calib: Path, tmp_path: Path) -> None:
    raw = read_digits(calib)
    mean, std = np.float32(0.25), np.float32(0.5)
    array = tmp_path / "array.npz"
    np.savez(array, x=(raw["x"] - mean) / std, y=raw["y"])
    scaled = ["--mean", 0.25, "--std", 0.5]
    folder = report_of("evaluate", LENET, "--calib", calib, *scaled)
    same = report_of("evaluate", LENET, "--calib", array)
    plain = report_of("evaluate", LENET, "--calib", calib)
    assert plain["loss"] != pytest.approx(folder["loss"], rel=0.1)
    assert folder.pop("loss") == pytest.approx(same.pop("loss"), rel=1e-5)
    assert folder == same
    common = ["--sparsity", 0.5, "--force", "-o", tmp_path / "out.onnx"]
    one = report_of(LENET, "--calib", calib, *scaled, *common)
    weights = Counted(tmp_path / "out.onnx").nonzero
    other = report_of(LENET, "--calib", array, *common)
    assert weights == Counted(tmp_path / "out.onnx").nonzero
    for side in ("before", "after"):
        assert one[side]["loss"] == pytest.approx(other[side]["loss"], rel=1e-4)


@pytest.mark.parametrize("mode", ANY_MODEL)
def test_output_picks_the_class_scores(tmp_path: Path, data: Path, mode: str) -> None:
    net = tiny_net()
    net.outputs = {"act1": (8, 3, 3), "logits": (3,)}
    model, out = save(net, tmp_path / "two.onnx"), tmp_path / "out.onnx"
    common = [model, "--calib", data, "--sparsity", 0.3, "--mode", mode, "-o", out]
    refused = run(*common, "--output", "act1")
    assert refused.exit_code == 1
    assert "--output" in refused.stderr
    assert not out.exists()
    report = report_of(*common, "--output", "logits", "--eval", data)
    found = report_of(*common, "--eval", data, "--force")
    assert found["before"] == report["before"]  # the feature map is passed over
    arrays = tiny_arrays()
    assert report["before"]["accuracy"] == pytest.approx(top1(Counted(model), arrays, "logits"))
    assert report["after"]["accuracy"] == pytest.approx(top1(Counted(out), arrays, "logits"))
    assert [o.name for o in Counted(out).proto.graph.output] == ["act1", "logits"]
    assert Counted(out).scores({"x": arrays["x"]}, "act1").shape == (60, 8, 3, 3)
    shown = report_of("evaluate", model, "--calib", data, "--output", "logits")
    assert shown["value"] == report["before"]["accuracy"]


@pytest.mark.parametrize("mode", ANY_MODEL)
def test_npz(tiny: Path, data: Path, mode: str) -> None:
    out = tiny.with_name("out.onnx")
    common = ["--calib", data, "--eval", data, "--sparsity", 0.5, "--mode", mode, "-o", out]
    report = report_of(tiny, *common)
    assert report["after"]["accuracy"] == pytest.approx(top1(Counted(out), tiny_arrays()))
    assert report["after"]["accuracy_samples"] == 60


@pytest.mark.parametrize("mode", ANY_MODEL)
def test_fixed_batch(tmp_path: Path, mode: str) -> None:
    model, out = save(tiny_net(batch=4), tmp_path / "four.onnx"), tmp_path / "out.onnx"
    free = save(tiny_net(), tmp_path / "free.onnx")
    samples = tiny_samples(tmp_path / "data.npz", rows=63)
    common = ["--calib", samples, "--eval", samples]
    report = report_of(model, *common, "--sparsity", 0.5, "--mode", mode, "-o", out)
    assert report["after"]["accuracy_samples"] == 63
    assert report["before"]["accuracy"] == pytest.approx(top1(Counted(free), tiny_arrays(63)))
    assert Counted(out).macs == report["after"]["macs"]
    assert Counted(out).scores({"x": tiny_arrays(4)["x"]}).shape == (4, 3)


@pytest.mark.parametrize("mode", ANY_MODEL)
def test_several_inputs(tmp_path: Path, mode: str) -> None:
    net = tiny_net()
    net.nodes.pop()
    net.inputs["extra"] = (5,)
    net.op("Gemm", f"extra {net.const('side.w', 5, 16)}", "side")
    net.op("Tanh", "side", "tanh")
    net.op("Concat", "flat tanh", "both", axis=1)
    net.op("Gemm", f"both {net.const('head.w', 72 + 16, 3)}", "logits")
    net.constants = [c for c in net.constants if not c.name.startswith("fc.")]
    model, out = save(net, tmp_path / "inputs.onnx"), tmp_path / "out.onnx"
    extra = np.random.default_rng(2).standard_normal((60, 5)).astype(np.float32)
    samples = tiny_samples(tmp_path / "data.npz", extra=extra)
    common = ["--calib", samples, "--eval", samples, "--mode", mode, "-o", out]
    report = report_of(model, *common, "--sparsity", 0.5)
    arrays = tiny_arrays()
    scores = Counted(out).scores({"x": arrays["x"], "extra": extra})
    accuracy = float((scores.argmax(axis=1) == arrays["y"]).mean())
    assert report["after"]["accuracy"] == pytest.approx(accuracy)
    assert [i.name for i in Counted(out).proto.graph.input] == ["x", "extra"]


def test_seed_decides_what_is_drawn(tiny: Path, data: Path) -> None:
    def drawn(seed: int) -> bytes:
        out = tiny.with_name(f"{seed}.onnx")
        common = ["--metric", "random", "--seed", seed, "--mode", "weights"]
        done(tiny, "--calib", data, "--sparsity", 0.5, *common, "-o", out)
        return out.read_bytes()

    assert drawn(1) != drawn(2)


@pytest.mark.parametrize("mode", ANY_MODEL)
def test_same_bytes_in_another_process(calib: Path, tmp_path: Path, mode: str) -> None:
    model = ROOT / "models" / "digits_mobilenet.onnx"
    reports, files = [], []
    for hash_seed in ("1", "2"):
        out, report = tmp_path / f"{hash_seed}.onnx", tmp_path / f"{hash_seed}.json"
        common = ["--mode", mode, "--threads", 1, "--seed", 3, "-o", out, "--report", report]
        command = ["-m", "onnxprune", model, "--calib", calib, "--sparsity", 0.5, *common]
        process = python(*command, PYTHONHASHSEED=hash_seed)
        assert process.returncode == 0, process.stderr
        files.append(out.read_bytes())
        reports.append(json.loads(report.read_text()))
        del reports[-1]["timings"], reports[-1]["latency"]
    assert files[0] == files[1]
    assert reports[0] == reports[1]


def test_output_that_exists_is_overwritten_with_force(tiny: Path, data: Path) -> None:
    out = tiny.with_name("out.onnx")
    out.write_text("old")
    done(tiny, "--calib", data, "--sparsity", 0.5, "-o", out, "--force")
    onnx.checker.check_model(str(out), full_check=True)


def test_external_data_is_read_counted_and_written(tmp_path: Path, data: Path, tiny: Path) -> None:
    model = tmp_path / "ext.onnx"
    save(tiny_net(), model, save_as_external_data=True, location="ext.bin", size_threshold=0)
    out = tmp_path / "out.onnx"
    report = report_of(model, "--calib", data, "--sparsity", 0.5, "-o", out)
    files = (model, tmp_path / "ext.bin")
    assert report["before"]["bytes"] == sum(f.stat().st_size for f in files)
    assert report["before"]["weights"] == Counted(tiny).weights
    assert report["model"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    (tmp_path / "ext.bin").unlink()
    assert Counted(out).weights == report["after"]["weights"]
    written = (out, tmp_path / "out.onnx.data")
    assert report["after"]["bytes"] == sum(f.stat().st_size for f in written)


def test_external_data_is_overwritten_with_force_only(tmp_path: Path, data: Path) -> None:
    model, out = tmp_path / "ext.onnx", tmp_path / "out.onnx"
    save(tiny_net(), model, save_as_external_data=True, location="ext.bin", size_threshold=0)
    old = tmp_path / "out.onnx.data"
    old.write_text("old")
    command = [model, "--calib", data, "--sparsity", 0.5, "-o", out]
    result = run(*command)
    assert result.exit_code == 1
    assert "out.onnx.data: exists already; use --force" in result.stderr
    assert old.read_text() == "old"
    assert not out.exists()
    assert f"wrote {out} and out.onnx.data" in done(*command, "--force").stdout
    assert Counted(out).weights


# -- stdout and stderr -----------------------------------------------------------------------


def test_json_is_the_report_and_nothing_else(tiny: Path, data: Path) -> None:
    path = tiny.with_name("report.json")
    result = done(tiny, "--calib", data, "--sparsity", 0.5, "--json", "--report", path)
    assert result.stdout == path.read_text()
    assert_like(json.loads(result.stdout), REPORT, "report")


def test_json_holds_no_nan(tiny: Path, tmp_path: Path) -> None:
    """Class 1 of 3 has no samples, so its accuracy is undefined."""
    data = tiny_samples(tmp_path / "gap.npz", y=np.arange(60) % 2 * 2)

    def refuse(text: str) -> None:
        raise AssertionError(text)

    result = done(tiny, "--calib", data, "--sparsity", 0.5, "--json")
    report = json.loads(result.stdout, parse_constant=refuse)
    assert None in report["before"]["accuracy_per_class"]
    result = done("evaluate", tiny, "--calib", data, "--json")
    assert None in json.loads(result.stdout, parse_constant=refuse)["per_class"]


def test_warnings_go_to_stderr_and_into_the_report(tmp_path: Path, calib: Path) -> None:
    for label in "012":
        (tmp_path / "few" / label).parent.mkdir(exist_ok=True)
        (tmp_path / "few" / label).symlink_to(calib / label)
    common = ["--sparsity", 0.5, "-o", tmp_path / "out.onnx", "--json"]
    result = done(LENET, "--calib", tmp_path / "few", *common)
    warnings = json.loads(result.stdout)["warnings"]
    assert any("3 classes" in w and "10" in w for w in warnings)
    lines = result.stderr.splitlines()
    assert lines == [f"onnxprune: warning: {w}" for w in warnings]


def test_quiet_and_summary(calib: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    common = [LENET, "--calib", calib, "--sparsity", 0.3, "--recover", "none", "-o", out]
    result = done(*common, "-q")
    assert result.output == ""
    assert out.exists()
    result = done(*common, "--force")
    assert result.stderr == ""
    achieved = 1 - Counted(out).weights / Counted(LENET).weights
    for text in ("accuracy", "requested 0.3", f"{achieved:.4f}", "frozen", f"wrote {out}"):
        assert text in result.stdout.replace("\n", " ") or text in result.stdout


def test_progress_goes_to_a_terminal_on_stderr_only(calib: Path, tmp_path: Path) -> None:
    script = (
        "from onnxprune.cli import commands, progress as p; "
        "p.PROGRESS_AFTER_S = -1; commands.main()"
    )
    shown = {}
    for extra in ("--force", "--json", "-q"):
        leader, follower = os.openpty()
        common = ["--sparsity", "0.3", "--recover", "none", "-o", str(tmp_path / "o.onnx")]
        command = [str(LENET), "--calib", str(calib), *common, "--force", extra]
        process = subprocess.Popen(
            [sys.executable, "-c", script, *command],
            stdout=subprocess.PIPE,
            stderr=follower,
            env=os.environ | {"TERM": "xterm"},
        )
        os.close(follower)
        text = b""
        try:
            while chunk := os.read(leader, 4096):
                text += chunk
        except OSError:  # Linux: the other side is closed
            pass
        os.close(leader)
        stdout = process.communicate(timeout=60)[0]
        assert process.returncode == 0, text
        shown[extra] = text
        assert stdout.startswith({"--force": b" ", "--json": b"{", "-q": b""}[extra])
        assert b"\x1b" not in stdout
    assert b"calibrate" in shown["--force"]
    assert b"evaluate" in shown["--force"]
    assert shown["--json"] == shown["-q"] == b""


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.stem)
def test_inspect(model: Path) -> None:
    shown = report_of("inspect", model)
    counted = Counted(model)
    cost = shown["cost"]
    found = (cost["params"], cost["weights"], cost["macs"], cost["bytes"])
    assert found == (counted.params, counted.weights, counted.macs, model.stat().st_size)
    assert shown["units"] == sum(g["units"] for g in shown["groups"]) > 0
    names = {n.name for n in counted.proto.graph.node}
    assert all(set(g["nodes"]) <= names for g in shown["groups"])
    assert_like(shown["frozen"], REPORT["frozen"], "frozen")
    text = done("inspect", model).stdout
    assert f"{counted.params:,} parameters" in text
    assert shown["frozen"][0]["reason"] in text
    assert 0 < shown["prunable"]["weights"] <= 1
    assert 0 < shown["prunable"]["macs"] <= 1
    for group in shown["groups"]:
        assert group["name"] in text


def test_inspect_exclude() -> None:
    free, less = report_of("inspect", LENET), report_of("inspect", LENET, "--exclude", "*Gemm")
    assert free["units"] > 0 == less["units"]
    assert "excluded by '*Gemm'" in {f["reason"] for f in less["frozen"]}


def test_evaluate(calib: Path) -> None:
    shown = report_of("evaluate", LENET, "--calib", calib)
    samples = read_digits(calib)
    scores = Counted(LENET).scores({"image": samples["x"]}).astype(np.float64)
    shifted = scores - scores.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(120), samples["y"]]
    accuracy = top1(Counted(LENET), samples)
    assert shown["samples"] == 120
    assert shown["value"] == pytest.approx(accuracy)
    assert shown["loss"] == pytest.approx(losses.mean(), rel=1e-4)
    assert np.mean(shown["per_class"]) == pytest.approx(accuracy)
    result = done("evaluate", LENET, "--calib", calib)
    assert f"{100 * accuracy:.2f}" in result.stdout
    assert "120 samples" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize(
    "command",
    [
        (),
        ("prune",),
        ("plan",),
        ("apply",),
        ("inspect",),
        ("evaluate",),
        ("bench",),
    ],
)
def test_help(command: Sequence[str], flag: str) -> None:
    result = done(*command, flag)
    assert result.stdout.startswith("Usage: ")
    assert result.stderr == ""
    if not command:
        assert all(name in result.stdout for name in cli.main.commands)
    else:
        options = [o for o in cli.main.commands[command[0]].params if isinstance(o, click.Option)]
        assert all(o.opts[0] in result.stdout for o in options)
        assert [o.name for o in options if not o.help] == []


def test_version() -> None:
    assert done("--version").stdout == f"onnxprune {onnxprune.__version__}\n"


def test_module_and_script() -> None:
    expected = f"onnxprune {onnxprune.__version__}\n".encode()
    assert python("-m", "onnxprune", "--version").stdout == expected
    script = Path(sys.executable).with_name("onnxprune")
    if script.exists():
        assert subprocess.run([script, "--version"], capture_output=True).stdout == expected


USAGE = {
    "nothing": [],
    "prune alone": ["prune"],
    "no data": ["m.onnx", "--sparsity", "0.5"],
    "no sparsity": ["m.onnx", "--calib", "d.npz"],
    "mode": ["m.onnx", "--calib", "d", "--sparsity", "0.5", "--mode", "rows"],
    "metric": ["m.onnx", "--calib", "d", "--sparsity", "0.5", "--metric", "l1"],
    "recovery": ["m.onnx", "--calib", "d", "--sparsity", "0.5", "--recover", "train"],
    "align": ["m.onnx", "--calib", "d", "--sparsity", "0.5", "--align", "0"],
    "seed": ["m.onnx", "--calib", "d", "--sparsity", "0.5", "--seed", "-1"],
    "threads": ["m.onnx", "--calib", "d", "--sparsity", "0.5", "--threads", "-1"],
    "batch": ["m.onnx", "--calib", "d", "--sparsity", "0.5", "--batch-size", "0"],
    "mean": ["m.onnx", "--calib", "d", "--sparsity", "0.5", "--mean", "a,b"],
    "two models": ["m.onnx", "n.onnx", "--calib", "d", "--sparsity", "0.5"],
    "unknown option": ["m.onnx", "--calib", "d", "--sparsity", "0.5", "--fast"],
    "plan without data": ["plan", "m.onnx", "--sparsity", "0.5"],
    "plan without a budget": ["plan", "m.onnx", "--calib", "d.npz"],
    "apply without a plan": ["apply", "m.onnx"],
    "apply with a budget": ["apply", "m.onnx", "p.json", "--sparsity", "0.5"],
    "inspect alone": ["inspect"],
    "evaluate without data": ["evaluate", "m.onnx"],
    "bench alone": ["bench"],
    "bench rounds": ["bench", "m.onnx", "--rounds", "0"],
    "bench seconds": ["bench", "m.onnx", "--seconds", "0"],
    "bench batch": ["bench", "m.onnx", "--batch-size", "0"],
} | {
    f"sparsity {value}": ["m.onnx", "--calib", "d", "--sparsity", value]
    for value in ("0", "1", "-1", "2", "abc", "", "0,5", "70%")
}


@pytest.mark.parametrize("args", USAGE.values(), ids=USAGE)
def test_usage(args: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: " in result.stderr
    assert not list(tmp_path.iterdir())


# -- the Python API --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ANY_MODEL)
def test_api_prune(tiny: Path, data: Path, mode: str) -> None:
    before = tree(tiny.parent)
    result = onnxprune.prune(tiny, data, sparsity=0.5, mode=mode)
    assert tree(tiny.parent) == before
    assert isinstance(result, onnxprune.PruneResult)
    assert isinstance(result.model, ModelProto)
    assert_like(result.report.to_dict(), REPORT, "report")
    assert json.loads(result.report.to_json()) == result.report.to_dict()
    assert result.report.achieved >= 0.5
    out = tiny.with_name("api.onnx")
    onnxprune.save(result, out)
    assert onnx.load(out) == result.model
    assert out.stat().st_size == result.report.after.cost.bytes
    common = ["--sparsity", 0.5, "--mode", mode, "--recover", "full"]
    done(str(tiny), "--calib", data, *common)
    assert out.read_bytes() == tiny.with_name("tiny.pruned.onnx").read_bytes()


def test_api_takes_strings_and_reports_progress(tiny: Path, data: Path) -> None:
    stages: dict[str, list[int]] = {}

    def progress(stage: str, total: int) -> Any:
        stages.setdefault(f"{stage} {len(stages)} of {total}", [])
        return stages[list(stages)[-1]].append

    onnxprune.prune(str(tiny), str(data), sparsity=0.5, progress=progress)
    assert any(name.startswith("calibrate") for name in stages)
    for name, counts in stages.items():
        assert sum(counts) == int(name.split()[-1]), name


def test_api_evaluate_and_inspect(tiny: Path, data: Path) -> None:
    accuracy = onnxprune.evaluate(tiny, data)
    assert isinstance(accuracy, onnxprune.Accuracy)
    assert accuracy.value == pytest.approx(top1(Counted(tiny), tiny_arrays()))
    assert accuracy.samples == 60
    found = onnxprune.inspect(tiny)
    assert found.to_dict() == report_of("inspect", tiny)
    assert found.cost.weights == Counted(tiny).weights


@pytest.mark.parametrize(
    "settings",
    [{"sparsity": v} for v in (0, 1, -1, 2, float("nan"))]
    + [{"mode": "rows"}, {"metric": "l1"}, {"recover": "train"}, {"align": 0}, {"seed": -1}]
    + [{"threads": -1}, {"batch_size": 0}],
    ids=str,
)
def test_api_checks_the_request(tiny: Path, data: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(onnxprune.OnnxpruneError, match=next(iter(settings))):
        onnxprune.prune(tiny, data, **{"sparsity": 0.5, **settings})
