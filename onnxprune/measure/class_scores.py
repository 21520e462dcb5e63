"""Class scores: which output of a model holds them, and what its values say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from onnxprune.arrays import F64, Array
from onnxprune.errors import ModelError
from onnxprune.model.model import Model, TensorSpec
from onnxprune.model.shapes import Shapes
from onnxprune.model.values import Value

_PROBABILITIES = frozenset(
    {"Sigmoid", "HardSigmoid", "Softmax", "QLinearSigmoid", "QLinearSoftmax"}
)

_JOINING = frozenset({"Concat", "Max", "Min", "Mean", "Mul"})
"""Operators whose results are within [0, 1] if all their operands are."""

_CARRYING = frozenset(
    {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Slice",
     "Gather", "Dropout", "Split", "GlobalAveragePool", "ReduceMean", "ReduceMax", "ReduceMin",
     "QuantizeLinear", "DequantizeLinear"}
)  # fmt: skip
"""Those whose results are if their first operand is."""

EXPECTED = (
    "expected float class scores [samples, classes], or one probability or log odds per sample; "
    "pick them with --output NAME, or prune without labels: --random-inputs"
)


@dataclass(frozen=True)
class ClassScores:
    """The output with the class scores.

    Attributes:
        name: of the output.
        tensor: the tensor that holds them: the output, or what a ZipMap makes its maps of.
        keys: of these maps, in the order of the classes; empty for a tensor.
        probable: whether all values are within [0, 1]. A single one per sample is then the
            probability of class 1, and else its log odds.
        suited: whether its type can hold scores at all.
    """

    name: str
    tensor: str
    keys: tuple[int | str, ...] = ()
    probable: bool = False
    suited: bool = True

    def count(self, shapes: Shapes) -> int:
        """Return the number of classes that was observed, at least 2; 0 for no class scores."""
        shape = shapes.first.get(self.tensor)
        known = class_count(shape, shapes.batch) if shape is not None and self.suited else None
        return max(known, 2) if known else 0

    def read(self, output: Value, samples: int) -> F64:
        """Return the scores of ``samples`` as ``float64 [samples, classes]``.

        Args:
            output: the output, as the model returned it.
            samples: number of samples.

        Raises:
            ModelError: if there is not one score per class, nor a single one.
        """
        raw = output
        if self.keys and isinstance(output, list):
            raw = np.array([[row[key] for key in self.keys] for row in output], np.float64)
        if not isinstance(raw, np.ndarray):
            raise ModelError(f"output '{self.name}' is a {type(raw).__name__}, {EXPECTED}")
        if class_count(raw.shape, samples) is None or not np.issubdtype(raw.dtype, np.floating):
            raise ModelError(
                f"output '{self.name}' is {raw.dtype} {list(raw.shape)} for {samples} samples, "
                f"{EXPECTED}"
            )
        return self.columns(raw, samples).astype(np.float64)

    def columns(self, values: Array, samples: int) -> Array:
        """Return values of the tensor as ``[samples, classes]``; others are left as they are.

        A single score becomes those of two classes: the probabilities, or log odds and zero.
        """
        count = class_count(values.shape, samples)
        if count is None:
            return values
        flat = values.reshape(samples, count)
        if count > 1:
            return flat
        return np.concatenate([1 - flat if self.probable else np.zeros_like(flat), flat], axis=1)


def class_count(shape: Sequence[int], samples: int) -> int | None:
    """Return how many scores a tensor holds for each sample; None if they are no class scores.

    All axes but that of the samples, and one for the classes, have to have size 1. Where there
    is only one sample, its axis may be missing.
    """
    if len(shape) and shape[0] == samples:
        rest = shape[1:]
    elif samples == 1:
        rest = shape
    else:
        return None
    count = math.prod(rest)
    return count if count and count == max(rest, default=1) else None


def class_scores(model: Model, output: str = "") -> ClassScores:
    """Find the output with the class scores.

    Args:
        model: the model.
        output: its name; empty for the first output whose type and declared shape can hold
            scores, so that predicted labels and feature maps are passed over.

    Raises:
        ModelError: if there is no output of that name.
    """
    specs = {spec.name: spec for spec in model.outputs}
    if output and output not in specs:
        raise ModelError(f"the model has no output '{output}'; it has {', '.join(specs)}")
    makers = {name: node for node in model.proto.graph.node for name in node.output if name}
    suited = [n for n, s in specs.items() if _is_zipped(makers.get(n)) or _may_hold(s)]
    floats = {n for n, s in specs.items() if np.issubdtype(s.dtype, np.floating)}
    name = output or next(iter([*suited, *(n for n in specs if n in floats), *specs]))
    zipped = makers.get(name)
    if zipped is not None and _is_zipped(zipped):
        attributes = {a.name: helper.get_attribute_value(a) for a in zipped.attribute}
        keys = attributes.get("classlabels_int64s") or [
            key.decode() for key in attributes.get("classlabels_strings", [])
        ]
        return ClassScores(name, zipped.input[0], tuple(keys), probable=True)
    constants = {t.name: t for t in model.proto.graph.initializer}
    probable = _is_probability(name, makers, constants)
    return ClassScores(name, name, probable=probable, suited=name in floats)


def log_probabilities(scores: Array, temperature: float = 1.0) -> F64:
    """Return the logarithms of the class probabilities of each sample, in nats; they sum to 1.

    Args:
        scores: ``[samples, classes]``, log odds, or probabilities: these are told by rows that
            are not negative and sum to 1. Without an axis of samples, it is one sample.
        temperature: what log odds, or the logarithms of probabilities, are divided by.

    Returns:
        ``float64 [samples, classes]``.
    """
    from scipy.special import log_softmax

    values = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if (values >= 0).all() and np.allclose(values.sum(axis=1), 1.0, atol=1e-3):
        values = np.log(np.maximum(values, 1e-12))
    return np.asarray(log_softmax(values / temperature, axis=1))


def _is_zipped(node: onnx.NodeProto | None) -> bool:
    return node is not None and node.op_type == "ZipMap"


def _may_hold(spec: TensorSpec) -> bool:
    """Whether an output may hold class scores, as far as its declaration tells."""
    return np.issubdtype(spec.dtype, np.floating) and sum(n != 1 for n in spec.shape[1:]) <= 1


def _is_probability(
    name: str, makers: Mapping[str, onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]
) -> bool:
    """Whether all values of a tensor are within [0, 1], whatever the model is fed."""
    seen: set[str] = set()
    stack = [name]
    while stack:
        tensor = stack.pop()
        if tensor in seen:
            continue
        seen.add(tensor)
        node = makers.get(tensor)
        if node is None:
            if not _within_one(constants.get(tensor)):
                return False
        elif node.op_type == "Sub" and _is_one(constants.get(node.input[0])):
            stack.append(node.input[1])
        elif node.op_type in _CARRYING:
            stack.append(node.input[0])
        elif node.op_type in _JOINING:
            stack += node.input
        elif node.op_type not in _PROBABILITIES and not _clips(node, constants):
            return False
    return True


def _clips(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether a node is a Clip to a range within [0, 1]."""
    if node.op_type != "Clip":
        return False
    attributes = {a.name: a.f for a in node.attribute}
    low, high = (
        _number(constants.get(node.input[k])) if len(node.input) > k else attributes.get(name)
        for k, name in ((1, "min"), (2, "max"))
    )
    return low is not None and high is not None and 0 <= low <= high <= 1


def _number(tensor: onnx.TensorProto | None) -> float | None:
    values = None if tensor is None else onnx.numpy_helper.to_array(tensor)
    return float(values.reshape(-1)[0]) if values is not None and values.size == 1 else None


def _is_one(tensor: onnx.TensorProto | None) -> bool:
    return tensor is not None and bool((onnx.numpy_helper.to_array(tensor) == 1).all())


def _within_one(tensor: onnx.TensorProto | None) -> bool:
    if tensor is None:
        return False
    values = onnx.numpy_helper.to_array(tensor)
    return bool(((values >= 0) & (values <= 1)).all()) if values.dtype.kind == "f" else False
