"""Depth: which whole parts of a model can go, one after the other.

Branches are ranked by trial removal: how far the outputs move from those of the original without a
branch, on the samples that decide. The one that moves them least leaves, and the others are ranked
anew. (Ranking the branches of a fitted model chose worse on training data: fitted layers take over
from each other, and what the outputs can do without then says less.) Only those that did best
before are tried again, as long as none that was not can be better (removals get dearer as others
leave).

Layers without a path around them leave once no branch is left; there a trial is a whole fit.
Where there are too many parts to try, those with the least entropy come first (see
:mod:`onnxprune.measure.entropy`; EGP, arXiv 2308.06619, takes the entropy alone).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from onnxprune.arrays import F64, Array
from onnxprune.measure.divergence import TrialSamples, divergences, reference_of, trial_chunks
from onnxprune.measure.entropy import Activity
from onnxprune.model.model import Model
from onnxprune.model.stepwise import Walk
from onnxprune.rewrite.without_parts import with_gates
from onnxprune.run.study import Study
from onnxprune.samples.chunks import sample_chunks
from onnxprune.structure.removals import Removal, apart

MOST_BRANCHES, MOST_LAYERS = 48, 4
"""Branches and layers that are tried in a round."""

AT_ONCE = 4
"""Branches that are tried again together."""

TEMPERATURE = 1.0
"""Of the scores in trials (see :mod:`onnxprune.measure.divergence`); chosen on training data."""


def branch_order(study: Study) -> Iterator[tuple[str, ...]]:
    """Yield the names of one branch that can go, then of two, and so on until no more can.

    Args:
        study: of the whole model.
    """
    entropies = part_entropies(study.run.removals, study.activations.rectifiers or ())
    trials: Trials | None = None
    names: tuple[str, ...] = ()
    while branches := [r.name for r in _apart(study, names) if r.kind == "branch"]:
        trials = trials or Trials(study)
        known = trials.known
        branches.sort(key=lambda n: (n not in known, known.get(n, 0.0), entropies[n]))
        names = (*names, trials.best(branches[:MOST_BRANCHES]))
        trials.remove(names[-1])
        yield names


def _apart(study: Study, gone: Sequence[str]) -> list[Removal]:
    """Return the removals that are possible beside those that are gone."""
    left = [r for r in study.run.removals if r.name in gone]
    return [r for r in study.run.removals if all(apart(r, g) for g in left)]


class BranchOrder:
    """The branches of a model in the order in which they can go, as far as that is asked for.

    Args:
        study: of the whole model.
    """

    def __init__(self, study: Study) -> None:
        self._order = branch_order(study)
        self._known: list[tuple[str, ...]] = [()]
        whole, macs = max(study.run.given.cost.macs, 1), study.knowledge.node_macs
        self._shares = {r.name: sum(macs[n] for n in r.layers) / whole for r in study.run.removals}

    def enough(self, share: float) -> tuple[str, ...]:
        """Return the fewest that do such a share of the operations; all if they do not."""
        for names in self._all():
            if sum(self._shares[n] for n in names) >= share:
                break
        return names

    def _all(self) -> Iterator[tuple[str, ...]]:
        yield from self._known
        for names in self._order:
            self._known.append(names)
            yield names


def part_entropies(
    removals: Sequence[Removal], rectifiers: Sequence[Activity]
) -> Mapping[str, float]:
    """Return the least entropy of the rectifiers inside each part, in bits; 1 without any."""
    return {
        r.name: min((a.entropy for a in rectifiers if a.rectifier.output in r.nodes), default=1.0)
        for r in removals
    }


class Yardstick:
    """Tells how far the outputs of models are from the original's, on the samples that decide.

    Args:
        study: of the whole model.
        trials: how many models are to be compared at once, roughly.
    """

    def __init__(self, study: Study, trials: int) -> None:
        given = study.run.given
        self._study, self._runner = study, study.run.runner
        samples = study.run.samples
        subset = samples.select if len(samples.select) else samples.fit
        every = sample_chunks(given.folded, given.shapes, subset)
        chunks = trial_chunks(every, max(trials, 1), given.cost.macs)
        self._samples = TrialSamples(study.run.output, chunks, TEMPERATURE)
        self._reference = reference_of(given.folded, self._samples, runner=self._runner)

    def distance(self, model: Model) -> float:
        """Return the mean divergence of a model's outputs, in nats."""
        return float(self._divergences(model, [{}])[0])

    def without(self, gated: Model, gates: Mapping[str, str], names: Sequence[str]) -> list[float]:
        """Return the same for a model without each of some branches.

        Args:
            gated: the model, see :func:`onnxprune.rewrite.without_parts.with_gates`.
            gates: the constant of each branch.
            names: of the branches.
        """
        found = self._divergences(gated, [{gates[n]: np.zeros(())} for n in names])
        return [float(value) for value in found]

    def _divergences(self, model: Model, trials: Sequence[Mapping[str, Array]]) -> F64:
        with self._study.run.log.stage("trials"):
            return divergences(
                model,
                self._samples,
                trials,
                reference=self._reference,
                runner=self._runner,
                progress=self._study.run.log.progress("trials", len(trials)),
            )


class Trials:
    """Tries what the outputs become without a branch.

    Args:
        study: of the whole model.

    Attributes:
        known: how far the outputs moved without each branch when it was last tried.
    """

    def __init__(self, study: Study) -> None:
        branches = [r for r in study.run.removals if r.kind == "branch"]
        self._gated, self._gates = with_gates(study.run.given.folded, branches)
        self._yardstick = Yardstick(study, len(branches))
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
        """Let a branch be gone from now on."""
        walk = Walk(self._gated, [{}])
        walk.replace(self._gates[name], np.zeros(()))
        self._gated = walk.model()

    def _try(self, names: Sequence[str]) -> None:
        found = self._yardstick.without(self._gated, self._gates, names)
        self.known |= dict(zip(names, found, strict=True))
