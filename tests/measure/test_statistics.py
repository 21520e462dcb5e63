"""Per-class statistics against numpy and scipy on the whole data."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from onnxprune.measure.statistics import ActivationStats, f_statistic


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
    merged = ActivationStats.empty(4, squares=True)
    for part, part_labels in zip(np.split(values, cuts), np.split(labels, cuts), strict=True):
        merged = merged.merge(ActivationStats.of(part, part_labels, part**2))
    assert merged.labels.tolist() == sorted(set(labels.tolist()))
    within = np.zeros(4)
    for label, count, mean in zip(merged.labels, merged.count, merged.mean, strict=True):
        own = values[labels == label]
        assert count == len(own)
        np.testing.assert_allclose(mean, own.mean(axis=0), rtol=1e-10)
        within += ((own - own.mean(axis=0)) ** 2).sum(axis=0)
    np.testing.assert_allclose(merged.m2, within, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(merged.overall_mean(), values.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(merged.rms(), np.sqrt((values**2).mean(axis=0)), rtol=1e-10)


@pytest.mark.parametrize("offset", [0, 2, 100])
def test_merge_is_associative(offset):
    """Also of shards with other classes each."""
    drawn = [draw(seed, 20, 3, 2) for seed in range(3)]
    parts = [ActivationStats.of(v, labels + offset * k) for k, (v, labels) in enumerate(drawn)]
    left = parts[2].merge(parts[0]).merge(parts[1])
    right = parts[2].merge(parts[0].merge(parts[1]))
    np.testing.assert_array_equal(left.labels, right.labels)
    np.testing.assert_array_equal(left.count, right.count)
    np.testing.assert_allclose(left.mean, right.mean, rtol=1e-12)
    np.testing.assert_allclose(left.m2, right.m2, rtol=1e-10)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(-1e3, 1e3), st.floats(0.01, 100))
def test_f_equals_scipy_and_ignores_scale_and_shift(seed, classes, shift, scale):
    values, labels = draw(seed, 80, classes, 3)
    present = np.unique(labels)
    f = f_statistic(ActivationStats.of(values, labels * 1000))
    expected = scipy_stats.f_oneway(*(values[labels == k] for k in present)).statistic
    np.testing.assert_allclose(f, expected, rtol=1e-9)
    moved = f_statistic(ActivationStats.of(values * scale + shift, labels))
    np.testing.assert_allclose(moved, expected, rtol=1e-5)


def test_f_where_variances_vanish():
    labels = np.array([0, 0, 1, 1, 2])
    constant = np.full(5, 0.1)
    between = np.array([1.0, 1.0, 2.0, 2.0, 3.0])
    mixed = np.array([1.0, 2.0, 1.0, 2.0, 1.5])
    f = f_statistic(ActivationStats.of(np.stack([constant, between, mixed], axis=1), labels))
    assert f[0] == 0.0
    assert np.isposinf(f[1])
    assert f[2] == pytest.approx(0.0, abs=1e-12)


def test_a_class_with_one_sample_counts():
    values, labels = draw(1, 30, 2, 2)
    values, labels = np.vstack([values, [[9.0, 9.0]]]), np.append(labels, 2)
    with np.errstate(all="ignore"):
        expected = scipy_stats.f_oneway(*(values[labels == k] for k in range(3))).statistic
    np.testing.assert_allclose(f_statistic(ActivationStats.of(values, labels)), expected)


@pytest.mark.parametrize(
    "labels", [[0, 0, 0], [0, 1, 2]], ids=["one class", "no more than classes"]
)
def test_undefined_f_is_nan(labels):
    values = np.arange(6.0).reshape(3, 2)
    assert np.isnan(f_statistic(ActivationStats.of(values, np.array(labels)))).all()


def test_rms_needs_squares():
    with pytest.raises(ValueError, match="not gathered"):
        ActivationStats.of(*draw(0, 5, 2, 1)).rms()


def test_classes_that_do_not_occur_take_no_memory():
    """10,000 classes of which 50 occur, 4,000 channels: all of them would take 320 MB."""
    rng = np.random.default_rng(0)
    labels = rng.choice(10_000, 50, replace=False)[rng.integers(0, 50, 600)]
    values = rng.standard_normal((600, 4000)) + labels[:, None] % 7
    tracemalloc.start()
    stats = ActivationStats.empty(4000)
    for k in range(0, 600, 100):
        stats = stats.merge(ActivationStats.of(values[k : k + 100], labels[k : k + 100]))
    f = f_statistic(stats)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6
    expected = scipy_stats.f_oneway(*(values[labels == k] for k in np.unique(labels))).statistic
    np.testing.assert_allclose(f, expected, rtol=1e-9)
