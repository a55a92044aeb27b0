"""What a device's agent answers, checked field by field and turned into a report's records.

A device may be broken, or not what it says: nothing in an answer is trusted before it was looked
at, and what does not fit is one `DeviceError`.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from devices.agent import SCHEMA, throttle_words
from export.errors import DeviceError
from runtimes.bench import summarise
from runtimes.records import Environment, Latency, Memory

_MOST_TEXT = 300
_MOST_LOG = 2_000_000
_MOST_BYTES = 1 << 50
_MOST_MS = 1e9
_HEADER_BYTES = 4096  # of an array in an .npz, and of the archive around it
_SMALLEST_CLOCK_SHARE = 0.95
_STICKY = 16  # the bits of a Raspberry Pi that stay set until it restarts


@dataclass(frozen=True, slots=True)
class EngineRun:
    """What ``trtexec`` printed and wrote on a device, as it was.

    Args:
        steps: ``build`` and ``run`` in order, each with its log.
        files: the JSON files that it wrote, by name.
    """

    steps: tuple[tuple[str, str], ...]
    files: dict[str, str]


@dataclass(frozen=True, slots=True)
class Outputs:
    """A file of outputs on the device: arrays in the order of ``names``."""

    file: str
    names: tuple[str, ...]
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What the agent found of one artifact."""

    failure: str
    load_ms: float | None
    memory: Memory | None
    latency_ms_by_size: dict[int, Latency]
    outputs: Outputs | None
    parity_failure: str
    engine: EngineRun | None

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all was measured."""
        return self.memory is None and not self.latency_ms_by_size and self.engine is None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the agent found.

    Args:
        complete: False where it was ended before it had measured everything.
        failure: why nothing could be measured; else empty.
        invalid: why no figure may be relied on, such as that the device throttled; else empty.
        runtimes: format -> runtime and version.
    """

    complete: bool
    failure: str
    invalid: str
    environment: Environment
    runtimes: dict[str, str]
    notes: tuple[str, ...]
    findings: dict[str, Finding]


def read_answer(path: Path, device: str, run: str, ids: Sequence[str], most_bytes: int) -> Answer:
    """Read and check an answer.

    Args:
        device: its name, for messages.
        run: what the request calls itself; an answer to another was left by an earlier run.
        ids: of the artifacts that were asked for.
        most_bytes: what an answer to such a request may have at most.

    Raises:
        DeviceError: the answer is too large, or is not one that the agent gives.
    """
    if path.stat().st_size > most_bytes:
        raise DeviceError(f"{device} gave an answer of more than {most_bytes:,} bytes")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DeviceError(f"{device} gave an answer that is not JSON") from error
    answer = _Table(value, device, "")
    if answer.get("schema") != SCHEMA:
        answer.refuse("schema", f"{SCHEMA}")
    if answer.get("run") != run:
        answer.refuse("run", "that of the request")
    looks = [answer.table("looks", index) for index in range(len(answer.items("looks")))]
    if not looks:
        answer.refuse("looks", "a list of what the device said of itself")
    machine = answer.table("machine")
    runtimes = machine.table("runtimes")
    reasons = [*_throttling(looks), *_swapping(looks)]
    found = answer.table("artifacts")
    return Answer(
        complete=answer.get("complete") is True,
        failure=answer.text("failure"),
        invalid=f"the device {' and '.join(reasons)} while it was measured" if reasons else "",
        environment=_environment(machine, looks, answer.table("tegrastats")),
        runtimes={name: runtimes.text(name) for name in runtimes},
        notes=(*answer.texts("notes"), *_notes(machine, answer.table("tegrastats"))),
        findings={each: _finding(found.table(each)) for each in ids},
    )


def read_outputs(path: Path, outputs: Outputs, device: str) -> list[NDArray[np.generic]]:
    """Read the arrays of a file of outputs, of the size that was checked before.

    Raises:
        DeviceError: the file is not the one that was announced, or holds other things than
            numbers.
    """
    refuse = DeviceError(f"{device} gave outputs that cannot be read ({outputs.file})")
    if path.stat().st_size != outputs.bytes:
        raise refuse
    if hashlib.sha256(path.read_bytes()).hexdigest() != outputs.sha256:
        raise refuse
    try:
        with zipfile.ZipFile(path) as archive:
            for place in range(len(outputs.names)):
                _check_array(archive, f"arr_{place}.npy")
        with np.load(path, allow_pickle=False) as arrays:
            return [arrays[f"arr_{place}"] for place in range(len(outputs.names))]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        raise refuse from error


def _check_array(archive: zipfile.ZipFile, name: str) -> None:
    """Hold what the header of an array announces against the bytes that are there.

    Raises:
        ValueError: it announces more, or no numbers.
    """
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise ValueError(name)
    with archive.open(info) as file:
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        shape, _, dtype = read[npy.read_magic(file)](file)
        if dtype.kind not in "fiub" or file.tell() + math.prod(shape) * dtype.itemsize != (
            info.file_size
        ):
            raise ValueError(name)


