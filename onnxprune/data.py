"""Labelled samples: a folder of class folders with images, or an ``.npz`` of arrays.

Both are streamed: memory grows with the number of samples by labels and file names only.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import struct
import warnings
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from onnxprune.arrays import F64, I64, Array
from onnxprune.errors import CalibrationError
from onnxprune.folders import class_folders, images_under
from onnxprune.graph import TensorSpec

MAX_UNREADABLE = 0.1
"""Share of unreadable images beyond which a folder is refused."""

MAX_CLASSES = 1_000_000  # what is larger in ``y`` is something else than labels
CHUNK = 1 << 20  # bytes read at once while rows of an npz are passed over

_FLOATS = tuple(np.dtype(t) for t in (np.float16, np.float32, np.float64))
# What zipfile and zlib raise on damaged, encrypted or unknown content.
_DAMAGE: tuple[type[Exception], ...] = (zipfile.BadZipFile, zlib.error, struct.error, EOFError)
_DAMAGE += (OSError, RuntimeError, ValueError, OverflowError)


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples: model inputs ``[rows, ...]`` by name and labels ``int64 [rows]``."""

    feeds: dict[str, Array]
    labels: I64

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset(ABC):
    """Labelled samples that can be streamed any number of times.

    ``labels`` is ``int64 [n]``, the label of every sample, readable or not; ``class_names``
    names every label; ``skipped`` lists the unreadable images found so far, each once.
    """

    path: Path
    labels: I64
    class_names: tuple[str, ...]
    skipped: list[str] = field(default_factory=list, kw_only=True)

    def batches(self, rows: I64 | None, batch_size: int) -> Iterator[Batch]:
        """Stream samples in ascending order, each row once.

        ``rows`` are ``int64 [m]`` sample numbers in any order; None asks for all.

        Raises:
            CalibrationError: if samples cannot be read, or hold NaN or infinity.
            IndexError, ValueError: if there is no such row, or ``batch_size`` is below 1.
        """
        count = len(self.labels)
        wanted = np.arange(count) if rows is None else np.unique(np.asarray(rows, np.int64))
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < count:
            raise IndexError(f"rows {wanted[0]}..{wanted[-1]} asked for, there are {count}")
        with _naming(self.path):
            yield from self._read(wanted, batch_size)

    @abstractmethod
    def _read(self, rows: I64, batch_size: int) -> Iterator[Batch]:
        """Stream ascending rows."""


@dataclass(frozen=True, eq=False)
class NoSamples(Dataset):
    """What there is when a model is pruned without samples."""

    path: Path = Path()
    labels: I64 = field(default_factory=lambda: np.empty(0, np.int64))
    class_names: tuple[str, ...] = ()

    def _read(self, rows: I64, batch_size: int) -> Iterator[Batch]:  # noqa: ARG002
        return iter(())


