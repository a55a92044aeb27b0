"""The trained checkpoints that ship with the package, and their cards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


def path_of(checkpoint: str) -> Path:
    """Give the path of a shipped checkpoint."""
    return _FOLDER / checkpoint


def card_of(model: str) -> dict[str, Any] | None:
    """Read the card of a trained model; None where none is shipped."""
    path = _FOLDER / f"{model}.json"
    if not path.is_file():
        return None
    card: dict[str, Any] = json.loads(path.read_text())
    return card
