"""The browser as a fixture: started once for all tests of a module."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.chromium import MissingError, chromium, installed

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")  # playwright's event loop runs while it is open: no other can
def browser() -> Iterator[Browser]:
    """Chromium; tests that need it are skipped where it is missing.

    With ``WEIGHTSPACE_BROWSER=required`` they fail instead.
    """
    started = chromium()
    try:
        found = started.__enter__()
    except MissingError as error:
        _miss(error)
    try:
        yield found
    finally:
        started.__exit__(None, None, None)


def packages(folder: Path) -> Path:
    """Give the ``node_modules`` of a folder; skip the test where they cannot be had."""
    try:
        return installed(folder)
    except MissingError as error:
        _miss(error)


def _miss(error: MissingError) -> None:
    if os.environ.get("WEIGHTSPACE_BROWSER") == "required":
        raise error
    pytest.skip(str(error))
