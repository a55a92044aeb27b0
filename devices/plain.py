"""Names from files, shown as they are."""

from __future__ import annotations

from rich.text import Text


def plain(text: str) -> Text:
    """Show a name from a file as it is: no markup, and nothing that steers a terminal."""
    return Text("".join(letter if letter.isprintable() else "?" for letter in text))
