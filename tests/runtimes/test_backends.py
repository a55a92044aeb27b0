from __future__ import annotations

import importlib
import inspect
import re
import tomllib
from pathlib import Path

import pytest

from runtimes import BACKENDS

EXTRAS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]


def test_there_is_a_backend_and_each_is_listed_under_its_format():
    assert "onnx" in BACKENDS
    assert all(backend.format == name for name, backend in BACKENDS.items())
    suffixes = [backend.suffix for backend in BACKENDS.values()]
    assert len(set(suffixes)) == len(suffixes)
    assert all(re.fullmatch(r"\.\w+", suffix) for suffix in suffixes)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_opens_sessions_in_the_common_way(name):
    module = importlib.import_module(BACKENDS[name].module)
    parameters = inspect.signature(module.open_session).parameters
    assert list(parameters) == ["path", "threads", "options", "optimize"]
    assert parameters["threads"].default == 1
    assert parameters["optimize"].default is True


@pytest.mark.parametrize("name", BACKENDS)
def test_the_extra_of_a_backend_installs_its_package(name):
    backend = BACKENDS[name]
    assert backend.extra in EXTRAS
    packages = [re.split(r"[^\w.-]", requirement)[0] for requirement in EXTRAS[backend.extra]]
    assert backend.package in packages
    assert backend.package == importlib.import_module(backend.module).NAME
