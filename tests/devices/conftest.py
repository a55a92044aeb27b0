from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from tests.boards.fixtures import adb_server, board
from tests.browser.fixtures import browser

__all__ = ["adb_server", "board", "browser"]


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        """What was printed about errors: everything but the steps of the export."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]


@pytest.fixture
def cli(capsys, monkeypatch):
    """Run the command line in this process: gives its exit code and what it printed."""
    from rich.console import Console

    import devices.cli
    import devices.console

    def run(*args: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["weightspace", *map(str, args)])
        monkeypatch.setattr(devices.console, "out", Console(width=160))
        monkeypatch.setattr(devices.console, "err", Console(stderr=True, width=160))
        with pytest.raises(SystemExit) as caught:
            devices.cli.main()
        printed = capsys.readouterr()
        return Outcome(int(caught.value.code or 0), printed.out, printed.err)

    return run
