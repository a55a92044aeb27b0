"""What a device runs to make an engine of the prepared graph, and to time it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from export.errors import OutputError, UserError
from export.lower.tensorrt.profiles import Profile
from export.onnx_io import reason_of

SCHEMA = 1
RECIPE, SCRIPT = "recipe.json", "build_engine.py"
TRTEXEC = "{trtexec}"
_MIB = 2**20
# The protocol of this project: warm-up of half a second, then at least 50 runs and 3 s.
_WARM_UP_MS, _DURATION_S, _RUNS = 500, 3, 50


@dataclass(frozen=True, slots=True)
class RecipeOptions:
    """How an engine is built.

    Args:
        workspace_bytes: memory that the builder's kernels may use.
        tf32: whether float32 products may round their operands to TF32, ten bits of mantissa.
        dla_core: the DLA core to build for, with the GPU for what it cannot run; None for the GPU.
        version_compatible: whether newer TensorRT of the same major version may run the engine.
        timing_cache: keep the builder's timings beside the engine, so that it is built faster
            again.
    """

    workspace_bytes: int = 1024 * _MIB
    tf32: bool = False
    dla_core: int | None = None
    version_compatible: bool = False
    timing_cache: bool = True


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe for one prepared graph; see ``as_dict`` for what stands in the file."""

    model: str
    engine: str
    precision: str
    opset: int
    oldest_version: str | None
    profiles: Mapping[str, Profile]
    options: RecipeOptions = field(default_factory=RecipeOptions)

    def __post_init__(self) -> None:
        """Refuse what no builder takes.

        Raises:
            UserError: an option is out of its range.
        """
        if self.options.workspace_bytes < _MIB:
            raise UserError(f"a workspace of {self.options.workspace_bytes:,} bytes is below 1 MiB")
        if self.options.dla_core is not None and self.precision != "float16":
            raise UserError("a DLA computes in float16; export with --precision float16")

    @property
    def timing_cache(self) -> str | None:
        """Name of the file of timings."""
        return f"{Path(self.engine).stem}.timings" if self.options.timing_cache else None

    def as_dict(self) -> dict[str, Any]:
        """Put the recipe into the form of its file; every path is relative to it."""
        profiles = {
            name: {"min": list(p.smallest), "opt": list(p.usual), "max": list(p.largest)}
            for name, p in self.profiles.items()
        }
        options = asdict(self.options)
        return {
            "schema": SCHEMA,
            "model": self.model,
            "engine": self.engine,
            "precision": self.precision,
            "opset": self.opset,
            "oldest_tensorrt": self.oldest_version,
            "profiles": profiles,
            **{key: options[key] for key in options if key != "timing_cache"},
            "timing_cache": self.timing_cache,
            "python": ["{python}", SCRIPT, RECIPE],
            "trtexec": {
                version: {
                    "build": self._build(version),
                    "run": self._run(version),
                    "profile": self._profile(version),
                }
                for version in ("8.6", "10", "11")
            },
        }

    def _build(self, version: str) -> list[str]:
        """The command that builds the engine."""
        options = self.options
        command = [
            TRTEXEC,
            f"--onnx={self.model}",
            f"--saveEngine={self.engine}",
            f"--memPoolSize=workspace:{options.workspace_bytes // _MIB}",
            "--profilingVerbosity=detailed",
            "--skipInference",
        ]
        older = version == "8.6" or (version == "10" and options.dla_core is not None)
        if older and self.precision == "float16":
            command.append("--fp16")  # the network has no types: it may round more than the graph
        if version == "10" and not older:
            command.append("--stronglyTyped")  # 11 knows nothing else
        if not options.tf32:
            command.append("--noTF32")
        for flag, pick in (("min", "smallest"), ("opt", "usual"), ("max", "largest")):
            if self.profiles:
                shapes = ",".join(
                    f"{name}:{_shape(getattr(profile, pick))}"
                    for name, profile in self.profiles.items()
                )
                command.append(f"--{flag}Shapes={shapes}")
        if self.timing_cache:
            command.append(f"--timingCacheFile={self.timing_cache}")
        if options.dla_core is not None:
            command += [f"--useDLACore={options.dla_core}", "--allowGPUFallback"]
        if options.version_compatible:
            command.append("--versionCompatible")
        return command

    def _run(self, version: str) -> list[str]:
        """The command that times the engine: CUDA graph, spin wait and no transfers, said or not.

        These are the defaults of 11 and were not before; its flags for them are gone.
        """
        command = [*self._load(), *_measured()]
        if version != "11":
            command += ["--useCudaGraph", "--useSpinWait", "--noDataTransfers"]
        return [*command, f"--exportTimes={self._beside('times.json')}"]

    def _profile(self, version: str) -> list[str]:
        """The command that times each layer, in a run of its own."""
        command = [*self._load(), *_measured()]
        if version == "11":
            command += ["--noCudaGraph", "--noSpinWait"]
        else:
            command += ["--separateProfileRun", "--noDataTransfers"]
        return [
            *command,
            "--profilingVerbosity=detailed",
            "--dumpProfile",
            f"--exportProfile={self._beside('layers.json')}",
            f"--exportLayerInfo={self._beside('engine.json')}",
        ]

    def _load(self) -> list[str]:
        command = [TRTEXEC, f"--loadEngine={self.engine}"]
        if self.profiles:
            shapes = ",".join(f"{n}:{_shape(p.usual)}" for n, p in self.profiles.items())
            command.append(f"--shapes={shapes}")
        if self.options.dla_core is not None:
            command.append(f"--useDLACore={self.options.dla_core}")
        return command

    def _beside(self, name: str) -> str:
        return f"{Path(self.engine).stem}.{name}"


def _measured() -> list[str]:
    return [
        f"--warmUp={_WARM_UP_MS}",
        f"--duration={_DURATION_S}",
        f"--iterations={_RUNS}",
        "--percentile=50,90,95,99",
    ]


def _shape(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def write_recipe(recipe: Recipe, folder: Path) -> list[Path]:
    """Write the recipe and the script that builds by it into a folder.

    Raises:
        OutputError: the folder cannot be written.
    """
    try:
        path = folder / RECIPE
        path.write_text(json.dumps(recipe.as_dict(), indent=1) + "\n", encoding="utf-8")
        script = Path(shutil.copyfile(Path(__file__).with_name(SCRIPT), folder / SCRIPT))
    except OSError as error:
        raise OutputError(reason_of(error, folder)) from error
    return [path, script]
