from __future__ import annotations

import pytest

from devices.deploy import deploy
from devices.options import Options
from devices.target import find_target

MODEL = "tests.text_nets:with_tokenizer"


@pytest.fixture(scope="session")
def android(tmp_path_factory):
    """A bundle for Android apps, with its manifest."""
    return _deployed("android", tmp_path_factory)


@pytest.fixture(scope="session")
def iphone(tmp_path_factory):
    """A bundle for iPhone apps, with its manifest."""
    return _deployed("iphone", tmp_path_factory)


def _deployed(target, tmp_path_factory):
    options = Options(settings=("latency-first",), profile=False, app=True)
    folder = tmp_path_factory.mktemp("bundles") / target
    return deploy(MODEL, find_target(target), folder, options)
