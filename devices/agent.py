"""Measures artifacts on the machine that it lies on: ``python3 agent.py request.json``.

This one file is sent to a device. It needs Python 3.8, numpy and the runtime of each artifact, and
nothing of this project. How it measures is what `runtimes/bench.py` and `runtimes/memory_child.py`
do here, with the session settings of `runtimes/ort.py` and `runtimes/litert.py`; where these
change, so must this.

Standard error gets a line of progress at a time, standard output one line of JSON in the end:
``{"weightspace": 1, "bytes": ..., "sha256": ...}`` of the answer. Standard input must stay open:
when it closes, the link is lost, so the agent kills what it started, and itself. With
``--private-folder`` its folder is removed then, too. The children watch theirs in the same way.

The request, all paths relative to its folder::

    {"schema": 1, "run": a text of its own, "threads": 1, "axis": "batch", "memory_runs": 5,
     "budget": {"warmup_runs", "warmup_s", "runs", "seconds", "most_runs"},
     "sizes": [{"size": 1, "feeds": "feeds-1.npz"}],     the smallest first
     "feed_names": ["x"],                                of arr_0, arr_1 ... in each .npz
     "warm_up": {"onnx": "warm-up.onnx"},                a small model for each format
     "trtexec": "trtexec",
     "artifacts": [{"id", "format", "path", "options": {}, "bare": path of the same graph without
                    its weights, or null, "parity": {"inputs": path of an .npz, "rows": rows of a
                    run} or null}]}

An option ``custom_ops_library`` is the path of a library of kernels, in a folder that is named
for its architecture. It is registered where that is the machine's; elsewhere the model does
without it.

The format is ``onnx``, ``tflite``, ``mlpackage`` or ``tensorrt``: a folder with a recipe.json. Its
``trtexec`` holds, for the oldest version that each is for, the command lines ``build``, ``run`` and
``profile`` as lists, in which ``{trtexec}`` stands for the program.

answer.json is written anew after each step, so that what was measured is not lost::

    {"schema": 1, "run": the request's, "complete": true,
     "failure": why nothing could be measured, or "",
     "machine": what ``machine`` gives, "looks": [what ``look`` gives, before, between and after],
     "tegrastats": what ``summarise_tegrastats`` gives, "notes": [sentences],
     "artifacts": {id: {"failure", "load_ms", "memory": the fields of runtimes.records.Memory,
       "latency": {"1": {"first_ms", "warmup", "samples_ms"}},
       "parity_failure", "outputs": {"file": path of an .npz, "names", "bytes", "sha256"},
       "tensorrt": {"steps": [{"name", "exit_code", "seconds", "log"}], "files": {name: text}}}}}
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import importlib
import importlib.util
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from types import FrameType
from typing import Any, Callable, Iterator, Mapping, NoReturn, Sequence

SCHEMA = 1
ANSWER = "answer.json"
BLOCK_MS = 40.0
UNPREPARED = 3  # the exit code where nothing can be measured before something is installed
_LOG_CHARS = 1_000_000
_FILE_BYTES = 64_000_000
_SMALLEST_SHARE_TOLD = 0.1
_TEGRASTATS_MS = 1000
_TRTEXEC_FOLDER = "/usr/src/tensorrt/bin"
_STEPS = ("build", "run", "profile")
_NEEDED_STEPS = ("build", "run")

# As in export/records.py: a session option that names a library of kernels to register.
KERNELS = "custom_ops_library"
# How the name of an input begins that nothing reads; it is not fed.
UNUSED = "unused_"

# Format -> the modules that run it, the first that is there, and the packages that hold them.
RUNTIMES = {
    "onnx": (("onnxruntime",), ("onnxruntime", "onnxruntime-gpu")),
    "tflite": (("ai_edge_litert", "tflite_runtime"), ("ai-edge-litert", "tflite-runtime")),
    "mlpackage": (("coremltools",), ("coremltools",)),
}


class Failure(Exception):
    """What one artifact failed of, in a line."""


# ---- probes: pure functions on what the system says ---------------------------------------------

# Parts by the main ID register (implementer 0x41, Arm), of the boards that are targets.
_ARM_PARTS = {
    0xD03: "Cortex-A53",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD0B: "Cortex-A76",
    0xD42: "Cortex-A78AE",
    0xD83: "Neoverse-V3AE",
}
# vcgencmd get_throttled: bits 0 to 3 hold now, 16 to 19 since the board started.
_THROTTLE_BITS = (
    "under-voltage",
    "capped frequency",
    "throttling",
    "the soft temperature limit",
)


def cpu_of(cpuinfo: str) -> str:
    """Name the processor from /proc/cpuinfo; empty where it has no name."""
    named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    if named:
        return named.group(1).strip()
    if not re.search(r"^CPU implementer\s*:\s*0x41$", cpuinfo, re.MULTILINE):
        return ""
    parts = re.findall(r"^CPU part\s*:\s*(0x[0-9a-fA-F]+)$", cpuinfo, re.MULTILINE)
    names = [_ARM_PARTS.get(int(part, 16), "") for part in parts]
    return " + ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names) if name)


def throttled_of(text: str) -> int | None:
    """Read the bits of ``vcgencmd get_throttled``."""
    found = re.search(r"throttled=0x([0-9a-fA-F]+)", text)
    return int(found.group(1), 16) if found else None


def throttle_words(bits: int) -> list[str]:
    """Say what the four bits of one state mean, of now or, shifted by 16, since the start."""
    return [words for place, words in enumerate(_THROTTLE_BITS) if bits >> place & 1]


def power_mode_of(text: str) -> str | None:
    """Read the mode that ``nvpmodel -q`` names."""
    found = re.search(r"^NV Power Mode:\s*(\S.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else None


def l4t_of(text: str) -> str | None:
    """Read the release of Jetson Linux from /etc/nv_tegra_release, such as ``36.4.3``."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return ".".join(found.groups()) if found else None


