"""Per-class statistics against numpy and scipy on the whole data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from onnxprune.statistics import ActivationStats, f_statistic


def draw(seed: int, samples: int, classes: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    values = (
        rng.normal(3.0, 2.0, (samples, channels)) + rng.normal(0, 1, (classes, channels))[labels]
    )
    return values, labels


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 5), st.data())
def test_merged_shards_equal_the_whole(seed, samples, classes, data):
    values, labels = draw(seed, samples, classes, 4)
    cuts = sorted(data.draw(st.lists(st.integers(0, samples), max_size=4)))
    merged = ActivationStats.empty(classes, 4, squares=True)
    for part, part_labels in zip(np.split(values, cuts), np.split(labels, cuts), strict=True):
        merged = merged.merge(ActivationStats.of(part, part_labels, classes, part**2))
    for k in range(classes):
        own = values[labels == k]
        assert merged.count[k] == len(own)
        if len(own):
            np.testing.assert_allclose(merged.mean[k], own.mean(axis=0), rtol=1e-10)
            np.testing.assert_allclose(
                merged.m2[k], ((own - own.mean(axis=0)) ** 2).sum(axis=0), rtol=1e-8, atol=1e-9
            )
    np.testing.assert_allclose(merged.overall_mean(), values.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(merged.rms(), np.sqrt((values**2).mean(axis=0)), rtol=1e-10)


def test_merge_is_associative():
    parts = [ActivationStats.of(*draw(seed, 20, 3, 2), 3) for seed in range(3)]
    left = parts[0].merge(parts[1]).merge(parts[2])
    right = parts[0].merge(parts[1].merge(parts[2]))
    np.testing.assert_allclose(left.mean, right.mean, rtol=1e-12)
    np.testing.assert_allclose(left.m2, right.m2, rtol=1e-10)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(-1e3, 1e3), st.floats(0.01, 100))
def test_f_equals_scipy_and_ignores_scale_and_shift(seed, classes, shift, scale):
    values, labels = draw(seed, 80, classes, 3)
    present = np.unique(labels)
    f = f_statistic(ActivationStats.of(values, labels, classes + 2))
    expected = scipy_stats.f_oneway(*(values[labels == k] for k in present)).statistic
    np.testing.assert_allclose(f, expected, rtol=1e-9)
    moved = f_statistic(ActivationStats.of(values * scale + shift, labels, classes))
    np.testing.assert_allclose(moved, expected, rtol=1e-5)


def test_f_where_variances_vanish():
    labels = np.array([0, 0, 1, 1, 2])
    constant = np.full(5, 0.1)
    between = np.array([1.0, 1.0, 2.0, 2.0, 3.0])
    mixed = np.array([1.0, 2.0, 1.0, 2.0, 1.5])
    f = f_statistic(ActivationStats.of(np.stack([constant, between, mixed], axis=1), labels, 3))
    assert f[0] == 0.0
    assert np.isposinf(f[1])
    assert f[2] == pytest.approx(0.0, abs=1e-12)


def test_a_class_with_one_sample_counts():
    values, labels = draw(1, 30, 2, 2)
    values, labels = np.vstack([values, [[9.0, 9.0]]]), np.append(labels, 2)
    with np.errstate(all="ignore"):
        expected = scipy_stats.f_oneway(*(values[labels == k] for k in range(3))).statistic
    np.testing.assert_allclose(f_statistic(ActivationStats.of(values, labels, 3)), expected)


@pytest.mark.parametrize(
    "labels", [[0, 0, 0], [0, 1, 2]], ids=["one class", "no more than classes"]
)
def test_undefined_f_is_nan(labels):
    values = np.arange(6.0).reshape(3, 2)
    assert np.isnan(f_statistic(ActivationStats.of(values, np.array(labels), 3))).all()


def test_rms_needs_squares():
    with pytest.raises(ValueError, match="not gathered"):
        ActivationStats.of(*draw(0, 5, 2, 1), 2).rms()
