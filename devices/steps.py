"""How the steps of a deployment say what they are about to do."""

from __future__ import annotations

from collections.abc import Callable

Step = Callable[[str], None]