def swapped_pages_of(vmstat: str) -> int | None:
    """Sum the pages swapped in and out, from /proc/vmstat or macOS's vm_stat."""
    pattern = r"^(?:pswpin |pswpout |Swapins:\s*|Swapouts:\s*)(\d+)\.?$"
    found = re.findall(pattern, vmstat, re.MULTILINE)
    return sum(map(int, found)) if found else None


def speed_limit_of(text: str) -> int | None:
    """Read the share of its speed, in percent, to which macOS holds the CPU (pmset -g therm)."""
    found = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", text)
    return int(found.group(1)) if found else None


def is_emulated(compatible: str, product: str, cpuinfo: str, arch: str) -> bool:
    """Tell QEMU's machines from real ones.

    Args:
        compatible: of the device tree; QEMU's own board says ``linux,dummy-virt``.
        product: vendor and name from the firmware's tables.
        cpuinfo: an Arm process that finds an x86 processor there runs under qemu-user.
    """
    arm = arch.startswith(("aarch64", "arm"))
    stranger = arm and re.search(r"^vendor_id\s*:", cpuinfo, re.MULTILINE) is not None
    return "linux,dummy-virt" in compatible or "QEMU" in product + cpuinfo or stranger


def parse_tegrastats(line: str) -> dict[str, Any]:
    """Read one line of ``tegrastats``: ``rails_mw``, ``temperatures_c`` and ``gpu_hz``.

    Rails print the value of now first; then, by release, the average and the peak. The clock of
    the GPU is one number in MHz or a list of one for each cluster, with or without a load before.
    """
    rails = re.findall(r"\b([A-Z][A-Z0-9_]*) (-?\d+)mW\b", line)
    zones = re.findall(r"\b(\w+)@(-?\d+(?:\.\d+)?)C\b", line)
    clocks = re.search(r"\bGR3D_FREQ (?:\d+%)?@\[?([\d,]+)\]?", line)
    return {
        "rails_mw": {name: int(value) for name, value in rails},
        # A sensor that is off reads -256.
        "temperatures_c": {name: float(value) for name, value in zones if float(value) > -100},
        "gpu_hz": [int(mhz) * 1_000_000 for mhz in clocks.group(1).split(",")] if clocks else [],
    }


# The rail of a board that holds all the others; AGX Orin and AGX Xavier have none.
_BOARD_RAILS = ("VIN", "VDD_IN", "POM_5V_IN")


def summarise_tegrastats(lines: Sequence[str]) -> dict[str, Any]:
    """Take means over samples: ``power_w`` of the board, ``rails_w``, ``gpu_hz`` least and most."""
    samples = [parse_tegrastats(line) for line in lines]
    rails: dict[str, list[int]] = {}
    for sample in samples:
        for name, value in sample["rails_mw"].items():
            rails.setdefault(name, []).append(value)
    means = {name: sum(values) / len(values) / 1000 for name, values in rails.items()}
    clocks = [hz for sample in samples for hz in sample["gpu_hz"]]
    heat = [value for sample in samples for value in sample["temperatures_c"].values()]
    return {
        "power_w": next((means[name] for name in _BOARD_RAILS if name in means), None),
        "rails_w": means,
        "gpu_hz": [min(clocks), max(clocks)] if clocks else [],
        "hottest_c": max(heat) if heat else None,
    }


# ---- probes: asking the system ------------------------------------------------------------------

_CPU = "/sys/devices/system/cpu"


def machine() -> dict[str, Any]:
    """Describe the machine, as far as it does not change while it is measured."""
    cpuinfo = _read("/proc/cpuinfo")
    dmi = "/sys/class/dmi/id/"
    firmware = _read(dmi + "sys_vendor") + " " + _read(dmi + "product_name")
    compatible = _read("/proc/device-tree/compatible").replace("\0", " ")
    arch = platform.machine()
    mac = sys.platform == "darwin"
    board = _said("sysctl", "-n", "hw.model") if mac else _read("/proc/device-tree/model")
    cpu = _said("sysctl", "-n", "machdep.cpu.brand_string") if mac else cpu_of(cpuinfo)
    release = l4t_of(_read("/etc/nv_tegra_release"))
    system = (
        f"macOS {platform.mac_ver()[0]}" if mac else f"{platform.system()} {platform.release()}"
    )
    governors = _each(_CPU + "/cpu[0-9]*/cpufreq/scaling_governor")
    lows = _each(_CPU + "/cpu[0-9]*/cpufreq/scaling_min_freq")
    highs = _each(_CPU + "/cpu[0-9]*/cpufreq/scaling_max_freq")
    fixed = lows == highs or set(governors) == {"performance"}
    return {
        "host": platform.node(),
        "board": board.strip("\0 \n"),
        "cpu": cpu.strip() or platform.processor() or arch,
        "arch": arch,
        "cores": os.cpu_count() or 1,
        "memory_bytes": _memory_bytes(),
        "os": f"{system}, Jetson Linux {release}" if release else system,
        "python": platform.python_version(),
        "governor": ", ".join(dict.fromkeys(governors)) or None,
        "clocks_locked": fixed if governors else None,
        "power_mode": _power_mode(),
        "emulated": is_emulated(compatible, firmware, cpuinfo, arch),
        "runtimes": {name: _version(name) for name in RUNTIMES if _module(name)},
    }


