"""Log-probabilities of class scores, and how far two models' are from each other."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.measure.class_scores import log_probabilities
from onnxprune.measure.divergence import divergence

ODDS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32) * 4


def softmax(values, temperature=1.0):
    powers = np.exp(np.asarray(values, np.float64) / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_log_odds_and_probabilities_say_the_same(temperature):
    expected = softmax(ODDS, temperature)
    for scores in (ODDS, softmax(ODDS).astype(np.float32)):
        found = log_probabilities(scores, temperature)
        assert found.dtype == np.float64
        np.testing.assert_allclose(np.exp(found), expected, rtol=1e-5)
        np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0, rtol=1e-12)


def test_probabilities_that_hardly_sum_to_one_are_normalised():
    rounded = np.array([[0.9, 0.1005], [0.25, 0.75]])
    found = np.exp(log_probabilities(rounded))
    np.testing.assert_allclose(found, rounded / rounded.sum(axis=1, keepdims=True), rtol=1e-12)


def test_an_impossible_class_is_finite():
    assert np.isfinite(log_probabilities(np.array([[1.0, 0.0]]))).all()


def test_divergence_is_the_mean_over_all_samples():
    p, q = softmax(ODDS), softmax(ODDS[::-1])
    expected = (p * np.log(p / q)).sum() / len(p)
    chunks = [[np.log(v[:2]), np.log(v[2:])] for v in (p, q)]
    assert divergence(*chunks) == pytest.approx(expected)
    assert divergence(chunks[0], chunks[0]) == 0.0
    assert divergence(chunks[0], [np.full((2, 3), np.nan), chunks[1][1]]) == np.inf
