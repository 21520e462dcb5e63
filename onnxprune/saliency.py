"""Saliency: what a single weight is worth if the others make up for it. Numpy and scipy only.

For each output row of a layer with surviving inputs ``S``, least squares on the second moments
of the original gives weights ``w``, and removing weight ``j`` then adds the squared error
``w_j^2 / [(C_SS + lambda I)^-1]_jj`` (Optimal Brain Surgeon; for layers see arXiv 2208.11580).
The diagonal is taken from the inverse of the whole ``C``, once, not from one inverse per row.
"""

from __future__ import annotations

import numpy as np

from onnxprune.arrays import F64, Bool
from onnxprune.solve import ridge_rows

DAMPING = 1e-2
"""Ridge for the inverse, as a multiple of the mean variance of the inputs."""

REFIT_DAMPING = 1e-3
"""Ridge for the refit, likewise."""


def refitted(
    weights: F64,
    covariance: F64,
    support: Bool,
    inverse_diagonal: F64,
    start: F64 | None = None,
    damping: float = REFIT_DAMPING,
) -> tuple[F64, F64]:
    """Refit the weights of a layer on a support, and say what each of them is worth.

    Args:
        weights: ``float64 [outputs, width]`` of the original.
        covariance: ``float64 [width, width]`` of its inputs.
        support: ``bool [outputs, width]``, the weights that are left.
        inverse_diagonal: ``float64 [width]``, that of the damped inverse of the covariance.
        start: weights near the result, see :func:`onnxprune.solve.ridge_rows`.
        damping: ridge as a multiple of the mean variance of the inputs.

    Returns:
        The refitted weights, zero outside the support, and the squared error that removing
        each would add, zero outside; both ``float64 [outputs, width]``.
    """
    fitted = weights
    if not support.all():
        variance = np.diagonal(covariance)
        live = variance > 0
        ridge = damping * float(variance[live].mean()) if live.any() else 1.0
        fitted = ridge_rows(weights, covariance, support, ridge, start)
    return fitted, np.where(support, fitted**2 / inverse_diagonal, 0.0)