# ---- artifacts ----------------------------------------------------------------------------------


def _finding(found: _Table) -> Finding:
    latency = found.table("latency") if "latency" in found else _Table({}, found.device, "")
    return Finding(
        failure=found.text("failure"),
        load_ms=found.number("load_ms", 0, _MOST_MS) if "load_ms" in found else None,
        memory=_memory(found.table("memory")) if "memory" in found else None,
        latency_ms_by_size={_size(latency, key): _latency(latency.table(key)) for key in latency},
        outputs=_outputs(found.table("outputs")) if "outputs" in found else None,
        parity_failure=found.text("parity_failure") if "parity_failure" in found else "",
        engine=_engine(found.table("tensorrt")) if "tensorrt" in found else None,
    )


def _size(latency: _Table, key: str) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) < 10):
        latency.refuse(key, "named by a size")
    return int(key)


def _memory(found: _Table) -> Memory:
    names = [field.name for field in fields(Memory)]
    return Memory(**{name: found.whole(name, -_MOST_BYTES, _MOST_BYTES) for name in names})


def _latency(found: _Table) -> Latency:
    samples = found.numbers("samples_ms", 0, _MOST_MS)
    if not samples:
        found.refuse("samples_ms", "a list of times")
    first = found.number("first_ms", 0, _MOST_MS)
    return summarise(samples, first, found.whole("warmup", 0, _MOST_BYTES))


def _outputs(found: _Table) -> Outputs:
    return Outputs(
        found.text("file"),
        found.texts("names"),
        found.whole("bytes", 0, _MOST_BYTES),
        found.text("sha256"),
    )


def _engine(found: _Table) -> EngineRun:
    steps = [found.table("steps", index) for index in range(len(found.items("steps")))]
    files = found.table("files")
    return EngineRun(
        tuple((step.text("name"), step.text("log", _MOST_LOG, lines=True)) for step in steps),
        {name: files.text(name, _MOST_BYTES, lines=True) for name in files},
    )


# ---- the machine --------------------------------------------------------------------------------


def _environment(machine: _Table, looks: Sequence[_Table], tegrastats: _Table) -> Environment:
    ends = (looks[0], looks[-1])
    board, cpu = machine.text("board"), machine.text("cpu")
    clocks = [tuple(int(hz) for hz in look.numbers("clocks_hz", 0, 1e12)) for look in ends]
    heat = [
        look.number("temperature_c", -300, 1000) for look in ends if _has(look, "temperature_c")
    ]
    return Environment(
        host=machine.text("host"),
        cpu=f"{board} ({cpu})" if board and cpu else board or cpu,
        arch=machine.text("arch"),
        cores=machine.whole("cores", 1, 1 << 16),
        memory_bytes=machine.whole("memory_bytes", 0, _MOST_BYTES),
        os=machine.text("os"),
        governor=machine.text("governor") if _has(machine, "governor") else None,
        runtime="",
        python=machine.text("python"),
        swapped=bool(_swapping(looks)),
        throttled=bool(_throttling(looks)),
        emulated=machine.get("emulated") is True,
        clocks_hz=tuple(clocks) if all(clocks) else (),
        temperatures_c=tuple(heat),
        power_mode=machine.text("power_mode") if _has(machine, "power_mode") else None,
        power_w=tegrastats.number("power_w", 0, 1e6) if _has(tegrastats, "power_w") else None,
        warnings=tuple(_warnings(machine, looks, tegrastats)),
    )


def _has(table: _Table, key: str) -> bool:
    return table.get(key) is not None


def _throttling(looks: Sequence[_Table]) -> list[str]:
    """Say how a device slowed itself down, in words that follow "the device"."""
    return [f"throttled ({cause})" for cause in dict.fromkeys(_causes(looks))]


def _causes(looks: Sequence[_Table]) -> Iterator[str]:
    first, last = looks[0], looks[-1]
    for look in looks:
        yield from throttle_words(_bits(look))
        yield from look.texts("cooling")
        if _has(look, "speed_limit") and look.whole("speed_limit", 0, 1000) < 100:
            yield "CPU speed limit"
    yield from throttle_words((_bits(last) & ~_bits(first)) >> _STICKY)
    before, after = first.table("counters"), last.table("counters")
    for name in after:
        if after.whole(name, 0, _MOST_BYTES) > before.whole(name, 0, _MOST_BYTES):
            yield name


def _bits(look: _Table) -> int:
    return look.whole("pi_throttled", 0, 1 << 32) if _has(look, "pi_throttled") else 0