def look() -> dict[str, Any]:
    """Read what may change: clocks, temperature, what throttles, and pages swapped so far."""
    zones = [_number(text) for text in _each("/sys/class/thermal/thermal_zone*/temp")]
    counters = {
        "thermal throttling": _CPU + "/cpu[0-9]*/thermal_throttle/*_throttle_count",  # Intel
        "over-current throttling": "/sys/class/hwmon/hwmon*/oc*_event_cnt",  # Jetson
    }
    limit = speed_limit_of(_said("pmset", "-g", "therm")) if sys.platform == "darwin" else None
    vmstat = _said("vm_stat") if sys.platform == "darwin" else _read("/proc/vmstat")
    clocks_khz = [_number(text) for text in _each(_CPU + "/cpu[0-9]*/cpufreq/scaling_cur_freq")]
    return {
        "clocks_hz": [khz * 1000 for khz in clocks_khz],
        "temperature_c": max(zones) / 1000 if zones else None,
        "pi_throttled": throttled_of(_said("vcgencmd", "get_throttled")),
        "cooling": _cooling(),
        "counters": {name: sum(map(_number, _each(files))) for name, files in counters.items()},
        "speed_limit": limit,
        "swapped_pages": swapped_pages_of(vmstat),
    }


def _cooling() -> list[str]:
    """Name what the kernel slows down against heat; a fan that turns slows nothing."""
    found = []
    for folder in sorted(glob.glob("/sys/class/thermal/cooling_device*")):
        kind = _read(folder + "/type").strip()
        if "freq" in kind and _number(_read(folder + "/cur_state")) > 0:
            found.append(kind)
    return found


def _power_mode() -> str | None:
    if sys.platform == "darwin":
        low = re.search(r"lowpowermode\s+1", _said("pmset", "-g"))
        return "low power" if low else None
    return power_mode_of(_said("nvpmodel", "-q"))


def _memory_bytes() -> int:
    if sys.platform == "darwin":
        return _number(_said("sysctl", "-n", "hw.memsize"))
    found = re.search(r"^MemTotal:\s+(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


def _version(name: str) -> str:
    from importlib import metadata

    for package in RUNTIMES[name][1]:
        try:
            return f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue
    return RUNTIMES[name][1][0]


def _module(name: str) -> str | None:
    """Find the module that runs a format, without importing it."""
    for module in RUNTIMES[name][0]:
        if importlib.util.find_spec(module) is not None:
            return module
    return None


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _each(pattern: str) -> list[str]:
    # A processor that is off has files that cannot be read.
    return [text for text in (_read(path).strip() for path in sorted(glob.glob(pattern))) if text]


def _number(text: str) -> int:
    return int(text) if re.match(r"-?\d+\s*$", text) else 0


def _said(*command: str) -> str:
    """Give what a small program says; nothing where it is not there, fails, or hangs."""
    program = shutil.which(command[0])
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


# ---- sessions: the settings of runtimes/ort.py, runtimes/litert.py and runtimes/coreml.py -------

Feeds = Mapping[str, Any]


class OrtSession:
    """An ONNX model in ONNX Runtime, on the CPU."""

    def __init__(self, path: str, threads: int, options: Mapping[str, str]) -> None:
        import onnxruntime

        if hasattr(onnxruntime, "disable_telemetry_events"):
            onnxruntime.disable_telemetry_events()
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        for key, value in options.items():
            if key != KERNELS:
                settings.add_session_config_entry(key, value)
            elif fits_machine(value, platform.machine()):
                settings.register_custom_ops_library(os.path.abspath(value))
        self._session = onnxruntime.InferenceSession(
            path, settings, providers=["CPUExecutionProvider"]
        )
        self.inputs = [
            (value.name, _ort_dtype(value.type), [_dim(size) for size in value.shape])
            for value in self._session.get_inputs()
        ]
        self._names = [value.name for value in self._session.get_outputs()]

    def run(self, feeds: Feeds) -> dict[str, Any]:
        """Run once: input name to array in, output name to array out."""
        return dict(zip(self._names, self._session.run(self._names, dict(feeds))))


def fits_machine(library: str, arch: str) -> bool:
    """Whether a library of kernels, ``.../ARCHITECTURE/FILE``, is there and of an architecture."""
    return os.path.isfile(library) and os.path.basename(os.path.dirname(library)) == arch


def _ort_dtype(text: str) -> str:
    name = text[len("tensor(") : -1]
    return {"float": "float32", "double": "float64"}.get(name, name)


class TfliteSession:
    """A .tflite model in LiteRT, or the TensorFlow Lite runtime that came before it."""

    def __init__(self, path: str, threads: int, options: Mapping[str, str]) -> None:
        module = importlib.import_module(f"{_module('tflite')}.interpreter")
        self._interpreter = module.Interpreter(model_path=path, num_threads=threads)
        self._interpreter.allocate_tensors()
        inputs, outputs = self._named()
        inputs = [(name, one) for name, one in inputs if not name.startswith(UNUSED)]
        self.inputs = [
            (name, _numpy().dtype(one["dtype"]).name, [_dim(n) for n in one["shape_signature"]])
            for name, one in inputs
        ]
        self._places = {name: int(one["index"]) for name, one in inputs}
        self._kinds = {name: one["dtype"] for name, one in inputs}
        self._outputs = {name: int(one["index"]) for name, one in outputs}
        self._shapes = {name: tuple(map(int, one["shape"])) for name, one in inputs}
        self._accepted: list[Any] = []

    def run(self, feeds: Feeds) -> dict[str, Any]:
        """Run once; memory is planned anew only when a shape differs from the last run's."""
        given = [(name, array.dtype, array.shape) for name, array in feeds.items()]
        if given != self._accepted:
            self._accepted = []
            self._resize(feeds)
            self._accepted = given
        for name, array in feeds.items():
            fitted = array.astype(self._kinds[name], copy=False)  # int64 where the file has int32
            self._interpreter.set_tensor(self._places[name], fitted)
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(place) for name, place in self._outputs.items()}

    def _resize(self, feeds: Feeds) -> None:
        if feeds.keys() != self._places.keys():
            raise Failure(f"it takes the inputs {list(self._places)}; given were {list(feeds)}")
        for name, _, wanted in self.inputs:
            if any(n and n != given for n, given in zip(wanted, feeds[name].shape)):
                raise Failure(f"input {name!r} takes {wanted}, not {list(feeds[name].shape)}")
        changed = [name for name in feeds if self._shapes[name] != feeds[name].shape]
        for name in changed:
            self._interpreter.resize_tensor_input(self._places[name], feeds[name].shape)
            self._shapes[name] = feeds[name].shape
        if changed:
            self._interpreter.allocate_tensors()

    def _named(self) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
        """Name inputs and outputs by a signature of the main graph, or by their tensors."""
        inputs = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        keys = list(self._interpreter.get_signature_list())
        for key in sorted(keys, key=lambda key: key != "serving_default"):
            runner = self._interpreter.get_signature_runner(key)
            if not hasattr(runner, "get_input_details"):  # tflite-runtime 2.8 and before
                break
            names = runner.get_input_details(), runner.get_output_details()
            same = [
                _tensors(by_name.values()) == _tensors(details)
                for by_name, details in zip(names, (inputs, outputs))
            ]
            if all(same):
                return _in_order(names[0], inputs), _in_order(names[1], outputs)
        return _by_tensor(inputs, "input"), _by_tensor(outputs, "output")


