"""EGP: weights leave where the entropy is least, until whole layers are empty and leave the graph.

After Liao, Quetu, Nguyen, Tartaglione, arXiv 2308.06619, and its code, with a closed-form recovery
where they train. Candidates are the layers that a rectifier follows. With the entropy ``H_l`` (see
:mod:`onnxprune.measure.entropy`) and the mean magnitude ``m_l`` of the weights of layer ``l`` that
are not zero, its importance is ``I_l = H_l m_l`` and its irrelevance ``R_l = sum_j I_j / I_l``. Of
a budget of ``B`` weights that leave in a round, ``B softmax(R)_l`` are those of layer ``l``; what
is more than it has goes to the others by the same rule, without it. In each layer the smallest
weights leave. Rounds end at sparsities ``1 - 0.5^i``; the remaining layers are fitted, and the
entropies are measured anew after each.

A layer that is empty, or has no entropy, leaves the graph: with the branch that is nothing without
it, or alone, where what reads its result can be fitted to read its input. Where it cannot leave, or
too much would leave with it, some of its weights stay, and others leave in their place.

For comparison ``magnitude`` does the same with one threshold on the magnitude of all weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.arrays import F64, I64, Array, Bool
from onnxprune.decide.allocate import WEIGHT_FLOOR
from onnxprune.errors import BudgetError
from onnxprune.linear.bias import original_node
from onnxprune.model import cost
from onnxprune.plans.plan import PruningPlan
from onnxprune.printable import told_apart
from onnxprune.recover.ladder import QUICK
from onnxprune.run.execute import Outcome, execute, recovered_study, without_parts
from onnxprune.run.study import Study
from onnxprune.search.strategy import Answer, Strategy
from onnxprune.structure.rectifiers import rectified_layers
from onnxprune.structure.removals import Removal, apart, hangs_on
from onnxprune.structure.structure import Weight
from onnxprune.structure.unit_costs import counted

HALF = 0.5
"""The share of the weights that leaves in each round."""


def empty_layers(study: Study) -> Answer:
    """Zero weights up to a sparsity, and let layers leave of which nothing stays.

    Args:
        study: of the whole model; its request has a sparsity.

    Raises:
        BudgetError: if so many weights cannot leave; names the best achievable.
    """
    state = _State(study, (), {}).started()
    stay: dict[str, str] = {}
    for sparsity in rounds(study.run.request.sparsity or 0.0):
        state = _round(study, state, sparsity, stay)
    warnings = [reason for reason in stay.values() if reason]
    if not state.gone:
        warnings.append(
            f"no layer left the model whole: none was empty at sparsity "
            f"{study.run.request.sparsity:g}; ask for more, or use --metric trial with --layers"
        )
    left = without_parts(study, state.names) if state.gone else study
    plan = PruningPlan(study.run.given.original.sha256, {}, state.masks)
    return Answer(left, plan, warnings=tuple(warnings))


STRATEGY = Strategy(
    "empty layers", lambda run: run.request.mode == "depth" and run.request.zeroes, empty_layers
)


def rounds(sparsity: float) -> Iterator[float]:
    """Yield the sparsities at which the rounds end."""
    left = HALF
    while 1 - left < sparsity:
        yield 1 - left
        left *= HALF
    yield sparsity


def importances(entropies: F64, magnitudes: F64) -> F64:
    """Return ``I = H m`` of layers."""
    result: F64 = entropies * magnitudes
    return result


def budgets(importance: F64, available: I64, budget: int) -> I64:
    """Divide a budget of weights among layers by their irrelevance.

    Args:
        importance: ``float64 [layers]``, positive.
        available: ``int64 [layers]``, how many weights each can spare.
        budget: how many leave; all that are available if there are fewer.

    Returns:
        ``int64 [layers]``, how many leave of each.
    """
    result = np.zeros(len(importance), dtype=np.int64)
    waiting = available > 0
    left = min(budget, int(available.sum()))
    while waiting.any():
        irrelevance = importance[waiting].sum() / importance[waiting]
        shares = np.exp(irrelevance - irrelevance.max())
        wanted = np.zeros(len(importance))
        wanted[waiting] = left * shares / shares.sum()
        over = waiting & (wanted > available)
        if not over.any():
            whole = np.floor(wanted).astype(np.int64)
            rest = np.argsort(-(wanted - whole), kind="stable")
            rest = rest[(whole < available)[rest] & waiting[rest]][: left - int(whole.sum())]
            whole[rest] += 1
            return result + whole
        result[over] = available[over]
        left -= int(available[over].sum())
        waiting &= ~over
    return result


@dataclass(frozen=True)
class _State:
    """What is left of a model.

    Attributes:
        left: the study of it, once the parts that are gone are gone.
        gone: these parts, in order.
        masks: what stays of each of its weight tensors.
    """

    left: Study
    gone: tuple[Removal, ...]
    masks: Mapping[str, Bool]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of what is gone."""
        return tuple(r.name for r in self.gone)

    @property
    def count(self) -> int:
        """Weights that are not zero."""
        subject = self.left.subject
        zeroed = sum(
            int(np.count_nonzero(w) - self.masks[n].sum())
            for n, w in subject.weights.items()
            if n in self.masks
        )
        return cost.count_nonzero(subject.folded) - zeroed

    def started(self, masks: Mapping[str, Bool] | None = None) -> _State:
        """Return the same with masks for all weights that may leave, of which some are given."""
        structure = self.left.subject.structure
        names = {w.tensor for w in counted(structure)} - structure.excluded
        made = {n: np.asarray(v != 0) for n, v in self.left.subject.weights.items() if n in names}
        for name, mask in (masks or {}).items():
            if name in made and made[name].shape == mask.shape:
                made[name] &= mask
        return replace(self, masks=made)

    def without(self, study: Study, removal: Removal) -> _State:
        """Return the state without another part; the masks of the other layers stay."""
        gone = (*self.gone, removal)
        left = recovered_study(without_parts(study, [r.name for r in gone]))
        return _State(left, gone, {}).started(self.masks)

    def tried(self) -> Outcome:
        """Zero what the masks say, and recover with little effort."""
        plan = PruningPlan(self.left.run.given.original.sha256, {}, self.masks)
        return execute(self.left, plan, QUICK)

    def seen(self) -> Study:
        """Return a study of the model as it is with the masks, recovered."""
        weights = self.left.subject.weights
        if all((m == (weights[n] != 0)).all() for n, m in self.masks.items()):
            return self.left
        return self.left.of_model(self.tried().model, self.left.shortening)