def _swapping(looks: Sequence[_Table]) -> list[str]:
    pages = [
        look.whole("swapped_pages", 0, 1 << 62) for look in looks if _has(look, "swapped_pages")
    ]
    return ["swapped"] if pages and pages[-1] > pages[0] else []


def _warnings(machine: _Table, looks: Sequence[_Table], tegrastats: _Table) -> Iterator[str]:
    if machine.get("emulated") is True:
        yield "The machine is emulated: its times are not those of a device."
    for reason in (*_throttling(looks), *_swapping(looks)):
        yield f"The device {reason} while it was measured."
    earlier = throttle_words(_bits(looks[0]) >> _STICKY)
    if earlier and not _throttling(looks):
        yield f"The board has known {' and '.join(earlier)} since it started."
    if machine.get("clocks_locked") is False:
        yield (
            f"The clocks are not locked (governor {machine.text('governor')}): set the governor "
            "to performance, on a Jetson by sudo jetson_clocks."
        )
    gpu_hz = tegrastats.numbers("gpu_hz", 0, 1e12) if "gpu_hz" in tegrastats else []
    if gpu_hz and min(gpu_hz) < _SMALLEST_CLOCK_SHARE * max(gpu_hz):
        yield (
            f"The clock of the GPU moved between {min(gpu_hz) / 1e6:.0f} and "
            f"{max(gpu_hz) / 1e6:.0f} MHz: lock it by sudo jetson_clocks."
        )


def _notes(machine: _Table, tegrastats: _Table) -> Iterator[str]:
    if machine.text("os").startswith("macOS"):
        yield (
            "On macOS memory is the resident size (ps, getrusage): anonymous and mapped pages are "
            "not told apart, and what Core ML keeps outside the process is not seen."
        )
    rails = tegrastats.table("rails_w") if "rails_w" in tegrastats else None
    if rails is not None and not _has(tegrastats, "power_w"):
        words = ", ".join(f"{name} {rails.number(name, -1e6, 1e6):.1f} W" for name in rails)
        if words:
            yield f"The board has no sensor for all of its power; mean of its rails: {words}."


# ---- fields -------------------------------------------------------------------------------------


class _Table:
    """One JSON object of an answer; each getter refuses what it does not expect."""

    def __init__(self, value: Any, device: str, where: str) -> None:
        self.device = device
        self._where = where
        self._value: Mapping[str, Any] = value if isinstance(value, dict) else {}
        if not isinstance(value, dict):
            self.refuse("", "a table")

    def __iter__(self) -> Iterator[str]:
        return iter(self._value)

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def get(self, key: str) -> Any:
        return self._value.get(key)

    def refuse(self, key: str, wanted: str) -> NoReturn:
        place = _clean(f"{self._where}{key}").rstrip(".") or "it"
        raise DeviceError(
            f"{self.device} gave an answer that cannot be used: {place} is not {wanted}; check "
            "that nothing on the device changes the files of a run"
        )

    def table(self, key: str, index: int | None = None) -> _Table:
        value = self.get(key) if index is None else self.items(key)[index]
        return _Table(value, self.device, f"{self._where}{key}.")

    def items(self, key: str) -> list[Any]:
        value = self.get(key)
        return value if isinstance(value, list) else self.refuse(key, "a list")

    def text(self, key: str, most: int = _MOST_TEXT, *, lines: bool = False) -> str:
        value = self.get(key)
        if not isinstance(value, str) or (lines and len(value) > most):
            self.refuse(key, "a text")
        return value if lines else _clean(value, most)

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.items(key)
        if not all(isinstance(value, str) for value in values) or len(values) > 1000:
            self.refuse(key, "a list of texts")
        return tuple(_clean(value) for value in values)

    def number(self, key: str, least: float, most: float) -> float:
        return _checked(self.get(key), least, most, lambda: self.refuse(key, "a number in range"))

    def numbers(self, key: str, least: float, most: float) -> list[float]:
        values = self.items(key)
        return [_checked(v, least, most, lambda: self.refuse(key, "numbers")) for v in values]

    def whole(self, key: str, least: int, most: int) -> int:
        value = self.get(key)
        if not isinstance(value, int):
            self.refuse(key, "a whole number")
        return int(self.number(key, least, most))


def _checked(value: Any, least: float, most: float, refuse: Callable[[], NoReturn]) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse()
    if not least <= value <= most:  # refuses a NaN as well
        refuse()
    return value


def _clean(text: str, most: int = _MOST_TEXT) -> str:
    """Take out what could steer a terminal, and what is beyond a line."""
    printable = "".join(c if c.isprintable() else " " for c in text[: 4 * most])
    short = " ".join(printable.split())
    return short if len(short) <= most else f"{short[: most - 3]}..."


def clean_line(text: str) -> str:
    """Make a line that a device printed fit to be shown."""
    return _clean(text)
