"""Dynamic axes of a model's inputs: which of them share a size, and inputs of other sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.arrays import Array
from onnxprune.model.model import Model
from onnxprune.model.session import Feeds

Place = tuple[str, int]
"""An input and one of its axes."""


@dataclass(frozen=True)
class DynamicAxis:
    """Axes of inputs whose one size the model leaves open.

    Attributes:
        name: how the model calls it (``dim_param``); empty where it does not say.
        places: the axes.
        holds_samples: whether the samples of a run lie along it.
    """

    name: str
    places: tuple[Place, ...]
    holds_samples: bool

    def __str__(self) -> str:
        name, axis = self.places[0]
        return f"axis {axis} of input '{name}'" + (f" ('{self.name}')" if self.name else "")


def dynamic_axes(model: Model, feeds: Feeds) -> list[DynamicAxis]:
    """Find the dynamic axes of a model's inputs.

    Axes of one name are one. So are those without a name that have one size in ``feeds``, and
    those without a name on axis 0. The samples lie along the first dynamic axis 0.
    """
    places: dict[tuple[str, int], list[Place]] = {}
    for spec in model.inputs:
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str) and spec.name in feeds:
                observed = feeds[spec.name].shape[axis] if axis else 0
                places.setdefault((size, 0 if size else observed), []).append((spec.name, axis))
    first = next((k for k, found in places.items() if any(axis == 0 for _, axis in found)), None)
    return [DynamicAxis(k[0], tuple(found), k == first) for k, found in places.items()]


NewSizes = Mapping[Place, int]
"""New sizes of some axes of inputs."""


def other_sizes(axis: DynamicAxis, feeds: Feeds) -> list[int]:
    """Return sizes to try beside the one in ``feeds``, the most telling first."""
    name, k = axis.places[0]
    size = feeds[name].shape[k]
    tried = [3 if size > 4 else size + 1, 1]
    if not axis.holds_samples:
        tried = [size // 2, 2 * size, 1, size // 3, 3]
    return [n for n in dict.fromkeys(tried) if n not in (0, size)]


def all_resized(axes: Sequence[DynamicAxis], feeds: Feeds) -> Iterator[dict[Place, int]]:
    """Yield sizes in which every dynamic axis has another one than in ``feeds``."""
    options = [other_sizes(axis, feeds) for axis in axes]
    for k in range(max(map(len, options), default=1)):
        yield {
            place: sizes[0] if axis.holds_samples else sizes[min(k, len(sizes) - 1)]
            for axis, sizes in zip(axes, options, strict=True)
            for place in axis.places
        }


def drawn(feeds: Feeds, sizes: NewSizes, seed: int) -> dict[str, Array]:
    """Draw inputs from the values that each input has in ``feeds``, with other sizes."""
    rng = np.random.default_rng(seed)
    result = {}
    for name, values in feeds.items():
        shape = tuple(sizes.get((name, k), n) for k, n in enumerate(values.shape))
        empty = not values.size
        result[name] = (
            np.zeros(shape, values.dtype)
            if empty
            else values.reshape(-1)[rng.integers(0, values.size, shape)]
        )
    return result


def rearranged(feeds: Feeds, sizes: NewSizes, shift: int) -> dict[str, Array]:
    """Repeat or cut inputs to other sizes, and let their samples change places.

    Rows stay as they are, for models to which not every value in every place makes sense.
    """
    result = {}
    for name, values in feeds.items():
        for k, old in enumerate(values.shape):
            new = sizes.get((name, k), old)
            if old and (new != old or k == 0):
                values = values.take((np.arange(new) + (shift if k == 0 else 0)) % old, axis=k)
        result[name] = values
    return result
