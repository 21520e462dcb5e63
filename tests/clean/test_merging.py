"""Merging of linear layers: exact on pairs of every kind, and refused where it would not be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnx
import oracle
import pytest
from command import DIGITS, LENET, report_of, save
from hypothesis import HealthCheck, given, settings
from onnx import ModelProto, numpy_helper
from strategies import BATCH, Net
from validity import check as check_valid

from onnxprune.clean import clean_up as cleaning
from onnxprune.clean.clean_up import CleanUp, clean_up
from onnxprune.clean.merging import merge_layers
from onnxprune.model import model as graph
from onnxprune.model.folding import fold
from onnxprune.model.observe import observe
from onnxprune.model.runner import Runner

Build = Callable[[Net], tuple[str, ...]]


def merged(proto: ModelProto, **settings: Any) -> tuple[ModelProto, int]:
    """Merge, and hold the result against the model on other samples."""
    model = graph.normalise(proto)
    shapes = observe(model, oracle.feeds(proto, 2), runner=Runner(1))
    result, count = merge_layers(fold(model, shapes), shapes, **settings)
    check_valid(result.proto)
    for batch in (3, 5):
        inputs = oracle.feeds(proto, batch, seed=7)
        assert oracle.error(oracle.run(proto, inputs), oracle.run(result.proto, inputs)) <= 1e-5
    return result.proto, count


def built(body: Build) -> ModelProto:
    n = Net()
    return n.model(*body(n))


def kinds(proto: ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


# -- exact -----------------------------------------------------------------------------------------


def gemm(n: Net, x: str, c: int, out: int, *, flip: bool, bias: int, **attributes: float) -> str:
    """A Gemm with its weights either way round, and a bias of rank ``bias``, or none."""
    shape = (out, c) if flip else (c, out)
    inputs = [n.weight(*shape)]
    if bias >= 0:
        inputs.append(n.const(n.positive(*[[], [out], [1, out]][bias])))
    return n.op("Gemm", x, *inputs, transB=int(flip), **attributes)


def matmul(n: Net, x: str, c: int, out: int, bias: bool) -> str:
    x = n.dense(x, c, out)
    return n.op("Add", n.const(n.positive(out)), x) if bias else x


SETTINGS = settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@SETTINGS
@given(st.data())
def test_matrices(data: st.DataObject) -> None:
    """Gemm and MatMul with and without biases, transposed, scaled, on any rank."""
    rank = data.draw(st.integers(2, 4))
    first, second = (
        data.draw(st.sampled_from(["Gemm", "MatMul"] if rank == 2 else ["MatMul"]))
        for _ in range(2)
    )
    n = Net(seed=data.draw(st.integers(0, 99)))
    sizes = data.draw(st.tuples(*[st.integers(1, 7)] * 3))
    x = n.input(BATCH, *[3] * (rank - 2), sizes[0])
    for k, kind in enumerate((first, second)):
        if kind == "MatMul":
            x = matmul(n, x, *sizes[k : k + 2], bias=data.draw(st.booleans()))
            continue
        scales = {"alpha": data.draw(st.sampled_from([1.0, 0.5]))}
        scales["beta"] = data.draw(st.sampled_from([1.0, -2.0]))
        flip, bias = data.draw(st.booleans()), data.draw(st.integers(-1, 2))
        x = gemm(n, x, *sizes[k : k + 2], flip=flip, bias=bias, **scales)
    proto = n.model(x)
    small, count = merged(proto)
    i, m, o = sizes
    assert count == int(i * o < m * (i + o))
    assert sum(k in ("Gemm", "MatMul") for k in kinds(small)) == 2 - count


@SETTINGS
@given(st.data())
def test_convolutions(data: st.DataObject) -> None:
    """Any convolution with one of kernel 1 behind or before it, in one to three dimensions."""
    n = Net(seed=data.draw(st.integers(0, 99)))
    dims = data.draw(st.integers(1, 3))
    g = data.draw(st.sampled_from([1, 1, 2]))
    sizes = [g * data.draw(st.integers(1, 3)) for _ in range(3)]
    x = n.input(BATCH, sizes[0], *[7] * dims)
    general = {
        "group": g,
        "kernel": data.draw(st.sampled_from([1, 3])),
        "pads": data.draw(st.lists(st.integers(0, 2), min_size=2 * dims, max_size=2 * dims)),
        "strides": [data.draw(st.integers(1, 2))] * dims,
        "dilations": [data.draw(st.integers(1, 2))] * dims,
    }
    plain = {"kernel": 1, "pads": [0] * 2 * dims}
    last = data.draw(st.booleans())
    biases = data.draw(st.tuples(st.booleans(), st.booleans()))
    for k, options in enumerate((general, plain) if last else (plain, general)):
        x = n.conv(x, *sizes[k : k + 2], dims=dims, bias=biases[k], **options)  # type: ignore[arg-type]
    small, count = merged(n.model(x))
    assert kinds(small) == ["Conv"] * (2 - count)
    if not last and biases[0] and any(general["pads"]):
        assert count == 0


def narrow(n: Net, **settings: Any) -> tuple[str, ...]:
    """Two convolutions that are cheaper as one: few channels, many, few."""
    x = n.conv(n.input(BATCH, 2, 5, 5), 2, 9, 3)
    return (n.conv(x, 9, 3, **settings),)


def test_a_chain_becomes_one() -> None:
    def body(n: Net) -> tuple[str, ...]:
        x = n.conv(n.input(BATCH, 2, 5, 5), 2, 9, 3)
        return (n.conv(n.conv(x, 9, 8), 8, 3),)

    small, count = merged(built(body))
    assert (kinds(small), count) == (["Conv"], 2)


# -- refused ---------------------------------------------------------------------------------------


def padded_behind_bias(n: Net, bias: bool = True) -> tuple[str, ...]:
    x = n.conv(n.input(BATCH, 2, 5, 5), 2, 9, 1, bias=bias)
    return (n.conv(x, 9, 3, 3),)


def automatically_padded(n: Net) -> tuple[str, ...]:
    x = n.conv(n.input(BATCH, 2, 5, 5), 2, 9, 1)
    return (n.op("Conv", x, n.weight(3, 9, 3, 3), auto_pad="SAME_UPPER"),)


def output_between(n: Net) -> tuple[str, ...]:
    x = n.conv(n.input(BATCH, 2, 5, 5), 2, 9, 3)
    return x, n.conv(x, 9, 3)


def read_twice(n: Net) -> tuple[str, ...]:
    x = n.conv(n.input(BATCH, 2, 5, 5), 2, 9, 3)
    return n.conv(x, 9, 3), n.op("Relu", x)


def shared(n: Net) -> tuple[str, ...]:
    """Three products, two of which use one matrix."""
    w = n.weight(6, 6)
    x = n.op("MatMul", n.op("MatMul", n.input(BATCH, 6), w), n.weight(6, 6))
    return (n.op("MatMul", n.op("Relu", x), w),)


def dearer(n: Net) -> tuple[str, ...]:
    return (n.gemm(n.gemm(n.input(BATCH, 9), 9, 2), 2, 9),)


def dearer_as_strided(n: Net) -> tuple[str, ...]:
    """Fewer operations, as the first layer sees four times the positions, but more weights."""
    x = n.conv(n.input(BATCH, 6, 8, 8), 6, 5, 1, bias=False)
    return (n.conv(x, 5, 6, 3, pads=[0] * 4, strides=[4, 4]),)


def strided_before(n: Net) -> tuple[str, ...]:
    x = n.conv(n.input(BATCH, 2, 6, 6), 2, 9, 1, strides=[2, 2])
    return (n.conv(x, 9, 3, 3, pads=[0] * 4),)


def rectified(n: Net) -> tuple[str, ...]:
    x = n.conv(n.input(BATCH, 2, 5, 5), 2, 9, 3)
    return (n.conv(n.op("Relu", x), 9, 3),)


def flipped(n: Net) -> tuple[str, ...]:
    """transA, and a bias that differs by sample."""
    x = n.op("Gemm", n.input(5, 4), n.weight(5, 9), transA=1)
    x = n.op("Gemm", x, n.weight(9, 3))
    return (n.op("Gemm", x, n.weight(3, 3), n.const(n.positive(4, 3))),)


REFUSED = (
    automatically_padded, dearer, dearer_as_strided, flipped, output_between, padded_behind_bias,
    read_twice, rectified, shared, strided_before,
)  # fmt: skip


@pytest.mark.parametrize("body", REFUSED, ids=lambda b: b.__name__)
def test_refused(body: Build) -> None:
    proto = built(body)
    model = graph.normalise(proto)
    shapes = observe(model, oracle.feeds(proto, 2), runner=Runner(1))
    result, count = merge_layers(model, shapes)
    assert result is model
    assert count == 0


def test_what_is_refused_for_its_bias_alone_is_merged_without() -> None:
    _, count = merged(built(lambda n: padded_behind_bias(n, bias=False)))
    assert count == 1


def test_zeros_are_not_filled_in() -> None:
    """A matrix with one column times one with one row is dense."""
    proto = built(lambda n: (n.dense(n.dense(n.input(BATCH, 8), 8, 8), 8, 8),))
    assert merged(proto)[1] == 1
    first, second = proto.graph.initializer
    for tensor, mask in ((first, np.eye(8)[:1]), (second, np.eye(8)[:, :1])):
        values = numpy_helper.to_array(tensor) * mask
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    assert merged(proto)[1] == 0


def test_excluded_layers_stay() -> None:
    proto = built(narrow)
    for node in proto.graph.node:
        assert merged(proto, keep=[node.output[0]])[1] == 0
        what = clean_up(
            graph.normalise(proto), oracle.feeds(proto, 2), exclude=[node.name], runner=Runner(1)
        )[1]
        assert not what
    assert merged(proto)[1] == 1


def test_what_is_not_exact_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.clean.merging._sum", lambda a, _: a)
    proto = built(narrow)
    model = graph.normalise(proto)
    result, what = clean_up(model, oracle.feeds(proto, 2), runner=Runner(1))
    assert result is model
    assert what.dropped == ("layers",)
    assert "layers that could be one with the next were found, but" in what.warnings()[0]


# -- in a run --------------------------------------------------------------------------------------


def test_lossless_merges_and_says_so(tmp_path: Path) -> None:
    path = save(built(narrow), tmp_path / "m.onnx")
    report = report_of("prune", path, "--lossless")
    assert report["clean_up"]["merged"] == 1
    assert report["after"]["layers"] == 1
    assert report["after"]["macs"] < report["before"]["macs"]
    assert kinds(onnx.load(tmp_path / "m.pruned.onnx")) == ["Conv"]
    assert (
        CleanUp({"layers": Counter(merged=2)})
        .summary()
        .endswith("2 linear layers merged into the next")
    )
    assert cleaning.CleanUp({"layers": Counter(merged=1)})


def test_a_rectifier_that_is_always_on_no_longer_parts_layers(tmp_path: Path) -> None:
    proto = onnx.load(LENET)
    for tensor in proto.graph.initializer:
        if tensor.name == "3.bias":
            tensor.CopyFrom(numpy_helper.from_array(np.full(100, 50, np.float32), tensor.name))
    path = save(proto, tmp_path / "m.onnx")
    report = report_of("prune", path, "--lossless", "--empirical", "--calib", DIGITS)
    assert report["clean_up"]["merged"] == 1
    assert report["clean_up"]["nodes"]["Relu"] == 1
    assert report["after"]["layers"] == 2