def _tensors(details: Any) -> set[tuple[int, str]]:
    return {(int(one["index"]), str(one["name"])) for one in details}


def _in_order(named: Mapping[str, Any], details: Sequence[Any]) -> list[tuple[str, Any]]:
    places = [int(one["index"]) for one in details]
    return sorted(named.items(), key=lambda item: places.index(int(item[1]["index"])))


def _by_tensor(details: Sequence[Any], kind: str) -> list[tuple[str, Any]]:
    names = [str(one["name"]) for one in details]
    if len(set(names)) < len(names) or "" in names:
        names = [f"{kind}_{place}" for place in range(len(names))]
    return list(zip(names, details))


class CoremlSession:
    """An ML Program in Core ML; images are made of arrays of pixels, as its inputs ask."""

    def __init__(self, path: str, threads: int, options: Mapping[str, str]) -> None:
        import coremltools

        units = coremltools.ComputeUnit[options.get("compute_units", "ALL")]
        self._model = coremltools.models.MLModel(path, compute_units=units)
        description = self._model.get_spec().description
        self._features = {feature.name: feature for feature in description.input}
        self._names = [feature.name for feature in description.output]
        self.inputs = [
            (name, coreml_dtype(feature), [int(n) for n in feature.type.multiArrayType.shape])
            for name, feature in self._features.items()
        ]
        self._fitted: tuple[Any, dict[str, Any]] = (None, {})

    def run(self, feeds: Feeds) -> dict[str, Any]:
        """Run once; feeds are cast before the first run of each, not in every one."""
        if self._fitted[0] is not feeds:
            fitted = {name: fit_coreml(self._features[name], feeds[name]) for name in feeds}
            self._fitted = feeds, fitted
        found = self._model.predict(self._fitted[1])
        return {name: _coreml_array(found[name]) for name in self._names}


# FeatureTypes.proto of coremltools: ArrayFeatureType.ArrayDataType.
_COREML_DTYPES = {
    65552: "float16",
    65568: "float32",
    65600: "float64",
    131104: "int32",
    131080: "int8",
}


def coreml_dtype(feature: Any) -> str:
    """Name the type of a feature as numpy does; images are taken as uint8."""
    if feature.type.WhichOneof("Type") == "imageType":
        return "uint8"
    return _COREML_DTYPES.get(int(feature.type.multiArrayType.dataType), "float32")


def fit_coreml(feature: Any, array: Any) -> Any:
    """Give an array the type that a feature asks for: another dtype, or an image.

    Raises:
        Failure: an image is asked for, and Pillow is not installed.
    """
    if feature.type.WhichOneof("Type") != "imageType":
        return array.astype(coreml_dtype(feature))
    if importlib.util.find_spec("PIL") is None:
        raise Failure("it takes an image; " + _install("pillow"))
    from PIL import Image

    pixels = array[0].clip(0, 255).astype("uint8")
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def _coreml_array(value: Any) -> Any:
    return _numpy().asarray(list(value.values()) if isinstance(value, dict) else value)


_SESSIONS: dict[str, Any] = {
    "onnx": OrtSession,
    "tflite": TfliteSession,
    "mlpackage": CoremlSession,
}


def open_session(entry: Mapping[str, Any], threads: int) -> Any:
    """Load an artifact with the runtime of its format.

    Raises:
        Failure: the runtime is missing, or refuses the file.
    """
    kind, path = entry["format"], entry["path"]
    try:
        return _SESSIONS[kind](path, threads, entry.get("options") or {})
    except ImportError as error:
        raise Failure(f"{_version(kind)} cannot be imported: {_line(error)}") from error
    except Exception as error:  # the runtimes' own errors have no common base
        name = os.path.basename(path)
        raise Failure(f"{_version(kind)} cannot load {name}: {_line(error)}") from error


def _numpy() -> Any:
    return importlib.import_module("numpy")


def _dim(size: Any) -> int:
    """Give 0 for a dimension that varies."""
    return int(size) if isinstance(size, int) or (hasattr(size, "item") and size > 0) else 0


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _install(package: str) -> str:
    return f"run on the device: {sys.executable} -m pip install {package}"


def _missing(kind: str) -> str:
    """Say what must be installed for a format; empty where nothing must."""
    if kind not in RUNTIMES or _module(kind) is not None:
        return ""
    packages = RUNTIMES[kind][1]
    # LiteRT's package has no wheels for a Python this old.
    package = "tflite-runtime" if kind == "tflite" and sys.version_info < (3, 10) else packages[0]
    return f"{package} is not installed there; {_install(package)}"


# ---- timing: as runtimes/bench.py ---------------------------------------------------------------


