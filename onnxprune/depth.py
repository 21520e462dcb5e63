"""Depth: which whole parts of a model can go, one after the other.

Parts are ranked by trial removal: how far the outputs move from those of the original if a part
is silent, on the samples that decide. The one that moves them least leaves, what is left is
fitted, and the others are ranked anew, on what is left. Only those that did best before are tried
again, as long as none that was not can be better (removals get dearer as others leave).

Branches leave first, then layers without a path around them. Where there are too many to try,
those with the least entropy come first (see :mod:`onnxprune.entropy`; EGP, arXiv 2308.06619, takes
the entropy alone).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from onnxprune.entropy import Activity
from onnxprune.execute import shortened
from onnxprune.recovery import QUICK, sample_chunks
from onnxprune.removals import Removal, apart
from onnxprune.sensitivity import divergences, outputs_of, trial_chunks
from onnxprune.shorten import with_gates
from onnxprune.study import Study

MOST_BRANCHES, MOST_LAYERS = 48, 4
"""Branches and layers that are tried in a round; trying a layer takes a fit."""

AT_ONCE = 3
"""Branches that are tried again together."""


def shortenings(study: Study) -> Iterator[Study]:
    """Yield a study with one part gone, then with two, and so on until none can go.

    What is left is fitted with little effort.

    Args:
        study: of the whole model.
    """
    entropies = part_entropies(study.removals, study.rectifiers or ())
    known: dict[str, float] = {}
    current, gone = study, tuple[Removal, ...]()
    while True:
        left = [r for r in study.removals if all(apart(r, g) for g in gone)]
        branches = [r for r in left if r.kind == "branch"]
        names = [r.name for r in branches or left]
        names.sort(key=lambda n: (n not in known, known.get(n, 0.0), entropies[n]))
        if not names:
            return
        if branches:
            best = _best_branch(study, current, names[:MOST_BRANCHES], known)
            current = shortened(study, [*(g.name for g in gone), best], QUICK)
        elif study.request.recover == "full":
            tried = {
                n: shortened(study, [*(g.name for g in gone), n], QUICK)
                for n in sorted(names, key=entropies.__getitem__)[:MOST_LAYERS]
            }
            best = min(tried, key=lambda n: _loss(tried[n]))
            current = tried[best]
        else:
            return
        gone = (*gone, next(r for r in left if r.name == best))
        yield current


def part_entropies(
    removals: Sequence[Removal], rectifiers: Sequence[Activity]
) -> Mapping[str, float]:
    """Return the least entropy of the rectifiers inside each part, in bits; 1 without any."""
    return {
        r.name: min((a.entropy for a in rectifiers if a.rectifier.output in r.nodes), default=1.0)
        for r in removals
    }


def _best_branch(
    study: Study, current: Study, names: Sequence[str], known: dict[str, float]
) -> str:
    """Return the branch that is missed least; remember what was found out."""
    fresh = set[str]()
    while True:
        first = [n for n in names if n not in known]
        again = sorted((n for n in names if n not in fresh), key=lambda n: known.get(n, 0.0))
        batch = first or again[:AT_ONCE]
        if batch:
            known |= _missed(study, current, batch)
            fresh |= set(batch)
        best = min(fresh, key=lambda n: known[n])
        if all(known[best] <= known[n] for n in names if n not in fresh):
            return best


def _missed(study: Study, current: Study, names: Sequence[str]) -> dict[str, float]:
    """Return how far the outputs move from the original's if each of some branches is silent."""
    removals = {r.name: r for r in study.removals}
    gated, gates = with_gates(current.subject.folded, [removals[n] for n in names])
    part = study.samples.select if len(study.samples.select) else study.samples.fit
    given = study.given
    chunks = trial_chunks(
        sample_chunks(given.folded, given.shapes, part), len(study.removals), given.cost.macs
    )
    with study.log.stage("trials"):
        found = divergences(
            gated,
            study.output,
            chunks,
            [{gates[n]: np.zeros(())} for n in names],
            reference=outputs_of(given.folded, study.output, chunks, threads=study.request.threads),
            threads=study.request.threads,
            progress=study.log.progress("trials", len(names)),
        )
    return dict(zip(names, found.tolist(), strict=True))


def _loss(study: Study) -> float:
    assert study.shortening is not None
    return float(study.shortening.recovery.get("loss_with", float("inf")))
