"""Hand-made reports with plausible figures, none of them round."""

import random
from dataclasses import replace

from devices.report.record import Report, Result, Run, Variant, WaterfallStep
from export.records import Parity, StoredTensor, TieMap, Use
from runtimes.records import Environment, Latency, Memory

LITERT = "ai-edge-litert"


def latency_of(p50, runs, seed):
    """Samples around ``p50`` with a tail, and their summary."""
    rng = random.Random(seed)
    samples = [p50 * (0.97 + 0.02 * rng.random() + rng.expovariate(25)) for _ in range(runs)]
    ordered = sorted(samples)

    def at(share):
        return ordered[min(runs - 1, int(share * runs))]

    mean = sum(samples) / runs
    return Latency(
        runs=runs,
        warmup=23,
        first=p50 * 2.7,
        min=ordered[0],
        p50=at(0.5),
        p90=at(0.9),
        p95=at(0.95),
        p99=at(0.99) if runs >= 100 else None,
        mean=mean,
        std=(sum((x - mean) ** 2 for x in samples) / runs) ** 0.5,
        samples=tuple(samples),
    )


def memory_of(weights, extra):
    baseline = 41_287_680
    return Memory(
        baseline_rss_bytes=baseline,
        loaded_rss_bytes=baseline + weights + 913_408,
        settled_rss_bytes=baseline + weights + 1_503_232 + extra,
        peak_rss_bytes=baseline + weights + 3_178_496 + extra,
        anonymous_bytes=weights + 1_290_240,
        file_bytes=212_992,
        weights_resident_bytes=weights,
    )


def make_run(results, **changes):
    values = {
        "device": "local",
        "measured_on": "this machine (AMD EPYC 7763)",
        "kind": "measured",
        "threads": 1,
        "environment": Environment(
            host="bench", cpu="AMD EPYC 7763", arch="x86_64", cores=2,
            memory_bytes=25_276_510_208, os="Linux 6.1", governor=None,
            runtime="onnxruntime 1.23.2", python="3.11.9",
        ),
        "results": results,
    }  # fmt: skip
    return Run(**values | changes)


def make_report(**changes):
    block = 384 * 96
    blocks = [f"blocks.{i}.ffn" for i in range(6)]
    stored = (
        *(
            StoredTensor(
                f"{name}.weight",
                (384, 96),
                "float32",
                (
                    Use("linear", "identity", f"{name}.up"),
                    Use("linear", "transpose", f"{name}.down"),
                ),
            )
            for name in blocks
        ),
        StoredTensor("head.weight", (10, 96), "float32", (Use("linear", "identity", "head"),)),
        StoredTensor("patch.weight", (96, 1, 7, 7), "float32", (Use("conv2d", "identity", "p"),)),
    )
    ties = TieMap(stored)
    unique = ties.unique_bytes
    naive = unique + 6 * block * 4
    parity = {"inputs": 256, "source": "fashion-mnist test", "top1_agreement": 0.9961}
    sizes = (1, 2, 4, 8, 16)
    variants = (
        Variant(
            "naive", "onnx", "onnxruntime 1.23.2", "float32", None, naive + 51_273, naive,
            naive / unique, "two MatMuls, the transposed copy folded into a second tensor",
            parity=Parity(4.1e-06, 2.31e-07, 0.99999999, 131.7, **parity),
            accuracy=0.9137,
        ),
        Variant(
            "latency-first", "onnx", "onnxruntime 1.23.2", "float32", "vit_pe.latency.onnx",
            unique + 48_911, unique + 1_024, (unique + 1_024) / unique,
            "MatMul, and Gemm with transB", session_options={"disable_prepacking": "0"},
            parity=Parity(5.2e-06, 2.87e-07, 0.99999998, 129.4, **parity),
            accuracy=0.9137,
        ),
        Variant(
            "memory-first", "onnx", "onnxruntime 1.23.2", "float32", "vit_pe.memory.onnx",
            unique + 47_387, unique + 1_024, (unique + 1_024) / unique,
            "both uses read the stored tensor, weights mapped from the file",
            session_options={"session.disable_prepacking": "1", "session.use_mmap": "1"},
            parity=Parity(5.2e-06, 2.87e-07, 0.99999998, 129.4, **parity),
            accuracy=0.9137,
        ),
    )  # fmt: skip

    results = {
        "onnx naive": Result(
            11.93, memory_of(int(naive * 1.52), 0),
            {s: latency_of(0.41 + 0.173 * s, 137, s) for s in sizes},
        ),
        "onnx latency-first": Result(
            9.41, memory_of(int(naive * 1.04), 65_536),
            {s: latency_of(0.39 + 0.169 * s, 137, 50 + s) for s in sizes},
        ),
        "onnx memory-first": Result(
            3.17, memory_of(int(unique * 1.03), 32_768),
            {s: latency_of(0.47 + 0.206 * s, 137, 90 + s) for s in sizes},
        ),
    }  # fmt: skip

    def step(label, cause, value):
        return WaterfallStep(label, cause, {v.id: int(value(v)) for v in variants})

    waterfall = (
        step("unique parameters", "each storage of the model counted once", lambda v: unique),
        step(
            "checkpoint",
            "safetensors with the ties kept; a header of names",
            lambda v: unique + 4_217,
        ),
        step(
            "ONNX",
            "naive: constant folding stores a transposed copy of every tied matrix",
            lambda v: v.weight_bytes + 39_211,
        ),
        step("artifact", "the graph, and the manifest's metadata", lambda v: v.file_bytes),
        step(
            "resident after load",
            "the runtime packs matrices into its own layout, unless told not to",
            lambda v: results[v.id].memory.weights_resident_bytes,
        ),
        step(
            "peak while running",
            "activations and the arena of the runtime",
            lambda v: results[v.id].memory.peak_rss_bytes - 41_287_680,
        ),
    )
    values = {
        "model": "vit_pe_fashion",
        "source": "zoo",
        "ties": ties,
        "target": "raspberry-pi-5",
        "target_title": "Raspberry Pi 5",
        "axis": "batch",
        "variants": variants,
        "waterfall": waterfall,
        "runs": (make_run(results),),
        "notes": ("The clock was not locked.",),
        "created": "2026-11-21T10:17:03Z",
    }  # fmt: skip
    return Report(**values | changes)


