"""LiteRT's ``benchmark_model`` on a device that has no Python, which is every Android phone.

The tool draws its own inputs, times one artifact a process and prints a summary instead of every
run. What it does not print is not known here: neither outputs to compare nor a 90th percentile.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from devices.device import Device
from devices.measure import make_feeds
from devices.report.record import Result, Run
from devices.transports import Transport
from export.errors import BadFileError, DeviceError, DeviceLostError, MeasureError, UserError
from export.records import TensorSpec
from export.tflite_io import read_tflite
from runtimes.bench import QUICK, Budget
from runtimes.records import Environment, Latency

BINARY = "benchmark_model"
TIMEOUT_S = 3600.0
_MIB = 1 << 20
_NUMBER = r"([\d.]+(?:e[+-]?\d+)?)"


@dataclass(frozen=True, slots=True)
class Summary:
    """What the tool prints of one artifact, times in milliseconds.

    Args:
        first_ms: the first inference, which is the first of the warm-up.
        median_ms: not printed by versions before 2025, as ``p95_ms``.
        growth_bytes: of the tool's memory, from its start to after the runs.
        peak_bytes: of the tool's memory, watched while it ran.
    """

    load_ms: float
    first_ms: float
    warmup: int
    runs: int
    min_ms: float
    max_ms: float
    mean_ms: float
    std_ms: float
    median_ms: float | None = None
    p95_ms: float | None = None
    growth_bytes: int | None = None
    peak_bytes: int | None = None

    def latency(self) -> Latency:
        """Give the figures as a latency; no percentile is filled in.

        Raises:
            MeasureError: there is no median.
        """
        if self.median_ms is None:
            raise MeasureError(
                f"this {BINARY} prints no median; name a newer one as the device's benchmark binary"
            )
        return Latency(
            runs=self.runs,
            warmup=self.warmup,
            first=self.first_ms,
            min=self.min_ms,
            p50=self.median_ms,
            p90=None,
            p95=self.p95_ms,
            p99=None,
            mean=self.mean_ms,
            std=self.std_ms,
        )


def parse_summary(printed: str) -> Summary:
    """Read what ``benchmark_model`` printed, of TensorFlow Lite 1.13 up to LiteRT's own tool.

    Raises:
        MeasureError: it is not whole; the tool's last words are given.
    """
    found = _of_table(printed) or _of_statistics(printed)
    if found is None:
        raise MeasureError(f"{BINARY} gave no result; it said: {_last_words(printed)}")
    growth = _number(printed, r"footprint delta.* overall=", r"Peak memory footprint.* overall=",
                     r"Overall footprint:\s+")  # fmt: skip
    peak = _number(printed, r"via periodic monitoring:\s+", r"Peak memory:\s+")
    return replace(
        found,
        growth_bytes=None if growth is None else round(growth * _MIB),
        peak_bytes=None if peak is None else round(peak * _MIB),
    )


def _of_statistics(printed: str) -> Summary | None:
    """Read the two lines of statistics, of the warm-up and of the runs, in microseconds."""
    lines = _statistics(printed)
    load_us = _number(printed, r"inference timings in us:.*\bInit:\s+")
    if len(lines) != 2 or load_us is None or not all("curr" in line for line in lines):
        return None
    warmup, runs = lines
    same = runs["curr"]  # all that is printed where every run took the same
    median_us, p95_us = (
        runs.get(key, None if "avg" in runs else same) for key in ("median", "p95")
    )
    return Summary(
        load_ms=load_us / 1000,
        first_ms=warmup.get("first", warmup["curr"]) / 1000,
        warmup=int(warmup["count"]),
        runs=int(runs["count"]),
        min_ms=runs.get("min", same) / 1000,
        max_ms=runs.get("max", same) / 1000,
        mean_ms=runs.get("avg", same) / 1000,
        std_ms=runs.get("std", 0.0) / 1000,
        median_ms=None if median_us is None else median_us / 1000,
        p95_ms=None if p95_us is None else p95_us / 1000,
    )


def _of_table(printed: str) -> Summary | None:
    """Read the table of LiteRT's own tool, in milliseconds."""
    labels = (
        "Model initialization", "Warmup (first)", "Inference (min)", "Inference (max)",
        "Inference (avg)", "Inference (std)",
    )  # fmt: skip
    numbers = [_number(printed, rf"{re.escape(label)}:\s+") for label in labels]
    known = [number for number in numbers if number is not None]
    counts = [int(count) for count in re.findall(r"\(avg\):.*\((\d+) runs\)", printed)]
    if len(known) != len(labels) or len(counts) != 2:
        return None
    load_ms, first_ms, min_ms, max_ms, mean_ms, std_ms = known
    lines = _statistics(printed)  # the tool prints these as well
    runs_us = lines[-1] if lines else {}
    percentiles: dict[str, float | None] = {}
    for key in ("median", "p95"):
        in_us = runs_us.get(key)
        percentiles[key] = _number(printed, rf"Inference \({key}\):\s+")
        if percentiles[key] is None and in_us is not None:
            percentiles[key] = in_us / 1000
    warmup, runs = counts
    return Summary(
        load_ms=load_ms,
        first_ms=first_ms,
        warmup=warmup,
        runs=runs,
        min_ms=min_ms,
        max_ms=max_ms,
        mean_ms=mean_ms,
        std_ms=std_ms,
        median_ms=percentiles["median"],
        p95_ms=percentiles["p95"],
    )