def time_in_turns(
    sessions: Mapping[str, Any],
    feeds: Feeds,
    budget: Mapping[str, Any],
    on_round: Callable[[float], None],
) -> dict[str, dict[str, Any]]:
    """Time sessions that have run once, in turns of about 40 ms; see ``runtimes.bench.compare``."""
    warmup = {name: _warm_up(session, feeds, budget) for name, session in sessions.items()}
    samples: dict[str, list[float]] = {name: [] for name in sessions}
    spent_ms = dict.fromkeys(sessions, 0.0)
    order = list(sessions)
    while _least_done(samples, spent_ms, budget) < 1.0:
        for name in order:
            spent_ms[name] += _block(sessions[name], feeds, samples[name], budget["runs"])
        order.reverse()
        on_round(_least_done(samples, spent_ms, budget))
    return {name: {"warmup": warmup[name], "samples_ms": samples[name]} for name in sessions}


def _least_done(
    samples: Mapping[str, list[float]], spent_ms: Mapping[str, float], budget: Mapping[str, Any]
) -> float:
    def done(name: str) -> float:
        count = len(samples[name])
        if count >= budget["most_runs"]:
            return 1.0
        by_time = spent_ms[name] / 1000 / budget["seconds"] if budget["seconds"] else 1.0
        return float(min(1.0, count / budget["runs"], by_time))

    return min(done(name) for name in samples)


def _timed_ms(session: Any, feeds: Feeds) -> float:
    start = time.perf_counter_ns()
    session.run(feeds)
    return (time.perf_counter_ns() - start) / 1e6


def _warm_up(session: Any, feeds: Feeds, budget: Mapping[str, Any]) -> int:
    runs, spent_ms = 0, 0.0
    while runs < budget["warmup_runs"] or spent_ms < budget["warmup_s"] * 1000:
        spent_ms += _timed_ms(session, feeds)
        runs += 1
    return runs


def _block(session: Any, feeds: Feeds, samples: list[float], runs: int) -> float:
    spent = _timed_ms(session, feeds)
    fewest = min(2, math.ceil(runs / 10))
    count, timed = 0, 0.0
    while count < fewest or timed < BLOCK_MS:
        sample = _timed_ms(session, feeds)
        samples.append(sample)
        timed += sample
        count += 1
        if count >= runs:
            break
    return spent + timed


# ---- memory: as runtimes/memory_child.py --------------------------------------------------------


def _resident() -> dict[str, int]:
    """Read what this process holds, in bytes: ``Rss`` and, of it, ``Anonymous``.

    macOS tells the two apart for no process that asks about itself, so all counts as anonymous.
    """
    text = _read("/proc/self/smaps_rollup") or _read("/proc/self/smaps")
    if text:
        sums = dict.fromkeys(("Rss", "Anonymous"), 0)
        for key, value in re.findall(r"^(Rss|Anonymous):\s+(\d+) kB$", text, re.MULTILINE):
            sums[key] += int(value) * 1024
        return sums
    resident = _number(_said("ps", "-o", "rss=", "-p", str(os.getpid())).strip()) * 1024
    return {"Rss": resident, "Anonymous": resident}


def _peak_bytes() -> int:
    found = re.search(r"^VmHWM:\s+(\d+) kB$", _read("/proc/self/status"), re.MULTILINE)
    if found:
        return int(found.group(1)) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def _mapped_bytes(path: str) -> int:
    """Sum the resident pages that are mapped from the artifact's own files."""
    path = os.path.realpath(path)
    total, inside = 0, False
    for line in _read("/proc/self/smaps").splitlines():
        mapping = re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+\s*(.*)", line)
        if mapping:
            inside = mapping.group(1).startswith(path)
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def _load_warm_up(request: Mapping[str, Any], entry: Mapping[str, Any], tell: Tell) -> None:
    """Load the runtime's own code and pools, so that they are in the baseline."""
    path = request["warm_up"].get(entry["format"])
    if path is None:
        return
    numpy = _numpy()
    try:
        session = open_session({"format": entry["format"], "path": path}, request["threads"])
        session.run(
            {name: numpy.ones([n or 64 for n in dims], kind) for name, kind, dims in session.inputs}
        )
    except Exception as error:  # an old runtime lacks an operator; the artifact may do without
        words = "The memory of the runtime's own code counts as the artifact's"
        tell({"note": f"{words}: {_line(error)}."})


# ---- the processes that measure -----------------------------------------------------------------

Tell = Callable[[Mapping[str, Any]], None]


def _measure_memory(request: Mapping[str, Any], entries: Sequence[Any], tell: Tell) -> None:
    """Load and run one artifact in this fresh process and read its memory."""
    entry = entries[0]
    feeds = _load_feeds(request, request["sizes"][0])
    _load_warm_up(request, entry, tell)
    baseline = _resident()
    start = time.perf_counter_ns()
    session = open_session(entry, request["threads"])
    load_ms = (time.perf_counter_ns() - start) / 1e6
    loaded = _resident()
    for _ in range(1 + request["memory_runs"]):
        session.run(feeds)
    settled = _resident()
    # Some kernels keep the highest size in steps, and it may lag behind what smaps counts.
    peak = max(_peak_bytes(), loaded["Rss"], settled["Rss"])
    grown = {key: settled[key] - baseline[key] for key in settled}
    held = loaded["Anonymous"] - baseline["Anonymous"] + _mapped_bytes(entry["path"])
    tell({
        "load_ms": load_ms,
        "memory": {
            "baseline_rss_bytes": baseline["Rss"],
            "loaded_rss_bytes": loaded["Rss"],
            "settled_rss_bytes": settled["Rss"],
            "peak_rss_bytes": peak,
            "anonymous_bytes": grown["Anonymous"],
            "file_bytes": grown["Rss"] - grown["Anonymous"],
            "weights_resident_bytes": held,
        },
    })  # fmt: skip


def _measure_bare(request: Mapping[str, Any], entries: Sequence[Any], tell: Tell) -> None:
    """Load the graph without its weights; gives the anonymous memory that this takes."""
    _load_warm_up(request, entries[0], tell)
    before = _resident()["Anonymous"]
    session = open_session({**entries[0], "path": entries[0]["bare"]}, request["threads"])
    tell({"bare_bytes": _resident()["Anonymous"] - before})
    del session


