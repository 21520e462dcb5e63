"""Labelled samples, whatever they come from (see :mod:`onnxprune.samples.sources`).

They are streamed: memory grows with the number of samples by labels and file names only.
"""

from __future__ import annotations

import contextlib
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from onnxprune.arrays import I64, Array
from onnxprune.errors import CalibrationError

_FLOATS = tuple(np.dtype(t) for t in (np.float16, np.float32, np.float64))
# What zipfile and zlib raise on damaged, encrypted or unknown content.
_DAMAGE: tuple[type[Exception], ...] = (zipfile.BadZipFile, zlib.error, struct.error, EOFError)
_DAMAGE += (OSError, RuntimeError, ValueError, OverflowError)


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples, as many as were read at once.

    Attributes:
        feeds: inputs of the model ``[rows, ...]`` by name, each of the input's dtype.
        labels: ``int64 [rows]``.
    """

    feeds: dict[str, Array]
    labels: I64

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset(ABC):
    """Labelled samples that can be streamed any number of times.

    Attributes:
        names_classes: of the kind of dataset: whether class names are the user's own, not numbers.
        bounded: of the kind of dataset: whether no value can be an outlier, as with pixels.
        path: the file or folder.
        labels: ``int64 [n]``, the label of every sample, readable or not.
        class_names: the name of every label.
        skipped: the unreadable samples found so far, each once.
    """

    names_classes: ClassVar[bool] = False
    bounded: ClassVar[bool] = False

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
        with naming(self.path):
            yield from self._read(wanted, batch_size)

    @abstractmethod
    def _read(self, rows: I64, batch_size: int) -> Iterator[Batch]:
        """Stream ascending rows."""


@dataclass(frozen=True)
class Scaling:
    """How pixels become floats: after 0..255 became 0..1.

    Attributes:
        mean: one number per channel, subtracted; None for 0.
        std: one number per channel, divides the differences; None for 1.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def of(cls, mean: Sequence[float] | None, std: Sequence[float] | None) -> Scaling:
        """Return the scaling by a mean and a deviation."""
        return cls(*(None if v is None else tuple(v) for v in (mean, std)))

    def refuse(self, what: str) -> None:
        """Refuse to scale samples that are fed as they are.

        Raises:
            CalibrationError: if there is anything to scale by.
        """
        if self != UNSCALED:
            raise CalibrationError(
                f"mean and std are for images and a float input; {what} are fed as they are; "
                "leave mean and std out"
            )


UNSCALED = Scaling()


@dataclass(frozen=True, eq=False)
class NoSamples(Dataset):
    """What there is when a model is pruned without samples."""

    path: Path = Path()
    labels: I64 = field(default_factory=lambda: np.empty(0, np.int64))
    class_names: tuple[str, ...] = ()

    def _read(self, rows: I64, batch_size: int) -> Iterator[Batch]:  # noqa: ARG002
        return iter(())


def _fixed(size: int | str) -> int | None:
    # Some exporters write 0 or -1 for a dynamic size.
    return size if isinstance(size, int) and size > 0 else None


def _text(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(['N', *(str(_fixed(n) or n or '?') for n in shape[1:])])}]"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in errors, and make damaged files errors."""
    try:
        yield
    except CalibrationError as error:
        raise CalibrationError(f"{path}: {error}") from None
    except _DAMAGE as error:
        raise CalibrationError(f"{path}: cannot be read ({error}); make it again") from error
