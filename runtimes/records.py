"""What a measurement yields: latency and memory, units in every name."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency of one session on one input, in milliseconds.

    Args:
        runs: timed runs, after ``warmup`` runs that were discarded.
        p90: None where what measured does not tell, as ``p95``.
        p99: None below 100 runs, where a 99th percentile would be noise.
        first: the first inference, apart from all others.
        samples: every timed run in order; nothing is clipped.
    """

    runs: int
    warmup: int
    first: float
    min: float
    p50: float
    p90: float | None
    p95: float | None
    p99: float | None
    mean: float
    std: float
    samples: tuple[float, ...] = field(repr=False, default=())


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a fresh process that loads an artifact and runs it, in bytes.

    Args:
        baseline_rss_bytes: resident before the artifact is loaded, runtime already warm.
        loaded_rss_bytes: resident after loading, before the first run.
        settled_rss_bytes: resident after the runs.
        peak_rss_bytes: highest resident size of the process.
        anonymous_bytes: anonymous part of the growth over the baseline, after the runs.
        file_bytes: file-backed part of that growth: clean pages that the kernel may drop.
        weights_resident_bytes: the weights in all their copies: anonymous growth by loading,
            before any activation exists, and the pages mapped from the artifact's files after
            the runs, less what loading the same graph without its weights takes.
    """

    baseline_rss_bytes: int
    loaded_rss_bytes: int
    settled_rss_bytes: int
    peak_rss_bytes: int
    anonymous_bytes: int
    file_bytes: int
    weights_resident_bytes: int


@dataclass(frozen=True, slots=True)
class Environment:
    """The machine a measurement was made on.

    Args:
        cpu: the processor, or the board where the system names that.
        runtime: each runtime that measured with its version, joined by commas.
        throttled: whether the machine slowed itself down while measuring.
        emulated: whether it is no real machine, such as QEMU's; its times are not a device's.
        clocks_hz: of each core, before and after, where the system tells.
        temperatures_c: of the hottest zone, before and after, in degrees Celsius.
        power_mode: as the device names it, such as a Jetson's ``MAXN``.
        power_w: mean power of the whole board while measuring, where it has a sensor.
        warnings: what makes the figures doubtful, a sentence each.
    """

    host: str
    cpu: str
    arch: str
    cores: int
    memory_bytes: int
    os: str
    governor: str | None
    runtime: str
    python: str
    swapped: bool = False
    throttled: bool = False
    emulated: bool = False
    clocks_hz: tuple[tuple[int, ...], ...] = ()
    temperatures_c: tuple[float, ...] = ()
    power_mode: str | None = None
    power_w: float | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """Time of one operator of an artifact, the mean of several runs.

    Args:
        index: of the node in the file's graph; of the operator in the delegate where
            ``delegated``: a delegate joins and splits nodes, so these do not agree.
        op: its type as the runtime names it.
        mean_ms: of one run, in milliseconds.
        share: of the time of all operators, 0 to 1.
        delegated: whether a delegate ran it, such as XNNPACK.
    """

    index: int
    op: str
    mean_ms: float
    share: float
    delegated: bool
