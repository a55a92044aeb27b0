"""Latency of sessions: interleaved, warmed up, every sample kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from runtimes.records import Latency
from runtimes.session import Session

FEWEST_FOR_P99 = 100
_BLOCK_MS = 40.0
Feeds = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Budget:
    """How long to measure: both the number and the time must be reached.

    Args:
        most_runs: an end for sessions so fast that the time alone would take millions of runs.
    """

    warmup_runs: int
    warmup_s: float
    runs: int
    seconds: float
    most_runs: int = 20_000


QUICK = Budget(warmup_runs=10, warmup_s=0.5, runs=50, seconds=3.0)
FULL = Budget(warmup_runs=10, warmup_s=0.5, runs=1024, seconds=60.0, most_runs=1_000_000)
BRIEF = Budget(warmup_runs=3, warmup_s=0.0, runs=5, seconds=0.0)  # for trying out: no statistic


def time_session(session: Session, feeds: Feeds, budget: Budget = QUICK) -> Latency:
    """Time one session alone; see ``compare``."""
    return compare({"it": session}, feeds, budget)["it"]


def compare(
    sessions: Mapping[str, Session],
    feeds: Feeds,
    budget: Budget = QUICK,
    on_round: Callable[[float], None] | None = None,
) -> dict[str, Latency]:
    """Time sessions on the same input in one process, in turns.

    The machine's speed drifts, so the sessions take turns in blocks of about 40 ms, in an order
    that is reversed each round; the first run of a block, which finds the caches as the other
    session left them, is not timed.

    Args:
        feeds: input name to array, for all sessions.
        on_round: called after each round with the share of the budget that is done, 0 to 1.
    """
    first = {name: _timed_ms(session, feeds) for name, session in sessions.items()}
    warmup = {name: _warm_up(session, feeds, budget) for name, session in sessions.items()}
    samples: dict[str, list[float]] = {name: [] for name in sessions}
    spent_ms = dict.fromkeys(sessions, 0.0)
    order = list(sessions)
    while _least_done(samples, spent_ms, budget) < 1.0:
        for name in order:
            spent_ms[name] += _block(sessions[name], feeds, samples[name], budget.runs)
        order.reverse()
        if on_round:
            on_round(_least_done(samples, spent_ms, budget))
    return {name: summarise(samples[name], first[name], warmup[name]) for name in sessions}


def ratio_of_medians(one: Latency, other: Latency) -> float:
    """Divide the medians: below 1 the first is faster."""
    return one.p50 / other.p50


def summarise(samples: Sequence[float], first: float, warmup: int) -> Latency:
    """Summarise timed runs in milliseconds; percentiles interpolate linearly."""
    values = np.asarray(samples, np.float64)
    p50, p90, p95, p99 = (float(p) for p in np.percentile(values, [50, 90, 95, 99]))
    return Latency(
        runs=len(values),
        warmup=warmup,
        first=first,
        min=float(values.min()),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99 if len(values) >= FEWEST_FOR_P99 else None,
        mean=float(values.mean()),
        std=float(values.std()),
        samples=tuple(float(value) for value in values),
    )


def _least_done(
    samples: Mapping[str, list[float]], spent_ms: Mapping[str, float], budget: Budget
) -> float:
    """Share of the budget that the slowest session has used."""

    def done(name: str) -> float:
        count = len(samples[name])
        if count >= budget.most_runs:
            return 1.0
        by_time = spent_ms[name] / 1000 / budget.seconds if budget.seconds else 1.0
        return min(1.0, count / budget.runs, by_time)

    return min(done(name) for name in samples)


def _timed_ms(session: Session, feeds: Feeds) -> float:
    start = perf_counter_ns()
    session.run(feeds)
    return (perf_counter_ns() - start) / 1e6


def _warm_up(session: Session, feeds: Feeds, budget: Budget) -> int:
    runs, spent_ms = 0, 0.0
    while runs < budget.warmup_runs or spent_ms < budget.warmup_s * 1000:
        spent_ms += _timed_ms(session, feeds)
        runs += 1
    return runs


def _block(session: Session, feeds: Feeds, samples: list[float], runs: int) -> float:
    """Run one untimed and then timed runs for a block; returns the time of all, in ms."""
    spent = _timed_ms(session, feeds)
    fewest = min(2, math.ceil(runs / 10))
    count, timed = 0, 0.0
    while count < fewest or timed < _BLOCK_MS:
        sample = _timed_ms(session, feeds)
        samples.append(sample)
        timed += sample
        count += 1
        if count >= runs:
            break
    return spent + timed
