"""Calibration sets that teach little or the wrong thing: no NaN, no silent harm, one warning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import DIGITS, DIGITS_TEST, LENET, ROOT, done, python, read_digits, run
from onnx import ModelProto, TensorProto, helper, numpy_helper
from PIL import Image

import onnxprune
from onnxprune.errors import CalibrationError
from onnxprune.linear.layer import affected, prepare
from onnxprune.model.folding import fold
from onnxprune.model.model import normalise
from onnxprune.model.observe import observe
from onnxprune.model.session import Session
from onnxprune.plans.cut import Cut
from onnxprune.plans.plan import plan_from_units
from onnxprune.recover.layers import fit_warnings, with_constants
from onnxprune.recover.least_squares import fit_layers
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.samples.dataset import Batch
from onnxprune.samples.outliers import find_outliers
from onnxprune.structure.trace import trace

RESNET = ROOT / "models" / "digits_resnet.onnx"


def of_data(warnings: Sequence[str]) -> list[str]:
    """Leave out what is said of the result: how much of its accuracy is gone."""
    return [text for text in warnings if "collapsed" not in text]


@pytest.fixture(scope="module")
def some() -> dict[str, np.ndarray]:
    """Thirty images of each digit."""
    found = read_digits(DIGITS)
    rows = np.concatenate([np.flatnonzero(found["y"] == k)[:30] for k in range(10)])
    return {name: values[rows] for name, values in found.items()}


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("held_out") / "test.npz"
    np.savez(path, **read_digits(DIGITS_TEST))
    return path


def pruned(
    folder: Path, held_out: Path, samples: dict[str, np.ndarray], model: Path = RESNET, **kw: Any
) -> onnxprune.PruneResult:
    np.savez(folder / "calib.npz", **samples)
    settings: dict[str, Any] = {"sparsity": 0.6, "threads": 1} | kw
    settings.setdefault("mode", "channels")
    result = onnxprune.prune(model, folder / "calib.npz", eval_data=held_out, **settings)
    for tensor in result.model.graph.initializer:
        assert np.isfinite(numpy_helper.to_array(tensor).astype(np.float64)).all()
    return result


def accuracy(result: onnxprune.PruneResult) -> float:
    assert result.report.after.accuracy is not None
    return result.report.after.accuracy.value


def spoilt(samples: dict[str, np.ndarray], rows: Any, factor: float) -> dict[str, np.ndarray]:
    x = samples["x"].copy()
    x[rows] = (x[rows] + 0.5) * np.float32(factor)
    return samples | {"x": x}


# -- outliers --------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "factor"), [([7, 100, 250], 1e6), ([7], 1e30)])
def test_outliers_are_left_out(
    tmp_path: Path, held_out: Path, some: dict[str, np.ndarray], rows: list[int], factor: float
) -> None:
    clean = pruned(tmp_path, held_out, some)
    assert not of_data(clean.report.warnings)
    result = pruned(tmp_path, held_out, spoilt(some, rows, factor))
    (line,) = result.report.warnings
    assert line.startswith(f"{len(rows)} of 300 calibration samples have values of up to 1.5e+")
    assert "typical; they were left out, the first is row 7" in line
    parts = result.report.data["samples"]
    assert parts["fit"] + parts["select"] == 300 - len(rows)
    assert accuracy(clean) > 0.95
    assert accuracy(result) > accuracy(clean) - 0.02


def test_moderate_outliers_stay(
    tmp_path: Path, held_out: Path, some: dict[str, np.ndarray]
) -> None:
    result = pruned(tmp_path, held_out, spoilt(some, [7, 100, 250], 10), recover="bias")
    assert not of_data(result.report.warnings)
    parts = result.report.data["samples"]
    assert parts["fit"] + parts["select"] == 300


def test_outliers_among_the_test_images_count(tmp_path: Path, some: dict[str, np.ndarray]) -> None:
    """What is only reported on is reported on as it is."""
    np.savez(tmp_path / "test.npz", **spoilt(some, [7, 100, 250], 1e6))
    result = pruned(tmp_path, tmp_path / "test.npz", some, recover="none", metric="magnitude")
    assert result.report.data["samples"]["report"] == 300
    assert not of_data(result.report.warnings)


def test_outliers_that_are_no_exceptions_stay(
    tmp_path: Path, held_out: Path, some: dict[str, np.ndarray]
) -> None:
    """Least squares cannot work with them, but says so in few words."""
    result = pruned(tmp_path, held_out, spoilt(some, slice(0, 300, 5), 1e30))
    lines = result.report.warnings
    assert lines[0].startswith("60 of 300 calibration samples have values of up to 1.5e+30")
    assert "too many to leave out" in lines[0]
    overflow = [line for line in lines if "activations overflow" in line]
    assert len(overflow) == 1
    assert overflow[0].split()[1:4] == ["layers,", "the", "first"]


def batches(**feeds: np.ndarray) -> list[Batch]:
    count = len(next(iter(feeds.values())))
    return [
        Batch({n: v[k : k + 7] for n, v in feeds.items()}, np.zeros(len(range(count)[k : k + 7])))
        for k in range(0, count, 7)
    ]


def outlying(**feeds: np.ndarray) -> list[int]:
    count = len(next(iter(feeds.values())))
    found, warnings = find_outliers(batches(**feeds), np.arange(count) + 1000)
    assert bool(found.any()) == any("left out" in line for line in warnings)
    return np.flatnonzero(found).tolist()


def test_what_is_an_outlier() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 3, 2)).astype(np.float32)
    far = np.ones((100, 1, 1), np.float32)
    far[[4, 50]] = 1e4
    assert outlying(x=x) == []
    assert outlying(x=x * far) == [4, 50]
    assert outlying(x=-np.abs(x) * far) == [4, 50]
    assert outlying(a=x, b=(x * far)[:, 0]) == [4, 50]
    assert outlying(x=(x * far).astype(np.float64) * 1e200) == [4, 50]
    assert outlying(x=(x * 1000 * far).astype(np.int64)) == []
    assert outlying(x=(x * far)[:8]) == []  # too few to know what is typical
    assert outlying(x=np.zeros_like(x)) == []
    assert outlying(x=np.where(np.arange(100)[:, None, None] % 3 == 0, x, 0)) == []
    assert outlying(x=np.where(np.arange(100)[:, None, None] % 3 == 1, x * far, 0)) == [4]


def test_sizes_that_are_spread_by_nature_are_none() -> None:
    sizes = np.exp(2 * np.random.default_rng(1).standard_normal((1000, 1))).astype(np.float32)
    assert sizes.max() > 300 * np.median(sizes)
    assert outlying(x=sizes) == []
    sizes[17] = 1e12
    assert outlying(x=sizes) == [17]


def test_rows_are_named_by_their_number() -> None:
    x = np.ones((50, 2), np.float32)
    x[3] = 1e9
    _, (line,) = find_outliers(batches(x=x), np.arange(50) * 2)
    assert "the first is row 6" in line
    assert "1 of 50 calibration samples have values of up to 1e+09 in input 'x'" in line


# -- samples that are all the same -----------------------------------------------------------


@pytest.mark.parametrize("mode", ["channels", "weights"])
@pytest.mark.parametrize("recover", ["full", "bias"])
def test_equal_samples_are_refused(
    tmp_path: Path, held_out: Path, some: dict[str, np.ndarray], mode: str, recover: str
) -> None:
    same = some | {"x": np.full_like(some["x"], 0.3)}
    with pytest.raises(CalibrationError, match="samples are the same to the model"):
        pruned(tmp_path, held_out, same, mode=mode, recover=recover)
    # What learns nothing from them does not mind.
    pruned(tmp_path, held_out, same, mode=mode, recover="none", metric="magnitude")


def test_equal_images_are_refused(tmp_path: Path) -> None:
    for label in range(10):
        folder = tmp_path / "calib" / str(label)
        folder.mkdir(parents=True)
        for k in range(5):
            Image.new("L", (8, 8), 90).save(folder / f"{k}.png")
    out = tmp_path / "out.onnx"
    result = run("prune", LENET, "--calib", tmp_path / "calib", "--sparsity", 0.5, "-o", out)
    assert result.exit_code == 1
    assert "calibration samples are the same to the model" in result.stderr
    assert not out.exists()


# -- few samples -----------------------------------------------------------------------------


def test_absent_classes(tmp_path: Path, held_out: Path, some: dict[str, np.ndarray]) -> None:
    """The classifier would unlearn them."""
    rows = some["y"] != 3
    result = pruned(tmp_path, held_out, {n: v[rows] for n, v in some.items()}, sparsity=0.4)
    absent, classifier = result.report.warnings
    assert absent.startswith("1 of 10 classes, the first '3', have no samples to fit on")
    assert "classifier was not refitted to the labels: 1 of its 10 classes" in classifier
    assert "classifier" not in [s["name"] for s in result.report.recovery["steps"]]
    assert result.report.after.accuracy is not None
    assert result.report.after.accuracy.per_class[3] > 0.7


def test_a_class_of_one_sample(tmp_path: Path, held_out: Path, some: dict[str, np.ndarray]) -> None:
    rows = (some["y"] != 3) | (np.cumsum(some["y"] == 3) == 1)
    result = pruned(tmp_path, held_out, {n: v[rows] for n, v in some.items()})
    (line,) = result.report.warnings
    assert line.startswith("1 of 10 classes, the first '3' with 1, have fewer than 5 samples")
    assert accuracy(result) > 0.95


def test_a_set_that_is_too_small(
    tmp_path: Path, held_out: Path, some: dict[str, np.ndarray]
) -> None:
    rows = np.arange(0, 300, 10)
    result = pruned(tmp_path, held_out, {n: v[rows] for n, v in some.items()})
    lines = result.report.warnings
    assert lines[0].startswith("10 of 10 classes, the first '0' with ")
    short = [line for line in lines if "fewer rows to fit on than inputs" in line]
    assert len(short) == 1
    assert len(lines) == 2
    assert "keeps its old weights" in short[0]
    assert accuracy(result) > 0.9


def test_no_warning_where_nothing_is_learned(
    tmp_path: Path, held_out: Path, some: dict[str, np.ndarray]
) -> None:
    rows = np.arange(0, 300, 10)
    few = {n: v[rows] for n, v in some.items()}
    result = pruned(tmp_path, held_out, few, recover="none", metric="magnitude")
    assert not of_data(result.report.warnings)


# -- half precision --------------------------------------------------------------------------


def half(path: Path, target: Path) -> Path:
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    del proto.graph.value_info[:]
    onnx.save(proto, target)
    return target


@pytest.mark.parametrize("mode", ["channels", "weights"])
def test_half_precision(
    tmp_path: Path, held_out: Path, some: dict[str, np.ndarray], mode: str
) -> None:
    model = half(RESNET, tmp_path / "half.onnx")
    result = pruned(tmp_path, held_out, some, model, mode=mode)
    kinds = {t.data_type for t in result.model.graph.initializer}
    assert TensorProto.FLOAT16 in kinds
    assert TensorProto.FLOAT not in kinds
    assert accuracy(result) > 0.95
    assert result.report.recovery["accepted"]


def two_layers(large: float) -> ModelProto:
    """Two dense layers; unit ``k + 4`` between them is a quarter of unit ``k``."""
    rng = np.random.default_rng(0)
    first = rng.uniform(0.1, 0.3, (5, 4))
    second = np.full((8, 3), 0.1)
    second[0] = large
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "a"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "b"], ["y"]),
        ],
        "two",
        [value("x", TensorProto.FLOAT16, ["n", 5])],
        [value("y", TensorProto.FLOAT16, ["n", 3])],
        [
            numpy_helper.from_array(np.hstack([first, first / 4]).astype(np.float16), "a"),
            numpy_helper.from_array(second.astype(np.float16), "b"),
        ],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


@pytest.mark.parametrize("large", [1.0, 4e4])
def test_a_fit_that_half_precision_cannot_hold(large: float) -> None:
    """Where unit 0 leaves, unit 4 needs four times its weight: 160,000 is too much."""
    model = normalise(two_layers(large))
    x = {"x": np.random.default_rng(1).uniform(0, 0.5, (400, 5)).astype(np.float16)}
    shapes = observe(model, x)
    structure = trace(fold(model, shapes), shapes)
    kept = np.ones(len(structure.units), dtype=np.bool_)
    kept[structure.groups[0].units[0]] = False
    plan = plan_from_units("", structure, kept)
    cut = Cut(model, structure, shapes, plan)
    prepared, every = prepare(rewrite(cut), cut)
    fits = list(fit_layers(model, prepared, affected(prepared, every), [x]))
    assert len(fits) == 2
    fitted = with_constants(prepared, fits)
    scores = Session(fitted.proto).run(x)[0].astype(np.float64)
    assert np.isfinite(scores).all()
    warnings = fit_warnings(fits)
    if large == 1.0:
        assert warnings == []
        wanted = Session(model.proto).run(x)[0].astype(np.float64)
        np.testing.assert_allclose(scores, wanted, rtol=0.02)
    else:
        (line,) = warnings
        assert (
            line == f"'{fits[1].layer.node}': the fitted weights exceed their number format; "
            "left as it was"
        )
        assert fits[1].constants == {}


# -- threads ---------------------------------------------------------------------------------


UNTIMED = """
from onnxprune.cli.commands import main
from onnxprune.search import strategies
strategies.check_speed = lambda *_: None  # a slower model would get other widths
main()
"""


@pytest.mark.parametrize("mode", ["channels", "weights"])
def test_another_number_of_threads_gives_the_same_plan(
    tmp_path: Path, some: dict[str, np.ndarray], mode: str
) -> None:
    """Sums in another order differ in their last bits, which decide nothing."""
    np.savez(tmp_path / "calib.npz", **{n: v[::3] for n, v in some.items()})
    weights, scores = [], []
    for threads in (1, 2):
        out, plan = tmp_path / f"{threads}.onnx", tmp_path / f"{threads}.json"
        model, samples = ROOT / "models" / "digits_mobilenet.onnx", tmp_path / "calib.npz"
        for arguments in (
            ["plan", model, "--sparsity", 0.6, "--mode", mode, "-o", plan],
            ["apply", model, plan, "-o", out, "--force"],  # slower or not
        ):
            common = ["--calib", samples, "--threads", threads, "--no-cache"]
            variables = {
                "OPENBLAS_NUM_THREADS": str(threads),
                "OMP_NUM_THREADS": str(threads),
            }
            process = python("-c", UNTIMED, *arguments, *common, **variables)
            assert process.returncode == 0, process.stderr
        proto = onnx.load(out)
        weights.append({t.name: numpy_helper.to_array(t) for t in proto.graph.initializer})
        (spec,) = proto.graph.input
        scores.append(Session(proto, threads=1).run({spec.name: some["x"]})[0])
    first, second = weights
    assert {n: v.shape for n, v in first.items()} == {n: v.shape for n, v in second.items()}
    for tensor, values in first.items():
        np.testing.assert_array_equal(values != 0, second[tensor] != 0)
    scale = np.abs(scores[0]).max()
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-3 * scale)
    assert (scores[0].argmax(axis=1) == scores[1].argmax(axis=1)).mean() > 0.99


def test_the_command_line_shows_the_warning(tmp_path: Path, some: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "calib.npz", **spoilt(some, [7], 1e6))
    out = tmp_path / "out.onnx"
    result = done("prune", LENET, "--calib", tmp_path / "calib.npz", "--sparsity", 0.5, "-o", out)
    lines = [line for line in result.stderr.splitlines() if "warning" in line]
    assert len(lines) == 1
    assert lines[0].startswith("onnxprune: warning: 1 of ")
    assert "row 7" in lines[0]
