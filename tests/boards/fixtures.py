"""The board as a fixture: booted once for all tests, switched off in the end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.boards.emulator import Board, boot
from tests.boards.image import MissingError


@pytest.fixture(scope="session")
def board() -> Iterator[Board]:
    """A board that runs; tests that need it are skipped where a program for it is missing.

    With ``WEIGHTSPACE_BOARD=required`` they fail instead. One that does not boot always fails them.
    """
    booted = boot()
    try:
        board = booted.__enter__()
    except MissingError as error:
        if os.environ.get("WEIGHTSPACE_BOARD") == "required":
            raise
        pytest.skip(str(error))
    try:
        yield board
    finally:
        booted.__exit__(None, None, None)


@pytest.fixture(scope="session")
def adb_server(board: Board) -> Iterator[None]:
    """An adb server of the tests' own, so that no attached phone is touched."""
    patch = pytest.MonkeyPatch()
    patch.setenv("ANDROID_ADB_SERVER_PORT", str(board.adb_server_port))
    own_home = {**os.environ, "HOME": str(board.folder)}  # where the server keeps its key
    subprocess.run(["adb", "start-server"], env=own_home, capture_output=True, check=True)
    yield
    subprocess.run(["adb", "kill-server"], capture_output=True, check=False)
    patch.undo()
