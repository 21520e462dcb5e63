"""Spread: how a budget is spread over the layers. Numpy only.

Everything is ranked together in the end (see :mod:`onnxprune.decide.allocate`); a spread rewrites
the scores of each layer, without changing their order, so that this ranking gives the shares of
the layers that it is named for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.arrays import F64

Spread = Callable[[F64, float], F64]
"""Given the scores of a layer (any shape, 0 or more, higher = keep) and its :func:`erk_share`,
returns scores that can be ranked with those of other layers."""


def _lamp(scores: F64, _: float) -> F64:
    return share_of_rest(scores)


def _erk(scores: F64, share: float) -> F64:
    return np.asarray(_standing(scores) + np.log(share))


def _uniform(scores: F64, _: float) -> F64:
    return _standing(scores)


def share_of_rest(scores: F64) -> F64:
    """Divide each score by the sum of those of its layer that are not smaller.

    With squared magnitudes this is LAMP (Lee et al., arXiv 2010.07611, section 3); with errors
    it says how much of what would be left a weight takes away, so that layers can be ranked
    together without knowing their scale.
    """
    flat = scores.ravel()
    order = np.argsort(-flat, kind="stable")
    result = np.empty_like(flat)
    result[order] = flat[order] / np.maximum(np.cumsum(flat[order]), 1e-300)
    return result.reshape(scores.shape)


def erk_share(shape: tuple[int, ...]) -> float:
    """Return the density of a layer relative to others: the sum of its sizes by their product.

    The Erdos-Renyi kernel of Evci et al. (arXiv 1911.11134, section 3.2).
    """
    return float(sum(shape) / max(np.prod(shape, dtype=np.float64), 1.0))


def _standing(scores: F64) -> F64:
    """Return minus the logarithm of the share of the layer that does not score less."""
    flat = scores.ravel()
    order = np.argsort(-flat, kind="stable")
    result = np.empty_like(flat)
    result[order] = -np.log(np.arange(1, len(flat) + 1) / len(flat))
    return result.reshape(scores.shape)


SPREADS: dict[str, Spread] = {
    "global": lambda scores, _: scores,
    "lamp": _lamp,
    "erk": _erk,
    "uniform": _uniform,
}