def _statistics(printed: str) -> list[dict[str, float]]:
    return [
        {key: float(value) for key, value in re.findall(rf"\b(\w+)={_NUMBER}", line)}
        for line in re.findall(r"\bcount=.*", printed)
    ]


def _last_words(printed: str) -> str:
    """Give the last line that speaks of a fault, or the last line."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    faults = [line for line in lines if re.search(r"\b(?:error|failed)\b", line, re.IGNORECASE)]
    return (faults or lines or ["nothing"])[-1][:200]


def _number(printed: str, *before: str) -> float | None:
    for words in before:
        found = re.search(rf"{words}{_NUMBER}", printed, re.IGNORECASE)
        if found:
            return float(found[1])
    return None


def binary_of(device: Device) -> Path:
    """Give the tool for a device, a file on this machine.

    Raises:
        UserError: the device names none.
        BadFileError: the file is not there.
    """
    if not device.benchmark_binary:
        raise UserError(
            f"{device.name} is measured by LiteRT's benchmark_model, which Google publishes for "
            "Android beside its page on measuring performance (native benchmark binary, "
            "android_aarch64); fetch it, and name the file with `weightspace devices add` and its "
            "--benchmark-binary"
        )
    path = Path(device.benchmark_binary).expanduser()
    if not path.is_file():
        raise BadFileError(f"the benchmark binary of {device.name}, {path}, is not a file")
    return path


def measure_with_binary(
    transport: Transport,
    artifacts: Mapping[str, Path],
    specs: Sequence[TensorSpec],
    *,
    axis: str,
    sizes: Sequence[int],
    threads: int = 1,
    budget: Budget = QUICK,
    on_step: Callable[[str], None] | None = None,
) -> Run:
    """Time TFLite files on a device that has no Python.

    What one artifact fails of is the ``failure`` of its result. Memory is told in the run's notes:
    what the tool prints of it is not what this project means by it.

    Args:
        transport: connected; closing it is the caller's.
        artifacts: keyed as the results shall be, such as by ``Variant.id``.
        specs: the inputs of all artifacts.
        axis: what the sizes are; see ``devices.measure.make_feeds``.

    Raises:
        UserError: the device names no binary.
        BadFileError: the binary is not there.
        DeviceError: the device failed.
    """
    tell = on_step or (lambda _: None)
    device = transport.device
    binary = binary_of(device)
    names = {name: f"artifacts/{place}.tflite" for place, name in enumerate(artifacts)}
    tell(f"sending the artifacts to {device.name}")
    transport.push({BINARY: binary} | {names[name]: path for name, path in artifacts.items()})
    transport.run(["chmod", "755", BINARY], timeout_s=60)
    before = _look(transport)
    results: dict[str, Result] = {}
    notes = [
        f"Timed by LiteRT's {BINARY} on inputs that it draws, one artifact after the other and not "
        "in turns; it gives no 90th percentile, and outputs are not compared on the device."
    ]
    for name in artifacts:
        tell(f"timing {name}")
        inputs = [*specs, *_unread(artifacts[name], len(specs))]
        results[name] = _measure(transport, name, names[name], inputs, axis, sizes, threads, budget,
                                 notes)  # fmt: skip
    environment = _environment(before, _look(transport))
    return Run(
        device=device.name,
        measured_on=f"{device.name} ({environment.cpu})",
        kind="measured",
        threads=threads,
        environment=environment,
        results=results,
        notes=tuple(dict.fromkeys(notes)),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _unread(path: Path, known: int) -> list[TensorSpec]:
    """Describe the inputs that a file has after those of the model; nothing reads them.

    What is no TFLite file has none: the device's own words on it go into the report.
    """
    try:
        graph = read_tflite(path).subgraphs[0]
    except BadFileError:
        return []
    tensors = [graph.tensors[port.tensor] for port in graph.inputs[known:]]
    return [TensorSpec(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors]


def _measure(
    transport: Transport,
    name: str,
    file: str,
    specs: Sequence[TensorSpec],
    axis: str,
    sizes: Sequence[int],
    threads: int,
    budget: Budget,
    notes: list[str],
) -> Result:
    latency: dict[int, Latency] = {}
    load_ms = None
    for size in sorted(sizes):
        inputs = _input_flags(specs, axis, size)
        try:
            summary = _summary(transport, [*_flags(file, threads, budget), *inputs], size)
            latency[size] = summary.latency()
        except DeviceLostError:
            raise
        except (DeviceError, MeasureError) as error:
            return Result(load_ms, None, latency, failure=str(error))
        load_ms = summary.load_ms if load_ms is None else load_ms
        memory_bytes = summary.peak_bytes or summary.growth_bytes
        if memory_bytes and len(latency) == 1:
            words = "peaked at" if summary.peak_bytes else "grew by"
            notes.append(
                f"{name}: the memory of {BINARY} {words} {memory_bytes / 1e6:.1f} MB, "
                "by its own account."
            )
    return Result(load_ms, None, latency)


def _summary(transport: Transport, flags: Sequence[str], size: int) -> Summary:
    lines: list[str] = []
    done = transport.run([f"./{BINARY}", *flags], timeout_s=TIMEOUT_S, on_line=lines.append)
    printed = "\n".join([done.output, *lines])
    ignored = re.search(r"Unconsumed cmdline flags:(.*)", printed)
    if ignored and "--input_layer" in ignored[1]:
        raise MeasureError(f"this {BINARY} cannot set the sizes of inputs; size {size} was not run")
    if done.exit_code:
        raise MeasureError(f"{BINARY} {done.ending}: {_last_words(printed)}")
    return parse_summary(printed)


def _flags(file: str, threads: int, budget: Budget) -> list[str]:
    return [
        f"--graph={file}",
        f"--num_threads={threads}",
        f"--warmup_runs={budget.warmup_runs}",
        f"--warmup_min_secs={budget.warmup_s}",
        f"--num_runs={budget.runs}",
        f"--min_secs={budget.seconds}",
        f"--max_secs={TIMEOUT_S}",
        "--use_xnnpack=true",
    ]


def _input_flags(specs: Sequence[TensorSpec], axis: str, size: int) -> list[str]:
    """Say what shapes the inputs have, and that integers are 0 or 1; nothing where files say so.

    The tool takes inputs in the file's order and does not look at their names.
    """
    fixed = all(isinstance(dim, int) for spec in specs for dim in spec.shape)
    whole = [place for place, spec in enumerate(specs) if not spec.dtype.startswith("float")]
    if (fixed or size == 1) and not whole:  # a dimension that varies is 1 in the file
        return []
    shapes = [",".join(map(str, feed.shape)) for feed in make_feeds(specs, axis, size).values()]
    flags = [
        f"--input_layer={','.join(f'input{place}' for place in range(len(specs)))}",
        f"--input_layer_shape={':'.join(shapes)}",
    ]
    ranges = ":".join(f"input{place},0,1" for place in whole)
    return [*flags, f"--input_layer_value_range={ranges}"] if ranges else flags


_LOOK = """\
property() { getprop "$1" 2>/dev/null; }
read_all() { cat "$@" 2>/dev/null | tr '\\n' ' '; }
echo "cpu=$(property ro.product.model)"
echo "release=$(property ro.build.version.release)"
echo "emulator=$(property ro.kernel.qemu)$(property ro.boot.qemu)"
echo "compatible=$(tr '\\0' ' ' 2>/dev/null < /proc/device-tree/compatible)"
echo "host=$(hostname 2>/dev/null)"
echo "arch=$(uname -m)"
echo "system=$(uname -sr)"
echo "cores=$(grep -c ^processor /proc/cpuinfo)"
echo "memory=$(grep ^MemTotal: /proc/meminfo)"
echo "governor=$(read_all /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor)"
echo "clocks=$(read_all /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq)"
echo "temperatures=$(read_all /sys/class/thermal/thermal_zone*/temp)"
echo "swapped=$(grep -E '^pswp(in|out) ' /proc/vmstat 2>/dev/null | tr '\\n' ' ')"
"""


def _look(transport: Transport) -> dict[str, str]:
    said = transport.run(["sh", "-c", _LOOK], timeout_s=60).output
    pairs = (line.partition("=") for line in said.splitlines())
    return {key: value.strip() for key, _, value in pairs}


def _environment(before: Mapping[str, str], after: Mapping[str, str]) -> Environment:
    """Describe the device; a temperature is the hottest zone's of those that are plausible."""
    clocks, temperatures = [], []
    for seen in (before, after):
        clocks.append(tuple(khz * 1000 for khz in _whole(seen.get("clocks", ""))))
        zones = [value / 1000 for value in _whole(seen.get("temperatures", ""))]
        temperatures += [max(zone for zone in zones if zone < 200)] if zones else []
    release = before.get("release", "")
    memory_kib = _whole(before.get("memory", ""))
    return Environment(
        host=before.get("host", ""),
        cpu=before.get("cpu") or before.get("arch", ""),
        arch=before.get("arch", ""),
        cores=int(before.get("cores") or 0),
        memory_bytes=memory_kib[0] * 1024 if memory_kib else 0,
        os=f"Android {release}, {before.get('system', '')}"
        if release
        else before.get("system", ""),
        governor=", ".join(dict.fromkeys(before.get("governor", "").split())) or None,
        runtime=f"LiteRT's {BINARY}",
        python="",
        swapped=sum(_whole(after.get("swapped", ""))) > sum(_whole(before.get("swapped", ""))),
        emulated="1" in before.get("emulator", "") or "dummy-virt" in before.get("compatible", ""),
        clocks_hz=tuple(clocks) if any(clocks) else (),
        temperatures_c=tuple(temperatures),
    )


def _whole(text: str) -> list[int]:
    return [int(word) for word in text.split() if word.lstrip("-").isdigit()]
