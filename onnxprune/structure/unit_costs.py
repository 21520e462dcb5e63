"""Unit costs: what weights and operations leave with units and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.arrays import F64, Bool
from onnxprune.model.cost import WEIGHT_INPUTS
from onnxprune.structure.structure import Structure, Weight


def weights_left(structure: Structure, kept: Bool) -> dict[str, float]:
    """Return the share of the weights of each node that stay with some labels."""
    before: dict[str, int] = {}
    after: dict[str, int] = {}
    for weight in structure.weights:
        before[weight.node] = before.get(weight.node, 0) + int(np.prod(weight.shape))
        after[weight.node] = after.get(weight.node, 0) + weights_kept(weight, kept)
    return {node: after[node] / max(size, 1) for node, size in before.items()}


def counted(structure: Structure) -> list[Weight]:
    """Return the weights that count (see :data:`WEIGHT_INPUTS`), one for each tensor."""
    own = (w for w in structure.weights if w.op_type in WEIGHT_INPUTS)
    return list({w.tensor: w for w in own}.values())


def weights_kept(weight: Weight, kept: Bool) -> int:
    """Count the elements of a weight that stay when only these labels do (``bool [labels]``)."""
    shape = list(weight.shape)
    for axis, labels in weight.axes.items():
        shape[axis] = int(kept[labels].sum())
    return int(np.prod(shape))


def weights_removed(structure: Structure, kept: Bool) -> int:
    """Count the weights that leave when only these labels stay (``bool [labels]``)."""
    return sum(int(np.prod(w.shape)) - weights_kept(w, kept) for w in counted(structure))


def predicted_macs(structure: Structure, macs: Mapping[str, float], kept: Bool) -> float:
    """Predict the multiply-accumulates when only these labels stay (``bool [labels]``).

    Those of a node with weights go with the size of its weights. Those of a product of two
    activations are taken not to change.

    Args:
        structure: the traced model.
        macs: of each node (see :func:`node_macs`).
        kept: the labels that stay.
    """
    own = macs_of_weights(structure, macs)
    before = [int(np.prod(w.shape)) for w in structure.weights]
    left = [
        m * weights_kept(w, kept) / n
        for w, m, n in zip(structure.weights, own, before, strict=True)
    ]
    return sum(macs.values()) - sum(own) + sum(left)


def macs_of_weights(structure: Structure, macs: Mapping[str, float]) -> list[float]:
    """Divide the MACs of each node among its weights by their sizes."""
    sizes: dict[str, int] = {}
    for weight in structure.weights:
        sizes[weight.node] = sizes.get(weight.node, 0) + int(np.prod(weight.shape))
    return [
        macs.get(w.node, 0.0) * int(np.prod(w.shape)) / max(sizes[w.node], 1)
        for w in structure.weights
    ]


def unit_costs(structure: Structure, macs: Mapping[str, float] | None = None) -> F64:
    """Return what removing each unit alone would save, ``float64 [units]``.

    Multiply-accumulates if those of the nodes are given, else weights.
    """
    result = np.zeros(len(structure.units))
    weights: Sequence[Weight] = structure.weights if macs is not None else counted(structure)
    amounts = (
        [float(np.prod(w.shape)) for w in weights]
        if macs is None
        else macs_of_weights(structure, macs)
    )
    for weight, amount in zip(weights, amounts, strict=True):
        for labels in weight.axes.values():
            unit = structure.units.atoms(labels)[1]
            np.add.at(result, unit, amount / len(labels))
    return result
