"""The wheel: pure Python, or for one platform with the one-pass kernel's library inside.

``WEIGHTSPACE_KERNELS=build pip wheel .`` compiles the library (docs/one-pass.md); pyproject.toml
says everything else.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).parent
WANTED = os.environ.get("WEIGHTSPACE_KERNELS") == "build"


def compiler() -> ModuleType:
    """Load runtimes/kernels/compile.py alone: its package needs numpy, which is not here yet."""
    sys.path.insert(0, str(ROOT))
    path = ROOT / "runtimes" / "kernels" / "compile.py"
    spec = importlib.util.spec_from_file_location("weightspace_kernels", path)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class BuildWithLibrary(build_py):
    """Adds the library where ``runtimes.kernels.library`` looks for it first."""

    def run(self) -> None:
        """Copy the packages, and compile; not where they are used in place, as sources change."""
        super().run()
        if self.editable_mode:
            return
        kernels, architecture = compiler(), platform.machine()
        lib = Path(self.build_lib) / "runtimes" / "kernels" / "lib"
        try:
            kernels.build(architecture, lib / architecture / kernels.LIBRARY)
        except kernels.MeasureError as error:
            raise CompileError(str(error)) from None


class WheelWithLibrary(bdist_wheel):
    """For this platform, and for every Python, as nothing is compiled against Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Give the tags of Python, of its interface and of the platform."""
        return ("py3", "none", super().get_tag()[2])


class WithLibrary(Distribution):
    """Packages with machine code among them."""

    def has_ext_modules(self) -> bool:
        """Tell setuptools that the packages belong to a platform, though it compiles nothing."""
        return True


if WANTED:
    setup(
        distclass=WithLibrary,
        cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": WheelWithLibrary},
    )
else:
    setup()
