"""What tracing finds out about a graph: where its units live and how they can leave.

Everything here refers to a node by the name of its first output (unique in ONNX, while node
names may be empty) and carries labels (see :mod:`onnxprune.structure.labels`), one per index.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from onnxprune.arrays import I64, Bool
from onnxprune.structure.labels import Units


@dataclass(frozen=True)
class Site:
    """An axis of a constant operand that is sliced when its labels leave."""

    node: str
    input: int
    tensor: str
    axis: int
    labels: I64


@dataclass(frozen=True)
class Sizes:
    """Integers of a node that count labels: shapes, split sizes, slice bounds, groups.

    ``values`` is the whole vector as observed (``int64 [k]``); position ``i`` of it becomes the
    number of ``counted[i]`` that stay. It lives in an input (``place`` is its index) or an
    attribute (its name). ``dynamic`` marks positions that may have other values on other inputs:
    they stay as the model holds them.
    """

    node: str
    place: int | str
    values: I64
    dynamic: Bool
    counted: Mapping[int, I64]


@dataclass(frozen=True)
class Renumber:
    """A constant index operand of a node that points into an axis with these labels."""

    node: str
    input: int
    labels: I64


@dataclass(frozen=True)
class OriginalShape:
    """A Shape node whose readers must go on seeing the sizes of the original model.

    Operators that use a size are rewritten through :class:`Sizes`; everything else that is
    computed from it (the 1/sqrt(d) of attention, a mean) keeps its value.
    """

    node: str
    values: I64
    dynamic: Bool
    axes: Mapping[int, I64]


@dataclass(frozen=True)
class Sink:
    """An input axis over which a node sums: where a removed channel must read as zero.

    ``axis`` is negative (counted from the last axis).
    """

    node: str
    input: int
    axis: int
    labels: I64


@dataclass(frozen=True)
class Origin:
    """An axis where labels begin: the output channels of a node with weights."""

    node: str
    tensor: str
    axis: int
    labels: I64


Point = tuple[str, int]
"""A tensor and one of its axes, along which activations have statistics."""


@dataclass(frozen=True)
class Weight:
    """A constant weight operand of a node.

    ``channel_of`` (broadcasts to the weight's shape) is the index along axis ``data_axis`` of
    ``data_tensor`` that each weight multiplies; ``output_of`` the index along
    ``output_axis`` of the node's output that it adds to. The labels are those of these axes,
    ``axes`` those of the weight's own; None where an axis cannot shrink. ``output_axis`` is
    negative (counted from the last axis), None where that is not one axis or no intercept can be
    added. ``output_axes`` are the labels of all axes of the output, negative likewise. ``letters``
    names the axes of data, weight and output, if the node is a product of stacks of matrices (see
    :class:`~onnxprune.linear.matrix_form.StackForm`). A ``packed`` weight is dequantised or cast
    before the node reads it.
    """

    node: str
    op_type: str
    input: int
    tensor: str
    shape: tuple[int, ...]
    data_tensor: str
    data_axis: int
    channel_of: I64
    output_of: I64
    output_axis: int | None
    data_labels: I64 | None
    output_labels: I64 | None
    axes: Mapping[int, I64]
    output_axes: Mapping[int, I64] = field(default_factory=dict)
    letters: tuple[str, str, str] | None = None
    packed: bool = False

    @property
    def outputs_first(self) -> bool:
        """Of a matrix: whether it is stored ``[outputs, inputs]``, whichever of them is 1."""
        return bool(self.channel_of.shape[0] == 1 and self.output_of.shape[-1] == 1)

    @property
    def point(self) -> Point:
        """The tensor and axis whose statistics belong to the weight's input channels."""
        return self.data_tensor, self.data_axis


@dataclass(frozen=True)
class Inexact:
    """A node that normalises across axes which may shrink.

    ``inputs`` and ``outputs`` hold the labels of its operands and results by index and axis
    (negative, counted from the last).
    """

    node: str
    inputs: Mapping[tuple[int, int], I64]
    outputs: Mapping[tuple[int, int], I64]


@dataclass(frozen=True)
class Group:
    """Units that live side by side on the same axes and are ranked together.

    They begin at ``nodes``; ``along`` are further layers whose outputs shrink with them (depthwise
    convolutions).
    """

    name: str
    units: I64
    nodes: tuple[str, ...]
    along: tuple[str, ...] = ()


@dataclass(frozen=True)
class Frozen:
    """Output channels of a layer that cannot be pruned, the node where that was found, and why.

    ``weights`` counts the weights that produce them.
    """

    tensor: str
    node: str
    reason: str
    channels: int
    weights: int = 0


@dataclass(frozen=True)
class FrozenReason:
    """All layers whose channels are frozen for one reason.

    ``weights`` counts the weights that produce these channels, ``nodes`` names where the
    reason was found.
    """

    reason: str
    layers: int
    channels: int
    weights: int
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Untouched:
    """A node with weights of which none can leave, since no rule records them.

    Attributes:
        tensor: its first output.
        node: its name.
        op_type: its operator.
        reason: why its weights stay.
        channels: of its output.
        weights: how many there are.
        bytes: of its constants.
    """

    tensor: str
    node: str
    op_type: str
    reason: str
    channels: int
    weights: int
    bytes: int


@dataclass(frozen=True)
class Structure:
    """The result of tracing one model.

    ``axes`` holds every distinct label array, ``excluded`` the weight tensors that the user
    wants untouched, ``inexact`` the nodes that normalise across axes which may shrink,
    ``untouched`` the layers that no rule knows, which ``frozen`` lists as well.
    """

    units: Units
    sites: tuple[Site, ...]
    sizes: tuple[Sizes, ...]
    renumbered: tuple[Renumber, ...]
    original_shapes: tuple[OriginalShape, ...]
    sinks: tuple[Sink, ...]
    origins: tuple[Origin, ...]
    weights: tuple[Weight, ...]
    axes: tuple[I64, ...]
    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    excluded: frozenset[str]
    inexact: tuple[Inexact, ...] = ()
    untouched: tuple[Untouched, ...] = ()

    @cached_property
    def prunable(self) -> Bool:
        """``bool [units]``: units that belong to a group."""
        result = np.zeros(len(self.units), dtype=np.bool_)
        for group in self.groups:
            result[group.units] = True
        return result

    def frozen_by_reason(self) -> list[FrozenReason]:
        """Group what is frozen by its reason, the most expensive first."""
        found: dict[str, list[Frozen]] = defaultdict(list)
        for item in self.frozen:
            found[item.reason].append(item)
        reasons = [
            FrozenReason(
                reason,
                len(items),
                sum(item.channels for item in items),
                sum(item.weights for item in items),
                tuple(dict.fromkeys(item.node for item in items)),
            )
            for reason, items in found.items()
        ]
        return sorted(reasons, key=lambda r: (-r.weights, r.reason))

    def costliest(self, most: int = 2) -> str:
        """Say for which reasons most of the weights that cannot leave stay; empty for none."""
        said = []
        for r in self.frozen_by_reason()[:most]:
            layers = "1 layer" if r.layers == 1 else f"{r.layers} layers"
            at = ", ".join(f"'{n}'" for n in r.nodes[:2]) + (" ..." if len(r.nodes) > 2 else "")
            said.append(f"{r.weights:,} weights of {layers} stay: {r.reason} (at {at})")
        return "; ".join(said)


def described(found: Sequence[Untouched]) -> str:
    """Name layers that cannot be pruned, by operator, and why the largest stays."""
    counts = Counter(item.op_type for item in found)
    names = ", ".join(f"{n} {op}" for op, n in counts.most_common())
    most = max(found, key=lambda item: item.weights)
    weights = sum(item.weights for item in found)
    layers = "1 layer" if len(found) == 1 else f"{len(found)} layers"
    return (
        f"{layers} with {weights:,} weights cannot be pruned ({names}): the largest, "
        f"'{most.node}', {most.reason}"
    )


PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators that :class:`MatrixForm` knows."""