@dataclass(frozen=True)
class _Layer:
    """A layer in a round.

    Attributes:
        tensor: its weights.
        node: the node, by its first output in the given model.
        values: the weights, recovered.
        mask: those that are left.
        entropy: that of the rectifier that follows; None without one.
        floor: how many of its weights have to stay.
    """

    tensor: str
    node: str
    values: Array
    mask: Bool
    entropy: float | None
    floor: int

    @property
    def available(self) -> int:
        """How many weights it can spare."""
        return max(int(self.mask.sum()) - self.floor, 0)

    @property
    def spare(self) -> F64:
        """The magnitude of the weights that it can spare; infinite for the others."""
        worth = np.where(self.mask, np.abs(self.values), -np.inf).astype(np.float64)
        if self.floor:
            worth.ravel()[np.argsort(worth.ravel(), kind="stable")[-self.floor :]] = np.inf
        return np.where(self.mask, worth, np.inf)

    @property
    def importance(self) -> float:
        """Entropy times the mean magnitude of the weights that are not zero; 0 without either."""
        left = np.abs(self.values[self.mask]).astype(np.float64)
        return (self.entropy or 0.0) * float(left.mean()) if len(left) else 0.0


def _round(study: Study, state: _State, sparsity: float, stay: dict[str, str]) -> _State:
    """Let weights leave until a sparsity is reached, and the layers that are empty then.

    Args:
        study: of the whole model.
        state: the model so far.
        sparsity: the share of the weights that is to be gone.
        stay: layers that may not become empty, and why, where the user should know; those that turn
            out to be needed are added.
    """
    by_entropy = study.run.request.metric == "egp"
    seen = state.seen()
    while True:
        layers = _layers(study, state, seen, stay)
        idle = [la for la in layers if la.entropy == 0 and la.mask.any() and la.node not in stay]
        if by_entropy and idle:
            found = _left_by(study, state, idle[0], state.masks, stay)
        else:
            budget = state.count - _kept(study, sparsity)
            if budget <= 0:
                return state
            masks = _allocated(layers, budget, state, by_entropy=by_entropy)
            empty = [la for la in layers if la.mask.any() and not masks[la.tensor].any()]
            if not empty:
                return replace(state, masks=masks)
            first = min(empty, key=lambda la: la.importance)
            found = _left_by(study, state, first, masks, stay)
        if found is not None:
            state, seen = found, found.seen()


def _kept(study: Study, sparsity: float) -> int:
    """Return how many weights that are not zero a sparsity leaves at most."""
    return int(np.floor((1 - sparsity) * study.run.given.cost.weights + 1e-9))


def _layers(study: Study, state: _State, seen: Study, stay: Collection[str]) -> list[_Layer]:
    """Return the remaining layers, with the entropies of their rectifiers."""
    entropies = _entropies(study, seen)
    nodes: dict[str, list[Weight]] = {}
    for weight in state.left.subject.structure.weights:
        nodes.setdefault(weight.tensor, []).append(weight)
    values, result = seen.subject.weights, []
    for tensor, mask in state.masks.items():
        node = original_node(nodes[tensor][0].node)
        shared = len({w.node for w in nodes[tensor]}) > 1
        may_go = not shared and node not in stay and _exits(study, state, node)
        floor = 0 if may_go else max(1, int(mask.size * WEIGHT_FLOOR))
        found = [entropies[n] for w in nodes[tensor] if (n := original_node(w.node)) in entropies]
        entropy = max(found) if found else None
        result.append(_Layer(tensor, node, values[tensor], mask, entropy, floor))
    return result


