from __future__ import annotations

import math
import time

import numpy as np
import pytest

from runtimes import bench
from runtimes.bench import (
    BRIEF,
    FULL,
    QUICK,
    Budget,
    compare,
    ratio_of_medians,
    summarise,
    time_session,
)

FEEDS = {"x": np.ones(3, np.float32)}
BLOCK_MS = 40


class Clock:
    """A clock that only the sessions move."""

    def __init__(self):
        self.now_ns = 0

    def __call__(self):
        return self.now_ns


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(bench, "perf_counter_ns", clock)
    return clock


class Fake:
    """A session whose every run takes as long on the clock as it is told."""

    inputs = outputs = ()

    def __init__(self, clock, ms, log=None, name=""):
        self.clock, self.ms, self.log, self.name, self.runs = clock, ms, log, name, 0

    def run(self, feeds):
        assert feeds is FEEDS
        ms = self.ms(self) if callable(self.ms) else self.ms
        self.clock.now_ns += round(ms * 1e6)
        self.runs += 1
        if self.log is not None:
            self.log.append(self.name)
        return {}

    def close(self):
        raise AssertionError("the caller's session is the caller's to close")


def budget(**changes):
    return Budget(**({"warmup_runs": 0, "warmup_s": 0.0, "runs": 20, "seconds": 0.0} | changes))


# ---- the figures ------------------------------------------------------------------------------


def test_the_figures_follow_their_definitions():
    samples = [float(value) for value in np.random.default_rng(0).permutation(np.arange(1, 101))]
    latency = summarise(samples, first=7.0, warmup=10)
    assert (latency.runs, latency.warmup, latency.first, latency.min) == (100, 10, 7.0, 1.0)
    # a percentile p of n values lies at place 1 + p (n - 1), between its two neighbours
    for figure, share in (("p50", 0.50), ("p90", 0.90), ("p95", 0.95), ("p99", 0.99)):
        assert getattr(latency, figure) == pytest.approx(1 + share * 99)
    assert latency.mean == pytest.approx(50.5)
    assert latency.std == pytest.approx(math.sqrt((100**2 - 1) / 12))
    assert latency.samples == tuple(samples)


def test_nothing_is_clipped():
    samples = [1.0] * 199 + [5000.0]
    latency = summarise(samples, first=900.0, warmup=3)
    assert (latency.runs, max(latency.samples)) == (200, 5000.0)
    assert latency.mean == pytest.approx(5199 / 200)
    assert (latency.p50, latency.min) == (1.0, 1.0)


@pytest.mark.parametrize("runs", [1, 5, 99])
def test_fewer_than_a_hundred_runs_have_no_99th_percentile(runs):
    latency = summarise([2.0] * runs, first=1.0, warmup=0)
    assert latency.p99 is None
    assert (latency.p50, latency.p90, latency.p95, latency.std) == (2.0, 2.0, 2.0, 0.0)


def test_a_ratio_below_one_says_that_the_first_is_faster():
    fast, slow = (summarise(values, 1.0, 0) for values in ([1, 2, 90], [4, 8, 8]))
    assert ratio_of_medians(fast, slow) == 0.25
    assert ratio_of_medians(slow, fast) == 4.0


# ---- how it is measured -----------------------------------------------------------------------


def test_the_number_of_runs_is_reached_when_the_time_is_long_over(clock):
    session = Fake(clock, 10)
    latency = time_session(session, FEEDS, budget(runs=50, seconds=0.001))
    # blocks of four timed runs take 40 ms, so that fifty are reached within the thirteenth
    assert latency.runs == 52
    assert latency.samples == (10.0,) * 52
    assert session.runs == 1 + 13 * (1 + 4)


def test_the_time_is_reached_when_the_number_of_runs_is_long_over(clock):
    session = Fake(clock, 10)
    latency = time_session(session, FEEDS, budget(runs=4, seconds=2.0))
    # a block takes 50 ms with its untimed run
    assert latency.runs == 4 * 2000 // 50
    assert clock.now_ns / 1e6 == 10 + 2000


