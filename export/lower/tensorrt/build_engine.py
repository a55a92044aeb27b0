#!/usr/bin/env python3
"""Build a TensorRT engine from the recipe beside this file, and say what came of it.

It stands alone: Python 3.8 or newer and NVIDIA's `tensorrt` module (JetPack installs both), or
`tensorrt_rtx`, are all it needs. TensorRT 8.6, 10 and 11 and TensorRT for RTX differ in names that
are looked up where they are used.

    python3 build_engine.py [RECIPE]      default: recipe.json beside this file

Exit status 1: the engine could not be built; 3: it was built, but not in the precision that was
asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from typing import Any, Dict, List, Optional, Tuple

TOTAL_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")
CLASSIC, RTX = "tensorrt", "tensorrt_rtx"


class BuildError(Exception):
    """An engine could not be built; the message is one line."""


def load_module(names: List[str]) -> Any:
    """Import the first of some modules that is installed.

    Raises:
        BuildError: none of them is.
    """
    for name in names:
        try:
            return __import__(name)
        except ImportError:
            continue
    raise BuildError(
        "no TensorRT was found (%s): install python3-libnvinfer with JetPack's apt"
        % ", ".join(names)
    )


def make_logger(trt: Any) -> Any:
    """Make a logger that keeps what the builder tells of weights, and all errors."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.weights_bytes: Optional[int] = None
            self.errors: List[str] = []

        def log(self, severity: Any, message: str) -> None:
            found = TOTAL_WEIGHTS.search(message)
            if found:
                self.weights_bytes = int(found.group(1))
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()


def one_line_each(errors: List[str]) -> List[str]:
    """Write each message in one line; says so where there is none."""
    return [" ".join(error.split()) for error in errors] or ["no reason was given"]


def is_strongly_typed(trt: Any, recipe: Dict[str, Any]) -> bool:
    """Whether the version keeps to the types in the graph: all from 10.0 on can.

    For a DLA 10 is asked in the older way, as long as there is one.
    """
    older = recipe["dla_core"] is not None and hasattr(trt.BuilderFlag, "FP16")
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") and not older


def network_flags(trt: Any, typed: bool) -> int:
    """Flags of a network whose types are those of the graph, as far as the version knows them."""
    name = "STRONGLY_TYPED" if typed else "EXPLICIT_BATCH"  # the latter goes without saying from 10
    flag = getattr(trt.NetworkDefinitionCreationFlag, name, None)
    return 0 if flag is None else 1 << int(flag)


def parse(trt: Any, network: Any, logger: Any, path: str) -> Any:
    """Read an ONNX file into a network.

    Returns:
        The parser, which must live as long as the network: it owns the weights.

    Raises:
        BuildError: the parser refused nodes; all that it names are in the message.
    """
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(path):
        reasons = [line for _, line in parser_errors(parser)] or one_line_each(logger.errors)
        raise BuildError("%s cannot be read: %s" % (os.path.basename(path), "; ".join(reasons)))
    return parser


def parser_errors(parser: Any) -> List[Tuple[str, str]]:
    """List a parser's errors: the name of the node and a line for each."""
    found = []
    for place in range(parser.num_errors):
        error = parser.get_error(place)
        named = getattr(error, "node_name", None)
        operator = getattr(error, "node_operator", None)
        name = named() if named else "#%d" % error.node()
        kind = operator() if operator else ""
        text = " ".join(error.desc().split())
        found.append((name, "%s %r: %s" % (kind or "node", name, text)))
    return found


def configure(trt: Any, builder: Any, network: Any, recipe: Dict[str, Any]) -> Any:
    """Make the builder's configuration from a recipe."""
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(recipe["workspace_bytes"]))
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    set_flag(trt, config, "TF32", bool(recipe["tf32"]))
    if recipe["version_compatible"]:
        set_flag(trt, config, "VERSION_COMPATIBLE", True)
    if recipe["dla_core"] is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = int(recipe["dla_core"])
        set_flag(trt, config, "GPU_FALLBACK", True)
    if recipe["precision"] == "float16" and not is_strongly_typed(trt, recipe):
        hold_precisions(trt, config, network)
    if recipe["profiles"]:
        profile = builder.create_optimization_profile()
        for name, shapes in recipe["profiles"].items():
            profile.set_shape(name, shapes["min"], shapes["opt"], shapes["max"])
        config.add_optimization_profile(profile)
    return config


def set_flag(trt: Any, config: Any, name: str, on: bool) -> None:
    """Set or clear a flag where the version has it."""
    flag = getattr(trt.BuilderFlag, name, None)
    if flag is not None:
        (config.set_flag if on else config.clear_flag)(flag)


def hold_precisions(trt: Any, config: Any, network: Any) -> None:
    """Have 8.x keep to the types in the graph, layer by layer: its networks have none."""
    set_flag(trt, config, "FP16", True)
    set_flag(trt, config, "OBEY_PRECISION_CONSTRAINTS", True)
    for place in range(network.num_layers):
        layer = network.get_layer(place)
        kinds = [layer.get_output(i).dtype for i in range(layer.num_outputs)]
        typed = kinds and all(kind in (trt.float16, trt.float32) for kind in kinds)
        if typed and layer.type not in (trt.LayerType.CONSTANT, trt.LayerType.CAST):
            layer.precision = kinds[0]


