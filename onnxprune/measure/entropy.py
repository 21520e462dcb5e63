"""Entropy: how undecided the rectifiers of a model are over samples.

After EGP (arXiv 2308.06619): a neuron is on where the input of its rectifier is positive. With
``p`` the share of that, over samples and positions, its entropy is
``h(p) = -p log2 p - (1-p) log2 (1-p)``, in bits; that of a layer is the mean of ``h`` over the
neurons with ``0 < p < 1``, and 0 where there are none. There both are averaged over minibatches
of 128; here ``p`` is that of the whole calibration set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxprune.arrays import F64, Bool
from onnxprune.measure.calibrate import Watched
from onnxprune.measure.statistics import ActivationStats
from onnxprune.model.model import Model
from onnxprune.model.shapes import Shapes
from onnxprune.structure.rectifiers import Rectifier

_ON = "onnxprune/on/"

STEEP = 1e30
"""Slope of the HardSigmoid that stands for a step."""

ROUNDING = 4 * 2.0**-24
"""By how much the float32 mean of ones can miss one."""


@dataclass(frozen=True)
class Activity:
    """What a rectifier did on samples.

    Attributes:
        rectifier: which one.
        on: ``float64 [neurons]``, the share of samples and positions at which each is on;
            exactly 0 or 1 only where that never changed.
        samples: how many there were.
    """

    rectifier: Rectifier
    on: F64
    samples: int

    @property
    def always_on(self) -> Bool:
        """``bool [neurons]``."""
        result: Bool = self.on == 1
        return result

    @property
    def always_off(self) -> Bool:
        """``bool [neurons]``."""
        result: Bool = self.on == 0
        return result

    @property
    def entropy(self) -> float:
        """The entropy of the layer, in bits."""
        return layer_entropy(self.on)

    def to_dict(self) -> dict[str, Any]:
        """Return an entry of the report's ``rectifiers``."""
        return {
            "node": self.rectifier.node,
            "op_type": self.rectifier.op_type,
            "tensor": self.rectifier.output,
            "neurons": self.rectifier.neurons,
            "entropy": self.entropy,
            "on": float(self.on.mean()),
            "always_on": int(self.always_on.sum()),
            "always_off": int(self.always_off.sum()),
        }


def neuron_entropy(on: F64) -> F64:
    """Return the entropy of neurons that are on with shares ``[neurons]``, in bits."""
    p = np.stack([on, 1 - on])
    result: F64 = -(p * np.log2(np.where(p > 0, p, 1.0))).sum(axis=0)
    return result


def layer_entropy(on: F64) -> float:
    """Return the mean entropy of the neurons that are sometimes on and sometimes off, in bits."""
    mixed = on[(on > 0) & (on < 1)]
    return float(neuron_entropy(mixed).mean()) if len(mixed) else 0.0


def watch(model: Model, shapes: Shapes, rectifiers: Sequence[Rectifier]) -> Watched:
    """Add tensors to a model that are one where a rectifier is on and zero where it is off.

    Their means come out of :func:`onnxprune.measure.calibrate.calibrate` like those of any
    activation, in the same pass; :func:`activities` reads them.

    Args:
        model: the model; it stays as it is.
        shapes: its observed shapes.
        rectifiers: those of the model that are watched.

    Returns:
        The model with the new tensors and their shapes, watched at each of them once.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    types = model.types
    first, second = dict(shapes.first), dict(shapes.second)
    points = []
    for tensor, axis in dict.fromkeys((r.tensor, r.axis) for r in rectifiers):
        result = _ON + tensor
        kind = types[tensor].tensor_type.elem_type if tensor in types else TensorProto.FLOAT
        if result not in first:
            proto.graph.node.extend(_step(tensor, result, kind, proto))
        first[result], second[result] = shapes.first[tensor], shapes.second[tensor]
        points.append((result, axis))
    extended = replace(model, proto=proto)
    return Watched(extended, replace(shapes, first=first, second=second), points)


def _step(source: str, result: str, kind: int, proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    if kind != TensorProto.DOUBLE:  # one node, and no booleans between
        return [helper.make_node("HardSigmoid", [source], [result], alpha=STEEP, beta=0.0)]
    zero = f"{result}/zero"
    proto.graph.initializer.append(helper.make_tensor(zero, kind, [], [0.0]))
    positive = f"{result}/positive"
    return [
        helper.make_node("Greater", [source, zero], [positive]),
        helper.make_node("Cast", [positive], [result], to=TensorProto.FLOAT),
    ]


def activities(
    rectifiers: Sequence[Rectifier], stats: Mapping[tuple[str, int], ActivationStats]
) -> list[Activity]:
    """Read the statistics that were gathered at the points of :func:`watch`.

    Rectifiers whose tensor has no axis of samples are left out.
    """
    result = []
    for rectifier in rectifiers:
        found = stats.get((_ON + rectifier.tensor, rectifier.axis))
        if found is not None:
            on = found.overall_mean()
            # The mean of ones is one but for rounding, which is the same for every sample.
            always = (on >= 1 - ROUNDING) & (_deviation(found) < 1e-16)
            result.append(Activity(rectifier, np.where(always, 1.0, on), int(found.count.sum())))
    return result


def _deviation(stats: ActivationStats) -> F64:
    """Return the sum of squared deviations from the overall mean, ``float64 [neurons]``."""
    between = stats.count @ (stats.mean - stats.overall_mean()) ** 2
    result: F64 = stats.m2 + between
    return result
