"""What NVIDIA's trtexec prints and exports, of TensorRT 8, 10 and 11.

The formats are read from recorded output (tests/data/trtexec) and from the tool's published
source. What differs between versions: up to 8.4 there is one percentile, before it an
``End-to-End Host Latency`` besides; the weights' bytes are printed from 10 on; 11 uses a CUDA graph
and leaves transfers out unless told otherwise. GPU compute time is the one figure that means the
same in all of them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from export.errors import DeviceError, MeasureError
from export.lower.tensorrt.errors import explain, is_out_of_memory
from runtimes.bench import summarise
from runtimes.records import Latency, OperatorTime

MOST_LOG_CHARS = 32 << 20
MOST_EXPORT_CHARS = 64 << 20
_MOST_LINE_CHARS = 8_192
_MIB = 1 << 20
# "[05/13/2025-10:36:46] [I] [TRT] text"; TensorRT's Python logger puts its mark first.
_LINE = re.compile(r"\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\] (?:\[TRT\] )?\[([VIWEF])\] ?(?:\[TRT\] )?")
_VERDICT = re.compile(r"&&&& (RUNNING|PASSED|FAILED) TensorRT\.trtexec(?: \[TensorRT v([\d.]+)\])?")
_NUMBER = r"([-+]?[0-9][0-9.eE+-]*)"
_STATISTIC = re.compile(rf"(min|max|mean|median|percentile\(([0-9.]+)%\)) = {_NUMBER} ms")
_ERRORS = "EF"


@dataclass(frozen=True, slots=True)
class Spread:
    """How one duration spread over the runs, in milliseconds.

    Args:
        percentiles: percent -> value; trtexec takes a sample and does not interpolate.
    """

    min: float
    max: float
    mean: float
    median: float
    percentiles: dict[float, float]


@dataclass(frozen=True, slots=True)
class Summary:
    """The performance summary of one run.

    Args:
        latency: transfers in, computation and transfers out; without the transfers where those
            were turned off.
        gpu_compute: the kernels alone, between two events on the device.
    """

    throughput_per_s: float
    latency: Spread | None
    enqueue: Spread | None
    h2d: Spread | None
    gpu_compute: Spread
    d2h: Spread | None


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the log tells of the engine; None where this version or run prints nothing.

    Args:
        engine_bytes: size of the plan. It is printed in MiB with six digits, or in whole ones.
        weights_bytes: "Total Weights Memory", from TensorRT 10 on.
    """

    engine_bytes: int | None
    weights_bytes: int | None
    activation_bytes: int | None
    device_memory_bytes: int | None
    build_s: float | None
    parse_s: float | None
    deserialize_s: float | None


@dataclass(frozen=True, slots=True)
class TrtexecLog:
    """What a run of trtexec printed.

    Args:
        version: as (8, 6, 1); None where the log does not tell.
        passed: trtexec's own verdict; None where the log ends before one.
        command: its command line, as it repeats it.
        gpu: the device's name.
        settings: whether ``CUDA Graph``, ``Spin-wait`` and ``Data transfers`` were enabled.
        warmup_runs: runs before the timed ones, None where nothing was timed.
        runs: timed runs.
        warnings: what makes the figures doubtful, a sentence each.
        error: why it failed, in one line; None if it passed.
    """

    version: tuple[int, int, int] | None
    passed: bool | None
    command: str
    gpu: str | None
    settings: dict[str, bool]
    engine: EngineFacts
    warmup_runs: int | None
    runs: int | None
    summary: Summary | None
    warnings: tuple[str, ...]
    error: str | None


def parse_log(text: str) -> TrtexecLog:
    """Read what trtexec printed, standard output and error in one or the output alone.

    A failed run is no error here: see ``TrtexecLog.error``, or ``require_passed``.

    Raises:
        MeasureError: the log is too large to be one.
    """
    if len(text) > MOST_LOG_CHARS:
        raise MeasureError(
            f"a trtexec log of {len(text)} characters is not read; run it without --verbose"
        )
    marked = list(_marked_lines(text))
    version, passed, command = _verdict(text)
    version = version or _version_line(marked)
    said = [line for _, line in marked]
    error = None
    if not passed:
        errors = [line for mark, line in marked if mark in _ERRORS]
        error = explain(errors, said, version, broke_off=passed is None)
    return TrtexecLog(
        version=version,
        passed=passed,
        command=command,
        gpu=_after(said, "Selected Device: "),
        settings=_settings(said),
        engine=_engine_facts(said),
        warmup_runs=_count(said, r"Warmup completed (\d{1,12}) queries over"),
        runs=_count(said, r"Timing trace has (\d{1,12}) queries over"),
        summary=_summary(said),
        warnings=_warnings(said, built=passed is not False),
        error=error,
    )


def require_passed(log: TrtexecLog, what: str) -> TrtexecLog:
    """Give the log back if trtexec passed.

    Args:
        what: the device or file that the run was about, for the message.

    Raises:
        DeviceError: it failed, or ended before its verdict.
    """
    if log.error is not None:
        raise DeviceError(f"trtexec on {what}: {log.error}")
    return log