def use_timing_cache(config: Any, path: Optional[str]) -> Any:
    """Start from the timings in a file, if there is one."""
    if path is None:
        return None
    data = b""
    if os.path.isfile(path):
        with open(path, "rb") as file:
            data = file.read()
    cache = config.create_timing_cache(data)
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def build(trt: Any, recipe: Dict[str, Any], folder: str) -> Tuple[bytes, Dict[str, Any]]:
    """Build an engine.

    Returns:
        The engine, and what is known of it.

    Raises:
        BuildError: the file cannot be read, or the builder gave up.
    """
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    if builder is None:
        raise BuildError("TensorRT did not start: %s" % _last(logger))
    network = builder.create_network(network_flags(trt, is_strongly_typed(trt, recipe)))
    parser = parse(trt, network, logger, os.path.join(folder, recipe["model"]))
    config = configure(trt, builder, network, recipe)
    cache_path = recipe["timing_cache"] and os.path.join(folder, recipe["timing_cache"])
    cache = use_timing_cache(config, cache_path)
    start = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - start
    if plan is None:
        raise BuildError("the builder gave up: %s" % _last(logger))
    del parser
    engine = bytes(plan)
    if cache is not None:
        write_whole(cache_path, bytes(cache.serialize()))
    facts = {
        "library": trt.__name__,
        "version": trt.__version__,
        "bytes": len(engine),
        "weights_bytes": logger.weights_bytes,
        "build_s": round(seconds, 3),
        "layers": network.num_layers,
    }
    return engine, facts


def build_empty(trt: Any) -> Dict[str, Any]:
    """Build an engine that computes nothing, for what every engine holds besides weights."""
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    typed = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    network = builder.create_network(network_flags(trt, typed))
    x = network.add_input("x", trt.float32, (1,))
    network.mark_output(network.add_identity(x).get_output(0))
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        raise BuildError("the builder gave up on an empty network: %s" % _last(logger))
    return {"bytes": len(bytes(plan)), "weights_bytes": logger.weights_bytes}


def precisions_of(trt: Any, engine: bytes) -> Optional[Dict[str, int]]:
    """Count the layers of a finished engine by the type of their results.

    Returns:
        Counts by type, such as ``Half``; None where the engine cannot be loaded, as on a machine
        without a GPU.
    """
    loaded = trt.Runtime(make_logger(trt)).deserialize_cuda_engine(engine)
    if loaded is None:
        return None
    text = loaded.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return count_precisions(json.loads(text))


def count_precisions(information: Dict[str, Any]) -> Dict[str, int]:
    """Count the layers in an inspector's JSON by the type of their first result."""
    counts: Dict[str, int] = {}
    for layer in information.get("Layers", []):
        outputs = layer.get("Outputs", []) if isinstance(layer, dict) else []
        if outputs:
            text = str(outputs[0].get("Format/Datatype", "unknown"))
            found = re.findall(r"Half|FP16|Float|FP32|Int8|Int32|Int64|BFloat16|Bool", text)
            kind = {"FP16": "Half", "FP32": "Float"}.get(found[-1], found[-1]) if found else text
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def precision_words(wanted: str, counts: Optional[Dict[str, int]]) -> Tuple[bool, str]:
    """Say which precision an engine's layers have, and whether it is the one asked for."""
    if counts is None:
        return True, "the engine's layers could not be inspected here (it needs a GPU)"
    listed = ", ".join("%d %s" % (count, kind) for kind, count in sorted(counts.items()))
    right = wanted != "float16" or counts.get("Half", 0) > 0
    if right:
        return True, "layers by type: %s" % (listed or "none named")
    return False, "asked for float16, but no layer is: %s" % (listed or "none named")


def write_whole(path: str, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path + ".part"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def _last(logger: Any) -> str:
    return one_line_each(logger.errors)[-1]


def main(arguments: Optional[List[str]] = None) -> int:
    """Build, write the engine beside the recipe, and print what came of it."""
    parser = argparse.ArgumentParser(description="Build a TensorRT engine from a recipe.")
    here = os.path.dirname(os.path.abspath(__file__))
    parser.add_argument("recipe", nargs="?", default=os.path.join(here, "recipe.json"))
    parser.add_argument("--module", action="append", help="TensorRT's module; default: any")
    parser.add_argument("--engine", help="where the engine goes; default: as in the recipe")
    parser.add_argument("--facts", help="a JSON file for what is known of the engine")
    parser.add_argument("--no-timings", action="store_true", help="leave no file of timings")
    given = parser.parse_args(arguments)
    with open(given.recipe, encoding="utf-8") as file:
        recipe = json.load(file)
    if given.no_timings:
        recipe["timing_cache"] = None
    folder = os.path.dirname(os.path.abspath(given.recipe))
    target = given.engine or os.path.join(folder, recipe["engine"])
    try:
        trt = load_module(given.module or [CLASSIC, RTX])
        print("building %s with %s %s" % (recipe["model"], trt.__name__, trt.__version__))
        sys.stdout.flush()
        empty = build_empty(trt)
        engine, facts = build(trt, recipe, folder)
        counts = precisions_of(trt, engine)
    except BuildError as error:
        print("error: %s" % error, file=sys.stderr)
        return 1
    right, words = precision_words(recipe["precision"], counts)
    facts.update(empty=empty, layer_types=counts, precision=words)
    write_whole(target, engine)
    if given.facts:
        write_whole(given.facts, json.dumps(facts, indent=1).encode())
    print(
        "%s: %d bytes, built in %.1f s" % (os.path.basename(target), len(engine), facts["build_s"])
    )
    print(words if right else "WRONG PRECISION: %s" % words)
    return 0 if right else 3


if __name__ == "__main__":
    sys.exit(main())
