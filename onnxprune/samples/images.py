"""Images: samples in folders of classes."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onnxprune.arrays import F64, I64, Array
from onnxprune.errors import CalibrationError
from onnxprune.model.model import TensorSpec
from onnxprune.samples.dataset import _FLOATS, Batch, Dataset, Scaling, _fixed, _text
from onnxprune.samples.folders import class_folders, images_under

MAX_UNREADABLE = 0.1
"""Share of unreadable images beyond which a folder is refused."""


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
    names_classes = bounded = True
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


def open_images(path: Path, inputs: Sequence[TensorSpec], scaling: Scaling) -> Dataset:
    """Open a folder of class folders with images; only labels and names are read.

    Raises:
        CalibrationError: if there are no images, or the model takes none.
    """
    if any(spec.dtype == np.uint8 for spec in inputs):
        scaling.refuse("uint8 pixels")
    form = _form(inputs, scaling)
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


def _form(inputs: Sequence[TensorSpec], scaling: Scaling) -> _Form:
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
    mean, std = scaling.mean, scaling.std
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
