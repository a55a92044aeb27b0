"""MiniLM-PE in a browser: ours beside the naive export, by onnxruntime-web in headless Chromium.

What is downloaded, how large the runtime's memory becomes (WebAssembly's never shrinks, so its size
is its peak), and the median latency at 16 and 128 tokens, one thread, all in one page in turns.
``make bench`` runs it as ``python -m benchmarks.browser``; ``--quick`` measures a tenth as long,
and ``--screenshot FILE`` instead takes a picture of the page for semantic search.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from devices.deploy import deploy
from devices.options import Options
from devices.target import find_target
from runtimes.environment import cpu_name
from tests.browser.chromium import chromium, installed, served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "devices" / "app" / "web"
MODEL = "minilm-pe"
TOKENS = (16, 128)
NAIVE = "naive, float32"
# Where a bundle in both precisions has its files.
VARIANTS = {
    NAIVE: "naive/model.onnx",
    "naive, float16": "float16/naive/model.float16.onnx",
    "latency-first, float32": "float32/model.latency-first.onnx",
    "memory-first, float32": "float32/model.memory-first.onnx",
    "latency-first, float16": "float16/model.latency-first.onnx",
    "memory-first, float16": "float16/model.memory-first.onnx",
}

_PAGE = """<!doctype html>
<script>
  // The runtime makes one memory; what it grew to is read from it.
  const memories = [];
  WebAssembly.Memory = new Proxy(WebAssembly.Memory, {
    construct(type, given) {
      memories.push(new type(...given));
      return memories.at(-1);
    },
  });
</script>
<script type="module">
  import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";
  ort.env.wasm.numThreads = 1;
  const sessions = {};
  const feeds = (tokens) => {
    const shape = [1, tokens];
    const ids = BigInt64Array.from({ length: tokens }, (_, place) => BigInt(1000 + 37 * place));
    return {
      input_ids: new ort.Tensor("int64", ids, shape),
      attention_mask: new ort.Tensor("int64", new BigInt64Array(tokens).fill(1n), shape),
    };
  };
  globalThis.load = async (name, path, data) => {
    const externalData = data ? [{ path: data.split("/").at(-1), data }] : [];
    const options = { executionProviders: ["wasm"], externalData, logSeverityLevel: 3 };
    sessions[name] = await ort.InferenceSession.create(path, options);
  };
  globalThis.time = async (name, tokens, runs) => {
    const samples = [];
    for (let run = 0; run <= runs; run++) {
      const started = performance.now();
      await sessions[name].run(feeds(tokens));
      samples.push(performance.now() - started);
    }
    return samples.slice(1); // the first finds the caches as another session left them
  };
  globalThis.heap = () => memories.reduce((sum, memory) => sum + memory.buffer.byteLength, 0);
</script>
"""


def main() -> None:
    """Measure, or take the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs")
    parser.add_argument("--screenshot", type=Path, metavar="FILE", help="a .png to write")
    given = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="weightspace-") as scratch, chromium() as browser:
        folder = Path(scratch) / "bundle"
        if given.screenshot:
            deploy(MODEL, find_target("web"), folder, Options(profile=False, app=True))
            (folder / "app" / "web" / "node_modules").symlink_to(installed(EXAMPLE))
            take_picture(browser, folder, given.screenshot)
            return
        options = Options(profile=False, precisions=("float32", "float16"), keep_naive=True)
        deploy(MODEL, find_target("web"), folder, options)
        (folder / "node_modules").symlink_to(installed(EXAMPLE))
        (folder / "index.html").write_text(_PAGE)
        measure(browser, folder, 10 if given.quick else 100, console)


def measure(browser: Browser, folder: Path, rounds: int, console: Console) -> None:
    """Print the table: each variant alone for its memory, then all in turns for their latency."""
    with served(folder) as url:
        heaps = {}
        for name, path in VARIANTS.items():
            with browser.new_page() as page:
                load(page, url, {name: path}, folder)
                page.evaluate("([name, tokens]) => time(name, tokens, 1)", [name, max(TOKENS)])
                heaps[name] = page.evaluate("heap()")
        with browser.new_page() as page:
            load(page, url, VARIANTS, folder)
            timed = {tokens: time_in_turns(page, tokens, rounds) for tokens in TOKENS}
    table = Table(f"{MODEL}, onnxruntime-web", "download", "memory", *map(_header, TOKENS))
    for name, path in VARIANTS.items():
        cells = [
            f"{sum(map(_size, _files(folder, path))) / 1e6:.1f} MB",
            f"{heaps[name] / 1e6:.0f} MB",
        ]
        for medians in timed.values():
            cells.append(f"{medians[name]:.1f} ms  {medians[name] / medians[NAIVE]:.2f}x")
        table.add_row(name, *cells)
    console.print(table)
    load_note = "" if os.getloadavg()[0] < 1 else "; other work was running: compare ratios alone"
    console.print(
        f"Measured in headless Chromium {browser.version} on this machine ({cpu_name()}), "
        f"one thread; medians of {rounds * _RUNS} runs in turns{load_note}"
    )


_RUNS = 3


def time_in_turns(page: Page, tokens: int, rounds: int) -> dict[str, float]:
    """Give each variant's median in milliseconds; the order is reversed each round."""
    samples: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for turn in range(rounds):
        for name in [*VARIANTS][:: 1 if turn % 2 else -1]:
            samples[name] += page.evaluate("given => time(...given)", [name, tokens, _RUNS])
    return {name: statistics.median(each) for name, each in samples.items()}


def load(page: Page, url: str, variants: Mapping[str, str], folder: Path) -> None:
    """Open the page and make a session of each variant in it."""
    page.goto(url)
    page.wait_for_function("'load' in globalThis")
    for name, path in variants.items():
        data = next(
            (f"{path}.data" for file in _files(folder, path) if file.suffix == ".data"), None
        )
        page.evaluate("given => load(...given)", [name, path, data])


def take_picture(browser: Browser, folder: Path, path: Path) -> None:
    """Ask the page for semantic search something, and save what it shows."""
    query = "I forgot how to sign in"
    with served(folder) as url, browser.new_page(viewport={"width": 820, "height": 520}) as page:
        page.goto(f"{url}app/web/")
        page.wait_for_function(_CHECKED, timeout=120_000)
        page.fill("#query", query)
        page.wait_for_selector(f'#status[data-query="{query}"]')
        page.screenshot(path=path)


_CHECKED = "document.querySelector('#check').textContent.includes('cosine')"


def _files(folder: Path, path: str) -> list[Path]:
    file = folder / path
    return [each for each in (file, file.with_name(f"{file.name}.data")) if each.exists()]


def _size(path: Path) -> int:
    return path.stat().st_size


def _header(tokens: int) -> str:
    return f"p50 at {tokens} tokens"


if __name__ == "__main__":
    main()
