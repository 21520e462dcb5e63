"""Depth: which whole parts of a model can go, one after the other.

Branches are ranked by trial removal: how far the outputs move from those of the original if a
branch leaves and the nearest layers behind it make up for it as far as they can, on the samples
that decide. The one that moves them least leaves, with what made up for it, and the others are
ranked anew. Only those that did best before are tried again, as long as none that was not can be
better (removals get dearer as others leave).

Layers without a path around them leave once no branch is left; there a trial is a whole fit.
Where there are too many parts to try, those with the least entropy come first (see
:mod:`onnxprune.entropy`; EGP, arXiv 2308.06619, takes the entropy alone).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from onnxprune.entropy import Activity
from onnxprune.execute import shortened
from onnxprune.labels import Array
from onnxprune.layers import Layer, affected, prepare
from onnxprune.least_squares import fit_along
from onnxprune.pruning_plan import PruningPlan
from onnxprune.recovery import QUICK, sample_chunks
from onnxprune.removals import Removal, apart
from onnxprune.sensitivity import divergence, outputs_of, trial_chunks
from onnxprune.shorten import with_gates
from onnxprune.study import Study
from onnxprune.walk import Walk

MOST_BRANCHES, MOST_LAYERS = 48, 4
"""Branches and layers that are tried in a round."""

NEAR = 2
"""Layers behind a branch that make up for it in a trial."""

AT_ONCE, TRIES = 4, 2
"""Branches that are tried again together, and how often each is tried, roughly."""

TEMPERATURE = 1.0
"""Of the scores in trials (see :mod:`onnxprune.sensitivity`); chosen on training data."""


def removal_order(study: Study) -> Iterator[tuple[str, ...]]:
    """Yield the names of one part that can go, then of two, and so on until no more can.

    Args:
        study: of the whole model.
    """
    entropies = part_entropies(study.removals, study.rectifiers or ())
    trials = Trials(study)
    gone = tuple[Removal, ...]()
    while True:
        left = [r for r in study.removals if all(apart(r, g) for g in gone)]
        branches = sorted(
            (r.name for r in left if r.kind == "branch"),
            key=lambda n: (n not in trials.known, trials.known.get(n, 0.0), entropies[n]),
        )
        layers = sorted((r.name for r in left if r.kind == "layer"), key=entropies.__getitem__)
        names = [g.name for g in gone]
        if branches:
            best = trials.best(branches[:MOST_BRANCHES])
            trials.remove(best)
        elif layers and study.request.recover == "full":
            losses = {n: _loss(shortened(study, [*names, n], QUICK)) for n in layers[:MOST_LAYERS]}
            best = min(losses, key=losses.__getitem__)
        else:
            return
        gone = (*gone, next(r for r in left if r.name == best))
        yield tuple(g.name for g in gone)


def part_entropies(
    removals: Sequence[Removal], rectifiers: Sequence[Activity]
) -> Mapping[str, float]:
    """Return the least entropy of the rectifiers inside each part, in bits; 1 without any."""
    return {
        r.name: min((a.entropy for a in rectifiers if a.rectifier.output in r.nodes), default=1.0)
        for r in removals
    }


class Trials:
    """Tries what the outputs become without a branch.

    Args:
        study: of the whole model.

    Attributes:
        known: how far the outputs moved without each branch when it was last tried.
    """

    def __init__(self, study: Study) -> None:
        given = study.given
        self._study, self._threads = study, study.request.threads
        self._removals = {r.name: r for r in study.removals if r.kind == "branch"}
        prepared, self._layers = prepare(
            given.folded, given.structure, PruningPlan(""), given.shapes
        )
        self._gated, self._gates = with_gates(prepared, list(self._removals.values()))
        part = study.samples.select if len(study.samples.select) else study.samples.fit
        every = sample_chunks(given.folded, given.shapes, part)
        self._chunks = trial_chunks(every, TRIES * max(len(self._removals), 1), given.cost.macs)
        self._samples = sum(max(len(v) for v in c.values() if v.ndim) for c in self._chunks)
        self._reference = outputs_of(
            given.folded, study.output, self._chunks, TEMPERATURE, threads=self._threads
        )
        self._constants: dict[str, Array] = {}
        self._repairs: dict[str, dict[str, Array]] = {}
        self._gone = set[str]()
        self.known: dict[str, float] = {}

    def best(self, names: Sequence[str]) -> str:
        """Return the branch that is missed least."""
        fresh = set[str]()
        while True:
            batch = [n for n in names if n not in self.known]
            if not batch:
                again = [n for n in names if n not in fresh]
                batch = sorted(again, key=lambda n: self.known[n])[:AT_ONCE]
            self._try(batch)
            fresh |= set(batch)
            best = min(fresh, key=lambda n: self.known[n])
            if all(self.known[best] <= self.known[n] for n in names if n not in fresh):
                return best

    def remove(self, name: str) -> None:
        """Let a branch that was tried be gone from now on."""
        self._constants |= self._repairs[name]
        self._gone |= set(self._removals[name].layers)

    def _try(self, names: Sequence[str]) -> None:
        study, output = self._study, self._study.output
        before = Walk(study.given.folded, self._chunks, threads=self._threads)
        after = Walk(self._gated, self._chunks, threads=self._threads)
        for constant, values in self._constants.items():
            after.replace(constant, values)
        first = {n: after.first_user({self._gates[n]}) for n in names}
        progress = study.log.progress("trials", len(names))
        with study.log.stage("trials"):
            for name in sorted(names, key=first.__getitem__):
                after.step_to(first[name], [output])
                before.step([self._removals[name].source], [output])
                walks = before.fork(), after.fork()
                repair: dict[str, Array] = {self._gates[name]: np.zeros(())}
                walks[1].replace(self._gates[name], repair[self._gates[name]])
                for fit in fit_along(
                    *walks,
                    self._behind(name),
                    self._samples,
                    later=[output],
                    rows=QUICK.rows,
                    seed=study.request.seed,
                ):
                    repair |= fit.constants
                scores = walks[1].peek(output, {})
                self.known[name] = divergence(self._reference, scores, TEMPERATURE)
                self._repairs[name] = repair
                progress(1)

    def _behind(self, name: str) -> list[Layer]:
        """Return the nearest layers behind a branch that are not gone."""
        gone = self._gone | set(self._removals[name].layers)
        changed = affected(self._gated, self._layers, {name})
        return [layer for layer in changed if layer.node not in gone][:NEAR]


def _loss(study: Study) -> float:
    assert study.shortening is not None
    return float(study.shortening.recovery.get("loss_with", float("inf")))
