"""Storage: a model as one message, or its large initializers apart from it.

Protobuf cannot hold 2 GiB in one message, and files of models as large keep their weights
beside the model. :func:`split` takes large initializers out of a model; the rest is small
enough for everything that serialises it, and :func:`pack` lays both out for the disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import InternalError

MOST_BYTES = 2**31 - 2**26
"""Bytes of constants from which a file cannot hold them: 2 GiB, less room for the rest."""

HEAVY = 2**28
"""Bytes of constants from which a model is not handled as one message, which costs copies."""

LARGE = 1024
"""Bytes from which an initializer leaves the message."""

PAGE, PAGED = 4096, 2**20
"""Initializers from ``PAGED`` bytes on begin at a multiple of ``PAGE``, to be mapped."""

_PACKED_BITS: dict[int, int] = {
    **dict.fromkeys((TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1), 4),
    **dict.fromkeys((TensorProto.INT2, TensorProto.UINT2), 2),
}
"""Bits of the element types of which a byte holds several."""

_DATA = frozenset(
    {"raw_data", "float_data", "int32_data", "string_data", "int64_data", "double_data"}
    | {"uint64_data", "external_data", "data_location"}
)

Held = Mapping[str, TensorProto]
"""Initializers that were taken out of a model, by name."""


@dataclass(frozen=True)
class Packed:
    """A model as it lies on disk: the bytes of its file, and of the data beside it.

    ``places`` are the offsets of the tensors in the data file, in order, and ``end`` its size.
    """

    model: bytes
    held: Held
    places: Mapping[str, int]
    end: int

    @property
    def size(self) -> int:
        """Bytes that the files take together."""
        return len(self.model) + self.end

    def data(self) -> Iterator[bytes]:
        """Yield the content of the data file."""
        at = 0
        for name, offset in self.places.items():
            raw = _raw(self.held[name])
            yield bytes(offset - at)
            yield raw
            at = offset + len(raw)

    def check(self, model: Path, data: Path | None) -> None:
        """Read written files back and compare them with what was to be written.

        Raises:
            InternalError: if they differ.
        """
        written = model.read_bytes()
        same = written == self.model
        if same and data is not None:
            tensors = onnx.load_model_from_string(written).graph.initializer
            outside = {t.name: t for t in tensors if t.data_location == TensorProto.EXTERNAL}
            same = outside.keys() == self.held.keys() and all(
                _read(tensor, data) == _raw(self.held[name]) for name, tensor in outside.items()
            )
        if not same:
            raise InternalError(f"{model}: what was written reads back differently")


def pack(proto: onnx.ModelProto, location: str | None) -> Packed:
    """Lay a model out for the disk; the same model gives the same bytes.

    Args:
        proto: the model.
        location: name of the file for large initializers; None keeps them inside.
    """
    if location is None:
        return Packed(proto.SerializeToString(deterministic=True), {}, {}, 0)
    light, held = split(proto)
    places: dict[str, int] = {}
    end = 0
    for tensor in light.graph.initializer:
        if tensor.name in held:
            size = len(_raw(held[tensor.name]))
            step = PAGE if size >= PAGED else 16
            places[tensor.name] = -(-end // step) * step
            end = places[tensor.name] + size
            _point(tensor, location=location, offset=places[tensor.name], length=size)
    return Packed(light.SerializeToString(deterministic=True), held, places, end)


def is_heavy(proto: onnx.ModelProto) -> bool:
    """Whether a model is better handled without its large initializers."""
    return sum(map(nbytes, proto.graph.initializer)) >= HEAVY


def needs_data_file(proto: onnx.ModelProto) -> bool:
    """Whether the constants of a model are more than protobuf holds in one file."""
    return sum(map(nbytes, proto.graph.initializer)) >= MOST_BYTES


def split(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, Held]:
    """Return a copy of a model that only declares its large initializers, and these.

    They stay where they are, as external data at no real location.
    """
    light = with_graph(proto, constants=())
    held: dict[str, TensorProto] = {}
    for tensor in proto.graph.initializer:
        if nbytes(tensor) < LARGE:
            light.graph.initializer.append(tensor)
            continue
        declared = light.graph.initializer.add()
        copy_fields(tensor, declared, *_DATA)
        _point(declared, location="held")
        held[tensor.name] = tensor
    return light, held


def with_graph(
    proto: onnx.ModelProto,
    *,
    nodes: Iterable[onnx.NodeProto] | None = None,
    constants: Iterable[TensorProto] | None = None,
) -> onnx.ModelProto:
    """Return a copy of a model, to be changed, that may have other nodes or initializers."""
    copy = onnx.ModelProto()
    copy_fields(proto, copy, "graph")
    others = {"node": nodes, "initializer": constants}
    given = {name: values for name, values in others.items() if values is not None}
    copy_fields(proto.graph, copy.graph, *given)
    for name, values in given.items():
        getattr(copy.graph, name).extend(values)
    return copy


def join(light: onnx.ModelProto, held: Held) -> onnx.ModelProto:
    """Put initializers that :func:`split` took out back into place; returns the argument."""
    for tensor in light.graph.initializer:
        if tensor.name in held:
            tensor.CopyFrom(held[tensor.name])
    return light


def draft(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, Held]:
    """Return a copy of a model that may be extended and run, without data if it is heavy."""
    return split(proto) if is_heavy(proto) else (with_graph(proto), {})


def outline(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that lists large initializers as inputs: enough to infer shapes from."""
    small = [t for t in proto.graph.initializer if nbytes(t) < LARGE]
    light = with_graph(proto, constants=small)
    known = {v.name for v in light.graph.input}
    light.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims)
        for t in proto.graph.initializer
        if nbytes(t) >= LARGE and t.name not in known
    )
    return light


def describe(tensor: TensorProto, source: TensorProto | onnx.NodeProto) -> None:
    """Give a tensor what is said of another tensor, or of the node that made it."""
    if source.doc_string:
        tensor.doc_string = source.doc_string
    if source.metadata_props:
        del tensor.metadata_props[:]
        tensor.metadata_props.extend(source.metadata_props)


def nbytes(tensor: TensorProto) -> int:
    """Return the size of a tensor's values in bytes, 0 for strings."""
    if tensor.data_type in (TensorProto.STRING, TensorProto.UNDEFINED):
        return 0
    width = int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    bits = _PACKED_BITS.get(tensor.data_type, 8 * width)
    return -(-math.prod(tensor.dims) * bits // 8)


def _raw(tensor: TensorProto) -> bytes:
    if not tensor.HasField("raw_data"):
        tensor = numpy_helper.from_array(numpy_helper.to_array(tensor))
    return tensor.raw_data


def _point(tensor: TensorProto, **entries: Any) -> None:
    """Let a tensor point to external data."""
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


def _read(tensor: TensorProto, file: Path) -> bytes:
    place = {e.key: e.value for e in tensor.external_data}
    with file.open("rb") as handle:
        handle.seek(int(place["offset"]))
        return handle.read(int(place["length"]))


def copy_fields(source: Any, target: Any, *but: str) -> None:
    """Copy the fields of a message into an empty one, all but some."""
    for field, value in source.ListFields():
        if field.name in but:
            continue
        if hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)
