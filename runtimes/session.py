"""The one shape of everything that runs an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from export.records import TensorSpec

Arrays = dict[str, NDArray[np.generic]]


class Session(Protocol):
    """A loaded artifact: names and shapes of its inputs and outputs, and a way to run it."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Run once: input name to array in, output name to array out."""
        ...

    def close(self) -> None:
        """Free the artifact; the session cannot be used after."""
        ...