def open_dataset(
    path: Path,
    inputs: Sequence[TensorSpec],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Dataset:
    """Open labelled samples for a model; only labels and names are read.

    Args:
        path: folder of class folders with images, or ``.npz`` file with labels in ``y``.
        inputs: the inputs of the model; a fixed batch size is ignored.
        mean: per channel, subtracted from images scaled to 0..1 (float inputs only).
        std: per channel, divides them afterwards.

    Raises:
        CalibrationError: if the samples cannot be used with this model.
    """
    with _naming(path):
        if not path.exists():
            raise CalibrationError("no such file or folder; expected calibration samples")
        if not path.is_dir() and path.suffix.lower() != ".npz":
            raise CalibrationError(
                "neither a folder nor an .npz; expected class folders with images, or arrays"
            )
        raw = not path.is_dir() or any(spec.dtype == np.uint8 for spec in inputs)
        if raw and not (mean is None and std is None):
            raise CalibrationError(
                "mean and std are for images and a float input; arrays and uint8 pixels are "
                "fed as they are; leave mean and std out"
            )
        data = _images(path, _form(inputs, mean, std)) if path.is_dir() else _arrays(path, inputs)
        present = np.unique(data.labels)
        if len(present) < 2:
            raise CalibrationError(
                f"only one class has samples ('{data.class_names[present[0]]}'); expected at "
                "least two; add samples of other classes"
            )
        return data


def _fixed(size: int | str) -> int | None:
    # Some exporters write 0 or -1 for a dynamic size.
    return size if isinstance(size, int) and size > 0 else None


def _text(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(['N', *(str(_fixed(n) or n or '?') for n in shape[1:])])}]"


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in errors, and make damaged files errors."""
    try:
        yield
    except CalibrationError as error:
        raise CalibrationError(f"{path}: {error}") from None
    except _DAMAGE as error:
        raise CalibrationError(f"{path}: cannot be read ({error}); make it again") from error


@dataclass(frozen=True, eq=False)
class _Form:
    """How an image becomes a sample; a height or width of None keeps the image's own."""

    input: TensorSpec
    channels: int
    channels_last: bool
    height: int | None
    width: int | None
    mean: F64
    std: F64

    def sample(self, pixels: Array) -> Array:
        """Turn ``uint8 [H, W, C]`` into a sample of the input's layout and dtype."""
        values = pixels
        if self.input.dtype != np.uint8:
            wide = np.result_type(self.input.dtype, np.float32)  # float16 is too coarse here
            values = (pixels / wide.type(255) - self.mean.astype(wide)) / self.std.astype(wide)
        if not self.channels_last:
            values = np.moveaxis(values, 2, 0)
        return np.ascontiguousarray(values, self.input.dtype)


@dataclass(frozen=True, eq=False)
class _Images(Dataset):
    files: list[Path]
    form: _Form

    def _read(self, rows: I64, batch_size: int) -> Iterator[Batch]:
        samples = ((row, self.form.sample(image)) for row, image in self.pixels(rows))
        while chunk := list(itertools.islice(samples, batch_size)):
            feeds = {self.form.input.name: np.stack([sample for _, sample in chunk])}
            yield Batch(feeds, self.labels[[row for row, _ in chunk]])

    def pixels(self, rows: I64) -> Iterator[tuple[int, Array]]:
        """Decode images ``uint8 [H, W, C]``, passing over unreadable ones."""
        for row in rows.tolist():
            try:
                image = _decode(self.files[row], self.form)
            except Exception as error:  # decoders raise nearly anything on broken files
                self._skip(f"{self.files[row]}: {' '.join(str(error).split()) or repr(error)}")
            else:
                yield row, image

    def _skip(self, entry: str) -> None:
        if entry not in self.skipped:
            self.skipped.append(entry)
        bad, count = len(self.skipped), len(self.files)
        if bad > MAX_UNREADABLE * count:
            raise CalibrationError(
                f"{bad} of {count} images cannot be read, more than {MAX_UNREADABLE:.0%}; "
                f"repair or remove them; the first is {self.skipped[0]}"
            )


def _images(path: Path, form: _Form) -> Dataset:
    classes = {folder.name: images_under(folder) for folder in class_folders(path)}
    files = list(itertools.chain.from_iterable(classes.values()))
    if not files:
        raise CalibrationError("empty; expected a folder of images for each class")
    labels = np.repeat(np.arange(len(classes)), [len(found) for found in classes.values()])
    images = _Images(path, labels, tuple(classes), files, form)
    if form.height and form.width:
        return images
    # There is a first image: were all unreadable, this would raise.
    _, first = next(images.pixels(np.arange(len(files))))
    height, width = first.shape[:2]
    return replace(images, form=replace(form, height=height, width=width))


