"""Targets: a device family with its format, runtime, precision and public figures.

A target is one TOML file in ``devices/targets/``; nothing else has to be written to add one. Each
figure carries its source and its kind, and a figure that nobody published is absent, so that an
estimate can refuse instead of guessing.
"""

from __future__ import annotations

import difflib
import os
import platform
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from export.errors import BadFileError, UnknownNameError, UserError

TARGETS_FOLDER = Path(__file__).parent / "targets"

# What this version can write; one place.
AVAILABLE_FORMATS: tuple[str, ...] = ("onnx", "tflite", "tensorrt", "mlpackage")

Kind = Literal["datasheet", "measured", "derived", "reported"]
Arch = Literal["aarch64", "x86_64", "wasm32"]
Format = Literal["onnx", "tflite", "tensorrt", "mlpackage"]
Runtime = Literal["onnxruntime", "onnxruntime-web", "litert", "tensorrt", "coreml"]
Precision = Literal["float32", "float16"]
Transport = Literal["local", "ssh", "adb", "mac", "http"]
Platform = Literal["android", "iphone", "web"]

_ARCH_BY_MACHINE: dict[str, Arch] = {
    "aarch64": "aarch64", "arm64": "aarch64", "x86_64": "x86_64", "amd64": "x86_64",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Figure:
    """A number about a device, with where it is from; its unit is in the field that holds it.

    Args:
        kind: ``datasheet`` (printed by the maker), ``measured`` (by somebody, on the device),
            ``derived`` (computed; the note shows how) or ``reported`` (by a third party).
        note: what it covers, in words.
    """

    value: int | float
    source: str
    kind: Kind
    note: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """A device family that models are deployed to.

    Args:
        formats: formats that it runs, in order of preference.
        app: the platform whose apps run its artifacts; None where there is no example for one.
        members: names of the targets that this one stands for; then it has nothing else.
        read_at_run_time: whether arch, cpu, cores and memory were read from this machine.
        memory_bandwidth_bytes_per_s: what reading reaches where somebody measured it, the peak
            otherwise; the figure's kind and note tell which.
        memory_bandwidth_peak_bytes_per_s: the peak, where the other is a measured one.
        ram_bytes: of the smallest model sold, unless the title names one.
    """

    name: str
    title: str
    aliases: tuple[str, ...] = ()
    arch: Arch | None = None
    cpu: str | None = None
    formats: tuple[Format, ...] = ()
    runtime: Runtime | None = None
    precision: Precision | None = None
    transport: Transport | None = None
    app: Platform | None = None
    members: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    read_at_run_time: bool = False
    cpu_cores: Figure | None = None
    cpu_clock_hz: Figure | None = None
    l2_bytes: Figure | None = None
    l3_bytes: Figure | None = None
    ram_bytes: Figure | None = None
    memory_bandwidth_bytes_per_s: Figure | None = None
    memory_bandwidth_peak_bytes_per_s: Figure | None = None
    peak_flops_fp32_per_s: Figure | None = None
    peak_flops_fp16_per_s: Figure | None = None

    @property
    def available_formats(self) -> tuple[str, ...]:
        """The target's formats that this version can write, in order of preference."""
        return tuple(name for name in self.formats if name in AVAILABLE_FORMATS)

    @property
    def figures(self) -> dict[str, Figure]:
        """The figures that are known, by name."""
        found = {name: getattr(self, name) for name in FIGURES}
        return {name: figure for name, figure in found.items() if figure is not None}


FIGURES = (
    "cpu_cores", "cpu_clock_hz", "l2_bytes", "l3_bytes", "ram_bytes",
    "memory_bandwidth_bytes_per_s", "memory_bandwidth_peak_bytes_per_s",
    "peak_flops_fp32_per_s", "peak_flops_fp16_per_s",
)  # fmt: skip

# Key -> the values it may have; every target that is not a group has all four, and may have "app".
_CHOICES: dict[str, tuple[str, ...]] = {
    "arch": get_args(Arch),
    "runtime": get_args(Runtime),
    "precision": get_args(Precision),
    "transport": get_args(Transport),
}
_FILE_KEYS = (
    "name", "title", "aliases", *_CHOICES, "cpu", "formats", "app", "members", "notes",
    "read_at_run_time", "figures",
)  # fmt: skip
_FIGURE_KEYS = ("value", "source", "kind", "note")


def load_targets() -> dict[str, Target]:
    """Read all targets that come with the toolkit.

    Returns:
        The targets by name, in the order of their names.

    Raises:
        BadFileError: a file breaks the form, or two targets share a name or an alias.
    """
    targets: dict[str, Target] = {}
    owner_by_name: dict[str, str] = {}
    for path in sorted(TARGETS_FOLDER.glob("*.toml")):
        target = load_target_file(path)
        if target.name != path.stem:
            raise _fault(path, f"'name' is {target.name!r}; it must be {path.stem!r}")
        for name in (target.name, *target.aliases):
            if name in owner_by_name:
                raise _fault(path, f"{name!r} is already a name of target {owner_by_name[name]!r}")
            owner_by_name[name] = target.name
        targets[target.name] = target
    for target in targets.values():
        for member in target.members:
            if member not in targets or targets[member].members:
                path = TARGETS_FOLDER / f"{target.name}.toml"
                raise _fault(path, f"'members' names {member!r}, which is not a single target")
    return targets


def find_target(name: str) -> Target:
    """Find a target by its name, by an alias, or by the path of a TOML file.

    Raises:
        UnknownNameError: no target has this name.
        BadFileError: the file is missing or breaks the form.
    """
    if name.endswith(".toml"):
        target = load_target_file(Path(name))
        if target.members:
            raise _fault(Path(name), "'members' is only for the targets of the toolkit")
        return target
    targets = load_targets()
    asked = name.strip().lower().replace("_", "-").replace(" ", "-")
    by_any_name = {alias: target for target in targets.values() for alias in target.aliases}
    by_any_name |= targets
    if asked in by_any_name:
        return by_any_name[asked]
    raise UnknownNameError.near("target", name, sorted(by_any_name), "weightspace targets")


def resolve_target(name: str) -> tuple[Target, ...]:
    """Find a target, and give the members in its place where it stands for several."""
    target = find_target(name)
    if not target.members:
        return (target,)
    targets = load_targets()
    return tuple(targets[member] for member in target.members)


def require_format(target: Target) -> str:
    """Give the format to write for a target.

    Raises:
        UserError: this version writes none of the target's formats; the targets that it can
            write for are named.
    """
    if target.available_formats:
        return target.available_formats[0]
    targets = load_targets()
    parts = [targets[member] for member in target.members] or [target]
    for part in parts:
        if part.available_formats:
            raise UserError(
                f"target {target.name!r} stands for several targets; name one of: "
                f"{', '.join(part.name for part in parts)}"
            )
    needed = " or ".join(dict.fromkeys(name for part in parts for name in part.formats))
    usable = ", ".join(other.name for other in targets.values() if other.available_formats)
    raise UserError(
        f"target {target.name!r} needs the {needed} format, which this version cannot write yet; "
        f"the {' and '.join(AVAILABLE_FORMATS)} targets are: {usable}"
    )


def require_app(target: Target) -> Platform:
    """Give the platform of a target's apps.

    Raises:
        UserError: there is no example for the target; those that have one are named.
    """
    if target.app is not None:
        return target.app
    targets = load_targets().values()
    singles = [each.name for each in targets if each.app]
    groups = [each.name for each in targets if set(each.members) & set(singles)]
    raise UserError(
        f"target {target.name!r} has no app example; --app goes with: "
        f"{', '.join(sorted(singles + groups))}"
    )


def load_target_file(path: Path) -> Target:
    """Read one target from a TOML file, and refuse anything that is not of the form.

    Raises:
        BadFileError: the file is missing, is not TOML, or a key is unknown, missing or wrong.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadFileError(f"target file '{path}' cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadFileError(f"target file '{path}' is not valid TOML: {error}") from error
    _refuse_unknown(path, data, _FILE_KEYS, "")
    values: dict[str, Any] = {key: _text(path, data, key) for key in ("name", "title")}
    for key in ("aliases", "members", "notes"):
        values[key] = _texts(path, data, key)
    if values["members"]:
        extra = sorted(set(data) - {"name", "title", "aliases", "members", "notes"})
        if extra:
            raise _fault(path, f"{extra[0]!r} does not go with 'members'")
        return Target(**values)
    values["formats"] = _formats(path, data)
    values |= _machine(path, data)
    for key, choices in _CHOICES.items():
        if key not in values:
            values[key] = _choice(path, _text(path, data, key), key, choices)
    if "app" in data:
        values["app"] = _choice(path, _text(path, data, "app"), "app", get_args(Platform))
    return Target(**values | _figures(path, data))


def _machine(path: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """Give what stands in the file of the processor, or all that this machine tells of itself."""
    at_run_time = data.get("read_at_run_time", False)
    if not isinstance(at_run_time, bool):
        raise _fault(path, "'read_at_run_time' must be true or false")
    if not at_run_time:
        return {"cpu": _text(path, data, "cpu") if "cpu" in data else None}
    clash = sorted({"arch", "cpu"} & set(data))
    if clash:
        raise _fault(path, f"{clash[0]!r} does not go with 'read_at_run_time'")
    return {"read_at_run_time": True, **_this_machine()}


def _formats(path: Path, data: Mapping[str, Any]) -> tuple[str, ...]:
    formats = _texts(path, data, "formats")
    if not formats:
        raise _fault(path, "'formats' is missing")
    return tuple(_choice(path, name, "formats", get_args(Format)) for name in formats)


def _figures(path: Path, data: Mapping[str, Any]) -> dict[str, Figure]:
    tables = data.get("figures", {})
    if not isinstance(tables, dict):
        raise _fault(path, "'figures' must be a table")
    _refuse_unknown(path, tables, FIGURES, "figures.")
    return {name: _figure(path, name, table) for name, table in tables.items()}


def _figure(path: Path, name: str, table: Any) -> Figure:
    key = f"figures.{name}"
    if not isinstance(table, dict):
        raise _fault(path, f"{key!r} must be a table with value, kind and source")
    _refuse_unknown(path, table, _FIGURE_KEYS, f"{key}.")
    value = table.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise _fault(path, f"'{key}.value' must be a number above zero")
    kind = _choice(path, _text(path, table, "kind", f"{key}."), f"{key}.kind", get_args(Kind))
    note = _text(path, table, "note", f"{key}.") if "note" in table else ""
    source = _text(path, table, "source", f"{key}.")
    return Figure(value=value, source=source, kind=cast("Kind", kind), note=note)


def _this_machine() -> dict[str, Any]:
    machine = platform.machine().lower()
    source = "read from this machine"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Any] = {"arch": _ARCH_BY_MACHINE.get(machine), "cpu": _cpu_model()}
    if cores:
        found["cpu_cores"] = Figure(cores, source, "measured", "that this process may use")
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        ram_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        found["ram_bytes"] = Figure(ram_bytes, source, "measured")
    return found


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or None
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):  # x86, and Arm boards with a device tree
            return value.strip()
    return platform.processor() or None


def _refuse_unknown(
    path: Path, table: Mapping[str, Any], known: tuple[str, ...], prefix: str
) -> None:
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
            raise _fault(path, f"key '{prefix}{key}' is not known{hint}")


def _text(path: Path, table: Mapping[str, Any], key: str, prefix: str = "") -> str:
    if key not in table:
        raise _fault(path, f"'{prefix}{key}' is missing")
    value = table[key]
    if not isinstance(value, str) or not value.strip():
        raise _fault(path, f"'{prefix}{key}' must be a text that is not empty")
    return value


def _texts(path: Path, table: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise _fault(path, f"{key!r} must be a list of texts")
    return tuple(value)


def _choice(path: Path, value: str, key: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise _fault(path, f"{key!r} is {value!r}; it must be one of: {', '.join(choices)}")
    return value


def _fault(path: Path, text: str) -> BadFileError:
    return BadFileError(f"target file '{path}': {text}")
