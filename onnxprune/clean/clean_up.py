"""Cleaning: take out of a model what computes nothing. A small pipeline of its own.

```
observe -> fold -> no-ops -> observe -> trace -> relations -> rewrite, absorb -> merge -> compare
```

is repeated until nothing more is found. Every step is compared with the model before all of
them; one that changes the outputs is dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from onnx import helper

from onnxprune.clean.facts import States
from onnxprune.clean.merging import merge_layers
from onnxprune.clean.noops import drop_noops, fold_constant_branches
from onnxprune.clean.redundancy import KINDS, absorb, find, readers
from onnxprune.clean.relations import relate
from onnxprune.model.cost import count_params
from onnxprune.model.folding import fold
from onnxprune.model.model import Model
from onnxprune.model.observe import observe
from onnxprune.model.runner import PLAIN, Runner
from onnxprune.model.session import Feeds
from onnxprune.model.shapes import Shapes
from onnxprune.plans.cut import Cut
from onnxprune.plans.plan import plan_from_units
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.rewrite.verify import Verification, compare, refuse_random
from onnxprune.structure.trace import trace

LIMIT = 1e-5
"""Relative error from which a step counts as not exact."""

MOST_ROUNDS = 20

_USELESS = {"layers": "could be one with the next"}


@dataclass(frozen=True)
class CleanUp:
    """What was taken out of a model.

    Attributes:
        channels: units by kind (see :data:`~onnxprune.clean.redundancy.KINDS`).
        nodes: nodes that passed their input on, by operator.
        branches: operands that were constant and are now folded.
        merged: linear layers that the layer behind them computes as well.
        verification: how far the result is from the model before, None if nothing went.
        dropped: steps that were found but not exact, and so not taken.
    """

    channels: Mapping[str, int] = field(default_factory=dict)
    nodes: Mapping[str, int] = field(default_factory=dict)
    branches: int = 0
    merged: int = 0
    verification: Verification | None = None
    dropped: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        counts = [*self.channels.values(), *self.nodes.values(), self.branches, self.merged]
        return bool(sum(counts))

    def to_dict(self) -> dict[str, Any]:
        """Return the report's ``clean_up``."""
        return {
            "channels": {kind: self.channels.get(kind, 0) for kind in KINDS},
            "nodes": dict(sorted(self.nodes.items())),
            "branches": self.branches,
            "merged": self.merged,
            "max_rel_error": self.verification.max_rel_error if self.verification else None,
            "dropped": list(self.dropped),
        }

    def warnings(self) -> list[str]:
        """Say which steps had to be dropped."""
        return [
            f"{name} that {_USELESS.get(name, 'do nothing')} were found, but without them the "
            f"outputs differ by more than {LIMIT:g}, so they stay"
            for name in self.dropped
        ]

    def summary(self) -> str:
        """Return one line for people."""
        channels = [f"{n} {kind}" for kind, n in self.channels.items() if n]
        parts = [f"{', '.join(channels)} channels"] if channels else []
        count = sum(self.nodes.values())
        parts += [f"{count} nodes ({', '.join(sorted(self.nodes))})"] if count else []
        parts += [f"{self.branches} constant branches"] if self.branches else []
        parts += [f"{self.merged} linear layers merged into the next"] if self.merged else []
        return f"cleaned up: {'; '.join(parts) or 'there was nothing to remove'}"


