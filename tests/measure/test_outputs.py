"""Outputs: strings, sequences, maps and optional values, and which of them holds class scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from command import done, refused, report_of, save, tiny_samples
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.measure.class_scores import class_count, class_scores
from onnxprune.model import model as graph
from onnxprune.model.edit import edit, rebuild
from onnxprune.model.model import Model
from onnxprune.model.values import difference, is_finite

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
CLASSES = ["cat", "dog", "eel"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Dense:
    """``x [N, 6]`` through three layers to ``scores [N, classes]``, and whatever is put behind."""

    def __init__(self, classes: int = 3, batch: int | str = "N") -> None:
        rng = np.random.default_rng(0)
        self.batch = batch
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        for name, shape in (("w1", (6, 12)), ("w2", (12, 12)), ("w3", (12, classes))):
            self.constant(name, (0.5 * rng.standard_normal(shape)).astype(np.float32))
        for k, source in ((1, "x"), (2, "act1")):
            bias = self.constant(f"b{k}", (0.1 * rng.standard_normal(12)).astype(np.float32))
            self.op("Gemm", [source, f"w{k}", bias], [f"hidden{k}"])
            self.op("Relu", [f"hidden{k}"], [f"act{k}"])
        self.op("MatMul", ["act2", "w3"], ["scores"])

    def constant(self, name: str, values: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def op(self, kind: str, inputs: list[str], outputs: list[str], **how: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, outputs, f"/{outputs[0]}", **how))
        return outputs[0]

    def gives(self, name: str, kind: int = FLOAT, shape: Any = None) -> Dense:
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))
        return self

    def returns(self, name: str, kind: onnx.TypeProto) -> Dense:
        self.outputs.append(helper.make_value_info(name, kind))
        return self

    def model(self) -> ModelProto:
        x = helper.make_tensor_value_info("x", FLOAT, [self.batch, 6])
        made = helper.make_graph(self.nodes, "dense", [x], self.outputs, self.constants)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
        return helper.make_model(made, opset_imports=opsets, ir_version=8)


def tensor(kind: int = FLOAT, shape: Any = None) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(kind, shape)


def names() -> Dense:
    """The predicted class by name, and in front of it the probabilities."""
    net = Dense()
    net.op("Softmax", ["scores"], ["probabilities"])
    net.op("ArgMax", ["probabilities"], ["best"], axis=1, keepdims=0)
    net.op("Gather", [net.constant("names", np.array(CLASSES, object)), "best"], ["label"])
    return net.gives("label", STRING, ["N"]).gives("probabilities", FLOAT, ["N", 3])


def maps(**labels: Any) -> Dense:
    """A list of maps from class to probability, as scikit-learn's exporter gives it."""
    net = Dense()
    net.op("Softmax", ["scores"], ["probabilities"])
    net.op("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0)
    labels = labels or {"classlabels_strings": CLASSES}
    net.op("ZipMap", ["probabilities"], ["maps"], domain="ai.onnx.ml", **labels)
    kind = STRING if "classlabels_strings" in labels else INT64
    each = helper.make_map_type_proto(kind, tensor())
    return net.gives("label", INT64, ["N"]).returns("maps", helper.make_sequence_type_proto(each))


def sequence() -> Dense:
    """The scores, and the hidden layer in pieces."""
    net = Dense()
    net.op("SplitToSequence", ["scores"], ["pieces"], axis=1)
    net.returns("pieces", helper.make_sequence_type_proto(tensor(FLOAT, ["N", 1])))
    return net.gives("scores", FLOAT, ["N", 3])


def optional() -> Dense:
    net = Dense()
    net.op("Relu", ["scores"], ["positive"])
    net.op("Optional", ["positive"], ["maybe"])
    net.gives("scores", FLOAT, ["N", 3])
    return net.returns("maybe", helper.make_optional_type_proto(tensor(FLOAT, ["N", 3])))


MODELS = {
    "strings": names,
    "maps by name": maps,
    "maps by number": lambda: maps(classlabels_int64s=[0, 1, 2]),
    "maps by number, unsorted": lambda: maps(classlabels_int64s=[2, 0, 1]),
    "sequence": sequence,
    "optional": optional,
}


def samples(target: Path, net: Dense, count: int = 90) -> Path:
    """Draw samples; their labels are what the model says."""
    x = np.random.default_rng(1).standard_normal((count, 6)).astype(np.float32)
    only = Dense(net.constants[2].dims[1]).gives("scores", FLOAT, ["N", net.constants[2].dims[1]])
    scores = ort.InferenceSession(only.model().SerializeToString()).run(None, {"x": x})[0]
    y = scores.argmax(axis=1) if scores.shape[1] > 1 else (scores[:, 0] > 0).astype(np.int64)
    np.savez(target, x=x, y=y)
    return target


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("strings", mode) for mode in ("channels", "weights", "auto", "depth")),
        *(("maps by number, unsorted", mode) for mode in ("channels", "depth")),
        *((name, "channels") for name in ("maps by name", "sequence", "optional")),
    ],
)
def test_outputs_of_any_kind_pass_through(name: str, mode: str) -> None:
    build = MODELS[name]
    model, data = save(build().model(), Path("m.onnx")), samples(Path("d.npz"), build())
    args = ["--calib", data, "--sparsity", 0.5, "--mode", mode, "-o", "out.onnx"]
    args += ["--recover", "full"] if mode == "depth" else []
    report = report_of("prune", model, *args)
    assert report["before"]["accuracy"] == 1.0
    assert report["verification"]["max_rel_error"] < 1e-4
    before, after = (onnx.load(p) for p in (model, "out.onnx"))
    assert list(before.graph.output) == list(after.graph.output)
    session = ort.InferenceSession("out.onnx")
    assert len(session.run(None, {"x": np.zeros((5, 6), np.float32)})) == 2