def _measure_outputs(request: Mapping[str, Any], entries: Sequence[Any], tell: Tell) -> None:
    """Run one artifact on the parity inputs and save what it gives."""
    numpy, entry = _numpy(), entries[0]
    session = open_session(entry, request["threads"])
    inputs = _load_arrays(entry["parity"]["inputs"])
    rows = entry["parity"]["rows"]
    names = [name for name, _, _ in session.inputs]
    parts = []
    for start in range(0, len(inputs[0]), rows):
        feeds = dict(zip(names, [array[start : start + rows] for array in inputs]))
        parts.append(session.run(feeds))
    whole = parts[0]
    if len(parts) > 1:
        whole = {name: numpy.concatenate([part[name] for part in parts]) for name in whole}
    path = f"outputs-{request['artifacts'].index(entry)}.npz"
    numpy.savez(path, *whole.values())
    tell({"outputs": {"file": path, "names": list(whole), **_digest(path)}})


def _measure_latency(request: Mapping[str, Any], entries: Sequence[Any], tell: Tell) -> None:
    """Time artifacts side by side, size by size."""
    sessions = {}
    for entry in entries:
        tell({"step": "loading " + entry["id"]})
        try:
            sessions[entry["id"]] = open_session(entry, request["threads"])
        except Failure as error:
            tell({"artifact": entry["id"], "failure": str(error)})
    for size in request["sizes"]:
        words = f"{request['axis']} {size['size']}"
        feeds = _load_feeds(request, size)
        first = {}
        for name in list(sessions):
            try:
                first[name] = _timed_ms(sessions[name], feeds)
            except Exception as error:  # what does not run at this size leaves the others alone
                del sessions[name]
                tell({"artifact": name, "failure": f"at {words}: {_line(error)}"})
        if not sessions:
            return
        words = f"timing {', '.join(sessions)} at {words}"
        tell({"step": words})
        found = time_in_turns(sessions, feeds, request["budget"], _teller(words, tell))
        for name, figures in found.items():
            figures["first_ms"] = first[name]
        tell({"size": size["size"], "latency": found})


def _teller(words: str, tell: Tell) -> Callable[[float], None]:
    """Tell of rounds, but not of each: a line wakes its reader, which takes time."""
    told = 0.0

    def on_round(done: float) -> None:
        nonlocal told
        if done >= told + _SMALLEST_SHARE_TOLD:
            told = done
            tell({"step": f"{words}: {done:.0%}"})

    return on_round


_MEASURES: dict[str, Callable[[Mapping[str, Any], Sequence[Any], Tell], None]] = {
    "memory": _measure_memory,
    "bare": _measure_bare,
    "outputs": _measure_outputs,
    "latency": _measure_latency,
}


def _load_arrays(path: str) -> list[Any]:
    with _numpy().load(path, allow_pickle=False) as arrays:
        return [arrays[f"arr_{place}"] for place in range(len(arrays.files))]


def _load_feeds(request: Mapping[str, Any], size: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip(request["feed_names"], _load_arrays(size["feeds"])))


def _digest(path: str) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _child(kind: str, path: str, *ids: str) -> int:
    """Be the process that measures: a line of JSON on standard output for each finding."""
    out = os.dup(1)
    os.dup2(2, 1)  # what a runtime prints must not come between

    def tell(message: Mapping[str, Any]) -> None:
        os.write(out, json.dumps(message).encode() + b"\n")

    watch_input(lambda: os._exit(1))
    with open(path) as file:
        request = json.load(file)
    try:
        _MEASURES[kind](request, [one for one in request["artifacts"] if one["id"] in ids], tell)
    except Exception as error:  # the runtimes' own errors have no common base
        tell({"failure": _line(error)})
    return 0


# ---- the process that lasts ---------------------------------------------------------------------


def watch_input(end: Callable[[], Any]) -> None:
    """Call a function when standard input closes, from a thread."""

    def wait() -> None:
        try:
            while os.read(0, 4096):
                pass
        except OSError:  # it never was open
            pass
        end()

    threading.Thread(target=wait, daemon=True).start()