def in_tflite(variant):
    """The same variant as another runtime would have it: every figure differs."""
    return replace(
        variant,
        format="tflite",
        runtime="ai-edge-litert 2.1.0",
        path=variant.path and variant.path.replace("onnx", "tflite"),
        file_bytes=variant.file_bytes + 12_345,
        weight_bytes=variant.weight_bytes + 128,
        form=f"{variant.form}, lowered",
        session_options={},
        parity=replace(variant.parity, max_rel=variant.parity.max_rel * 3, reference=LITERT),
    )


def slower(result, factor, seed=300, memory_factor=None):
    """The same as another runtime or machine would have it: every figure differs."""
    return Result(
        result.load_ms * factor,
        memory_of(int(result.memory.weights_resident_bytes * (memory_factor or factor)), 98_304),
        {
            size: latency_of(latency.p50 * factor, 137, seed + size)
            for size, latency in result.latency_ms_by_size.items()
        },
    )


def make_two_format_report(**changes):
    """ONNX and TFLite, each with its naive export, in an order that no table shows."""
    report = make_report()
    naive, latency_first, memory_first = report.variants
    tflite = tuple(in_tflite(v) for v in (latency_first, naive, memory_first))
    (run,) = report.runs
    results = {
        f"tflite {name}": slower(run.results[f"onnx {name}"], factor)
        for name, factor in (("latency-first", 1.21), ("naive", 1.37), ("memory-first", 1.13))
    }
    ids = {v.id: v for v in tflite}
    steps = []
    for step in report.waterfall:
        if step.label == "ONNX":
            stored = {each: v.weight_bytes for each, v in ids.items()}
            steps += [step, WaterfallStep("TFLite", "stored tensors in the lowered file", stored)]
            continue
        theirs = {each: step.bytes_by_variant[f"onnx {v.name}"] + 77 for each, v in ids.items()}
        steps.append(replace(step, bytes_by_variant=step.bytes_by_variant | theirs))
    runtime = "onnxruntime 1.23.2, ai-edge-litert 2.1.0"
    return replace(
        report,
        **{
            "variants": (latency_first, tflite[0], naive, tflite[1], memory_first, tflite[2]),
            "waterfall": tuple(steps),
            "runs": (
                replace(
                    run,
                    results=run.results | results,
                    environment=replace(run.environment, runtime=runtime),
                ),
            ),
        }
        | changes,
    )


def make_several_device_report(make=make_report):
    """This machine, a real device, an emulated one, and an estimate for the target."""
    report = make()
    (here,) = report.runs
    board = Environment(
        host="pi", cpu="Raspberry Pi 5 Model B Rev 1.0", arch="aarch64", cores=4,
        memory_bytes=8_450_801_664, os="Linux 6.12", governor="ondemand",
        runtime="onnxruntime 1.23.2", python="3.13.5",
        clocks_hz=((2_400_000_000,) * 4, (1_500_000_000, *(2_400_000_000,) * 3)),
        temperatures_c=(47.2, 68.35), power_mode="MAXN", power_w=5.137,
        warnings=("The supply voltage was low once",),
    )  # fmt: skip
    emulated = replace(board, host="virt", cpu="QEMU cortex-a76", emulated=True, warnings=())
    emulated = replace(emulated, clocks_hz=(), temperatures_c=(), power_mode=None, power_w=None)
    found = here.results
    on_board = {each: slower(result, 2.3, 500, 1.07) for each, result in found.items()}
    on_virt = {each: slower(result, 411.7, 700, 1.09) for each, result in found.items()}
    estimates = {
        each: Result(estimate_ms_by_size={1: 1.2 + len(each) / 7, 4: 4.3 + len(each) / 7})
        for each in found
    }
    some = "onnx latency-first"
    parity = replace(report.variants[1].parity, max_rel=6.13e-06)
    on_board[some] = replace(on_board[some], parity=parity)
    notes = ("Scaled by the peak of its cores", "One batch fits its caches.")
    return replace(
        report,
        runs=(
            here,
            Run("raspberry-pi-5", "Raspberry Pi 5", "estimated", 4, None, estimates, notes=notes),
            make_run(
                on_board, device="pi-on-desk", measured_on=board.cpu, threads=4, environment=board
            ),
            make_run(on_virt, device="virt", measured_on=emulated.cpu, environment=emulated),
        ),
    )


def with_result(report, place, name, **changes):
    """Change what one run, by its place, says of one variant."""
    runs = list(report.runs)
    results = runs[place].results
    runs[place] = replace(runs[place], results=results | {name: replace(results[name], **changes)})
    return replace(report, runs=tuple(runs))


def without_figures(report, place, name):
    """Let one run know nothing of one variant."""
    return with_result(report, place, name, load_ms=None, memory=None, latency_ms_by_size={})
