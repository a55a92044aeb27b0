"""The command line: ``weightspace`` and ``export``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from devices import console
from devices.audit_cli import audit
from devices.compare_cli import compare
from devices.console import JsonOption, ModelOption
from devices.convert_cli import convert, sensitivity
from devices.device import Device
from devices.devices_cli import app as devices_app
from devices.zoo_cli import distill, models, train
from export.errors import MissingExtraError, UnknownNameError, UserError, WeightspaceError

# Packages that this project imports only where they are needed, and the extra that brings each.
EXTRAS = {
    "torch": "torch", "onnxscript": "torch", "onnxsim": "torch", "onnxruntime": "ort",
    "coremltools": "coreml", "tokenizers": "text",
}  # fmt: skip

app = typer.Typer(
    name="weightspace",
    help="Deploy weight-tied models with every shared weight stored once.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)
app.add_typer(devices_app, name="devices")

ThreadsOption = Annotated[int, typer.Option(min=1, help="Threads of the runtime.")]
SizesOption = Annotated[
    str | None,
    typer.Option(help="Sizes of the batch or sequence to time, such as 1,16,128."),
]
DevicesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        help="Measure on a device too: a name of `weightspace devices list`, or an address such "
        "as ssh://pi@host or adb://SERIAL. May be given again.",
    ),
]
FullOption = Annotated[
    bool,
    typer.Option("--full", help="At least 1,024 runs and 60 s for each figure, not 50 and 3 s."),
]


def export(
    model: ModelOption,
    target: Annotated[str, typer.Option("--target", help="See `weightspace targets`.")] = "local",
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder of the bundle; default out/MODEL-TARGET.")
    ] = None,
    setting: Annotated[
        str, typer.Option(help="latency-first, memory-first, or both of them.")
    ] = "both",
    precision: Annotated[
        str | None,
        typer.Option(
            help="float32, float16 or float32,float16: how weights are stored. Default: the "
            "target's own."
        ),
    ] = None,
    threads: ThreadsOption = 1,
    sizes: SizesOption = None,
    full: FullOption = False,
    no_profile: Annotated[
        bool, typer.Option("--no-profile", help="Export and check, but measure nothing.")
    ] = False,
    keep_naive: Annotated[
        bool, typer.Option("--keep-naive", help="Keep the naive export, to profile it later.")
    ] = False,
    app: Annotated[
        bool,
        typer.Option(
            "--app", help="Add the tokenizer, an example for the target's apps and the licences."
        ),
    ] = False,
    device: DevicesOption = None,
    tf32: Annotated[
        bool, typer.Option("--tf32", help="TensorRT: let float32 products round to TF32.")
    ] = False,
    workspace_mib: Annotated[
        int, typer.Option(min=1, help="TensorRT: memory for the builder's kernels, in MiB.")
    ] = 1024,
    dla_core: Annotated[
        int | None, typer.Option(min=0, help="TensorRT: build for this DLA core, float16 only.")
    ] = None,
    version_compatible: Annotated[
        bool,
        typer.Option("--version-compatible", help="TensorRT: an engine that newer ones run too."),
    ] = False,
    axis: Annotated[
        list[str] | None,
        typer.Option(help="TensorRT: smallest, usual and largest size, as batch:1,1,16."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Export a model for a target, check it against torch, measure it, and show one table.

    [bold]Examples[/bold]

      weightspace export --target raspberry-pi --model vit-pe-fmnist --out pi

      weightspace export --target android --model resnet-pe-fmnist --precision float16

      weightspace export --target raspberry-pi --model vit-pe-fmnist --device ssh://pi@host

      weightspace export --target phone --model minilm-pe --app

      python -m export --target local --model mypackage.nets:make --sizes 1,16,128
    """
    from devices.deploy import deploy
    from devices.options import Options
    from devices.report.terminal import print_report
    from devices.target import require_app, require_format, resolve_target
    from export.lower.tensorrt.recipe import RecipeOptions
    from runtimes.bench import FULL, QUICK

    options = Options(
        settings=_settings(setting),
        precisions=_precisions(precision),
        threads=threads,
        sizes=_sizes(sizes),
        budget=FULL if full else QUICK,
        profile=not no_profile,
        keep_naive=keep_naive,
        app=app,
        devices=_devices(device),
        recipe=RecipeOptions(
            workspace_bytes=workspace_mib * 2**20,
            tf32=tf32,
            dla_core=dla_core,
            version_compatible=version_compatible,
        ),
        ranges=dict(map(_range, axis or ())),
    )
    targets = resolve_target(target)
    for each in targets:
        require_format(each)  # before the first takes its minutes
        if app:
            require_app(each)
    base = folder or Path("out") / f"{_slug(model)}-{target}"
    manifests = []
    for each in targets:
        place = base if len(targets) == 1 else base / each.name
        with console.progress("interrupted; nothing was written") as tell:
            done = deploy(model, each, place, options, tell)
        manifests.append(done.manifest)
        if not as_json:
            print_report(done.report, console.out, place / "report.html")
            if app:
                _print_app(done.manifest["app"], place)
    if as_json:
        console.print_json(manifests[0] if len(manifests) == 1 else manifests)


