"""Conformance of every criterion, and the meaning of the scores."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.decide.score import CRITERIA, Evidence, Scorer
from onnxprune.errors import CalibrationError
from onnxprune.measure.statistics import ActivationStats
from onnxprune.structure.labels import Labels
from onnxprune.structure.structure import Group, Structure, Weight


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_every_criterion_conforms(name):
    rng = np.random.default_rng(0)
    magnitude, f, rms = (rng.random((5, 4)) for _ in range(3))
    given = [a.copy() for a in (magnitude, f, rms)]

    def score(order: np.ndarray) -> np.ndarray:
        evidence = Evidence(magnitude[order], f[order], rms[order], np.random.default_rng(1))
        return np.asarray(CRITERIA[name](evidence))

    order = np.arange(5)
    scores = score(order)
    assert scores.shape == (5, 4)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    if name != "random":
        np.testing.assert_array_equal(score(order[::-1]), scores[::-1])
    for before, after in zip(given, (magnitude, f, rms), strict=True):
        np.testing.assert_array_equal(before, after)


def test_f_magnitude_grows_with_f_and_with_magnitude():
    def score(magnitude: float, f: float) -> float:
        evidence = Evidence(
            np.array([magnitude]), np.array([f]), np.ones(1), np.random.default_rng(0)
        )
        return float(CRITERIA["f-magnitude"](evidence)[0])

    assert score(1, 4) > score(1, 1) > score(0.5, 1) > 0
    assert score(1, 0) == 0


def two_layers(values: np.ndarray, labels_of: np.ndarray) -> tuple[Structure, dict, dict]:
    """A chain x[3] -> hidden[4] -> out[2]; the hidden units are prunable."""
    labels = Labels()
    hidden = labels.fresh(4)
    units = labels.solve()
    index = np.arange

    def weight(
        node: str, shape: tuple[int, int], data: str, inner: object, outer: object
    ) -> Weight:
        axes = {a: lab for a, lab in ((1, inner), (0, outer)) if lab is not None}
        return Weight(
            node, "Gemm", 1, f"{node}.w", shape, data, 1,
            index(shape[1]).reshape(1, -1), index(shape[0]).reshape(-1, 1), -1,
            inner, outer, axes,
        )  # fmt: skip

    rng = np.random.default_rng(0)
    tensors = {"a.w": rng.normal(size=(4, 3)), "b.w": rng.normal(size=(2, 4))}
    layers = (weight("a", (4, 3), "x", None, hidden), weight("b", (2, 4), "h", hidden, None))
    group = Group("a", units.unit_of[units.component[hidden]], ("a",))
    structure = Structure(
        units, (), (), (), (), (), (), layers, (hidden,), (group,), (), frozenset()
    )
    stats = {
        ("x", 1): ActivationStats.of(values[:, :3], labels_of, values[:, :3] ** 2),
        ("h", 1): ActivationStats.of(values, labels_of, values**2),
    }
    return structure, tensors, stats


def sample() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    labels = np.repeat([0, 1], 20)
    values = rng.normal(size=(40, 4))
    values[:, 2] += 10 * labels  # channel 2 tells the classes apart
    return values, labels


def test_a_channel_that_tells_classes_apart_ranks_first():
    structure, tensors, stats = two_layers(*sample())
    tensors = {n: np.ones_like(w) for n, w in tensors.items()}
    scores = Scorer(structure, tensors, stats, metric="f-magnitude", seed=0).score_units()
    assert scores.argmax() == 2
    masks = Scorer(structure, tensors, stats, metric="f-magnitude", seed=0).score_weights()
    assert (masks["b.w"].argmax(axis=1) == 2).all()


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_scores_are_finite_and_seeded(name):
    structure, tensors, stats = two_layers(*sample())
    first, again = (Scorer(structure, tensors, stats, metric=name, seed=3) for _ in range(2))
    units = first.score_units()
    assert units.shape == (4,)
    assert np.isfinite(units).all()
    np.testing.assert_array_equal(units, again.score_units())
    for tensor, scores in first.score_weights().items():
        assert scores.shape == tensors[tensor].shape
        assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_the_order_of_calls_decides_nothing(name):
    structure, tensors, stats = two_layers(*sample())
    one, other = (Scorer(structure, tensors, stats, metric=name, seed=3) for _ in range(2))
    weights, units = one.score_weights(), one.score_units()
    np.testing.assert_array_equal(other.score_units(), units)
    for tensor, scores in other.score_weights().items():
        np.testing.assert_array_equal(scores, weights[tensor])


def test_infinite_f_is_the_largest_and_dead_channels_are_last():
    values, labels = sample()
    values[:, 0] = 0.0
    values[:, 1] = labels
    structure, tensors, stats = two_layers(values, labels)
    tensors = {n: np.ones_like(w) for n, w in tensors.items()}
    scores = Scorer(structure, tensors, stats, metric="f-magnitude", seed=0).score_units()
    assert np.isfinite(scores).all()
    assert scores[1] == scores.max()
    assert scores[0] == 0.0


def test_undefined_f_is_an_error():
    structure, tensors, stats = two_layers(np.ones((2, 4)), np.array([0, 1]))
    with pytest.raises(CalibrationError, match="more samples than classes"):
        Scorer(structure, tensors, stats, metric="f", seed=0)
