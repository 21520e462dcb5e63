"""The verb bench: its JSON and its table, sizes and memory, what it refuses."""

from __future__ import annotations

import json
import logging
import os
import zipfile
from pathlib import Path
from typing import get_type_hints

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.cli import commands as cli
from onnxprune.errors import ModelError, OnnxpruneError
from onnxprune.model import session
from onnxprune.model.runner import Runner
from onnxprune.timing import footprint
from onnxprune.timing.footprint import Footprint, measure_footprint
from onnxprune.timing.latency import Comparison
from onnxprune.verbs import bench as benching

ROOT = Path(__file__).parents[2]
LENET = ROOT / "models" / "digits_lenet300.onnx"
RESNET = ROOT / "models" / "digits_resnet.onnx"
QUICK = ("--rounds", 5, "--threads", 1)


def run(*args: object) -> Result:
    return CliRunner().invoke(cli.main, ["bench", *map(str, args)], catch_exceptions=False)


def dense(
    path: Path, width: int = 8, zeros: int = 0, name: str = "x", axes=("n", 4), kind=np.float32
) -> Path:
    """Write a model of one matrix product and a bias, the first rows of whose weight are zero."""
    weight = np.random.default_rng(0).normal(size=(axes[-1], width)).astype(kind)
    weight[:zeros] = 0
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", [name, "w"], ["h"]),
            helper.make_node("Add", ["h", "b"], ["y"]),
        ],
        "dense",
        [helper.make_tensor_value_info(name, element, axes)],
        [helper.make_tensor_value_info("y", element, [axes[0], width])],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.ones(width, kind), "b"),
        ],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def measured() -> dict:
    result = run(RESNET, LENET, *QUICK, "--batch-size", 4, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_json_has_everything(measured):
    assert [(m["model"], m["int8"]) for m in measured["models"]] == [
        (str(RESNET), False),
        (f"{RESNET} int8", True),
        (str(LENET), False),
    ]
    for model in measured["models"]:
        assert model["error"] is None
        latency = model["latency_ms"]
        assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
        assert model["load_ms"] > 0
        assert model["samples_per_second"] > 0
        ratio = model["ratio"]
        assert 0 < ratio["low"] <= ratio["value"] <= ratio["high"]
        assert ratio["quartiles"] == sorted(ratio["quartiles"])
    assert measured["models"][0]["ratio"] == {
        "value": 1, "low": 1, "high": 1, "quartiles": [1, 1]
    }  # fmt: skip
    assert measured["batch_size"] == 4
    assert measured["inputs"] == {"image": {"dtype": "float32", "shape": [4, 1, 8, 8]}}
    assert (measured["threads"], measured["provider"]) == (1, "CPUExecutionProvider")
    assert measured["rounds"] == 5
    assert measured["sessions"] >= 1
    assert measured["machine"]["cores"] == os.cpu_count()
    assert 0 <= measured["disturbed"] <= 1


def test_sizes_are_those_of_the_file(measured, tmp_path):
    for model in measured["models"]:
        if model["int8"]:
            continue
        path = Path(model["model"])
        with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(path)
            zipped = archive.infolist()[0].compress_size
        assert model["file_bytes"] == path.stat().st_size
        assert model["zipped_bytes"] == pytest.approx(zipped, rel=0.01)


def test_costs_of_int8_are_those_of_the_original(measured):
    original, int8, _ = measured["models"]
    assert (int8["weights"], int8["macs"]) == (original["weights"], original["macs"])
    assert int8["params"] < 0.05 * original["params"], "float constants only"
    assert 0.9 * int8["weights"] < int8["nonzero_weights"] < int8["weights"]
    assert int8["file_bytes"] < 0.4 * original["file_bytes"]
    assert measured["remarks"] == [], "rounding to int8 is no pruning"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_peak_memory_holds_the_weights(tmp_path):
    """32 MiB of weights take at least that, and not many times as much."""
    small, large = (dense(tmp_path / f"{n}.onnx", n, axes=("n", 2048)) for n in (8, 4096))
    feeds = {"x": np.zeros((1, 2048), np.float32)}
    light, heavy = (
        measure_footprint([p], feeds, runner=Runner(1)).peak_memory_bytes for p in (small, large)
    )
    assert light is not None
    assert heavy is not None
    assert 0 < light < 2**25
    assert 2**25 < heavy - light < 5 * 2**25


def test_memory_is_unknown_elsewhere(monkeypatch, tmp_path):
    model = dense(tmp_path / "m.onnx")
    answer = type("Done", (), {"stdout": "null\n", "stderr": "", "returncode": 0})
    monkeypatch.setattr(footprint.subprocess, "run", lambda *_, **__: answer)
    assert measure_footprint([model], {}).peak_memory_bytes is None


def test_external_data_counts(tmp_path):
    inside = dense(tmp_path / "inside.onnx", 64, axes=("n", 512))
    outside = tmp_path / "outside.onnx"
    onnx.save(onnx.load(inside), outside, save_as_external_data=True, location="outside.data")
    result = onnxprune.bench([inside, outside], threads=1, rounds=3, int8=False)
    data = (tmp_path / "outside.data").stat().st_size
    assert data >= 4 * 64 * 512
    assert result.entries[1].footprint.file_bytes == outside.stat().st_size + data


def test_table():
    result = run(LENET, LENET, *QUICK)
    assert result.exit_code == 0, result.stderr
    for word in ("p50", "p95", "p99", "ratio", "samples/s", "load ms", "peak memory MB", "macs",
                 "file bytes", "zipped bytes", "params", "nonzero weights", "int8"):  # fmt: skip
        assert word in result.stdout, word
    assert f"{LENET.stat().st_size:,}" in result.stdout
    assert "batch size 1, threads: 1, CPUExecutionProvider" in result.stdout
    assert "5 rounds" in result.stdout
    assert "zeros" not in result.stdout
    assert run(LENET, *QUICK, "--no-int8", "-q").stdout == ""


def test_zeros_get_a_plain_sentence(tmp_path):
    paths = [dense(tmp_path / f"{z}.onnx", zeros=z, axes=("n", 10)) for z in (0, 5)]
    result = run(*paths, *QUICK, "--no-int8")
    expected = f"{paths[1]}: 50 % of the weights are zeros; zeros do not run faster in onnxruntime"
    assert expected in " ".join(result.stdout.split())
    assert f"{paths[0]}: " not in result.stdout
    assert "int8" not in result.stdout


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"name": "z"}, "got 'z' float32[n, 4], expected 'x' float32[n, 4]"),
        ({"axes": ("n", 5)}, "got 'x' float32[n, 5], expected 'x' float32[n, 4]"),
        ({"axes": ("n", 1, 4)}, "got 'x' float32[n, 1, 4]"),
        ({"kind": np.float64}, "got 'x' float64[n, 4]"),
    ],
)
def test_other_inputs_are_refused_in_one_line(tmp_path, other, told):
    first = dense(tmp_path / "a.onnx")
    second = dense(tmp_path / "b.onnx", **other)
    result = run(first, second, *QUICK)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert f"{second} takes other inputs than {first}: " in result.stderr
    assert told in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_fixed_batch_size_binds_all(tmp_path):
    free = dense(tmp_path / "free.onnx")
    fixed = dense(tmp_path / "fixed.onnx", axes=(3, 4))
    result = run(free, fixed, *QUICK, "--json", "--no-int8")
    assert result.exit_code == 0, result.stderr
    values = json.loads(result.stdout)
    assert values["batch_size"] == 3
    assert values["inputs"]["x"]["shape"] == [3, 4]
    assert [m["macs"] for m in values["models"]] == [4 * 8, 4 * 8]
    assert "the models fix the batch size at 3: measured with that, not 1" in result.stderr
    clash = run(fixed, dense(tmp_path / "four.onnx", axes=(4, 4)), *QUICK)
    assert clash.exit_code == 1
    assert "takes other inputs" in clash.stderr


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        ([LENET, "--provider", "NoExecutionProvider"], 1, "expected one of "),
        (["nowhere.onnx"], 1, "nowhere.onnx: no such file"),
    ],
)
def test_problems(args, code, told):
    result = run(*args)
    assert result.exit_code == code
    assert told in result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "settings",
    [{"batch_size": 0}, {"threads": -1}, {"seconds": 0}, {"rounds": 0}, {"seed": -1}],
    ids=str,
)
def test_the_api_checks_its_settings(settings):
    with pytest.raises(OnnxpruneError, match=next(iter(settings))):
        onnxprune.bench([LENET], **settings)
    with pytest.raises(OnnxpruneError, match="at least one model"):
        onnxprune.bench([])