def test_the_budget_is_reached_by_the_slowest_session(clock):
    sessions = {"slow": Fake(clock, 30), "fast": Fake(clock, 1)}
    result = compare(sessions, FEEDS, budget(runs=10, seconds=0.0))
    assert result["slow"].runs == 10
    assert result["fast"].runs == 5 * 10


def test_a_very_fast_session_ends_at_the_most_runs(clock):
    session = Fake(clock, 0.01)
    latency = time_session(session, FEEDS, budget(runs=10**6, seconds=60.0, most_runs=5000))
    a_block = BLOCK_MS * 100
    assert 5000 <= latency.runs < 5000 + a_block


def test_warming_up_reaches_its_number_and_its_time(clock):
    by_number = time_session(Fake(clock, 10), FEEDS, budget(warmup_runs=7, warmup_s=0.02))
    by_time = time_session(Fake(clock, 10), FEEDS, budget(warmup_runs=7, warmup_s=0.5))
    assert (by_number.warmup, by_time.warmup) == (7, 50)


def test_the_first_inference_is_apart_and_warm_up_runs_are_no_samples(clock):
    session = Fake(clock, lambda it: 1000 if it.runs == 0 else 200 if it.runs < 6 else 10)
    latency = time_session(session, FEEDS, budget(warmup_runs=5))
    assert (latency.first, latency.warmup) == (1000.0, 5)
    assert set(latency.samples) == {10.0}


def test_the_order_is_reversed_after_each_round(clock):
    log = []
    sessions = {name: Fake(clock, 10, log, name) for name in "abc"}
    compare(sessions, FEEDS, budget(runs=16))
    assert "".join(log[:3]) == "abc"  # each session's first inference
    blocks = [set(log[start : start + 5]) for start in range(3, len(log), 5)]
    assert all(len(block) == 1 for block in blocks)
    assert "".join(block.pop() for block in blocks) == "abc" + "cba" + "abc" + "cba"


def test_the_first_run_of_a_block_is_not_timed(clock):
    log = []

    def cold_after_another(it):
        return 90 if log[-1:] != [it.name] else 10

    sessions = {name: Fake(clock, cold_after_another, log, name) for name in "ab"}
    # where the order turns one session has two blocks on end, the second of which is warm
    for latency in compare(sessions, FEEDS, budget(runs=16)).values():
        assert latency.runs == 16
        assert set(latency.samples) == {10.0}
        assert latency.first == 90.0


def test_a_slow_session_still_gets_two_timed_runs_in_a_block(clock):
    session = Fake(clock, 500)
    latency = time_session(session, FEEDS, budget(runs=20))
    assert latency.runs == 20
    assert session.runs == 1 + 10 * (1 + 2)


def test_progress_is_told_after_each_round_and_ends_at_one(clock):
    shares = []
    compare({"a": Fake(clock, 10)}, FEEDS, budget(runs=16), on_round=shares.append)
    assert shares == [0.25, 0.5, 0.75, 1.0]


def test_a_brief_run_is_brief(clock):
    session = Fake(clock, 300)
    latency = time_session(session, FEEDS, BRIEF)
    assert (latency.warmup, latency.runs) == (3, 5)
    assert latency.p99 is None


def test_a_quick_and_a_full_run_keep_their_promises(clock):
    for chosen, runs, seconds in ((QUICK, 50, 3), (FULL, 1024, 60)):
        start = clock.now_ns
        latency = time_session(Fake(clock, 20), FEEDS, chosen)
        assert latency.warmup >= 10
        assert latency.runs >= runs
        assert clock.now_ns - start >= (seconds + 0.5) * 1e9


class Sleeper:
    inputs = outputs = ()

    def __init__(self, seconds):
        self.seconds = seconds

    def run(self, feeds):
        time.sleep(self.seconds)
        return {}

    def close(self):
        pass


def test_a_session_that_takes_longer_is_found_slower_by_the_real_clock():
    sessions = {"slow": Sleeper(0.02), "fast": Sleeper(0.0002)}
    result = compare(sessions, FEEDS, Budget(1, 0.0, 6, 0.0))
    assert result["slow"].min >= 20  # a sleep is never shorter than asked for
    assert ratio_of_medians(result["fast"], result["slow"]) < 0.1
