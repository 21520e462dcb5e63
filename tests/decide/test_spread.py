"""Spreads keep the order inside a layer and give layers the shares they are named for."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.decide.allocate import allocate_weights
from onnxprune.decide.spread import SPREADS, erk_share

SHAPES = {"wide": (300, 784), "narrow": (100, 300), "kernel": (16, 16, 3, 3)}


def scores(name: str) -> np.ndarray:
    rng = np.random.default_rng(len(name))
    return (rng.random(SHAPES[name]) * 10.0 ** rng.integers(-3, 3)) ** 2


def kept_shares(spread: str, sparsity: float) -> dict[str, float]:
    """Return the share of each tensor that stays."""
    spread_out = {n: SPREADS[spread](scores(n), erk_share(s)) for n, s in SHAPES.items()}
    nonzero = {n: np.ones(s, dtype=np.bool_) for n, s in SHAPES.items()}
    total = sum(int(np.prod(s)) for s in SHAPES.values())
    masks = allocate_weights(spread_out, nonzero, total, sparsity)
    return {n: float(m.mean()) for n, m in masks.items()}


@pytest.mark.parametrize("spread", SPREADS)
def test_the_order_inside_a_layer_stays(spread: str) -> None:
    own = scores("kernel")
    result = SPREADS[spread](own, erk_share(own.shape))
    assert result.shape == own.shape
    assert np.array_equal(np.argsort(result.ravel()), np.argsort(own.ravel()))


def test_uniform_keeps_the_same_share_of_every_layer() -> None:
    assert list(kept_shares("uniform", 0.6).values()) == pytest.approx([0.4] * 3, abs=1e-3)


def test_erdos_renyi_keeps_in_proportion_to_sizes() -> None:
    kept = kept_shares("erk", 0.9)
    expected = {n: sum(s) / np.prod(s) for n, s in SHAPES.items()}
    ratio = {n: kept[n] / expected[n] for n in SHAPES}
    assert ratio["wide"] == pytest.approx(ratio["narrow"], rel=0.01)
    assert ratio["wide"] == pytest.approx(ratio["kernel"], rel=0.05)


def test_lamp_does_not_see_the_scale_of_a_layer() -> None:
    own = scores("narrow")
    np.testing.assert_allclose(SPREADS["lamp"](own, 1.0), SPREADS["lamp"](1e6 * own, 1.0))


def test_weights_that_are_zero_already_go_first() -> None:
    own = np.arange(100.0).reshape(10, 10)
    for spread in SPREADS.values():
        nonzero = {"w": own >= 30}
        ranked = {"w": spread(np.where(own >= 30, own, 0.0), 0.2)}
        masks = allocate_weights(ranked, nonzero, 100, 0.5)
        assert np.array_equal(masks["w"], own >= 50)