def _entropies(study: Study, seen: Study) -> dict[str, float]:
    """Return the entropy of each layer that a rectifier follows, by node of the given model."""
    known = {a.rectifier.output: a.entropy for a in seen.activations.rectifiers or ()}
    subject = seen.subject
    followed = rectified_layers(
        subject.folded,
        subject.structure,
        [a.rectifier for a in seen.activations.rectifiers or ()],
        {r.name: r.result for r in study.run.removals if r.kind == "branch"},
    )
    result: dict[str, float] = {}
    for output, node in followed.items():
        name = original_node(node)
        result[name] = max(known[output], result.get(name, 0.0))
    return result


def _exits(study: Study, state: _State, node: str) -> list[Removal]:
    """Return with which parts a layer can leave: the smallest branch first, then alone."""
    possible = [r for r in study.run.removals if node in r.layers]
    possible = [r for r in possible if all(apart(r, g) for g in state.gone)]
    branches = [r for r in possible if r.kind == "branch"]
    branches = [r for r in branches if hangs_on(study.run.given.folded, r, node)]
    alone = [r for r in possible if r.kind == "layer" and study.run.request.recovery.refits]
    return [*sorted(branches, key=lambda r: len(r.nodes)), *alone]


def _left_by(
    study: Study, state: _State, layer: _Layer, masks: Mapping[str, Bool], stay: dict[str, str]
) -> _State | None:
    """Let a layer leave; None if it has to stay, which is then remembered.

    A part leaves only if no more weights leave with it than are to be gone in the end, and a layer
    alone only if the loss is not worse than with what the masks leave of it.

    Args:
        study: of the whole model.
        state: the model so far.
        layer: the layer, which is empty or has no entropy.
        masks: what would be left of all layers if it stayed.
        stay: layers that have to stay, and why.
    """
    reason = ""
    for removal in _exits(study, state, layer.node):
        found = state.without(study, removal)
        if found.count < _kept(study, study.run.request.sparsity or 0.0):
            continue
        if removal.kind == "layer":
            without = _loss(found.started(masks))
            before = _loss(replace(state, masks=masks))
            if not without <= before:
                worse, better = told_apart(without, before)
                reason = (
                    f"'{layer.node}' is {'idle' if masks[layer.tensor].any() else 'empty'} but "
                    f"stays: without it the loss on held-out samples is {worse} instead of "
                    f"{better}"
                )
                continue
        return found
    stay[layer.node] = reason
    return None


def _loss(state: _State) -> float:
    """Return the loss on the *select* samples once the masks are carried out; 0 without any."""
    return float(state.tried().recovery.get("loss_with", 0.0))


def _allocated(
    layers: Sequence[_Layer], budget: int, state: _State, *, by_entropy: bool
) -> dict[str, Bool]:
    """Choose the weights that stay of each layer once a budget of them is gone.

    Raises:
        BudgetError: if so many cannot leave; names the best achievable.
    """
    possible = sum(la.available for la in layers)
    if budget > possible:
        request, total = state.left.run.request, state.left.run.given.cost.weights
        best = np.floor((1 - (state.count - possible) / total) * 1e4) / 1e4
        raise BudgetError(
            f"{request.goal} cannot be reached by --mode depth --metric {request.metric}: the best "
            f"achievable is {best:.4f}, with what is left of every layer; ask for less"
        )
    masks = {la.tensor: la.mask for la in layers}
    if by_entropy:
        candidates = [la for la in layers if la.importance > 0]
        counts = budgets(
            np.asarray([la.importance for la in candidates]),
            np.asarray([la.available for la in candidates], dtype=np.int64),
            budget,
        )
        for layer, count in zip(candidates, counts.tolist(), strict=True):
            masks |= _without_smallest([layer], count)
        layers = [la for la in layers if not la.importance > 0]
        budget -= int(counts.sum())
    return masks | _without_smallest(layers, budget)


def _without_smallest(layers: Sequence[_Layer], count: int) -> dict[str, Bool]:
    """Return the masks of layers once so many of all their weights, the smallest, are gone."""
    if not layers:
        return {}
    spare = np.concatenate([la.spare.ravel() for la in layers])
    stays = np.concatenate([la.mask.ravel() for la in layers])
    stays[np.argsort(spare, kind="stable")[:count]] = False
    bounds = np.cumsum([la.mask.size for la in layers])[:-1]
    return {
        la.tensor: part.reshape(la.mask.shape)
        for la, part in zip(layers, np.split(stays, bounds), strict=True)
    }