@pytest.mark.parametrize(
    "build", [MODELS[n] for n in ("strings", "maps by name", "sequence", "optional")]
)
def test_the_other_verbs_take_outputs_of_any_kind(build: Any) -> None:
    model, data = save(build().model(), Path("m.onnx")), samples(Path("d.npz"), build())
    assert "accuracy 100.00" in done("evaluate", model, "--calib", data).stdout
    done("inspect", model, "--calib", data)
    report = report_of("prune", model, "--lossless", "-o", "out.onnx")
    assert report["verification"]["max_rel_error"] == 0
    done("prune", model, "--random-inputs", "--sparsity", 0.5, "-o", "random.onnx")


def test_bench_takes_outputs_of_any_kind() -> None:
    save(maps().model(), Path("m.onnx"))
    done("bench", "m.onnx", "--rounds", 1, "--no-int8")


def test_nothing_but_data_on_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    model = graph.Model(maps().model())
    rebuild(edit(model), model)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("expected", "got", "same"),
    [
        (np.array(["a", "b"], object), np.array(["a", "b"], object), True),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), False),
        (np.array(["a"], object), np.array(["a", "a"], object), False),
        ([np.ones(3), np.ones(2)], [np.ones(3), np.ones(2) + 1e-6], True),
        ([np.ones(3), np.ones(2)], [np.ones(3)], False),
        ([np.ones(3)], np.ones(3), False),
        ([{"a": 0.2, "b": 0.8}], [{"a": 0.2, "b": 0.8 + 1e-7}], True),
        ([{"a": 0.2, "b": 0.8}], [{"a": 0.2, "c": 0.8}], False),
        ([{"a": 0.2, "b": 0.8}], [{"a": 0.8, "b": 0.2}], False),
        ([{1: "a"}], [{1: "b"}], False),
        (None, None, True),
        (None, np.ones(1), False),
        ([], [], True),
        ([np.ones(2)], [np.array([1.0, np.nan])], False),
    ],
)
def test_difference_of_values(expected: Any, got: Any, same: bool) -> None:
    error, scale = difference(expected, got)
    assert (error <= 1e-5 * max(scale, 1e-30)) == same


def test_finite_values() -> None:
    assert is_finite([{"a": 1.0}, np.array(["nan"], object), None])
    assert not is_finite([{"a": float("nan")}])


def test_a_wrong_string_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.run import execute

    rewrite = execute.rewrite

    def spoilt(*args: Any) -> Model:
        proto = rewrite(*args).proto
        table = next(t for t in proto.graph.initializer if t.name == "names")
        table.CopyFrom(numpy_helper.from_array(np.array(["cat", "dog", "EEL"], object), "names"))
        return Model(proto)

    monkeypatch.setattr("onnxprune.run.execute.rewrite", spoilt)
    model, data = save(names().model(), Path("m.onnx")), samples(Path("d.npz"), names())
    args = ["prune", model, "--calib", data, "--sparsity", 0.5, "--mode", "channels"]
    assert "differs" in refused(*args, prefix="onnxprune: internal error: ")


# -- class scores ----------------------------------------------------------------------------


def test_class_scores_are_found_beside_labels() -> None:
    assert class_scores(Model(names().model())).name == "probabilities"
    found = class_scores(Model(maps(classlabels_int64s=[2, 0, 1]).model()))
    assert (found.name, found.tensor, found.keys) == ("maps", "probabilities", (2, 0, 1))
    assert class_scores(Model(names().model()), "label").name == "label"
    with pytest.raises(ModelError, match="no output 'logits'; it has label, probabilities"):
        class_scores(Model(names().model()), "logits")


