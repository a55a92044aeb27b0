"""Headless Chromium on pages that this machine serves, and the npm packages that they import."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# No GPU, no sandbox (tests may run as root), and no look-ups of hosts that a page did not ask for.
_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
_ISOLATED = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}


class MissingError(Exception):
    """A program or a package is missing; the text names it and how to get it."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Debian's Chromium.

    Raises:
        MissingError: it is not installed, or playwright is not.
    """
    program = shutil.which("chromium")
    if program is None:
        raise MissingError("chromium is missing; run: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise MissingError("playwright is missing; run: pip install playwright") from error
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def served(folder: Path, *, isolated: bool = False) -> Iterator[str]:
    """Serve a folder on this machine; gives its URL.

    Args:
        isolated: send the headers that let a page use threads.
    """
    handler = functools.partial(_Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.extra_headers = _ISOLATED if isolated else {}
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def end_headers(self) -> None:
        for name, value in self.server.extra_headers.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


def installed(folder: Path) -> Path:
    """Install what a folder's ``package-lock.json`` names, once in the user's cache.

    Returns:
        The folder ``node_modules``.

    Raises:
        MissingError: npm is missing, or cannot get the packages.
    """
    if shutil.which("npm") is None:
        raise MissingError("npm is missing; run: apt-get install npm")
    files = [folder / "package.json", folder / "package-lock.json"]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    place = _cache_folder() / digest
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix="installing-") as scratch:
            for file in files:
                shutil.copy(file, scratch)
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=600)
            if done.returncode:
                raise MissingError(f"npm ci failed in {folder.name}: {done.stderr.strip()[-500:]}")
            shutil.copytree(scratch, place, symlinks=True)
    return place / "node_modules"


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "weightspace-npm"
