"""Latency: what is concluded from times, with a clock and sessions of our own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from onnxprune.errors import ModelError
from onnxprune.model import runner
from onnxprune.model.runner import Runner
from onnxprune.timing import latency, stopwatch
from onnxprune.timing.latency import Block, compare, summarise

ROOT = Path(__file__).parents[2]
LENET = ROOT / "models" / "digits_lenet300.onnx"
FEEDS = {"image": np.zeros((1, 1, 8, 8), np.float32)}


class Machine:
    """A clock that only runs of its sessions move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, costs: dict[str, float]) -> None:
        self.costs, self.now, self.runs, self.made = costs, 0.0, [], []
        monkeypatch.setattr(runner, "Session", self.session)
        monkeypatch.setattr(latency, "perf_counter", lambda: self.now)
        monkeypatch.setattr(stopwatch, "perf_counter", lambda: self.now)
        monkeypatch.setattr(stopwatch, "_waited", lambda _: 0.0)

    def session(self, model, **settings):
        machine = self
        machine.made.append((model, settings))
        machine.now += 0.1

        class Session:
            def run(self, feeds):
                machine.runs.append((model, feeds))
                machine.now += machine.costs[model]

        return Session()


def blocks_of(*ratios: float, rounds: int = 50, spread: float = 0.0) -> list[Block]:
    """Make blocks in which the second model takes so many times as long as the first."""
    rng = np.random.default_rng(0)
    speeds = np.exp(rng.normal(size=(len(ratios), rounds)))  # a machine of very unsteady speed
    return [
        Block(
            np.column_stack([s, s * r * np.exp(spread * rng.normal(size=rounds))]),
            np.zeros((rounds, 2), bool),
            np.zeros((rounds, 2), bool),
            np.array([1.0, 2.0]),
        )
        for s, r in zip(speeds, ratios, strict=True)
    ]


def test_ratios_are_those_of_the_costs(monkeypatch):
    machine = Machine(monkeypatch, {"a": 0.002, "b": 0.001, "c": 0.006})
    result = compare(["a", "b", "c"], FEEDS, runner=Runner(3, "P"), seconds=60)
    assert [r.value for r in result.ratios] == pytest.approx([1, 0.5, 3])
    assert [t.p50_ms for t in result.timings] == pytest.approx([2, 1, 6])
    assert [t.load_ms for t in result.timings] == pytest.approx([100, 100, 100])
    assert result.settled
    assert result.disturbed == 0
    assert [r.is_slower for r in result.ratios] == [False, False, True]
    assert all(
        s == {"threads": 3, "held": None, "provider": "P", "timed": True, "profile": None}
        for _, s in machine.made
    )
    assert all(feeds is FEEDS for _, feeds in machine.runs)
    assert machine.now < 60, "it stops once the ratios are known"


def test_models_take_turns_in_every_position(monkeypatch):
    machine = Machine(monkeypatch, dict.fromkeys("abc", 0.001))
    compare(["a", "b", "c"], FEEDS, seconds=60, rounds=100)
    runs = [m for m, _ in machine.runs]
    warm = 3 * latency.WARM_RUNS
    rounds = [runs[k : k + 3] for k in range(warm, len(runs) - 2, 3)][:60]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert all(rounds[k] == rounds[k + 1][::-1] for k in range(0, 60, 2))
    assert len({tuple(r) for r in rounds}) == 6


def test_each_model_may_have_its_own_inputs(monkeypatch):
    machine = Machine(monkeypatch, {"a": 0.001, "b": 0.001})
    feeds = [{"x": np.zeros(1)}, {"x": np.zeros(2)}]
    compare(["a", "b"], feeds, seconds=1)
    assert {(m, len(f["x"])) for m, f in machine.runs} == {("a", 1), ("b", 2)}
    with pytest.raises(ValueError, match="2 models and 3 sets of inputs"):
        compare(["a", "b"], [*feeds, {}])