def test_keywords_are_the_settings():
    """What type checkers know of them is what there is."""
    known = get_type_hints(benching.BenchSettings)
    assert known == get_type_hints(benching.HowToRun)
    with pytest.raises(TypeError, match="unexpected keyword argument 'batch'"):
        onnxprune.bench([LENET], batch=1)


def test_progress_adds_up(tmp_path):
    counts: dict[tuple[str, int], list[int]] = {}
    onnxprune.bench(
        [dense(tmp_path / "a.onnx")],
        rounds=3,
        progress=lambda stage, total: counts.setdefault((stage, total), []).append,
    )
    assert {stage for stage, _ in counts} == {"latency", "memory"}
    assert [sum(c) for c in counts.values()] == [total for _, total in counts]


def test_a_provider_that_does_not_start_is_not_replaced(monkeypatch, tmp_path):
    """Where onnxruntime falls back to the CPU, its times must not pass for the provider's."""
    monkeypatch.setattr(session.ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    path = dense(tmp_path / "a.onnx")
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(ModelError, match="has provider 'CUDAExecutionProvider' but cannot start it"),
    ):
        onnxprune.bench([path], provider="CUDAExecutionProvider")


def test_a_model_that_does_not_run_is_named(tmp_path):
    broken = onnx.load(dense(tmp_path / "a.onnx"))
    broken.graph.node[0].op_type = "NoSuchOperator"
    broken.graph.node[0].domain = "elsewhere"
    broken.opset_import.append(helper.make_opsetid("elsewhere", 1))
    onnx.save(broken, tmp_path / "b.onnx")
    with pytest.raises(ModelError, match=r"b\.onnx: onnxruntime cannot load the model"):
        onnxprune.bench([tmp_path / "a.onnx", tmp_path / "b.onnx"])