def parse_times(text: str, *, warmup_ms: float = 0.0, warmup_runs: int = 0) -> Latency:
    """Read the times that ``--exportTimes`` wrote: GPU compute time, run by run.

    The time stamps beside it are single floats in six digits, so after a second their differences
    say nothing; ``computeMs`` is exact. TensorRT 8.2 and older export the warm-up too: runs that
    began before ``warmup_ms`` are left out, which is trtexec's own rule.

    trtexec does not report the first inference, so ``Latency.first`` is the first run in the file:
    where the warm-up is exported it is the first inference, else the first one after it.

    Args:
        warmup_ms: what ``--warmUp`` was.
        warmup_runs: how many runs the log says the warm-up had.

    Raises:
        MeasureError: the text is cut short, too large, or no such file.
    """
    runs = [_start_and_compute_ms(entry) for entry in _entries(text, "times")]
    if not runs:
        raise MeasureError("the exported times of trtexec hold no run")
    timed = [compute_ms for start_ms, compute_ms in runs if start_ms >= warmup_ms]
    if not timed:
        raise MeasureError(
            f"the exported times of trtexec hold no run after its warm-up of {warmup_ms:g} ms; "
            "let it run longer"
        )
    return summarise(timed, runs[0][1], max(warmup_runs, len(runs) - len(timed)))


def parse_profile(text: str) -> tuple[OperatorTime, ...]:
    """Read the layers that ``--exportProfile`` wrote, in the engine's order.

    TensorRT joins and splits the operators of the ONNX file, so its layers count as delegated, and
    their names as types. Layers that never ran stand with a time of 0.

    Raises:
        MeasureError: the text is cut short, too large, or no such file.
    """
    # Names are written without escaping: a quote in one leaves text that is no JSON.
    layers = [
        (str(entry["name"]), _milliseconds(entry, "averageMs"), _milliseconds(entry, "timeMs"))
        for entry in _entries(_escape_names(text), "profile")
        if "name" in entry
    ]
    whole_ms = sum(total_ms for _, _, total_ms in layers)
    if not layers or not math.isfinite(whole_ms):
        raise MeasureError("the exported profile of trtexec holds no layers")
    return tuple(
        OperatorTime(index, name, mean_ms, total_ms / whole_ms if whole_ms else 0.0, delegated=True)
        for index, (name, mean_ms, total_ms) in enumerate(layers)
    )


# ---- the log -------------------------------------------------------------------------------------


def _marked_lines(text: str) -> Iterator[tuple[str, str]]:
    """Split a log into lines with their severity, the verbose ones left out.

    A line without a severity goes with the line before.
    """
    mark = "I"
    for line in text.splitlines():
        line = line[:_MOST_LINE_CHARS].rstrip()
        stamp = _LINE.match(line)
        if stamp:
            mark, line = stamp.group(1), line[stamp.end() :]
        elif line.startswith("&&&&"):
            continue
        if line and mark != "V":
            yield mark, line


def _verdict(text: str) -> tuple[tuple[int, int, int] | None, bool | None, str]:
    version, passed, command = None, None, ""
    for found in _VERDICT.finditer(text):
        version = _version(found.group(2) or "") or version
        if found.group(1) != "RUNNING":
            passed = found.group(1) == "PASSED"
        end = text.find("\n", found.end())
        rest = text[found.end() : end if end >= 0 else None][:_MOST_LINE_CHARS]
        command = rest.partition("# ")[2].strip() or command
    return version, passed, command


def _version(digits: str) -> tuple[int, int, int] | None:
    """Read ``8601`` as 8.6.1 and ``100300`` as 10.3.0: two digits more since 10."""
    if re.fullmatch(r"\d{1,3}(\.\d{1,3}){2,3}", digits):
        major, minor, patch = (int(part) for part in digits.split(".")[:3])
        return major, minor, patch
    if not re.fullmatch(r"\d{4,6}", digits):
        return None
    number = int(digits)
    unit = 10_000 if number >= 100_000 else 1_000
    return number // unit, number % unit // 100, number % 100


def _version_line(marked: list[tuple[str, str]]) -> tuple[int, int, int] | None:
    return _version(_after([line for _, line in marked], "TensorRT version: ") or "")


def _after(lines: list[str], start: str) -> str | None:
    return next((line.removeprefix(start) for line in lines if line.startswith(start)), None)


def _count(lines: list[str], pattern: str) -> int | None:
    found = _first(lines, pattern)
    return int(found) if found else None


def _first(lines: list[str], pattern: str) -> str | None:
    compiled = re.compile(pattern)
    for line in lines:
        found = compiled.match(line)
        if found:
            return found.group(1)
    return None


def _settings(lines: list[str]) -> dict[str, bool]:
    found = {}
    for name in ("CUDA Graph", "Spin-wait", "Data transfers"):
        value = _after(lines, f"{name}: ")
        if value in {"Enabled", "Disabled"}:
            found[name] = value == "Enabled"
    return found


