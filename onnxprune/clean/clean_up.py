"""Cleaning: take out of a model what computes nothing. A small pipeline of its own.

```
observe -> fold -> no-ops -> observe -> trace -> facts -> rewrite, absorb -> merge
```

is repeated until nothing more is found: the :data:`STEPS`, one after the other. What all of them
made is compared with the model before. If it differs by more than every step may change it, they
are taken again, and each is compared for itself: with the model before all of them, or behind the
last step that is allowed an error of its own. One that differs by more than its tolerance is
dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from onnx import helper

from onnxprune.clean.facts import States, relate
from onnxprune.clean.merging import merge_layers
from onnxprune.clean.noops import drop_noops, fold_constant_branches
from onnxprune.clean.redundancy import KINDS, absorb, find, readers
from onnxprune.clean.steps import LIMIT, Seen, Step
from onnxprune.model.cost import count_params
from onnxprune.model.folding import fold
from onnxprune.model.model import Model
from onnxprune.model.observe import observe
from onnxprune.model.runner import PLAIN, Runner
from onnxprune.model.session import Feeds
from onnxprune.plans.cut import Cut
from onnxprune.plans.plan import plan_from_units
from onnxprune.rewrite.rewrite import rewrite
from onnxprune.rewrite.verify import Verification, compare, refuse_random
from onnxprune.structure.trace import trace

MOST_ROUNDS = 20


@dataclass(frozen=True)
class CleanUp:
    """What was taken out of a model.

    Attributes:
        records: what each step took out, counts by kind, by the name of the step.
        verification: how far the result is from the model before, None if nothing went.
        dropped: steps that were found but not exact, and so not taken.
    """

    records: Mapping[str, Counter[str]] = field(default_factory=dict)
    verification: Verification | None = None
    dropped: tuple[str, ...] = ()

    @property
    def channels(self) -> Mapping[str, int]:
        """Units by kind (see :data:`~onnxprune.clean.redundancy.KINDS`)."""
        found = self.records.get("channels", Counter())
        return {kind: count for kind, count in found.items() if kind != "branches"}

    @property
    def nodes(self) -> Mapping[str, int]:
        """Nodes that passed their input on, by operator."""
        return self.records.get("nodes", {})

    @property
    def branches(self) -> int:
        """Operands that were constant and are now folded."""
        return self.records.get("channels", Counter())["branches"]

    @property
    def merged(self) -> int:
        """Linear layers that the layer behind them computes as well."""
        return self.records.get("layers", Counter())["merged"]

    @property
    def others(self) -> Mapping[str, Mapping[str, int]]:
        """Records of all other steps, by name."""
        own = ("nodes", "channels", "layers")
        return {name: dict(r) for name, r in self.records.items() if name not in own}

    def __bool__(self) -> bool:
        return any(sum(record.values()) for record in self.records.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the report's ``clean_up``."""
        return {
            "channels": {kind: self.channels.get(kind, 0) for kind in KINDS},
            "nodes": dict(sorted(self.nodes.items())),
            "branches": self.branches,
            "merged": self.merged,
            "max_rel_error": self.verification.max_rel_error if self.verification else None,
            "dropped": list(self.dropped),
            **self.others,
        }

    def warnings(self) -> list[str]:
        """Say which steps had to be dropped."""
        steps = {step.name: step for step in STEPS}
        return [
            f"{name} that {steps[name].useless if name in steps else 'do nothing'} were found, "
            f"but without them the outputs differ by more than "
            f"{steps[name].tolerance if name in steps else LIMIT:g}, so they stay"
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
        for name, record in self.others.items():
            parts.append(f"{name}: {', '.join(f'{n} {kind}' for kind, n in record.items())}")
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

    def observed(model: Model) -> Seen:
        shapes = observe(model, feeds, runner=runner)
        return Seen(fold(model, shapes), shapes, exclude, states or {}, align)

    def check(reference: Model, candidate: Model) -> Verification:
        return compare(reference, candidate, start.shapes.feeds, runner=runner)

    start = observed(model)
    result, what = _rounds(model, start, observed)
    if not what:
        return result, what
    proof = check(model, result)
    allowed = min(step.tolerance for step in STEPS if step.name in what.records)
    if proof.max_rel_error <= allowed:
        return result, replace(what, verification=proof)
    refuse_random(model, start.shapes.feeds, runner=runner)
    return _rounds(model, start, observed, check)


def _rounds(
    model: Model,
    seen: Seen,
    observed: Callable[[Model], Seen],
    check: Callable[[Model, Model], Verification] | None = None,
) -> tuple[Model, CleanUp]:
    """Take the steps until nothing more is found; each that passes a check, if there is one."""
    proof, records = None, dict[str, Counter[str]]()
    reference = current = model
    dropped: list[str] = []
    larger = set[str]()  # what makes up for what goes would be more than that
    for _ in range(MOST_ROUNDS):
        found = False
        for step in STEPS:
            if step.name in dropped or step.name in larger or (step.last and found):
                continue
            candidate, went = step.apply(seen)
            if not went:
                continue
            if any(a > b for a, b in zip(_sizes(candidate), _sizes(seen.model), strict=True)):
                larger.add(step.name)
                continue
            if check is not None:
                result = check(reference, candidate)
                if not result.max_rel_error <= step.tolerance:
                    dropped.append(step.name)
                    continue
                if reference is model or not proof or result.max_rel_error > proof.max_rel_error:
                    proof = result
                if step.tolerance > LIMIT:  # the steps behind it answer for their own error only
                    reference = candidate
            current, found = candidate, True
            records.setdefault(step.name, Counter()).update(went)
            seen = observed(current)
        if not found:
            break
    return current, CleanUp(records, proof, tuple(dropped))


def _sizes(model: Model) -> tuple[int, int]:
    """Return the parameters of a model, and the bytes of its constants."""
    held = sum(
        int(np.prod(t.dims)) * helper.tensor_dtype_to_np_dtype(t.data_type).itemsize
        for t in model.proto.graph.initializer
    )
    return count_params(model), held


def _nodes(seen: Seen) -> tuple[Model, Counter[str]]:
    """Take out nodes that pass their input on."""
    linear = [name for name, s in seen.states.items() if s.always_on.all()]
    keep = _excluded(seen.model, seen.exclude)[0]
    return drop_noops(seen.model, seen.shapes, linear=linear, keep=keep)


def _layers(seen: Seen) -> tuple[Model, Counter[str]]:
    """Merge linear layers into the next."""
    keep = _excluded(seen.model, seen.exclude)[0]
    merged, count = merge_layers(seen.model, seen.shapes, keep=keep)
    return merged, Counter(merged=count) if count else Counter()


def _channels(seen: Seen) -> tuple[Model, Counter[str]]:
    """Take out channels that others make up for, and branches that are constant."""
    model, shapes = seen.model, seen.shapes
    structure = trace(model, shapes, exclude=_excluded(model, seen.exclude)[1])
    facts = relate(model, shapes, structure, seen.states)
    if not seen.exclude:
        folded, branches = fold_constant_branches(model, facts)
        if branches:  # whose channels need not be looked at any more
            return folded, Counter(branches=branches)
    places = readers(structure, facts)
    kept, counts = find(structure, places, seen.align)
    if not counts:
        return model, counts
    cut = Cut(model, structure, shapes, plan_from_units(model.sha256, structure, kept))
    return absorb(facts, rewrite(cut), places, cut.kept), counts


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


STEPS = [
    Step("nodes", _nodes),
    Step("channels", _channels),
    Step("layers", _layers, useless="could be one with the next", last=True),
]
"""The steps behind the cut, in their order; another one is one more entry."""