def _form(
    inputs: Sequence[TensorSpec], mean: Sequence[float] | None, std: Sequence[float] | None
) -> _Form:
    spec = inputs[0] if len(inputs) == 1 else TensorSpec("", np.dtype(object), ())
    shape = spec.shape if len(spec.shape) == 4 else ("",) * 4
    channels_last = shape[1] not in (1, 3)
    channels = shape[3 if channels_last else 1]
    if channels not in (1, 3) or spec.dtype not in (*_FLOATS, np.uint8):
        got = ", ".join(f"'{s.name}' {s.dtype} {_text(s.shape)}" for s in inputs)
        raise CalibrationError(
            f"the model takes {got}; images need one float or uint8 input [N, C, H, W] or "
            "[N, H, W, C] with C fixed to 1 or 3; use an .npz"
        )
    height, width = map(_fixed, shape[1:3] if channels_last else shape[2:])
    shift = np.array([0.0] * int(channels) if mean is None else mean, np.float64)
    scale = np.array([1.0] * int(channels) if std is None else std, np.float64)
    fits = all(v.shape == (channels,) and np.isfinite(v).all() for v in (shift, scale))
    if not fits or not scale.all():
        raise CalibrationError(
            f"mean is {shift.tolist()} and std is {scale.tolist()}, expected {channels} finite "
            "number(s) each, one per channel, and no 0 in std"
        )
    return _Form(spec, int(channels), channels_last, height, width, shift, scale)


def _decode(path: Path, form: _Form) -> Array:
    """Read an image as ``uint8 [H, W, C]``; raises whatever Pillow raises."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            deep = image.mode[0] in "IF"
            picture = Image.fromarray(_to_8_bits(np.asarray(image))) if deep else image
            picture = picture.convert("L" if form.channels == 1 else "RGB")
    size = (form.width or picture.width, form.height or picture.height)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(picture, np.uint8).reshape(size[1], size[0], form.channels)


def _to_8_bits(values: Array) -> Array:
    # Pillow would clip 16-bit pixels at 255 rather than scale them.
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("pixels of more than 16 bits have no known range")
    return (values.astype(np.int64) >> 8).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class _Member:
    """An array in an npz; rows start at byte ``start`` and are converted to ``target``."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int
    target: np.dtype[Any]

    def stream(self, archive: zipfile.ZipFile, parts: Sequence[I64]) -> Iterator[Array]:
        """Read the rows ``int64 [k]`` of each part, all ascending, as ``target [k, ...]``."""
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        with archive.open(f"{self.name}.npy") as file:
            _exactly(file, self.start)
            position = 0
            for part in parts:
                raw = bytearray()
                for run in np.split(part, np.flatnonzero(np.diff(part) != 1) + 1):
                    for left in range((int(run[0]) - position) * row_bytes, 0, -CHUNK):
                        _exactly(file, min(left, CHUNK))
                    raw += _exactly(file, len(run) * row_bytes)
                    position = int(run[-1]) + 1
                block: Array = np.ndarray((len(part), *self.shape[1:]), self.dtype, raw)
                yield self._converted(block, part)

    def _converted(self, block: Array, rows: I64) -> Array:
        with np.errstate(over="ignore"):  # what overflows is refused as infinity
            block = block.astype(self.target, copy=False)
        if self.target in _FLOATS and not np.isfinite(block).all():
            bad = ~np.isfinite(block).all(axis=tuple(range(1, block.ndim)))
            raise CalibrationError(
                f"array '{self.name}' has NaN or infinity (as {self.target}) in row "
                f"{rows[bad.argmax()]}; repair or remove the sample"
            )
        return block


@dataclass(frozen=True, eq=False)
class _Arrays(Dataset):
    members: dict[str, _Member]

    def _read(self, rows: I64, batch_size: int) -> Iterator[Batch]:
        parts = [rows[k : k + batch_size] for k in range(0, len(rows), batch_size)]
        with zipfile.ZipFile(self.path) as archive:
            streams = [member.stream(archive, parts) for member in self.members.values()]
            for part, *arrays in zip(parts, *streams, strict=False):
                yield Batch(dict(zip(self.members, arrays, strict=True)), self.labels[part])