class Children:
    """The processes that the agent started, which must not outlive it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal may come in the thread that holds it
        self._running: list[subprocess.Popen[bytes]] = []
        self._over = False

    def start(self, command: Sequence[str], **settings: Any) -> subprocess.Popen[bytes]:
        """Start a process, with pipes for its input and its output."""
        with self._lock:
            if self._over:
                raise SystemExit(1)
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **settings
            )
            self._running.append(process)
            return process

    def forget(self, process: subprocess.Popen[bytes]) -> None:
        """Let go of a process that has ended."""
        assert process.stdin is not None
        process.stdin.close()
        with self._lock:
            if process in self._running:
                self._running.remove(process)

    def kill(self) -> None:
        """End all of them, and let none start after."""
        with self._lock:
            self._over = True
            for process in self._running:
                # Not Popen.kill: a signal may have come in the thread that waits for the process.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)


class Agent:
    """Measures what a request asks for, and keeps the answer."""

    def __init__(self, path: str, children: Children) -> None:
        with open(path) as file:
            self._request: dict[str, Any] = json.load(file)
        self._path = path
        self._children = children
        self._entries: list[dict[str, Any]] = self._request["artifacts"]
        self._found: dict[str, dict[str, Any]] = {
            entry["id"]: {"failure": "", "latency": {}} for entry in self._entries
        }
        self._answer: dict[str, Any] = {
            "schema": SCHEMA,
            "run": self._request["run"],
            "complete": False,
            "failure": "",
            "machine": machine(),
            "looks": [look()],
            "tegrastats": {},
            "notes": [],
            "artifacts": self._found,
        }

    def run(self) -> int:
        """Measure everything; gives the exit code."""
        self._answer["failure"] = self._unprepared()
        self._save()
        if self._answer["failure"]:
            say(self._answer["failure"])
            return UNPREPARED
        self._measure()
        self._answer["looks"].append(look())
        self._answer["complete"] = True
        self._save()
        return 0

    def _unprepared(self) -> str:
        """Say what must be installed before anything can be measured; empty where nothing must."""
        kinds = {entry["format"] for entry in self._entries}
        if kinds - {"tensorrt"} and importlib.util.find_spec("numpy") is None:
            return "numpy is not installed there; " + _install("numpy")
        missing = {kind: _missing(kind) for kind in sorted(kinds)}
        for entry in self._entries:
            self._found[entry["id"]]["failure"] = missing[entry["format"]]
        return "; ".join(missing.values()) if all(missing.values()) else ""

    def _measure(self) -> None:
        for entry in self._fit():
            if entry["format"] == "tensorrt":
                self._run_recipe(entry)
            else:
                say(f"measuring the memory of {entry['id']}")
                self._found[entry["id"]]["failure"] = self._run_child("memory", [entry])
            self._save()
        with self._tegrastats():
            self._time()
        for entry in self._fit():
            if entry.get("bare"):
                self._subtract_session(entry)
            if entry.get("parity"):
                say(f"running the parity inputs of {entry['id']}")
                trouble = self._run_child("outputs", [entry])
                self._found[entry["id"]]["parity_failure"] = trouble
            self._save()

    def _fit(self) -> list[dict[str, Any]]:
        return [entry for entry in self._entries if not self._found[entry["id"]]["failure"]]

    def _time(self) -> None:
        """Time artifacts in turns; one after the other where they do not run together."""
        entries = [entry for entry in self._fit() if entry["format"] != "tensorrt"]
        trouble = self._run_child("latency", entries) if entries else ""
        if not trouble:
            return
        if len(entries) > 1:
            self._answer["notes"].append(
                f"The artifacts were timed one after the other, not in turns: {trouble}."
            )
        for entry in entries:
            found = self._found[entry["id"]]
            if len(entries) > 1 and not found["failure"]:
                found["latency"] = {}
                trouble = self._run_child("latency", [entry])
            found["failure"] = found["failure"] or trouble
            self._save()

    def _subtract_session(self, entry: Mapping[str, Any]) -> None:
        """Take what the session itself takes off the weights that an artifact holds."""
        found = self._found[entry["id"]]
        trouble = self._run_child("bare", [entry])
        if trouble:
            words = f"The weights of {entry['id']} are counted with the session's own memory"
            self._answer["notes"].append(f"{words}: {trouble}.")
        held = found["memory"]["weights_resident_bytes"] - found.pop("bare_bytes", 0)
        found["memory"]["weights_resident_bytes"] = max(0, held)

    def _run_child(self, kind: str, entries: Sequence[Mapping[str, Any]]) -> str:
        """Measure in a fresh process; gives why it failed as a whole, or nothing."""
        ids = [entry["id"] for entry in entries]
        command = [sys.executable, os.path.abspath(__file__), "--child", kind, self._path, *ids]
        process = self._children.start(command, stderr=subprocess.PIPE)
        tail: deque[str] = deque(maxlen=20)
        drain = threading.Thread(target=_drain, args=(process.stderr, tail), daemon=True)
        drain.start()
        trouble = ""
        for message in _messages(process):
            trouble = self._take(message, ids[0]) or trouble
        code = process.wait()
        drain.join()
        self._children.forget(process)
        return trouble or _ending(code, tail)

    def _take(self, message: dict[str, Any], only: str) -> str:
        """Put what a process found into the answer; gives its failure as a whole."""
        if "step" in message:
            say(message["step"])
        elif "note" in message:
            self._answer["notes"].append(message["note"])
        elif "failure" in message and "artifact" not in message:
            return str(message["failure"])
        elif "latency" in message:
            for name, figures in message["latency"].items():
                self._found[name]["latency"][str(message["size"])] = figures
            self._answer["looks"].append(look())
            self._save()
        else:
            self._found[message.pop("artifact", only)].update(message)
        return ""

    def _tegrastats(self) -> Tegrastats:
        return Tegrastats(self._children, self._answer["tegrastats"])

    def _run_recipe(self, entry: Mapping[str, Any]) -> None:
        """Build and run an engine as its recipe says; logs and files are given as they are."""
        found = self._found[entry["id"]]
        folder = entry["path"]
        steps: list[dict[str, Any]] = []
        found["tensorrt"] = {"steps": steps, "files": {}}
        try:
            with open(os.path.join(folder, "recipe.json")) as file:
                recipe = json.load(file)
            before = set(os.listdir(folder))
            with self._tegrastats():
                for name, command in self._commands(recipe):
                    say(f"{entry['id']}: trtexec, {name}")
                    steps.append(self._run_command(name, command, folder))
                    if steps[-1]["exit_code"] and name in _NEEDED_STEPS:
                        code = steps[-1]["exit_code"]
                        raise Failure(f"trtexec failed to {name} it: exit code {code}")
            for name in sorted(set(os.listdir(folder)) - before):
                path = os.path.join(folder, name)
                if name.endswith(".json") and os.path.getsize(path) <= _FILE_BYTES:
                    found["tensorrt"]["files"][name] = _read(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, Failure) as error:
            found["failure"] = _line(error)

    def _commands(self, recipe: Any) -> list[tuple[str, list[str]]]:
        asked = self._request["trtexec"]
        trtexec = shutil.which(asked) or shutil.which(asked, path=_TRTEXEC_FOLDER)
        if trtexec is None:
            raise Failure(
                f"{asked} is not there; install TensorRT on the device, or give trtexec's path: "
                f"JetPack has it in {_TRTEXEC_FOLDER}"
            )
        log = self._run_command("version", [trtexec, "--help"], ".")["log"]
        version = trtexec_version_of(log)
        if version is None:
            raise Failure(f"{trtexec} --help does not tell its version")
        return commands_of(recipe, trtexec, version)

    def _run_command(self, name: str, command: Sequence[str], folder: str) -> dict[str, Any]:
        start = time.monotonic()
        process = self._children.start(command, cwd=folder, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        log = process.stdout.read().decode(errors="replace")
        code = process.wait()
        self._children.forget(process)
        seconds = time.monotonic() - start
        return {"name": name, "exit_code": code, "seconds": seconds, "log": log[-_LOG_CHARS:]}

    def _save(self) -> None:
        with open(ANSWER + ".part", "w") as file:
            json.dump(self._answer, file)
        os.replace(ANSWER + ".part", ANSWER)


class Tegrastats:
    """Samples a Jetson's ``tegrastats`` while it is entered; elsewhere does nothing."""

    def __init__(self, children: Children, summary: dict[str, Any]) -> None:
        self._children = children
        self._summary = summary
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: deque[str] = deque(maxlen=10_000)

    def __enter__(self) -> None:
        program = shutil.which("tegrastats")
        if program:
            command = [program, "--interval", str(_TEGRASTATS_MS)]
            self._process = self._children.start(command, stderr=subprocess.DEVNULL)
            drained = (self._process.stdout, self._lines)
            threading.Thread(target=_drain, args=drained, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._children.forget(self._process)
            self._summary.update(summarise_tegrastats(list(self._lines)))


def trtexec_version_of(text: str) -> tuple[int, int] | None:
    """Read major and minor version from what ``trtexec`` prints first: v8602, v100300, v10.3.0."""
    found = re.search(r"TensorRT\.trtexec \[TensorRT v(?:(\d+)\.(\d+)[\d.]*|(\d{4,6}))\]", text)
    if not found:
        return None
    if found.group(1):
        return int(found.group(1)), int(found.group(2))
    number = int(found.group(3))
    unit = 10_000 if number >= 100_000 else 1_000  # two digits for the minor version since 10
    return number // unit, number % unit // 100


def commands_of(recipe: Any, trtexec: str, version: tuple[int, int]) -> list[tuple[str, list[str]]]:
    """Give the commands of a recipe for a version in order, each with the name of its step.

    Raises:
        Failure: it has none for the version, or they are no lists of texts.
    """
    by_version = recipe.get("trtexec") if isinstance(recipe, dict) else None
    if not isinstance(by_version, dict) or not by_version:
        raise Failure("recipe.json has no commands for trtexec")
    known = {tuple(map(int, text.split("."))): text for text in by_version}
    fit = [each for each in known if each <= version]
    if not fit:
        raise Failure(
            f"the device has TensorRT {version[0]}.{version[1]}; the recipe needs "
            f"{known[min(known)]} or newer"
        )
    steps = by_version[known[max(fit)]]
    commands = []
    for name in _STEPS:
        line = steps.get(name)
        if line is None and name not in _NEEDED_STEPS:
            continue
        if not (isinstance(line, list) and line and all(isinstance(each, str) for each in line)):
            raise Failure(f"recipe.json has no command line to {name} the engine")
        commands.append((name, [each.replace("{trtexec}", trtexec) for each in line]))
    return commands


def _messages(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.endswith(b"\n"):  # a process that was killed may have begun a line
            yield json.loads(line)


def _drain(stream: Any, lines: deque[str]) -> None:
    for line in stream:
        lines.append(line.decode(errors="replace").rstrip())


def _ending(code: int, tail: Sequence[str]) -> str:
    """Say how a process ended that did not say so itself."""
    if code == 0:
        return ""
    if code == -signal.SIGKILL:
        return "killed, most likely for want of memory: try a smaller size"
    if code < 0:
        return f"the runtime crashed ({signal.Signals(-code).name})"
    last = [line for line in tail if line.strip()][-1:]
    return last[0] if last else f"ended with exit code {code}"


def say(text: str) -> None:
    """Tell of progress."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except OSError:  # nobody listens any more; standard input tells
        pass


def is_private(folder: str, request: str) -> bool:
    """Whether a folder may be removed: it holds this file and the request, and is no home."""
    own = os.path.realpath(os.path.dirname(os.path.abspath(__file__)))
    homes = [os.path.realpath(os.path.expanduser("~")), "/"]
    here = os.path.realpath(os.path.dirname(os.path.abspath(request)))
    return os.path.realpath(folder) == own == here and own not in homes


def main(arguments: Sequence[str]) -> int:
    """Measure what the request names; gives the exit code."""
    if arguments[:1] == ["--child"]:
        return _child(*arguments[1:])
    paths = [argument for argument in arguments if argument != "--private-folder"]
    if len(paths) != 1 or not os.path.isfile(paths[0]):
        say("usage: agent.py [--private-folder] request.json")
        return 2
    folder = os.path.dirname(os.path.abspath(paths[0]))
    private = "--private-folder" in arguments
    if private and not is_private(folder, paths[0]):
        say(f"--private-folder: {folder} is not a folder of the agent's own")
        return 2
    os.chdir(folder)
    if private:  # ONNX Runtime leaves files in the user's cache and in the one for temporary files
        os.environ["XDG_CACHE_HOME"] = os.environ["TMPDIR"] = folder
    children = Children()

    def end(code: int) -> NoReturn:
        children.kill()
        if private:
            for _ in range(3):  # another thread may write a file just now
                shutil.rmtree(folder, ignore_errors=True)
                time.sleep(0.05)
        os._exit(code)

    def on_signal(number: int, frame: FrameType | None) -> NoReturn:
        end(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, on_signal)
    watch_input(lambda: end(1))
    code = Agent(os.path.basename(paths[0]), children).run()
    sys.stdout.write(json.dumps({"weightspace": SCHEMA, **_digest(ANSWER)}) + "\n")
    sys.stdout.flush()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