def test_maps_are_read_in_the_order_of_the_classes() -> None:
    model = maps(classlabels_int64s=[2, 0, 1]).model()
    extended = maps(classlabels_int64s=[2, 0, 1]).gives("probabilities", FLOAT, ["N", 3]).model()
    x = np.random.default_rng(0).standard_normal((7, 6)).astype(np.float32)
    _, rows, expected = ort.InferenceSession(extended.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(class_scores(Model(model)).read(rows, 7), expected)


@pytest.mark.parametrize(
    ("shape", "rows", "count"),
    [
        ((5,), 5, 1),
        ((5, 1), 5, 1),
        ((5, 3), 5, 3),
        ((5, 1, 3), 5, 3),
        ((5, 3, 1), 5, 3),
        ((5, 3, 1, 1), 5, 3),
        ((5, 1, 1, 3), 5, 3),
        ((1, 3), 1, 3),
        ((3,), 1, 3),
        ((), 1, 1),
        ((1,), 1, 1),
        ((5, 3, 2), 5, None),
        ((3, 5), 5, None),
        ((1, 3), 5, None),
        ((), 5, None),
        ((5, 0), 5, None),
    ],
)
def test_shapes_of_class_scores(shape: tuple[int, ...], rows: int, count: int | None) -> None:
    assert class_count(shape, rows) == count


def single(end: str, shape: tuple[Any, ...] = ("N", 1)) -> Dense:
    """A model with one score per sample."""
    net = Dense(classes=1)
    name = "scores"
    if end == "Sigmoid":
        name = net.op("Sigmoid", ["scores"], ["p"])
    elif end == "turned":
        name = net.op("Sub", [net.constant("one", np.float32(1)), net.op(
            "Sigmoid", [net.op("Neg", ["scores"], ["negative"])], ["q"])], ["p"])  # fmt: skip
    elif end == "clipped":
        half = net.op("Add", ["scores", net.constant("half", np.float32(0.5))], ["shifted"])
        bounds = [net.constant("low", np.float32(0)), net.constant("high", np.float32(1))]
        name = net.op("Clip", [half, *bounds], ["p"])
    if shape != ("N", 1):
        to = net.constant("to", np.array([-1 if n == "N" else n for n in shape], np.int64))
        name = net.op("Reshape", [name, to], ["shaped"])
    return net.gives(name, FLOAT, shape)


@pytest.mark.parametrize(
    ("end", "mode"),
    [
        *(("logit", mode) for mode in ("channels", "weights", "auto", "depth")),
        *(("Sigmoid", mode) for mode in ("auto", "depth")),
        *((end, "channels") for end in ("turned", "clipped")),
    ],
)
def test_one_score_tells_two_classes_apart(end: str, mode: str) -> None:
    model, data = save(single(end).model(), Path("m.onnx")), samples(Path("d.npz"), single(end))
    assert class_scores(Model(onnx.load(model))).probable == (end != "logit")
    args = ["--calib", data, "--sparsity", 0.5, "--mode", mode, "-o", "out.onnx"]
    args += ["--recover", "full"] if mode == "depth" else []
    report = report_of("prune", model, *args, "--max-drop", 0.5)
    assert report["before"]["accuracy"] == 1.0
    assert report["after"]["accuracy"] > 0.6
    assert not any("model's output" in w for w in report["warnings"])


@pytest.mark.parametrize("shape", [("N",), ("N", 1, 1), ("N", 1, 1, 1)])
@pytest.mark.parametrize("end", ["Sigmoid", "logit"])
def test_one_score_of_any_shape(end: str, shape: tuple[Any, ...]) -> None:
    net = single(end, shape)
    model, data = save(net.model(), Path("m.onnx")), samples(Path("d.npz"), net)
    assert "accuracy 100.00" in done("evaluate", model, "--calib", data).stdout
    done("prune", model, "--calib", data, "--sparsity", 0.5)


@pytest.mark.parametrize(
    ("batch", "shape"),
    [
        ("N", ("N", 1, 3)),
        ("N", ("N", 3, 1, 1)),
        (1, (1, 3)),
        (1, (3,)),
        (1, (1, 3, 1)),
        (4, (4, 3)),
    ],
)
def test_class_scores_of_any_shape(batch: int | str, shape: tuple[Any, ...]) -> None:
    net = Dense(batch=batch)
    to = net.constant("to", np.array([-1 if n == "N" else n for n in shape], np.int64))
    net.op("Reshape", ["scores", to], ["shaped"])
    net.gives("shaped", FLOAT, shape)
    model, data = save(net.model(), Path("m.onnx")), samples(Path("d.npz"), net, 62)
    assert "accuracy 100.00" in done("evaluate", model, "--calib", data).stdout
    report = report_of("prune", model, "--calib", data, "--sparsity", 0.5, "-o", "o.onnx")
    assert report["before"]["accuracy"] == 1.0
    assert not any("model's output" in w for w in report["warnings"])


def test_loss_of_one_score_is_binary_cross_entropy() -> None:
    from onnxprune.verbs.evaluate import evaluate

    found = []
    for end in ("Sigmoid", "logit"):
        model = save(single(end).model(), Path(f"{end}.onnx"))
        found.append(evaluate(model, samples(Path("d.npz"), single(end))))
    with np.load("d.npz") as data:
        z = ort.InferenceSession("logit.onnx").run(None, {"x": data["x"]})[0][:, 0]
        loss = float(np.logaddexp(0, np.where(data["y"] == 1, -z, z)).mean())
    assert found[0].loss == pytest.approx(loss, abs=1e-6)
    assert found[1].loss == pytest.approx(loss, abs=1e-6)
    np.testing.assert_allclose(found[0].margins, found[1].margins, rtol=1e-3, atol=1e-5)


def test_a_single_output_is_refitted_to_labels() -> None:
    from scipy.special import expit

    from onnxprune.recover.classifier import refit_classifier

    rng = np.random.default_rng(0)
    features, true = rng.standard_normal((400, 3)), np.array([[2.0, -1.0, 0.5]])
    labels = (rng.random(400) < expit(features @ true[0] + 0.3)).astype(np.int64)
    fitted = refit_classifier(features, labels, np.zeros((1, 3)), np.zeros(1))
    assert fitted is not None
    weights, bias, _ = fitted
    assert weights.shape == (1, 3)
    assert bias.shape == (1,)
    np.testing.assert_allclose(weights / weights[0, 0], true / 2, atol=0.2)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([-1, 1], "label -1 in row 0, expected class numbers from 0 to 999999; turn -1 and 1 into"),
        ([0, 2], "label 2 is outside the model's classes: output 'scores' has 2"),
        ([0.0, np.nan], "'y' has NaN"),
        ([0.2, 1], "label 0.2"),
    ],
)
def test_labels_of_one_score(labels: list[float], reason: str) -> None:
    model = save(single("logit").model(), Path("m.onnx"))
    x = np.random.default_rng(1).standard_normal((60, 6)).astype(np.float32)
    tiny_samples(Path("d.npz"), x=x, y=np.resize(labels, 60))
    assert reason in refused("prune", model, "--calib", "d.npz", "--sparsity", 0.5)
    assert "'y'" in refused("evaluate", model, "--calib", "d.npz") or "outside" in reason


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("kind", [bool, np.float32, np.uint8])
def test_labels_of_any_whole_type(kind: Any, rank: int) -> None:
    model, data = save(single("logit").model(), Path("m.onnx")), samples(Path("d.npz"), single(""))
    with np.load(data) as arrays:
        np.savez(
            "other.npz", x=arrays["x"], y=arrays["y"].astype(kind).reshape(-1, *[1] * (rank - 1))
        )
    assert "accuracy 100.00" in done("evaluate", model, "--calib", "other.npz").stdout


@pytest.mark.parametrize("how", ["integers", "map", "several axes"])
def test_no_class_scores(how: str) -> None:
    net = Dense()
    if how == "integers":
        net.op("ArgMax", ["scores"], ["label"], axis=1, keepdims=0)
        net.gives("label", INT64, ["N"])
    elif how == "map":
        net.op("SplitToSequence", ["scores"], ["pieces"], axis=1)
        net.returns("pieces", helper.make_sequence_type_proto(tensor()))
    else:
        net.op("Concat", ["scores", "scores"], ["twice"], axis=1)
        net.op("Reshape", ["twice", net.constant("to", np.array([-1, 2, 3]))], ["boxes"])
        net.gives("boxes", FLOAT, ["N", 2, 3])
    model, data = save(net.model(), Path("m.onnx")), samples(Path("d.npz"), Dense())
    for verb in (["prune", "--sparsity", 0.5], ["evaluate"]):
        line = refused(verb[0], model, "--calib", data, *verb[1:])
        assert "expected float class scores" in line
        assert "--output" in line
        assert "--random-inputs" in line
    done("prune", model, "--random-inputs", "--sparsity", 0.5)