def _arrays(path: Path, inputs: Sequence[TensorSpec]) -> Dataset:
    with zipfile.ZipFile(path) as archive:
        found = {n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")}
        names = _array_names(found, inputs)
        y = _member(archive, "y", None)
        members = {
            spec.name: _member(archive, name, spec)
            for spec, name in zip(inputs, names, strict=True)
        }
        counts = {m.name: sum(m.shape[:1]) for m in (y, *members.values())}
        if len(set(counts.values())) > 1:
            raise CalibrationError(f"arrays differ in their number of samples: {counts}")
        if not counts["y"]:
            raise CalibrationError("empty; expected at least two samples")
        labels = _labels(archive, y)
    class_names = tuple(str(k) for k in range(int(labels.max()) + 1))
    return _Arrays(path, labels, class_names, members)


def _array_names(found: set[str], inputs: Sequence[TensorSpec]) -> list[str]:
    """Find the array for every input: of its name, or ``x`` for the only input."""
    names = [spec.name for spec in inputs]
    if len(names) == 1 and names[0] not in found - {"y"} and "x" in found:
        names = ["x"]
    missing = [name for name in ("y", *names) if name not in found]
    if missing or "y" in names:
        raise CalibrationError(
            f"no array {missing or names}, found {sorted(found)}; name the arrays after the "
            "model inputs ('x' will do for a single one), and the labels 'y'"
        )
    return names


def _member(archive: zipfile.ZipFile, name: str, spec: TensorSpec | None) -> _Member:
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        try:
            old = npy.read_magic(file) == (1, 0)
            # Version 3 differs from 2 only in the names of fields, which no input has.
            read = npy.read_array_header_1_0 if old else npy.read_array_header_2_0
            shape, fortran_order, dtype = read(file)
        except Exception:  # SyntaxError and tokenize.TokenError are among these
            raise EOFError(f"array '{name}' has a damaged header") from None
        start = file.tell()
    if dtype.hasobject:
        raise CalibrationError(f"array '{name}': pickled arrays are refused; save numbers")
    if fortran_order:
        raise CalibrationError(
            f"array '{name}' is in Fortran order, which cannot be streamed; "
            "save it with np.ascontiguousarray"
        )
    if min(shape, default=0) < 0 or info.file_size - start < dtype.itemsize * math.prod(shape):
        raise EOFError(f"array '{name}' is truncated")
    if spec is not None:
        _check_fit(name, shape, dtype.newbyteorder("="), spec)
    target = dtype.newbyteorder("=") if spec is None else spec.dtype
    return _Member(name, shape, dtype, start, target)


def _check_fit(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], spec: TensorSpec) -> None:
    if dtype != spec.dtype and not (dtype in _FLOATS and spec.dtype in _FLOATS):
        advice = "divide by 255" if dtype == np.uint8 and spec.dtype in _FLOATS else "convert"
        raise CalibrationError(
            f"array '{name}' is {dtype}, expected {spec.dtype} for input '{spec.name}'; "
            f"{advice} yourself, arrays are fed as they are"
        )
    pairs = zip(shape[1:], map(_fixed, spec.shape[1:]), strict=False)
    same_rank = len(shape) == len(spec.shape) > 0
    if not same_rank or any(want not in (None, size) for size, want in pairs):
        raise CalibrationError(
            f"array '{name}' has shape {list(shape)}, expected {_text(spec.shape)} "
            f"for input '{spec.name}'; N counts the samples"
        )


def _labels(archive: zipfile.ZipFile, y: _Member) -> I64:
    if y.dtype.kind not in "biuf" or y.shape[1:] not in ((), (1,)):
        how = "one-hot labels into class numbers with argmax"
        if y.dtype.kind in "USO":
            how = "names into class numbers, in the order of the model's classes"
        raise CalibrationError(
            f"array 'y' is {y.dtype} {list(y.shape)}, expected integers [N]; turn {how}"
        )
    values = next(y.stream(archive, [np.arange(y.shape[0])])).reshape(-1)
    wrong = (values != np.floor(values)) | (values < 0) | (values >= MAX_CLASSES)
    if wrong.any():
        signs = set(np.unique(values).tolist()) == {-1, 1}
        raise CalibrationError(
            f"array 'y' has label {values[wrong.argmax()]} in row {wrong.argmax()}, "
            f"expected class numbers from 0 to {MAX_CLASSES - 1}"
            f"{'; turn -1 and 1 into 0 and 1' if signs else ''}"
        )
    return values.astype(np.int64)


def _exactly(file: IO[bytes], count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise EOFError(f"truncated: {count - len(data)} bytes are missing")
    return data