def profile(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A bundle of `export`.")],
    threads: ThreadsOption = 1,
    sizes: SizesOption = None,
    full: FullOption = False,
    operators: Annotated[
        bool, typer.Option("--operators", help="Time each operator too, where the runtime can.")
    ] = False,
    device: DevicesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a bundle again, on this machine or on devices, and renew its reports.

    [bold]Examples[/bold]

      weightspace profile pi --threads 2 --sizes 1,8

      weightspace profile pi --device ssh://pi@192.168.1.20 --device kitchen-pi

      weightspace profile pi --operators
    """
    from devices.deploy import operators_by_artifact
    from devices.deploy import profile as profile_bundle
    from devices.options import Options
    from devices.report.terminal import print_report
    from runtimes.bench import FULL, QUICK

    options = Options(
        threads=threads,
        sizes=_sizes(sizes),
        budget=FULL if full else QUICK,
        devices=_devices(device),
    )
    with console.progress("interrupted; what was measured to its end is kept") as tell:
        done = profile_bundle(folder, options, tell)
        timed = operators_by_artifact(folder, threads, tell) if operators else {}
    if as_json:
        entries = done.manifest["profile"]
        each = {path: [asdict(one) for one in found] for path, found in timed.items()}
        console.print_json({"profile": entries, "operators": each} if operators else entries)
        return
    print_report(done.report, console.out, folder / "report.html")
    for path, found in timed.items():
        _print_operators(path, found)


def targets(as_json: JsonOption = False) -> None:
    """List the targets, their formats, and which can be exported to."""
    from devices.target import load_targets

    known = load_targets()
    if as_json:
        console.print_json({name: asdict(target) for name, target in known.items()})
        return
    table = Table("target", "what", "formats", "also called", box=None)
    for name, target in known.items():
        usable = target.available_formats
        formats = [f if f in usable else f"({f})" for f in target.formats]
        words = ", ".join(formats) or " and ".join(target.members)
        table.add_row(name, target.title, words, ", ".join(target.aliases))
    console.out.print(table)
    if any(target.formats != target.available_formats for target in known.values()):
        console.out.print("Formats in brackets cannot be written yet.", style="dim")


COMMANDS = (
    export, compare, profile, audit, models, targets, train, convert, sensitivity, distill,
)  # fmt: skip
for command in COMMANDS:
    app.command(command.__name__)(command)


def main() -> None:
    """Run ``weightspace``."""
    _run(app)


def export_main() -> None:
    """Run ``export`` alone, for ``python -m export`` and shells without that builtin."""
    alone = typer.Typer(add_completion=False, rich_markup_mode="rich")
    alone.command("export")(export)
    _run(alone)


def _run(command: Callable[[], Any]) -> None:
    """Run a command; an error of ours becomes one line and its exit code."""
    try:
        command()
    except WeightspaceError as error:
        console.print_error(error)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRAS:
            raise
        missing = MissingExtraError.of(package, EXTRAS[package])
        console.print_error(missing)
        sys.exit(missing.exit_code)
    except BrokenPipeError:
        # The reader went away, as `| head` does. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _settings(name: str) -> tuple[str, ...]:
    from export.lower import SETTINGS

    if name == "both":
        return SETTINGS
    if name not in SETTINGS:
        known = (*SETTINGS, "both")
        raise UnknownNameError.near("setting", name, known, "weightspace export --help")
    return (name,)


def _devices(names: list[str] | None) -> tuple[Device, ...]:
    from devices.known import find_device

    return tuple(dict.fromkeys(find_device(name) for name in names or ()))


def _precisions(text: str | None) -> tuple[str, ...]:
    from devices.artifacts import PRECISIONS

    known = sorted({precision for each in PRECISIONS.values() for precision in each})
    names = tuple(dict.fromkeys(part.strip() for part in text.split(","))) if text else ()
    for name in names:
        if name not in known:
            raise UnknownNameError.near("precision", name, known, "weightspace export --help")
    return names


def _sizes(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        sizes = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise UserError(f"--sizes {text!r} is not a list of numbers such as 1,16,128") from error
    if min(sizes) < 1:
        raise UserError(f"--sizes {text!r} holds a size below 1")
    return sizes


def _range(text: str) -> tuple[str, Any]:
    from export.lower.tensorrt.profiles import Range

    name, _, sizes = text.rpartition(":")
    try:
        smallest, usual, largest = map(int, sizes.split(","))
    except ValueError as error:
        raise UserError(f"--axis {text!r} is not of the form batch:1,1,16") from error
    return name, Range(smallest, usual, largest)


def _slug(model: str) -> str:
    return Path(model).stem if model.endswith((".pt2", ".safetensors")) else model.split(":")[-1]


def _print_app(app: dict[str, Any], folder: Path) -> None:
    """Show what an app carries and where its instructions are."""
    from devices.report.units import format_bytes

    parts = [f"{path} {format_bytes(size)}" for path, size in app["download_bytes"].items()]
    total = format_bytes(sum(app["download_bytes"].values()))
    console.out.print(
        f"App: {folder / app['folder'] / 'README.md'}; carries {total}: {', '.join(parts)}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip


def _print_operators(path: str, found: Any) -> None:
    """Show operators by type, the slowest first."""
    if not found:
        console.out.print(f"\n{path}: its runtime does not time operators.", highlight=False)
        return
    by_type: dict[tuple[str, bool], list[float]] = {}
    for one in found:
        by_type.setdefault((one.op, one.delegated), []).append(one.mean_ms)
    whole = sum(one.mean_ms for one in found) or 1.0
    table = Table("operator", "count", "ms", "share", "run by", title=path, box=None)
    for (op, delegated), times in sorted(by_type.items(), key=lambda item: -sum(item[1])):
        runner = "delegate" if delegated else "runtime"
        total = sum(times)
        table.add_row(op, str(len(times)), f"{total:.3f}", f"{total / whole:.0%}", runner)
    console.out.print(table)
