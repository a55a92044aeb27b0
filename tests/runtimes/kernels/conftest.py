"""Built kernels. Without a compiler their tests are skipped; in CI they fail."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import pytest

from runtimes.kernels import LIBRARY, why_not
from runtimes.kernels.compile import build

HERE = Path(__file__).parent


def need_compiler(architecture):
    """Skip the test where nothing can be compiled for an architecture."""
    need(why_not(architecture))


def need_program(name, package):
    """Give a program's path; skip the test where it is missing."""
    found = shutil.which(name)
    need("" if found else f"{name} is missing; run: apt-get install {package}")
    return found


def need(reason):
    """Skip the test for a reason, if there is one; where the kernels are required it fails."""
    if reason and os.environ.get("WEIGHTSPACE_KERNELS") == "required":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def operators(tmp_path_factory):
    """The library with the operators, for this machine."""
    need_compiler(platform.machine())
    return build(platform.machine(), tmp_path_factory.mktemp("kernels") / LIBRARY)
