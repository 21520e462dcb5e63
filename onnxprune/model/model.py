"""Models as values: load, check, normalise, and look things up in them.

A :class:`Model` is never changed; :func:`~onnxprune.model.edit.edit` hands out an
onnx-graphsurgeon copy and :func:`~onnxprune.model.edit.rebuild` turns it back into a Model, with
everything graphsurgeon drops put back.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import helper

from onnxprune.errors import ModelError
from onnxprune.model import storage
from onnxprune.model.constants import densified, shadows, to_initializers
from onnxprune.model.external import load_external
from onnxprune.model.nodes import captured
from onnxprune.model.zero_states import without_zero_states

MOST_FILE_BYTES = 2**31
"""What protobuf can hold, and so the file of a model."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and declared shape of a model input or output.

    ``shape`` holds ints, and names (possibly empty) for dynamic sizes. ``kind`` of an output may
    also be ``sequence``, ``map`` or ``optional``; such a one has no shape and objects for elements.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]
    kind: str = "tensor"


@dataclass(frozen=True)
class Model:
    """An ONNX model, and the hash and size in bytes of the file it came from.

    The size includes external data; it is 0 for a model that was not read from a file.
    ``files`` are that file and its external data.
    """

    proto: onnx.ModelProto
    sha256: str = ""
    file_bytes: int = 0
    files: tuple[Path, ...] = ()

    @property
    def inputs(self) -> list[TensorSpec]:
        """The inputs that a caller has to feed (initializers are not among them)."""
        return [_spec(v) for v in self.proto.graph.input if v.name not in self.constants]

    @property
    def outputs(self) -> list[TensorSpec]:
        """The declared outputs."""
        return [_output_spec(v) for v in self.proto.graph.output]

    @cached_property
    def constants(self) -> dict[str, onnx.TensorProto]:
        """The initializers by name."""
        return {t.name: t for t in self.proto.graph.initializer}

    @cached_property
    def producers(self) -> dict[str, int]:
        """The number of the node that computes each tensor; what no node computes is missing."""
        return {o: k for k, n in enumerate(self.proto.graph.node) for o in n.output if o}

    @cached_property
    def types(self) -> dict[str, onnx.TypeProto]:
        """The type of every tensor that shape inference knows, inputs and outputs included."""
        graph = onnx.shape_inference.infer_shapes(storage.outline(self.proto)).graph
        return {v.name: v.type for v in [*graph.value_info, *graph.input, *graph.output]}

    def maker(self, tensor: str) -> onnx.NodeProto | None:
        """Return the node that computes a tensor; None for inputs and constants."""
        number = self.producers.get(tensor)
        return None if number is None else self.proto.graph.node[number]

    @property
    def fixed_batch(self) -> int | None:
        """Samples per run if every input fixes the size of its axis 0, else None."""
        sizes = {spec.shape[0] for spec in self.inputs if spec.shape}
        size = sizes.pop() if len(sizes) == 1 else None
        return size if isinstance(size, int) else None

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return max((o.version for o in self.proto.opset_import if not o.domain), default=1)


def _output_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = str(value.type.WhichOneof("value")).removesuffix("_type")
    if kind in ("sequence", "map", "optional"):
        return TensorSpec(value.name, np.dtype(object), (), kind)
    return _spec(value)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.elem_type:
        raise ModelError(
            f"'{value.name}' is not a tensor: inputs have to be tensors, outputs tensors, "
            "sequences, maps or optional ones; export the model without it"
        )
    # A negative size means a dynamic one to some exporters, and to onnxruntime.
    dims: list[int | str] = [
        d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else d.dim_param
        for d in tensor.shape.dim
    ]
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return TensorSpec(value.name, dtype, tuple(dims))


def load(path: str | Path) -> Model:
    """Read, check and normalise a model file.

    Local functions are inlined, ``Constant`` nodes and sparse initializers become dense ones;
    nothing else changes.

    Raises:
        ModelError: if the file is missing, is not a valid ONNX model, or lacks its external
            data.
    """
    path = Path(path)
    data = _read(path)
    try:
        proto = onnx.load_model_from_string(data)
    except (DecodeError, ValueError):
        raise ModelError(
            f"{path}: not an ONNX model, or a truncated one ({len(data)} bytes); export it again"
        ) from None
    if not proto.graph.node or not proto.graph.output:
        raise ModelError(f"{path}: not an ONNX model: it has no nodes or no outputs")
    files = (path, *load_external(proto, path))
    try:
        proto = densified(proto)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    if problem := _problem(proto):
        raise ModelError(f"{path}: not a valid ONNX model: {problem}")
    digest = hashlib.sha256(data).hexdigest()
    size = sum(file.stat().st_size for file in files)
    return Model(normalise(proto).proto, digest, size, files)


def _read(path: Path) -> bytes:
    """Return the bytes of a file that may be a model."""
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MOST_FILE_BYTES else b""
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name with a NUL
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{path}: cannot be read: {reason}") from None
    if size > MOST_FILE_BYTES:
        raise ModelError(
            f"{path}: has {size:,} bytes, and a model file no more than {MOST_FILE_BYTES:,}; "
            "export it with external data"
        )
    if not data:
        raise ModelError(f"{path}: the file is empty; expected an ONNX model")
    return data


def reread(model: Model) -> onnx.ModelProto:
    """Return a model as its file holds it, with its external data, if it came from one."""
    if not model.files:
        return model.proto
    proto = onnx.load_model_from_string(model.files[0].read_bytes())
    load_external(proto, model.files[0])
    return proto


_ONNXRUNTIME_DECIDES = (
    "No Op registered for",
    "is deprecated in domain_version",
    "Inference error",
)
"""Complaints about operators that onnxruntime may know better than the onnx package."""


def _problem(proto: onnx.ModelProto) -> str:
    """Return what the ONNX checker has against a model, or nothing."""
    try:
        if storage.is_heavy(proto):
            for tensor in proto.graph.initializer:
                onnx.checker.check_tensor(tensor)
            proto = storage.outline(proto)
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # damaged names make the checker's binding raise anything
        text = str(error).strip() or type(error).__name__
        if not any(known in text for known in _ONNXRUNTIME_DECIDES):
            return text.splitlines()[0]
    hidden = next(shadows(proto.graph), None)
    return f"'{hidden}' is a tensor outside a subgraph and another one inside" if hidden else ""


def normalise(proto: onnx.ModelProto) -> Model:
    """Inline local functions, turn constants into dense initializers, give each one name.

    Initial states of recurrent nodes that are zero, as they are by default, are left out.
    """
    proto = densified(proto)
    if proto.functions:
        light, held = storage.split(proto)
        proto = storage.join(onnx.inliner.inline_local_functions(light), held)
    return Model(without_zero_states(_without_aliases(to_initializers(proto))))


def _without_aliases(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Let readers of an ``Identity`` of an initializer read that: some exporters share so."""
    constants = {t.name for t in proto.graph.initializer}
    fixed = {v.name for v in proto.graph.output}.union(*map(captured, proto.graph.node))
    names: dict[str, str] = {}
    for node in proto.graph.node:
        if node.op_type == "Identity" and node.output[0] not in fixed:
            source = names.get(node.input[0], node.input[0])
            if source in constants:
                names[node.output[0]] = source
    if not names:
        return proto
    kept = [n for n in proto.graph.node if n.output[0] not in names]
    result = storage.with_graph(proto, nodes=kept)
    for node in result.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    return result


UNPACKS = ("DequantizeLinear", "Cast")
"""Operators that turn a constant, as it is stored, into the one that is computed with."""
