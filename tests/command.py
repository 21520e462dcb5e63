"""The command line as tests call it, and small models and samples for it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from click.testing import CliRunner, Result
from onnx import ModelProto, TensorProto, helper, numpy_helper
from PIL import Image

from onnxprune.cli import commands as cli
from onnxprune.plans import choices

ROOT = Path(__file__).parents[1]


MODELS = sorted((ROOT / "models").glob("*.onnx"))


LENET = ROOT / "models" / "digits_lenet300.onnx"


DIGITS = ROOT / "calibration" / "digits"


DIGITS_TEST = ROOT / "calibration" / "digits-test"


FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}


ANY_MODEL = tuple(mode for mode in choices.MODES if mode != "depth")


"""Modes that reach any sparsity of any model; whole parts are there or not."""


Arrays = Mapping[str, np.ndarray[Any, Any]]


def run(*args: object) -> Result:
    """Run the command line in this process; what it does not handle is raised.

    Unless a test asks for another recovery it is the short one: the long one has tests of its
    own.
    """
    if "--sparsity" in args and "--recover" not in args and "--random-inputs" not in args:
        args = (*args, "--recover", "bias")
    return CliRunner().invoke(cli.main, [str(a) for a in args], catch_exceptions=False)


def done(*args: object) -> Result:
    """Run a command that must succeed."""
    result = run(*args)
    assert result.exit_code == 0, result.stderr
    return result


def python(*args: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run Python in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, args)],
        capture_output=True,
        check=False,
        timeout=60,
        env=os.environ | environment,
    )


def digits(target: Path, per_class: int = 12, source: Path = DIGITS) -> Path:
    """Make a folder with the first few images of each digit."""
    for folder in sorted(source.iterdir()):
        (target / folder.name).mkdir(parents=True)
        for image in sorted(folder.iterdir())[:per_class]:
            (target / folder.name / image.name).symlink_to(image)
    return target


def tree(root: Path) -> dict[str, str]:
    """Return what lies below a folder: the hash of every file, the target of every link."""
    entries = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            value = f"-> {path.readlink()}"
        else:
            value = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "other"
        entries[str(path.relative_to(root))] = value
    return entries


@dataclass
class Tiny:
    """A model of nodes and constants that takes ``x [batch, *shape]`` and gives ``logits``."""

    shape: Sequence[int | str] = (2, 3, 3)
    batch: int | str = "N"
    classes: int = 3

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self.inputs: dict[str, Sequence[int | str]] = {"x": self.shape}
        self.outputs: dict[str, Sequence[int | str]] = {"logits": (self.classes,)}

    def const(self, name: str, *shape: int) -> str:
        values = 0.3 * self.rng.standard_normal(shape)
        self.constants.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def op(self, kind: str, inputs: str, output: str, **attributes: Any) -> str:
        node = helper.make_node(kind, inputs.split(), [output], f"/{output}", **attributes)
        self.nodes.append(node)
        return output

    def conv(self, source: str, output: str, channels: int, width: int) -> str:
        weight = self.const(f"{output}.w", width, channels, 3, 3)
        bias = self.const(f"{output}.b", width)
        return self.op("Conv", f"{source} {weight} {bias}", output, pads=[1, 1, 1, 1])

    def model(self) -> ModelProto:
        def values(of: Mapping[str, Sequence[int | str]]) -> list[onnx.ValueInfoProto]:
            return [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, [self.batch, *shape])
                for name, shape in of.items()
            ]

        graph = helper.make_graph(
            self.nodes, "tiny", values(self.inputs), values(self.outputs), self.constants
        )
        opset = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def tiny_net(
    batch: int | str = "N",
    channels: int | str = 2,
    width: int = 8,
    size: int = 3,
    between: str = "Relu",
) -> Tiny:
    """Build conv1 -> ``between`` -> conv2 -> Relu -> Gemm."""
    net = Tiny((channels, size, size), batch)
    net.conv("x", "conv1", channels if isinstance(channels, int) else 2, width)
    net.op(between, "conv1", "act1")
    net.conv("act1", "conv2", width, width)
    net.op("Relu", "conv2", "act2")
    net.op("Flatten", "act2", "flat")
    flat = size * size * width
    net.op("Gemm", f"flat {net.const('fc.w', flat, 3)} {net.const('fc.b', 3)}", "logits")
    return net


def save(model: ModelProto | Tiny, path: Path, **options: Any) -> Path:
    """Write a model."""
    onnx.save(model.model() if isinstance(model, Tiny) else model, path, **options)
    return path


def tiny_arrays(rows: int = 60, shape: Sequence[int] = (2, 3, 3), classes: int = 3) -> Arrays:
    """Draw samples that differ between classes."""
    y = np.arange(rows) % classes
    noise = np.random.default_rng(1).standard_normal((rows, *shape))
    x = (noise + y.reshape(-1, *[1] * len(shape))).astype(np.float32)
    return {"x": x, "y": y}


def tiny_samples(path: Path, rows: int = 60, **replaced: Any) -> Path:
    """Write an npz of samples for :func:`tiny_net`, some arrays replaced."""
    np.savez(path, **{**tiny_arrays(rows), **replaced})
    return path


class Counted:
    """A model file and what one can count in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.proto = onnx.load(path)
        graph = self.proto.graph
        constants = list(graph.initializer)
        for node in graph.node:
            if node.op_type == "Constant":
                tensor = helper.get_node_attr_value(node, "value")
                tensor.name = node.output[0]
                constants.append(tensor)
        self.values = {t.name: numpy_helper.to_array(t) for t in constants}
        self.params = sum(int(np.prod(t.dims)) for t in constants if t.data_type in FLOATS)
        operands = {"Conv": [1], "ConvTranspose": [1], "Gemm": [0, 1], "MatMul": [0, 1]}
        names = {
            node.input[k]
            for node in graph.node
            for k in operands.get(node.op_type, [])
            if node.input[k] in self.values
        }
        self.weights = sum(self.values[n].size for n in names)
        self.nonzero = sum(int((self.values[n] != 0).sum()) for n in names)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of Conv and Gemm layers for one sample."""
        inferred = onnx.shape_inference.infer_shapes(self.proto, data_prop=True).graph
        shapes = {
            v.name: [d.dim_value for d in v.type.tensor_type.shape.dim][1:]
            for v in [*inferred.value_info, *inferred.output]
        }
        total = 0
        for node in inferred.node:
            if node.op_type == "Conv":
                positions = int(np.prod(shapes[node.output[0]][1:]))
                assert positions
                total += positions * self.values[node.input[1]].size
            elif node.op_type == "Gemm":
                total += self.values[node.input[1]].size
            else:
                assert node.op_type != "MatMul"
        return total

    def of_node(self, name: str) -> dict[str, Any]:
        """Return the constants that a node reads."""
        node = next(n for n in self.proto.graph.node if n.name == name)
        return {n: self.values[n] for n in node.input if n in self.values}

    def scores(self, feeds: Arrays, output: str | None = None) -> Any:
        """Run the file."""
        session = ort.InferenceSession(self.path, providers=["CPUExecutionProvider"])
        names = [output] if output else None
        return session.run(names, dict(feeds))[0]


def read_digits(folder: Path) -> Arrays:
    """Read a folder of digits as documented: pixels / 255, class folders in numeric order."""
    files = [(int(f.parent.name), f) for f in sorted(folder.glob("*/*.png"))]
    pixels = np.stack([np.asarray(Image.open(file)) for _, file in files])[:, None]
    return {"x": pixels / np.float32(255), "y": np.array([label for label, _ in files])}


def top1(model: Counted, arrays: Arrays, output: str | None = None) -> float:
    """Measure accuracy."""
    name = model.proto.graph.input[0].name
    scores = model.scores({name: arrays["x"]}, output)
    return float((scores.argmax(axis=1) == arrays["y"]).mean())


METADATA = {"planted.key": "planted value", "unicode": "ü → ∞"}


DOC = "planted doc string"


@dataclass
class Pruned:
    """One run of ``onnxprune MODEL``, and the same with ``prune``."""

    mode: str
    before: Counted
    after: Counted
    report: dict[str, Any]
    same: bytes
    inputs_before: dict[str, str]
    inputs_after: dict[str, str]


def refused(*args: object, prefix: str = "onnxprune: error: ") -> str:
    """Run a command that must fail with one line and change nothing here; return the line."""
    before = tree(Path.cwd())
    result = run(*args)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith(prefix)
    assert "Traceback" not in lines[0]
    assert tree(Path.cwd()) == before
    return lines[0].removeprefix(prefix)


def report_of(*args: object) -> dict[str, Any]:
    """Run a command with ``--json`` and read what it prints."""
    result: dict[str, Any] = json.loads(done(*args, "--json").stdout)
    return result