def _engine_facts(lines: list[str]) -> EngineFacts:
    def bytes_of(pattern: str) -> int | None:
        return _count(lines, pattern)

    def mib_of(pattern: str) -> int | None:
        mib = _finite(_first(lines, pattern))
        return None if mib is None else round(mib * _MIB)

    def seconds_of(pattern: str) -> float | None:
        return _finite(_first(lines, pattern))

    engine_bytes = mib_of(rf"Created engine with size: {_NUMBER} MiB")
    if engine_bytes is None:
        engine_bytes = mib_of(rf"Loaded engine size: {_NUMBER} MiB")
    return EngineFacts(
        engine_bytes=engine_bytes,
        weights_bytes=bytes_of(r"Total Weights Memory: (\d{1,18})"),
        activation_bytes=bytes_of(r"Total Activation Memory: (\d{1,18})"),
        device_memory_bytes=mib_of(
            rf"Created execution context with device memory size: {_NUMBER} MiB"
        ),
        build_s=seconds_of(rf"Engine built in {_NUMBER} sec"),
        parse_s=seconds_of(rf"Finished parsing network model\. Parse time: {_NUMBER}"),
        deserialize_s=seconds_of(rf"Engine deserialized in {_NUMBER} sec"),
    )


def _summary(lines: list[str]) -> Summary | None:
    throughput = _finite(_first(lines, rf"Throughput: {_NUMBER} qps"))
    compute = _spread(lines, "GPU Compute Time: ")
    if throughput is None or compute is None:
        return None
    return Summary(
        throughput_per_s=throughput,
        latency=_spread(lines, "Latency: "),
        enqueue=_spread(lines, "Enqueue Time: "),
        h2d=_spread(lines, "H2D Latency: "),
        gpu_compute=compute,
        d2h=_spread(lines, "D2H Latency: "),
    )


def _spread(lines: list[str], start: str) -> Spread | None:
    text = _after(lines, f"{start}min = ")
    if text is None:
        return None
    values: dict[str, float] = {}
    percentiles: dict[float, float] = {}
    for name, percent, number in _STATISTIC.findall(f"min = {text}"):
        value = _finite(number)
        of = _finite(percent)
        if value is None:
            return None
        if of is not None:
            percentiles[of] = value
        else:
            values[name] = value
    if values.keys() != {"min", "max", "mean", "median"}:
        return None
    return Spread(**values, percentiles=percentiles)


def _finite(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _warnings(lines: list[str], *, built: bool) -> tuple[str, ...]:
    """Say what trtexec warns of, in the terms of its user; one sentence for each kind."""
    said = []
    unstable = _finite(_first(lines, rf"\* GPU compute time is unstable, .*= {_NUMBER}%"))
    if unstable is not None:
        said.append(
            f"GPU compute time varied by {unstable:.3g} % (standard deviation over mean): lock the "
            "clocks (jetson_clocks) and close what else uses the GPU"
        )
    for start, reason in _BOUNDS:
        if any(line.startswith(start) for line in lines):
            said.append(reason)
    skipped = sum(line.startswith("Skipping tactic") for line in lines)
    skipped += sum("Skipping tactic" in line and line.startswith("Error") for line in lines)
    if built and skipped and any(map(is_out_of_memory, lines)):
        said.append(
            f"{skipped} kernel candidates were skipped for want of memory while building, which is "
            "no failure: the engine is right, but one built with more free memory may be faster"
        )
    return tuple(said)


_BOUNDS = (
    (
        "* Throughput may be bound by Enqueue Time",
        "enqueueing took about as long as the GPU computed, so throughput is the host's: a CUDA "
        "graph may raise it",
    ),
    (
        "* Throughput may be bound by host-to-device",
        "copying the inputs took longer than computing, so throughput is that of the transfers",
    ),
    (
        "* Throughput may be bound by device-to-host",
        "copying the outputs took longer than computing, so throughput is that of the transfers",
    ),
)


# ---- exported files ------------------------------------------------------------------------------


def _entries(text: str, kind: str) -> list[dict[str, Any]]:
    what = f"the exported {kind} of trtexec"
    if len(text) > MOST_EXPORT_CHARS:
        raise MeasureError(f"{what} are too large ({len(text)} characters); let it run shorter")
    try:
        entries = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise MeasureError(f"{what} cannot be read: {reason[:200]}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise MeasureError(f"{what} are no list of entries")
    return entries


def _refuse(constant: str) -> float:
    raise ValueError(constant)


def _start_and_compute_ms(entry: dict[str, Any]) -> tuple[float, float]:
    return _milliseconds(entry, "startComputeMs"), _milliseconds(entry, "computeMs")


def _milliseconds(entry: dict[str, Any], key: str) -> float:
    value = entry.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12:
        return float(value)
    raise MeasureError(f"an entry that trtexec exported has no time {key!r}")


_NAME = re.compile(
    r'^([ ,{]{0,16}"name" : ")(.*)(", "timeMs" : [^"\n]*, "averageMs" : .*)$', re.MULTILINE
)


def _escape_names(text: str) -> str:
    def escaped(found: re.Match[str]) -> str:
        return found.group(1) + json.dumps(found.group(2))[1:-1] + found.group(3)

    return _NAME.sub(escaped, text) if len(text) <= MOST_EXPORT_CHARS else text