def test_time_and_rounds_are_limits(monkeypatch):
    machine = Machine(monkeypatch, {"a": 0.01, "b": 0.01})
    result = compare(["a", "b"], FEEDS, seconds=60, rounds=7)
    assert result.rounds == 7
    machine.now = 0.0
    result = compare(["a", "b"], FEEDS, seconds=1, tolerance=-1.0)
    assert 1 <= machine.now < 2
    assert not result.settled
    slow = Machine(monkeypatch, {"a": 50.0, "b": 50.0})
    assert compare(["a", "b"], FEEDS, seconds=1).rounds == latency.MIN_ROUNDS
    assert slow.now > 2 * latency.MIN_ROUNDS * 50


def test_a_drifting_machine_does_not_matter():
    ratio = summarise(blocks_of(*[0.8] * 10, spread=0.05)).ratios[1]
    assert ratio.value == pytest.approx(0.8, rel=0.02)
    assert ratio.low <= ratio.value <= ratio.high
    assert 0.79 < ratio.low < ratio.high < 0.81


def test_sessions_that_differ_widen_the_interval():
    """Many rounds of few sessions know the ratio of those sessions only."""
    sure = summarise(blocks_of(*[1.0] * 10, spread=0.02))
    unsure = summarise(blocks_of(*np.linspace(0.9, 1.1, 10), spread=0.02))
    assert sure.settled
    assert not unsure.settled
    low, high = unsure.ratios[1].low, unsure.ratios[1].high
    assert low < 0.97
    assert high > 1.03
    assert not unsure.ratios[1].is_slower


def test_one_block_has_an_interval():
    result = summarise(blocks_of(1.0, rounds=5, spread=0.5))
    assert result.ratios[1].low < result.ratios[1].high
    assert not result.settled


def test_what_was_held_up_is_left_out_unless_nothing_else_is_there():
    blocks = blocks_of(*[0.5] * 10)
    for block in blocks:
        block.held_up[10:, 1] = block.disturbed[10:, 1] = True
        block.seconds[10:, 1] *= 100
    result = summarise(blocks)
    assert result.ratios[1].value == pytest.approx(0.5)
    assert result.disturbed == pytest.approx(0.4)
    for block in blocks:
        block.held_up[:] = True
    assert summarise(blocks).ratios[1].value > 5


@pytest.mark.skipif(not stopwatch.thread_ids(), reason="the kernel does not tell")
def test_waiting_is_told_from_working(monkeypatch):
    """Reads of the kernel's counters, by the file that they are about."""
    caller = str(threading.get_native_id())
    waits = iter([0.0, 0.0, 3.0, 0.5])
    monkeypatch.setattr(stopwatch, "_waited", lambda _: next(waits))
    times = iter([10.0, 14.0])
    monkeypatch.setattr(stopwatch, "perf_counter", lambda: next(times))
    with stopwatch.Stopwatch({caller}) as watch:
        lap = watch.time(lambda: None)
    assert (lap.seconds, lap.held_up, lap.disturbed) == (1.0, True, True)


@pytest.mark.skipif(not stopwatch.thread_ids(), reason="the kernel does not tell")
def test_the_counters_are_read():
    """Two busy programs on one core wait for each other."""
    cores = os.sched_getaffinity(0)
    core = {min(cores)}
    script = f"import os; os.sched_setaffinity(0, {core}); print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout
            other.stdout.readline()
            os.sched_setaffinity(0, core)
            with stopwatch.Stopwatch(set()) as watch:
                start = time.perf_counter()
                lap = watch.time(lambda: sum(range(10_000_000)))
                wall = time.perf_counter() - start
        finally:
            os.sched_setaffinity(0, cores)
            other.kill()
    assert lap.disturbed
    assert lap.seconds < 0.8 * wall


def test_a_model_against_itself():
    """A very loose bound: the tests' machine may be busy."""
    result = compare([LENET, LENET], FEEDS, runner=Runner(1), seconds=3)
    assert result.ratios[0].value == result.ratios[0].low == result.ratios[0].high == 1
    assert 0.5 < result.ratios[1].value < 2
    timing = result.timings[1]
    assert 0 < timing.p50_ms <= timing.p95_ms <= timing.p99_ms
    assert timing.load_ms > 0


def test_what_onnxruntime_refuses_is_one_line():
    with pytest.raises(ModelError, match="cannot run the model on image float64"):
        compare([LENET], {"image": np.zeros((1, 1, 8, 8))}, seconds=1)
