"""coremltools at arm's length: loaded when needed, and quiet."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from export.errors import MissingExtraError


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars, and notes on other packages' versions, off the terminal.

    What goes wrong is raised, so nothing is lost.
    """
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def load() -> Any:
    """Import coremltools.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        with quiet():
            import coremltools
    except ImportError as error:
        raise MissingExtraError.of("coremltools", "coreml") from error
    return coremltools