def test_int8_that_fails_says_why(monkeypatch, tmp_path):
    def fail(_: ModelProto, __: Path) -> None:
        raise ModelError("onnxruntime cannot quantise the model: no reason")

    monkeypatch.setattr(benching, "quantize_dynamic", fail)
    path = dense(tmp_path / "a.onnx")
    result = run(path, path, *QUICK)
    assert result.exit_code == 0
    assert f"{path} int8: onnxruntime cannot quantise the model: no reason" in " ".join(
        result.stdout.split()
    )
    entry = onnxprune.bench([path], rounds=3, threads=1).to_dict()["models"][1]
    assert entry["error"] == "onnxruntime cannot quantise the model: no reason"
    assert entry["latency_ms"] == {"p50": None, "p95": None, "p99": None}
    assert entry["ratio"] is None
    assert entry["file_bytes"] is None


def test_quantising_is_quiet_and_leaves_no_trace(tmp_path, capfd):
    path = dense(tmp_path / "a.onnx")
    root = logging.getLogger()
    before = list(root.handlers), root.level, root.manager.disable
    result = onnxprune.bench([path], rounds=3, threads=1)
    assert (list(root.handlers), root.level, root.manager.disable) == before
    assert capfd.readouterr() == ("", "")
    assert os.listdir(tmp_path) == ["a.onnx"]
    assert [e.int8 for e in result.entries] == [False, True]


def test_doubts_are_said(monkeypatch, tmp_path):
    real = benching.compare

    def doubtful(*args, **settings):
        measured = real(*args, **settings)
        return Comparison(
            measured.timings, measured.ratios, measured.rounds, measured.blocks, 0.5, False
        )

    monkeypatch.setattr(benching, "compare", doubtful)
    monkeypatch.setattr(benching, "measure_footprint", lambda *_, **__: Footprint(1, 1, None))
    path = dense(tmp_path / "a.onnx")
    one, two = (onnxprune.bench([path], rounds=3, threads=t, int8=False).warnings for t in (1, 2))
    assert "other programs kept 50 % of the runs waiting" in one[0]
    assert "fewer cores" not in one[0]
    assert "fewer cores" in two[0]
    assert "a ratio is known only within" in one[1]


def test_free_sizes_are_found(tmp_path):
    """A dynamic axis that is no batch gets a size with which the model runs."""
    table = numpy_helper.from_array(np.ones((5, 4), np.float32), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "t"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "t", 4])],
        [table],
    )
    path = tmp_path / "lookup.onnx"
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    result = onnxprune.bench([path], threads=1, rounds=3, int8=False)
    dtype, (batch, length) = result.inputs["ids"]
    assert (dtype, batch) == ("int64", 1)
    assert length > 1