def clean_up(
    model: Model,
    feeds: Feeds,
    *,
    exclude: Sequence[str] = (),
    states: Mapping[str, States] | None = None,
    align: int = 1,
    runner: Runner = PLAIN,
) -> tuple[Model, CleanUp]:
    """Remove what does not change the outputs of a model.

    Args:
        model: the model.
        feeds: inputs on which the result is compared with it, beside others of other sizes.
        exclude: globs over node and initializer names that are left alone.
        states: what its Relu nodes did on samples, by their first output, to be taken for what
            they always do.
        align: a number whose multiples run faster; widths that are such stay such.
        runner: runs the models.

    Returns:
        The model, the same object if there was nothing to remove, and what went.
    """
    current, proof = model, None
    channels, nodes, branches, merged = Counter[str](), Counter[str](), 0, 0
    dropped: list[str] = []
    larger = set[str]()  # what makes up for what goes would be more than that
    seen = _seen(model, feeds, runner)
    inputs = seen[1].feeds
    for _ in range(MOST_ROUNDS):
        found = False
        for name, step in (("nodes", _nodes), ("channels", _channels), ("layers", _layers)):
            if name in dropped or name in larger or (name == "layers" and found):
                continue
            candidate, went = step(*seen, exclude, states or {}, align)
            if not went:
                continue
            if any(a > b for a, b in zip(_sizes(candidate), _sizes(seen[0]), strict=True)):
                larger.add(name)
                continue
            result = compare(model, candidate, inputs, runner=runner)
            if not result.max_rel_error <= LIMIT:
                refuse_random(model, inputs, runner=runner)
                dropped.append(name)
                continue
            current, proof, found = candidate, result, True
            seen = _seen(current, feeds, runner)
            branches += went.pop("branches", 0)
            merged += went.pop("merged", 0)
            (nodes if name == "nodes" else channels).update(went)
        if not found:
            break
    return current, CleanUp(channels, nodes, branches, merged, proof, tuple(dropped))


def _sizes(model: Model) -> tuple[int, int]:
    """Return the parameters of a model, and the bytes of its constants."""
    held = sum(
        int(np.prod(t.dims)) * helper.tensor_dtype_to_np_dtype(t.data_type).itemsize
        for t in model.proto.graph.initializer
    )
    return count_params(model), held


def _seen(model: Model, feeds: Feeds, runner: Runner) -> tuple[Model, Shapes]:
    """Observe and fold a model."""
    shapes = observe(model, feeds, runner=runner)
    return fold(model, shapes), shapes


def _nodes(
    model: Model, shapes: Shapes, exclude: Sequence[str], states: Mapping[str, States], _: int
) -> tuple[Model, Counter[str]]:
    """Take out nodes that pass their input on."""
    linear = [name for name, s in states.items() if s.always_on.all()]
    return drop_noops(model, shapes, linear=linear, keep=_excluded(model, exclude)[0])


def _layers(
    model: Model, shapes: Shapes, exclude: Sequence[str], _: Mapping[str, States], __: int
) -> tuple[Model, Counter[str]]:
    """Merge linear layers into the next."""
    merged, count = merge_layers(model, shapes, keep=_excluded(model, exclude)[0])
    return merged, Counter(merged=count) if count else Counter()


def _channels(
    model: Model, shapes: Shapes, exclude: Sequence[str], states: Mapping[str, States], align: int
) -> tuple[Model, Counter[str]]:
    """Take out channels that others make up for, and branches that are constant."""
    structure = trace(model, shapes, exclude=_excluded(model, exclude)[1])
    relations = relate(model, shapes, structure, states)
    if not exclude:
        folded, branches = fold_constant_branches(model, relations, shapes)
        if branches:  # whose channels need not be looked at any more
            return folded, Counter(branches=branches)
    places = readers(model, structure, relations)
    kept, counts = find(structure, places, align)
    if not counts:
        return model, counts
    cut = Cut(model, structure, shapes, plan_from_units(model.sha256, structure, kept))
    return absorb(model, rewrite(cut), places, cut.kept), counts


def _excluded(model: Model, patterns: Sequence[str]) -> tuple[set[str], list[str]]:
    """Return the first outputs of the nodes that match, and the patterns that still do."""
    constants = {t.name for t in model.proto.graph.initializer}
    nodes, matched = set[str](), []
    for pattern in patterns:
        own = {
            next((o for o in node.output if o), node.name)
            for node in model.proto.graph.node
            for name in [node.name, *node.output[:1], *(i for i in node.input if i in constants)]
            if name and fnmatchcase(name, pattern)
        }
        if own:
            nodes |= own
            matched.append(pattern)
    return nodes, matched
